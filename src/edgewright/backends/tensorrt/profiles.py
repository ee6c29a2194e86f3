"""Optimisation profiles: the ranges of shapes that an engine takes, and those it is tuned for.

Written as session options, profiles separated by ";" and inputs by spaces, each with its smallest,
its best and its largest shape: ``input_ids=1x1,1x32,1x128 attention_mask=1x1,1x32,1x128``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgewright.errors import ConfigError

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Of one input: every axis lies between ``smallest`` and ``largest``; ``best`` is tuned for."""

    smallest: Dims
    best: Dims
    largest: Dims

    def __str__(self) -> str:
        return ",".join("x".join(map(str, dims)) for dims in self._all)

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape may be given."""
        return len(shape) == len(self.best) and all(
            low <= size <= high
            for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )

    @property
    def sound(self) -> bool:
        """Whether smallest <= best <= largest in every axis."""
        same = len({len(dims) for dims in self._all}) == 1
        return same and self.smallest != () and self.holds(self.best)

    @property
    def _all(self) -> tuple[Dims, Dims, Dims]:
        return self.smallest, self.best, self.largest


@dataclass(frozen=True)
class Profile:
    """A range for every input."""

    ranges: Mapping[str, Range]

    def __str__(self) -> str:
        return " ".join(f"{name}={each}" for name, each in sorted(self.ranges.items()))

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether it takes inputs of these shapes together."""
        return all(each.holds(shapes[name]) for name, each in self.ranges.items())


def format_profiles(profiles: Sequence[Profile]) -> str:
    """``parse_profiles`` is its inverse."""
    return ";".join(map(str, profiles))


def parse_profiles(text: str) -> tuple[Profile, ...]:
    """Read what ``format_profiles`` wrote.

    Raises:
        ConfigError: names every part that cannot be read.
    """
    profiles, faults = [], []
    for part in text.split(";"):
        ranges = {}
        for item in part.split():
            name, _, shapes = item.partition("=")
            found = _read_range(shapes)
            if not name or found is None or not found.sound:
                faults.append(
                    f"profile {item!r}: expected INPUT=SMALLEST,BEST,LARGEST, "
                    "as input_ids=1x1,8x128,32x128"
                )
            else:
                ranges[name] = found
        profiles.append(Profile(ranges))
    if not faults and not all(profile.ranges for profile in profiles):
        faults.append(f"profiles {text!r}: one of them names no input")
    if faults:
        raise ConfigError(faults)
    return tuple(profiles)


def _read_range(text: str) -> Range | None:
    try:
        smallest, best, largest = (tuple(map(int, each.split("x"))) for each in text.split(","))
    except ValueError:
        return None
    return Range(smallest, best, largest)
