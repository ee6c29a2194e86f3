"""Folders that look like bundles to whoever only lists them, and a loader that reads them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewright.errors import IntegrityError
from edgewright.manifest import SEAL_FILE
from edgewright.repository import CURRENT_FILE, Repository
from edgewright.serve.registry import Lineup

BAD = "bad"


@dataclass(eq=False)
class FakeModel:
    """What the follower needs of a model."""

    name: str
    version: int
    content: str
    instances: int = 1


@dataclass
class Disk:
    """One model in a repository; every version is a seal that says what it holds."""

    path: Path
    name: str = "news"
    loads: list[tuple[str, int]] = field(default_factory=list)

    @property
    def repository(self) -> Repository:
        return Repository(self.path)

    def write(self, version: int, content: str) -> None:
        folder = self.path / self.name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SEAL_FILE).write_text(content)

    def remove(self, version: int) -> None:
        shutil.rmtree(self.path / self.name / str(version), ignore_errors=True)

    def content(self, version: int) -> str | None:
        file = self.path / self.name / str(version) / SEAL_FILE
        return file.read_text() if file.exists() else None

    def corrupt_pointer(self) -> None:
        (self.path / self.name / CURRENT_FILE).write_text("{")

    def load(self, name: str, version: int) -> Any:
        self.loads.append((name, version))
        content = Disk(self.path, name).content(version)
        if content is None or content.startswith(BAD):
            raise IntegrityError(f"version {version} holds {content}")
        return FakeModel(name, version, content)


@dataclass
class FakeCounts:
    """The last count of each model, and how many loads were refused."""

    now: dict[str, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)

    def problems(self, model: str, count: int) -> None:
        self.now[model] = count

    def forgotten(self, model: str) -> None:
        del self.now[model]


@dataclass
class FakeSurroundings:
    """Records what it is told; ``busy`` models have calls in flight."""

    busy: set[Any] = field(default_factory=set)
    came_before_change: list[int] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)

    def came(self, model: Any) -> None:
        self.came_before_change.append(model.version)

    def changed(self, _name: str, lineup: Lineup | None) -> None:
        self.answers.append(lineup.current if lineup else None)

    def is_busy(self, model: Any) -> bool:
        return model in self.busy

    def left(self, model: Any) -> None:
        assert model not in self.busy
