"""Images with classes: ImageNet, class folders, class folders in archives."""

from __future__ import annotations

import argparse
import collections
import re
import unicodedata
from pathlib import Path, PurePosixPath

from data.prepare.annotations import read_json, rows, text_lines
from data.prepare.containers import Blob, Container, Limits
from data.prepare.layout import (
    Command,
    displayed,
    given_splits,
    name_map_argument,
    open_media,
    reduction_arguments,
    reduction_of,
    split_arguments,
)
from data.prepare.media import Entry, is_medium, media_splits
from data.prepare.source import Context, Failure, PublicSet
from data.shards import DatasetError
from data.text.clip_lists import imagenet_names

_SYNSET = re.compile(r"n\d{8}")


# ------------------------------------------------------------------------------------------------ class folders


def _class_arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, ("FOLDER|ARCHIVE",))
    command.add_argument(
        "--classes", type=Path, metavar="JSON", help="list of class folders in order (default: sorted)"
    )
    name_map_argument(command)
    reduction_arguments(command, "image")


def class_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    """CLASS/NAME.jpg in a folder or archive for each split."""
    reduction = reduction_of(arguments)
    opened = {split: open_media(path, "image", context) for split, (path,) in given_splits(arguments).items()}
    class_of = {split: _classes_of(container) for split, (container, _) in opened.items()}
    if arguments.classes:
        classes = read_classes(arguments.classes, context.limits)
    else:
        classes = tuple(sorted(set(class_of.get("train", next(iter(class_of.values()))).values())))
        for split, found in class_of.items():
            unknown = sorted(set(found.values()) - set(classes))
            if unknown:
                raise DatasetError(
                    f"{opened[split][0].path}: {split} has class {unknown[0]!r}, which train has not ({', '.join(classes)[:80]}): "
                    "the folder that holds an image is its class; say all classes with --classes"
                )
    entries, failures = {}, {}
    for split, (container, strange) in opened.items():
        entries[split], outside = _in_classes(container, classes, class_of[split])
        failures[split] = strange + outside
    return PublicSet(
        "image_class",
        displayed(classes, arguments.name_map),
        media_splits("image", entries, failures, reduction, context),
    )


def read_classes(path: Path, limits: Limits) -> tuple[str, ...]:
    """A JSON list of names. Raises DatasetError."""
    names = read_json(path, limits)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: expected a JSON list of class names, found {str(names)[:80]}")
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def _folders(containers) -> tuple[str, ...]:
    found = {_folder(name) for container in containers for name in container.blobs if is_medium(name, "image")}
    return tuple(sorted(name for name in found if name))


def _in_classes(
    container: Container, classes: tuple[str, ...], class_of: dict[str, str]
) -> tuple[list[Entry], list[Failure]]:
    numbers = {name: number for number, name in enumerate(classes)}
    entries, failures = [], []
    for name, blob in container.blobs.items():
        if not is_medium(name, "image"):
            continue  # counted when the container was opened
        number = numbers.get(class_of.get(name, ""))
        if number is None:
            failures.append(Failure(name, f"not in the folder of a class ({', '.join(classes)[:80]})"))
        else:
            entries.append(Entry(name, blob, {"cls": number}))
    return entries, failures


def _classes_of(container: Container) -> dict[str, str]:
    """Image -> its class, which is the folder that holds it; where that has one name for all, as in CLASS/images/NAME, the one above.
    Unicode has several spellings of a letter, of which file systems choose one: NFC counts."""
    folders = {
        name: PurePosixPath(name).parent.parts for name in container.blobs if is_medium(name, "image") and "/" in name
    }
    level = 1
    while (
        len({parts[-level] for parts in folders.values()}) == 1
        and len(set(folders.values())) > 1
        and all(len(parts) > level for parts in folders.values())
    ):
        level += 1
    return {name: unicodedata.normalize("NFC", parts[-level]) for name, parts in folders.items()}


def _folder(name: str) -> str | None:
    """The class of CLASS/NAME; folders above are ignored, as archives often have one of their own."""
    return name.rpartition("/")[0].rpartition("/")[2] or None


# ----------------------------------------------------------------------------------------------------- ImageNet


