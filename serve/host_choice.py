"""Which of a bundle's variants answers on this host: optimize's choice, or one made here.

Where the certificate of optimize's choice holds, it serves and nothing is measured. On another
class of instruction set, or with another version of its runtime, the variants are measured here,
once: the record in the state folder is used at the next start. A record that `edgewright tune`
left is followed wherever it was made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from edgewright.backends import get_backend
from edgewright.bundle import (
    BASELINE_BACKEND,
    MEASUREMENTS_FILE,
    Bundle,
    Certificate,
    Variant,
    Verdict,
)
from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.proof.host import instruction_set
from edgewright.proof.host_record import (
    HostKey,
    HostRecord,
    read_record,
    threads_here,
    write_record,
)
from edgewright.proof.host_trial import Apart, try_variants, workload_here
from edgewright.state_dir import StateDir

log = logging.getLogger(__name__)


class Remeasure(StrEnum):
    """When a server measures a bundle's variants before it answers."""

    AUTO = "auto"  # where the certificate does not hold and no record is there
    ALWAYS = "always"  # at every start
    NEVER = "never"


class ChosenBy(StrEnum):
    """Who chose the variant that answers."""

    BUNDLE = "bundle"  # optimize, where it ran; or its stand-in, where a runtime is missing
    HOST = "host"  # this host, by what was measured here


@dataclass(frozen=True)
class HostOptions:
    """What a server may do about a host that is not the certified one."""

    state_dir: Path | None = None  # None: the user's
    remeasure: str = Remeasure.AUTO
    limit_s: float = 30.0  # that timing one bundle may take at most
    isa: str | None = None  # class of instruction set; None: look
    apart: Apart | None = None  # as ``try_variants``


DEFAULT_OPTIONS: Final = HostOptions()


@dataclass(frozen=True)
class Choice:
    """The variant that answers, and what rows given on this host proved of it."""

    variant: Variant
    by: ChosenBy
    threads: int
    instruction_set: str
    recount: Certificate | None = None


def choose(bundle: Bundle, threads: int | None, options: HostOptions = DEFAULT_OPTIONS) -> Choice:
    """The variant to serve on this host.

    Args:
        bundle: verified.
        threads: of the session that will answer; None for as many as were certified.
        options: whether to measure, for how long, and where the result goes.

    Raises:
        BackendUnavailableError: no runtime of a certified variant is installed.
        IntegrityError: measured here, no variant answers the goldens rightly.
    """
    threads = threads_here(bundle, threads)
    isa = options.isa or instruction_set()
    standing = choose_variant(bundle)
    record = _record(bundle, standing, threads, replace(options, isa=isa))
    if record is None:
        return Choice(standing, ChosenBy.BUNDLE, threads, isa)
    chosen = record.variant(record.chosen)
    return Choice(bundle.variant(chosen.name), ChosenBy.HOST, threads, isa, chosen.recount)


def choose_variant(bundle: Bundle) -> Variant:
    """The variant that optimize chose or, where its runtime is missing, the best that runs here.

    Raises:
        BackendUnavailableError: no runtime of a certified variant is installed.
    """
    chosen = bundle.chosen
    try:
        get_backend(chosen.backend)
    except BackendUnavailableError as error:
        fallback = _fastest_certified(bundle, BASELINE_BACKEND)
        if fallback is None:
            raise
        log.warning(
            "%s: the chosen variant %s cannot run here (%s); %s answers in its place",
            bundle.path,
            chosen.name,
            error,
            fallback.name,
        )
        return fallback
    return chosen


def _fastest_certified(bundle: Bundle, backend: str) -> Variant | None:
    measured = json.loads((bundle.path / MEASUREMENTS_FILE).read_bytes())["variants"]
    certified = [
        variant
        for variant in bundle.variants
        if variant.backend == backend
        and variant.certificate is not None
        and variant.certificate.verdict is Verdict.PASS
    ]
    return max(certified, key=lambda each: float(measured[each.name]["speedup"]), default=None)


