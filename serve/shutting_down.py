"""What whoever comes to a server that drains, or is closed, is told."""

from __future__ import annotations

from edgewright.errors import NotReadyError


def shutting_down(instead: str = "call another replica") -> NotReadyError:
    """The error; ``instead`` is what its caller is to do."""
    return NotReadyError(f"the server is shutting down; {instead}")
