"""The server made to answer what its repository says, now and whenever that changes.

A version is loaded, proven and warmed up beside those that answer, and takes its place at once when
it is ready. The one before finishes its calls and is let go. What cannot be loaded takes nobody's
place: the version that answers goes on, and the problem is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from edgewright.errors import EdgewrightError, ModelNotFoundError
from edgewright.manifest import SEAL_FILE
from edgewright.pointer import Canary
from edgewright.repository import Repository
from edgewright.serve.loader import AT_ONCE, Loaded, Loader
from edgewright.serve.models import ServedModel
from edgewright.serve.problems import REPOSITORY, WHOLE_MODEL, Counts, Problems
from edgewright.serve.registry import Lineup, Registry
from edgewright.serve.swap import Plan, Swap
from edgewright.serve.version_policy import VersionPolicy

_DRAIN_POLL_S: Final = 0.05
SLOW_S: Final = 60.0  # after which a version that is not loaded yet is told as a problem

log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What else there is to a server than its registry."""

    def came(self, model: ServedModel) -> None:
        """``model`` is about to answer."""
        ...

    def changed(self, name: str, lineup: Lineup | None) -> None:
        """So ``name`` is answered from now on; by nobody, where there is no line-up."""
        ...

    def is_busy(self, model: ServedModel) -> bool:
        """Whether a call of ``model`` is in flight."""
        ...

    def left(self, model: ServedModel) -> None:
        """``model`` answers no more, and its calls have ended."""
        ...