def _imagenet_arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, ("FOLDER|ARCHIVE",), ("train", "val"))
    text = "classes of a flat val folder: lines 'NAME CLASS', LOC_val_solution.csv, or one synset per line in order of names"
    command.add_argument("--val-labels", type=Path, metavar="FILE", help=text)
    text = "lines 'n01440764 tench, Tinca tinca': the first name is the class's, the others become synonyms"
    command.add_argument("--synsets", type=Path, metavar="FILE", help=text)
    text = "name ImageNet's 1,000 classes as CLIP does, by the list of the installed open_clip; other names become synonyms"
    command.add_argument("--clip-names", action="store_true", help=text)
    text = "the classes are those that have a folder, under their names among all of --synsets (ImageNet-A and -R have 200)"
    command.add_argument("--present", action="store_true", help=text)
    reduction_arguments(command, "image")


def imagenet_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    given = given_splits(arguments, ("train", "val"))
    opened = {split: open_media(path, "image", context) for split, (path,) in given.items()}
    words = read_synsets(arguments.synsets, context.limits) if arguments.synsets else {}
    folders = _folders(container for container, _ in opened.values())
    synsets = tuple(sorted(words)) or tuple(name for name in folders if _SYNSET.fullmatch(name))
    if not synsets:
        raise DatasetError(
            f"{next(iter(given.values()))[0]}: no folder such as n01440764; give --synsets or use class-folders"
        )
    if arguments.clip_names:
        words = _clip_names(synsets, words)
    classes, synonyms = name_synsets(synsets, words)
    if arguments.present:
        kept = [number for number, synset in enumerate(synsets) if synset in folders]
        if not kept:
            raise DatasetError(
                f"{next(iter(given.values()))[0]}: --present: no folder is one of the {len(synsets)} synsets"
            )
        synsets, classes = (tuple(names[number] for number in kept) for names in (synsets, classes))
        synonyms = tuple(synonyms[number] for number in kept)
    entries, failures = {}, {}
    for split, (container, strange) in opened.items():
        if split == "val" and arguments.val_labels:
            labels = read_val_labels(arguments.val_labels, container, synsets, context.limits)
            entries[split] = [
                Entry(name, blob, {"cls": labels[name]}) for name, blob in _flat(container) if name in labels
            ]
            outside = [
                Failure(name, f"no class in {arguments.val_labels.name}")
                for name, _ in _flat(container)
                if name not in labels
            ]
        else:
            class_of = {name: _synset_of(_folder(name) or "", synsets) for name in container.blobs}
            entries[split], outside = _in_classes(container, synsets, class_of)
        failures[split] = strange + outside
    splits = media_splits("image", entries, failures, reduction, context)
    return PublicSet("image_class", classes, splits, synonyms if any(synonyms) else ())


def _clip_names(synsets: tuple[str, ...], words: dict[str, list[str]]) -> dict[str, list[str]]:
    """Synset -> CLIP's name for it, and those that it had. Raises DatasetError."""
    try:
        names = imagenet_names()
    except LookupError as error:
        raise DatasetError(f"--clip-names: {error}") from error
    if len(synsets) != len(names):
        raise DatasetError(
            f"--clip-names: names of {len(names):,} classes for {len(synsets):,} synsets: give all of ImageNet-1k by --synsets (with "
            "--present for the classes of a variant)"
        )
    return {synset: [name, *words.get(synset, [])] for synset, name in zip(synsets, names, strict=True)}


def _synset_of(folder: str, synsets: tuple[str, ...]) -> str:
    """ImageNet-V2's folders are numbers in the order of the synsets."""
    return synsets[int(folder)] if folder.isdecimal() and int(folder) < len(synsets) else folder


def read_synsets(path: Path, limits: Limits) -> dict[str, list[str]]:
    """Synset -> its names. Raises DatasetError."""
    words: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path, limits.annotations), start=1):
        synset, _, names = line.strip().partition(" ") if "\t" not in line else line.strip().partition("\t")
        shown = [name.strip() for name in names.split(",") if name.strip()]
        if line.strip() and (not shown or synset in words):
            raise DatasetError(
                f"{path}: line {number}: expected 'n01440764 tench, Tinca tinca', each once, found {line[:80]!r}"
            )
        if shown:
            words[synset] = shown
    return words


