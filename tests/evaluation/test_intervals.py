"""Intervals of figures: as wide as theory says, the same for the same seed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation import intervals
from evaluation.classification import class_accuracy
from evaluation.intervals import difference, differences_of, figure_of, figures_of, interval, intervals_of
from evaluation.metrics.caption_scores import bleu, bleu_counts


def evidence(right: int, total: int) -> np.ndarray:
    hits_N = np.zeros(total)
    hits_N[:right] = 1
    return np.stack([hits_N, np.ones(total)], axis=1)


def test_a_share_has_the_interval_of_a_share():
    low, high = interval(evidence(300, 1000))
    wide = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - wide, abs=0.004) and high == pytest.approx(0.3 + wide, abs=0.004)
    assert interval(evidence(300, 1000)) == (low, high) != interval(evidence(300, 1000), seed=1)


def test_a_ratio_of_sums():
    """Accuracy over tokens: texts bring several."""
    assert figure_of(np.array([[1.0, 4.0], [3.0, 4.0], [2.0, 2.0]])) == pytest.approx(6 / 10)
    assert interval(np.array([[2.0, 4.0]] * 50)) == (0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_a_resample_that_has_nothing_to_count_is_nought():
    """F1 of a class with one right sample of 10: 0.9^10 = .35 of the resamples lack it, so that the middle 95 % go from 0 to 1."""
    rare = np.zeros((10, 2))
    rare[0] = 2.0
    assert interval(rare) == (0, 1) and figure_of(rare) == 1
    none = np.zeros((10, 2))
    assert interval(none) == (0, 0) and figure_of(none) == 0 and difference(none, rare, paired=True) == (1, 0, 1)


def test_differences_of_the_same_samples_are_narrower():
    rng = np.random.default_rng(0)
    hits_N = (rng.random(400) < 0.5).astype(float)
    better_N = np.where(rng.random(400) < 0.05, 1.0, hits_N)  # differs in a few alone
    one, other = (np.stack([hits, np.ones(400)], axis=1) for hits in (hits_N, better_N))
    value, low, high = difference(one, other, paired=True)
    _, wide_low, wide_high = difference(one, other, paired=False)
    assert value == pytest.approx((better_N - hits_N).mean()) and 0 < low <= value <= high
    assert high - low < 0.5 * (wide_high - wide_low) and wide_low < 0
    assert difference(one, one, paired=True) == (0, 0, 0)


RAGGED = np.array([[1.0, 7.0], [2.0, np.nan], [12.0, 3.0]])
"""Ranks of the captions of three images."""


def test_figures_of_samples_by_hand():
    samples = {
        "top5_accuracy": np.array([1.0, 0.0, 1.0, 1.0]),
        # Class 0 is told in one of three samples, class 7 in its only one.
        "mean_class_accuracy": np.array([[0.0, 1], [7, 1], [0, 0], [0, 0]]),
        "loss": np.array([[2.0, 1], [4.0, 3], [0.0, 0], [0.0, 2]]),
    }
    assert figures_of(samples) == pytest.approx(
        {"top5_accuracy": 3 / 4, "mean_class_accuracy": (1 / 3 + 1) / 2, "loss": 1, "perplexity": math.e}
    )
    assert figures_of({"text_to_image": RAGGED}) == pytest.approx(
        {
            "text_to_image_r1": 1 / 5,
            "text_to_image_r5": 3 / 5,
            "text_to_image_r10": 4 / 5,
            "text_to_image_median_rank": 3,
        }
    )
    # Of an even number the mean of the two in the middle.
    assert figures_of({"image_to_text": np.array([[1.0], [4.0]])})["image_to_text_median_rank"] == 2.5


def test_all_figures_have_the_resamples_of_the_main_one(monkeypatch):
    hits_N = (np.random.default_rng(0).random(50) < 0.5) * 1.0
    alone = intervals_of({"exact": hits_N})
    assert alone["exact"] == interval(np.stack([hits_N, np.ones(50)], axis=1))
    ranks_NK = np.where(hits_N[:, None] > 0, [[1.0, 2.0]], [[20.0, np.nan]])
    samples = {"exact": hits_N, "text_to_image": ranks_NK}
    both = intervals_of(samples)
    assert both["exact"] == alone["exact"]
    monkeypatch.setattr(intervals, "AT_ONCE", 300)  # three resamples at a time
    assert intervals_of(samples) == both and intervals_of({}) == {}


def test_intervals_are_those_of_a_plain_loop():
    """The same resamples, each scored as a corpus is."""
    rng = np.random.default_rng(2)
    words = [[str(word) for word in rng.integers(4, size=6)] for _ in range(20)]
    references = [[[str(word) for word in rng.integers(4, size=n)] for n in (5, 7)] for _ in range(20)]
    labels, right = rng.integers(3, size=20), rng.integers(2, size=20) * 1.0
    ranks = rng.integers(1, 9, size=(20, 2)) * 1.0
    found = intervals_of(
        {
            "bleu": bleu_counts(words, references),
            "mean_class_accuracy": np.stack([labels, right], axis=1),
            "text_to_image": ranks,
        }
    )
    drawn, figures = np.random.default_rng(0), []
    for _ in range(intervals.RESAMPLES):
        own = drawn.integers(20, size=20)
        by_class = class_accuracy(right[own], labels[own], ("a", "b", "c"))
        scores = bleu([words[i] for i in own], [references[i] for i in own])
        figures.append([*scores, sum(by_class.values()) / len(by_class), np.median(ranks[own])])
    names = ("bleu1", "bleu2", "bleu3", "bleu4", "mean_class_accuracy", "text_to_image_median_rank")
    for name, of_all in zip(names, np.array(figures).T, strict=True):
        assert found[name] == pytest.approx(np.percentile(of_all, [2.5, 97.5]).tolist()), name


def test_differences_of_what_both_have():
    one, other = {"exact": np.zeros(4), "rouge_l": np.zeros(4)}, {"exact": np.ones(4), "rouge_l": np.zeros(5)}
    assert differences_of(one, other) == {"exact": (1, 1, 1)} and differences_of(one, {}) == {}
    assert differences_of({"text_to_image": RAGGED}, {"text_to_image": RAGGED})["text_to_image_median_rank"] == (
        0,
        0,
        0,
    )
