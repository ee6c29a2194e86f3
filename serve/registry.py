"""Which models this server holds: the versions of each that are loaded, and who answers what."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from edgewright.errors import InputError, ModelNotFoundError, NotReadyError
from edgewright.serve.models import ServedModel


class State(Enum):
    """What of its life the server is in; a model shares its server's."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Role(Enum):
    """What a version gets of the calls that name none."""

    CURRENT = "current"
    CANARY = "canary"  # a share
    SHADOW = "shadow"  # copies of what the current version answered
    HELD = "held"  # nothing


@dataclass(frozen=True)
class Entry:
    """One version of one model; ``served`` is None while it is loading."""

    name: str
    version: int
    served: ServedModel | None = None
    role: Role = Role.CURRENT


@dataclass(frozen=True)
class Lineup:
    """The loaded versions of one model; replaced as a whole, so that no call sees half a swap."""

    name: str
    current: int
    versions: Mapping[int, ServedModel] = field(default_factory=dict)
    canary: int | None = None  # like ``shadow``, only while it is loaded
    canary_weight: float = 0.0
    shadow: int | None = None

    def role(self, version: int) -> Role:
        """What ``version`` gets."""
        roles = {self.shadow: Role.SHADOW, self.canary: Role.CANARY, self.current: Role.CURRENT}
        return roles.get(version, Role.HELD)

    def entries(self) -> list[Entry]:
        """The current version first, loaded or not, then the others from the highest down."""
        others = sorted(self.versions.keys() - {self.current}, reverse=True)
        return [
            Entry(self.name, version, self.versions.get(version), self.role(version))
            for version in (self.current, *others)
        ]


class Registry:
    """Models by name. Lives on the event loop's thread."""

    def __init__(self, rng: random.Random | None = None) -> None:
        """``rng`` deals calls to the canaries."""
        self.state = State.LOADING
        self._lineups: dict[str, Lineup] = {}
        self._rng = rng or random.Random()

    def put(self, lineup: Lineup) -> None:
        """Answer by ``lineup`` from now on."""
        self._lineups[lineup.name] = lineup

    def remove(self, name: str) -> None:
        """Hold nothing of this name any more."""
        self._lineups.pop(name, None)

    def lineup(self, name: str) -> Lineup | None:
        """What is held of the model ``name``, if anything."""
        return self._lineups.get(name)

    def names(self) -> list[str]:
        """Every model, sorted."""
        return sorted(self._lineups)

    def entries(self) -> Iterable[Entry]:
        """Every version of every model, by name, the current one first."""
        return [entry for name in self.names() for entry in self._lineups[name].entries()]

    def entry(self, name: str, version: int = 0) -> Entry:
        """The model of this name; empty stands for the only one, version 0 for the current one.

        Raises:
            InputError: no name is given, and there are several models.
            ModelNotFoundError: no model of that name, or not in that version.
        """
        lineup = self._found(name)
        for entry in lineup.entries():
            if version in (0, entry.version):
                return entry
        known = ", ".join(str(each.version) for each in lineup.entries())
        raise ModelNotFoundError(
            f"version {version} of {lineup.name!r} is not served; there are: {known}"
        )

    def ready(self, name: str, version: int = 0) -> ServedModel:
        """The model that describes itself; its current version, where none is named.

        Raises:
            InputError, ModelNotFoundError: as ``entry``.
            NotReadyError: it is still being loaded.
        """
        lineup = self._found(name)
        served = lineup.versions.get(version or lineup.current)
        if served is None or self.state is State.LOADING:
            entry = self.entry(name, version)
            raise NotReadyError(f"{entry.name!r} is still being loaded; try again in a moment")
        return served

    def route(self, name: str, version: int = 0) -> ServedModel:
        """The model to answer one call with: as ``ready``, but a canary gets its share."""
        if not version:
            lineup = self._found(name)
            if lineup.canary is not None and self._rng.random() < lineup.canary_weight:
                version = lineup.canary
        return self.ready(name, version)

    def _found(self, name: str) -> Lineup:
        if not name and len(self._lineups) > 1:
            raise InputError(f"model is empty; name one of: {self._known()}", field="model")
        lineup = self._lineups.get(name) if name else next(iter(self._lineups.values()), None)
        if lineup is None and not name:
            raise ModelNotFoundError("no model is served; load or publish one")
        if lineup is None:
            raise ModelNotFoundError(f"no model {name!r} is served; there are: {self._known()}")
        return lineup

    def _known(self) -> str:
        return ", ".join(self.names()) or "none"
