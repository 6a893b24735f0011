"""The weights that a run starts with: fresh ones, those that `init` names, and what of them is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from data.shards import DatasetError, read_info
from data.stream.source import OpenData, open_data, read_vocabulary
from data.tasks.base import Pixels
from data.text.vocabulary import Vocabulary
from model.exchange.export import open_clip
from model.exchange.export.folder import is_export, open_export
from model.exchange.public import load_converted
from model.initialise import initialise
from model.objective import Objective
from model.tuning import choose_trained
from model.warm_start import WarmStart, warm_start
from parallel.checkpoints import Base, Checkpoint, digest_of, load_weights, mark_as_base, with_found
from run.config import RunConfig
from run.errors import ConfigError
from run.folder import VOCABULARY, is_run, read_run
from run.folder import read_vocabulary as read_vocabulary_file
from run.resume import Resume


@dataclasses.dataclass(frozen=True)
class Initial:
    """notes: lines about what was loaded; base: weights that checkpoints of this run leave where they are."""

    notes: tuple[str, ...] = ()
    base: Base | None = None


def initial_weights(resume: Resume, objective: Objective) -> Initial:
    """Collective. Fresh weights or those of `init`, and what is not tuned frozen. A checkpoint's weights come later, with `restore`."""
    run, checkpoint = resume.run, resume.checkpoint
    initialise(objective, run.seed)
    initial = Initial(base=checkpoint.manifest.base) if checkpoint else _taken(run, resume.data, objective)
    choose_trained(objective, run.optimizer.tune, run.optimizer.frozen)
    if checkpoint is None and initial.base is not None:
        frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
        names = tuple(name for name in initial.base.names if name in frozen)
        initial = dataclasses.replace(initial, base=dataclasses.replace(initial.base, names=names))
    return initial


def _taken(run: RunConfig, data: OpenData, objective: Objective) -> Initial:
    """Weights of `init`."""
    if not run.init:
        return Initial()
    folder = Path(run.init)
    if is_export(folder):
        takes_tokens = any(fnmatch.filter(("tower.embedding.tokens.weight",), pattern) for pattern in run.init_only)
        if takes_tokens and read_vocabulary_file(folder / VOCABULARY).clip_ids != data.vocabulary.clip_ids:
            raise ConfigError(f"init={folder} has another vocabulary: use data.vocabulary=init, which is its own")
        open_export(folder).load(objective, run.init_only)
        return Initial((f"init {folder}: {', '.join(run.init_only)}",))
    if run.init_only in (("*",), ("tower.*",)) and open_clip.is_weights(folder):
        open_clip.load_image_tower(objective, folder, run.model, objective.tower.embedding.spe_id)
        return Initial((f"init {folder}: open_clip's image tower as tower.*; the rest is new",))
    if run.init.endswith(".safetensors"):
        if run.init_only != ("*",):
            raise ConfigError(
                f"init_only chooses from the checkpoint of a run; {run.init} is taken whole: leave it out"
            )
        load_converted(objective, folder)
        return Initial((f"init {folder}: all weights",))
    if run.init_only != ("*",):
        found, _ = with_found(folder / "checkpoints", None, lambda c: load_weights(c, objective, run.init_only))
        return Initial((f"init {found.folder}: {', '.join(run.init_only)}; the rest is new",))
    old_ids = read_run(folder)[1].clip_ids

    def load(checkpoint: Checkpoint) -> tuple[WarmStart, str]:
        return warm_start(objective, checkpoint, old_ids, data.vocabulary.clip_ids), digest_of(checkpoint.folder)

    found, (start, sha256) = with_found(folder / "checkpoints", None, load)
    notes = (f"init {found.folder}: {start}",)
    if run.optimizer.tune == "all":
        return Initial(notes)
    mark_as_base(found.folder)
    # From the folder of this run's own checkpoints, so that the two can be moved together.
    place = os.path.relpath(found.folder.resolve(), (run.folder / "checkpoints" / "step").resolve())
    return Initial(notes, Base(place, sha256, start.as_it_is))


def vocabulary_of(run: RunConfig) -> Vocabulary:
    """That of the run that `init` names, where data.vocabulary says so, or what follows from the data. Raises ConfigError."""
    if run.data.vocabulary != "init":
        return read_vocabulary(run.data)
    if (run.folder / "checkpoints" / "latest").is_file():  # it goes on
        return read_run(run.folder)[1]
    if is_export(Path(run.init)):
        return read_vocabulary_file(Path(run.init) / VOCABULARY)
    if not is_run(Path(run.init)):
        raise ConfigError(
            f"data.vocabulary=init needs init= a run or export, and init={run.init!r} is none: use full or restricted"
        )
    return read_run(Path(run.init))[1]


def open_run_data(run: RunConfig) -> OpenData:
    """The data of all tasks. Raises ConfigError where `init` is not there or the linear head does not fit, and what open_data raises."""
    if run.init and not Path(run.init).exists() and not is_run(run.folder):
        raise ConfigError(f"init={run.init}: there is no such run, export or file; say where yours is with init=PLACE")
    pixels = Pixels(run.model.image_size, run.model.patch)
    data = open_data(run.data, pixels, run.seed, vocabulary_of(run))
    classes, task = run.model.head_classes, run.data.tasks[0]
    if classes:
        if len(data.sources) > 1 or "classification" not in task.kind or task.answer != "rank":
            raise ConfigError(
                f"model.head_classes={classes} needs a single task, of a kind of classification, whose names are ranked"
            )
        found = len(data.sources[0].task.context.info.classes)
        if found != classes:
            raise ConfigError(f"model.head_classes={classes}: task {task.name} has {found} classes; set it to that")
    return data


def check_head(run: RunConfig, classes: Sequence[str], name: str) -> None:
    """Raises ConfigError where a run's linear head would be asked about other classes than those that it was trained on; name: of who
    asks. Nothing is known of them where the data set of the run is gone."""
    if not run.model.head_classes:
        return
    task = run.data.tasks[0]
    with contextlib.suppress(DatasetError):
        if tuple(classes) != tuple(read_info(task.path).classes):
            raise ConfigError(
                f"{name}: the linear head of {run.name} knows the classes of task {task.name} alone; leave other tasks and names out, or "
                "probe the features (--probe)"
            )
