"""From an int8 file that loses too much to one that keeps the layers to blame in float.

    groups     the layers of the int8 file that can go back to float
    ranking    by how far each alone moves the answers on calibrate rows
    search     the fewest of the ranking, from the top, with which the file is within the budget on
               the search split

Neither reads a certify row. What is found is one more candidate: it is timed beside the others,
and whether it may ship the certificate decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgewright.backends import get_backend
from edgewright.model_file import parts, sha256
from edgewright.optimize.export import save
from edgewright.optimize.fewest import Clock, Fewest, fewest
from edgewright.optimize.layer_groups import find_groups, lift_constants
from edgewright.optimize.recipes.int8_static import STATIC
from edgewright.optimize.restore import restore
from edgewright.optimize.sensitivity import Ranking, rank_groups
from edgewright.optimize.switch_graph import add_switches
from edgewright.optimize.trials import Trials
from edgewright.optimize.variants import Candidate
from edgewright.preprocess import Preprocessor, Row
from edgewright.proof.certificate import PairedCounts
from edgewright.proof.host import available_cores

MIXED: Final = f"{STATIC}-mixed"
RANKING_ROWS: Final = 32
_BATCH_ROWS: Final = 4
_RANKING_SHARE: Final = 0.5  # of the seconds, at most
# Dequantises the weights once, at loading, and fuses nothing into integer kernels: the ranking
# compares what the numbers stand for, on any host.
_SWITCH_OPTIONS: Final = {"session.disable_quant_qdq": "1"}


@dataclass(frozen=True)
class Failing:
    """An int8-static candidate that loses too much, and what it was made of."""

    candidate: Candidate
    fp32: Path
    quantized: Path  # NNCF's QDQ model of ``fp32``, before a runtime's form was made of it
    rewrite: Callable[[ir.Model], None]  # makes that form, in place
    weights_only: bool  # the form has float products of two activations already


@dataclass(frozen=True)
class Repair:
    """What a search is allowed and given.

    Attributes:
        budget: share of rows that may be lost, as ``--max-drop``.
        seconds: cap on the whole search, earlier runs that were killed included.
        count: rows that a candidate loses and wins on the search split.
        batches: begins a pass over the rows of the ranking.
        data: hash of the checkpoint, which decides the rows and their labels.
        folder: exists; receives the files.
        trials: where the state is kept.
    """

    budget: float
    seconds: float
    count: Callable[[Candidate], PairedCounts]
    batches: Callable[[], Iterator[Mapping[str, NDArray[Any]]]]
    data: str
    folder: Path
    trials: Path
    clock: Clock = time.monotonic


@dataclass(frozen=True)
class Mixed:
    """How a search ended.

    ``candidate`` is None where it found no file within the budget. ``counts`` are the rows lost and
    won with the first k groups in float, by k.
    """

    failing: str
    candidate: Candidate | None
    ranking: Ranking
    search: Fewest | None  # None: there was nothing to search, or no time to rank it
    counts: Mapping[int, PairedCounts]
    seconds: float

    @property
    def float_groups(self) -> tuple[str, ...]:
        """Names of the groups that went back, the most sensitive first."""
        k = self.search.k if self.search is not None else None
        return tuple(each.group for each in self.ranking.groups[: k or 0])

    def to_json(self) -> dict[str, Any]:
        """For ``--json`` and measurements.json; a divergence of None is infinite."""
        search = self.search
        return {
            "failing": self.failing,
            "candidate": self.candidate.name if self.candidate is not None else None,
            "float_groups": list(self.float_groups),
            "groups": len(self.ranking.groups),
            "sensitivity": [
                {"group": each.group, "divergence": _finite(each.divergence)}
                for each in self.ranking.groups
            ],
            "ending": str(search.ending) if search is not None else None,
            "verified": search is not None and search.is_verified,
            "evaluations": len(self.counts),
            "seconds": round(self.seconds, 3),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def mix(failing: Failing, repair: Repair) -> Mixed:
    """Search the fewest layer groups in float with which ``failing`` is within the budget.

    The same files, rows and rules give the same ranking and the same file, unless the time ran out.

    Raises:
        ConfigError: the graphs do not match, so no layer can go back.
        IntegrityError: a runtime cannot load a mixed file.
    """
    trials = Trials.open(repair.trials, *_decided_by(failing, repair))
    search = _Search(failing, repair, trials)
    name, ranking = failing.candidate.name, search.ranking
    if not ranking.groups:
        return Mixed(name, None, ranking, None, {}, search.seconds)
    found = fewest(
        len(ranking.groups),
        search.passes,
        seconds=repair.seconds - search.seconds,
        clock=repair.clock,
        known={k: _is_within(each, repair.budget) for k, each in trials.counts.items()},
    )
    candidate = search.build(found.k) if found.k is not None else None
    return Mixed(name, candidate, ranking, found, dict(trials.counts), search.seconds)


def ranking_batches(
    preprocessor: Preprocessor, rows: Sequence[Row]
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Up to 32 rows in batches of 4, evenly from all of ``rows``, which may be sorted by class."""
    count = min(RANKING_ROWS, len(rows))
    places = np.linspace(0, len(rows) - 1, count).round().astype(int).tolist()
    for start in range(0, count, _BATCH_ROWS):
        chosen = [rows[place] for place in places[start : start + _BATCH_ROWS]]
        yield preprocessor.pad(chosen).arrays


