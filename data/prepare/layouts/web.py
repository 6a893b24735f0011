"""Image and text pairs from the web (CC3M, CC12M, SBU, YFCC) as img2dataset leaves them.

Its shards are taken over one by one, cleaned: images that cannot be decoded and empty captions go, and what its statistics
list as failed is counted by reason.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.decode.text import decode_json, decode_text
from data.prepare.annotations import read_json, with_fields
from data.prepare.containers import Blob, Container, Limits, open_container
from data.prepare.layout import Command, given_splits, reduction_arguments, reduction_of, split_arguments
from data.prepare.media import IMAGE_SUFFIXES, caption_members, checked_image
from data.prepare.source import Context, Failure, Item, PublicSet, ShardJob, SplitJobs, place_of
from data.prepare.tables import parquet, pyarrow_for
from data.shards import BadSample, DatasetError
from data.text.words import has_word

_KEPT_FIELDS = ("url", "similarity", "sha256", "width", "height")


def _arguments(command: argparse.ArgumentParser) -> None:
    split_arguments(command, ("FOLDER",))
    reduction_arguments(command, "image")


def img2dataset_source(arguments: argparse.Namespace, context: Context) -> PublicSet:
    reduction = reduction_of(arguments)
    shards: dict[str, list[WebShard]] = {}
    failures: dict[str, list[Failure]] = {}
    for split, (folder,) in given_splits(arguments).items():
        container = open_container(folder, context.limits, None)
        stems = [name.removesuffix(".tar") for name in container.blobs if name.endswith(".tar") and "/" not in name]
        if not stems:
            raise DatasetError(
                f"{folder}: no shard such as 00000.tar; give img2dataset's output (--output_format webdataset)"
            )
        shards[split] = [_shard(container, stem, context.limits, reduction.resize) for stem in stems]
        failures[split] = [Failure(name, reason) for name, reason in container.strange] + _without_tar(container)
    if context.val_fraction:
        _take_val(shards, failures, context.val_fraction)
    return PublicSet("image_caption", (), {split: _split(parts, failures[split]) for split, parts in shards.items()})


def _take_val(shards: dict[str, list[WebShard]], failures: dict[str, list[Failure]], fraction: float) -> None:
    """Whole shards, at least one: reading each twice for a few samples would cost too much."""
    if set(shards) != {"train"} or len(shards["train"]) < 2:
        raise DatasetError("--val-fraction takes shards of train for val: give --train alone, with two shards or more")
    count = min(max(1, round(len(shards["train"]) * fraction)), len(shards["train"]) - 1)
    held = set(sorted((shard.path.name for shard in shards["train"]), key=lambda name: place_of("val", name))[:count])
    shards["val"] = [shard for shard in shards["train"] if shard.path.name in held]
    shards["train"] = [shard for shard in shards["train"] if shard.path.name not in held]
    failures["val"] = []


def _split(shards: list[WebShard], failures: list[Failure]) -> SplitJobs:
    firsts = [0]
    for shard in shards:
        firsts.append(firsts[-1] + shard.expected)

    def jobs() -> Iterator[ShardJob]:
        return (ShardJob(shard, 0, shard.expected) for shard in shards)

    return SplitJobs(jobs, firsts[-1], tuple(failures))


def _shard(container: Container, stem: str, limits: Limits, resize: int | None) -> WebShard:
    """Raises DatasetError for statistics that cannot be read, and without pyarrow if there is a table."""
    table = f"{stem}.parquet" in container.blobs
    if table:
        pyarrow_for(container.path / f"{stem}.parquet")
    expected = 0
    if f"{stem}_stats.json" in container.blobs:
        path = container.path / f"{stem}_stats.json"
        expected = with_fields(path, "file", read_json(path, limits), {"count": int})["count"]
    return WebShard(container.path / f"{stem}.tar", table, limits, resize, expected)


def _without_tar(container: Container) -> list[Failure]:
    return [
        Failure(name, "a table without its tar: the download was not finished")
        for name in container.blobs
        if name.endswith(".parquet") and f"{name.removesuffix('.parquet')}.tar" not in container.blobs
    ]


@dataclasses.dataclass(frozen=True)
class WebShard:
    """One shard of img2dataset; in a worker.

    table     whether there is a table of what was downloaded
    expected  rows of it, by the statistics; 0 = unknown
    """

    path: Path
    table: bool
    limits: Limits
    resize: int | None
    expected: int

    def __call__(self) -> Iterator[Item | Failure]:
        try:
            container = open_container(self.path, self.limits, None)
            groups: dict[str, dict[str, Blob]] = {}
            for name, blob in container.blobs.items():
                key, _, extension = name.rpartition(".")
                groups.setdefault(key, {})[extension.lower()] = blob
            states = read_states(self.path.with_suffix(".parquet")) if self.table else None
        except DatasetError as error:
            # A shard that was cut off is left out, the others are not.
            yield Failure(self.path.name, str(error).replace(f"{self.path.parent}/{self.path.stem}.", ""))
            return
        if states is not None:
            for key, reason in states.items():
                if reason is not None:
                    yield Failure(f"{self.path.name} {key}", reason)
                elif key not in groups:
                    yield Failure(f"{self.path.name} {key}", "a success by its table, but not in the tar")
        for key, blobs in groups.items():
            name = f"{self.path.stem}/{key}"
            if states is not None and states.get(key, "") is not None:
                yield Failure(name, "in the tar, but not a success by its table")
                continue
            yield self._item(name, blobs)

    def _item(self, name: str, blobs: dict[str, Blob]) -> Item | Failure:
        extension = next((found for found in blobs if f".{found}" in IMAGE_SUFFIXES), None)
        if extension is None:
            return Failure(name, f"no image: {', '.join(sorted(blobs))}")
        try:
            facts = decode_json(blobs["json"].read(self.limits.member)) if "json" in blobs else {}
            caption = decode_text(blobs["txt"].read(self.limits.member)) if "txt" in blobs else facts.get("caption")
            if not isinstance(caption, str) or not has_word(caption):
                return Failure(name, "no caption")
            data, kept = checked_image(
                blobs[extension].read(self.limits.member), IMAGE_SUFFIXES[f".{extension}"], self.resize
            )
        except BadSample as error:
            return Failure.of(name, error)
        others: dict[str, Any] = {field: facts[field] for field in _KEPT_FIELDS if field in facts}
        return Item(name, {kept: data, **caption_members([caption.strip()], **others)}, (caption.strip(),))


def read_states(path: Path) -> dict[str, str | None]:
    """Key -> why it failed, None for a success, out of a shard's table. Raises DatasetError."""
    with parquet(path, ("key", "status", "error_message")) as file:
        columns = [name for name in ("key", "status", "error_message") if name in file.schema_arrow.names]
        if columns[:2] != ["key", "status"]:
            raise DatasetError(f"{path}: no columns key and status, found {', '.join(file.schema_arrow.names)[:300]}")
        rows = file.read(columns=columns).to_pylist()
    return {str(row["key"]): None if row["status"] == "success" else _reason(row) for row in rows}


def _reason(row: dict[str, Any]) -> str:
    return f"{row['status']}: {str(row.get('error_message') or '')[:120]}".removesuffix(": ")


LAYOUTS = (
    Command(
        "img2dataset",
        "CC3M, CC12M, SBU, YFCC and others, downloaded by img2dataset, to image_caption",
        "Folders of img2dataset's webdataset output: 00000.tar (KEY.jpg, KEY.txt, KEY.json), 00000.parquet (key, status, "
        "error_message) and 00000_stats.json. Failed rows are counted by reason; a shard of theirs becomes one of ours. "
        "--val-fraction takes whole shards.",
        "img2dataset --train cc3m --val-fraction 0.02 --out datasets/cc3m",
        _arguments,
        img2dataset_source,
    ),
)
