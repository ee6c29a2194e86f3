"""Examples that the foremost candidate answers otherwise than the model."""

from __future__ import annotations

from typing import Final

from edgewright.bundle import Against
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.report import Paragraph, Section, TextRow, TextRows
from edgewright.shown_example import shown_example

_SHOWN: Final = 20
_TITLE: Final = "Examples whose label changed"


def changed_section(outcome: Outcome, shown: Standing) -> Section:
    """Search examples, those that were lost first."""
    changed = outcome.search_changed(shown)
    if not len(changed):
        words = f"{shown.name} answers every search row as the model does."
        return Section(_TITLE, [Paragraph(words)])
    caption = f"{len(changed)} of {len(outcome.search)} search rows"
    if outcome.config.no_raw_examples:
        return Section(_TITLE, [Paragraph(f"{caption}; --no-raw-examples leaves them out.")])
    lost = (outcome.reference == outcome.search.labels)[changed]
    ordered = [*changed[lost].tolist(), *changed[~lost].tolist()]
    rows = [_row(outcome, shown, row) for row in ordered[:_SHOWN]]
    order = "" if outcome.search_against is Against.REFERENCE else ", those that were lost first"
    if len(changed) > _SHOWN:
        order += f"; {_SHOWN} are shown"
    return Section(_TITLE, [TextRows(rows, f"{caption}{order}.")])


def _row(outcome: Outcome, shown: Standing, row: int) -> TextRow:
    names, search = outcome.search.label_names, outcome.search
    label = int(search.labels[row])
    model, mine = int(outcome.reference[row]), int(shown.predicted[row])
    score = float(shown.scores[row].max())
    cells = [("model", names[model]), (shown.name, f"{names[mine]} ({score:.2f})")]
    if outcome.search_against is Against.LABELS:
        became = "lost" if model == label else "won" if mine == label else "wrong either way"
        cells = [("label", names[label]), *cells, ("row", became)]
    return shown_example(search.contents[row], cells)