class Follower:
    """Keeps the registry as the repository says. Lives on the event loop."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        loader: Loader,
        policy: VersionPolicy,
        around: Surroundings,
        counts: Counts,
    ) -> None:
        self.plans: dict[str, Plan] = {}
        self.problems = Problems(counts)
        self._repository = repository
        self._registry = registry
        self._loader = loader
        self._policy = policy
        self._around = around
        self._seals: WeakKeyDictionary[ServedModel, str] = WeakKeyDictionary()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load what there is.

        Raises:
            ModelNotFoundError: the repository is missing or empty.
            EdgewrightError: of a model no version answers; why the current one does not.
        """
        names = await asyncio.to_thread(self._repository.models)
        if not names:
            raise ModelNotFoundError(
                f"{self._repository.path} holds no model; add one with "
                f"`edgewright publish BUNDLE {self._repository.path} --name NAME`"
            )
        plans = {name: await asyncio.to_thread(self._plan, name) for name in names}
        for name, plan in plans.items():
            if not plan.pointer.unloaded:
                self._change(name, Lineup(name, plan.current))
        for name, plan in plans.items():
            error = await self._follow(name, plan, {})
            if error is not None and self._registry.lineup(name) is None:
                raise error

    async def watch(self, seconds: float) -> None:
        """Follow what changes, looking every so many seconds; ends when it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._begin_to_look()
            except Exception:  # an edge: nobody else would hear of it, and the next look may do
                log.exception("the repository could not be followed")

    async def look(self) -> None:
        """Follow what has changed, and tell what cannot be followed."""
        await asyncio.gather(*await self._begin_to_look())

    async def _begin_to_look(self) -> list[asyncio.Task[None]]:
        """A look at each model but those that one is at already: no model waits for another's."""
        try:
            names = set(await asyncio.to_thread(self._repository.models))
        except (OSError, EdgewrightError) as error:
            goes_on = f"{error}; what is loaded goes on answering"
            self.problems.put(REPOSITORY, {WHOLE_MODEL: goes_on})
            return []
        self.problems.put(REPOSITORY, {})
        names.update(self._registry.names())
        self.problems.keep(names)
        self.plans = {name: plan for name, plan in self.plans.items() if name in names}
        return [self._look_of(name) for name in sorted(names - self._looks.keys())]

    def _look_of(self, name: str) -> asyncio.Task[None]:
        look = self._looks[name] = asyncio.create_task(self._look_at(name))
        look.add_done_callback(lambda _: self._looks.pop(name))
        return look

    async def make_current(self, name: str, version: int) -> None:
        """Prove ``version``, and have it answer here and in every replica.

        Raises:
            ModelNotFoundError: there is no such model or version.
            EdgewrightError: it does not answer; nothing has changed.
            OSError: the repository cannot be written.
        """
        await asyncio.to_thread(self._repository.folder, name, version)
        async with self._locks[name]:
            proven = await self._proven(name, [version])
            await asyncio.to_thread(self._repository.make_current, name, version)
            await self._follow_now(name, proven)

    async def rollback(self, name: str) -> int:
        """Prove the version before the current one and have it answer; which it is.

        Raises:
            As ``make_current``.
        """
        await asyncio.to_thread(self._repository.versions, name)
        async with self._locks[name]:
            version = await asyncio.to_thread(self._repository.previous, name)
            proven = await self._proven(name, [version])
            await asyncio.to_thread(self._repository.rollback, name, version)
            await self._follow_now(name, proven)
        return version

    async def unload(self, name: str) -> None:
        """Answer no more calls of ``name``, here and in every replica.

        Raises:
            ModelNotFoundError: there is no such model.
            OSError: the repository cannot be written.
        """
        await asyncio.to_thread(self._repository.versions, name)
        async with self._locks[name]:
            await asyncio.to_thread(self._repository.unload, name)
            await self._follow_now(name, {})

    async def set_traffic(self, name: str, canary: Canary | None, shadow: int | None) -> None:
        """Prove both versions, then let them have their share of the calls.

        What the repository would refuse is refused before anything is loaded.

        Raises:
            As ``make_current``; ConfigError as ``Repository.set_traffic``.
        """
        versions = [each for each in (canary.version if canary else None, shadow) if each]
        await asyncio.to_thread(self._repository.with_traffic, name, canary, shadow)
        async with self._locks[name]:
            proven = await self._proven(name, versions)
            await asyncio.to_thread(self._repository.set_traffic, name, canary, shadow)
            await self._follow_now(name, proven)

    async def close(self) -> None:
        """Look no further, and wait no longer for calls of versions that have left."""
        self._loader.close()
        tasks = [*self._looks.values(), *self._leaving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_at(self, name: str) -> None:
        async with self._locks[name]:
            try:
                plan = await asyncio.to_thread(self._plan, name)
                await self._follow(name, plan, {})
            except (OSError, EdgewrightError) as error:
                lineup = self._registry.lineup(name)
                goes_on = f"; version {lineup.current} goes on answering" if lineup else ""
                self.problems.put(name, {WHOLE_MODEL: f"{error}{goes_on}"})
            except Exception:  # an edge: nobody else would hear of it, and the next look may do
                log.exception("%s could not be followed", name)

    def _plan(self, name: str) -> Plan:
        pointer = self._repository.pointer(name)
        return Plan(pointer, tuple(self._policy.wanted(self._repository.versions(name))))

    async def _proven(self, name: str, versions: Iterable[int]) -> dict[int, Loaded]:
        """Those of ``versions`` that do not answer yet as they lie on disk, loaded."""
        proven = {}
        lineup = self._registry.lineup(name)
        held = lineup.versions if lineup else {}
        for version in versions:
            if await self._seal_of_another(name, version, held) is not None:
                proven[version] = await self._loaded(name, version, again=True)
        return proven

    async def _loaded(self, name: str, version: int, *, again: bool) -> Loaded:
        """As ``Loader.load``; what takes long, or hangs, is a problem of its model meanwhile."""
        asked, told = datetime.now(UTC), False

        def tell() -> None:
            nonlocal told
            told = True
            self.problems.add(name, version, self._slow(name, version, asked))

        timer = asyncio.get_running_loop().call_later(SLOW_S, tell)
        try:
            return await self._loader.load(name, version, again=again)
        finally:
            timer.cancel()
            if told:
                self.problems.remove(name, version)

    def _slow(self, name: str, version: int, asked: datetime) -> str:
        begun = ", ".join(
            f"{each} version {number} since {since:%H:%M:%S}"
            for (each, number), since in self._loader.begun.items()
        )
        return (
            f"{name} version {version} is to be loaded since {asked:%H:%M:%S} UTC and is not yet; "
            f"at work, {AT_ONCE} at once, are: {begun}. What hangs, as on a network disk, makes "
            "room for no other; then start the server anew"
        )

    async def _seal_of_another(
        self, name: str, version: int, held: Mapping[int, ServedModel]
    ) -> str | None:
        """The seal on disk, empty without one; None where what is ``held`` was loaded from it."""
        model = held.get(version)
        seal = await asyncio.to_thread(self._loader.seal, name, version)
        return None if model is not None and self._seals.get(model) == seal else seal

    async def _follow_now(self, name: str, proven: Mapping[int, Loaded]) -> None:
        plan = await asyncio.to_thread(self._plan, name)
        await self._follow(name, plan, proven)

    async def _follow(
        self, name: str, plan: Plan, proven: Mapping[int, Loaded]
    ) -> EdgewrightError | None:
        """Answer by ``plan`` as far as its versions can be loaded; why the current one cannot."""
        self.plans[name] = plan
        swap = Swap(name, plan, self._registry.lineup(name), dict(proven))
        current = None if plan.pointer.unloaded else await self._current(swap)
        if current is None:
            self._change(name, None)
        else:
            self._change(name, swap.lineup(current))
            for version in plan.others:
                if version != current and await self._have(swap, version):
                    self._change(name, swap.lineup(current))
        self.problems.put(name, swap.problems)
        return swap.failure

    async def _current(self, swap: Swap) -> int | None:
        """The version to answer: the wanted one, else the one that does, else one before it."""
        for version in swap.candidates():
            if await self._have(swap, version):
                return version
        return None

    async def _have(self, swap: Swap, version: int) -> bool:
        """Whether ``version`` can answer, as it lies on disk or as it was loaded before."""
        seal = await self._seal_of_another(swap.name, version, swap.versions)
        if seal == "" and version in swap.versions:
            swap.problems[version] = (
                f"the folder of {swap.name} version {version} has no {SEAL_FILE} any more; "
                "what was loaded of it goes on answering"
            )
        elif seal is not None:
            try:
                loaded = swap.proven.pop(version, None)
                loaded = loaded or await self._loaded(swap.name, version, again=False)
            except EdgewrightError as error:
                swap.failed(version, error)
            else:
                swap.versions[version] = loaded.model
                self._seals[loaded.model] = loaded.seal
        return version in swap.versions

    def _change(self, name: str, lineup: Lineup | None) -> None:
        """Swap at once, and let go of what has left."""
        before = self._registry.lineup(name)
        if lineup == before:
            return
        old = set(before.versions.values()) if before else set()
        new = set(lineup.versions.values()) if lineup else set()
        for model in new - old:
            self._around.came(model)
        if lineup is None:
            self._registry.remove(name)
        else:
            self._registry.put(lineup)
        self._around.changed(name, lineup)
        for model in old - new:
            task = asyncio.create_task(self._let_go([model]))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _let_go(self, held: list[ServedModel]) -> None:
        """Free a model that nobody calls any more, once its calls in flight are answered."""
        name, version = held[0].name, held[0].version
        while self._around.is_busy(held[0]):
            await asyncio.sleep(_DRAIN_POLL_S)
        self._around.left(held[0])
        await asyncio.to_thread(held.clear)  # which takes milliseconds
        log.info("%s version %d has left", name, version)
