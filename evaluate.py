"""Evaluate a run: `python evaluate.py --run runs/demo --split heldout`. One JSON line per task on standard output.

The results are kept in RUN/evaluations; `python evaluate.py --compare runs/a runs/b` prints two of them side by side, with intervals of
the differences.

`deepspeed --num_gpus 2 evaluate.py ...` gives the same figures: each rank has the whole network and a part of the samples.

Exit codes: 0 done, 1 failure, 2 the run, its checkpoint or its data cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

import torch

from data.stream.source import open_data
from data.tasks.base import Pixels
from evaluation import EVALUATORS, DamagedDataError, Evaluation, check_complete
from evaluation.kept import Kept, comparison, keep, line_of, row_of
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.launch import check_launch, is_first_on_machine, launched_world_size
from parallel.mesh import Mesh, create_mesh, destroy_mesh
from run.errors import EXIT_USER, USER_ERRORS, ConfigError, OutputError
from run.folder import read_run
from run.places import expanded
from run.sinks import json_line
from run.streams import silence


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


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
    parser.add_argument("--step", type=natural, help="checkpoint to use (default: the newest complete one)")
    parser.add_argument("--tasks", nargs="+", help="names of tasks (default: all of the run)")
    parser.add_argument("--limit", type=positive, help="samples of each task at most")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--beam", type=positive, default=2, help="hypotheses of a caption; 1 is greedy (default: 2)")
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
    return arguments


def evaluate(arguments: argparse.Namespace) -> None:
    folder = expanded(arguments.run)
    run, vocabulary = read_run(folder, arguments.overrides)
    by_name = {task.name: task for task in run.data.tasks}
    wanted = arguments.tasks or list(by_name)
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise ConfigError(f"{folder} has no task {unknown[0]!r}; its tasks are {', '.join(by_name)}")
    trained = tuple(by_name[name] for name in wanted)
    evaluated = tuple(dataclasses.replace(task, split=arguments.split, shards=()) for task in trained)
    pixels = Pixels(run.model.image_size, run.model.patch)
    compared = tuple(task for task in trained if EVALUATORS[task.kind].needs_training)
    sources, training_sources = (
        open_data(dataclasses.replace(run.data, tasks=tasks), pixels, run.seed, vocabulary).sources if tasks else []
        for tasks in (evaluated, compared)
    )
    for source in sources:
        check_complete(source)
    training = {source.name: source for source in training_sources}

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ranks = create_mesh() if launched_world_size() > 1 else Mesh(device="cuda" if torch.cuda.is_available() else "cpu")
    device = ranks.device
    objective = Objective(run.model, vocabulary.size, Mesh(), load_kernels(run.kernels))
    checkpoint = load_found(folder / "checkpoints", arguments.step, objective)
    objective.to(device).eval()

    rows = []
    options = {name: getattr(arguments, name) for name in ("limit", "beam", "length_penalty")}
    for source in sources:
        start = time.perf_counter()
        evaluation = Evaluation(
            objective=objective,
            source=source,
            training=training.get(source.name),
            device=device,
            batch_size=arguments.batch_size,
            limit=arguments.limit,
            beam=arguments.beam,
            length_penalty=arguments.length_penalty,
            ranks=ranks.data,
            workers=arguments.workers,
        )
        kind = source.task.config.kind
        evaluator = EVALUATORS[kind]
        result = evaluator.evaluate(evaluation)
        seconds = round(time.perf_counter() - start, 2)
        rows.append(row_of(source, result, options, evaluator.figure, evaluator.floor, seconds))
        if ranks.is_first:
            _put(json_line(line_of(rows[-1], arguments.split, checkpoint.step)))
    if ranks.is_first:
        try:
            keep(folder, arguments.split, checkpoint.step, rows)
        except OSError as error:
            print(f"warning: the results are not kept: {folder}: {error.strerror}", file=sys.stderr)
    if launched_world_size() > 1:
        destroy_mesh()


def _put(line: str) -> None:
    """Raises OutputError: a result that nobody gets is none."""
    try:
        print(line, flush=True)
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def main(argv: list[str] | None = None) -> int:
    try:
        check_launch()
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        if arguments.compare:
            _put(comparison(*(Kept.read(expanded(place), arguments.split) for place in arguments.compare)))
        else:
            evaluate(arguments)
    except USER_ERRORS as error:
        if is_first_on_machine() or isinstance(error, DamagedDataError):
            print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


if __name__ == "__main__":
    sys.exit(main())
