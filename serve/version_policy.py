"""Which versions of a model are held ready, beside those that current.json names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.errors import ConfigError

EXPECTED: Final = "current, latest:N or all"
_LATEST: Final = re.compile("latest:([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class VersionPolicy:
    """The ``latest`` highest versions; 0 for none of them, None for all."""

    latest: int | None = 0

    @classmethod
    def parse(cls, told: str) -> VersionPolicy:
        """What the option --versions says.

        Raises:
            ConfigError: it is none of ``EXPECTED``.
        """
        latest = _LATEST.fullmatch(told)
        if told in ("current", "all"):
            return cls(0 if told == "current" else None)
        if latest is None:
            raise ConfigError(f"--versions is {told!r:.100}; it must be {EXPECTED}")
        return cls(int(latest[1]))

    def wanted(self, versions: Sequence[int]) -> list[int]:
        """Of ``versions``, ascending, those to hold, the highest first."""
        return list(versions[::-1][: self.latest])
