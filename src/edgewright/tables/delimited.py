"""csv and tsv files, every cell a string: "001" stays "001", and "NA" is a word like another.

csv is read strictly by RFC 4180 with Python's own reader, which is as fast here as pyarrow's and
knows which line each row starts on. tsv has two dialects in the wild. Where every line has as many
tabs as the header, a line is a row and quotes count only around a whole field (so a review that
begins with a quotation mark cannot swallow the rows after it); otherwise quoting is as in csv.
"""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewright.errors import DataError
from edgewright.tables.columns import Cells, Columns, find_columns
from edgewright.tables.text_lines import TextLines


def read_csv(path: Path, columns: Columns) -> Cells:
    """Read a csv file; raises DataError naming row, line and column of the first fault."""
    with TextLines(path) as lines:
        return _read(lines, _quoted_rows(lines, ","), columns)


def read_tsv(path: Path, columns: Columns) -> Cells:
    """Read a tsv file; raises DataError naming row, line and column of the first fault."""
    by_line = _every_line_is_a_row(path)
    with TextLines(path) as lines:
        return _read(lines, _line_rows(lines) if by_line else _quoted_rows(lines, "\t"), columns)


def _read(lines: TextLines, rows: Iterator[tuple[int, list[str]]], columns: Columns) -> Cells:
    with _long_fields():
        _, header = next(rows, (0, []))
        if not any(name.strip() for name in header):
            raise DataError(f"{lines.path}: the first line must name the columns, and it is blank")
        found = find_columns(header, columns, str(lines.path))
        text_at = header.index(found.text)
        label_at = None if found.label is None else header.index(found.label)
        split_at = None if found.split is None else header.index(found.split)
        texts: list[str] = []
        labels: list[str] = []
        splits: list[str] = []
        starts = array("Q")
        lines.row = 1
        for start, row in rows:
            if len(row) != len(header):
                _refuse_ragged(lines, start, row, header)
            texts.append(row[text_at])
            if label_at is not None:
                labels.append(row[label_at])
            if split_at is not None:
                splits.append(row[split_at])
            starts.append(start)
            lines.row += 1
    return Cells(
        found, texts, labels, None if split_at is None else splits, typed=False, lines=starts
    )


def _quoted_rows(lines: TextLines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line it starts on, fields) of every row that is not blank, header first."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.number + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            span = f"begins on line {start}, " if start != lines.number else ""
            lines.refuse(
                f"{span}quoting is broken ({error})",
                'Put the whole field in double quotes and double each quote within: "say ""hi"""',
            )
        if row is None:
            return
        if row:
            yield start, row


def _line_rows(lines: TextLines) -> Iterator[tuple[int, list[str]]]:
    for line in lines:
        content = line.rstrip("\r\n")
        if content:
            yield lines.number, [_unquoted(field) for field in content.split("\t")]


def _unquoted(field: str) -> str:
    """``field`` without the quotes a spreadsheet puts around it; any other quotes are its own."""
    if len(field) < 2 or not field.startswith('"') or not field.endswith('"'):
        return field
    inner = field[1:-1]
    return inner.replace('""', '"') if '"' not in inner.replace('""', "") else field


def _every_line_is_a_row(path: Path) -> bool:
    with TextLines(path) as lines:
        try:
            contents = (content for line in lines if (content := line.rstrip("\r\n")))
            tabs = next(contents, "").count("\t")
            return all(content.count("\t") == tabs for content in contents)
        except DataError:
            return True  # a bad byte: reading the rows comes upon it again, and knows the row


def _refuse_ragged(lines: TextLines, start: int, row: list[str], header: list[str]) -> None:
    raise DataError(
        f"{lines.path}: row {lines.row} (line {start}): has {len(row)} fields where the header "
        f"names {len(header)} columns. Put a field that holds the separator in double quotes"
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field be of any length; csv's limit (128 KiB) is one number for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
