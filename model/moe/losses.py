"""Auxiliary losses on router probabilities: pure functions. Legend: T tokens, E experts."""

from __future__ import annotations

from torch import Tensor


def importance(probs_TE: Tensor) -> Tensor:
    """(std / mean)^2 over experts of the summed probabilities, population std (V-MoE, papers.md 3.5)."""
    importance_E = probs_TE.sum(dim=0)
    return importance_E.var(unbiased=False) / importance_E.mean().clamp_min(1e-9) ** 2
