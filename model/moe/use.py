"""How much experts are used: sums that can be added up over passes, tasks and ranks.

Legend: M modalities, E experts, N decisions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ExpertUse:
    """Of one decision; with a leading N of several.

    taken_ME     (token, choice) pairs of modality m that expert e took
    weight_ME    sum of their gate weights
    asked_M      all pairs that were asked for, those that found no slot among them
    entropy_M    entropy of the gate's distribution without noise, in nats, summed over these pairs
    """

    taken_ME: Tensor
    weight_ME: Tensor
    asked_M: Tensor
    entropy_M: Tensor

    def packed(self) -> Tensor:
        """[..., M, 2 E + 2], for sums over ranks in one piece."""
        asked, entropy = self.asked_M.unsqueeze(-1), self.entropy_M.unsqueeze(-1)
        return torch.cat([self.taken_ME, self.weight_ME, asked, entropy], dim=-1)


def unpacked(packed: Tensor) -> ExpertUse:
    """The inverse of `packed`."""
    experts = packed.shape[-1] // 2 - 1
    taken, weight, asked, entropy = packed.split([experts, experts, 1, 1], dim=-1)
    return ExpertUse(taken, weight, asked.squeeze(-1), entropy.squeeze(-1))


def stacked(uses: list[ExpertUse]) -> ExpertUse:
    """Of several decisions; at least one."""
    return ExpertUse(*(torch.stack(parts) for parts in zip(*map(_fields, uses), strict=True)))


def added(uses: list[ExpertUse]) -> ExpertUse:
    """Of one decision in several passes."""
    return ExpertUse(*(torch.stack(parts).sum(dim=0) for parts in zip(*map(_fields, uses), strict=True)))


def unused(num_experts: int, modalities: int, like: Tensor) -> ExpertUse:
    """Of no decision at all."""
    return unpacked(like.new_zeros(0, modalities, 2 * num_experts + 2))


def _fields(use: ExpertUse) -> tuple[Tensor, ...]:
    return tuple(getattr(use, field.name) for field in dataclasses.fields(use))
