"""The metric by hand, against the published notebook's stored numbers, and its memory."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.interference.metric import changes, interference
from tests.helpers.places import SHARED

TASKS = ("imagenet", "bookswiki_pretrain", "cc12m_caption")


def of(gradients_INP, **options) -> np.ndarray:
    """Changes of one weight, [D, I, J, N]."""
    stored = torch.as_tensor(gradients_INP, dtype=torch.float32)
    tasks, examples, size = stored.shape
    found = changes(lambda i, n: [stored[i, n]], tasks, [size], range(examples), examples, **options)
    return found[:, 0].numpy()


def test_a_toy_by_hand():
    found = of([[[1, 0], [2, 0], [3, 0]], [[-1, 0], [-2, 0], [0, 1]]])
    by_affected, by_influencing = found
    assert by_affected[0, 0].tolist() == [1, 2, 3] and by_affected[0, 1].tolist() == [-0.5, -1, -3]
    assert by_affected[1, 0].tolist() == [-1, -2, 0] and by_affected[1, 1].tolist() == [0.5, 1, 0]
    assert by_influencing[0, 0].tolist() == [2.5, 2, 1.5] and by_influencing[0, 1].tolist() == [-2.5, -2, 0]
    result = interference(found)
    assert result.ratio_of_means_IJ.tolist() == [[1, -4.5 / 6], [-2, 1]]
    assert result.mean_of_ratios_IJ[0].tolist() == pytest.approx([1, -2 / 3])
    assert np.isnan(result.mean_of_ratios_IJ[1]).all()  # one example does not change by its own task's step
    assert result.unstable_I.tolist() == pytest.approx([0, 1 / 3])
    assert np.isnan(result.low_IJ[1]).all()  # nor does it in many resamples
    assert result.determined_I.tolist() == [True, False]  # three examples of which one is 0 may all be that one
    assert result.low_IJ[0, 1] < -0.75 < result.high_IJ[0, 1]


def test_a_threshold_keeps_what_is_large():
    """The standard deviations are those of all entries: 1.5 of (0, 3) and 2 of (0, 4)."""
    spread = [[[0.5, 3], [0, 4]], [[0.1, 3], [0.1, -4]]]
    assert np.allclose(of(spread, threshold=1.5), of([[[0, 3], [0, 4]], [[0, 3], [0, -4]]]))


def test_intervals_know_of_the_influencing_examples():
    """Every example of task 0 is the same, so all doubt is in the steps of task 1: 60 of 100 help and the rest hurt, a mean of 0.2 with a
    standard error of sqrt(1 - 0.04) / 10 = 0.098."""
    result = interference(of([[[1.0, 0.0]] * 100, [[1.0, 0.0]] * 60 + [[-1.0, 0.0]] * 40]))
    assert result.ratio_of_means_IJ[0, 1] == pytest.approx(0.2)
    assert result.low_IJ[0, 1] == pytest.approx(0.2 - 1.96 * 0.098, abs=0.03)
    assert result.high_IJ[0, 1] == pytest.approx(0.2 + 1.96 * 0.098, abs=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Gradients around (1, 0) and (0.5, 1); what many examples say is taken for the truth."""
    draws = np.random.default_rng(0)

    def gradients_INP(examples: int) -> np.ndarray:
        return np.array([[[1.0, 0.0]], [[0.5, 1.0]]]) + draws.normal(size=(2, examples, 2))

    truth = interference(of(gradients_INP(1500))).ratio_of_means_IJ[0, 1]
    held = [
        result.low_IJ[0, 1] <= truth <= result.high_IJ[0, 1]
        for result in (interference(of(gradients_INP(40))) for _ in range(20))
    ]
    assert 0.85 <= np.mean(held) <= 1.0


def test_a_task_at_rest_is_not_determined():
    """Steps on one half undo those on the other: without itself, an example is hurt by its own task."""
    result = interference(of([[[1.0, 0.0], [-1.0, 0.0]] * 50, [[1.0, 0.0]] * 100]))
    assert result.determined_I.tolist() == [False, True]


def test_a_task_that_the_weight_does_not_serve_has_no_ratio():
    result = interference(of([[[1, 0], [2, 1]], [[0, 0], [0, 0]]]))
    assert result.ratio_of_means_IJ[0].tolist() == [1, 0] and np.isnan(result.ratio_of_means_IJ[1]).all()
    assert np.isnan(result.low_IJ[1]).all() and result.unstable_I[1] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 3), st.integers(2, 6), st.integers(1, 9), st.integers(0, 1000))
def test_passes_give_what_all_gradients_together_do(tasks, examples, size, seed):
    gradients_INP = np.random.default_rng(seed).normal(size=(tasks, examples, size))
    units_INP = gradients_INP / np.linalg.norm(gradients_INP, axis=2, keepdims=True)
    for i in range(tasks):
        for j in range(tasks):
            products_AB = units_INP[j] @ gradients_INP[i].T
            np.fill_diagonal(products_AB, 0)
            expected = products_AB.sum(axis=0) / (examples - 1)
            by_influencing = products_AB.sum(axis=1) / (examples - 1)
            assert np.allclose(of(gradients_INP)[:, i, j], [expected, by_influencing], atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_published_notebook(layer, threshold):
    stored = np.load(SHARED / "golden" / "interference.npz")
    gradients_INP = np.stack([stored[f"layer{layer}/grads/{task}"].reshape(100, -1) for task in TASKS])
    found = of(gradients_INP, threshold=threshold)
    expected = stored[f"layer{layer}/threshold{threshold}/matrix"]
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(interference(found).mean_of_ratios_IJ - expected).max() < 1e-6 * scale
    if not threshold:
        means = stored[f"layer{layer}/delta_mean"]
        assert np.abs(found[0] - means).max() < 1e-6 * np.abs(means).max()


class LargestTogether(TorchDispatchMode):
    """How many numbers large tensors held at the same time, at most."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made, self.most = size, {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.size:
            self.made = {key: made for key, made in self.made.items() if made() is not None} | {
                id(out): weakref.ref(out)
            }
            self.most = max(self.most, sum(made().numel() for made in self.made.values()))
        return out


def test_memory_does_not_grow_with_the_examples():
    size, held = 1000, {}
    for examples in (4, 24):
        with LargestTogether(size) as together:
            changes(lambda task, number: [torch.full((size,), number + 1.0)], 2, [size], range(examples), examples)
        held[examples] = together.most
    assert held[4] == held[24] < 24 * size
