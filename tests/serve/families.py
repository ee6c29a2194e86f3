"""Servers of two processes, for tests: ``edgewright serve --processes 2``."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import grpc

from edgewright.serve.core_time import CoreTime
from edgewright.v1.prediction_pb2 import ClassifyTextRequest
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from .processes import Process

WAIT_S = 60
TRIES = 200  # connections until both processes have met one; all at the same: 2 ** -199
Start = Callable[..., "Family"]
FEW_CORES = "--processes is 2, and there are cores for 1"  # what is said where that is so


@dataclass(frozen=True)
class Identity:
    """What a caller shows and trusts."""

    roots: Path | None = None  # PEM; None calls in the clear
    certificate: Path | None = None
    key: Path | None = None
    token: str = ""

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def channel(self, target: str) -> grpc.Channel:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.roots is None:
            return grpc.insecure_channel(target, options=options)
        pair = [each.read_bytes() if each else None for each in (self.key, self.certificate)]
        credentials = grpc.ssl_channel_credentials(self.roots.read_bytes(), *pair)
        return grpc.secure_channel(target, credentials, options)

    def context(self) -> ssl.SSLContext | None:
        if self.roots is None:
            return None
        context = ssl.create_default_context(cafile=self.roots)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


class Family(Process):
    """A server of two processes, and what it printed when it was ready."""

    told: dict[str, Any]
    caller = Identity()
    host = "127.0.0.1"

    def announced(self, caller: Identity | None = None) -> Family:
        self.caller = caller or self.caller
        self.told = self.ready()
        self.host = f"[{self.told['host']}]" if ":" in self.told["host"] else self.told["host"]
        return self

    def wait(self) -> tuple[int, str, str]:
        code, out, err = super().wait()
        lines = (err or "").splitlines(keepends=True)  # None where it went elsewhere
        return code, out, "".join(each for each in lines if FEW_CORES not in each)

    @property
    def pids(self) -> list[int]:
        return [each["pid"] for each in self.told["processes"]]

    @property
    def http_ports(self) -> list[int]:
        return [each["metrics_port"] for each in self.told["processes"]]

    def channel(self) -> grpc.Channel:
        """A connection of its own."""
        return self.caller.channel(f"{self.host}:{self.told['port']}")

    def classify(self, channel: grpc.Channel | None = None) -> str:
        """The id of a prediction; its last part is that of the process.

        Over a connection of its own, where none is given.
        """
        if channel is None:
            with self.channel() as own:
                return self.classify(own)
        stub = PredictionServiceStub(channel)
        request = ClassifyTextRequest(texts=["bank shares"])
        answer = stub.ClassifyText(request, timeout=WAIT_S, metadata=self.caller.metadata)
        return str(answer.classifications[0].prediction_id)

    def nodes(self) -> set[str]:
        """Who answers, asked until two have."""
        found: set[str] = set()
        for _ in range(TRIES):
            found.add(self.classify().rpartition("-")[2])
            if len(found) == 2:
                break
        return found

    def page(self, number: int, path: str) -> tuple[int, str]:
        """Status 0 where nobody listens."""
        port = self.http_ports[number]
        return page(port, path, self.caller, self.host)

    def count(self, number: int, sample: str) -> float:
        """What its metrics say."""
        lines = self.page(number, "/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))

    def in_flight(self) -> list[int]:
        """Calls being answered, by process."""
        return [int(self.count(number, "edgewright_requests_in_flight ")) for number in range(2)]

    def end(self) -> None:
        """Whatever of it still runs."""
        if self.popen.poll() is None:
            self.popen.kill()
            for pid in self.pids if hasattr(self, "told") else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.popen.communicate()


def page(
    port: int, path: str, caller: Identity = Identity(), host: str = "127.0.0.1"
) -> tuple[int, str]:
    """Status 0 where nobody listens."""
    scheme = "http" if caller.roots is None else "https"
    asked = Request(f"{scheme}://{host}:{port}{path}", headers=dict(caller.metadata))
    try:
        with urlopen(asked, timeout=WAIT_S, context=caller.context()) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (URLError, OSError):
        return 0, ""


def is_running(pid: int) -> bool:
    """Also where it is nobody's child here; who inherited it need not ask for its exit code."""
    return CoreTime.of(pid) is not None
