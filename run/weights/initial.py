"""The weights that a run starts with: fresh ones, those that `init` names, and what of them is trained."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from pathlib import Path

from data.stream.source import OpenData
from model.exchange.export import open_clip
from model.exchange.export.folder import is_export, open_export
from model.exchange.public import load_converted
from model.initialise import initialise
from model.objective import Objective
from model.tuning.trained import choose_trained
from model.tuning.warm_start import WarmStart, warm_start, warm_start_from_export
from parallel.checkpoints import Base, Checkpoint, load_weights, mark_as_base, with_found
from parallel.launch import launched_rank
from run.config import RunConfig
from run.errors import ConfigError
from run.folder import VOCABULARY, is_run, read_run, read_vocabulary_file
from run.resume import Resume
from run.weights.began import Began, keep_beginning
from run.weights.best import chosen_step


@dataclasses.dataclass(frozen=True)
class Initial:
    """notes: lines about what was loaded; base: weights that checkpoints of this run leave where they are; began: the checkpoint that was
    loaded from."""

    notes: tuple[str, ...] = ()
    base: Base | None = None
    began: Began | None = None


def initial_weights(resume: Resume, objective: Objective) -> Initial:
    """Collective. Fresh weights or those of `init`, and what is not tuned frozen. A checkpoint's weights come later, with `restore`. A run
    that begins keeps in its folder which checkpoint it did so from."""
    run, checkpoint = resume.run, resume.checkpoint
    initialise(objective, run.seed)
    initial = Initial(base=checkpoint.manifest.base) if checkpoint else _taken(run, resume.data, objective)
    choose_trained(objective, run.optimizer.tune, run.optimizer.frozen)
    if checkpoint is None and launched_rank() == 0:
        keep_beginning(run.folder, initial.began)
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
    if run.init_step != "newest" and not is_run(folder):
        raise ConfigError(
            f"init_step={run.init_step} chooses among a run's checkpoints; init={run.init} is no run: leave it out"
        )
    if is_export(folder):
        takes_tokens = any(fnmatch.filter(("tower.embedding.tokens.weight",), pattern) for pattern in run.init_only)
        if takes_tokens and read_vocabulary_file(folder / VOCABULARY).clip_ids != data.vocabulary.clip_ids:
            raise ConfigError(f"init={folder} has another vocabulary: use data.vocabulary=init, which is its own")
        export = open_export(folder)
        if run.init_only == ("*",):
            return Initial((f"init {folder}: {warm_start_from_export(objective, export)}",))
        export.load(objective, run.init_only)
        return Initial((f"init {folder}: {', '.join(run.init_only)}; the rest is new",))
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
    step = chosen_step(folder, None if run.init_step == "newest" else run.init_step)
    if run.init_only != ("*",):
        found, _ = with_found(folder / "checkpoints", step, lambda c: load_weights(c, objective, run.init_only))
        return Initial((f"init {found.folder}: {', '.join(run.init_only)}; the rest is new",), began=Began.at(found))
    old_ids = read_run(folder)[1].clip_ids

    def load(checkpoint: Checkpoint) -> WarmStart:
        return warm_start(objective, checkpoint, old_ids, data.vocabulary.clip_ids)

    found, start = with_found(folder / "checkpoints", step, load)
    notes = (f"init {found.folder}: {start}",)
    if run.optimizer.tune == "all":
        return Initial(notes, began=Began.at(found))
    mark_as_base(found.folder)
    # From the folder of this run's own checkpoints, so that the two can be moved together.
    place = os.path.relpath(found.folder.resolve(), (run.folder / "checkpoints" / "step").resolve())
    return Initial(notes, Base(place, found.sha256, start.as_it_is), Began.at(found))
