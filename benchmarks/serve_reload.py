"""What reloading costs callers: p99 while versions are swapped beside p99 while they are not.

    .venv/bin/python -m benchmarks.serve_reload REPOSITORY

The current version of the only model there is published twice into a repository of its own. Calls
fall due by the clock, and every other segment the server goes from one version to the other.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import click
import grpc

from benchmarks.load import Load, LoadResult, build_load_generator, run_load
from benchmarks.serve_protocol import TYPED
from benchmarks.serve_subject import payloads_of
from benchmarks.served import served
from edgewright.repository import Repository
from edgewright.v1.admin_pb2 import LoadVersionRequest
from edgewright.v1.admin_pb2_grpc import AdminServiceStub

_WORDS: Final = 12
_CALLERS: Final = 256  # so many that a call which falls due always finds one free
_RELOAD_S: Final = 300.0
_NAME: Final = "texts"


@dataclass
class Reloads:
    """Goes to and fro between versions 1 and 2, over an admin port."""

    admin: AdminServiceStub
    pause_s: float
    count: int = 0
    refused: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While within."""
        self._stop.clear()
        thread = threading.Thread(target=self._go)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _go(self) -> None:
        while not self._stop.is_set():
            request = LoadVersionRequest(model=_NAME, version=2 - self.count % 2)
            try:
                self.admin.LoadVersion(request, timeout=_RELOAD_S)
            except grpc.RpcError as error:
                self.refused.append(str(error.details()))
                return
            self.count += 1
            self._stop.wait(self.pause_s)


@click.command()
@click.argument("repository", type=click.Path(exists=True, path_type=Path))
@click.option("--rate", default=100.0, show_default=True, help="Calls a second, by the clock.")
@click.option("--seconds", default=10.0, show_default=True, help="Of a segment.")
@click.option("--rounds", default=3, show_default=True, help="Of two segments each.")
@click.option("--pause", default=0.0, show_default=True, help="Seconds between two reloads.")
def main(repository: Path, rate: float, seconds: float, rounds: int, pause: float) -> None:
    """Serve REPOSITORY's model, call it, reload it, and print p99 of both and their ratio."""
    program = build_load_generator()
    with tempfile.TemporaryDirectory() as folder:
        twice = published_twice(Repository(repository), Path(folder) / "repository")
        with served(twice, "--admin-port", "0") as server:
            load = Load(
                "grpc", server.target, TYPED.path, payloads_of(TYPED, _WORDS, Path(folder)),
                callers=_CALLERS, seconds=seconds, rate=rate,
            )  # fmt: skip
            with grpc.insecure_channel(f"127.0.0.1:{server.ready['admin_port']}") as channel:
                reloads = Reloads(AdminServiceStub(channel), pause)  # type: ignore[no-untyped-call]
                run(load, program, rounds, reloads)


def published_twice(source: Repository, path: Path) -> Path:
    """The bundle that ``source`` serves, as versions 1 and 2 of a model at ``path``.

    Raises:
        click.ClickException: ``source`` has not one model.
    """
    names = source.models()
    if len(names) != 1:
        raise click.ClickException(f"{source.path} holds {len(names)} models; one is expected")
    bundle = source.folder(names[0], source.current(names[0]))
    for keep_current in (False, True):
        Repository(path).publish(bundle, _NAME, keep_current=keep_current)
    return path


def run(load: Load, program: Path, rounds: int, reloads: Reloads) -> None:
    """Segments in turns, a line for each, and what they come to."""
    ratios, failures = [], 0
    for _ in range(rounds):
        steady = run_load(load, program)
        before = reloads.count
        with reloads.going_on():
            reloading = run_load(load, program)
        click.echo(_line("steady", steady))
        click.echo(f"{_line('reloading', reloading)}, {reloads.count - before} reloads")
        failures += sum((*steady.errors.values(), *reloading.errors.values()))
        if steady.latency_ms and reloading.latency_ms:
            ratios.append(reloading.latency_ms["p99"] / steady.latency_ms["p99"])
    told = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "none"
    click.echo(f"ratio of p99: {told}; {reloads.count} reloads; failed calls: {failures}")
    if reloads.refused:
        raise click.ClickException(f"a reload was refused: {reloads.refused[0]}")


def _line(name: str, result: LoadResult) -> str:
    shown = [each for each in ("p50", "p99", "max") if each in result.latency_ms]
    times = ", ".join(f"{each} {result.latency_ms[each]:.2f} ms" for each in shown) or "no answer"
    return f"{name:>9}: {times}, {result.answered} answered, errors {dict(result.errors)}"


if __name__ == "__main__":
    main()
