from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgewright.bundle import Certificate, Verdict
from edgewright.optimize.certify import certify
from edgewright.optimize.config import OptimizeConfig
from edgewright.proof.certificate import PairedCounts, Subject
from edgewright.proof.ledger import open_ledger

SPLIT = "c" * 64
CONFIG = OptimizeConfig(Path("checkpoint"), Path("bundle"))


def _subject(name: str) -> Subject:
    return Subject(name * 64, "onnxruntime 1.32.0", "x86_64-amx", row_by_row=False)


class Counter:
    """Counts of n = 400 without a loss; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> dict[str, PairedCounts]:
        self.asked.append(list(names))
        return dict.fromkeys(names, PairedCounts(n=400, lost=0, won=0))


def _certify(folder: Path, names: str, count: Counter) -> dict[str, Certificate]:
    subjects = {name: _subject(name.lower()) for name in names}
    with open_ledger(folder, SPLIT, on_wait=lambda lock: None) as ledger:
        return certify(list(names), subjects, count, ledger, CONFIG)


def test_the_order_decides_the_error_rates(tmp_path: Path) -> None:
    given = _certify(tmp_path, "bac", Counter())
    assert [given[name].error_rate for name in "bac"] == [0.03, 0.01, 0.01]
    assert [given[name].verdict for name in "bac"] == [
        Verdict.PASS,
        Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE,
    ]


def test_only_new_files_are_counted_and_all_at_once(tmp_path: Path) -> None:
    count = Counter()
    _certify(tmp_path, "a", count)
    _certify(tmp_path, "bac", count)
    _certify(tmp_path, "cab", count)
    assert count.asked == [["a"], ["b", "c"]]


def test_files_beyond_the_third_are_reused_and_not_counted(tmp_path: Path) -> None:
    count = Counter()
    _certify(tmp_path, "ab", count)
    given = _certify(tmp_path, "cde", count)
    assert count.asked == [["a", "b"], ["c"]]
    assert [given[name].verdict for name in "de"] == [Verdict.REUSED, Verdict.REUSED]


def test_one_file_under_two_names_takes_one_slot(tmp_path: Path) -> None:
    count = Counter()
    given = _certify(tmp_path, "aA", count)
    assert count.asked == [["a"]]
    assert given["a"] == given["A"]
