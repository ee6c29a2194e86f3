"""A table of labelled texts or images, read from a file, a folder or the hub, and checked.

A row without a text or a label, or with one of the wrong type, is refused by its number: no row
is skipped in silence. A text of white space alone counts as empty.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from edgewright.errors import DataError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.tables.arrow import (
    names_labelled_images,
    read_dataset_folder,
    read_hub_dataset,
    read_parquet,
)
from edgewright.tables.columns import SPLIT_ALIASES, SPLITS, Cells, Columns
from edgewright.tables.delimited import read_csv, read_tsv
from edgewright.tables.image_folder import (
    IMAGE_TABLE,
    Image,
    ImageFile,
    has_loose_images,
    is_image_folder,
    read_image_folder,
    read_loose_images,
)
from edgewright.tables.json_rows import json_kind, read_json, read_jsonl

_READERS: Final[dict[str, Callable[[Path, Columns], Cells]]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
TABLE_ENDINGS: Final = tuple(_READERS)
_FAULTS_SHOWN: Final = 5
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_MANY_LABELS: Final = 20  # distinct ones, in a column of floats: rather measured than classes
_NO_REGRESSION: Final = "regression is not supported, only classes"
_NO_MULTI_LABEL: Final = "multi-label classification is not supported, give one label"
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Table:
    """Labelled texts or images as read, before ids and splits: one entry a row in each list.

    ``contents`` are texts as in the file, or the image files; ``labels`` are stripped of white
    space at both ends, and there are none where ``label_column`` is None, which
    ``Columns.label_optional`` allows; ``splits``, where the table gives any, are names of
    ``SPLITS`` or None.
    """

    contents: list[str] | list[Image]
    labels: list[str]
    splits: list[str | None] | None
    source: str
    text_column: str
    label_column: str | None
    places: Callable[[int], str] = field(
        default=lambda index: f"row {index + 1}", repr=False, compare=False
    )
    notes: tuple[str, ...] = ()
    kind: Kind = TEXT

    @property
    def texts(self) -> list[str]:
        """The texts; DataError where the table holds images."""
        return only_texts(self.contents, self.kind, self.source)

    def rows(self, indices: Sequence[int], note: str) -> Table:
        """The rows of these numbers (0-based), in their order and at their places, and a note."""
        contents: list[Any] = [self.contents[row] for row in indices]
        return replace(
            self,
            contents=contents,
            labels=[self.labels[row] for row in indices] if self.labels else [],
            splits=None if self.splits is None else [self.splits[row] for row in indices],
            places=lambda index: self.places(indices[index]),
            notes=(*self.notes, note),
        )

    def place(self, index: int) -> str:
        """Source, row and (where known) line of row ``index`` (0-based), for messages."""
        return f"{self.source}: {self.places(index)}"

    def __len__(self) -> int:
        return len(self.contents)


def read_table(
    source: str | Path, columns: Columns | None = None, *, revision: str | None = None
) -> Table:
    """Read labelled texts or images.

    Args:
        source: a csv, tsv, jsonl (ndjson), json or parquet file; a folder of images, a sub-folder
            for each class, or a metadata.parquet of their paths and labels; a folder written by
            the ``save_to_disk`` of Hugging Face datasets; or, where there is no such path, a hub id
            ("owner/name" or "owner/name:config"). A file may name image files, relative to its own
            folder.
        columns: names of the columns, for those that their usual names do not give away.
        revision: branch, tag or commit of a hub dataset.

    Raises:
        DataError: names file, row, line and column of what is wrong, and what to do.
    """
    columns = columns or Columns()
    source = _table_in(source, columns)
    try:
        return _checked(_read_cells(str(source), columns, revision), str(source))
    except OSError as error:
        raise DataError(f"{source}: {error.filename}: {error.strerror}") from error


def _table_in(source: str | Path, columns: Columns) -> str | Path:
    """The table of a folder of images, where it has one of use, in place of the folder.

    Beside sub-folders a table may also say other things of the images; then they are the classes.
    """
    folder = Path(source)
    table = folder / IMAGE_TABLE
    with suppress(OSError, ValueError):  # of what is no path, others have more to say
        if table.is_file() and (
            names_labelled_images(table, columns) or not is_image_folder(folder)
        ):
            return table
    return source


def _read_cells(source: str, columns: Columns, revision: str | None) -> Cells:
    path = Path(source)
    try:
        if path.is_dir():
            return _read_folder(path, columns)
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise DataError(f"{source!r}: is not a usable path: {error}") from error
    reader = _READERS.get(path.suffix.lower())
    if exists:
        if reader is None:
            raise DataError(
                f"{path}: unknown kind of file '{path.suffix}', expected one of "
                f"{', '.join(_READERS)}, or the folder of a Hugging Face dataset"
            )
        return reader(path, columns)
    if reader is not None or not _could_be_hub_id(source):
        raise DataError(f"{path}: there is no such file; check the path")
    return read_hub_dataset(source, columns, revision)


def _read_folder(path: Path, columns: Columns) -> Cells:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return read_dataset_folder(path, columns)
    if (path / "manifest.json").is_file():
        raise DataError(
            f"{path}: is an edgewright artifact, expected examples; to build on a checkpoint "
            "give it as --from"
        )
    if is_image_folder(path):
        return read_image_folder(path)
    if columns.label_optional and has_loose_images(path):
        return read_loose_images(path)
    raise DataError(
        f"{path}: is a folder, but none written by save_to_disk of Hugging Face datasets, and none "
        f"with a sub-folder of images for each class; give a file ({', '.join(_READERS)})"
    )


def _could_be_hub_id(source: str) -> bool:
    name = source.partition(":")[0]
    parts = name.split("/")
    return len(parts) <= 2 and all(
        part and part[0].isalnum() and all(c.isalnum() or c in "-_." for c in part)
        for part in parts
    )


def _checked(cells: Cells, source: str) -> Table:
    if not cells.texts:
        raise DataError(f"{source}: holds no rows, expected texts and labels")
    faults: list[str] = []
    kind = cells.columns.kind
    contents: list[str] | list[Image]
    if kind is IMAGE:
        as_image = _image_reader(Path(source).parent)
        contents = _each(cells, cells.texts, as_image, cells.columns.text, faults)
    else:
        contents = _each(cells, cells.texts, _as_text, cells.columns.text, faults)
    labels = _each(cells, cells.labels, _as_label, cells.columns.label or "label", faults)
    splits = None
    if cells.splits is not None:
        column = cells.columns.split or "split"
        splits = _each(cells, cells.splits, _as_split, column, faults)
    if faults:
        raise DataError(
            f"{source}: " + "; ".join(faults) + ". Correct or remove these rows, then run again"
        )
    if not cells.typed:
        _refuse_fractions(cells, labels, source)
    _refuse_measures(cells, labels, source)
    return Table(
        contents, labels, splits, source, cells.columns.text, cells.columns.label, cells.place,
        cells.notes, kind,
    )  # fmt: skip


def _each(
    cells: Cells,
    values: Sequence[object],
    convert: Callable[[object], _Value],
    column: str,
    faults: list[str],
) -> list[_Value]:
    """Every value converted; rows ``convert`` refuses go to ``faults``, the first few by number."""
    converted: list[_Value] = []
    refused: list[str] = []
    for index, value in enumerate(values):
        try:
            converted.append(convert(value))
        except ValueError as error:
            if len(refused) < _FAULTS_SHOWN:
                refused.append(f"{cells.place(index)} {error}")
    unlisted = len(values) - len(converted) - len(refused)
    if refused:
        more = f", and {unlisted} more rows" if unlisted else ""
        faults.append(f"column '{column}': {', '.join(refused)}{more}")
    return converted


def _as_text(value: object) -> str:
    """The text as it is; ValueError says what else the value is."""
    if value is None:
        raise ValueError("has no text")
    if not isinstance(value, str):
        raise ValueError(f"is {json_kind(value)}, expected a string")
    if not value.strip():
        raise ValueError("has an empty text")
    return _encodable(value)


def _image_reader(folder: Path) -> Callable[[object], Image]:
    """The image file of a cell, relative to ``folder``; ValueError says why there is none."""

    def as_image(value: object) -> Image:
        if isinstance(value, ImageFile):
            return value
        if value is None or value == "":
            raise ValueError("names no image")
        if not isinstance(value, str):
            raise ValueError(f"is {json_kind(value)}, expected the path of an image file")
        path = folder / _encodable(value)
        try:
            exists = path.is_file()
        except (OSError, ValueError):
            exists = False
        if not exists:
            raise ValueError(f"names '{value[:200]}', and there is no such file in {folder}")
        return ImageFile(path, value)

    return as_image


def only_texts(contents: Sequence[str | Image], kind: Kind, source: str) -> list[str]:
    """``contents``, where they are texts; DataError says that they are not."""
    texts = [each for each in contents if isinstance(each, str)]
    if kind is not TEXT or len(texts) < len(contents):
        raise DataError(f"{source}: holds images, and this works on texts alone")
    return texts


def _as_label(value: object) -> str:
    """The label as a string: stripped, integers in decimal; ValueError says why it is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("has no label")
        if not value.is_integer():
            raise ValueError(f"is the fraction {value:g}: {_NO_REGRESSION}; name them")
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        raise ValueError(f"is a list: {_NO_MULTI_LABEL}")
    if value is not None and not isinstance(value, str):
        raise ValueError(f"is {json_kind(value)}, expected a string or an integer")
    if value is None or not value.strip():
        raise ValueError("has no label")
    if _is_written_list(value.strip()):
        raise ValueError(f"is the list {value.strip()[:40]}: {_NO_MULTI_LABEL}")
    return _encodable(value.strip())


