"""Which parameters a run tunes."""

from __future__ import annotations

import fnmatch
from typing import Literal

from torch import nn


class TuningError(ValueError):
    """The parameters that were named cannot be tuned or frozen."""


PROMPT_TUNED = ("*prompts", "*.spe_bias", "*norm.*", "head.*", "similarity_weight")
"""What prompt tuning trains (papers.md 1.10): prompts, the bias of <SPE>, LayerNorms outside the routers, the linear head."""


def choose_trained(module: nn.Module, tune: Literal["all", "prompts"], frozen: tuple[str, ...]) -> None:
    """Freeze what is not to be trained (OptimizerConfig). Raises TuningError."""
    if tune == "prompts":
        tune_prompts(module)
    freeze(module, frozen)


def tune_prompts(module: nn.Module) -> int:
    """Freeze all but the parameters of prompt tuning; returns how many tensors are frozen.

    Raises TuningError for a model without prompts.
    """
    named = dict(module.named_parameters())
    if not any(name.endswith(".prompts") for name in named):
        raise TuningError(
            "optimizer.tune=prompts needs a model with prompts: set model.prompts, for instance {length: 10}"
        )
    tuned = {name for pattern in PROMPT_TUNED for name in fnmatch.filter(named, pattern) if ".router." not in name}
    for name in named.keys() - tuned:
        named[name].requires_grad_(False)
    return len(named) - len(tuned)


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> int:
    """Freeze the parameters whose names match a pattern (`tower.*`, `*.router.*`); returns how many tensors.

    Raises TuningError for a pattern that matches nothing.
    """
    named = dict(module.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(named, pattern)
        if not matching:
            parts = sorted({".".join(name.split(".")[:2]) for name in named})
            raise TuningError(f"optimizer.frozen={pattern!r} matches no parameter; there are {', '.join(parts)}")
        frozen.update(matching)
    for name in frozen:
        named[name].requires_grad_(False)
    return len(frozen)