def _decided_by(failing: Failing, repair: Repair) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the ranking, and what decides the trials beside it."""
    candidate = failing.candidate
    ranking = {
        "fp32": sha256(failing.fp32),
        "quantized": sha256(failing.quantized),
        "data": repair.data,
        "rows": RANKING_ROWS,
    }
    search = {
        "failing": sha256(candidate.file),
        "runtime": get_backend(candidate.backend).runtime(),
        "options": dict(candidate.session_options),
        "budget": repair.budget,
    }
    return ranking, search


def _is_within(counts: PairedCounts, budget: float) -> bool:
    return counts.loss <= budget


class _Search:
    """The ranking and the trials of one search, each saved as soon as it is known."""

    def __init__(self, failing: Failing, repair: Repair, trials: Trials) -> None:
        self._failing, self._repair, self._trials = failing, repair, trials
        self._started, self._spent_before = repair.clock(), trials.seconds
        self._fp32 = lift_constants(ir.load(failing.fp32))
        found = find_groups(self._quantized(), self._fp32)
        self._groups = {each.name: each for each in found}
        self._built: int | None = None

    @property
    def seconds(self) -> float:
        """Taken so far, earlier runs included."""
        return self._spent_before + self._repair.clock() - self._started

    @cached_property
    def ranking(self) -> Ranking:
        """The groups that are int8 in the failing file."""
        ranking = self._trials.ranking
        if ranking is None and self._groups:
            ranking = self._rank()
        if ranking is None or not self._failing.weights_only:
            return ranking or Ranking((), 0)
        groups = [each for each in ranking.groups if self._groups[each.group].has_weights]
        return Ranking(tuple(groups), ranking.rows)

    def _rank(self) -> Ranking:
        file = self._repair.folder / "switches.onnx"
        model = self._quantized()
        add_switches(model, self._fp32, list(self._groups.values()))
        save(model, file)
        ranking = rank_groups(
            get_backend("onnxruntime").load(
                file, threads=available_cores(), options=_SWITCH_OPTIONS
            ),
            list(self._groups),
            self._repair.batches(),
            seconds=_RANKING_SHARE * self._repair.seconds - self.seconds,
            clock=self._repair.clock,
        )
        for part in parts(file):
            part.unlink()
        self._trials.ranking = ranking if ranking.groups else None
        self._save()
        return ranking

    def passes(self, k: int) -> bool:
        """Whether the first ``k`` groups in float are enough."""
        counts = self._repair.count(self.build(k))
        self._trials.counts[k] = counts
        self._save()
        return _is_within(counts, self._repair.budget)

    def build(self, k: int) -> Candidate:
        """The file with the first ``k`` groups of the ranking in float."""
        failing = self._failing.candidate
        file = self._repair.folder / f"{MIXED}.{failing.backend}.onnx"
        if self._built != k:
            model = self._quantized()
            back = [self._groups[each.group] for each in self.ranking.groups[:k]]
            restore(model, self._fp32, back)
            self._failing.rewrite(model)
            save(model, file)
            self._built = k
        return replace(
            failing,
            name=failing.name.replace(STATIC, MIXED),
            file=file,
            precision=failing.precision.replace(STATIC, MIXED),
        )

    def _quantized(self) -> ir.Model:
        return lift_constants(ir.load(self._failing.quantized))

    def _save(self) -> None:
        self._trials.seconds = self.seconds
        self._trials.save()
