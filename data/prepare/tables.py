"""Tables with a line of column names: CSV, TSV (both also .gz), parquet. Untrusted: sizes are limited, errors name the line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.prepare.annotations import csv_rows
from data.prepare.containers import Limits
from data.shards import DatasetError

MAX_PARQUET_BYTES = 1 << 30
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def columns_of(path: Path, limits: Limits) -> tuple[str, ...]:
    """The names of the columns. Raises DatasetError."""
    if path.suffix == ".parquet":
        with parquet(path) as file:
            return tuple(file.schema_arrow.names)
    names = tuple(name.strip() for name in next(_rows(path, limits), (0, []))[1])
    if not any(names):
        raise DatasetError(f"{path}: the first line has no names of columns")
    if len(names) == 1 and path.name.removesuffix(".gz").endswith(".csv") and ("\t" in names[0] or ";" in names[0]):
        raise DatasetError(f"{path}: one column {names[0][:80]!r}: save it with commas, or with tabs as .tsv")
    return names


def table(path: Path, limits: Limits, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its place for messages, cells of these columns by name) of every row. Raises DatasetError with the line's number.

    Cells of text tables are texts; those of parquet are as they are, None where there is none.
    """
    names = columns_of(path, limits)
    missing = [name for name in columns if name not in names]
    if missing:
        raise DatasetError(f"{path}: no column {missing[0]!r}, found {', '.join(names)[:300]}")
    twice = next((name for name in columns if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}: two columns have the name {twice!r}: rename one")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    rows = _rows(path, limits)
    next(rows)
    for number, row in rows:
        if len(row) != len(names):
            raise DatasetError(
                f"{path}: line {number}: {len(row)} columns, the first line has {len(names)}: cells that hold the sign between "
                "columns must stand in quotation marks"
            )
        cells = dict(zip(names, row, strict=True))
        yield f"line {number}", {name: cells[name] for name in columns}


def _rows(path: Path, limits: Limits) -> Iterator[tuple[int, list[str]]]:
    return csv_rows(path, limits, "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ",")


def check_suffix(path: Path) -> None:
    """Raises DatasetError for what is no table by its name."""
    if not path.name.endswith(SUFFIXES):
        raise DatasetError(f"{path}: a table is one of {', '.join(SUFFIXES)}")


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with parquet(path, columns) as file:
        number = 0
        for batch in file.iter_batches(columns=list(columns)):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


@contextlib.contextmanager
def parquet(path: Path, columns: Sequence[str] = ()) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile of which these columns are not too large. Raises DatasetError."""
    pyarrow = pyarrow_for(path)
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=False) as file:
            size = 0
            for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
                parts = map(group.column, range(group.num_columns))
                size += sum(c.total_uncompressed_size for c in parts if c.path_in_schema.split(".")[0] in columns)
            if size > MAX_PARQUET_BYTES:
                raise DatasetError(f"{path}: {size} bytes unpacked, more than the limit of {MAX_PARQUET_BYTES}")
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: cannot be read ({str(error)[:200]})") from error


def pyarrow_for(path: Path, doing: str = "reading") -> Any:
    """pyarrow with its parquet, which nothing but such tables needs. Raises DatasetError."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(f"{path}: {doing} it needs pyarrow: EXTRAS=prepare scripts/setup.sh installs it") from error
    return pyarrow
