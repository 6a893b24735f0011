"""The weights that a run starts with: fresh ones, those that `init` names, and what of them is trained."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data.stream.source import OpenData
from model.exchange.export import open_clip
from model.exchange.export.folder import is_export, open_export
from model.exchange.public import load_converted
from model.initialise import initialise
from model.objective import Objective
from model.tuning.trained import SCALES, choose_trained
from model.tuning.warm_start import TOKENS, WarmStart, summary, take_only, warm_start, warm_start_from_export
from parallel.checkpoints import Base, Checkpoint, mark_as_base, with_found
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
    loaded from; new: names of what begins fresh beside what was loaded."""

    notes: tuple[str, ...] = ()
    base: Base | None = None
    began: Began | None = None
    new: tuple[str, ...] = ()


def initial_weights(resume: Resume, objective: Objective) -> Initial:
    """Collective. Fresh weights or those of `init`, and what is not tuned frozen. A checkpoint's weights come later, with `restore`. A run
    that begins keeps in its folder which checkpoint it did so from."""
    run, checkpoint = resume.run, resume.checkpoint
    initialise(objective, run.seed)
    if checkpoint:
        choose_trained(objective, run.optimizer.tune, run.optimizer.frozen, _new_scales(checkpoint))
        return Initial(base=checkpoint.manifest.base)
    initial = _taken(run, resume.data, objective)
    choose_trained(objective, run.optimizer.tune, run.optimizer.frozen, initial.new)
    if launched_rank() == 0:
        keep_beginning(run.folder, initial.began)
    frozen = {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}
    if idle := tuple(name for name in initial.new if name in frozen):
        initial = dataclasses.replace(initial, notes=(*initial.notes, f"new and not trained: {summary(idle)}"))
    if initial.base is not None:
        names = tuple(name for name in initial.base.names if name in frozen)
        initial = dataclasses.replace(initial, base=dataclasses.replace(initial.base, names=names))
    return initial


def _new_scales(checkpoint: Checkpoint) -> frozenset[str]:
    """Of a run that goes on with the training of a part: the logit scales and biases that it trains, since they were new."""
    trained = {name for name, tensor in checkpoint.manifest.tensors.items() if tensor.kinds != ("weight",)}
    if checkpoint.names == trained:  # of everything
        return frozenset()
    return frozenset(name for pattern in SCALES for name in fnmatch.filter(trained, pattern))


def _taken(run: RunConfig, data: OpenData, objective: Objective) -> Initial:
    """Weights of `init`."""
    if not run.init:
        return Initial()
    folder = Path(run.init)
    if run.init_step != "newest" and not is_run(folder):
        raise ConfigError(
            f"init_step={run.init_step} chooses among a run's checkpoints; init={run.init} is no run: leave it out"
        )
    names = [name for name, _ in objective.named_parameters()]
    if is_export(folder):
        return _of_export(run, data, objective, folder)
    if run.init_only in (("*",), ("tower.*",)) and open_clip.is_weights(folder):
        open_clip.load_image_tower(objective, folder, run.model, objective.tower.embedding.spe_id)
        new = tuple(name for name in names if not name.startswith("tower."))
        return Initial((f"init {folder}: open_clip's image tower as tower.*; the rest is new",), new=new)
    if run.init.endswith(".safetensors"):
        if run.init_only != ("*",):
            raise ConfigError(
                f"init_only chooses from the checkpoint of a run; {run.init} is taken whole: leave it out"
            )
        there = _names_in(folder)
        if not there.intersection(names):
            some = ", ".join(sorted(there)[:3]) or "none at all"
            raise ConfigError(
                f"init={run.init} has no tensor of this model, but {some}: it is neither open_clip's file nor one of "
                "`python -m model.exchange.public`, which converts official Uni-Perceiver weights"
            )
        load_converted(objective, folder)
        return Initial((f"init {folder}: all weights",), new=tuple(name for name in names if name not in there))
    if folder.is_file():
        raise ConfigError(
            f"init={run.init} is a file that is not taken as it is: official Uni-Perceiver weights become a .safetensors file by "
            "`python -m model.exchange.public`, open_clip's are taken as its .safetensors file, and of runs and exports name the folder"
        )
    return _of_run(run, data, objective, folder)


def _names_in(path: Path) -> frozenset[str]:
    """Raises ConfigError."""
    try:
        with safe_open(path, framework="pt") as opened:
            return frozenset(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"init={path} cannot be read as weights: {str(error).splitlines()[0]}") from error


def _of_export(run: RunConfig, data: OpenData, objective: Objective, folder: Path) -> Initial:
    names = [name for name, _ in objective.named_parameters()]
    wanted = {name for pattern in run.init_only for name in fnmatch.filter(names, pattern)}
    takes_tokens = bool(fnmatch.filter(wanted, TOKENS))
    if takes_tokens and read_vocabulary_file(folder / VOCABULARY).clip_ids != data.vocabulary.clip_ids:
        raise ConfigError(f"init={folder} has another vocabulary: use data.vocabulary=init, which is its own")
    export = open_export(folder)
    if run.init_only == ("*",):
        start = warm_start_from_export(objective, export)
        return Initial((f"init {folder}: {start}",), new=start.new)
    export.load(objective, run.init_only)
    new = tuple(name for name in names if name not in wanted)
    return Initial((f"init {folder}: {', '.join(run.init_only)}; the rest is new",), new=new)


def _of_run(run: RunConfig, data: OpenData, objective: Objective, folder: Path) -> Initial:
    step = chosen_step(folder, None if run.init_step == "newest" else run.init_step)
    there, vocabulary = read_run(folder)
    ids, takes_all = (vocabulary.clip_ids, data.vocabulary.clip_ids), run.init_only == ("*",)

    def load(checkpoint: Checkpoint) -> WarmStart:
        if takes_all:
            return warm_start(objective, checkpoint, there.model, *ids)
        return take_only(objective, checkpoint, run.init_only, there.model, *ids)

    found, start = with_found(folder / "checkpoints", step, load)
    began = Began.at(found, run.init_only)
    if not takes_all:
        by_name = f" ({start.tokens[0]:,} of {start.tokens[1]:,} tokens by name)" if start.tokens else ""
        note = f"init {found.folder}: {', '.join(run.init_only)}{by_name}; the rest is new"
        return Initial((note,), None, began, start.new)
    notes = (f"init {found.folder}: {start}",)
    if run.optimizer.tune == "all":
        return Initial(notes, None, began, start.new)
    mark_as_base(found.folder)
    # From the folder of this run's own checkpoints, so that the two can be moved together.
    place = os.path.relpath(found.folder.resolve(), (run.folder / "checkpoints" / "step").resolve())
    return Initial(notes, Base(place, found.sha256, start.as_it_is), began, start.new)
