"""How sure a figure is: bootstrap over samples (Efron, 1979), seeded, so that the same evidence gives the same interval.

Evidence of a figure [N, 2]: what each sample adds to its numerator and to its denominator; the figure is the ratio of their sums.

Samples, by name: what each sample adds to figures beside the main one. All figures are those of the same resamples. Of a name that is not
below it is a value [N], whose mean is the figure of that name.

    mean_class_accuracy           [N, 2] class, and whether it was told
    loss                          [N, 2] sum over masked tokens, and how many: loss and perplexity
    bleu                          [N, 10] counts (evaluation/metrics/caption_scores.py): bleu1 to bleu4
    image_to_text, text_to_image  [N, K] ranks from 1 of what belongs to the sample, NaN beyond that: r1, r5, r10 and median_rank

Legend: N samples, R resamples (or some of them), K columns, X sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from evaluation.metrics.caption_scores import bleu_of

RESAMPLES = 1000
LEVEL = 0.95
CUTOFFS = (1, 5, 10)
"""Of recalls."""
AT_ONCE = 2**21
"""Numbers of an array, so that memory does not grow with resamples times samples."""
Samples = Mapping[str, np.ndarray]


def figure_of(evidence_N2: np.ndarray) -> float:
    return float(_ratios(evidence_N2.sum(axis=0)))


def interval(evidence_N2: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of the figure over resamples of the samples."""
    figures_R = _resampled(evidence_N2, np.random.default_rng(seed), RESAMPLES)
    return middle(figures_R)


