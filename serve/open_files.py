"""How many files the process may have open: each connection is one, and 1,024 is a usual limit."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)


def allow_open_files(wanted: int) -> None:
    """Raise the limit to ``wanted`` where it is lower, as far as the system lets the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # a sandbox forbids it, or a kernel knows a limit of its own
        most = soft
    if most < wanted:
        log.warning(
            "the process may open %d files, and as many connections as it takes need %d; "
            "raise the limits (ulimit -Hn, then ulimit -n)",
            most,
            wanted,
        )
