"""Where a run goes on: at the newest checkpoint of its folder, or at its start."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Self

from data.stream.source import OpenData
from data.text.vocabulary import Vocabulary
from parallel.checkpoints import Checkpoint, CheckpointError, newest, published
from parallel.engine import Engine
from parallel.health.same_code import check_same_code
from parallel.health.same_inputs import check_same_inputs, digest
from run.changes import check_changes, told_changes
from run.config import RunConfig
from run.config_file import dump_config
from run.errors import ConfigError
from run.folder import CONFIG, read_run


@dataclasses.dataclass(frozen=True)
class Resume:
    """step: steps done; consumed: samples of each task; notes: what a user should know of the start."""

    run: RunConfig
    data: OpenData
    checkpoint: Checkpoint | None
    step: int
    consumed: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def find(cls, run: RunConfig, data: OpenData, earlier: RunConfig | None) -> Self:
        """Collective: all ranks start alike. Raises DisagreementError where they were given different things, and CheckpointError
        for a checkpoint that is not this run's."""
        check_same_code()
        differences = check_same_inputs(
            {
                "configurations": digest(dump_config(run).encode()),
                "vocabularies": digest(json.dumps(data.vocabulary.clip_ids).encode()),
                "data sets": digest(json.dumps(data.digests).encode()),
            }
        )
        checkpoint, problems = newest(run.folder / "checkpoints")
        step, consumed = _position(checkpoint, data)
        changes = told_changes(earlier, run, step) if earlier and checkpoint else ()
        return cls(run, data, checkpoint, step, consumed, (*differences, *problems, *changes))

    def restore(self, engine: Engine) -> None:
        """Collective. Weights and moments of the checkpoint, if there is one."""
        if self.checkpoint is not None:
            engine.restore(self.checkpoint)

    def state(self, consumed: tuple[int, ...], engine: Engine, last: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says besides tensors. last: of the log point."""
        return {
            "consumed": consumed,
            "optimizer_step": engine.optimizer_step,
            "loss_scale": engine.loss_scale,
            "good_updates": engine.good_updates,
            "data": self.data.digests,
            **last,
        }


def earlier_start(run: RunConfig, vocabulary: Vocabulary) -> RunConfig | None:
    """The configuration that the run was started with, if it has a checkpoint. Raises ConfigError where it was another run."""
    if not (run.folder / CONFIG).is_file() or not published(run.folder / "checkpoints"):
        return None
    old, old_vocabulary = read_run(run.folder)
    check_changes(old, run)
    words, old_words = (v.clip_ids[: v.num_words] for v in (vocabulary, old_vocabulary))
    if old_words == words and old_vocabulary.size != vocabulary.size:
        raise ConfigError(
            f"{run.folder} was started by an earlier version, whose restricted vocabulary cannot spell words that it lacks: it can be "
            "evaluated; to train, choose another name="
        )
    if old_vocabulary.clip_ids != vocabulary.clip_ids:
        raise ConfigError(
            f"{run.folder} was started with another vocabulary: the data sets have changed; choose another name="
        )
    return old


def _position(checkpoint: Checkpoint | None, data: OpenData) -> tuple[int, tuple[int, ...]]:
    """-> (steps done, samples consumed by task). Raises CheckpointError for a checkpoint of something else than such a run, or of
    other data: a position would mean other samples."""
    if checkpoint is None:
        return 0, (0,) * len(data.sources)
    counts = {"optimizer_step": 1, "consumed": len(data.sources)}
    for name, count in counts.items():
        found = checkpoint.state.get(name)
        numbers = found if isinstance(found, list) else [found]
        if len(numbers) != count or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise CheckpointError(
                f"{checkpoint.folder}: state.{name} is {found!r}, not {count} number(s) from 0: "
                "not a checkpoint of a training run, or changed since; remove the folder to go on from an earlier one"
            )
    before, now = checkpoint.state.get("data", {}), data.digests
    changed = sorted(name for name in now if isinstance(before, dict) and before.get(name, now[name]) != now[name])
    if changed:
        raise CheckpointError(
            f"task {changed[0]}: its data set is another one than when {checkpoint.folder} was written (names, samples or bytes of "
            "shards, or classes): going on would repeat samples and leave out others; put it back, or choose another name= with "
            "init="
        )
    return checkpoint.step, tuple(checkpoint.state["consumed"])
