"""Where a run starts: at the newest checkpoint of its folder, from other weights (`init`), or fresh."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

from data.stream.source import OpenData
from data.text.vocabulary import Vocabulary
from data.transport import shown
from model.exchange.public import load_converted
from model.initialise import initialise
from model.objective import Objective
from parallel.checkpoints import Checkpoint, CheckpointError, find_checkpoint, load_weights, newest
from parallel.engine import Engine
from parallel.health.same_inputs import check_same_inputs, digest
from run.config import RunConfig
from run.config_file import dump_config
from run.errors import ConfigError
from run.folder import CONFIG, read_run

MUST_MATCH = ("seed", "micro_batches", "model", "data")
"""What must not change when a run is resumed; the layout, the number of steps and all reporting may."""
MAY_DIFFER = ("data.workers", "data.cache_dir", "data.cache_gib", "data.max_bad_fraction")
"""Of these, what may change: it does not decide which samples come."""


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
    def find(cls, run: RunConfig, data: OpenData) -> Self:
        """Collective: all ranks start alike. Raises DisagreementError where they were given different things, and CheckpointError
        for a checkpoint that is not this run's."""
        differences = check_same_inputs(
            {
                "configurations": digest(dump_config(run).encode()),
                "vocabularies": digest(json.dumps(data.vocabulary.clip_ids).encode()),
                "data sets": digest(json.dumps(data.digests).encode()),
            }
        )
        checkpoint, problems = newest(run.folder / "checkpoints")
        step, consumed = _position(checkpoint, data)
        return cls(run, data, checkpoint, step, consumed, (*differences, *problems))

    def initialise(self, objective: Objective) -> None:
        """Fresh weights, or those that `init` names; a checkpoint's come later, with `restore`."""
        initialise(objective, self.run.seed)
        if not self.run.init or self.checkpoint is not None:
            return
        if not self.run.init.endswith(".safetensors"):
            load_weights(find_checkpoint(Path(self.run.init) / "checkpoints"), objective, self.run.init_only)
        elif self.run.init_only == ("*",):
            load_converted(objective, Path(self.run.init))
        else:
            raise ConfigError(
                f"init_only chooses from the checkpoint of a run; {self.run.init} is taken whole: leave it out"
            )

    def restore(self, engine: Engine) -> None:
        """Collective. Weights and moments of the checkpoint, if there is one."""
        if self.checkpoint is not None:
            engine.restore(self.checkpoint)

    def state(self, consumed: tuple[int, ...], engine: Engine) -> dict[str, Any]:
        """What a checkpoint says besides tensors."""
        return {
            "consumed": consumed,
            "optimizer_step": engine.optimizer_step,
            "loss_scale": engine.loss_scale,
            "data": self.data.digests,
        }


def check_same_run(run: RunConfig, vocabulary: Vocabulary) -> None:
    """Refuse to resume a run under another definition; the message names the first difference."""
    if not (run.folder / CONFIG).is_file() or not (run.folder / "checkpoints" / "latest").is_file():
        return
    old, old_vocabulary = read_run(run.folder)
    for key in MUST_MATCH:
        difference = _difference(_plain(getattr(old, key)), _plain(getattr(run, key)), key)
        if difference:
            raise ConfigError(f"{run.folder} was started with {difference}: choose another name=, or remove the folder")
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


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _difference(old: Any, new: Any, key: str) -> str | None:
    if key in MAY_DIFFER:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(old.get(name), new.get(name), f"{key}.{name}") for name in sorted(old.keys() | new.keys())]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        pairs = [(a, b, f"{key}.{_label(a, index)}") for index, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        if isinstance(old, str) and isinstance(new, str):
            old, new = shown(old), shown(new)  # a signature of a URL may change, and must not be printed
        return None if old == new else f"{key}={old!r}, now {new!r}"
    return next((found for a, b, name in pairs if (found := _difference(a, b, name))), None)


def _label(item: Any, index: int) -> str:
    """A list element's name, where it has one."""
    return item["name"] if isinstance(item, dict) and "name" in item else str(index)


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
            f"the shards of task {changed[0]} hold other numbers of samples than when {checkpoint.folder} was written: going on "
            "would repeat some and leave out others; put the data set back as it was, or choose another name= with init="
        )
    return checkpoint.step, tuple(checkpoint.state["consumed"])
