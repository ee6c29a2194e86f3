"""What a store has gathered, as examples for ``edgewright finetune --from CHECKPOINT --add``.

Texts become one Parquet file. Images become a folder:

metadata.parquet        a row for each entry; file_name is a path within the folder
images/<sha256>.png     each image once, as it came; .jpg, .webp and so on by what is in it

which is the form that Hugging Face datasets calls an imagefolder.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, case, func, select

from edgewright.errors import BackendUnavailableError, ConfigError, DataError
from edgewright.manifest import new_folder
from edgewright.serve.feedback_rows import Selection, joined, pages
from edgewright.serve.feedback_store import FeedbackStore
from edgewright.serve.image_export import ImageExport
from edgewright.tables import TABLE_ENDINGS
from edgewright.tables.image_folder import IMAGE_TABLE

_ENDING: Final = ".parquet"
_MARK: Final = {b"edgewright": b"feedback"}  # metadata of the table


@dataclass
class Export:
    """What was written, and what was not."""

    entries: int = 0  # selected
    superseded: int = 0  # a later entry about the same prediction counts
    without_input: int = 0  # nothing was logged or sent along, so they cannot be learnt from
    damaged: int = 0  # their image is gone from the store, or not what it was
    exported: int = 0
    images: int | None = None  # files written, which several rows may name; None: texts
    labels: Counter[str] = field(default_factory=Counter)  # of the rows exported


def export(
    store: FeedbackStore, target: Path, selection: Selection, *, overwrite: bool = False
) -> Export:
    """Write labelled texts to a file, or images to a folder, oldest entry first.

    Columns: text or file_name, then label, prediction_id, model, version, entry_id, time (of
    receipt, UTC). The target is there whole or not at all.

    Raises:
        ConfigError: the target exists or is not fit for what there is, or entries about several
            models are selected.
        DataError: nothing would be left to write; nothing is written then.
        BackendUnavailableError: pyarrow is not installed.
        FeedbackStoreError: the store failed.
    """
    _require_pyarrow()

    def work(connection: Connection) -> Export:
        found = _Found.of(connection, selection)
        if len(found.models) > 1:
            raise ConfigError(
                f"the store holds feedback on several models ({', '.join(found.models)}), whose "
                "labels do not belong in one file; choose one with --model"
            )
        if not found.with_image and not found.with_text:
            raise _nothing(found.export, selection)
        write = _write_images if found.with_image else _write_texts
        return write(connection, selection, target, overwrite)

    return store.transaction(work)


@dataclass(frozen=True)
class _Found:
    """What is selected, before anything is written."""

    models: list[str]
    with_text: int
    with_image: int
    export: Export  # where there is neither

    @classmethod
    def of(cls, connection: Connection, selection: Selection) -> _Found:
        rows = joined(connection, selection).subquery()
        counts = (rows.c.rank == 1, (rows.c.rank == 1) & rows.c.text.is_not(None),
                  (rows.c.rank == 1) & rows.c.image.is_not(None))  # fmt: skip
        sums = [func.coalesce(func.sum(case((each, 1), else_=0)), 0) for each in counts]
        entries, last, texts, images = connection.execute(select(func.count(), *sums)).one()
        models = connection.execute(select(rows.c.model).distinct()).scalars()
        export = Export(entries, entries - last, without_input=last)
        return cls(sorted(filter(None, models)), texts, images, export)


def _write_texts(
    connection: Connection, selection: Selection, target: Path, overwrite: bool
) -> Export:
    _check_file(target, overwrite=overwrite)
    with _new_file(target) as staging:
        return _write(connection, selection, staging, None)


def _write_images(
    connection: Connection, selection: Selection, target: Path, overwrite: bool
) -> Export:
    if target.suffix.lower() in TABLE_ENDINGS:
        raise ConfigError(
            f"{target}: the entries are about images, which are written to a folder, with a table "
            f"that names them; give a folder: -o {target.with_suffix('')}"
        )
    _check_parent(target)
    with new_folder(target, overwrite=overwrite, replaceable=_is_export) as staging:
        return _write(
            connection, selection, staging / IMAGE_TABLE, ImageExport(connection, staging)
        )


def _write(
    connection: Connection, selection: Selection, path: Path, images: ImageExport | None
) -> Export:
    """Write the table, and with ``images`` the files that it names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema("text" if images is None else "file_name")
    done = Export()
    with (
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
        pages(connection, selection) as found,
    ):
        for rows in found:
            kept = [row for row in (_exported(row, images, done) for row in rows) if row]
            if kept:
                writer.write_table(pa.Table.from_pylist(kept, schema=schema))
    if not done.exported:
        raise _nothing(done, selection)
    done.images = images.count if images is not None else None
    return done


def _schema(content: str) -> Any:
    """The table's, as pyarrow has it; ``content`` is the first column."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(content, pa.string(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("prediction_id", pa.string()),
            pa.field("model", pa.string()),
            pa.field("version", pa.int64()),
            pa.field("entry_id", pa.string(), nullable=False),
            pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        ],
        metadata=_MARK,
    )


def _exported(row: RowMapping, images: ImageExport | None, done: Export) -> dict[str, Any] | None:
    """The row as it is written, if it is; counts it either way."""
    done.entries += 1
    content = row["text"] if images is None else row["image"]
    if row["rank"] != 1:
        done.superseded += 1
        return None
    if not (content or "").strip():
        done.without_input += 1
        return None
    if images is not None:
        content = images.name(content)
        if content is None:
            done.damaged += 1
            return None
    done.exported += 1
    done.labels[row["label"]] += 1
    column = "text" if images is None else "file_name"
    return {**row, column: content, "time": row["received_us"]}


def _nothing(done: Export, selection: Selection) -> DataError:
    if not done.entries:
        if selection == Selection():
            return DataError(
                "the store holds no feedback yet; callers send it with Client.send_feedback or "
                "stream_feedback to a server that was started with --feedback and this store"
            )
        return DataError(
            "the store holds no feedback that --model and --since select; "
            "`edgewright feedback report STORE_URL` tells what it holds"
        )
    damaged = f", {done.damaged} with an image that is gone or damaged" if done.damaged else ""
    return DataError(
        f"of {done.entries} entries in the store none can be exported: {done.without_input} are "
        f"without input, {done.superseded} superseded{damaged}. Serve with --log-inputs all, or "
        "send texts with the feedback"
    )


def _is_export(folder: Path) -> bool:
    """Whether one was written there, as its table says of itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(folder / IMAGE_TABLE).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return _MARK.items() <= metadata.items()


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401 -- to know before anything is read
    except ImportError as error:
        raise BackendUnavailableError(
            f"feedback export needs pyarrow ({error}); pip install pyarrow"
        ) from error


def _check_file(target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; give the path of a file")
    if target.suffix.lower() != _ENDING:
        fit = (
            target.with_suffix(_ENDING)
            if target.suffix.lower() in TABLE_ENDINGS
            else target.with_name(target.name + _ENDING)
        )
        raise ConfigError(
            f"{target}: the entries are about texts, which are written to a Parquet file, and "
            f"finetune knows it by its ending; give one: -o {fit}"
        )
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{target} exists already; choose another path or pass --overwrite")
    _check_parent(target)


def _check_parent(target: Path) -> None:
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.absolute().parent}; make it first")


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A sibling of ``target`` that takes its place, durably, if all goes well; else it is gone."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.absolute().parent)
    staging = Path(name)
    try:
        with os.fdopen(handle, "rb") as file:
            yield staging
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o666 & ~umask)
        staging.replace(target)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
