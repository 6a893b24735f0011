"""`python -m data.prepare LAYOUT ...`: public data sets to data set folders."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import av
import PIL

from data.prepare.build import build, check_splits
from data.prepare.containers import Limits
from data.prepare.layout import Command
from data.prepare.layouts import captions, clip_captions, clips, glue, images, table, text, vqa, web
from data.prepare.progress import Plan, input_identity, work_on
from data.prepare.source import Context
from data.shards import DatasetError
from data.shards.printing import print_any_name
from data.workers.loader import usable_cores

LAYOUTS: tuple[Command, ...] = (
    *images.LAYOUTS,
    *captions.LAYOUTS,
    *web.LAYOUTS,
    *clips.LAYOUTS,
    *clip_captions.LAYOUTS,
    *text.LAYOUTS,
    *glue.LAYOUTS,
    *vqa.LAYOUTS,
    *table.LAYOUTS,
)
REAL_SMALL = "real-small"
FORMAT = 3
"""Of what is made from the same input; a folder begun by another is not continued."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Make data set folders.")
    commands = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    for layout in LAYOUTS:
        command = commands.add_parser(
            layout.name,
            help=layout.text,
            description=f"{layout.text}. {layout.expects}",
            epilog=f"example: python -m data.prepare {layout.example}",
        )
        command.set_defaults(made_by=layout)
        layout.arguments(command)
        _common_arguments(command, layout)
    help_text = "cifar10, flickr8k, videos_fight and text of one folder, each to its own data set"
    command = commands.add_parser(
        REAL_SMALL,
        help=help_text,
        description=help_text,
        epilog="example: python -m data.prepare real-small --data ../shared/data --out datasets/real",
    )
    command.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder with the four folders")
    _run_arguments(command)
    return parser


def _run_arguments(command: argparse.ArgumentParser) -> None:
    """What does not change the output."""
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="data set folder to write")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="make a complete folder again, or one begun otherwise; refused where a split would be lost",
    )
    command.add_argument(
        "--workers", type=int, default=usable_cores(), metavar="N", help="processes (default: one per core)"
    )


def _common_arguments(command: argparse.ArgumentParser, layout: Command) -> None:
    _run_arguments(command)
    share = 0.05 if layout.name == "text" else 0.0
    text = f"share of train that becomes val, chosen by a hash of the names (default {share:g})"
    command.add_argument("--val-fraction", type=float, default=share, metavar="SHARE", help=text)
    command.add_argument("--shard-size", type=int, default=1000, metavar="N", help="samples of a shard (default 1000)")
    command.add_argument("--max-gib", type=float, default=100.0, help="limit of an unpacked input's size (default 100)")
    if layout.name not in ("text", "img2dataset"):
        text = f"samples in mixed order rather than that of the source (default: {'yes' if layout.shuffle else 'no'})"
        command.add_argument("--shuffle", action=argparse.BooleanOptionalAction, default=layout.shuffle, help=text)
        command.add_argument("--seed", type=int, default=0, help="of the mixed order (default 0)")


def prepare(arguments: argparse.Namespace) -> None:
    """Make one folder. Raises DatasetError."""
    layout: Command = arguments.made_by
    if not 0 <= arguments.val_fraction < 1:
        raise DatasetError(f"--val-fraction {arguments.val_fraction:g}: must lie in [0, 1)")
    if arguments.shard_size < 1 or arguments.workers < 1 or not 0 < arguments.max_gib < math.inf:
        raise DatasetError("--shard-size, --workers and --max-gib must be positive")
    plan = plan_of(arguments)
    with work_on(arguments.out, plan, arguments.overwrite) as work:
        if work is None:
            return
        context = Context(
            limits=Limits(archive=int(arguments.max_gib * (1 << 30))),
            scratch=arguments.out,
            shuffle=getattr(arguments, "shuffle", False),
            seed=getattr(arguments, "seed", 0),
            val_fraction=arguments.val_fraction,
            shard_size=arguments.shard_size,
        )
        source = layout.source(arguments, context)
        check_splits(arguments.out, source)
        work.begin(source.splits)
        build(work, source, plan, arguments.workers)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """All that the output depends on: options, and the inputs by size and time. Raises DatasetError."""
    options: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    for name, value in sorted(vars(arguments).items()):
        if name in ("out", "overwrite", "workers", "made_by", "max_gib"):
            continue
        values = value if isinstance(value, list) else [value]
        inputs |= {str(path): input_identity(path) for path in values if isinstance(path, Path)}
        options[name] = [str(v) if isinstance(v, Path) else v for v in values]
    versions = {"format": FORMAT, "pillow": PIL.__version__, "av": av.__version__}
    return {"options": options, "inputs": inputs, "versions": versions}


def real_small(data: Path, out: Path) -> list[list[str]]:
    """The commands for the four small real data sets of one folder."""
    cifar, flickr, fights, texts = (data / name for name in ("cifar10", "flickr8k", "videos_fight", "text"))
    commands: list[list[Any]] = [
        [
            *("class-archive", "--train", cifar / "train_10k.tar.gz", "--val", cifar / "val_2k.tar.gz"),
            *("--classes", cifar / "classes.json", "--no-shuffle", "--out", out / "cifar10"),
        ],
        [
            *("caption-archive", "--train", flickr / "train_2400.tar.gz", flickr / "train_2400.captions.jsonl"),
            *("--val", flickr / "val_500.tar.gz", flickr / "val_500.captions.jsonl", "--out", out / "flickr8k"),
        ],
        [
            *("clip-archive", "--train", fights / "train.tar", fights / "train.jsonl"),
            *("--val", fights / "val.tar", fights / "val.jsonl", "--no-shuffle", "--out", out / "fights"),
            *("--name-map", "fight=people fighting", "no_fight=people not fighting"),
        ],
        ["text", "--input", texts / "tinyshakespeare.txt.gz", texts / "wikitext2_valid.txt.gz", "--out", out / "text"],
    ]
    return [[str(part) for part in command] for command in commands]


def main(argv: list[str] | None = None) -> int:
    print_any_name()
    parser = make_parser()
    arguments = parser.parse_args(argv)
    runs = [arguments]
    if arguments.layout == REAL_SMALL:
        same = ["--workers", str(arguments.workers), *(["--overwrite"] if arguments.overwrite else [])]
        runs = [parser.parse_args([*command, *same]) for command in real_small(arguments.data, arguments.out)]
    try:
        for run in runs:
            prepare(run)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
