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
from typing import Any

import torch

from data.config import Frames, TaskConfig
from data.shards import DatasetError
from data.stream.source import Source, open_data
from data.tasks.base import Pixels
from evaluation import Evaluation, Result, check_complete, evaluator_of, probes
from evaluation.kept import Kept, Row, asked_of, comparison, keep, line_of, of_every_kind, options_of, row_of, table_of
from evaluation.templates import read_templates
from model.objective import Objective
from parallel.checkpoints import load_found
from parallel.kernels import load_kernels
from parallel.launch import check_launch, is_first_on_machine, launched_world_size
from parallel.mesh import Mesh, create_mesh, destroy_mesh
from run.config import RunConfig
from run.errors import USER_ERRORS, ConfigError, exit_code, is_told_here
from run.evaluation.arguments import kept_name, parse_arguments, places_of_suite
from run.evaluation.entries import (
    Entry,
    bases_of,
    check_fits,
    check_said,
    entries_of,
    is_other_data,
    said_anew,
    training_of,
)
from run.evaluation.together import together
from run.folder import read_run
from run.places import expanded
from run.sinks.json_lines import json_line
from run.streams import print_result
from run.weights.best import chosen_step


def evaluate(arguments: argparse.Namespace) -> None:
    folder = expanded(arguments.run)
    of_run = [word for word in arguments.overrides if word not in places_of_suite(arguments)]
    run, vocabulary = read_run(folder, of_run)
    trained = read_run(folder)[0] if of_run else run
    entries = entries_of(arguments, run)
    probe = _probe_of(arguments)
    compared = [_compared_with(entry, run, probe) for entry in entries]
    check_said(run, trained, any(compared))
    if (bases := bases_of(entries)) and is_first_on_machine():
        print(bases, file=sys.stderr)
    templates = {entry.templates: read_templates(entry.templates) for entry in entries}
    pixels = Pixels(run.model.image_size, run.model.patch)

    def opened(task: TaskConfig, frames: Frames = "as-is") -> Source:
        data = dataclasses.replace(run.data, tasks=(task,))
        return open_data(data, pixels, run.seed, vocabulary, frames).sources[0]

    sources: list[Source] = []
    trainings: list[Source | None] = []
    anew: list[str] = []
    for entry, training_task in zip(entries, compared, strict=True):
        with entry.named():
            source = opened(entry.task, arguments.frames)
            check_complete(source)
            if not arguments.probe:
                check_fits(entry, source, trained)
            sources.append(source)
            trainings.append(opened(training_task) if training_task else None)
            anew.append(said_anew(entry, run, trained, is_other_data(entry, source, trained, opened)))

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ranks = create_mesh() if launched_world_size() > 1 else Mesh(device="cuda" if torch.cuda.is_available() else "cpu")
    objective = Objective(run.model, vocabulary.size, Mesh(), load_kernels(run.kernels))
    step = chosen_step(folder, arguments.step)
    checkpoint = load_found(folder / "checkpoints", step, objective, kind=arguments.weights)
    objective.to(ranks.device).eval()

    rows: list[Row] = []
    not_kept = ""
    with together(folder, run.parallel.stall_s) as alive:
        try:
            for entry, source, training, said in zip(entries, sources, trainings, anew, strict=True):
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
                    meteor=arguments.meteor,
                    ranks=ranks.data,
                    workers=arguments.workers,
                    templates=templates[entry.templates],
                    alive=alive,
                    max_bad_fraction=run.data.max_bad_fraction,
                )
                with entry.named():
                    result, options, figure, floor = _evaluated(evaluation, probe, arguments, entry)
                asked = asked_of(evaluation)
                name = f"{entry.name}{said}, {probe.name}" if probe else entry.name + said
                seconds = round(time.perf_counter() - start, 2)
                rows.append(row_of(source, result, options, figure, floor, seconds, name, asked))
                if not ranks.is_first:
                    continue
                try:
                    keep(folder, kept_name(arguments), checkpoint.step, rows)
                except (OSError, DatasetError) as error:
                    why = f"{error.filename or folder}: {error.strerror}" if isinstance(error, OSError) else str(error)
                    not_kept = f"warning: the results are not kept: {why}"
                if arguments.suite:  # the table comes at the end
                    value = f"{figure} {result.metrics[figure]:.4f} ({seconds:.1f} s)"
                    print(f"{len(rows)} of {len(entries)}: {rows[-1]['task']} {value}", file=sys.stderr)
                else:
                    print_result(json_line(line_of(rows[-1], arguments.split, checkpoint.step)))
        finally:  # what a failing task leaves of those before it
            if ranks.is_first and arguments.suite and rows:
                print_result(table_of(rows))
            if not_kept:
                print(not_kept, file=sys.stderr)
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
    others = {} if arguments.weights == "final" else {"weights": arguments.weights}
    if probe:
        assert evaluation.training is not None
        options = {"probe": probe.method, "shots": probe.shots, "fraction": probe.fraction, "trials": probe.trials}
        options |= {
            "limit": arguments.limit,
            "training": evaluation.training.digest,
            "frames": arguments.frames,
        }
        options |= of_every_kind(evaluation) | others
        return probes.evaluate(evaluation, probe), options, probes.FIGURE, probes.FLOOR
    evaluator = evaluator_of(entry.task)
    options = options_of(evaluation, entry.templates) | others
    return evaluator.evaluate(evaluation), options, evaluator.figure, evaluator.floor


def _compared_with(entry: Entry, run: RunConfig, probe: probes.Probe | None) -> TaskConfig | None:
    """A probe chooses its own part, whatever part the run was trained on."""
    if probe:
        return dataclasses.replace(training_of(entry, run), shots=0, fraction=1.0)
    return training_of(entry, run) if evaluator_of(entry.task).needs_training else None


def main(argv: list[str] | None = None) -> int:
    try:
        check_launch()
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv, __doc__)
        if arguments.compare:
            name, places = kept_name(arguments), [expanded(place) for place in arguments.compare]
            one, other = (Kept.read(place, name, chosen_step(place, arguments.step)) for place in places)
            print_result(comparison(one, other, arguments.tasks))
        else:
            evaluate(arguments)
    except USER_ERRORS as error:
        if is_told_here(error, is_first_on_machine()):
            print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
