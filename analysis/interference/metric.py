"""The task-interference metric from gradients that are asked for one at a time (papers.md 2.9).

A step of unit length on an example of task j lowers the loss of an example b of task i, to first order, by
    delta_ij[b] = mean over a != b of < g_j[a] / |g_j[a]| , g_i[b] >
and I_ij = delta_ij / delta_ii: 1 on the diagonal, below zero where j hurts i. Two passes over the examples: the first adds up the
directions and the gradients of each task, the second takes their products with each gradient. Memory is that of a few gradients of each
task, however many examples there are.
Legend: I affected task, J influencing task, N examples, W weights, R resamples; D mean change by affected example, over those that
influence it, and by influencing example, over those that it affects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from evaluation.intervals import LEVEL, RESAMPLES

SMALLEST = torch.finfo(torch.float32).tiny
"""In place of the norm of a gradient that is zero."""
UNSTABLE = 0.05
"""An example is unstable whose own task's step changes its loss by less than this part of what is usual; its ratio says nothing."""
ENDS = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
PART = 1 << 20
"""Numbers of a gradient that are multiplied at a time."""

Gradients = Callable[[int, int], list[Tensor]]
"""(task, number of the example) -> gradient of each weight; of a rank's part of it where weights are cut."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over ranks. parts: of numbers that belong to weight w, over those that hold its parts; examples: of a tensor, over those that
    share examples out."""

    parts: Callable[[Tensor, int], Tensor] = lambda numbers, weight: numbers
    examples: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclasses.dataclass(frozen=True)
class Interference:
    """Of one weight; [affected task, influencing task] each, low and high the 95 % interval of the ratio of means, for examples of both
    tasks drawn anew. unstable: by task, share of examples. determined: by affected task, whether its own task's steps lower its loss for
    certain; where they do not, the denominator may be zero or below, and its ratios say nothing."""

    ratio_of_means_IJ: np.ndarray
    low_IJ: np.ndarray
    high_IJ: np.ndarray
    mean_of_ratios_IJ: np.ndarray
    unstable_I: np.ndarray
    determined_I: np.ndarray


def changes(
    gradients: Gradients,
    num_tasks: int,
    sizes: Sequence[int],
    numbers: Sequence[int],
    num_examples: int,
    threshold: float = 0.0,
    sums: Sums | None = None,
) -> Tensor:
    """[D, W, I, J, N] of this rank's examples. sizes: numbers of each whole weight; numbers: this rank's examples of all num_examples, at
    least one.

    threshold: of a gradient only what is larger than so many of its standard deviations.
    """
    sums = sums or Sums()

    def kept(task: int, number: int) -> list[Tensor]:
        found = gradients(task, number)
        return [_sparse(g, w, sizes[w], threshold, sums) for w, g in enumerate(found)] if threshold else found

    directions: list[list[Tensor]] = [[] for _ in range(num_tasks)]
    totals: list[list[Tensor]] = [[] for _ in range(num_tasks)]
    for number in numbers:
        for task in range(num_tasks):
            for w, gradient in enumerate(kept(task, number)):
                norm = sums.parts(gradient.double().square().sum(), w).sqrt()
                _add(directions[task], w, gradient / norm.clamp(min=SMALLEST).to(gradient))
                _add(totals[task], w, gradient)
    directions, totals = ([[sums.examples(t) for t in of_task] for of_task in each] for each in (directions, totals))

    found = torch.zeros(2, len(sizes), num_tasks, num_tasks, len(numbers), dtype=torch.float64)
    for place, number in enumerate(numbers):
        together = [kept(task, number) for task in range(num_tasks)]
        for w in range(len(sizes)):
            own = [of_task[w] for of_task in together]
            others = (of_task[w] for of_task in (*together, *directions, *totals))
            with_own_IJ, with_directions_IJ, with_totals_JI = (
                sums.parts(_products(own, *others), w).cpu().split(num_tasks, 1)
            )
            norm_J = with_own_IJ.diagonal().sqrt().clamp(min=SMALLEST)
            both_DIJ = torch.stack([with_directions_IJ, with_totals_JI.T / norm_J])
            # The example of the same number is left out, also of other tasks, as in the published notebook.
            found[:, w, :, :, place] = (both_DIJ - with_own_IJ / norm_J) / (num_examples - 1)
    return found


def interference(changes_DIJN: np.ndarray, seed: int = 0) -> Interference:
    """What the changes of one weight's examples say. A ratio without a denominator is not a number."""
    of_affected_IJN = changes_DIJN[0]
    own_IN = np.einsum("iin->in", of_affected_IJN)
    sums_RIJ = _resampled_sums(changes_DIJN, seed)
    own_RI = np.einsum("rii->ri", sums_RIJ)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios_IJ = (of_affected_IJN / own_IN[:, None]).mean(axis=2)
        means_IJ = of_affected_IJN.sum(axis=2) / own_IN.sum(axis=1)[:, None]
        usual_I1 = np.sqrt(np.square(own_IN).mean(axis=1, keepdims=True))
        unstable_I = np.where(usual_I1[:, 0] > 0, (np.abs(own_IN) < UNSTABLE * usual_I1).mean(axis=1), 1.0)
        low_IJ, high_IJ = np.percentile(sums_RIJ / own_RI[:, :, None], ENDS, axis=0)
    determined_I = np.percentile(own_RI, ENDS[0], axis=0) > 0
    return Interference(means_IJ, low_IJ, high_IJ, ratios_IJ, unstable_I, determined_I)


def _resampled_sums(changes_DIJN: np.ndarray, seed: int) -> np.ndarray:
    """[R, I, J]: sums over all pairs of examples when those of each task are drawn anew, to first order in how often each is drawn (Hájek's
    projection): what the example adds as the affected one, and as the influencing one. Only those two sums are there, not each pair."""
    _, num_tasks, _, count = changes_DIJN.shape
    draws, sums_IJ = np.random.default_rng(seed), changes_DIJN[0].sum(axis=2)
    found = []
    for _ in range(RESAMPLES):
        times_TN = draws.multinomial(count, np.full(count, 1 / count), size=num_tasks)
        affected_IJ = np.einsum("ijn,in->ij", changes_DIJN[0], times_TN)
        influencing_IJ = np.einsum("ijn,jn->ij", changes_DIJN[1], times_TN)
        found.append(affected_IJ + influencing_IJ - sums_IJ)
    return np.stack(found)


def _add(sums: list[Tensor], place: int, tensor: Tensor) -> None:
    if len(sums) == place:
        sums.append(tensor.clone())
    else:
        sums[place] += tensor


def _products(ones: Sequence[Tensor], *others: Tensor) -> Tensor:
    """[ones, others] in double precision, which only a part of the numbers takes at a time."""
    of_one, of_other = ([tensor.flatten() for tensor in each] for each in (ones, others))
    found = torch.zeros(len(of_one), len(of_other), dtype=torch.float64, device=of_one[0].device)
    for start in range(0, len(of_one[0]), PART):
        part, other = (torch.stack([t[start : start + PART] for t in each]).double() for each in (of_one, of_other))
        found += part @ other.T
    return found


def _sparse(gradient: Tensor, weight: int, size: int, threshold: float, sums: Sums) -> Tensor:
    """Without what is small against the standard deviation of the whole gradient."""
    wide = gradient.double()
    total, squares = sums.parts(torch.stack([wide.sum(), wide.square().sum()]), weight)
    deviation = (squares / size - (total / size).square()).clamp(min=0).sqrt()
    return torch.where(wide.abs() > threshold * deviation, gradient, 0.0)
