"""The files of a run folder that are not metrics: the resolved configuration and the vocabulary.

runs/<name>/ config.yaml  vocabulary.json  metrics.jsonl  ledger_rank_*.jsonl  wandb_id  wandb/  checkpoints/  health/  errors/
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from config import ConfigError, RunConfig
from config_file import dump_config, load_config
from data.opening import Source
from data.sources import shown
from data.tokenizer import Tokenizer
from data.vocabulary import Vocabulary
from model.convert import load_converted
from model.objective import Objective
from parallel.agreement import digest
from parallel.checkpoints import Checkpoint, CheckpointError, find_checkpoint, load_weights, write_atomically
from parallel.engine import Engine

CONFIG, VOCABULARY = "config.yaml", "vocabulary.json"
IDENTITY = ("seed", "slots", "model", "data")
"""What must not change when a run is resumed; the layout, the number of steps and all reporting may."""
FREE = ("data.workers", "data.cache_dir", "data.cache_gib", "data.max_bad_fraction")
"""Of these, what may change: it does not decide which samples come."""


def write_run_files(run: RunConfig, vocabulary: Vocabulary) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.folder / CONFIG, dump_config(run))
    write_atomically(run.folder / VOCABULARY, json.dumps(vocabulary.clip_ids))


def read_run(folder: Path) -> tuple[RunConfig, Vocabulary]:
    """Raises ConfigError if the folder holds no run."""
    path = folder / VOCABULARY
    if not path.is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no {VOCABULARY}")
    return load_config(folder / CONFIG), Vocabulary.restricted(Tokenizer.load(), json.loads(path.read_text()))


def check_same_run(run: RunConfig, vocabulary: Vocabulary) -> None:
    """Refuse to resume a run under another definition; the message names the first difference."""
    if not (run.folder / CONFIG).is_file() or not (run.folder / "checkpoints" / "latest").is_file():
        return
    old, old_vocabulary = read_run(run.folder)
    for key in IDENTITY:
        difference = _difference(_plain(getattr(old, key)), _plain(getattr(run, key)), key)
        if difference:
            raise ConfigError(
                f"{run.folder} holds a run with another {difference}: choose another name=, or remove the folder"
            )
    if old_vocabulary.clip_ids != vocabulary.clip_ids:
        raise ConfigError(
            f"{run.folder} holds a run with another vocabulary: the data sets have changed; choose another name="
        )


def identity_on_ranks(run: RunConfig, vocabulary: Vocabulary, sources: list[Source]) -> dict[str, str]:
    """What all ranks of a run must have alike, each as a few characters."""
    sizes = [source.order.sizes.tobytes() for source in sources]
    return {
        "configurations": digest(dump_config(run).encode()),
        "vocabularies": digest(json.dumps(vocabulary.clip_ids).encode()),
        "data sets": digest(b"".join(sizes)),
    }


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _difference(old: Any, new: Any, key: str) -> str | None:
    if key in FREE:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(old.get(name), new.get(name), f"{key}.{name}") for name in sorted(old.keys() | new.keys())]
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        pairs = [(a, b, f"{key}.{index}") for index, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        if isinstance(old, str) and isinstance(new, str):
            old, new = shown(old), shown(new)  # a signature of a URL may change, and must not be printed
        return None if old == new else f"{key} ({old!r}, now {new!r})"
    return next((found for a, b, name in pairs if (found := _difference(a, b, name))), None)


def saved_state(consumed: tuple[int, ...], sources: list[Source], engine: Engine) -> dict[str, Any]:
    """What a checkpoint says besides tensors."""
    return {
        "consumed": consumed,
        "optimizer_step": engine.optimizer_step,
        "loss_scale": engine.loss_scale,
        "data": _data_sets(sources),
    }


def _data_sets(sources: list[Source]) -> dict[str, str]:
    """Task -> the numbers of samples of its shards, as a few characters: what the order of samples follows from."""
    return {source.name: digest(source.order.sizes.tobytes()) for source in sources}


def position(checkpoint: Checkpoint | None, sources: list[Source]) -> tuple[int, tuple[int, ...]]:
    """-> (steps done, samples consumed by task). Raises CheckpointError for a checkpoint of something else than such a run, or of
    other data: a position would mean other samples."""
    if checkpoint is None:
        return 0, (0,) * len(sources)
    counts = {"optimizer_step": 1, "consumed": len(sources)}
    for name, count in counts.items():
        found = checkpoint.state.get(name)
        numbers = found if isinstance(found, list) else [found]
        if len(numbers) != count or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise CheckpointError(
                f"{checkpoint.folder}: state.{name} is {found!r}, not {count} number(s) from 0: "
                "not a checkpoint of a training run, or changed since; remove the folder to go on from an earlier one"
            )
    before, now = checkpoint.state.get("data", {}), _data_sets(sources)
    changed = sorted(name for name in now if isinstance(before, dict) and before.get(name, now[name]) != now[name])
    if changed:
        raise CheckpointError(
            f"the shards of task {changed[0]} hold other numbers of samples than when {checkpoint.folder} was written: going on "
            "would repeat some and leave out others; put the data set back as it was, or choose another name= with init="
        )
    return checkpoint.step, tuple(checkpoint.state["consumed"])


def load_initial_weights(run: RunConfig, objective: Objective) -> None:
    """The weights that `init` names: a converted file, or a run folder's newest checkpoint."""
    if run.init.endswith(".safetensors"):
        if run.init_only != ("*",):
            raise ConfigError(
                f"init_only chooses from the checkpoint of a run; {run.init} is taken whole: leave it out"
            )
        load_converted(objective, Path(run.init))
    else:
        load_weights(find_checkpoint(Path(run.init) / "checkpoints"), objective, run.init_only)
