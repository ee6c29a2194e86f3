"""What of the repository cannot be served as it says; told in the log once, in answers while so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

REPOSITORY = ""  # in the place of a model's name
WHOLE_MODEL = 0  # in the place of a version

log = logging.getLogger(__name__)


@dataclass
class _Problem:
    message: str
    told: set[str] = field(default_factory=set)


class Counts(Protocol):
    """Who is told how many problems there are."""

    def problems(self, model: str, count: int) -> None:
        """So many of ``model`` there are now."""
        ...

    def forgotten(self, model: str) -> None:
        """There is no such model any more."""
        ...


class Problems:
    """Messages by model and version. Lives on the event loop."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._counted: set[str] = set()
        self._known: dict[tuple[str, int], _Problem] = {}

    def put(self, name: str, found: Mapping[int, str]) -> None:
        """These, by version, are the problems of the model ``name``, and there are no others."""
        for key in [key for key in self._known if key[0] == name and key[1] not in found]:
            del self._known[key]
        for version, message in found.items():
            self._tell(name, version, message)
        self._counted.add(name)
        self._counts.problems(name, len(found))

    def add(self, name: str, version: int, message: str) -> None:
        """One more of the model ``name``."""
        self.put(name, {**self.of(name), version: message})

    def remove(self, name: str, version: int) -> None:
        """One less."""
        self.put(name, {key: each for key, each in self.of(name).items() if key != version})

    def keep(self, names: Iterable[str]) -> None:
        """Forget the models that are not among ``names``."""
        kept = {REPOSITORY, *names}
        self._known = {key: each for key, each in self._known.items() if key[0] in kept}
        for name in self._counted - kept:
            self._counts.forgotten(name)
        self._counted &= kept

    def of(self, name: str) -> dict[int, str]:
        """The problems of a model by version."""
        return {key[1]: each.message for key, each in self._known.items() if key[0] == name}

    def names(self) -> list[str]:
        """Models with problems, sorted."""
        return sorted({name for name, _ in self._known} - {REPOSITORY})

    def _tell(self, name: str, version: int, message: str) -> None:
        """Log it once; of a folder that is being copied, again when it has come to rest."""
        known = self._known.get((name, version))
        if known is None:
            known = self._known[name, version] = _Problem(message)
        elif known.message != message:
            known.message = message
            return
        if message not in known.told:
            known.told.add(message)
            log.warning("%s", message)
