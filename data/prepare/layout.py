"""What a command of `data.prepare` is, and the arguments that several have in common."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from data.prepare.containers import Container, open_container
from data.prepare.media import Medium, Reduction, is_medium
from data.prepare.source import Context, Failure, PublicSet
from data.shards import DatasetError
from data.text.names import alike
from data.text.tokenizer import Tokenizer

SPLITS = ("train", "val", "test")
PLACE = "FOLDER|ARCHIVE"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    text       one line for the list of commands
    expects    the layout, for --help
    arguments  adds its own arguments to a parser
    source     what they describe; raises DatasetError
    shuffle    whether samples are put in mixed order by default
    """

    name: str
    text: str
    expects: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    source: Callable[[argparse.Namespace, Context], PublicSet]
    shuffle: bool = False


def split_arguments(command: argparse.ArgumentParser, files: tuple[str, ...], splits: tuple[str, ...] = SPLITS) -> None:
    for split in splits:
        command.add_argument(f"--{split}", type=Path, nargs=len(files), metavar=files)


def given_splits(arguments: argparse.Namespace, splits: tuple[str, ...] = SPLITS) -> dict[str, list[Path]]:
    """Split -> the paths given for it. Raises DatasetError if there is none or one does not exist."""
    given = {split: getattr(arguments, split) for split in splits if getattr(arguments, split, None)}
    if not given:
        raise DatasetError(f"no input: give at least one of --{', --'.join(splits)}")
    for path in [path for paths in given.values() for path in paths]:
        if not path.exists():
            raise DatasetError(f"{path}: no such file or folder")
    return given


def list_arguments(command: argparse.ArgumentParser, medium: Medium, suffix: str) -> None:
    for split in SPLITS:
        text = f"names of the {split} {medium}s, one per line, with or without {suffix} (default: all are train)"
        command.add_argument(f"--{split}-list", type=Path, metavar="FILE", help=text)


def given_lists(arguments: argparse.Namespace) -> dict[str, Path]:
    """Split -> its list of names, of those given."""
    return {split: path for split in SPLITS if (path := getattr(arguments, f"{split}_list"))}


def reduction_arguments(command: argparse.ArgumentParser, medium: Medium) -> None:
    text = f"reduce larger {medium}s to this many pixels"
    command.add_argument("--resize", type=int, metavar="SHORT_SIDE", help=text)
    if medium == "video":
        command.add_argument("--fps", type=float, metavar="N", help="reduce faster videos to N frames per second")


def reduction_of(arguments: argparse.Namespace) -> Reduction:
    """Raises DatasetError."""
    resize, fps = arguments.resize, getattr(arguments, "fps", None)
    if resize is not None and resize < 1:
        raise DatasetError(f"--resize {resize}: must be at least 1")
    if fps is not None and not 0.1 <= fps <= 240:
        raise DatasetError(f"--fps {fps:g}: must lie between 0.1 and 240")
    return Reduction(resize, fps)


def name_map_argument(command: argparse.ArgumentParser) -> None:
    text = "names of classes for people and models, where the source's are not words"
    command.add_argument("--name-map", nargs="+", action="extend", default=[], metavar="CLASS=NAME", help=text)


def displayed(classes: tuple[str, ...], pairs: list[str]) -> tuple[str, ...]:
    """The classes with the names of --name-map. Raises DatasetError."""
    names = dict(pair.partition("=")[::2] for pair in pairs)
    empty = [name for name, shown in names.items() if not name or not shown.strip()]
    if empty:
        raise DatasetError(f"--name-map {empty[0]!r}: write CLASS=NAME")
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DatasetError(f"no class {unknown[0]!r} to rename; the classes are {', '.join(classes)[:200]}")
    shown = tuple(names.get(name, name) for name in classes)
    for one, other in alike(shown, Tokenizer.load().encode):
        if one != other:  # equal ones are told where the set is made
            raise DatasetError(
                f"classes {one!r} and {other!r} are one to the model, which sees no letter case and no unusual spaces: put them "
                "together, or tell them apart with --name-map CLASS=NAME"
            )
    return shown


def open_media(path: Path, medium: Medium, context: Context) -> tuple[Container, list[Failure]]:
    """A container of images or clips, and what in it is none."""
    container = open_container(path, context.limits, context.scratch)
    failures = [Failure(name, reason) for name, reason in container.strange]
    failures += [Failure(name, f"no {medium}") for name in container.blobs if not is_medium(name, medium)]
    return container, failures


def unused(container: Container, used: set[str], medium: Medium, reason: str) -> list[Failure]:
    """Images or clips that no list names."""
    return [Failure(name, reason) for name in container.blobs if is_medium(name, medium) and name not in used]
