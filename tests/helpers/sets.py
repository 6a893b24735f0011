"""Tiny data sets of a test's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.shards import DatasetInfo, SplitInfo, write_info
from data.shards.writing import write_shards


def write_classes(folder: Path, kind: str, samples: Sequence[dict[str, Any]]) -> None:
    """A split `val` with the classes red and blue."""
    write_shards(folder, "val", iter([{"__key__": f"{n}"} | sample for n, sample in enumerate(samples)]))
    splits = {"val": SplitInfo(len(samples), 1)}
    write_info(
        folder,
        DatasetInfo(kind=kind, classes=("red", "blue"), token_ids=(736, 1746, 49407), splits=splits),  # type: ignore[arg-type]
    )
