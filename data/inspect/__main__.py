"""`python -m data.inspect lint|stats|gallery ...`: look at data sets before training on them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from data.inspect import gallery, statistics
from data.inspect.lint import lint
from data.inspect.problems import Totals
from data.inspect.samples import FRAMES
from data.inspect.targets import find
from data.shards import DatasetError
from data.shards.files import replacing
from data.shards.printing import print_any_name
from data.workers.loader import usable_cores

CLEAN, PROBLEMS, UNUSABLE = 0, 1, 2
"""Exit codes."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.inspect", description="Look at data set folders.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    text = "decode every sample of every shard as training would; exit code 0 clean, 1 problems, 2 cannot be read"
    command = _shards_command(commands.add_parser("lint", help=text, description=text), nargs="+")
    command.add_argument("--max-problems", type=int, default=100, metavar="N", help="lines to print (default 100)")

    text = "sizes, lengths, classes, words and colours, split by split"
    _shards_command(commands.add_parser("stats", help=text, description=text), nargs=None)

    text = "one HTML page of samples picked at random, raw or, with --config, as a task of a run makes them"
    command = commands.add_parser("gallery", help=text, description=text)
    command.add_argument("folder", nargs="?", metavar="FOLDER", help="data set folder; default: that of --task")
    command.add_argument("--out", type=Path, required=True, metavar="HTML", help="file to write")
    command.add_argument("--samples", type=int, default=24, metavar="N", help="how many (default 24)")
    command.add_argument("--split", help="default: the task's, else train")
    command.add_argument("--seed", type=int, default=0, help="which samples, and what augmentation draws (default 0)")
    command.add_argument(
        "--config", type=Path, metavar="YAML", help="a run's configuration, such as runs/demo/config.yaml"
    )
    command.add_argument("--task", metavar="NAME", help="one of its data.tasks")
    return parser.parse_args(argv)


def _shards_command(command: argparse.ArgumentParser, nargs: str | None) -> argparse.ArgumentParser:
    text = "data set folder, or shards of other makers by path, 'glob' or {000..012}"
    command.add_argument("targets" if nargs else "target", nargs=nargs, metavar="FOLDER", help=text)
    command.add_argument("--split", help="this one alone")
    command.add_argument("--workers", type=int, default=usable_cores(), metavar="N", help="processes (default: cores)")
    command.add_argument(
        "--frames", type=int, default=FRAMES, metavar="N", help=f"frames taken of a clip (default {FRAMES})"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result there as JSON, too")
    return command


def run_lint(arguments: argparse.Namespace) -> int:
    targets = [find(name, arguments.split) for name in arguments.targets]
    totals = Totals(arguments.max_problems)
    for target in targets:
        for problem in lint(target, totals, arguments.workers, arguments.split is None, arguments.frames):
            tqdm.write(str(problem))
    hidden = totals.errors + totals.warnings - len(totals.problems)
    if hidden:
        print(f"and {hidden} more (--max-problems)")
    print(f"{totals.samples} samples in {totals.shards} shards: {totals.errors} errors, {totals.warnings} warnings")
    if arguments.json:
        _write(arguments.json, totals.as_json())
    return PROBLEMS if totals.errors else CLEAN


def run_stats(arguments: argparse.Namespace) -> int:
    report = statistics.measure(find(arguments.target, arguments.split), arguments.workers, arguments.frames)
    print(statistics.as_text(report))
    if arguments.json:
        _write(arguments.json, statistics.as_json(report))
    return CLEAN


def run_gallery(arguments: argparse.Namespace) -> int:
    if arguments.samples < 1:
        raise DatasetError(f"--samples {arguments.samples}: must be at least 1")
    if bool(arguments.config) != bool(arguments.task):
        raise DatasetError("--config and --task go together")
    if not arguments.folder and not arguments.config:
        raise DatasetError("name a data set FOLDER, or --config and --task")
    page = gallery.collect(
        arguments.folder, arguments.split, arguments.samples, arguments.seed, arguments.config, arguments.task
    )
    _write(arguments.out, page)
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    return CLEAN


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        # JSON texts may hold half of a surrogate pair, which no encoding has.
        file.write(text.encode("utf-8", "replace"))


def main(argv: list[str] | None = None) -> int:
    print_any_name()
    arguments = parse_arguments(argv)
    try:
        if getattr(arguments, "workers", 0) < 0 or getattr(arguments, "frames", 1) < 1:
            raise DatasetError("--workers must not be negative, --frames at least 1")
        return {"lint": run_lint, "stats": run_stats, "gallery": run_gallery}[arguments.command](arguments)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