def _record(
    bundle: Bundle, standing: Variant, threads: int, options: HostOptions
) -> HostRecord | None:
    """What was measured here, now or earlier; None where optimize's choice stands."""
    state = _state(options)
    wanted = _is_to_be_measured(standing, options)
    # Without either, the bundle's other runtimes need not even be imported.
    if not wanted and (state is None or not state.of(bundle.artifact.manifest_sha256).is_dir()):
        return None
    host = HostKey.here(bundle, threads, options.isa)
    previous = read_record(state, bundle, host, log.warning) if state is not None else None
    if previous is not None and options.remeasure != Remeasure.ALWAYS:
        log.info("%s: %s, chosen on this host earlier", bundle.path, previous.chosen)
        return previous
    if not wanted:
        return None
    with _alone(state, bundle):
        found = read_record(state, bundle, host, log.debug) if state is not None else None
        if found is not None and options.remeasure != Remeasure.ALWAYS:
            log.info("%s: %s, chosen meanwhile by another process here", bundle.path, found.chosen)
            return found
        record = _measured(bundle, host, options, previous)
        if record is not None and state is not None:
            _keep(state, bundle, record)
    return record


@contextmanager
def _alone(state: StateDir | None, bundle: Bundle) -> Iterator[None]:
    """While no other process here measures this bundle, where a folder can be written."""
    with ExitStack() as stack:
        if state is not None:
            told = "%s: waiting for another process here, which measures its variants"
            lock = state.locked(
                bundle.artifact.manifest_sha256, lambda: log.info(told, bundle.path)
            )
            with suppress(OSError):  # told when the record is written
                stack.enter_context(lock)
        yield


def _is_to_be_measured(standing: Variant, options: HostOptions) -> bool:
    """Where there is no record yet, or whether there is one or not."""
    if options.remeasure != Remeasure.AUTO:
        return options.remeasure == Remeasure.ALWAYS
    runtime, isa = get_backend(standing.backend).runtime(), options.isa or instruction_set()
    certificate = standing.certificate
    return certificate is None or not certificate.holds(runtime, isa)


def _measured(
    bundle: Bundle, host: HostKey, options: HostOptions, previous: HostRecord | None
) -> HostRecord | None:
    log.info("%s: measuring its variants on this host (%s)", bundle.path, host.instruction_set)
    try:
        workload = workload_here(bundle)
        record = try_variants(
            bundle,
            host,
            workload,
            limit_s=options.limit_s,
            previous=previous,
            apart=options.apart,
        )
    except ConfigError as error:
        log.warning(
            "%s could not be measured on this host (%s); optimize's choice answers. "
            "`edgewright tune` measures without haste",
            bundle.path,
            error,
        )
        return None
    _tell(bundle, record)
    return record


def _state(options: HostOptions) -> StateDir | None:
    try:
        return StateDir.at(options.state_dir)
    except ConfigError as error:
        log.warning("%s; what is measured here will be measured again at the next start", error)
        return None


def _tell(bundle: Bundle, record: HostRecord) -> None:
    for each in record.variants:
        if each.refused:
            log.warning(
                "%s: %s does not serve on this host: %s", bundle.path, each.name, each.refused
            )
        elif each.speed is not None:
            low, high = each.speed.speedup_interval
            log.info(
                "%s: %s takes %.3g ms at %s, %.2fx fp32 (%.2f to %.2f)",
                bundle.path,
                each.name,
                each.speed.workload_ms,
                record.workload,
                each.speed.speedup,
                low,
                high,
            )
    log.info(
        "%s: %s is chosen on this host; optimize chose %s",
        bundle.path,
        record.chosen,
        bundle.chosen.name,
    )


def _keep(state: StateDir, bundle: Bundle, record: HostRecord) -> None:
    try:
        file = write_record(state, record)
    except OSError as error:
        log.warning(
            "%s cannot be written (%s), so the next start measures again; "
            "give a folder with --state-dir",
            state.path,
            error.strerror,
        )
        return
    log.info("%s: written to %s", bundle.path, file)
