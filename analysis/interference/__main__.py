"""Task interference of a run: `python -m analysis.interference --run R`, on its training data (papers.md 2.9).

I of row i, column j: what a step on task j does to the loss of task i, against what a step on i itself does. Below zero it hurts. Keeps
RUN/analysis/interference.json, .csv, .svg and .png. `--compare R2` sets another run beside it, for instance dense and sparse;
`--over all` follows the checkpoints that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from tqdm import tqdm

from analysis.charts import save
from analysis.command import keeping, parser_of, run_command, write_json
from analysis.interference.gradients import (
    LINEARS,
    Examples,
    Weight,
    only_these_learn,
    spread_layers,
    sums_of,
    weights_of,
)
from analysis.interference.metric import changes, interference
from analysis.interference.tables import FILE, Content, by_step, chart_of, content_of, csv_of, lines_of, read_kept
from analysis.opened import OpenRun, open_run
from parallel.checkpoints import load_found, published, write_atomically
from parallel.checkpoints.saving import step_of
from parallel.collectives import gathered_objects
from run.command_line import Several, at_least_two, finite, natural
from run.errors import ConfigError
from run.places import expanded
from run.streams import print_result


def measured(run: OpenRun, weights: Sequence[Weight], arguments: argparse.Namespace) -> Content:
    """Collective. At the weights that the network has now. Raises ConfigError."""
    examples = Examples.of(run, arguments.pairs, arguments.seed)
    count = examples.count(arguments.samples)
    shared = run.mesh.expert_data
    if count < shared.size:
        raise ConfigError(f"{count} examples of each task cannot be shared out over {shared.size} ranks: start fewer")
    numbers = range(shared.rank, count, shared.size)
    tasks = [source.name for source in run.sources]
    hidden = not (run.mesh.is_first and sys.stderr.isatty())
    unreadable: set[tuple[str, str]] = set()
    with tqdm(total=2 * len(numbers) * len(tasks), unit="gradient", leave=False, disable=hidden) as bar:

        def gradient(task: int, number: int) -> list[Tensor]:
            found, faults = examples.gradient(weights, task, number)
            unreadable.update((fault.task, fault.place) for fault in faults)
            bar.update()
            return found

        own = changes(
            gradient,
            len(tasks),
            [weight.size for weight in weights],
            numbers,
            count,
            arguments.threshold,
            sums_of(run, weights),
        )
    parts = gathered_objects(own.numpy(), shared)
    unreadable.update(*gathered_objects(unreadable, shared))
    changes_DWIJN = np.zeros((2, len(weights), len(tasks), len(tasks), count))
    for rank, part in enumerate(parts):
        changes_DWIJN[..., rank :: shared.size] = part
    found = {w.name: interference(changes_DWIJN[:, place], arguments.seed) for place, w in enumerate(weights)}
    return content_of(run.step, count, tasks, found, len(unreadable))


def steps_of(run: OpenRun, wanted: Sequence[str]) -> list[int]:
    """Raises ConfigError."""
    there = sorted(map(step_of, published(run.folder / "checkpoints")))
    if list(wanted) == ["all"]:
        return there
    for step in wanted:
        if not step.isdigit() or int(step) not in there:
            listed = ", ".join(map(str, there))
            raise ConfigError(
                f"--over {step}: {run.folder} has checkpoints of the steps {listed} (keep_checkpoints keeps more)"
            )
    return [int(step) for step in wanted]


def command(arguments: argparse.Namespace) -> None:
    run = open_run(arguments, without_auxiliary=True)
    if len(run.sources) < 2:
        raise ConfigError(f"interference is between tasks, and {run.sources[0].name} is one: name others by --tasks")
    depth = run.config.model.depth
    layers = list(range(depth)) if arguments.layers == ["all"] else _numbers(arguments.layers) or spread_layers(depth)
    weights = weights_of(run, layers, arguments.linears)
    other = {place: read_kept(expanded(place)) for place in arguments.compare}
    steps = steps_of(run, arguments.over)
    only_these_learn(run, weights)
    content = measured(run, weights, arguments)
    over = []
    for step in steps:
        if step == run.step:
            over.append(content)
            continue
        load_found(run.folder / "checkpoints", step, run.objective)
        over.append(measured(run, weights, arguments) | {"step": step})
    if not run.mesh.is_first:
        return
    if over:
        content = content | {"over_training": over}
    chart = chart_of({run.folder.name: content, **other})
    with keeping(run.folder) as folder:
        write_json(folder / FILE, content)
        write_atomically(folder / "interference.csv", csv_of(content))
        for kind in ("svg", "png"):
            save(chart, folder / f"interference.{kind}")
    for at_step in by_step(content):
        print_result("\n".join(lines_of(at_step)))
    for place, of_other in other.items():
        print_result("\n".join([place, *lines_of(of_other)]))
    print_result(f"kept in {folder}")


def _numbers(words: Sequence[str]) -> list[int]:
    """Raises ConfigError."""
    for word in words:
        if not word.isdigit():
            raise ConfigError(f"--layers {word}: numbers from 0, or all")
    return [int(word) for word in words]


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--samples", type=at_least_two, default=100, metavar="N", help="examples of each task (default: 100)"
    )
    parser.add_argument(
        "--pairs", type=at_least_two, default=8, metavar="N", help="of an example of a contrastive task (default: 8)"
    )
    parser.add_argument(
        "--layers", nargs="+", action="extend", default=[], metavar="N", help="from 0, or all (default: three of them)"
    )
    parser.add_argument(
        "--linears",
        nargs="+",
        action=Several,
        default=[LINEARS[0]],
        metavar="NAME",
        help=f"of {', '.join(LINEARS)} (default: ffn.down)",
    )
    parser.add_argument(
        "--threshold",
        type=finite,
        default=0.0,
        help="keep what is larger than so many standard deviations (default: 0, all)",
    )
    parser.add_argument("--seed", type=natural, default=0, help="of augmentation and of the intervals")
    parser.add_argument(
        "--over", nargs="+", action="extend", default=[], metavar="STEP", help="checkpoints besides, or all"
    )
    parser.add_argument(
        "--compare", nargs="+", action="extend", default=[], metavar="RUN", help="runs that were measured before"
    )
    return run_command(command, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
