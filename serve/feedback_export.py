"""What a store has gathered: labelled texts for fine-tuning, and counts.

Of several entries about one prediction the one received last counts; the others are superseded. An
entry without a prediction stands for itself.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, case, func, select

from edgewright.errors import BackendUnavailableError, ConfigError, DataError
from edgewright.serve.feedback_schema import feedback, predictions
from edgewright.serve.feedback_store import FeedbackStore

ROWS_AT_ONCE: Final = 2000


@dataclass(frozen=True)
class Selection:
    """Which entries: received from ``since`` on, about one model; None takes all."""

    since: datetime | None = None  # with a time zone
    model: str | None = None


@dataclass
class Export:
    """What was written, and what was not."""

    entries: int = 0  # selected
    superseded: int = 0  # a later entry about the same prediction counts
    without_input: int = 0  # no text was logged or sent along, so they cannot be learnt from
    exported: int = 0
    labels: Counter[str] = field(default_factory=Counter)  # of the rows exported


def export(
    store: FeedbackStore, target: Path, selection: Selection, *, overwrite: bool = False
) -> Export:
    """Write labelled texts to a Parquet file, oldest first, for ``edgewright finetune --add``.

    Columns: text, label, prediction_id, model, version, entry_id, time (of receipt, UTC).

    Raises:
        ConfigError: the file exists, or entries about several models are selected.
        DataError: nothing would be left to write; nothing is written then.
        BackendUnavailableError: pyarrow is not installed.
        FeedbackStoreError: the store failed.
    """
    _require_pyarrow()
    _check_target(target, overwrite=overwrite)

    def work(connection: Connection) -> Export:
        _refuse_several_models(connection, selection)
        with _new_file(target) as staging:
            return _write(connection, selection, staging, str(store.url))

    return store.transaction(work)


def report(store: FeedbackStore, selection: Selection) -> dict[str, Any]:
    """Counts of a store, and how often the served models were right.

    ``agreement`` is the share of the matched entries that count whose label is the one predicted:
    accuracy as served, of what people chose to give feedback on. None where there is none.

    Raises:
        FeedbackStoreError: the store failed.
    """
    return store.transaction(lambda connection: _report(connection, selection))


def _joined(selection: Selection) -> Select[Any]:
    """Every selected entry beside its prediction, with its rank: 1 is the one that counts."""
    own = case((feedback.c.prediction_id.is_(None), feedback.c.entry_id), else_=None)
    rank = func.row_number().over(
        partition_by=(feedback.c.prediction_id, own),
        order_by=(feedback.c.received_us.desc(), feedback.c.entry_id.desc()),
    )
    model = func.coalesce(predictions.c.model, feedback.c.model)
    joined = feedback.outerjoin(
        predictions, feedback.c.prediction_id == predictions.c.prediction_id
    )
    query = select(
        feedback.c.entry_id,
        feedback.c.prediction_id,
        feedback.c.label,
        feedback.c.received_us,
        predictions.c.label.label("predicted"),
        predictions.c.version,
        model.label("model"),
        # What the model has seen goes before what the sender says it was.
        func.coalesce(predictions.c.text, feedback.c.text).label("text"),
        rank.label("rank"),
    ).select_from(joined)
    if selection.since is not None:
        since_us = round(selection.since.timestamp() * 1e6)
        query = query.where(feedback.c.received_us >= since_us)
    if selection.model is not None:
        query = query.where(model == selection.model)
    return query


def _refuse_several_models(connection: Connection, selection: Selection) -> None:
    rows = _joined(selection).subquery()
    names = sorted(
        name for name in connection.execute(select(rows.c.model).distinct()).scalars() if name
    )
    if len(names) > 1:
        raise ConfigError(
            f"the store holds feedback on several models ({', '.join(names)}), whose labels do not "
            "belong in one file; choose one with --model"
        )


def _write(connection: Connection, selection: Selection, path: Path, store: str) -> Export:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("text", pa.string(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("prediction_id", pa.string()),
            pa.field("model", pa.string()),
            pa.field("version", pa.int64()),
            pa.field("entry_id", pa.string(), nullable=False),
            pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        ]
    )
    done = Export()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _pages(connection, selection):
            kept = [row for row in rows if _counted(row, done)]
            columns = {
                name: [row[_SOURCES.get(name, name)] for row in kept] for name in schema.names
            }
            if kept:
                writer.write_table(pa.table(columns, schema=schema))
    if not done.exported:
        raise DataError(
            f"{store}: of {done.entries} entries none can be exported: {done.without_input} are "
            f"without input, {done.superseded} superseded. Serve with --log-inputs all, or send "
            "the text with the feedback"
        )
    return done


_SOURCES: Final = {"time": "received_us"}


def _counted(row: RowMapping, done: Export) -> bool:
    """Whether the row is exported; counts it either way."""
    done.entries += 1
    if row["rank"] != 1:
        done.superseded += 1
    elif not (row["text"] or "").strip():
        done.without_input += 1
    else:
        done.exported += 1
        done.labels[row["label"]] += 1
        return True
    return False


def _pages(connection: Connection, selection: Selection) -> Iterator[Sequence[RowMapping]]:
    query = _joined(selection).order_by(feedback.c.received_us, feedback.c.entry_id)
    streamed = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query)
    yield from streamed.mappings().partitions()


def _report(connection: Connection, selection: Selection) -> dict[str, Any]:
    logged = select(func.count(), func.count(predictions.c.text)).select_from(predictions)
    if selection.model is not None:
        logged = logged.where(predictions.c.model == selection.model)
    if selection.since is not None:
        since_us = round(selection.since.timestamp() * 1e6)
        logged = logged.where(predictions.c.predicted_us >= since_us)
    count, with_input = connection.execute(logged).one()
    tally: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    models: dict[str, Counter[str]] = {}
    for rows in _pages(connection, selection):
        for row in rows:
            _tally(row, tally, labels, models)
    return {
        "predictions": count,
        "predictions_with_input": with_input,
        "entries": tally["entries"],
        "superseded": tally["superseded"],
        "unmatched": tally["unmatched"],
        "without_input": tally["without_input"],
        "matched": tally["matched"],
        "agreeing": tally["agreeing"],
        "agreement": _share(tally),
        "labels": dict(sorted(labels.items())),
        "models": {
            name: {"matched": c["matched"], "agreeing": c["agreeing"], "agreement": _share(c)}
            for name, c in sorted(models.items())
        },
    }


def _tally(
    row: RowMapping,
    tally: Counter[str],
    labels: Counter[str],
    models: dict[str, Counter[str]],
) -> None:
    tally["entries"] += 1
    if row["rank"] != 1:
        tally["superseded"] += 1
        return
    labels[row["label"]] += 1
    tally["without_input"] += not (row["text"] or "").strip()
    if row["predicted"] is None:
        tally["unmatched"] += row["prediction_id"] is not None
        return
    agreeing = int(row["predicted"] == row["label"])
    name = f"{row['model']} version {row['version']}"
    for each in (tally, models.setdefault(name, Counter())):
        each["matched"] += 1
        each["agreeing"] += agreeing


def _share(tally: Counter[str]) -> float | None:
    return tally["agreeing"] / tally["matched"] if tally["matched"] else None


def _require_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401 -- to know before anything is read
    except ImportError as error:
        raise BackendUnavailableError(
            f"feedback export needs pyarrow ({error}); pip install pyarrow"
        ) from error


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; give the path of a file")
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{target} exists already; choose another path or pass --overwrite")
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
