from __future__ import annotations

import numpy as np
import pytest

from edgewright.bundle import Certificate, Verdict
from edgewright.proof.certificate import (
    PairedCounts,
    Subject,
    Trial,
    certificate,
    certify_sha256,
    error_rates,
    reused,
    rows_to_pass,
)

SUBJECT = Subject(
    file_sha256="f" * 64,
    runtime="onnxruntime 1.32.0",
    instruction_set="x86_64-amx",
    row_by_row=True,
    session_options=(("a", "1"), ("b", "2")),
)


def _certificate(
    n: int, lost: int, won: int, *, slot: int = 0, budget: float = 0.01, confidence: float = 0.95
) -> Certificate:
    trial = Trial(slot=slot, counts=PairedCounts(n=n, lost=lost, won=won), threads=1)
    return certificate(trial, SUBJECT, budget=budget, confidence=confidence, split_sha256="c" * 64)


def test_three_slots_share_five_percent_as_three_to_one_to_one() -> None:
    assert error_rates(0.95) == (0.03, 0.01, 0.01)
    assert error_rates(0.9) == pytest.approx((0.06, 0.02, 0.02))


def test_one_point_takes_349_rows_without_a_disagreement() -> None:
    assert rows_to_pass(0.01, 0.03) == 349
    assert _certificate(349, 0, 0).verdict is Verdict.PASS
    assert _certificate(348, 0, 0).verdict is Verdict.INCONCLUSIVE


def test_passes_when_the_upper_bound_is_within_the_budget() -> None:
    given = _certificate(600, 1, 0, budget=0.015)
    assert given.verdict is Verdict.PASS
    assert 0 < given.loss_upper_bound <= 0.015
    assert given.needed_n is None


def test_fails_when_the_lower_bound_exceeds_the_budget() -> None:
    given = _certificate(600, 60, 0)
    assert given.verdict is Verdict.FAIL
    assert given.loss_lower_bound > 0.01
    assert given.needed_n is None


def test_too_few_rows_are_inconclusive_and_the_needed_number_would_pass() -> None:
    given = _certificate(100, 0, 0)
    assert given.verdict is Verdict.INCONCLUSIVE
    assert given.needed_n == 349
    assert _certificate(given.needed_n, 0, 0).verdict is Verdict.PASS


def test_a_loss_at_the_budget_needs_no_number_of_rows() -> None:
    given = _certificate(200, 4, 0, budget=0.02)
    assert given.verdict is Verdict.INCONCLUSIVE
    assert given.needed_n is None


def test_a_later_slot_bounds_the_same_counts_more_cautiously() -> None:
    first, second = _certificate(400, 0, 0), _certificate(400, 0, 0, slot=1)
    assert second.error_rate == 0.01
    assert second.loss_upper_bound > first.loss_upper_bound
    assert (first.verdict, second.verdict) == (Verdict.PASS, Verdict.INCONCLUSIVE)


def test_certificate_names_what_it_binds() -> None:
    given = _certificate(400, 0, 0)
    assert (given.file_sha256, given.runtime) == (SUBJECT.file_sha256, SUBJECT.runtime)
    assert given.certify_sha256 == "c" * 64
    assert Certificate.from_json(given.to_json()) == given


def test_reused_bounds_nothing() -> None:
    given = reused(SUBJECT, budget=0.01, threads=1, split_sha256="c" * 64)
    assert given.verdict is Verdict.REUSED
    assert (given.n, given.loss_lower_bound, given.loss_upper_bound) == (0, -1.0, 1.0)


def test_counts_rows_that_only_one_of_the_two_gets_right() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    reference = np.array([0, 0, 0, 1, 0])
    variant = np.array([1, 0, 1, 0, 1])
    counts = PairedCounts.count(labels, reference, variant)
    assert counts == PairedCounts(n=5, lost=2, won=1)
    assert counts.loss == pytest.approx(0.2)


def test_projected_counts_round_against_the_variant() -> None:
    assert PairedCounts(n=90, lost=1, won=1).at(600) == PairedCounts(n=600, lost=7, won=6)
    assert PairedCounts(n=0, lost=0, won=0).at(600) == PairedCounts(n=600, lost=0, won=0)


def test_subject_survives_json() -> None:
    assert Subject.from_json(SUBJECT.to_json()) == SUBJECT


def test_split_hash_ignores_order_and_heeds_labels() -> None:
    assert certify_sha256(["a", "b"], ["x", "y"]) == certify_sha256(["b", "a"], ["y", "x"])
    assert certify_sha256(["a", "b"], ["x", "y"]) != certify_sha256(["a", "b"], ["y", "x"])
    assert certify_sha256(["a"], ["x"]) != certify_sha256(["a", "b"], ["x", "y"])
