"""What of a network is trained and what is frozen, in the words of a person: counts by family of parameters."""

from __future__ import annotations

import collections
import math
import re

from torch import nn

from parallel.placement import placement_of

FAMILIES = (
    ("low-rank updates", r"\.lora\."),
    ("prompts", r"prompts$|\.spe_bias$"),
    ("linear head", r"^head\.|^similarity_weight$"),
    ("routers", r"\.router\."),
    ("norms", r"norm\.(weight|bias)$"),
    ("embeddings", r"\.embedding\."),
    ("experts", r"\.bank\.|\.experts\."),
    ("attention", r"\.attention\."),
    ("feed-forward", r"\.ffn\."),
    ("output", r"\.output\."),
    ("scales", r"_scale$|^log_scales\.|^logit_biases\."),
    ("others", r""),
)
"""Names and what their parameters' names have; the first one that fits."""


def told_parameters(network: nn.Module) -> list[str]:
    """Logical parameters of all ranks together, how many of them are trained, and where not all are, which families."""
    here = total = 0
    counts: dict[bool, collections.Counter[str]] = {True: collections.Counter(), False: collections.Counter()}
    for name, parameter in network.named_parameters():
        size = math.prod(placement_of(parameter).shape)
        family = next(family for family, pattern in FAMILIES if re.search(pattern, name))
        counts[parameter.requires_grad][family] += size
        here, total = here + parameter.numel(), total + size
    trained = counts[True].total()
    part = f" ({here:,} on this rank)" if here != total else ""
    first = f"{total:,}{part}, {'all' if trained == total else f'{trained:,}'} trained"
    if trained == total:
        return [first]
    return [first, f"trained: {_listed(counts[True])}", f"frozen: {_listed(counts[False])}"]


def _listed(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{family} {size:,}" for family, size in counts.most_common()) or "nothing"
