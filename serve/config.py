"""What ``edgewright serve`` can be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from pathlib import Path

from edgewright.errors import ConfigError
from edgewright.serve.access_log import AccessLevel
from edgewright.serve.host_choice import HostOptions, Remeasure
from edgewright.serve.prediction_log import LogInputs
from edgewright.serve.tls import TlsFiles
from edgewright.serve.trace_endpoint import is_endpoint
from edgewright.serve.version_policy import VersionPolicy

_PORTS = 2**16
_MOST_PROCESSES = 256
_PORT_FIELDS = ("port", "metrics_port", "admin_port")
_MOST_THREADS = 1024  # each computes, so more than there are cores are of no use
_MOST_ROWS = 4096  # rows that run together, and the tokens of 256 each
_MOST_TOKENS = 256 * _MOST_ROWS
_COUNTS = (
    "max_texts",
    "max_text_chars",
    "max_calls_per_caller",
    "max_rows_per_caller",
)
# Fields, what must hold for each that is not None, and how that is said.
_RANGES: tuple[tuple[Sequence[str], Callable[[float], bool], str], ...] = (
    (_COUNTS, lambda count: count >= 1, "1 or more"),
    (
        ("threads", "instances"),
        lambda count: 1 <= count <= _MOST_THREADS,
        f"1 to {_MOST_THREADS}",
    ),
    (("max_batch",), lambda rows: 1 <= rows <= _MOST_ROWS, f"1 to {_MOST_ROWS}"),
    (("batch_tokens",), lambda tokens: 1 <= tokens <= _MOST_TOKENS, f"1 to {_MOST_TOKENS}"),
    (_PORT_FIELDS, lambda port: 0 <= port < _PORTS, f"0 to {_PORTS - 1}"),
    (("processes",), lambda count: 1 <= count <= _MOST_PROCESSES, f"1 to {_MOST_PROCESSES}"),
    (("max_message_mb",), lambda size: 1 <= size < 2048, "1 to 2047"),
    (("trace_sample",), lambda share: 0 <= share <= 1, "0 to 1"),
    (
        ("watch_seconds", "drain_delay_s", "grace_s"),
        lambda seconds: 0 <= seconds < float("inf"),
        "0 seconds or more",
    ),
    (
        ("max_wait_s", "remeasure_seconds", "max_connection_age_s"),
        lambda seconds: 0 < seconds < float("inf"),
        "above 0 seconds",
    ),
)
_CHOICES: dict[str, type[StrEnum]] = {
    "remeasure": Remeasure,
    "access_log": AccessLevel,
    "log_inputs": LogInputs,
}


@dataclass(frozen=True)
class ServeConfig:
    """Configuration of one server process; ConfigError tells every fault."""

    repository: Path
    host: str = "0.0.0.0"  # every interface, as a service in a container needs
    port: int = 8001  # gRPC; 0 lets the system choose
    metrics_port: int = 8002  # HTTP; 0 lets the system choose
    admin_port: int | None = None  # of AdminService; None has none, 0 lets the system choose
    admin_host: str = "127.0.0.1"  # whoever reaches it may change what is served
    versions: str = "current"  # of each model, to hold ready; see VersionPolicy
    watch_seconds: float = 2.0  # between two looks at the repository; 0 never looks again
    threads: int | None = None  # of one instance of a model; None: as many as were certified
    instances: int | None = None  # of each model, computing at once; None: cores over threads
    max_batch: int = 32  # rows computed together
    # Likewise, with padding. MiniLM-L6 in int8, a core with 2 MiB of cache, huge pages: from 256 to
    # 1,024 tokens a row takes the same within a tenth, whatever its length (16 to 128 tokens); of
    # 64 tokens and more it takes up to a fifth more at 2,048, and up to a third more at 4,096.
    batch_tokens: int = 1024
    queue_size: int = 1024  # rows that wait for compute, over all calls
    max_wait_s: float = 2.0  # estimated, that a call may wait for compute
    max_texts: int = 256  # or images, in one call
    max_text_chars: int = 100_000  # in one text
    max_message_mb: int = 16  # MiB of one request; gRPC itself refuses what is larger
    max_calls_per_caller: int | None = None  # in flight at once; None: as the queue allows
    max_rows_per_caller: int | None = None  # that wait or are computed; None: as the queue allows
    # Seconds, about, after which a connection takes no new calls and its client opens another.
    max_connection_age_s: float | None = None
    reflection: bool = False  # lets anybody who may call list the services
    tls_cert: Path | None = None  # PEM, of both ports; None serves in the clear
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # PEM; clients then need a certificate of its
    tokens: Path | None = None  # file of hashed tokens; None asks for none
    drain_delay_s: float = 0.0  # between saying "not ready" and refusing new calls
    grace_s: float = 30.0  # for calls in flight, once new ones are refused
    # URL of the store of feedback and predictions; None takes no feedback. It may hold a password.
    feedback: str | None = field(default=None, repr=False)
    log_inputs: str = LogInputs.OFF
    # Of an OpenTelemetry collector that takes OTLP over gRPC; None traces nothing.
    otlp_endpoint: str | None = None
    trace_sample: float = 1.0  # share of the traces begun here that are kept
    access_log: str = AccessLevel.OFF  # lines about calls, in the log
    state_dir: Path | None = None  # of what this host measures; None: the user's
    remeasure: str = Remeasure.AUTO  # the variants of a bundle, before the first answer
    remeasure_seconds: float = 30.0  # that timing one bundle's variants may take at most
    processes: int = 1  # that answer on ``port``; each has an HTTP port, from ``metrics_port`` on
    sharing: int = 1  # processes that share port and cores with this one; set by ``processes``

    def __post_init__(self) -> None:
        faults = [
            *self._range_faults(),
            *self._port_faults(),
            *self._tls_faults(),
            *self._processes_faults(),
            *self._choice_faults(),
            *self._store_faults(),
            *self._form_faults(),
        ]
        if faults:
            raise ConfigError(faults)

    @property
    def tls(self) -> TlsFiles | None:
        """The files of TLS, where it is wanted."""
        if self.tls_cert is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def admin_is_exposed(self) -> bool:
        """Whether other machines reach the admin port, and nothing is asked of them."""
        here = self.admin_host.startswith(("localhost", "127.", "::1", "[::1]"))
        asked = self.tokens is not None or self.tls_client_ca is not None
        return self.admin_port is not None and not here and not asked

    @property
    def host_options(self) -> HostOptions:
        """What to do about a host that is not the certified one."""
        return HostOptions(self.state_dir, self.remeasure, self.remeasure_seconds)

    def _range_faults(self) -> Iterator[str]:
        for fields, holds, expected in _RANGES:
            for name in fields:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    yield f"{_option(name)} is {value}; it must be {expected}"
        for name in ("queue_size", "max_rows_per_caller"):
            value = getattr(self, name)
            if value is not None and value < self.max_texts:
                yield (
                    f"{_option(name)} is {value}; it must be at least --max-texts "
                    f"({self.max_texts}), or the largest call could never enter"
                )

    def _port_faults(self) -> Iterator[str]:
        ports = {_option(name): getattr(self, name) for name in _PORT_FIELDS}
        for one, other in combinations(ports, 2):
            if ports[one] and 0 < ports[one] == ports[other]:
                yield f"{one} and {other} are both {ports[one]}; they must differ"

    def _choice_faults(self) -> Iterator[str]:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in tuple(choices):
                listed = ", ".join(choices)
                yield f"{_option(name)} is {value}; it must be one of {listed}"

    def _store_faults(self) -> Iterator[str]:
        logs = self.log_inputs in tuple(LogInputs) and self.log_inputs != LogInputs.OFF
        if logs and self.feedback is None:
            yield f"--log-inputs {self.log_inputs} needs a store to log to; give --feedback too"

    def _form_faults(self) -> Iterator[str]:
        if not self.host:
            yield "--host is empty; it must be an address or host name"
        if not self.admin_host:
            yield "--admin-host is empty; it must be an address or host name"
        if self.otlp_endpoint is not None and not is_endpoint(self.otlp_endpoint):
            yield (
                f"--otlp-endpoint is {self.otlp_endpoint}; it must be http://HOST:PORT of a "
                "collector that takes OTLP over gRPC, or https:// (usual is port 4317)"
            )
        try:
            VersionPolicy.parse(self.versions)
        except ConfigError as error:
            yield from error.faults

    def _tls_faults(self) -> Iterator[str]:
        if (self.tls_cert is None) != (self.tls_key is None):
            yield "--tls-cert and --tls-key are given together or not at all"
        if self.tls_client_ca is not None and self.tls_cert is None:
            yield "--tls-client-ca needs TLS; give --tls-cert and --tls-key too"

    def _processes_faults(self) -> Iterator[str]:
        if not 1 < self.processes <= _MOST_PROCESSES:
            return
        last = self.metrics_port + self.processes - 1
        if self.metrics_port and last >= _PORTS:
            yield (
                f"--metrics-port is {self.metrics_port}; --processes {self.processes} need a port "
                f"each, up to {last}, and the highest is {_PORTS - 1}"
            )
        for option, port in (("--port", self.port), ("--admin-port", self.admin_port or 0)):
            if self.metrics_port and self.metrics_port < port <= last:
                yield (
                    f"{option} is {port}; --processes {self.processes} have their HTTP ports at "
                    f"{self.metrics_port} to {last}; they must differ"
                )
        if self.admin_port is not None and not self.watch_seconds:
            yield (
                "--admin-port with several --processes needs --watch-seconds above 0: one process "
                "takes the commands, the others see the change in the repository"
            )


def _option(field_name: str) -> str:
    """The option of the command that a field is told by."""
    return "--" + field_name.removesuffix("_s").replace("_", "-")
