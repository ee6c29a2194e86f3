"""What ``current.json`` of a model says: which version is served, and what the others get.

    {"current": 3, "history": [1, 2, 3], "canary": {"version": 4, "weight": 0.1},
     "shadow": 5, "unloaded": true}

``history`` ends with the current version; ``canary``, ``shadow`` and ``unloaded`` may be absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from edgewright.errors import ConfigError
from edgewright.manifest import canonical_json

_MOST_HISTORY: Final = 1000  # versions that can be gone back to


@dataclass(frozen=True)
class Canary:
    """A version that answers a share of the calls that name none.

    Raises:
        ConfigError: the weight is not above 0 and at most 1.
    """

    version: int
    weight: float  # of the calls, as a share

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ConfigError(
                f"the canary's weight is {self.weight:g}; a share above 0 and at most 1 is expected"
            )


@dataclass(frozen=True)
class Pointer:
    """One model's state in the repository; without a history the highest version is current."""

    history: tuple[int, ...] = ()
    canary: Canary | None = None
    shadow: int | None = None  # gets copies of the current version's calls; answers nobody
    unloaded: bool = False  # not served until a version is made current again

    @property
    def named(self) -> tuple[int, ...]:
        """The versions that it names for serving, the current one first."""
        others = (self.canary.version if self.canary else None, self.shadow)
        return (*self.history[-1:], *(each for each in others if each is not None))

    def to(self, version: int) -> Pointer:
        """``version`` is current; it is canary or shadow no more, and the model is served."""
        again = self.history[-1:] == (version,)
        history = self.history if again else (*self.history, version)[-_MOST_HISTORY:]
        return replace(self.without(version), history=history, unloaded=False)

    def back_to(self, version: int) -> Pointer:
        """As ``to``, for one of the history; what came after it is forgotten."""
        place = len(self.history) - 1 - self.history[::-1].index(version)
        return replace(self.to(version), history=self.history[: place + 1])

    def without(self, version: int) -> Pointer:
        """``version`` is neither canary nor shadow."""
        canary = None if self.canary and self.canary.version == version else self.canary
        return replace(self, canary=canary, shadow=None if self.shadow == version else self.shadow)

    def to_bytes(self) -> bytes:
        """The file's content; ``from_bytes`` is its inverse."""
        told: dict[str, Any] = {"current": self.history[-1], "history": list(self.history)}
        if self.canary is not None:
            told["canary"] = {"version": self.canary.version, "weight": self.canary.weight}
        if self.shadow is not None:
            told["shadow"] = self.shadow
        if self.unloaded:
            told["unloaded"] = True
        return canonical_json(told)

    @classmethod
    def from_bytes(cls, content: bytes) -> Pointer:
        """Read what ``to_bytes`` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls._from_json(json.loads(content))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error

    @classmethod
    def _from_json(cls, told: Mapping[str, Any]) -> Pointer:
        history, canary, shadow = told["history"], told.get("canary"), told.get("shadow")
        unloaded = told.get("unloaded", False)
        pointer = cls(
            history=tuple(history),
            canary=None if canary is None else Canary(canary["version"], canary["weight"]),
            shadow=shadow,
            unloaded=unloaded,
        )
        versions = (*pointer.history, *pointer.named)
        if not isinstance(history, list) or any(type(each) is not int for each in versions):
            raise ValueError("a version is no number")
        if type(unloaded) is not bool:
            raise ValueError("unloaded is neither true nor false")
        return pointer
