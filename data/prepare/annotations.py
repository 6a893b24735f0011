"""Files of captions, labels and lists: text, JSON, JSON lines, tables. Untrusted: sizes are limited, errors name the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data.prepare.containers import Limits, name_fault
from data.shards import DatasetError
from data.transport import NotText, TextReader, text_of

MAX_LINE_BYTES = 1 << 20
BLOCK_BYTES = 1 << 20
QUOTES = 'a cell with quotation marks or the sign between columns stands in quotation marks, and those in it are doubled ("")'


def text_lines(path: Path, max_bytes: int) -> Iterator[str]:
    """Lines of a text file, plain or gzipped, without their ends. Raises DatasetError."""
    return (line.removesuffix("\n") for line in text_rows(path, max_bytes))


def text_rows(path: Path, max_bytes: int) -> Iterator[str]:
    """The same with their ends, for a reader of tables: a cell may go over lines. Raises DatasetError."""
    reader, newlines = TextReader(str(path)), io.IncrementalNewlineDecoder(None, translate=True)
    number, total, rest = 0, 0, ""
    try:
        with _open(path) as file:
            while True:
                block = file.read(BLOCK_BYTES)
                total += len(block)
                if total > max_bytes:
                    raise DatasetError(f"{path}: more than {max_bytes} bytes")
                text = newlines.decode(reader.read(block, final=not block), final=not block)
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    number += 1
                    yield _checked(path, number, line) + "\n"
                _checked(path, number + 1, rest)
                if not block:
                    break
        if rest:
            yield rest
    except NotText as error:
        raise DatasetError(str(error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read after line {number} ({error})") from error


def _checked(path: Path, number: int, line: str) -> str:
    # A character has up to four bytes.
    if 4 * len(line) > MAX_LINE_BYTES and len(line.encode()) > MAX_LINE_BYTES:
        raise DatasetError(f"{path}: line {number} has more than {MAX_LINE_BYTES} bytes")
    return line


def records(path: Path, limits: Limits, fields: dict[str, type]) -> Iterator[dict[str, Any]]:
    """Objects of a JSON lines file that have the fields. Raises DatasetError with the line's number."""
    for number, line in enumerate(text_lines(path, limits.annotations), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path}: line {number}: {error}") from error
        yield with_fields(path, f"line {number}", record, fields)


def with_fields(path: Path, place: str, record: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """The record, if it is an object with these fields of these types. Raises DatasetError."""
    for field, kind in fields.items():
        if not isinstance(record, dict) or not isinstance(record.get(field), kind):
            wanted = f'"{field}" ({" or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))})'
            raise DatasetError(f"{path}: {place}: needs {wanted}, found {str(record)[:80]!r}")
    return record


def read_json(path: Path, limits: Limits) -> Any:
    """Raises DatasetError."""
    data = bytearray()
    try:
        with _open(path) as file:
            while block := file.read(1 << 20):
                data += block
                if len(data) > limits.annotations:
                    raise DatasetError(f"{path}: more than {limits.annotations} bytes")
        return json.loads(text_of(data, str(path)))
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    except NotText as error:
        raise DatasetError(str(error)) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: no JSON ({error})") from error


def json_list(path: Path, content: Any, key: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of list `key` of a JSON object, each with the fields. Raises DatasetError."""
    values = with_fields(path, "file", content, {key: list})[key]
    return [with_fields(path, f"{key}[{number}]", value, fields) for number, value in enumerate(values)]


def rows(path: Path, limits: Limits, width: int) -> Iterator[list[str]]:
    """Rows of a CSV file without column names, of at least `width` columns. Raises DatasetError with the line's number."""
    for number, row in csv_rows(path, limits):
        if len(row) < width:
            raise DatasetError(f"{path}: line {number}: {len(row)} columns, need {width}")
        yield row


def csv_rows(path: Path, limits: Limits, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the rows that are not empty. Raises DatasetError."""
    # strict: a quotation mark that is not closed would take all lines behind it for one cell.
    reader = csv.reader(text_rows(path, limits.annotations), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DatasetError(f"{path}: line {reader.line_num}: {error}: {QUOTES}") from error


def name_list(path: Path, limits: Limits) -> list[str]:
    """Names of files, one per line; what follows a space or tab is left out. Raises DatasetError."""
    names = [line.split()[0] for line in text_lines(path, limits.annotations) if line.strip()]
    for name in names:
        check_name(path, name)
    return names


def check_name(path: Path, name: str) -> str:
    """A name of a file in an annotation file. Raises DatasetError if it leads out of its folder."""
    if fault := name_fault(name):
        raise DatasetError(f"{path}: {name[:80]!r} {fault} of the folder; refused")
    return name


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
