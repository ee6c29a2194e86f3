"""One line for each call that ended: who asked what, how it went and where the time was spent.

Never what was asked: neither inputs nor answers are in it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from edgewright.serve.call_record import CallRecord, stages

log = logging.getLogger("edgewright.access")


class AccessLevel(StrEnum):
    """Which calls get a line."""

    OFF = "off"
    ERRORS = "errors"
    ALL = "all"


class AccessLog:
    """Writes the lines."""

    def __init__(self, level: AccessLevel) -> None:
        self._level = level
        log.setLevel(logging.INFO)  # asked for, also where --quiet silences the rest

    def write(self, record: CallRecord, code: str, ended: float) -> None:
        """A line about a call that ended then, by time.monotonic, if it is to have one."""
        if self._level is AccessLevel.ERRORS and code == "OK":
            return
        log.info("%s %s", record.method, code, extra={"fields": _fields(record, code, ended)})


def _fields(record: CallRecord, code: str, ended: float) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"method": record.method, "code": code}
    fields |= {"caller": record.known_as or record.caller, "address": record.caller}
    if record.answered_by is not None:
        fields |= dict(zip(("model", "version"), record.answered_by, strict=True))
    fields |= {"rows": record.rows, "ms": _ms(ended - record.started)}
    if record.messages:
        fields["messages"] = record.messages
    spent: dict[str, float] = defaultdict(float)
    for stage in stages(record, ended):
        spent[stage.name] += stage.ended - stage.started
    return fields | {f"{name}_ms": _ms(seconds) for name, seconds in spent.items()}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
