"""The command line of evaluate.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from data.config import Frames
from evaluation.config import PROBES
from run.command_line import checkpoint_step, crops_and_clips, finite, natural, positive, split_overrides


def parse_arguments(argv: list[str], description: str = "") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--tasks", nargs="+", action="extend", help="names of tasks (default: all of the run or suite)")
    parser.add_argument("--limit", type=positive, help="samples of each task at most, spread over the split")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--beam", type=positive, default=2, help="hypotheses of a caption; 1 is greedy (default: 2)")
    parser.add_argument(
        "--templates",
        metavar="NAME",
        help="sentences for class names: none, openai, simple, @FILE (default: those of the suite, or none)",
    )
    parser.add_argument(
        "--probe",
        choices=PROBES,
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
        "--frames",
        choices=get_args(Frames),
        default="as-is",
        help="of clips, to see whether a model reads time: in another order, or the middle one throughout (default: as-is)",
    )
    parser.add_argument(
        "--answer",
        choices=("rank", "generate"),
        help="of tasks with classes: the nearest name, or one that is written as captions are (default: as trained)",
    )
    parser.add_argument("--length-penalty", type=finite, default=0.0, help="captions are ranked by score / words^p")
    parser.add_argument(
        "--meteor", action="store_true", help="score captions with METEOR, too; needs java and the wheel pycocoevalcap"
    )
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
    split_overrides(arguments, "tasks")
    _check_use(parser, arguments)
    if not arguments.probe and (arguments.shots or arguments.fraction != 1):
        parser.error("--shots and --fraction are those of a --probe")
    if arguments.answer == "generate" and (arguments.probe or arguments.views or arguments.templates):
        parser.error("--answer generate compares with nothing: leave --probe, --views and --templates out")
    return arguments


COMPARED = {"compare", "split", "suite", "step", "probe", "tasks", "local_rank"}
UNUSED = {
    "suite": {"split": "a suite names the split of each task"},
    "probe": {
        "views": "features are those of one view",
        "templates": "no names are compared",
        "beam": "nothing is written",
        "length_penalty": "nothing is written",
        "meteor": "nothing is written",
    },
}
"""By an option, others that would change nothing beside it, and why."""


def _check_use(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program where an option that was given would be ignored."""
    given = {name for name, value in vars(arguments).items() if value not in (parser.get_default(name), [])}

    def refuse(name: str, what: str, why: str) -> None:
        word = "key=value" if name == "overrides" else f"--{name.replace('_', '-')}"
        parser.error(f"{word} changes nothing beside --{what}: {why}")

    if arguments.compare:
        for name in sorted(given - COMPARED):
            refuse(name, "compare", "it reads what evaluations have kept")
    for what, others in UNUSED.items():
        for name in sorted(given & others.keys()) if getattr(arguments, what) else ():
            refuse(name, what, others[name])
    if "trials" in given and not (arguments.shots or arguments.fraction < 1):
        parser.error("--trials repeats a probe of --shots or --fraction: give one of them")


def places_of_suite(arguments: argparse.Namespace) -> list[str]:
    """Overrides such as cifar10.path=/new/place."""
    return [
        word for word in arguments.overrides if arguments.suite and not word.startswith("data.") and ".path=" in word
    ]


def kept_name(arguments: argparse.Namespace) -> str:
    """Of the file in RUN/evaluations; probes have one of their own."""
    name = Path(arguments.suite).stem if arguments.suite else arguments.split
    return f"{name}_probes" if arguments.probe else name
