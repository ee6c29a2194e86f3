"""Run by a server whose polling thread loses the call of a method that it fails to look up."""

from __future__ import annotations

import sys

from edgewright.serve.call_edge import CallEdge

LOST = "/the/lost"

if __name__ == "__main__":
    plain = CallEdge.is_read_first

    def is_read_first(edge: CallEdge, path: str) -> bool:
        if path == LOST:
            raise MemoryError
        return plain(edge, path)

    CallEdge.is_read_first = is_read_first  # type: ignore[method-assign]
    exec(sys.argv.pop(1))
