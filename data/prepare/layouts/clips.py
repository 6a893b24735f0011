"""Clips with classes: Kinetics, Moments in Time, UCF101, folders or archives with JSON lines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from data.prepare.annotations import (
    check_name,
    name_list,
    read_json,
    records,
    rows,
    text_lines,
    with_fields,
)
from data.prepare.containers import Container, Limits
from data.prepare.layout import (
    PLACE,
    Command,
    displayed,
    given_splits,
    name_map_argument,
    open_media,
    reduction_arguments,
    reduction_of,
    split_arguments,
    unused,
)
from data.prepare.media import VIDEO_SUFFIXES, Entry, is_medium, media_splits
from data.prepare.source import Context, Failure, PublicSet
from data.prepare.tables import table
from data.shards import DatasetError

Labels = dict[str, str]
"""Name of a clip -> its class."""


def labelled_source(
    arguments: argparse.Namespace,
    opened: Mapping[str, tuple[Container, list[Failure]]],
    labels: Mapping[str, Labels],
    context: Context,
    class_order: tuple[str, ...] = (),
) -> PublicSet:
    """Clips of a container for each split whose names (or last parts of names) are in `labels`."""
    reduction = reduction_of(arguments)
    classes = class_order or tuple(sorted({label for wanted in labels.values() for label in wanted.values()}))
    numbers = {name: number for number, name in enumerate(classes)}
    entries, failures = {}, {}
    for split, wanted in labels.items():
        container, strange = opened[split]
        found: dict[str, int] = {}
        failures[split] = list(strange)
        for name, label in wanted.items():
            blob = container.find(name)
            if blob is None:
                failures[split].append(Failure(name, f"not in {container.path.name}"))
            elif not is_medium(blob.name, "video"):
                failures[split].append(Failure(name, f"no video: use {', '.join(VIDEO_SUFFIXES)}"))
            elif found.setdefault(blob.name, numbers[label]) != numbers[label]:
                raise DatasetError(f"{container.path}: {blob.name} has two classes, {label!r} is one of them")
        entries[split] = [
            Entry(name, blob, {"cls": found[name]}, group=_ucf_group(name))
            for name, blob in container.blobs.items()
            if name in found
        ]
    splits = media_splits("video", entries, failures, reduction, context)
    return PublicSet("video_class", displayed(classes, arguments.name_map), splits)


def _ucf_group(name: str) -> str:
    """UCF cuts several clips (c01, c02, ...) from one video (g08): they stay in one split. Empty for other names."""
    match = re.fullmatch(r"(v_\w+_g\d+)_c\d+", PurePosixPath(name).stem)
    return match[1] if match else ""


def _arguments_of(files: tuple[str, ...]):
    def add(command: argparse.ArgumentParser) -> None:
        split_arguments(command, files)
        name_map_argument(command)
        reduction_arguments(command, "video")

    return add


# -------------------------------------------------------------------------------------------- archives and lists


def clip_archive_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    opened, labels = {}, {}
    for split, (place, lists) in given_splits(arguments).items():
        container, strange = open_media(place, "video", context)
        found = records(lists, context.limits, {"video": str, "label": str})
        labels[split] = {check_name(lists, record["video"]): record["label"] for record in found}
        extra = unused(container, set(labels[split]), "video", f"no label in {lists.name}")
        opened[split] = container, strange + extra
    return labelled_source(arguments, opened, labels, context)


# ----------------------------------------------------------------------------------------------------- Kinetics


def kinetics_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    opened: dict[str, tuple[Container, list[Failure]]] = {}
    labels: dict[str, Labels] = {}
    for split, (place, lists) in given_splits(arguments).items():
        container, strange = open_media(place, "video", context)
        stems = {PurePosixPath(name).stem: name for name in container.blobs if is_medium(name, "video")}
        labels[split] = {}
        missing = []
        for video, start, end, label in read_kinetics(lists, context.limits):
            cut = f"{video}_{start:06d}_{end:06d}"
            name = stems.get(cut) or stems.get(video)
            if name is None:
                missing.append(Failure(cut, f"not in {container.path.name}"))
            else:
                labels[split][name] = label
        opened[split] = container, strange + missing
    return labelled_source(arguments, opened, labels, context)


def read_kinetics(path: Path, limits: Limits) -> list[tuple[str, int, int, str]]:
    """(YouTube id, start and end in seconds, class), from CSV or JSON. Raises DatasetError."""
    found = []
    try:
        if path.suffix == ".json":
            for video, record in read_json(path, limits).items():
                annotation = with_fields(path, video, record, {"annotations": dict})["annotations"]
                with_fields(path, video, annotation, {"label": str, "segment": list})
                start, end = (int(float(second)) for second in annotation["segment"])
                found.append((check_name(path, video), start, end, annotation["label"]))
            return found
        for _, row in table(path, limits, ("label", "youtube_id", "time_start", "time_end")):
            video = check_name(path, row["youtube_id"])
            found.append((video, int(float(row["time_start"])), int(float(row["time_end"])), row["label"]))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: after {len(found)} clips: {error}; expected the lists of Kinetics") from error
    return found


# ------------------------------------------------------------------------------------------------------ Moments


def moments_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    opened, labels = {}, {}
    for split, (place, lists) in given_splits(arguments).items():
        opened[split] = open_media(place, "video", context)
        labels[split] = {check_name(lists, row[0]): row[1] for row in rows(lists, context.limits, 2)}
    return labelled_source(arguments, opened, labels, context)


# ------------------------------------------------------------------------------------------------------- UCF101


def _ucf_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--videos", type=Path, required=True, metavar=PLACE, help="CLASS/v_CLASS_gNN_cNN.avi")
    text = "folder with trainlistNN.txt, testlistNN.txt and, if there, classInd.txt"
    command.add_argument("--lists", type=Path, required=True, metavar="FOLDER", help=text)
    command.add_argument("--fold", type=int, default=1, help="1, 2 or 3 (default 1)")
    name_map_argument(command)
    reduction_arguments(command, "video")


def ucf_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    opened = open_media(arguments.videos, "video", context)
    labels = {
        split: {name: PurePosixPath(name).parts[0] for name in name_list(path, context.limits)}
        for split, path in (
            ("train", arguments.lists / f"trainlist{arguments.fold:02d}.txt"),
            ("test", arguments.lists / f"testlist{arguments.fold:02d}.txt"),
        )
    }
    index = arguments.lists / "classInd.txt"
    order: tuple[str, ...] = ()
    if index.is_file():
        words = [line.split() for line in text_lines(index, context.limits.annotations) if line.strip()]
        order = tuple(word[-1] for word in words)
        unknown = {label for part in labels.values() for label in part.values()} - set(order)
        if unknown:
            raise DatasetError(f"{index}: no class {min(unknown)!r}, which the lists have")
    # What is strange in the one folder is counted once.
    return labelled_source(arguments, {"train": opened, "test": (opened[0], [])}, labels, context, order)


LAYOUTS = (
    Command(
        "kinetics",
        "Kinetics to video_class",
        "Clips named ID_SSSSSS_EEEEEE.mp4 (start and end in seconds) or ID.mp4, in folders of any kind, and the list: CSV with "
        'columns label, youtube_id, time_start, time_end, or JSON {"ID": {"annotations": {"label", "segment"}}}. Clips of the '
        "list that are not there (taken from YouTube since) are counted as failures.",
        "kinetics --train train kinetics_train.csv --val val kinetics_val.csv --resize 256 --fps 12.5 --out datasets/k400",
        _arguments_of((PLACE, "CSV|JSON")),
        kinetics_source,
        shuffle=True,
    ),
    Command(
        "moments",
        "Moments in Time to video_class",
        "training/CLASS/NAME.mp4 and trainingSet.csv, lines CLASS/NAME.mp4,CLASS,... without column names.",
        "moments --train training trainingSet.csv --val validation validationSet.csv --out datasets/moments",
        _arguments_of((PLACE, "CSV")),
        moments_source,
        shuffle=True,
    ),
    Command(
        "ucf101",
        "UCF101 to video_class",
        "UCF-101/CLASS/v_CLASS_gNN_cNN.avi and ucfTrainTestlist with trainlist01.txt and testlist01.txt, which become train and "
        "test. --val-fraction keeps clips of one video (gNN) together.",
        "ucf101 --videos UCF-101 --lists ucfTrainTestlist --fold 1 --val-fraction 0.1 --out datasets/ucf101",
        _ucf_arguments,
        ucf_source,
        shuffle=True,
    ),
    Command(
        "clip-archive",
        'videos and JSON lines {"video", "label"} to video_class',
        'A folder, tar or zip of videos, and JSON lines {"video": "a/1.mp4", "label": "fight"}.',
        "clip-archive --train train.tar train.jsonl --name-map fight='people fighting' --out datasets/fights",
        _arguments_of((PLACE, "JSONL")),
        clip_archive_source,
        shuffle=True,
    ),
)
