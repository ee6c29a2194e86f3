"""One model on its way from what answers to what its repository says."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgewright.errors import EdgewrightError
from edgewright.pointer import Pointer
from edgewright.serve.loader import Loaded
from edgewright.serve.models import ServedModel
from edgewright.serve.registry import Lineup


@dataclass(frozen=True)
class Plan:
    """What the repository says of one model."""

    pointer: Pointer
    held: tuple[int, ...]  # versions to have ready, by the policy

    @property
    def current(self) -> int:
        """The version that should answer."""
        return self.pointer.history[-1]

    @property
    def others(self) -> tuple[int, ...]:
        """The versions to have ready beside it, each once."""
        wanted = dict.fromkeys([*self.pointer.named, *self.held])
        return tuple(each for each in wanted if each != self.current)


@dataclass
class Swap:
    """One model on its way from a line-up to the next."""

    name: str
    plan: Plan
    before: Lineup | None
    proven: dict[int, Loaded]
    versions: dict[int, ServedModel] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    failure: EdgewrightError | None = None

    def __post_init__(self) -> None:
        self.versions.update(self.before.versions if self.before else {})

    def candidates(self) -> list[int]:
        """Versions that may be current, the wanted one first, each once."""
        answering = [self.before.current] if self.before and self.before.versions else []
        earlier = reversed(self.plan.pointer.history)
        return list(dict.fromkeys([self.plan.current, *answering, *earlier]))

    def failed(self, version: int, error: EdgewrightError) -> None:
        """``version`` cannot be loaded; the first such is the current one's."""
        # Without its frames, which hold the models and would keep them.
        self.failure = self.failure or error.with_traceback(None)
        self.problems[version] = f"{self.name} version {version} does not answer: {error}"

    def lineup(self, current: int) -> Lineup:
        """What answers now: of the versions that are loaded, those that are wanted."""
        kept = {current, *self.plan.others} & self.versions.keys()
        canary, shadow = self.plan.pointer.canary, self.plan.pointer.shadow
        others = kept - {current}
        return Lineup(
            self.name,
            current,
            {version: self.versions[version] for version in sorted(kept)},
            canary=canary.version if canary and canary.version in others else None,
            canary_weight=canary.weight if canary else 0.0,
            shadow=shadow if shadow in others else None,
        )
