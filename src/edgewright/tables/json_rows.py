"""jsonl (ndjson) files, one object a line, and .json files that hold one array of objects."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgewright.errors import DataError
from edgewright.tables.columns import Cells, Columns, FoundColumns, find_columns
from edgewright.tables.text_lines import TextLines


def read_jsonl(path: Path, columns: Columns) -> Cells:
    """Read one object a line, blank lines skipped; the first object's keys are the columns.

    Raises DataError naming row, line and column of the first line that is not such an object.
    """
    found: FoundColumns | None = None
    texts: list[object] = []
    labels: list[object] = []
    splits: list[object] = []
    starts = array("Q")
    with TextLines(path) as lines:
        for record in _records(lines):
            if found is None:
                found = find_columns(list(record), columns, f"{path}: row 1 (line {lines.number})")
            texts.append(record.get(found.text))
            if found.label is not None:
                labels.append(record.get(found.label))
            if found.split is not None:
                splits.append(record.get(found.split))
            starts.append(lines.number)
    if found is None:
        raise DataError(f"{path}: holds no rows, only blank lines")
    return Cells(found, texts, labels, splits if found.split else None, typed=True, lines=starts)


def read_json(path: Path, columns: Columns) -> Cells:
    """Read a .json file: an array of objects, or else lines as in jsonl."""
    with TextLines(path) as lines:
        first = next((line.lstrip() for line in lines if line.strip()), "")
    if not first.startswith("["):
        return read_jsonl(path, columns)
    with TextLines(path) as lines:
        records = _array("".join(lines), path)
    found = find_columns(list(records[0]), columns, f"{path}: row 1")
    texts = [record.get(found.text) for record in records]
    labels = [record.get(found.label) for record in records] if found.label else []
    splits = [record.get(found.split) for record in records] if found.split else None
    return Cells(found, texts, labels, splits, typed=True)


def _records(lines: TextLines) -> Iterator[dict[str, Any]]:
    lines.row = 1
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            lines.refuse(
                f"is not JSON: {error.msg} at column {error.colno}",
                'Each line must be one object, such as {"text": "...", "label": "..."}',
            )
        except (ValueError, RecursionError) as error:
            lines.refuse(f"is not usable JSON: {error}", "Correct or remove this line")
        if not isinstance(record, dict):
            lines.refuse(
                f"is {json_kind(record)}, expected an object",
                'Each line must be one object, such as {"text": "...", "label": "..."}',
            )
        yield record
        lines.row += 1


def _array(content: str, path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}: is not JSON: {error.msg} at column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not usable JSON: {error}") from error
    if not records:
        raise DataError(f"{path}: holds an empty array, expected rows of text and label")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(
                f"{path}: row {number}: is {json_kind(record)}, expected an object such as "
                '{"text": "...", "label": "..."}'
            )
    return list(records)


def json_kind(value: object) -> str:
    """What a value read from JSON is, with its article, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else f"a {type(value).__name__}"
