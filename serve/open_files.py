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
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning(
            "the process may open %d files, and as many connections as it takes need %d; "
            "raise the hard limit (ulimit -Hn)",
            most,
            wanted,
        )
