"""Images with captions: COCO, Flickr, Karpathy's splits, archives with JSON lines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from data.prepare.annotations import check_name, json_list, name_list, read_json, records, text_lines
from data.prepare.containers import Container, Limits
from data.prepare.layout import (
    PLACE,
    SPLITS,
    Command,
    given_lists,
    given_splits,
    list_arguments,
    open_media,
    reduction_arguments,
    reduction_of,
    split_arguments,
    unused,
)
from data.prepare.media import Entry, Medium, Reduction, caption_members, media_splits
from data.prepare.source import Context, Failure, PublicSet
from data.shards import DatasetError
from data.text.words import has_word


def captioned(
    container: Container, captions: Mapping[str, list[str]], source: str
) -> tuple[list[Entry], list[Failure], set[str]]:
    """Entries in the order of the container, failures, and the names of the files that were used.

    captions  name of an image or clip, or its last part -> texts
    source    name of the list, for messages
    """
    found: dict[str, tuple[str, list[str]]] = {}
    failures = []
    for name, texts in captions.items():
        blob = container.find(name)
        kept = [text for text in texts if has_word(text)]
        if blob is None:
            failures.append(Failure(name, f"not in {container.path.name}"))
        elif not kept:
            failures.append(Failure(name, f"no captions in {source}"))
        elif blob.name in found:
            failures.append(Failure(name, f"means the same file as another name in {source}"))
        else:
            found[blob.name] = (name, kept)
    entries = [
        Entry(name, blob, caption_members(found[name][1]), tuple(found[name][1]))
        for name, blob in container.blobs.items()
        if name in found
    ]
    return entries, failures, set(found)


# -------------------------------------------------------------------------------------------- archives and lists


def _archive_arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, (PLACE, "JSONL"))
    reduction_arguments(command, "image")


def caption_archive_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    entries, failures = {}, {}
    for split, (place, lists) in given_splits(arguments).items():
        container, strange = open_media(place, "image", context)
        captions = {
            check_name(lists, record["image"]): [text for text in record["captions"] if isinstance(text, str)]
            for record in records(lists, context.limits, {"image": str, "captions": list})
        }
        entries[split], missing, used = captioned(container, captions, lists.name)
        named = used | captions.keys()
        failures[split] = strange + missing + unused(container, named, "image", f"no captions in {lists.name}")
    return PublicSet("image_caption", (), media_splits("image", entries, failures, reduction, context))


# --------------------------------------------------------------------------------------------------------- COCO


def _coco_arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, ("JSON", PLACE))
    reduction_arguments(command, "image")


def coco_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    entries, failures = {}, {}
    for split, (file, place) in given_splits(arguments).items():
        container, strange = open_media(place, "image", context)
        captions = read_coco(file, context.limits)
        entries[split], missing, _ = captioned(container, captions, file.name)
        failures[split] = strange + missing
    return PublicSet("image_caption", (), media_splits("image", entries, failures, reduction, context))


def read_coco(path: Path, limits: Limits) -> dict[str, list[str]]:
    """File name -> captions, in the order of the annotations. Raises DatasetError."""
    content = read_json(path, limits)
    images = json_list(path, content, "images", {"id": int, "file_name": str})
    names = {image["id"]: check_name(path, image["file_name"]) for image in images}
    captions: dict[str, list[str]] = {name: [] for name in names.values()}
    for annotation in json_list(path, content, "annotations", {"image_id": int, "caption": str}):
        name = names.get(annotation["image_id"])
        if name is None:
            raise DatasetError(f"{path}: a caption of image {annotation['image_id']}, which is not in images")
        captions[name].append(annotation["caption"].strip())
    return captions


# ------------------------------------------------------------------------------------------------- Karpathy's splits


def _karpathy_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--captions",
        type=Path,
        required=True,
        metavar="JSON",
        help="dataset_coco.json or its like: captions and splits",
    )
    split_arguments(command, (PLACE,))
    reduction_arguments(command, "image")


def karpathy_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    by_split = read_karpathy(arguments.captions, context.limits)
    entries, failures = {}, {}
    for split, (place,) in given_splits(arguments).items():
        if not by_split[split]:
            raise DatasetError(f"{arguments.captions}: no image of split {split}")
        container, strange = open_media(place, "image", context)
        entries[split], missing, _ = captioned(container, by_split[split], arguments.captions.name)
        failures[split] = strange + missing
    return PublicSet("image_caption", (), media_splits("image", entries, failures, reduction, context))


def read_karpathy(path: Path, limits: Limits) -> dict[str, dict[str, list[str]]]:
    """Split -> file name -> captions as they were written. `restval`, images of COCO's validation that the papers train on, is of train.
    Raises DatasetError."""
    by_split: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    fields = {"filename": str, "split": str, "sentences": list}
    for number, image in enumerate(json_list(path, read_json(path, limits), "images", fields)):
        split = {"restval": "train"}.get(image["split"], image["split"])
        if split not in by_split:
            raise DatasetError(
                f"{path}: images[{number}]: split {image['split'][:80]!r} is none of train, restval, val, test"
            )
        folder = image.get("filepath") or ""
        if not isinstance(folder, str):
            raise DatasetError(f"{path}: images[{number}]: filepath {str(folder)[:80]!r} is no text")
        name = check_name(path, f"{folder}/{image['filename']}" if folder else image["filename"])
        if any(name in captions for captions in by_split.values()):
            raise DatasetError(f"{path}: images[{number}]: {name} is there twice")
        texts = json_list(path, image, "sentences", {"raw": str})
        by_split[split][name] = [text["raw"].strip() for text in texts]
    return by_split


# ------------------------------------------------------------------------------------------------------- Flickr


def _flickr_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tokens", type=Path, required=True, metavar="FILE", help="lines IMAGE.jpg#N<tab>caption")
    command.add_argument("--images", type=Path, required=True, metavar=PLACE, help="the images")
    list_arguments(command, "image", ".jpg")
    reduction_arguments(command, "image")


def flickr_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    container, strange = open_media(arguments.images, "image", context)
    captions = read_tokens(arguments.tokens, context.limits)
    by_split = divide(captions, given_lists(arguments), context.limits)
    return captioned_source("image", container, by_split, strange, arguments.tokens.name, reduction, context)


def captioned_source(
    medium: Medium,
    container: Container,
    by_split: dict[str, dict[str, list[str]]],
    strange: list[Failure],
    source: str,
    reduction: Reduction,
    context: Context,
) -> PublicSet:
    """All splits out of one container. What is strange in it is counted with the first. Raises DatasetError."""
    entries: dict[str, list[Entry]] = {}
    failures: dict[str, list[Failure]] = {}
    for split, captions in by_split.items():
        entries[split], missing, _ = captioned(container, captions, source)
        failures[split] = missing if failures else [*strange, *missing]
    return PublicSet(f"{medium}_caption", (), media_splits(medium, entries, failures, reduction, context))


def divide(captions: dict[str, list[str]], lists: dict[str, Path], limits: Limits) -> dict[str, dict[str, list[str]]]:
    """Captions by split. Names in lists may lack the extension. Raises DatasetError for a name in two lists."""
    if not lists:
        return {"train": captions}
    by_stem = {PurePosixPath(name).stem: name for name in captions}
    seen: dict[str, str] = {}
    divided: dict[str, dict[str, list[str]]] = {}
    for split, path in lists.items():
        divided[split] = {}
        for listed in name_list(path, limits):
            name = (
                listed
                if listed in captions
                else by_stem.get(listed) or by_stem.get(PurePosixPath(listed).stem) or listed
            )
            if seen.setdefault(name, split) != split:
                raise DatasetError(f"{path}: {listed} is in the list of {seen[name]}, too")
            divided[split][name] = captions.get(name, [])
    return divided


def read_tokens(path: Path, limits: Limits) -> dict[str, list[str]]:
    """Image name -> captions, from lines `1000092795.jpg#0<tab>caption`. Raises DatasetError."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text_lines(path, limits.annotations), start=1):
        if not line.strip():
            continue
        place, tab, text = line.partition("\t")
        name, mark, _ = place.rpartition("#")
        if not tab or not mark or not name:
            raise DatasetError(f"{path}: line {number}: expected IMAGE.jpg#0<tab>caption, found {line[:80]!r}")
        captions.setdefault(check_name(path, name), []).append(text.strip())
    return captions