def _is_written_list(label: str) -> bool:
    """Whether a cell without types holds a list as JSON or Python write it, such as ['a', 'b']."""
    if not (label.startswith("[") and label.endswith("]")):
        return False
    try:
        return isinstance(ast.literal_eval(label), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _as_split(value: object) -> str | None:
    if value is None or value == "":
        return None
    name = str(value).strip().casefold()
    name = SPLIT_ALIASES.get(name, name)
    if name not in SPLITS:
        raise ValueError(f"says '{str(value)[:40]}', expected one of {', '.join(SPLITS)}")
    return name


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which no encoding can write") from None
    return value


def _refuse_fractions(cells: Cells, labels: Sequence[str], source: str) -> None:
    """Refuse a column of numbers with fractions, which only a typed file would show as such."""
    if not all(_NUMBER.fullmatch(label) for label in labels):
        return
    for index, label in enumerate(labels):
        if not float(label).is_integer():
            raise DataError(
                f"{source}: {cells.place(index)}, column '{cells.columns.label}': labels are "
                f"fractions such as {label[:20]}, expected classes: {_NO_REGRESSION}. If they are "
                "classes, name them"
            )


def _refuse_measures(cells: Cells, labels: Sequence[str], source: str) -> None:
    """Refuse a column of floats that are whole by chance, such as prices: most rows differ."""
    distinct = len(set(labels))
    if distinct <= _MANY_LABELS or distinct <= len(labels) / 2:
        return
    if cells.typed:
        floats = all(isinstance(label, float) for label in cells.labels)
    else:
        floats = all(_NUMBER.fullmatch(label) and not label.isdecimal() for label in labels)
    if floats:
        raise DataError(
            f"{source}: column '{cells.columns.label}': {distinct} different numbers in "
            f"{len(labels)} rows, such as {labels[0][:20]}: {_NO_REGRESSION}. If they are classes, "
            "write them as integers or names"
        )
