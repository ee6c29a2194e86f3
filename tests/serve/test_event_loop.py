"""uvloop where it is installed, Python's own loop elsewhere."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgewright.serve import event_loop

from .processes import FREE_PORTS, Start


class Theirs(asyncio.SelectorEventLoop):
    """Stands for uvloop's."""


async def kind_of_loop() -> type[asyncio.AbstractEventLoop]:
    return type(asyncio.get_running_loop())


def test_a_coroutine_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=Theirs))
    assert event_loop.run(kind_of_loop()) is Theirs


def test_and_on_pythons_own_loop_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    expected = asyncio.run(kind_of_loop())
    assert event_loop.run(kind_of_loop()) is expected


def test_a_served_process_runs_on_it(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--json")
    process.ready()
    loaded = Path(f"/proc/{process.popen.pid}/maps").read_text()
    assert ("/uvloop/" in loaded) is (find_spec("uvloop") is not None)
