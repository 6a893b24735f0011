"""Clips with captions: MSVD, MSR-VTT."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

from data.prepare.annotations import check_name, json_list, read_json, text_lines
from data.prepare.containers import Container, Limits
from data.prepare.layout import (
    PLACE,
    Command,
    given_lists,
    list_arguments,
    open_media,
    reduction_arguments,
    reduction_of,
)
from data.prepare.layouts.captions import captioned_source, divide
from data.prepare.media import is_medium
from data.prepare.source import Context, PublicSet
from data.shards import DatasetError

_MSRVTT_SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}


def _msvd_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--videos", type=Path, required=True, metavar=PLACE, help="ID_START_END.avi")
    command.add_argument("--captions", type=Path, required=True, metavar="FILE", help="lines ID_START_END caption")
    list_arguments(command, "video", ".avi")
    reduction_arguments(command, "video")


def msvd_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    container, strange = open_media(arguments.videos, "video", context)
    captions = _with_extensions(read_msvd(arguments.captions, context.limits), container)
    by_split = divide(captions, given_lists(arguments), context.limits)
    return captioned_source("video", container, by_split, strange, arguments.captions.name, reduction, context)


def read_msvd(path: Path, limits: Limits) -> dict[str, list[str]]:
    """Video -> captions; lines that start with # are remarks. Raises DatasetError."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path, limits.annotations), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        video, _, text = line.strip().partition(" ")
        if not text.strip():
            raise DatasetError(f"{path}: line {number}: expected 'VIDEO caption', found {line[:80]!r}")
        captions.setdefault(check_name(path, video), []).append(text.strip())
    return captions


def _with_extensions(captions: dict[str, list[str]], container: Container) -> dict[str, list[str]]:
    """Names of videos without extension -> names of their files, where there is one."""
    files = {PurePosixPath(name).stem: name for name in container.blobs if is_medium(name, "video")}
    return {files.get(name, name): texts for name, texts in captions.items()}


def _msrvtt_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--videos", type=Path, required=True, metavar=PLACE, help="videoN.mp4, of all splits")
    text = "train_val_videodatainfo.json, and test_videodatainfo.json if it is there"
    command.add_argument("--info", type=Path, required=True, nargs="+", action="extend", metavar="JSON", help=text)
    reduction_arguments(command, "video")


def msrvtt_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    container, strange = open_media(arguments.videos, "video", context)
    by_split: dict[str, dict[str, list[str]]] = {}
    for path in arguments.info:
        for split, captions in read_msrvtt(path, context.limits).items():
            by_split.setdefault(split, {}).update(captions)
    named = {split: _with_extensions(captions, container) for split, captions in by_split.items()}
    return captioned_source("video", container, named, strange, arguments.info[0].name, reduction, context)


def read_msrvtt(path: Path, limits: Limits) -> dict[str, dict[str, list[str]]]:
    """Split -> video -> captions. Raises DatasetError."""
    content = read_json(path, limits)
    by_split: dict[str, dict[str, list[str]]] = {}
    captions: dict[str, list[str]] = {}
    for video in json_list(path, content, "videos", {"video_id": str, "split": str}):
        split = _MSRVTT_SPLITS.get(video["split"])
        if split is None:
            raise DatasetError(
                f"{path}: video {video['video_id']}: split {video['split']!r}, expected train, validate or test"
            )
        captions[check_name(path, video["video_id"])] = by_split.setdefault(split, {})[video["video_id"]] = []
    if not captions:
        raise DatasetError(f"{path}: no videos")
    for sentence in json_list(path, content, "sentences", {"video_id": str, "caption": str}):
        if sentence["video_id"] not in captions:
            raise DatasetError(f"{path}: a caption of {sentence['video_id']!r}, which is not in videos")
        captions[sentence["video_id"]].append(sentence["caption"].strip())
    return by_split


LAYOUTS = (
    Command(
        "msvd",
        "MSVD to video_caption",
        "YouTubeClips/ID_START_END.avi and AllVideoDescriptions.txt (lines 'ID_START_END caption'); lists of names divide them. "
        "All captions of a clip make one sample.",
        "msvd --videos YouTubeClips --captions AllVideoDescriptions.txt --train-list train.txt --val-list val.txt "
        "--resize 256 --fps 10 --out datasets/msvd",
        _msvd_arguments,
        msvd_source,
    ),
    Command(
        "msrvtt",
        "MSR-VTT to video_caption",
        'videoN.mp4 and train_val_videodatainfo.json ({"videos": [{"video_id", "split"}], "sentences": [{"video_id", '
        '"caption"}]}); its splits train, validate and test become train, val and test.',
        "msrvtt --videos TrainValVideo --info train_val_videodatainfo.json --resize 256 --fps 10 --out datasets/msrvtt",
        _msrvtt_arguments,
        msrvtt_source,
    ),
)
