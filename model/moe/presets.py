"""Routing of published systems as one-line choices: `model.experts.preset: switch`. Explicit keys win over a preset's.

Values from papers.md sections 2, 3, 4 and 8; those of LIMoE that could not be confirmed are ours (section 4.2).
"""

from __future__ import annotations

from typing import Any

_WHOLE_MLP: dict[str, Any] = {"router": "token", "unit": "mlp", "placement": "every-2"}

ROUTING: dict[str, dict[str, Any]] = {
    # Linear experts in attention and FFN, decided by eight bits about task and token; weights travel, not tokens.
    "uni_perceiver_moe": {
        "router": "attribute",
        "unit": "linear",
        "num_experts": 8,
        "top_k": 2,
        "placement": "odd",
        "noise": "vmoe",
        "renormalise": True,
    },
    # What the released configurations hint at for routers that decide for tokens: capacity 3 and 4, priority on.
    "uni_perceiver_moe_token": {
        "router": "token",
        "unit": "linear",
        "num_experts": 8,
        "top_k": 2,
        "placement": "odd",
        "capacity_factor": 3.0,
        "eval_capacity_factor": 4.0,
    },
    "vmoe": _WHOLE_MLP
    | {
        "top_k": 2,
        "renormalise": False,
        "group_size": 8,
        "capacity_factor": 1.05,
        "capacity_multiple": 4,
        "priority": "none",
        "same_start": True,
        "auxiliary": {"importance": 0.005, "load": 0.005},
    },
    "limoe": _WHOLE_MLP
    | {
        "top_k": 1,
        "renormalise": False,
        "capacity_factor": 1.0,
        "priority": "max",
        "same_start": True,
        "auxiliary": {
            "importance": 0.005,
            "load": 0.005,
            "local_text": 0.04,
            "global_text": 0.04,
            "global_visual": 0.04,
            "experts_text": 2.0,
            "experts_visual": 5.0,
        },
    },
    "switch": _WHOLE_MLP
    | {
        "top_k": 1,
        "renormalise": False,
        "noise": "jitter",
        "capacity_factor": 1.25,
        "eval_capacity_factor": 2.0,
        "priority": "none",
        "auxiliary": {"switch": 0.01},
    },
    "gshard": _WHOLE_MLP
    | {
        "top_k": 2,
        "noise": "none",
        "capacity_factor": 1.0,
        "priority": "none",
        "random_second": True,
        "auxiliary": {"switch": 0.01},
    },
    "glam": _WHOLE_MLP
    | {"top_k": 2, "noise": "none", "capacity_factor": 1.0, "priority": "none", "auxiliary": {"switch": 0.01}},
    "st_moe": _WHOLE_MLP
    | {
        "top_k": 2,
        "placement": "every-4",
        "noise": "jitter",
        "capacity_factor": 1.25,
        "eval_capacity_factor": 2.0,
        "priority": "none",
        "auxiliary": {"switch": 0.01, "z": 0.001},
    },
}
