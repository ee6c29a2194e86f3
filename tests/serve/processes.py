"""The command ``edgewright serve`` in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc

from edgewright.v1.prediction_pb2 import ClassifyTextRequest, ClassifyTextResponse
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

# While the file exists, a method of every served model waits: the arguments name both.
HELD = """
import os, sys, time
from pathlib import Path
from edgewright.serve.models import ServedModel
gate, name = sys.argv[1], sys.argv[2]
entered = str(Path(gate).with_suffix(".entered"))
plain = getattr(ServedModel, name)
def held(model, rows):  # calls C alone, so that who looks where the thread is finds it here
    while os.access(gate, os.F_OK):
        os.close(os.open(entered, os.O_CREAT | os.O_WRONLY))
        time.sleep(0.01)
    return plain(model, rows)
setattr(ServedModel, name, held)
from edgewright.cli import main
main(sys.argv[3:])
"""
PLAIN = "from edgewright.cli import main; main()"
PATIENT = {"EDGEWRIGHT_MAX_WAIT": "600"}  # as QUIET says, in conftest
FREE_PORTS = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0")
Start = Callable[..., "Process"]


class Gate:
    """Holds every call of one method of the served models, in a process that is told of it."""

    def __init__(self, file: Path, method: str = "scores") -> None:
        self.file, self.method = file, method

    def shut(self) -> None:
        self.file.touch()

    def open(self) -> None:
        self.file.unlink()

    def reached(self) -> bool:
        return self.file.with_suffix(".entered").exists()


class Process:
    """A server process and what it printed when it was ready."""

    def __init__(
        self,
        *arguments: str,
        gate: Gate | None = None,
        without: ModuleType | None = None,
        stderr: Any = subprocess.PIPE,
        within: Sequence[str] = (),
        **env: str,
    ) -> None:
        """``gate`` is one that its models meet, ``without`` a script to run the command by.

        ``within`` is a command that runs it.
        """
        run = "-c" if without is None else str(without.__file__)
        code = [run, PLAIN] if gate is None else [run, HELD, str(gate.file), gate.method]
        self.popen = subprocess.Popen(
            [*within, sys.executable, *code, "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **PATIENT, **env},
        )

    def ready(self) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, f"it ended before it was ready: {self.popen.communicate()[1]}"
        told: dict[str, Any] = json.loads(line)
        return told

    def logs(self, part: str) -> str:
        """Read its log up to a line with ``part`` in it; all that was read."""
        assert self.popen.stderr is not None
        read = ""
        while part not in read:
            line = self.popen.stderr.readline()
            assert line, f"it ended without saying {part!r}, but: {read}"
            read += line
        return read

    def wait(self) -> tuple[int, str, str]:
        out, err = self.popen.communicate(timeout=60)
        return self.popen.returncode, out, err


def classify(port: int, text: str = "bank shares", timeout: float = 30) -> ClassifyTextResponse:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = PredictionServiceStub(channel)
        return stub.ClassifyText(ClassifyTextRequest(texts=[text]), timeout=timeout)


def page(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
