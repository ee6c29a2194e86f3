"""parquet files and Hugging Face datasets (a folder, or a hub id): Arrow tables, both of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgewright.errors import DataError
from edgewright.kinds import IMAGE
from edgewright.tables.columns import Cells, Columns, FoundColumns, find_columns

# How the splits of published datasets are named; the rest of a dataset is left out, with a note.
_SPLIT_NAMES: Final = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip


def read_parquet(path: Path, columns: Columns) -> Cells:
    """Read the text, label and split columns of a parquet file.

    Class names that ``datasets`` keeps in the file's metadata are used in place of their numbers.
    Raises DataError when it is no parquet file or its columns are not of usable types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            found = find_columns(file.schema_arrow.names, columns, str(path))
            table = file.read(columns=[c for c in (found.text, found.label, found.split) if c])
            names = _class_names(file.schema_arrow.metadata, found.label)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {_first_line(error)}") from error
    return _cells(table, found, names, str(path))


def names_labelled_images(path: Path, columns: Columns) -> bool:
    """Whether a parquet file has a column of images' paths, and one of their labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = find_columns(pq.read_schema(path).names, columns, str(path))
    except (DataError, pa.ArrowException, OSError):
        return False
    return found.kind is IMAGE and found.label is not None


def read_dataset_folder(path: Path, columns: Columns) -> Cells:
    """Read a folder written by ``save_to_disk``, of one Dataset or of a DatasetDict."""
    import datasets
    import pyarrow as pa

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be read as a dataset saved by save_to_disk: {_first_line(error)}"
        ) from error
    return _read_loaded(loaded, columns, str(path))


def read_hub_dataset(name: str, columns: Columns, revision: str | None) -> Cells:
    """Load ``owner/name`` or ``owner/name:config`` from the hub, at ``revision`` where given.

    Raises DataError when the hub cannot be reached or has no such dataset. Loading scripts are
    never run.
    """
    import datasets
    import pyarrow as pa

    repository, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None, revision=revision)
    except (
        OSError,
        ValueError,
        RuntimeError,
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise DataError(
            f"{name}: there is no such file or folder here, and as a hub dataset it cannot be "
            f"loaded: {_first_line(error)}. Check the path, or the id and the network"
        ) from error
    return _read_loaded(loaded, columns, name)


def _read_loaded(loaded: Any, columns: Columns, source: str) -> Cells:
    """``loaded``: a datasets.Dataset or DatasetDict."""
    if not isinstance(loaded, Mapping):
        return _read_dataset(loaded, columns, source)
    if columns.split is not None:
        raise DataError(
            f"{source}: already comes in splits ({', '.join(loaded)}); leave --split-column out"
        )
    if "train" not in loaded:
        raise DataError(
            f"{source}: has no split named 'train', only {', '.join(loaded) or 'none'}; "
            "save the split you want by itself and give its folder"
        )
    return _read_splits(loaded, columns, source)


def _read_splits(loaded: Mapping[str, Any], columns: Columns, source: str) -> Cells:
    texts: list[object] = []
    labels: list[object] = []
    splits: list[object] = []
    parts: list[tuple[int, str]] = []
    left_out: list[str] = []
    for name, dataset in loaded.items():
        role = _SPLIT_NAMES.get(name.casefold())
        cells = _read_dataset(dataset, columns, f"{source}: split '{name}'") if role else None
        if cells is None or (role != "train" and all(label is None for label in cells.labels)):
            left_out.append(name)  # benchmarks publish their test split without labels
            continue
        parts.append((len(texts), name))
        texts.extend(cells.texts)
        labels.extend(cells.labels)
        splits.extend([role] * len(cells.texts))
    found = find_columns(loaded["train"].column_names, columns, f"{source}: split 'train'")
    notes = f"read splits {', '.join(name for _, name in parts)}"
    if left_out:
        notes += f"; left out {', '.join(left_out)} (unlabelled, or not train/validation/test)"
    return Cells(
        found, texts, labels, splits, typed=True, parts=tuple(parts), notes=(f"{source}: {notes}",)
    )


def _read_dataset(dataset: Any, columns: Columns, source: str) -> Cells:
    found = find_columns(dataset.column_names, columns, source)
    wanted = [name for name in (found.text, found.label, found.split) if name]
    table = dataset.select_columns(wanted).with_format("arrow")[:]
    names = getattr(dataset.features[found.label], "names", None) if found.label else None
    return _cells(table, found, names, source)


def _cells(table: Any, found: FoundColumns, names: Sequence[str] | None, source: str) -> Cells:
    """``table``: a pyarrow.Table. Class number i reads as ``names[i]``, and -1 as no label."""
    _check_types(table.schema, found, source)
    try:
        texts = table[found.text].to_pylist()
        labels = table[found.label].to_pylist() if found.label else []
        splits = table[found.split].to_pylist() if found.split else None
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: holds a string that is not UTF-8: {error}") from error
    if names is not None:
        for index, label in enumerate(labels):
            if isinstance(label, int):
                if label >= len(names):
                    raise DataError(
                        f"{source}: row {index + 1}: class {label}, but only {len(names)} are named"
                    )
                labels[index] = names[label] if label >= 0 else None
    return Cells(found, texts, labels, splits, typed=True)


def _check_types(schema: Any, found: FoundColumns, source: str) -> None:
    import pyarrow.types as types

    faults = []
    kind = schema.field(found.text).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        faults.append(
            f"{found.kind.name} column '{found.text}' is of type {kind}, expected strings"
        )
    if found.label is not None:
        faults += _label_faults(schema.field(found.label).type, found.label)
    if faults:
        raise DataError(f"{source}: {'; '.join(faults)}")


def _label_faults(kind: Any, column: str) -> list[str]:
    """``kind``: the pyarrow.DataType of the label column."""
    import pyarrow.types as types

    if _is_list(kind):
        return [
            f"label column '{column}' holds lists; multi-label classification is not supported, "
            "give one label a row"
        ]
    if types.is_nested(kind) or types.is_temporal(kind) or types.is_binary(kind):
        return [f"label column '{column}' is of type {kind}, expected strings or integers"]
    return []


def _is_list(kind: Any) -> bool:
    """``kind``: a pyarrow.DataType."""
    import pyarrow.types as types

    tests = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str | None) -> list[str] | None:
    """The class names that ``datasets`` stores in a parquet file, if it wrote it."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
