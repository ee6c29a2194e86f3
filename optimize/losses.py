"""Where a candidate loses: search rows lost and won by class and by length."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.kinds import TEXT
from edgewright.optimize.outcome import Outcome, Standing

_THIRDS: Final = ("short", "medium", "long")


@dataclass(frozen=True)
class Loss:
    """Search rows that have something in common, counted as certify rows are."""

    group: str
    n: int
    model_right: int
    right: int  # of the candidate
    lost: int  # the model is right and the candidate wrong
    won: int  # the reverse

    @property
    def share(self) -> float:
        """Share of the rows that was lost; NaN without rows."""
        return (self.lost - self.won) / self.n if self.n else float("nan")

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def loss_by_class(outcome: Outcome, standing: Standing) -> list[Loss]:
    """One for each class, in the order of the labels; a class may have no rows."""
    search = outcome.search
    return [
        _loss(outcome, standing, name, search.labels == label)
        for label, name in enumerate(search.label_names)
    ]


def loss_by_length(outcome: Outcome, standing: Standing) -> list[Loss]:
    """Thirds of the texts by their length in characters, cut or not; of images nothing.

    Texts of one length stay together, so a third may be larger than another, or missing; where only
    one is left, there is nothing to tell apart.
    """
    if outcome.search.kind is not TEXT or not len(outcome.search):
        return []
    lengths = np.array([len(text) for text in outcome.search.texts])
    edges = np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf")
    third_of = np.searchsorted(edges, lengths)  # a length on an edge belongs below it
    thirds = [
        _loss(outcome, standing, _spelled(name, lengths[third_of == third]), third_of == third)
        for third, name in enumerate(_THIRDS)
        if (third_of == third).any()
    ]
    return thirds if len(thirds) > 1 else []


def _spelled(name: str, lengths: NDArray[np.int64]) -> str:
    return f"{name}, {lengths.min():,} to {lengths.max():,} characters"


def _loss(outcome: Outcome, standing: Standing, group: str, rows: NDArray[np.bool_]) -> Loss:
    model = (outcome.reference == outcome.search.labels)[rows]
    mine = (standing.predicted == outcome.search.labels)[rows]
    return Loss(
        group=group,
        n=int(rows.sum()),
        model_right=int(model.sum()),
        right=int(mine.sum()),
        lost=int((model & ~mine).sum()),
        won=int((mine & ~model).sum()),
    )
