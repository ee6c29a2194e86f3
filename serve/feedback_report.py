"""What a store holds, in figures."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

from sqlalchemy import Connection, RowMapping, func, null, select

from edgewright.serve.feedback_rows import Selection, pages
from edgewright.serve.feedback_schema import holds_images, predictions
from edgewright.serve.feedback_store import FeedbackStore


def report(store: FeedbackStore, selection: Selection) -> dict[str, Any]:
    """Counts of a store, and how often the served models were right.

    ``agreement`` is the share of the matched entries that count whose label is the one predicted:
    accuracy as served, of what people chose to give feedback on. None where there is none.

    Raises:
        FeedbackStoreError: the store failed.
    """
    return store.transaction(lambda connection: _report(connection, selection))


def _report(connection: Connection, selection: Selection) -> dict[str, Any]:
    count, with_input = _logged(connection, selection)
    tally: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    models: dict[str, Counter[str]] = {}
    with pages(connection, selection) as found:
        for row in chain.from_iterable(found):
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


def _logged(connection: Connection, selection: Selection) -> tuple[int, int]:
    """Predictions, and those of them that are stored with their text or image."""
    image = predictions.c.image if holds_images(connection) else null()
    with_input = func.count(func.coalesce(predictions.c.text, image))
    query = select(func.count(), with_input).select_from(predictions)
    if selection.model is not None:
        query = query.where(predictions.c.model == selection.model)
    if selection.since_us is not None:
        query = query.where(predictions.c.predicted_us >= selection.since_us)
    count, kept = connection.execute(query).one()
    return count, kept


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
    tally["without_input"] += row["image"] is None and not (row["text"] or "").strip()
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
