"""Options of evaluation: those of evaluation while training, and the names of probes."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath

PROBES = ("linear", "ridge", "knn")
"""Classifiers of frozen features (evaluation/probes)."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation while training: figures go to metrics.jsonl, wandb and the run's folder.

    every       steps between two, a multiple of log_every; after the last step there is one, too. 0 = none
    split       of the data sets
    suite       tasks of a suite, by its name or file, in place of the run's own (evaluate.py --suite)
    tasks       names of those that are evaluated, of the run or the suite; () = all
    limit       samples of each task at most, spread over the split; 0 = all
    batch_size  samples of a pass
    beam        hypotheses of a caption; 1 is greedy
    workers     processes of each rank that decode ahead, started anew for each task; 0 = a thread
    keep_best   TASK/FIGURE, for instance shapes/accuracy: the checkpoint where it was best stays besides the newest ones
                (evaluate.py --step best). Of loss, perplexity and median_rank less is better
    patience    stop after so many evaluations in a row without a better keep_best; 0 = never
    """

    every: int = 0
    split: str = "val"
    suite: str = ""
    tasks: tuple[str, ...] = ()
    limit: int = 0
    batch_size: int = 64
    beam: int = 1
    workers: int = 0
    keep_best: str = ""
    patience: int = 0

    def __post_init__(self) -> None:
        if self.patience < 0 or (self.patience and not self.keep_best) or (self.keep_best and not self.every):
            raise ValueError(
                f"patience={self.patience} counts evaluations without a better keep_best={self.keep_best!r}, of those that come every "
                f"{self.every} steps: each needs the one before"
            )
        if self.suite and (not self.every or self.split != "val"):
            raise ValueError(
                f"suite={self.suite!r} is evaluated every {self.every} steps, and names the split of each task itself: set every, and "
                f"leave split={self.split!r} out"
            )
        if min(self.every, self.limit, self.workers) < 0 or min(self.batch_size, self.beam) < 1:
            raise ValueError(
                f"every={self.every}, limit={self.limit} and workers={self.workers} must not be negative, batch_size={self.batch_size} and "
                f"beam={self.beam} at least 1"
            )

    @property
    def title(self) -> str:
        """Of the results: the suite's name or the split."""
        return PurePath(self.suite).stem if self.suite else self.split

    def is_due(self, step: int, steps: int) -> bool:
        """After this step of so many."""
        return self.every > 0 and (step % self.every == 0 or step == steps)