LAYOUTS = (
    Command(
        "coco-captions",
        "COCO captions to image_caption",
        'captions_train2017.json ({"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}) and the '
        "images: a folder (train2017), zip (train2017.zip) or tar. All captions of an image make one sample.",
        "coco-captions --train captions_train2017.json train2017.zip --val captions_val2017.json val2017.zip --resize 256 "
        "--out datasets/coco",
        _coco_arguments,
        coco_source,
    ),
    Command(
        "karpathy",
        "Karpathy's splits of COCO, Flickr30k and Flickr8k to image_caption",
        'dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json ({"images": [{"filepath", "filename", "split", '
        '"sentences": [{"raw"}]}]}) and, for each split, the images: a folder, zip or tar. COCO\'s test and val are in '
        "val2014.zip; its train, with restval, needs a folder that holds train2014 and val2014.",
        "karpathy --captions dataset_coco.json --train coco --val val2014.zip --test val2014.zip --resize 256 --out datasets/coco",
        _karpathy_arguments,
        karpathy_source,
    ),
    Command(
        "flickr",
        "Flickr30k or Flickr8k to image_caption",
        "results_20130124.token or Flickr8k.token.txt (lines IMAGE.jpg#N<tab>caption), the images, and lists of names such "
        "as Flickr_8k.trainImages.txt.",
        "flickr --tokens Flickr8k.token.txt --images Flicker8k_Dataset --train-list Flickr_8k.trainImages.txt "
        "--val-list Flickr_8k.devImages.txt --out datasets/flickr8k",
        _flickr_arguments,
        flickr_source,
    ),
    Command(
        "caption-archive",
        'images and JSON lines {"image", "captions"} to image_caption',
        'A folder, tar or zip of images, and JSON lines {"image": "NAME.jpg", "captions": ["...", ...]}.',
        "caption-archive --train train.tar.gz train.captions.jsonl --out datasets/flickr8k",
        _archive_arguments,
        caption_archive_source,
    ),
)
