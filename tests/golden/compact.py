"""Makes numbers/compact.npz.xz out of the full golden set: what a clone can run by itself, in less than 3 MB.

    python -m tests.golden.compact

Chosen: the dense model with text, masked text, captions, beams over the whole vocabulary and six optimizer steps; the sparse one with
images, clips and retrieval, its experts, gradients, noise and two ranks. Left out: states of the layers but the last one of one case
each, parameters of experts that no chosen case uses, gradients but those of one case each (norms of all are kept).
"""

from __future__ import annotations

import io
import json
import lzma
import re
import sys
from typing import Any

import numpy as np

from tests.golden.reference import COMPACT, FULL

TEXTS = ("dense_text_cls", "dense_mlm", "dense_caption", "dense_beam", "dense_train_steps")
STEPS = ("dense_image_cls", "dense_retrieval", "dense_video_cls")  # whose batches the six steps take
PICTURES = ("moe_image_cls", "moe_video_cls", "moe_retrieval", "moe_gate_noise", "moe_temporal_offset", "moe_two_ranks")
DETAILED = ("dense_text_cls", "moe_image_cls")
LIMIT_BYTES = 3_000_000
DESCRIBED = (
    "losses", "logit_scale", "loss_weight", "label_smoothing", "grad_norm", "no_grad", "train_mode_losses", "clamped_scale",
    "max_len", "length_penalty_exponent", "parts", "hyper_parameters", "steps", "delta_norm", "weight_decay_per_parameter",
    "full_vocab_cross_entropy",
)  # fmt: skip
"""What the tests read of a case's description."""


def keeps(case: str, name: str) -> bool:
    """Whether the array of a case is kept."""
    part = name.split("/")[0]
    if part in ("in", "beam1", "beam2", "beam3", "delta", "full_vocab", "out"):
        return name not in ("in/soft_targets", "out/target_feature") or case in DETAILED
    if "/gate/" in name:
        return "/logits" not in name
    if case == "moe_temporal_offset":
        return name == "input/embed"
    return case in DETAILED and (part == "grad" or name.endswith("/layer3"))


def main() -> int:
    manifest = json.loads((FULL / "manifest.json").read_text())
    kept: dict[str, np.ndarray] = {}
    cases: dict[str, Any] = {}
    used: set[tuple[int, str, int]] = set()
    for case in (*TEXTS, *STEPS, *PICTURES):
        described = manifest["cases"][case]
        cases[case] = {key: described[key] for key in DESCRIBED if key in described}
        for name, value in arrays_of(case).items():
            match = re.search(r"gate/layer(\d).(qkv|ffn)/experts$", name)
            if match:
                used |= {(int(match[1]), match[2], int(expert)) for expert in value.ravel()}
            if keeps(case, name):
                kept[f"{case}|{name}"] = value
    zeros = {}
    for file in ("token_embedding", "dense_state", "moe_state", "sincos_positions"):
        for name, value in arrays_of(file).items():
            if is_unused(name, used):
                zeros[name] = list(value.shape)
            else:
                kept[f"{file}|{name}"] = value
    text = json.dumps({"cases": cases, "zeros": zeros}, separators=(",", ":"))
    kept["manifest"] = np.frombuffer(text.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: kept[name] for name in sorted(kept)})
    COMPACT.parent.mkdir(exist_ok=True)
    COMPACT.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    size = COMPACT.stat().st_size
    print(f"{len(kept)} arrays of {len(cases)} cases, {len(zeros)} parameters left out: {size:,} bytes")
    return 0 if size <= LIMIT_BYTES else 1


def arrays_of(name: str) -> dict[str, np.ndarray]:
    path = FULL / f"{name}.npz"
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def is_unused(name: str, used: set[tuple[int, str, int]]) -> bool:
    """Whether it belongs to an expert that no decision of the chosen cases takes."""
    match = re.search(r"layers\.(\d)\.(.*)experts\.deepspeed_experts\.(\d)\.", name)
    if not match:
        return False
    linear = "qkv" if "self_attn" in match[2] else "ffn"
    return (int(match[1]), linear, int(match[3])) not in used


if __name__ == "__main__":
    sys.exit(main())
