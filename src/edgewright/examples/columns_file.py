"""Columns of strings in a parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewright.errors import IntegrityError


def write_columns(path: Path, columns: dict[str, list[str]]) -> None:
    """Write columns of equal length: the same bytes for the same strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in columns])
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def column_names(path: Path) -> list[str]:
    """The columns there are; IntegrityError when the file cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(
            f"{path}: cannot be read: {error}; make the checkpoint anew"
        ) from error


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """The columns ``names``; IntegrityError when one is missing or holds anything but strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        columns = {name: table[name].to_pylist() for name in names}
    except (OSError, KeyError, UnicodeDecodeError, pa.ArrowException) as error:
        raise IntegrityError(
            f"{path}: cannot be read: {error}; make the checkpoint anew"
        ) from error
    if not all(isinstance(value, str) for column in columns.values() for value in column):
        raise IntegrityError(
            f"{path}: holds something other than strings; make the checkpoint anew"
        )
    return columns
