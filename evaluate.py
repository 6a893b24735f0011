"""Evaluate a run: `python evaluate.py --run runs/demo --split heldout`. One JSON line per task on standard output.

`--suite NAME` evaluates the tasks of configs/suites/NAME.yaml instead, also on other data than the run's, and prints a table. Results are
kept in RUN/evaluations; `python evaluate.py --compare runs/a runs/b` prints two of them side by side, with intervals of the
differences.

`--probe linear` fits a classifier to frozen features of the training split in place of comparing with names.

`deepspeed --num_gpus 2 evaluate.py ...` gives the same figures: each rank has the whole network and a part of the samples.

Exit codes: 0 done, 1 failure, 2 the run, its checkpoint or its data cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import torch

from data.config import TaskConfig
from data.shards.info import TRAINING_SPLIT
from data.stream.source import Source, open_data
from data.tasks import WRITTEN
from data.tasks.base import LABELLED, Pixels
from evaluation import DamagedDataError, Evaluation, Result, check_complete, evaluator_of, probes
from evaluation.kept import Kept, comparison, keep, line_of, row_of, table_of
from evaluation.templates import read_templates
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.launch import check_launch, is_first_on_machine, launched_world_size
from parallel.mesh import Mesh, create_mesh, destroy_mesh
from run.weights.best import chosen_step
from run.command_line import checkpoint_step, crops_and_clips, finite, natural, positive
from run.config import RunConfig
from run.errors import EXIT_USER, USER_ERRORS, ConfigError
from run.folder import read_run
from run.places import expanded
from run.sinks import json_line
from run.streams import print_result
from run.suite import as_trained, read_suite


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="run folder, for instance runs/demo")
    what.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("RUN", "RUN"),
        help="run folders (newest step of --split), or kept files",
    )
    parser.add_argument("--split", default="val", help="split of the data sets to evaluate on (default: val)")
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="tasks of configs/suites/NAME.yaml or of a file, as a table; TASK.path=PLACE says where data lies",
    )
    parser.add_argument(
        "--step",
        type=checkpoint_step,
        help="checkpoint to use, or `best` (evaluate.keep_best); default: the newest complete one",
    )
    parser.add_argument(
        "--weights",
        choices=("final", "weight"),
        default="final",
        help="final: averages over the training where the run keeps them (optimizer.ema), the default; weight: never",
    )
    parser.add_argument("--tasks", nargs="+", help="names of tasks (default: all of the run or suite)")
    parser.add_argument("--limit", type=positive, help="samples of each task at most")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--beam", type=positive, default=2, help="hypotheses of a caption; 1 is greedy (default: 2)")
    parser.add_argument(
        "--templates",
        default="none",
        metavar="NAME",
        help="sentences for class names: none, openai, simple, @FILE (default: none)",
    )
    parser.add_argument(
        "--probe",
        choices=tuple(probes.METHODS),
        help="of frozen features of classification tasks: logistic regression, ridge regression or nearest neighbours",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shots", type=positive, default=0, help="samples of each class that a probe is fitted to")
    part.add_argument("--fraction", type=finite, default=1.0, help="share of each class instead, for instance 0.01")
    parser.add_argument("--trials", type=positive, default=5, help="such parts, figures are averaged (default: 5)")
    parser.add_argument(
        "--views",
        type=crops_and_clips,
        metavar="CROPSxCLIPS",
        help="of classification, for instance 3x4, whose similarities are averaged (default: those of the task)",
    )
    parser.add_argument(
        "--answer",
        choices=("rank", "generate"),
        help="of tasks with classes: the nearest name, or one that is written as captions are (default: as trained)",
    )
    parser.add_argument("--length-penalty", type=finite, default=0.0, help="captions are ranked by score / words^p")
    parser.add_argument(
        "--workers", type=natural, default=0, help="processes of each rank that decode ahead (default: none)"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")
    parser.add_argument("--threads", type=natural, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="options of the data: data.tasks.shapes.path=/new/place where it was moved",
    )
    arguments = parser.parse_args(argv)
    tasks = arguments.tasks or []  # which takes every word behind it
    arguments.overrides += [word for word in tasks if "=" in word]
    arguments.tasks = list(dict.fromkeys(word for word in tasks if "=" not in word))
    if not arguments.probe and (arguments.shots or arguments.fraction != 1):
        parser.error("--shots and --fraction are those of a --probe")
    if arguments.probe and arguments.views:
        parser.error("--probe takes features of one view: leave --views out")
    if arguments.answer == "generate" and (arguments.probe or arguments.views or arguments.templates != "none"):
        parser.error("--answer generate compares with nothing: leave --probe, --views and --templates out")
    return arguments


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the results: its name, and a task of the network on the data that is evaluated."""

    name: str
    task: TaskConfig
    templates: str


