"""One probe of one task: features of the training split and of the evaluated one, a classifier on the first, its accuracy on the second."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from data.shards import DatasetError
from data.stream.source import Source
from data.subset import chosen
from evaluation.base import Evaluation, Metrics, Result, remedy
from evaluation.classification import class_accuracy, majority
from evaluation.probes.classifiers import METHODS
from evaluation.probes.features import features_of, training_labels

FIGURE, FLOOR = "accuracy", "majority"


@dataclasses.dataclass(frozen=True)
class Probe:
    """method: linear, ridge or knn; shots or fraction: the part of the training split that it may see (data/subset.py); trials: seeds
    0, 1, ... of such parts, over which figures are averaged. The whole split is one trial. Raises ValueError."""

    method: str
    shots: int = 0
    fraction: float = 1.0
    trials: int = 5

    def __post_init__(self) -> None:
        chosen(np.empty(0), self.shots, self.fraction)
        if self.method not in METHODS or self.trials < 1:
            raise ValueError(
                f"method={self.method!r} must be one of {', '.join(METHODS)}, trials={self.trials} at least 1"
            )

    @property
    def is_part(self) -> bool:
        return bool(self.shots) or self.fraction < 1

    @property
    def name(self) -> str:
        """As people say it: `ridge probe, 10 shots`."""
        part = f", {self.shots} shots" if self.shots else f", {100 * self.fraction:g} %" if self.fraction < 1 else ""
        return f"{self.method} probe{part}"

    def parts(self, labels_N: np.ndarray) -> list[np.ndarray]:
        """Places of the samples of each trial. label -1: never."""
        known_K = np.flatnonzero(labels_N >= 0)
        seeds = range(self.trials if self.is_part else 1)
        return [known_K[chosen(labels_N[known_K], self.shots, self.fraction, seed)] for seed in seeds]


def evaluate(evaluation: Evaluation, probe: Probe) -> Result:
    """accuracy in [0, 1], the mean of the trials, and accuracy_std of them; mean_class_accuracy; majority: always the most frequent
    class of the evaluated samples; chance: 1 / classes; training_samples of a trial. details: each trial's accuracy, and its strength (C,
    penalty or neighbours). Raises DatasetError."""
    source, share = evaluation.training, evaluation.share
    assert source is not None
    places = [np.arange(source.order.total)]
    if probe.is_part:
        labels_N = training_labels(evaluation)
        places = probe.parts(labels_N)
        _check_classes(source, [labels_N[part] for part in places])
    wanted = np.unique(np.concatenate(places))
    training = features_of(evaluation, evaluation.training_passed(source, wanted))
    rows = [np.flatnonzero(np.isin(training.places_N, part)) for part in places]
    _check_classes(source, [training.labels_N[row] for row in rows])
    told = features_of(evaluation, evaluation.passed())
    classify = METHODS[probe.method]
    own: dict[int, tuple[np.ndarray, float]] = {}
    for trial in range(share.index, len(rows), share.count):
        row = rows[trial]
        with warnings.catch_warnings():
            # The figure is that of the last iteration; it hardly moves after so many.
            warnings.simplefilter("ignore", ConvergenceWarning)
            own[trial] = classify(training.features_ND[row], training.labels_N[row], told.features_ND, trial)
        evaluation.alive()
    of_all = dict(sorted(item for part in evaluation.of_all_ranks(own) for item in part.items()))
    right_RM = np.stack([predicted_M == told.labels_N for predicted_M, _ in of_all.values()])
    return _result(right_RM, told.labels_N, [strength for _, strength in of_all.values()], evaluation, rows)


def _check_classes(source: Source, labels: list[np.ndarray]) -> None:
    """labels: of the samples of each trial. Raises DatasetError."""
    if min(len(np.unique(own_N)) for own_N in labels) < 2:
        raise DatasetError(
            f"task {source.name}: a probe needs readable training samples of two classes at least; {remedy(source)}"
        )


def _result(
    right_RM: np.ndarray, labels_M: np.ndarray, strengths: list[float], evaluation: Evaluation, rows: list[np.ndarray]
) -> Result:
    """right_RM: of each trial and sample, whether its class was told."""
    classes = evaluation.source.task.context.info.classes
    right_M, by_trial = right_RM.mean(axis=0), right_RM.mean(axis=1)
    by_class = class_accuracy(right_M, labels_M, classes)
    metrics: Metrics = {
        "accuracy": float(right_M.mean()),
        "mean_class_accuracy": sum(by_class.values()) / len(by_class),
        "majority": majority(labels_M),
        "chance": 1 / len(classes),
        "accuracy_std": float(by_trial.std()),
        "trials": len(by_trial),
        "training_samples": round(sum(map(len, rows)) / len(rows)),
        "samples": len(labels_M),
    }
    details = {
        "class_accuracy": by_class,
        "trial_accuracy": {str(trial): float(value) for trial, value in enumerate(by_trial)},
        "trial_strength": {str(trial): value for trial, value in enumerate(strengths)},
    }
    samples = {"mean_class_accuracy": np.stack([labels_M, right_M], axis=1)}
    return Result(metrics, np.stack([right_M, np.ones_like(right_M)], axis=1), details, samples=samples)
