"""One start of one server: is it right, how fast is it, how long did it take to be ready."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from benchmarks.environment import ROOT
from benchmarks.load import Load, run_load
from benchmarks.process import RunFailedError
from benchmarks.running_server import RunningServer, busy_s, free_ports, running, tail
from benchmarks.serve_contender import OURS, Contender, Place, Setting
from benchmarks.serve_subject import Questions, Subject, payloads_of, texts_of
from benchmarks.servers.job import ServeJob
from edgewright.proof.host import available_cores

SESSION_ONLY: Final = "session-only"
_TOLERANCE: Final = 1e-3  # of a score; a text alone pads to itself, whoever serves
_CONNECTIONS: Final = 8  # of gRPC


class WrongAnswerError(Exception):
    """A server gives other scores than the file does; it is not timed."""


@dataclass(frozen=True)
class Scenario:
    """So many callers, each with texts of so many words."""

    callers: int
    words: int

    @property
    def name(self) -> str:
        """As "32x12"."""
        return f"{self.callers}x{self.words}"


@dataclass(frozen=True)
class Trial:
    """How thoroughly one scenario is measured."""

    seconds: float
    warmup: float


@dataclass(frozen=True)
class Visit:
    """What one start of a server came to.

    Attributes:
        ready_s: from the start of the process to the first right answer.
        memory_mib: after the last scenario; None of what is no server.
        cells: by scenario.
    """

    ready_s: float | None
    memory_mib: float | None
    cells: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Visitor:
    """What is alike for all servers of a benchmark."""

    subject: Subject
    questions: Questions
    pythons: Mapping[str, Path]
    program: Path  # the load generator
    folder: Path

    def visit(
        self, contender: Contender, setting: Setting, scenarios: Sequence[Scenario], trial: Trial
    ) -> Visit:
        """Start it, ask it, load it, end it.

        Raises:
            RunFailedError: it does not start, or ends.
            WrongAnswerError: it answers wrongly.
        """
        port, http_port, metrics_port = free_ports(3)
        folder = self.folder / contender.name
        folder.mkdir(parents=True, exist_ok=True)
        python = self.pythons[contender.name]
        place = Place(python, port, http_port, metrics_port, self.subject.repository, folder)
        variables = {**contender.variables, **self._job(place, setting).write(folder / "job.json")}
        log = folder / "server.log"

        def answers() -> bool:
            try:
                self._check(contender, port, self.questions.texts[:1])
            except (OSError, grpc.RpcError):
                return False
            return True

        with running(contender.command(place), variables, port, answers, log) as server:
            self._check(contender, port, self.questions.texts)
            cells = {
                each.name: self._load(contender, server, each, trial, log) for each in scenarios
            }
            return Visit(server.ready_s, server.memory_mib(), cells)

    def session_only(self, words: Sequence[int], trial: Trial) -> Visit:
        """What the file gives with no server at all: texts a second by words, threads and batch.

        Raises:
            RunFailedError: the process failed.
        """
        folder = self.folder / SESSION_ONLY
        folder.mkdir(parents=True, exist_ok=True)
        place = Place(self.pythons[OURS], 0, 0, 0, self.subject.repository, folder)
        texts = {str(each): texts_of(each) for each in words}
        setting = Setting(available_cores(), extra={"seconds": trial.seconds / 2, "texts": texts})
        variables = self._job(place, setting).write(folder / "job.json")
        done = subprocess.run(
            [str(place.python), "-m", "benchmarks.servers.session_only"],
            cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RunFailedError(f"{SESSION_ONLY}: {done.stderr.strip()[-500:]}")
        return Visit(None, None, json.loads(done.stdout))

    def _job(self, place: Place, setting: Setting) -> ServeJob:
        more = {
            "http_port": place.http_port,
            "metrics_port": place.metrics_port,
            "metrics_dir": str(place.folder),
        }
        return ServeJob(
            model=str(self.subject.file),
            preprocessing=str(self.subject.preprocessing),
            session_options=self.subject.variant.session_options,
            port=place.port,
            workers=setting.workers,
            threads=setting.threads,
            batch=setting.batch,
            delay_ms=setting.delay_ms,
            extra={**more, **setting.extra},
        )

    def _check(self, contender: Contender, port: int, texts: Sequence[str]) -> None:
        labels = self.subject.labels
        for text, scores in zip(texts, self.questions.scores, strict=False):
            found = contender.protocol.ask(port, text, labels)
            if found.shape != scores.shape or not np.allclose(found, scores, atol=_TOLERANCE):
                raise WrongAnswerError(
                    f"{contender.title} says {np.round(found, 4).tolist()} where the file says "
                    f"{np.round(scores, 4).tolist()}: {text[:60]!r}"
                )

    def _load(
        self, contender: Contender, server: RunningServer, scenario: Scenario, trial: Trial,
        log: Path,
    ) -> dict[str, Any]:  # fmt: skip
        protocol = contender.protocol
        load = Load(
            protocol.transport,
            f"127.0.0.1:{server.port}",
            protocol.path,
            payloads_of(protocol, scenario.words, self.folder / "payloads"),
            headers=protocol.headers,
            callers=scenario.callers,
            connections=_CONNECTIONS,
            seconds=trial.seconds,
            warmup=trial.warmup,
        )
        busy, own = busy_s(), server.cpu_s()
        found = run_load(load, self.program)
        if server.process.poll() is not None:
            raise RunFailedError(f"ended under load\n{tail(log)}")
        whole = trial.seconds + trial.warmup
        used = server.cpu_s() - own
        generator = found.cpu_seconds * whole / trial.seconds
        others = (busy_s() - busy - used - generator) / whole
        return {
            **asdict(found),
            "server_cores": round(used / whole, 3),
            "other_cores": round(max(0.0, others), 3),
        }


def read_visit(file: Path) -> Visit:
    """The inverse of ``to_json``, from a file."""
    return Visit(**json.loads(file.read_bytes()))
