"""The best checkpoint of a run by a figure of its evaluations, and when to stop for want of a better one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from evaluation.config import EvaluateConfig
from parallel.checkpoints import Checkpoint, newest_state
from run.errors import ConfigError

LOWER = ("loss", "perplexity", "median_rank")
"""Ends of names of figures of which less is better."""


@dataclasses.dataclass(frozen=True)
class Best:
    """step: of the checkpoint with the best value, which is kept; since: evaluations after it. -1 and none before the first evaluation.
    figure: SPLIT/TASK/FIGURE, or SUITE/TASK/FIGURE, that the value is of: another one than is followed where that has changed, until one
    of its own is found. measured: data and options of that evaluation, none where an earlier version found it; of others the value is
    no measure."""

    config: EvaluateConfig
    step: int = -1
    value: float | None = None
    since: int = 0
    figure: str = ""
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: EvaluateConfig, checkpoint: Checkpoint | None, names: Collection[str]) -> Self:
        """Where a run goes on. names: TASK/FIGURE of all figures of its evaluations. Raises ConfigError if the one to follow is none of
        them."""
        if config.keep_best and config.keep_best not in names:
            task = config.keep_best.partition("/")[0]
            known = ", ".join(sorted(name for name in names if name.startswith(f"{task}/")))
            raise ConfigError(f"evaluate.keep_best={config.keep_best!r}: there is no such figure; there are {known}")
        stored = checkpoint.state.get("best") if checkpoint else None
        if not isinstance(stored, dict) or not isinstance(stored.get("figure"), str):
            return cls(config)
        figure = stored["figure"]
        since = int(stored["since"]) if figure == _followed(config) else 0
        measured = stored.get("measured") or {}
        return cls(config, int(stored["step"]), float(stored["value"]), since, figure, measured)

    def after(
        self,
        step: int,
        figures: Mapping[str, float],
        tell: Callable[[str], object],
        measured: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """With what an evaluation found at this step. measured: by task, see the class."""
        name = _followed(self.config)
        if not self.config.keep_best or not figures:
            return self
        value, known = figures[name], self.value if self.figure == name else None
        now = (measured or {}).get(self.config.keep_best.partition("/")[0], {})
        changed = [key for key in {**self.measured, **now} if self.measured.get(key) != now.get(key)]
        if known is not None and self.measured and now and changed:
            parts = [f"{key} was {self.measured.get(key)}, now {now.get(key)}" for key in changed]
            tell(f"best {self.config.keep_best} begins anew, as it is another evaluation: {', '.join(parts)}")
            known = None
        is_better = known is None or (value < known if name.endswith(LOWER) else value > known)
        if is_better and math.isfinite(value):
            tell(f"best {self.config.keep_best} so far: {value:.4f} at step {step}")
            return dataclasses.replace(self, step=step, value=value, since=0, figure=name, measured=now)
        return dataclasses.replace(self, since=self.since + 1)

    @property
    def has_stalled(self) -> bool:
        """No better one in so many evaluations?"""
        return 0 < self.config.patience <= self.since

    @property
    def state(self) -> dict[str, Any] | None:
        """For the checkpoint."""
        if self.value is None:
            return None
        state = {"figure": self.figure, "step": self.step, "value": self.value, "since": self.since}
        return state | ({"measured": dict(self.measured)} if self.measured else {})


def _followed(config: EvaluateConfig) -> str:
    return f"{config.title}/{config.keep_best}"


def chosen_step(folder: Path, step: int | Literal["best"] | None) -> int | None:
    """A number for `best`. Raises ConfigError where the run has none."""
    if step != "best":
        return step
    stored = newest_state(folder / "checkpoints").get("best")
    if not isinstance(stored, dict) or not isinstance(stored.get("step"), int):
        raise ConfigError(f"{folder} does not know its best checkpoint: train with evaluate.keep_best, or name a step")
    return stored["step"]
