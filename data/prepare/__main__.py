"""`python -m data.prepare LAYOUT ...`: public data sets to data set folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data.prepare import layouts
from data.prepare.archives import Limits
from data.prepare.build import Source, build, is_to_build
from data.prepare.passages import text_source
from data.shards import DatasetError

SPLITS = ("train", "val", "test")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Make data set folders.")
    commands = parser.add_subparsers(dest="layout", required=True, metavar="LAYOUT")

    def layout(name: str, text: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="data set folder to write")
        command.add_argument("--overwrite", action="store_true", help="make a complete folder again")
        command.add_argument("--max-gib", type=float, default=100.0, help="limit of an input's size (default 100)")
        return command

    command = layout(
        "class-archive",
        "tar.gz of CLASS/NAME.jpg to image_class",
        "class-archive --train train.tar.gz --val val.tar.gz --out datasets/cifar10",
    )
    _split_arguments(command, ("ARCHIVE",))
    command.add_argument("--classes", type=Path, metavar="JSON", help="list of class folders in order")
    _name_map(command)
    _resize(command)

    command = layout(
        "caption-archive",
        'tar.gz of images and JSON lines {"image", "captions"} to image_caption',
        "caption-archive --train train.tar.gz train.captions.jsonl --out datasets/flickr8k",
    )
    _split_arguments(command, ("ARCHIVE", "JSONL"))
    _resize(command)

    command = layout(
        "clip-archive",
        'tar of videos and JSON lines {"video", "label"} to video_class',
        "clip-archive --train train.tar train.jsonl --name-map fight='people fighting' --out datasets/fights",
    )
    _split_arguments(command, ("ARCHIVE", "JSONL"))
    _name_map(command)

    command = layout("text", "plain text to passages", "text --input wiki.txt.gz --out datasets/wiki")
    command.add_argument("--input", type=Path, nargs="+", required=True, metavar="TXT", help=".txt or .txt.gz")
    command.add_argument("--words", type=int, default=20, help="words of a passage (default 20)")
    command.add_argument("--val-fraction", type=float, default=0.05, help="share that is val (default 0.05)")

    command = layout(
        "real-small",
        "cifar10, flickr8k, videos_fight and text of one folder, each to its own data set",
        "real-small --data ../shared/data --out datasets/real",
    )
    command.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder with the four folders")
    return parser.parse_args(argv)


def _split_arguments(command: argparse.ArgumentParser, files: tuple[str, ...]) -> None:
    for split in SPLITS:
        command.add_argument(f"--{split}", type=Path, nargs=len(files), metavar=files)


def _name_map(command: argparse.ArgumentParser) -> None:
    text = "names of classes for people and models, where the source's are not words"
    command.add_argument("--name-map", nargs="+", default=[], metavar="CLASS=NAME", help=text)


def _resize(command: argparse.ArgumentParser) -> None:
    command.add_argument("--resize", type=int, metavar="SHORT_SIDE", help="reduce larger images to this many pixels")


def source_of(arguments: argparse.Namespace) -> Source:
    """What one layout's arguments describe. Raises DatasetError."""
    limits = Limits(archive=int(arguments.max_gib * (1 << 30)))
    if arguments.layout == "text":
        if arguments.words < 2 or not 0 <= arguments.val_fraction < 1:
            raise DatasetError("need --words of at least 2, and --val-fraction from 0 to below 1")
        return text_source(arguments.input, arguments.words, arguments.val_fraction, limits)

    given = {split: getattr(arguments, split) for split in SPLITS if getattr(arguments, split)}
    if not given:
        raise DatasetError(f"no input: give at least one of --{', --'.join(SPLITS)}")
    for path in [path for files in given.values() for path in files]:
        if not path.is_file():
            raise DatasetError(f"{path}: no such file")
    archives = {split: files[0] for split, files in given.items()}
    if arguments.layout == "clip-archive":
        labels = {split: files[1] for split, files in given.items()}
        return layouts.clip_archive(archives, labels, _names(arguments.name_map), limits)
    if arguments.resize is not None and arguments.resize < 1:
        raise DatasetError(f"--resize {arguments.resize}: must be at least 1")
    if arguments.layout == "caption-archive":
        captions = {split: files[1] for split, files in given.items()}
        return layouts.caption_archive(archives, captions, arguments.resize, limits)
    classes = layouts.read_classes(arguments.classes) if arguments.classes else None
    return layouts.class_archive(archives, classes, _names(arguments.name_map), arguments.resize, limits)


def real_small(data: Path, out: Path) -> dict[Path, Callable[[], Source]]:
    """Output folder -> source, for the four small real data sets of one folder."""
    limits = Limits()
    cifar, flickr, fights, text = (data / name for name in ("cifar10", "flickr8k", "videos_fight", "text"))
    return {
        out / "cifar10": lambda: layouts.class_archive(
            {"train": cifar / "train_10k.tar.gz", "val": cifar / "val_2k.tar.gz"},
            layouts.read_classes(cifar / "classes.json"),
            {},
            None,
            limits,
        ),
        out / "flickr8k": lambda: layouts.caption_archive(
            {"train": flickr / "train_2400.tar.gz", "val": flickr / "val_500.tar.gz"},
            {"train": flickr / "train_2400.captions.jsonl", "val": flickr / "val_500.captions.jsonl"},
            None,
            limits,
        ),
        out / "fights": lambda: layouts.clip_archive(
            {"train": fights / "train.tar", "val": fights / "val.tar"},
            {"train": fights / "train.jsonl", "val": fights / "val.jsonl"},
            {"fight": "people fighting", "no_fight": "people not fighting"},
            limits,
        ),
        out / "text": lambda: text_source(
            [text / "tinyshakespeare.txt.gz", text / "wikitext2_valid.txt.gz"], 20, 0.05, limits
        ),
    }


def _names(pairs: list[str]) -> dict[str, str]:
    names = dict(pair.partition("=")[::2] for pair in pairs)
    empty = [name for name, shown in names.items() if not name or not shown.strip()]
    if empty:
        raise DatasetError(f"--name-map {empty[0]!r}: write CLASS=NAME")
    return names


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.layout == "real-small":
            sources = real_small(arguments.data, arguments.out)
        else:
            sources = {arguments.out: lambda: source_of(arguments)}
        for out, source in sources.items():
            if is_to_build(out, arguments.overwrite):
                build(out, source())
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
