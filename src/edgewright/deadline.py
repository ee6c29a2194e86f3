"""How long a call may try."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgewright.errors import ConfigError

# Years: for ever. Of a few hundred years gRPC makes a deadline that has passed.
LONGEST_S: Final = 1e9


@dataclass(frozen=True)
class Deadline:
    """The moment until which a call may try; ``clock`` gives seconds, monotonic."""

    clock: Callable[[], float]
    timeout_s: float
    at: float

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float]) -> Deadline:
        """The deadline ``timeout_s`` from now.

        Raises:
            ConfigError: not a positive, finite number of seconds.
        """
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(f"timeout_s={timeout_s}: a positive number of seconds is expected")
        timeout_s = min(timeout_s, LONGEST_S)
        return cls(clock, timeout_s, clock() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - self.clock()
