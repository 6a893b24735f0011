"""Routing maps of a run: `python -m analysis.routing_maps --run R`. Which expert serves which patch, frame and word.

Writes RUN/analysis/routing_maps: picture grids by task, patches that each expert is surest of, a moving picture of activation by decision,
and maps.html, in which decision and expert can be chosen. `--compare R2 ...` draws the same samples as other runs route them (papers.md
2.10, 4.6).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.command import keeping, parser_of, run_command, write_json
from analysis.opened import OpenRun, open_run
from analysis.routing_maps.drawing import animation, best_patches, picture_grid, side_by_side
from analysis.routing_maps.page import page_of
from analysis.routing_maps.samples import RoutedSample, samples_of
from parallel.checkpoints import write_atomically
from run.command_line import positive
from run.errors import ConfigError
from run.metrics.expert_use import decision_names

SHOWN = 4
"""Decisions in a picture where none are named, from the first to the last."""


def routing_maps(arguments: argparse.Namespace) -> None:
    run = opened(arguments)
    shown = chosen(decision_names(run.config.model), arguments.decisions)
    by_task = {source.name: samples_of(run, source, arguments.best_of) for source in run.sources}
    others = [compared(run, by_task, place, arguments) for place in arguments.compare]
    if not run.mesh.is_first:
        return
    with keeping(run.folder) as kept:
        folder = kept / "routing_maps"
        folder.mkdir(exist_ok=True)
        count = draw(run, by_task, others, shown, folder, arguments)
    print(f"{count} pictures and maps.html are in {folder}")


def draw(
    run: OpenRun,
    by_task: Mapping[str, list[RoutedSample]],
    others: Sequence[tuple[OpenRun, list[RoutedSample]]],
    shown: Sequence[int],
    folder: Path,
    arguments: argparse.Namespace,
) -> int:
    """-> how many pictures. others: runs to compare with and their samples; shown: numbers of decisions."""
    names, experts = decision_names(run.config.model), run.config.model.experts.num_experts
    pictures: list[dict[str, str]] = []

    def tell(file: str, title: str, alt: str) -> Path:
        pictures.append({"file": file, "title": title, "alt": alt})
        return folder / file

    for task, found in by_task.items():
        if found:
            listed = ", ".join(names[n] for n in shown)
            path = tell(
                f"of_{task}.png",
                f"Experts of {task}",
                f"Samples of {task}, patches and words coloured by expert at {listed}",
            )
            picture_grid(found[: arguments.samples], names, shown, experts).save(path)
    everything = [sample for found in by_task.values() for sample in found]
    if run.config.model.experts.decides_per_token:
        path = tell(
            "best_patches.png",
            f"Patches that each expert is surest of, {names[shown[-1]]}",
            "A row for each expert with the patches of its highest gate weights",
        )
        best_patches(everything, shown[-1], experts).save(path)
    few = [sample for found in by_task.values() for sample in found[: arguments.samples]]
    path = tell(
        "activation.gif",
        "Experts by decision",
        "For one sample after another, the share of its tokens that each expert has",
    )
    animation(few, names, experts, path)
    if others:
        path = tell(
            "routers.png", "The same samples in several runs", f"One column for each of {', '.join(arguments.compare)}"
        )
        beside_others(run, few, others).save(path)
    title = f"{run.folder.name}, step {run.step:,}"
    write_atomically(folder / "maps.html", page_of(title, few, names, experts))
    write_json(folder / "index.json", {"step": run.step, "pictures": pictures})
    return len(pictures)


def beside_others(
    run: OpenRun, samples: Sequence[RoutedSample], others: Sequence[tuple[OpenRun, list[RoutedSample]]]
) -> Any:
    """The last decision of each run."""
    runs = [run, *(other for other, _ in others)]
    return side_by_side(
        [samples, *(routed for _, routed in others)],
        [f"{one.folder.name} ({one.config.model.experts.router})" for one in runs],
        [one.config.model.num_decisions - 1 for one in runs],
        [one.config.model.experts.num_experts for one in runs],
    )


def compared(
    run: OpenRun, by_task: Mapping[str, list[RoutedSample]], place: str, arguments: argparse.Namespace
) -> tuple[OpenRun, list[RoutedSample]]:
    """Collective. Another run and its samples. Raises ConfigError where it has other tasks, or cuts the samples into other patches."""
    other = opened(argparse.Namespace(**vars(arguments) | {"run": place, "step": None}), run)
    if [source.name for source in other.sources] != [source.name for source in run.sources]:
        raise ConfigError(f"{place} has other tasks than {run.folder}: choose common ones by --tasks")
    found = []
    for source in other.sources:
        ours = by_task[source.name][: arguments.samples]
        routed = samples_of(other, source, arguments.samples)[: len(ours)]
        for one, of_other in zip(ours, routed, strict=False):
            if one.grid != of_other.grid:
                raise ConfigError(
                    f"--compare {place}: it cuts {one.title} into {of_other.grid} patches, and {run.folder} into {one.grid}: "
                    "compare runs of one model.image_size / model.patch, and of as many frames"
                )
        found += routed
    return other, found


def opened(arguments: argparse.Namespace, beside: OpenRun | None = None) -> OpenRun:
    """Raises ConfigError for a run without experts, or of two towers, whose samples pass them apart."""
    run = open_run(arguments, arguments.split, beside=beside)
    if not run.config.model.num_decisions:
        raise ConfigError(f"{run.folder} has no experts: model.experts.placement={run.config.model.experts.placement}")
    if run.config.model.text_tower:
        raise ConfigError(f"{run.folder} has a text tower: routing maps are of models with one tower")
    return run


def chosen(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Numbers of decisions. Raises ConfigError."""
    for name in wanted:
        if name not in names:
            raise ConfigError(f"--decisions {name!r}: the decisions are {', '.join(map(repr, names))}")
    if wanted:
        return [names.index(name) for name in wanted]
    last = len(names) - 1
    return sorted({round(last * part / (SHOWN - 1)) for part in range(SHOWN)})


def main(argv: list[str] | None = None) -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--split", default="val", help="of the data sets (default: val)")
    parser.add_argument("--samples", type=positive, default=4, metavar="N", help="shown of each task (default: 4)")
    parser.add_argument(
        "--best-of",
        type=positive,
        default=64,
        metavar="N",
        help="samples of each task, of which best patches are taken",
    )
    parser.add_argument(
        "--decisions", nargs="+", action="extend", default=[], metavar="NAME", help="as '3 ffn' (default: some)"
    )
    parser.add_argument(
        "--compare", nargs="+", action="extend", default=[], metavar="RUN", help="runs with the same tasks"
    )
    return run_command(routing_maps, parser, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