def resampled_places(count: int, seed: int = 0) -> np.ndarray:
    """[R, N]: the samples of each resample, for figures that are no such ratio."""
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def resampled_counts(one_N: np.ndarray, other_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """[R, K, K]: how many samples of each resample have each pair of values, float64. All that a figure of two columns of classes needs."""
    values, places_2N = np.unique(np.stack([one_N, other_N]), return_inverse=True)
    one, other = places_2N.reshape(2, -1)
    counts_X = np.bincount(one * len(values) + other, minlength=len(values) ** 2)
    drawn_RX = np.random.default_rng(seed).multinomial(len(one_N), counts_X / len(one_N), size=RESAMPLES)
    return drawn_RX.reshape(RESAMPLES, len(values), len(values)).astype(np.float64)


def difference(one_N2: np.ndarray, other_N2: np.ndarray, paired: bool, seed: int = 0) -> tuple[float, float, float]:
    """(figure of the other less that of the one, and the middle 95 % of it). paired: both were taken of the same samples in the same
    order, which then are drawn together."""
    rng = np.random.default_rng(seed)
    if paired:
        both_N4 = np.concatenate([one_N2, other_N2], axis=1)
        sums_R4 = _sums(both_N4, rng, RESAMPLES)
        differences_R = _ratios(sums_R4[:, 2:]) - _ratios(sums_R4[:, :2])
    else:
        differences_R = _resampled(other_N2, rng, RESAMPLES) - _resampled(one_N2, rng, RESAMPLES)
    return figure_of(other_N2) - figure_of(one_N2), *middle(differences_R)


def intervals_of(samples: Samples) -> dict[str, tuple[float, float]]:
    """The middle 95 % of each figure."""
    return {name: middle(figures_R) for name, figures_R in _resampled_figures(samples).items()}


def differences_of(one: Samples, other: Samples) -> dict[str, tuple[float, float, float]]:
    """As `difference`, paired, of each figure that both have."""
    both = [name for name in one if name in other and len(one[name]) == len(other[name])]
    mine, theirs = ({name: samples[name] for name in both} for samples in (one, other))
    values = {name: value - figures_of(mine)[name] for name, value in figures_of(theirs).items()}
    mine_R, theirs_R = _resampled_figures(mine), _resampled_figures(theirs)  # of one seed: the same samples are drawn
    return {name: (value, *middle(theirs_R[name] - mine_R[name])) for name, value in values.items()}


def figures_of(samples: Samples) -> dict[str, float]:
    """Of all samples, each taken once."""
    found = (_figures(name, np.ones((1, len(values))), values) for name, values in samples.items())
    return {name: float(figures[0]) for figures_by_name in found for name, figures in figures_by_name.items()}


def _resampled_figures(samples: Samples, seed: int = 0) -> dict[str, np.ndarray]:
    """[R] by figure."""
    parts: dict[str, list[np.ndarray]] = {}
    for counts_RN in _drawn_counts(samples, seed) if samples else ():
        for name, values in samples.items():
            for figure, figures_R in _figures(name, counts_RN, values).items():
                parts.setdefault(figure, []).append(figures_R)
    return {figure: np.concatenate(found) for figure, found in parts.items()}


def _drawn_counts(samples: Samples, seed: int) -> Iterator[np.ndarray]:
    """[R, N], some resamples at a time: how often each has each sample. They are the resamples of `interval`."""
    rng, count = np.random.default_rng(seed), len(next(iter(samples.values())))
    rows = max(AT_ONCE // max(values.size for values in samples.values()), 1)
    for start in range(0, RESAMPLES, rows):
        places = (rng.integers(count, size=count) for _ in range(min(rows, RESAMPLES - start)))
        yield np.stack([np.bincount(own_N, minlength=count) for own_N in places]).astype(np.float64)


def _figures(name: str, counts_RN: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    if name in FIGURES:
        return FIGURES[name](name, counts_RN, values)
    return {name: _weighted(counts_RN, values[:, None])[:, 0] / counts_RN.sum(axis=1)}


def _weighted(counts_RN: np.ndarray, values_NK: np.ndarray) -> np.ndarray:
    """Sums [R, K]; without BLAS, whose last bits may change with its threads."""
    return np.einsum("rn,kn->rk", counts_RN, np.ascontiguousarray(values_NK.T), optimize=False)


def _class_accuracy(name: str, counts_RN: np.ndarray, values_N2: np.ndarray) -> dict[str, np.ndarray]:
    """The mean over the classes that a resample has."""
    order_N = np.argsort(values_N2[:, 0], kind="stable")
    labels_N, right_N = values_N2[order_N].T
    first_C = np.flatnonzero(np.diff(labels_N, prepend=np.nan) != 0)
    counts_RN = counts_RN[:, order_N]
    total_RC = np.add.reduceat(counts_RN, first_C, axis=1)
    right_RC = np.add.reduceat(counts_RN * right_N, first_C, axis=1)
    return {name: (right_RC / np.maximum(total_RC, 1)).sum(axis=1) / (total_RC > 0).sum(axis=1)}


def _loss(name: str, counts_RN: np.ndarray, values_N2: np.ndarray) -> dict[str, np.ndarray]:
    loss_R = _ratios(_weighted(counts_RN, values_N2))
    with np.errstate(over="ignore"):
        return {"loss": loss_R, "perplexity": np.exp(loss_R)}


def _bleu(name: str, counts_RN: np.ndarray, values_NK: np.ndarray) -> dict[str, np.ndarray]:
    scores_4R = bleu_of(_weighted(counts_RN, values_NK)).T
    return {f"bleu{n}": scores_R for n, scores_R in enumerate(scores_4R, start=1)}


def _ranks(name: str, counts_RN: np.ndarray, ranks_NK: np.ndarray) -> dict[str, np.ndarray]:
    hits_N4 = np.stack([*((ranks_NK <= k).sum(axis=1) for k in CUTOFFS), (~np.isnan(ranks_NK)).sum(axis=1)], axis=1)
    sums_R4 = _weighted(counts_RN, hits_N4.astype(np.float64))
    found = {f"{name}_r{k}": _ratios(sums_R4[:, [column, -1]]) for column, k in enumerate(CUTOFFS)}
    sample_M, place_M = np.nonzero(~np.isnan(ranks_NK))
    ranks_M = ranks_NK[sample_M, place_M]
    order_M = np.argsort(ranks_M, kind="stable")
    up_to_RM = np.cumsum(counts_RN[:, sample_M[order_M]], axis=1)
    # The two in the middle of an even number, twice the one of an odd number.
    middle_R2 = np.stack([(up_to_RM[:, -1] - 1) // 2, up_to_RM[:, -1] // 2], axis=1)
    places_R2 = np.stack([(up_to_RM > middle_R2[:, [side]]).argmax(axis=1) for side in (0, 1)], axis=1)
    return found | {f"{name}_median_rank": ranks_M[order_M][places_R2].mean(axis=1)}


FIGURES: dict[str, Callable[[str, np.ndarray, np.ndarray], dict[str, np.ndarray]]] = {
    "mean_class_accuracy": _class_accuracy,
    "loss": _loss,
    "bleu": _bleu,
    "image_to_text": _ranks,
    "text_to_image": _ranks,
}
"""How figures follow from samples, by name; see the module."""


def _resampled(evidence_N2: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    return _ratios(_sums(evidence_N2, rng, resamples))


def _ratios(sums_X2: np.ndarray) -> np.ndarray:
    """[X]; 0 where a denominator is, as scikit-learn has it: of F1, no sample of the class that is there or told."""
    numerators_X, denominators_X = sums_X2[..., 0], sums_X2[..., 1]
    return np.divide(numerators_X, denominators_X, out=np.zeros(denominators_X.shape), where=denominators_X != 0)


def _sums(values_NK: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """[R, K]; one resample at a time, as N may be large."""
    count = len(values_NK)
    return np.stack([values_NK[rng.integers(count, size=count)].sum(axis=0) for _ in range(resamples)])


def middle(figures_R: np.ndarray) -> tuple[float, float]:
    """95 % of the figures lie between these."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(figures_R, [tail, 100 - tail])
    return float(low), float(high)
