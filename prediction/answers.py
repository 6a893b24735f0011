"""Where the answers of predict.py go: lines for people, JSON lines, or a parquet table."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.prepare.tables import pyarrow_for
from data.shards.files import check_replaceable, replacing
from run.errors import OutputError
from run.streams import print_result

ROWS = 1024
"""Of a table that wait as Python objects."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    """A binary file that takes its name once it is whole. Raises OutputError."""
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error


def check_place(path: Path) -> None:
    """Raises OutputError for a file that could not be written: better now than after hours of work."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file")
    try:
        check_replaceable(path)
    except OSError as error:
        raise OutputError(f"{path} {error.strerror}") from error
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}: make it")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OutputError(f"{path}: the folder {path.parent} cannot be written to: name another")


class Answers:
    """Takes the answers of a command as they come. table: the parquet file that they go to in place of standard output, whole at the end.
    Raises OutputError, and DatasetError where pyarrow is missing."""

    def __init__(self, command: str, as_json: bool, table: Path | None) -> None:
        self._as_json, self.table, self._rows = as_json, table, list[dict[str, Any]]()
        if table:
            check_place(table)
            self._arrow = pyarrow_for(table, "writing")
            self._schema = _schemas(self._arrow)[command]
            self._parts: list[Any] = []

    def put(self, record: dict[str, Any], text: str) -> None:
        """An answer for programs and for people."""
        if not self.table:
            print_result(json.dumps(record, ensure_ascii=False) if self._as_json else text)
            return
        self._rows.append(record)
        if len(self._rows) == ROWS:
            self._pack()

    def close(self) -> None:
        """Writes the table."""
        if not self.table:
            return
        self._pack()
        with writing(self.table) as file:
            whole = self._arrow.Table.from_batches(self._parts, self._schema)
            self._arrow.parquet.write_table(whole, file)
        print_result(f"{self.table}: {len(whole):,} rows")

    def _pack(self) -> None:
        """Rows to columns, a tenth of the memory."""
        self._parts.append(self._arrow.RecordBatch.from_pylist(self._rows, self._schema))
        self._rows = []


def _schemas(arrow: Any) -> dict[str, Any]:
    """The columns of each command's table, named as in its JSON lines."""
    text, number = arrow.string(), arrow.float64()

    def found(name: str, value: str) -> Any:
        return arrow.list_(arrow.struct([(name, text), (value, number)]))

    return {
        "classify": arrow.schema([("file", text), ("classes", found("class", "probability"))]),
        "answer": arrow.schema([("file", text), ("question", text), ("answers", found("answer", "probability"))]),
        "caption": arrow.schema([("file", text), ("caption", text)]),
        "embed": arrow.schema([("file", text), ("vector", arrow.list_(arrow.float32()))]),
        "retrieve": arrow.schema([("query", text), ("files", found("file", "similarity"))]),
        "fill": arrow.schema([("text", text), ("gaps", arrow.list_(found("word", "probability")))]),
    }
