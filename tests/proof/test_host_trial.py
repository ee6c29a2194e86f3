"""What holds of a variant on a host, and which one is chosen there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serve.bundles import Recipe, make_bundle, other_variant, preprocessor

from edgewright.bundle import Bundle, Certificate, Verdict
from edgewright.errors import ConfigError
from edgewright.proof.goldens import Goldens
from edgewright.proof.host_record import HostKey, HostRecord, Speed, VariantHere
from edgewright.proof.host_trial import conclude, try_variants, workload_here

FP32, A, B = "onnxruntime-fp32", "onnxruntime-a", "onnxruntime-b"
UNVERIFIED, FAIL, PASS, VERIFIED = (
    Verdict.UNVERIFIED,
    Verdict.FAIL,
    Verdict.PASS,
    Verdict.VERIFIED,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    recipe = Recipe(isa="x86_64-elsewhere", chosen=A, extra=(other_variant(A), other_variant(B)))
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("trial") / "bundle", recipe))


def here(name: str, speedup: float, verdict: Verdict = UNVERIFIED) -> VariantHere:
    speed = Speed({"1x4": 1 / speedup}, 1 / speedup, speedup, (0.95 * speedup, 1.05 * speedup))
    return VariantHere(name, verdict, speed)


@pytest.mark.parametrize(
    ("a", "b", "chosen"),
    [
        ((3.0, UNVERIFIED), (2.0, UNVERIFIED), A),
        ((3.0, FAIL), (2.0, UNVERIFIED), B),
        ((3.0, FAIL), (2.0, FAIL), FP32),
        ((3.0, UNVERIFIED), (2.0, VERIFIED), B),
        ((3.0, VERIFIED), (2.0, PASS), A),
        ((3.0, UNVERIFIED), (0.9, VERIFIED), A),  # what is no faster helps nobody
        ((1.02, VERIFIED), (0.9, VERIFIED), FP32),  # within the noise
    ],
)
def test_the_fastest_that_is_allowed_is_chosen(
    bundle: Bundle, a: tuple[float, Verdict], b: tuple[float, Verdict], chosen: str
) -> None:
    variants = [here(FP32, 1.0), here(A, *a), here(B, *b)]
    assert conclude(bundle, HostKey.here(bundle, 1), "1x4", variants).chosen == chosen


def test_without_fp32_the_fastest_serves(bundle: Bundle) -> None:
    refused = VariantHere(FP32, UNVERIFIED, None, refused="its goldens differ")
    variants = [refused, here(A, 1.0), here(B, 0.8)]
    assert conclude(bundle, HostKey.here(bundle, 1), "1x4", variants).chosen == A


@pytest.mark.parametrize(
    ("before", "counted", "after"),
    [
        (UNVERIFIED, VERIFIED, VERIFIED),
        (UNVERIFIED, Verdict.INCONCLUSIVE, UNVERIFIED),
        (UNVERIFIED, Verdict.REUSED, UNVERIFIED),
        (UNVERIFIED, FAIL, FAIL),
        (PASS, VERIFIED, PASS),  # proven against the fine-tuned model: the stronger claim
        (PASS, FAIL, FAIL),
    ],
)
def test_a_recount_changes_the_verdict_only_by_what_it_proves(
    before: Verdict, counted: Verdict, after: Verdict
) -> None:
    recount = Certificate(
        counted, 0.01, 0.03, 400, 0, 0, 0.01, -0.01, None, "", "", "", "", threads=1
    )
    assert here(A, 2.0, before).with_recount(recount).verdict is after


def test_a_record_survives_its_json(bundle: Bundle) -> None:
    host = HostKey.here(bundle, 1)
    refused = VariantHere(B, UNVERIFIED, None, refused="its goldens differ")
    record = conclude(bundle, host, "1x4", [here(FP32, 1.0), here(A, 2.0), refused])
    assert HostRecord.from_json(record.to_json()) == record


def test_another_cpu_runtime_or_number_of_threads_has_another_record(bundle: Bundle) -> None:
    host = HostKey.here(bundle, 1)
    others = [
        replace(host, cpu="another"),
        replace(host, runtimes=("onnxruntime 0.1",)),
        replace(host, instruction_set="x86_64-another"),
        replace(host, threads=2),
    ]
    assert len({each.record_name for each in (host, *others)}) == 5


def test_goldens_become_the_rows_they_were_made_of(bundle: Bundle) -> None:
    goldens = Goldens.load(bundle.path)
    assert goldens.raw is not None
    for row, expected in zip(
        goldens.rows(preprocessor()), preprocessor().encode(list(goldens.raw)), strict=True
    ):
        assert row.input_ids.tolist() == expected.input_ids.tolist()  # type: ignore[attr-defined]


def test_without_a_declared_workload_the_goldens_lengths_are_taken(bundle: Bundle) -> None:
    lengths = [len(row) for row in Goldens.load(bundle.path).rows(preprocessor())]
    shapes = workload_here(bundle).shares
    assert {shape.rows for shape in shapes} == {1, 8}
    assert max(shape.length for shape in shapes) == max(lengths)


def test_timing_ends_when_its_time_is_up(bundle: Bundle) -> None:
    ticks = iter(range(10_000))

    def a_second_each() -> float:
        return float(next(ticks))

    with pytest.raises(ConfigError, match=r"takes more than the 5 s allowed"):
        try_variants(
            bundle, HostKey.here(bundle, 1), workload_here(bundle), limit_s=5, clock=a_second_each
        )
    assert next(ticks) < 20


def test_what_is_recorded_is_what_was_timed(bundle: Bundle, tmp_path: Path) -> None:
    record = try_variants(bundle, HostKey.here(bundle, 1), workload_here(bundle, "1x4"), limit_s=8)
    assert record.workload == "1x4:1.0"
    for each in record.variants:
        assert each.speed is not None
        assert each.speed.p50_ms.keys() == {"1x4"}
        low, high = each.speed.speedup_interval
        assert low <= each.speed.speedup <= high
