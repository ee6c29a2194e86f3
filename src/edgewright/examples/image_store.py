"""The images of a checkpoint: encoded files as they were read, in the rows of a parquet file.

A row group holds about a megabyte of them, so that one image is read without the others and memory
stays bounded however many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import DataError, IntegrityError
from edgewright.examples.identity import image_id
from edgewright.tables.image_folder import Image

COLUMN: Final = "image"
_GROUP_BYTES: Final = 1 << 20


def write_images(
    path: Path, ids: Sequence[str], images: Sequence[Image], labels: Sequence[str]
) -> None:
    """Write the columns id, image, name and label: the same bytes for the same images.

    Raises:
        DataError: a file is gone or has changed since its id was taken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field(COLUMN, pa.binary(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
        ]
    )
    # Encoded images do not shrink any further, and statistics of them are of no use.
    with pq.ParquetWriter(
        path, schema, compression="none", use_dictionary=["label"], write_statistics=False
    ) as writer:
        for rows in _groups(ids, images, labels):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _groups(
    ids: Sequence[str], images: Sequence[Image], labels: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    for key, image, label in zip(ids, images, labels, strict=True):
        data = image.read()
        if image_id(data) != key:
            raise DataError(f"{image.name}: has changed while the run was reading it; run again")
        rows.append({"id": key, COLUMN: data, "name": image.name, "label": label})
        size += len(data)
        if size >= _GROUP_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


class ImageStore:
    """Reads images out of such a file by row; the row group read last is kept."""

    def __init__(self, path: Path) -> None:
        """Raise IntegrityError when it is no such file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self._lock = threading.Lock()  # a parquet file is read by one thread at a time
        self._kept: tuple[int, Any] = (-1, None)
        try:
            self._file = pq.ParquetFile(path)
            self.columns = self._file.read(columns=["id", "name", "label"]).to_pydict()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(error) from error
        metadata = self._file.metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts: NDArray[np.int64] = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)

    def images(self) -> list[StoredImage]:
        """Every image, in order."""
        return [StoredImage(self, row, name) for row, name in enumerate(self.columns["name"])]

    def check_ids(self) -> None:
        """IntegrityError where an image is not the one of its id."""
        for row, key in enumerate(self.columns["id"]):
            if image_id(self.read(row)) != key:
                raise IntegrityError(
                    f"{self.path}: an id is not that of its image; make the checkpoint anew"
                )

    def read(self, row: int) -> bytes:
        """The encoded image of a row."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            if self._kept[0] != group:
                self._kept = (group, self._read_group(group))
            data: bytes = self._kept[1][row - int(self._starts[group])].as_py()
        return data

    def _read_group(self, group: int) -> Any:
        import pyarrow as pa

        try:
            return self._file.read_row_group(group, columns=[COLUMN])[COLUMN]
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> IntegrityError:
        return IntegrityError(f"{self.path}: cannot be read: {error}; make the checkpoint anew")


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in a store."""

    store: ImageStore
    row: int
    name: str

    def read(self) -> bytes:
        """The encoded file."""
        return self.store.read(self.row)