def entries_of(arguments: argparse.Namespace, run: RunConfig) -> list[Entry]:
    """Raises ConfigError."""
    entries = [_with_options(entry, arguments) for entry in _all_entries(arguments, run)]
    if not arguments.probe:
        return entries
    probed = [entry for entry in entries if entry.task.kind in LABELLED]
    if not probed or (arguments.tasks and len(probed) < len(entries)):
        others = ", ".join(f"{entry.name} ({entry.task.kind})" for entry in entries if entry not in probed)
        raise ConfigError(f"--probe is for {' and '.join(LABELLED)}, not for {others}: name others by --tasks")
    for entry in probed:
        if entry.task.split == _training_of(entry, run).split:
            raise ConfigError(f"--probe is fitted to split {entry.task.split} of {entry.name}: evaluate another split")
    return probed


def _with_options(entry: Entry, arguments: argparse.Namespace) -> Entry:
    """Of the command line. Features of a probe are those of one view, read where names are ranked; what is written has one view."""
    task, name, answer = entry.task, entry.name, "rank" if arguments.probe else arguments.answer
    if answer and task.kind in WRITTEN:
        name = name if arguments.probe else f"{name}, {'written' if answer == 'generate' else 'ranked'}"
        task = dataclasses.replace(task, answer=answer)  # type: ignore[arg-type]
    views = (1, 1) if arguments.probe or task.answer == "generate" else arguments.views
    if views and task.kind == "classification":
        task = dataclasses.replace(task, views=views)
    return dataclasses.replace(entry, name=name, task=task)


def _all_entries(arguments: argparse.Namespace, run: RunConfig) -> list[Entry]:
    if arguments.suite:
        places = dict(override.split(".path=", 1) for override in _places_of_suite(arguments))
        suite = read_suite(arguments.suite, places, arguments.tasks)
        return [Entry(task.name, as_trained(task, run.data.tasks), task.templates) for task in suite.tasks]
    by_name = {task.name: task for task in run.data.tasks}
    wanted = arguments.tasks or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ConfigError(f"{arguments.run} has no task {unknown[0]!r}; its tasks are {', '.join(by_name)}")
    tasks = [by_name[name].whole(arguments.split) for name in wanted]
    return [Entry(task.name, task, arguments.templates) for task in tasks]


def _places_of_suite(arguments: argparse.Namespace) -> list[str]:
    """Overrides such as cifar10.path=/new/place."""
    return [
        word for word in arguments.overrides if arguments.suite and not word.startswith("data.") and ".path=" in word
    ]


