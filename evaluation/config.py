"""Options of evaluation while training."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation while training: figures go to metrics.jsonl, wandb and the run's folder.

    every       steps between two, a multiple of log_every; after the last step there is one, too. 0 = none
    split       of the data sets
    tasks       names of those that are evaluated; () = all
    limit       samples of each task at most; 0 = all
    batch_size  samples of a pass
    beam        hypotheses of a caption; 1 is greedy
    """

    every: int = 0
    split: str = "val"
    tasks: tuple[str, ...] = ()
    limit: int = 0
    batch_size: int = 64
    beam: int = 1

    def __post_init__(self) -> None:
        if min(self.every, self.limit) < 0 or min(self.batch_size, self.beam) < 1:
            raise ValueError(
                f"every={self.every} and limit={self.limit} must not be negative, batch_size={self.batch_size} and "
                f"beam={self.beam} at least 1"
            )

    def is_due(self, step: int, steps: int) -> bool:
        """After this step of so many."""
        return self.every > 0 and (step % self.every == 0 or step == steps)
