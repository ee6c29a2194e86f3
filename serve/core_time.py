"""How much of a core another process gets, as Linux tells it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

# In /proc/PID/stat, counted from what follows the name of the program; see proc(5).
_STATE: Final = 0
_ENDED: Final = "Z"  # whoever started or inherited it has not asked for its exit code yet
_USER_TICKS: Final = 11
_SYSTEM_TICKS: Final = 12


class CoreTime(NamedTuple):
    """What a process has got until a moment."""

    wants_core: bool  # it runs, or waits for a core: for no disk, and it does not sleep
    seconds: float  # of one core, over all its threads; to a hundredth

    @classmethod
    def of(cls, pid: int) -> CoreTime | None:
        """Now; None where that cannot be seen: there is no /proc, or the process has ended."""
        try:
            line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        fields = line.rpartition(")")[2].split()  # a name may hold anything
        if fields[_STATE] == _ENDED:
            return None
        ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
        return cls(fields[_STATE] == "R", ticks / os.sysconf("SC_CLK_TCK"))

    def starves(self, before: CoreTime, passed_s: float, least: float) -> bool:
        """Whether it wants a core and, ``passed_s`` after ``before``, got under ``least`` of it."""
        return self.wants_core and self.seconds - before.seconds < least * passed_s
