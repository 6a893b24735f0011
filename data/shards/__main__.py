"""Make the index of every shard and the list of every split of a local folder: for shards that other tools wrote.

    python -m data.shards datasets/foreign              # train-000000.tar ... -> train.shards.json, train-000000.tar.index.json
    python -m data.shards datasets/foreign --split val

Shards of other names, such as img2dataset's 00000.tar, get their indexes and the line of a configuration that reads them.
Training does the same by itself when it opens such a folder, and then keeps the list; made beforehand, with indexes, no run waits for it.
Indexes that fit are kept. Exit codes: 0 done, 1 done, but shards are damaged (one line each), 2 nothing to do or not writable.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from data.shards.errors import DatasetError
from data.shards.files import check_split, index_path, is_split, replacing
from data.shards.lists import COUNTING_THREADS, ShardList, count_shards, write_shard_list
from data.shards.lock import only_writer
from data.shards.printing import print_any_name
from data.shards.ranges import index_of, parse_index, scan
from data.transport import literal


def main(argv: list[str] | None = None) -> int:
    print_any_name()
    parser = argparse.ArgumentParser(
        prog="python -m data.shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", help="only SPLIT-*.tar (default: every split that the folder has)")
    arguments = parser.parse_args(argv)
    try:
        with only_writer(arguments.folder) if arguments.folder.is_dir() else contextlib.nullcontext():
            splits = [arguments.split] if arguments.split else _splits(arguments.folder)
            damaged = sum([_index_split(arguments.folder, split) for split in splits])
            if not arguments.split:
                damaged += _index_others(arguments.folder, splits)
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if damaged else 0


def _splits(folder: Path) -> list[str]:
    return sorted(filter(is_split, {path.name.rsplit("-", 1)[0] for path in folder.glob("*-*.tar")}))


def _index_split(folder: Path, split: str) -> int:
    """Returns the number of damaged shards."""
    check_split(split)
    made = _index_all(folder, split, sorted(folder.glob(f"{split}-*.tar")))
    shards = write_shard_list(folder, split)
    return _report(f"{folder}: {split}", shards, made)


def _index_others(folder: Path, splits: list[str]) -> int:
    """Shards that belong to no split by their names. Returns the number of damaged ones. Raises DatasetError if the folder has no shard."""
    paths = sorted(path for path in folder.glob("*.tar") if path.name.rsplit("-", 1)[0] not in splits)
    if not paths and splits:
        return 0
    if not paths:
        raise DatasetError(f"{folder}: no shards (*.tar)" if folder.is_dir() else f"{folder}: no such folder")
    made = _index_all(folder, "shards", paths)
    damaged = _report(f"{folder}: shards of no split", count_shards([str(path) for path in paths], None), made)
    print(
        f"  to train on them, with a `path` that has dataset.json of their kind: shards: {json.dumps([names_of(paths)])}"
    )
    print(
        f"  a data set of its own from img2dataset's: python -m data.prepare img2dataset --train {shlex.quote(str(folder))} --out DIR"
    )
    return damaged


def names_of(paths: Sequence[Path]) -> str:
    """What `shards` of a configuration says for all *.tar of a folder: by their first and last number where none is missing."""
    folder = literal(str(paths[0].parent.absolute()))
    numbers = [path.stem for path in paths]
    width = len(numbers[0])
    alike = all(re.fullmatch(rf"[0-9]{{{width}}}", number) for number in numbers)
    if len(paths) > 1 and alike and int(numbers[-1]) - int(numbers[0]) == len(paths) - 1:
        return f"{folder}/{{{numbers[0]}..{numbers[-1]}}}.tar"
    return f"{folder}/*.tar"


def _report(place: str, shards: ShardList, made: int) -> int:
    """Returns the number of damaged shards."""
    print(f"{place}: {len(shards.names)} shards, {int(shards.samples.sum())} samples, {made} indexes made")
    for number, fault in shards.faults.items():
        print(f"  {shards.names[number].rpartition('/')[2]}: {fault}")
    return len(shards.faults)


def _index_all(folder: Path, name: str, paths: Sequence[Path]) -> int:
    """Returns the number of indexes that had to be made."""
    with (
        tqdm(total=len(paths), desc=f"{folder.name} {name}", unit=" shards", disable=None) as bar,
        ThreadPoolExecutor(COUNTING_THREADS) as pool,
    ):
        return sum(pool.map(lambda path: _index(path, bar.update), paths))


def _index(path: Path, progress: Callable[[int], object]) -> bool:
    """Whether an index had to be made."""
    try:
        parse_index(index_path(path).read_bytes(), path.stat().st_size)
        made = False
    except (OSError, ValueError):
        places, fault = scan(path)
        with replacing(index_path(path)) as file:
            file.write(index_of(places, path.stat().st_size, fault))
        made = True
    progress(1)
    return made


if __name__ == "__main__":
    sys.exit(main())
