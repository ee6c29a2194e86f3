"""TensorRT engines that `edgewright build-engine` built on this host: a server takes, never builds.

A build takes minutes, in which a server would not be ready; and what is not proven here must not
answer. So an engine answers where it is recorded as proven and still fits this TensorRT, driver and
GPU, and otherwise what is certified does.
"""

from __future__ import annotations

import logging
from pathlib import Path

from edgewright.backends import Session
from edgewright.backends.tensorrt.backend import TensorRtBackend
from edgewright.backends.tensorrt.session import TensorRtSession
from edgewright.bundle import Bundle, Variant
from edgewright.errors import BackendUnavailableError, ConfigError, IntegrityError
from edgewright.proof.engines import proven_session
from edgewright.state_dir import StateDir

log = logging.getLogger(__name__)


def built_engine(
    bundle: Bundle, state_dir: Path | None, max_batch: int, instances: int
) -> tuple[Variant, list[Session], str] | None:
    """The variant, sessions and runtime of an engine that is proven on this host; else None.

    Args:
        bundle: verified.
        state_dir: as told by --state-dir; None for the user's.
        max_batch: rows that one run may hold; an engine for fewer is not taken.
        instances: sessions of the engine, which may run at once.
    """
    found = _proven(bundle, state_dir) if bundle.prepared else None
    if found is None:
        return None
    variant, session, backend = found
    if session.max_rows < max_batch:
        log.warning(
            "%s: its engine takes %d rows and --max-batch is %d, so it is not used",
            bundle.path,
            session.max_rows,
            max_batch,
        )
        return None
    try:
        others = [session.another() for _ in range(instances - 1)]
    except BackendUnavailableError as error:  # the GPU has no room for them, as a rule
        told = "%s: no engine of it is used, for there cannot be %d --instances of it (%s)"
        log.warning(told, bundle.path, instances, error)
        return None
    return variant, [session, *others], backend.runtime()


def _proven(
    bundle: Bundle, state_dir: Path | None
) -> tuple[Variant, TensorRtSession, TensorRtBackend] | None:
    try:
        found = proven_session(bundle, StateDir.at(state_dir))
    except (BackendUnavailableError, ConfigError, IntegrityError) as error:
        log.warning("%s: no engine of it is used (%s)", bundle.path, error)
        return None
    if found is None:
        log.warning(
            "%s: no engine of it is proven on this host; run `edgewright build-engine %s`",
            bundle.path,
            bundle.path,
        )
    return found
