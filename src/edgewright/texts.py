"""Texts to classify, from a file or a pipe, each with the place it came from.

The standard library reads them: the environment of a client holds no table library.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgewright.errors import DataError
from edgewright.tables.columns import TEXT_NAMES
from edgewright.tables.text_lines import TextLines


@dataclass(frozen=True)
class Text:
    """One text, and where it stands in the words of someone looking at the file."""

    content: str
    place: str


def read_texts(path: Path, column: str | None) -> list[Text]:
    """Every text of a csv, tsv, jsonl or txt file (one text a line), in order.

    Args:
        path: the file; its ending says what it is.
        column: the column that holds the text; None: the only one, or the one with a usual name.

    Raises:
        DataError: names file, row, line and column of the first fault.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"{path}: the ending {path.suffix!r} is not known; give one of {', '.join(_READERS)}"
        )
    texts = list(read(path, column))
    if not texts:
        raise DataError(f"{path}: holds no rows; give at least one text")
    return texts


def split_lines(data: bytes, source: str) -> list[Text]:
    """One text a line of a pipe's UTF-8 bytes.

    Raises:
        DataError: names the line that is empty or not UTF-8.
    """
    texts = []
    for number, raw in enumerate(data.splitlines(), 1):
        place = f"{source}: line {number}"
        try:
            texts.append(_checked(raw.decode(), place))
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: is not UTF-8 at byte {error.start}; convert it") from error
    if not texts:
        raise DataError(f"{source}: is empty; give at least one line of text")
    return texts


def _read_delimited(path: Path, column: str | None, delimiter: str) -> Iterator[Text]:
    lines = TextLines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        with _long_fields():
            header = next(reader, [])
            at = header.index(_column(header, column, path))
            for number, row in enumerate(filter(None, reader), 1):
                place = f"{path}: row {number} (line {lines.number})"
                if len(row) != len(header):
                    raise DataError(
                        f"{place}: has {len(row)} fields where the header names {len(header)} "
                        "columns; put a field that holds the separator in double quotes"
                    )
                yield _checked(row[at], f"{place}, column {header[at]!r}")
    except csv.Error as error:
        raise DataError(
            f"{path}: line {lines.number}: quoting is broken ({error}); put the whole field in "
            "double quotes and double each quote within"
        ) from error


def _read_csv(path: Path, column: str | None) -> Iterator[Text]:
    return _read_delimited(path, column, ",")


def _read_tsv(path: Path, column: str | None) -> Iterator[Text]:
    return _read_delimited(path, column, "\t")


def _read_jsonl(path: Path, column: str | None) -> Iterator[Text]:
    lines = TextLines(path)
    name = column
    number = 0
    for line in lines:
        if not line.strip():
            continue
        number += 1
        place = f"{path}: row {number} (line {lines.number})"
        record = _record(line, place)
        if number == 1:
            name = _column(list(record), column, path)
        yield _checked(record.get(name or ""), f"{place}, column {name!r}")


def _read_lines(path: Path, column: str | None) -> Iterator[Text]:
    if column is not None:
        raise DataError(f"{path}: a txt file has no columns; leave --text-column out")
    lines = TextLines(path)
    for line in lines:
        yield _checked(line.rstrip("\r\n"), f"{path}: line {lines.number}")


_READERS: Final[Mapping[str, Callable[[Path, str | None], Iterator[Text]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".txt": _read_lines,
}


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not JSON: {error}; correct or remove this line") from error
    if not isinstance(record, dict):
        raise DataError(f'{place}: expected an object, such as {{"text": "..."}}')
    return record


def _column(names: Sequence[str], wanted: str | None, path: Path) -> str:
    if wanted is not None:
        fitting = [name for name in names if name == wanted]
    elif len(names) == 1:
        fitting = list(names)
    else:
        fitting = [name for name in names if name.strip().casefold() in TEXT_NAMES]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(map(repr, names)) or "none"
    if wanted is not None:
        fault = f"{len(fitting) or 'no'} columns are named {wanted!r} (--text-column)"
    else:
        fault = f"{len(fitting) or 'no'} columns could hold the text; say --text-column NAME"
    raise DataError(f"{path}: {fault}. Its columns are {shown}")


def _checked(content: object, place: str) -> Text:
    if not isinstance(content, str):
        raise DataError(f"{place}: {json.dumps(content)[:60]} is no text; a string is expected")
    if not content.strip():
        raise DataError(f"{place}: is empty; give it a text or leave it out")
    return Text(content, place)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be of any length; csv's limit (128 KiB) is one number for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
