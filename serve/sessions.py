"""Several sessions of one model behind one, so that several threads can run it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from numpy.typing import NDArray

from edgewright.backends import Session


class Sessions:
    """A ``Session`` whose ``run`` may be called from several threads.

    Each run borrows the session that was used last, whose weights may still be in the cache, and
    waits where none is idle.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        """``sessions`` are of the same file and options, one or more.

        One that may run several times at once stands there as often.
        """
        self.inputs = sessions[0].inputs
        self.outputs = sessions[0].outputs
        self.each = tuple(sessions)
        self._idle = list(sessions)
        self._free: SimpleQueue[None] = SimpleQueue()  # one for each that is idle
        for _ in sessions:
            self._free.put(None)

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first."""
        self._free.get()
        session = self._idle.pop()
        try:
            return session.run(arrays, outputs)
        finally:
            self._idle.append(session)
            self._free.put(None)
