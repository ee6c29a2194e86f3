"""What certainty costs: how many certify rows a PASS needs, by the loss that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgewright.bundle import Against, Certificate
from edgewright.optimize.outcome import Outcome
from edgewright.optimize.words import amount
from edgewright.proof.bound import rows_needed
from edgewright.proof.certificate import error_rates, rows_to_pass
from edgewright.report import Block, DataTable, Section

_BUDGETS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05)
_MOST_ROWS: Final = 10_000  # counting further takes seconds a cell


def certainty_section(outcome: Outcome) -> Section:
    """Rows that a variant without a loss needs, and those at the rates that were seen."""
    given = {
        each.name: each.certificate
        for each in outcome.tried
        if each.certificate and each.certificate.n
    }
    none = "none lost" if outcome.against is Against.LABELS else "none differs"
    blocks: list[Block] = []
    if given:
        table = DataTable(
            columns=["allowed loss", f"rows, {none}", *[f"rows, as {name}" for name in given]],
            rows=list(_certainty_rows(outcome, list(given.values()))),
            caption="Certify rows that a PASS needs; “never” where the loss seen is not below it.",
        )
        blocks.append(table)
    more = "A larger certify share (edgewright finetune --splits) or more examples (--add) buy it."
    if outcome.config.given.certify is not None:
        more = "More rows in --certify buy it."
    intro = (
        f"Certainty costs rows. The certify split has {outcome.certify_n} rows without "
        "near-duplicates. The first column is for a variant that never loses a row in the first "
        f"place of the order, the others for the rates that were seen in the place they had. {more}"
    )
    return Section("What rows buy", blocks, intro)


def _certainty_rows(outcome: Outcome, certificates: list[Certificate]) -> Iterator[list[str]]:
    first_error_rate = error_rates(outcome.config.confidence)[0]
    for budget in sorted({*_BUDGETS, outcome.config.max_drop}):
        row = [amount(budget, outcome.against), str(rows_to_pass(budget, first_error_rate))]
        yield row + [_rows_wanted(given, budget) for given in certificates]


def _rows_wanted(given: Certificate, budget: float) -> str:
    if given.lost - given.won >= budget * given.n:
        return "never"
    needed = rows_needed(given.lost, given.won, given.n, budget, given.error_rate, _MOST_ROWS)
    return f"over {_MOST_ROWS:,}" if needed is None else f"{needed:,}"
