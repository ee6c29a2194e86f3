"""Which models this server holds, and in what state: one current version of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from edgewright.errors import InputError, ModelNotFoundError, NotReadyError
from edgewright.serve.models import ServedModel


class State(Enum):
    """What of its life the server is in; a model shares its server's."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class Entry:
    """One model by name; ``served`` is None while it is loading."""

    name: str
    version: int
    served: ServedModel | None = None


class Registry:
    """Models by name. Lives on the event loop's thread."""

    def __init__(self) -> None:
        self.state = State.LOADING
        self._entries: dict[str, Entry] = {}

    def expect(self, name: str, version: int) -> None:
        """Announce a model that is about to be loaded."""
        self._entries[name] = Entry(name, version)

    def add(self, model: ServedModel) -> None:
        """Take in a model that has been loaded."""
        self._entries[model.name] = Entry(model.name, model.version, model)

    def entries(self) -> Iterable[Entry]:
        """Every model, by name."""
        return [self._entries[name] for name in sorted(self._entries)]

    def entry(self, name: str, version: int = 0) -> Entry:
        """The model of this name; empty stands for the only one, version 0 for the current one.

        Raises:
            InputError: no name is given, and there are several models.
            ModelNotFoundError: no model of that name, or not in that version.
        """
        if not name and len(self._entries) > 1:
            raise InputError(f"model is empty; name one of: {self._known()}", field="model")
        entry = self._entries.get(name) if name else next(iter(self._entries.values()), None)
        if entry is None:
            raise ModelNotFoundError(f"no model {name!r} is served; there are: {self._known()}")
        if version not in (0, entry.version):
            raise ModelNotFoundError(
                f"version {version} of {entry.name!r} is not served; version {entry.version} is"
            )
        return entry

    def ready(self, name: str, version: int = 0) -> ServedModel:
        """The model to answer with.

        Raises:
            InputError, ModelNotFoundError: as ``entry``.
            NotReadyError: it is still being loaded.
        """
        entry = self.entry(name, version)
        if entry.served is None or self.state is State.LOADING:
            raise NotReadyError(f"{entry.name!r} is still being loaded; try again in a moment")
        return entry.served

    def _known(self) -> str:
        return ", ".join(sorted(self._entries)) or "none yet"