def name_synsets(
    synsets: tuple[str, ...], words: dict[str, list[str]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Class names, all different, and synonyms.

    A synset whose first name is taken (ImageNet has two cranes) is called by its next free one, else by its first with
    the synset in brackets. A name that two synsets have is nobody's synonym.
    """
    classes: dict[str, None] = {}  # a set in order: ImageNet has 22 thousand
    all_names = [tuple(dict.fromkeys(words.get(synset, [synset]))) for synset in synsets]
    uses = collections.Counter(name for names in all_names for name in names)
    for synset, names in zip(synsets, all_names, strict=True):
        classes[next((name for name in names if name not in classes), f"{names[0]} ({synset})")] = None
    synonyms = (tuple(name for name in names if uses[name] == 1 and name not in classes) for names in all_names)
    return tuple(classes), tuple(synonyms)


def read_val_labels(path: Path, container: Container, synsets: tuple[str, ...], limits: Limits) -> dict[str, int]:
    """Member name -> class. Raises DatasetError."""
    numbers = {synset: number for number, synset in enumerate(synsets)}
    by_stem = {PurePosixPath(name).stem: name for name, _ in _flat(container)}

    def number_of(place: str, text: str) -> int:
        if text in numbers:
            return numbers[text]
        if text.isdecimal() and int(text) < len(synsets):
            return int(text)
        raise DatasetError(f"{path}: {place}: {text[:80]!r} is no synset, nor a number below {len(synsets)}")

    if path.suffix == ".csv":
        pairs = [(row[0], row[1].split()[0]) for row in rows(path, limits, 2) if row[0] != "ImageId" and row[1].strip()]
    else:
        words = [line.split() for line in text_lines(path, limits.annotations) if line.strip()]
        if all(len(word) == 1 for word in words):
            return _in_order(path, [word[0] for word in words], container, numbers)
        if any(len(word) != 2 for word in words):
            raise DatasetError(f"{path}: expected lines 'NAME CLASS' or one synset per line")
        pairs = [(name, label) for name, label in words]
    return {
        by_stem[stem]: number_of(f"image {name[:80]}", label)
        for name, label in pairs
        if (stem := PurePosixPath(name).name.removesuffix(".JPEG").removesuffix(".jpg")) in by_stem
    }


def _in_order(path: Path, labels: list[str], container: Container, numbers: dict[str, int]) -> dict[str, int]:
    names = sorted(name for name, _ in _flat(container))
    if len(names) != len(labels):
        raise DatasetError(f"{path}: {len(labels)} classes for the {len(names)} images of {container.path}")
    unknown = next((label for label in labels if label not in numbers), None)
    if unknown is not None:
        raise DatasetError(
            f"{path}: {unknown[:80]!r} is no synset. Numbers without names are counted in the order of the development "
            "kit's meta.mat: give synsets, or lines 'NAME CLASS'"
        )
    return {name: numbers[label] for name, label in zip(names, labels, strict=True)}


def _flat(container: Container) -> list[tuple[str, Blob]]:
    return [(name, blob) for name, blob in container.blobs.items() if is_medium(name, "image")]


LAYOUTS = (
    Command(
        "imagenet",
        "ImageNet to image_class",
        "train/n01440764/NAME.JPEG; val in the same way, or flat (val/ILSVRC2012_val_00000001.JPEG) with --val-labels. "
        "Classes are numbered by their synsets in sorted order; --synsets (synset_words.txt, LOC_synset_mapping.txt) names "
        "them. The parts may be folders, tars or zips; the tar of tars has to be unpacked first.",
        "imagenet --train train --val val --val-labels val.txt --synsets synset_words.txt --resize 256 --out datasets/imagenet",
        _imagenet_arguments,
        imagenet_source,
        shuffle=True,
    ),
    Command(
        "class-folders",
        "any folders CLASS/NAME.jpg to image_class",
        "CLASS/NAME.jpg (.jpeg, .png, .webp); the folder that holds an image is its class. Where all of these have one name "
        "(CLASS/images/NAME.jpg), the one above is.",
        "class-folders --train flowers --val-fraction 0.1 --out datasets/flowers",
        _class_arguments,
        class_source,
        shuffle=True,
    ),
    Command(
        "class-archive",
        "tar or zip of CLASS/NAME.jpg to image_class",
        "CLASS/NAME.jpg (.jpeg, .png, .webp) in a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip.",
        "class-archive --train train.tar.gz --val val.tar.gz --out datasets/cifar10",
        _class_arguments,
        class_source,
        shuffle=True,
    ),
)