def evaluate(arguments: argparse.Namespace) -> None:
    folder = expanded(arguments.run)
    of_run = [word for word in arguments.overrides if word not in _places_of_suite(arguments)]
    run, vocabulary = read_run(folder, of_run)
    entries = entries_of(arguments, run)
    templates = {entry.templates: read_templates(entry.templates) for entry in entries}
    pixels = Pixels(run.model.image_size, run.model.patch)

    def opened(task: TaskConfig) -> Source:
        return open_data(dataclasses.replace(run.data, tasks=(task,)), pixels, run.seed, vocabulary).sources[0]

    sources = [opened(entry.task) for entry in entries]
    for source in sources:
        check_complete(source)
    probe = _probe_of(arguments)
    compared = [_compared_with(entry, run, probe) for entry in entries]
    trainings = [opened(task) if task else None for task in compared]

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ranks = create_mesh() if launched_world_size() > 1 else Mesh(device="cuda" if torch.cuda.is_available() else "cpu")
    objective = Objective(run.model, vocabulary.size, Mesh(), load_kernels(run.kernels))
    step = chosen_step(folder, arguments.step)
    checkpoint = load_found(folder / "checkpoints", step, objective, kind=arguments.weights)
    objective.to(ranks.device).eval()

    rows = []
    for entry, source, training in zip(entries, sources, trainings, strict=True):
        start = time.perf_counter()
        evaluation = Evaluation(
            objective=objective,
            source=source,
            training=training,
            device=ranks.device,
            batch_size=arguments.batch_size,
            limit=arguments.limit,
            beam=arguments.beam,
            length_penalty=arguments.length_penalty,
            ranks=ranks.data,
            workers=arguments.workers,
            templates=templates[entry.templates],
        )
        result, options, figure, floor = _evaluated(evaluation, probe, arguments, entry)
        name = f"{entry.name}, {probe.name}" if probe else entry.name
        seconds = round(time.perf_counter() - start, 2)
        row = row_of(source, result, options, figure, floor, seconds) | {"task": name}
        rows.append(row)
        if ranks.is_first and not arguments.suite:
            print_result(json_line(line_of(row, arguments.split, checkpoint.step)))
    if ranks.is_first:
        if arguments.suite:
            print_result(table_of(rows))
        try:
            keep(folder, _kept_name(arguments), checkpoint.step, rows)
        except OSError as error:
            print(f"warning: the results are not kept: {folder}: {error.strerror}", file=sys.stderr)
    if launched_world_size() > 1:
        destroy_mesh()


def _probe_of(arguments: argparse.Namespace) -> probes.Probe | None:
    """Raises ConfigError."""
    if not arguments.probe:
        return None
    try:
        return probes.Probe(arguments.probe, arguments.shots, arguments.fraction, arguments.trials)
    except ValueError as error:
        raise ConfigError(f"--probe {arguments.probe}: {error}") from error


def _evaluated(
    evaluation: Evaluation, probe: probes.Probe | None, arguments: argparse.Namespace, entry: Entry
) -> tuple[Result, dict[str, Any], str, str]:
    """(result, options that change it, its figure and floor)."""
    if probe:
        assert evaluation.training is not None
        options = {"probe": probe.method, "shots": probe.shots, "fraction": probe.fraction, "trials": probe.trials}
        options |= {"limit": arguments.limit, "training": evaluation.training.digest}
        return probes.evaluate(evaluation, probe), options, probes.FIGURE, probes.FLOOR
    evaluator = evaluator_of(entry.task)
    options = {name: getattr(arguments, name) for name in ("limit", "beam", "length_penalty")}
    options |= {"templates": entry.templates}
    return evaluator.evaluate(evaluation), options, evaluator.figure, evaluator.floor


def _kept_name(arguments: argparse.Namespace) -> str:
    """Of the file in RUN/evaluations; probes have one of their own."""
    name = Path(arguments.suite).stem if arguments.suite else arguments.split
    return f"{name}_probes" if arguments.probe else name


def _compared_with(entry: Entry, run: RunConfig, probe: probes.Probe | None) -> TaskConfig | None:
    """A probe chooses its own part, whatever part the run was trained on, and reads features where names are ranked."""
    if probe:
        return dataclasses.replace(_training_of(entry, run), shots=0, fraction=1.0, answer="rank", views=(1, 1))
    return _training_of(entry, run) if evaluator_of(entry.task).needs_training else None


def _training_of(entry: Entry, run: RunConfig) -> TaskConfig:
    """The training split that an evaluation is compared with: the run's own, where it is of the same data."""
    trained = next((task for task in run.data.tasks if task.name == entry.task.name), entry.task)
    return trained if trained.path == entry.task.path else dataclasses.replace(entry.task, split=TRAINING_SPLIT)


def main(argv: list[str] | None = None) -> int:
    try:
        check_launch()
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        if arguments.compare:
            name = _kept_name(arguments)
            print_result(comparison(*(Kept.read(expanded(place), name) for place in arguments.compare)))
        else:
            evaluate(arguments)
    except USER_ERRORS as error:
        if is_first_on_machine() or isinstance(error, DamagedDataError):
            print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
