"""Make the index of every shard and the list of every split of a local folder: for shards that other tools wrote.

    python -m data.shards datasets/foreign              # train-000000.tar ... -> train.shards.json, train-000000.tar.index.json
    python -m data.shards datasets/foreign --split val

Training does the same by itself when it opens such a folder, and then keeps the list; made beforehand, with indexes, no run waits for it.
Indexes that fit are kept. Exit codes: 0 done, 1 done, but shards are damaged (one line each), 2 nothing to do or not writable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from data.shards.errors import DatasetError
from data.shards.files import check_split, index_path, replacing
from data.shards.lists import COUNTING_THREADS, write_shard_list
from data.shards.ranges import index_of, parse_index, scan


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", help="only SPLIT-*.tar (default: every split that the folder has)")
    arguments = parser.parse_args(argv)
    try:
        splits = [arguments.split] if arguments.split else _splits(arguments.folder)
        damaged = sum([_index_split(arguments.folder, split) for split in splits])
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if damaged else 0


def _splits(folder: Path) -> list[str]:
    splits = sorted({path.name.rsplit("-", 1)[0] for path in folder.glob("*-*.tar")})
    if not splits:
        raise DatasetError(
            f"{folder} has no shard SPLIT-NUMBER.tar; name others by TaskConfig.shards in a run's configuration"
        )
    return splits


def _index_split(folder: Path, split: str) -> int:
    """Returns the number of damaged shards."""
    check_split(split)
    paths = sorted(folder.glob(f"{split}-*.tar"))
    with (
        tqdm(total=len(paths), desc=f"{folder.name} {split}", unit=" shards", disable=None) as bar,
        ThreadPoolExecutor(COUNTING_THREADS) as pool,
    ):
        made = sum(pool.map(lambda path: _index(path, bar.update), paths))
    shards = write_shard_list(folder, split)
    print(f"{folder}: {split}: {len(paths)} shards, {int(shards.samples.sum())} samples, {made} indexes made")
    for number, fault in shards.faults.items():
        print(f"  {shards.names[number]}: {fault}")
    return len(shards.faults)


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
