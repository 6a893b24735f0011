"""How much experts are used: sums that can be added up over passes, tasks and ranks.

Legend: M modalities, E experts, N decisions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

NUMBERS = 3
"""Of a decision and modality that are no expert's."""


@dataclasses.dataclass(frozen=True)
class ExpertUse:
    """Of one decision; with a leading N of several.

    taken_ME     (token, choice) pairs of modality m that expert e took
    weight_ME    sum of their gate weights
    asked_M      all pairs that were asked for, those that found no slot among them
    unasked_M    pairs that `random_second` left out before any slot was looked for
    entropy_M    entropy of the gate's distribution without noise, in nats, summed over all pairs
    """

    taken_ME: Tensor
    weight_ME: Tensor
    asked_M: Tensor
    unasked_M: Tensor
    entropy_M: Tensor

    @property
    def pairs_M(self) -> Tensor:
        """All: the tokens times their choices."""
        return self.asked_M + self.unasked_M

    @property
    def dropped(self) -> Tensor:
        """Of each decision, the pairs that were not computed, as they found no slot or were not asked for."""
        return self.pairs_M.sum(dim=-1) - self.taken_ME.sum(dim=(-2, -1))

    def packed(self) -> Tensor:
        """[..., M, X] with X = 2 E + 3, for sums over ranks in one piece."""
        numbers = torch.stack([self.asked_M, self.unasked_M, self.entropy_M], dim=-1)
        return torch.cat([self.taken_ME, self.weight_ME, numbers], dim=-1)


def unpacked(packed: Tensor) -> ExpertUse:
    """The inverse of `packed`."""
    experts = (packed.shape[-1] - NUMBERS) // 2
    taken, weight, numbers = packed.split([experts, experts, NUMBERS], dim=-1)
    return ExpertUse(taken, weight, *numbers.unbind(-1))


def packed_width(num_experts: int) -> int:
    """X."""
    return 2 * num_experts + NUMBERS


def stacked(uses: list[ExpertUse]) -> ExpertUse:
    """Of several decisions; at least one."""
    return ExpertUse(*(torch.stack(parts) for parts in zip(*map(_fields, uses), strict=True)))


def added(uses: list[ExpertUse]) -> ExpertUse:
    """Of one decision in several passes."""
    return ExpertUse(*(torch.stack(parts).sum(dim=0) for parts in zip(*map(_fields, uses), strict=True)))


def unused(num_experts: int, modalities: int, like: Tensor) -> ExpertUse:
    """Of no decision at all."""
    return unpacked(like.new_zeros(0, modalities, packed_width(num_experts)))


def _fields(use: ExpertUse) -> tuple[Tensor, ...]:
    return tuple(getattr(use, field.name) for field in dataclasses.fields(use))
