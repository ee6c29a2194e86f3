"""A bundle's variants on this host: who may serve here, how fast each is, and the choice anew.

Which variant is fastest changes with the CPU, and rounding does too. So on a host that the
certificates do not cover, every variant answers the goldens again, those that answer them rightly
are timed in turns, and the fastest is chosen by optimize's rules: one that is proven here before
one that is not, none that is proven to lose too much, and fp32 where nothing is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from edgewright.backends import ON_CPU, Session, get_backend
from edgewright.bundle import Bundle, Variant, Verdict
from edgewright.errors import BackendUnavailableError, ConfigError, IntegrityError
from edgewright.latency import (
    Arrays,
    Effort,
    Timing,
    Workload,
    inputs_from_rows,
    refuse_other_shapes,
)
from edgewright.latency_rounds import compare
from edgewright.preprocess import Preprocessor
from edgewright.proof.goldens import Goldens, check_goldens
from edgewright.proof.host_record import HostKey, HostRecord, Speed, VariantHere

Clock = Callable[[], float]  # seconds, monotonic
Apart = Callable[[Callable[[], object]], object]  # does a piece of work in another process

_SERVABLE: Final = (Verdict.PASS, Verdict.INCONCLUSIVE)  # the latter where optimize allowed it
_PROVEN: Final = (Verdict.PASS, Verdict.VERIFIED)
# Of the seconds allowed. The rest is room for the fewest rounds on a host that is busy, where a
# call was seen to take four times as long.
_PLANNED: Final = 0.25
_LEAST_ROUNDS: Final = 6  # the fewest that bound a median at 95%


def workload_here(bundle: Bundle, given: str | None = None) -> Workload:
    """What to time: as given, else what optimize timed, else the lengths of the goldens.

    Raises:
        ConfigError: it cannot be read, or is not what this model takes.
    """
    preprocessor: Preprocessor = bundle.preprocessor()
    told = given or bundle.choice.get("workload")
    if told is None:
        rows = Goldens.load(bundle.path).rows(preprocessor)
        return Workload.from_lengths([len(row) for row in rows])
    workload = Workload.parse(told)
    refuse_other_shapes(workload, preprocessor)
    return workload


def try_variants(
    bundle: Bundle,
    host: HostKey,
    workload: Workload,
    *,
    limit_s: float,
    previous: HostRecord | None = None,
    clock: Clock = time.perf_counter,
    apart: Apart | None = None,
) -> HostRecord:
    """Measure every variant that may serve here, and choose.

    Args:
        bundle: verified.
        host: this host, as ``HostKey.here`` tells it.
        workload: what to time.
        limit_s: seconds that timing may take at most, where a quarter is planned; loading and
            goldens are not counted.
        previous: an earlier record of this host, whose recounts still hold.
        clock: seconds; a parameter so that tests need not wait.
        apart: where this process must outlive what a variant may do to its runtime: each is loaded
            there first, unless it takes a GPU. Raises IntegrityError where that ends a process.

    Raises:
        IntegrityError: no variant answers the goldens rightly here; says why of each.
        ConfigError: timing did not end within ``limit_s``.
    """
    preprocessor: Preprocessor = bundle.preprocessor()
    sessions: dict[str, Session] = {}
    found = []
    for variant in bundle.variants:
        try:
            sessions[variant.name], verdict = _fit(bundle, variant, preprocessor, host, apart)
            found.append(VariantHere(variant.name, verdict, None))
        except (IntegrityError, BackendUnavailableError) as error:
            found.append(VariantHere(variant.name, Verdict.UNVERIFIED, None, refused=str(error)))
    if not sessions:
        reasons = "; ".join(each.refused for each in found)
        raise IntegrityError(f"{bundle.path} has no variant that can serve on this host: {reasons}")
    timings = _time(bundle, sessions, preprocessor, workload, limit_s, clock)
    tried = [
        replace(each, speed=_speed(timings[each.name])) if each.name in timings else each
        for each in found
    ]
    if previous is not None:
        counted = {each.name: each.recount for each in previous.variants}
        tried = [each.with_recount(counted.get(each.name)) for each in tried]
    return conclude(bundle, host, str(workload), tried)


def conclude(
    bundle: Bundle, host: HostKey, workload: str, variants: Sequence[VariantHere]
) -> HostRecord:
    """The record of these variants, with the choice among them.

    The fastest that is faster than the baseline beyond noise: of those proven here, else of those
    not proven to lose too much; else the baseline.
    """
    timed = [each for each in variants if each.speed is not None]
    fit = [each for each in timed if each.verdict is not Verdict.FAIL] or timed
    faster = [each for each in fit if each.speed is not None and each.speed.is_faster]
    best = [each for each in faster if each.verdict in _PROVEN] or faster
    baseline = bundle.baseline
    if not best:
        best = [each for each in fit if baseline is not None and each.name == baseline.name] or fit
    chosen = max(best, key=lambda each: each.speed.speedup if each.speed else 0.0)
    return HostRecord(bundle.artifact.manifest_sha256, host, workload, tuple(variants), chosen.name)


def _fit(
    bundle: Bundle,
    variant: Variant,
    preprocessor: Preprocessor,
    host: HostKey,
    apart: Apart | None,
) -> tuple[Session, Verdict]:
    """A session that has answered the goldens, and what holds of the variant here.

    Raises:
        IntegrityError: it may not serve, cannot be loaded, or answers otherwise than recorded.
        BackendUnavailableError: its runtime is not installed.
    """
    certificate = variant.certificate
    certified = certificate is not None and certificate.verdict in _SERVABLE
    if not certified and variant != bundle.baseline:
        verdict = certificate.verdict if certificate else "missing"
        raise IntegrityError(f"its certificate is {verdict}, so it may not serve")
    if apart is not None and variant.backend in ON_CPU:
        apart(partial(_check_loads, bundle, variant, host))
    return _loaded(bundle, variant, preprocessor, host)


def _check_loads(bundle: Bundle, variant: Variant, host: HostKey) -> None:
    _loaded(bundle, variant, bundle.preprocessor(), host)


def _loaded(
    bundle: Bundle, variant: Variant, preprocessor: Preprocessor, host: HostKey
) -> tuple[Session, Verdict]:
    certificate, backend = variant.certificate, get_backend(variant.backend)
    session = backend.load(
        bundle.path / variant.file, threads=host.threads, options=variant.session_options
    )
    holds = certificate is not None and certificate.holds(backend.runtime(), host.instruction_set)
    result = check_goldens(bundle, variant, session, preprocessor, same_host=holds)
    return session, result.verdict


def _time(
    bundle: Bundle,
    sessions: Mapping[str, Session],
    preprocessor: Preprocessor,
    workload: Workload,
    limit_s: float,
    clock: Clock,
) -> Mapping[str, Timing]:
    """Each against the baseline, or against the first where that is not among them."""
    baseline = bundle.baseline
    reference = baseline.name if baseline and baseline.name in sessions else next(iter(sessions))
    deadline = clock() + limit_s

    def bounded(session: Session) -> Callable[[Arrays], object]:
        def run(arrays: Arrays) -> Any:
            if clock() > deadline:
                raise ConfigError(
                    f"timing {len(sessions)} variants at the workload {workload} takes more than "
                    f"the {limit_s:g} s allowed; allow more, or give a lighter workload"
                )
            return session.run(arrays)

        return run

    return compare(
        {name: bounded(session) for name, session in sessions.items()},
        reference,
        workload,
        inputs_from_rows(preprocessor, Goldens.load(bundle.path).rows(preprocessor)),
        row_by_row={each.name for each in bundle.variants if not each.batch_invariant},
        effort=Effort(budget_s=_PLANNED * limit_s, min_rounds=_LEAST_ROUNDS),
        clock=clock,
    )


def _speed(timing: Timing) -> Speed:
    return Speed(
        p50_ms=timing.p50_ms,
        workload_ms=timing.workload_ms,
        speedup=timing.ratio,
        speedup_interval=(timing.ratio_low, timing.ratio_high),
    )
