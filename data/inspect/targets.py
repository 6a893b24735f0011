"""What the command line names: data set folders, and bare shards by path, glob or braces."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from data.shards import DatasetError, DatasetInfo, ShardSet, is_complete, read_info
from data.transport import FetchError, expand_braces, literal, local_files


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One tar. folder: the data set that it belongs to, None for shards of other makers, which have no splits."""

    path: Path
    split: str = ""
    folder: Path | None = None

    @property
    def info(self) -> DatasetInfo | None:
        return _info(self.folder) if self.folder else None


@dataclasses.dataclass(frozen=True)
class Target:
    """One argument. info: None for bare shards."""

    name: str
    info: DatasetInfo | None
    shards: tuple[ShardFile, ...]

    @property
    def splits(self) -> dict[str, tuple[ShardFile, ...]]:
        """Shards by split, those of dataset.json first, even where none is there."""
        names = dict.fromkeys(self.info.splits if self.info else (), ()) | {shard.split: () for shard in self.shards}
        return {name: tuple(shard for shard in self.shards if shard.split == name) for name in names}


def find(name: str, split: str | None = None) -> Target:
    """The shards that `name` means, of one split or of all. Raises DatasetError."""
    folder = Path(name)
    if not folder.is_dir():
        if split:
            raise DatasetError(f"{name}: --split {split} needs a data set folder; bare shards have no splits")
        return Target(name, None, tuple(ShardFile(path) for path in _bare(name)))
    if not is_complete(folder) and any(folder.glob("*.tar")):
        raise DatasetError(
            f"{folder} has shards and no dataset.json: an unfinished data set; for shards of other makers give "
            f"'{literal(str(folder))}/*.tar'"
        )
    info = read_info(folder)
    # As ShardSet.open finds them.
    present = [ShardFile(path, path.name.rsplit("-", 1)[0], folder) for path in sorted(folder.glob("*-*.tar"))]
    if split is None:
        return Target(name, info, tuple(present))
    if split not in info.splits and split not in {shard.split for shard in present}:
        raise DatasetError(f"{folder} has no split {split}; found: {', '.join(info.splits)}")
    info = dataclasses.replace(info, splits={key: value for key, value in info.splits.items() if key == split})
    return Target(name, info, tuple(shard for shard in present if shard.split == split))


def open_shard(shard: ShardFile) -> ShardSet:
    """A set of the one shard, read as training reads it. Raises DatasetError if there is no sample in it."""
    return ShardSet.from_urls([literal(str(shard.path.absolute()))])


def _bare(pattern: str) -> Iterator[Path]:
    for name in _names(pattern):
        paths = [Path(path) for path in local_files(name) if Path(path).is_file()]
        if not paths:
            raise DatasetError(f"{name}: no such folder or shard")
        yield from paths


def _names(pattern: str) -> list[str]:
    if Path(pattern).exists():
        return [pattern]
    try:
        return list(expand_braces(pattern))
    except FetchError as error:
        raise DatasetError(str(error)) from error


@functools.lru_cache(maxsize=16)
def _info(folder: Path) -> DatasetInfo:
    return read_info(folder)
