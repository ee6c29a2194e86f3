"""What ``edgewright serve`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    batch_tokens: int = 1024  # likewise, with padding: more would leave a core's cache
    queue_size: int = 1024  # rows that wait for compute, over all calls
    max_wait_s: float = 2.0  # estimated, that a call may wait for compute
    max_texts: int = 256  # or images, in one call
    max_text_chars: int = 100_000  # in one text
    max_message_mb: int = 16  # MiB of one request; gRPC itself refuses what is larger
    max_calls_per_caller: int | None = None  # in flight at once; None: as the queue allows
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
        rules = {
            "--host": (bool(self.host), "an address or host name"),
            "--port": (0 <= self.port < _PORTS, f"0 to {_PORTS - 1}"),
            "--metrics-port": (0 <= self.metrics_port < _PORTS, f"0 to {_PORTS - 1}"),
            "--watch-seconds": (0 <= self.watch_seconds < float("inf"), "0 seconds or more"),
            "--admin-host": (bool(self.admin_host), "an address or host name"),
            "--admin-port": (0 <= (self.admin_port or 0) < _PORTS, f"0 to {_PORTS - 1}"),
            "--threads": (self.threads is None or self.threads >= 1, "1 or more"),
            "--instances": (self.instances is None or self.instances >= 1, "1 or more"),
            "--max-batch": (self.max_batch >= 1, "1 or more"),
            "--processes": (
                1 <= self.processes <= _MOST_PROCESSES,
                f"1 to {_MOST_PROCESSES}",
            ),
            "--batch-tokens": (self.batch_tokens >= 1, "1 or more"),
            "--max-wait": (0 < self.max_wait_s < float("inf"), "above 0 seconds"),
            "--max-texts": (self.max_texts >= 1, "1 or more"),
            "--queue-size": (
                self.queue_size >= self.max_texts,
                f"at least --max-texts ({self.max_texts}), or the largest call could never enter",
            ),
            "--max-text-chars": (self.max_text_chars >= 1, "1 or more"),
            "--max-message-mb": (1 <= self.max_message_mb < 2048, "1 to 2047"),
            "--max-calls-per-caller": (
                self.max_calls_per_caller is None or self.max_calls_per_caller >= 1,
                "1 or more",
            ),
            "--drain-delay": (0 <= self.drain_delay_s < float("inf"), "0 seconds or more"),
            "--remeasure-seconds": (0 < self.remeasure_seconds < float("inf"), "above 0 seconds"),
            "--trace-sample": (0 <= self.trace_sample <= 1, "0 to 1"),
            "--grace": (0 <= self.grace_s < float("inf"), "0 seconds or more"),
        }
        faults = [
            f"{option} is {getattr(self, _field(option))}; it must be {expected}"
            for option, (holds, expected) in rules.items()
            if not holds
        ]
        ports = {
            "--port": self.port,
            "--metrics-port": self.metrics_port,
            "--admin-port": self.admin_port or 0,
        }
        for one, other in combinations(ports, 2):
            if 0 < ports[one] == ports[other]:
                faults.append(f"{one} and {other} are both {ports[one]}; they must differ")
        faults += self._tls_faults() + self._processes_faults()
        if self.remeasure not in tuple(Remeasure):
            listed = ", ".join(Remeasure)
            faults.append(f"--remeasure is {self.remeasure}; it must be one of {listed}")
        if self.otlp_endpoint is not None and not is_endpoint(self.otlp_endpoint):
            faults.append(
                f"--otlp-endpoint is {self.otlp_endpoint}; it must be http://HOST:PORT of a "
                "collector that takes OTLP over gRPC, or https:// (usual is port 4317)"
            )
        if self.access_log not in tuple(AccessLevel):
            listed = ", ".join(AccessLevel)
            faults.append(f"--access-log is {self.access_log}; it must be one of {listed}")
        if self.log_inputs not in tuple(LogInputs):
            listed = ", ".join(LogInputs)
            faults.append(f"--log-inputs is {self.log_inputs}; it must be one of {listed}")
        elif self.log_inputs != LogInputs.OFF and self.feedback is None:
            faults.append(
                f"--log-inputs {self.log_inputs} needs a store to log to; give --feedback too"
            )
        try:
            VersionPolicy.parse(self.versions)
        except ConfigError as error:
            faults += error.faults
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

    def _tls_faults(self) -> list[str]:
        faults = []
        if (self.tls_cert is None) != (self.tls_key is None):
            faults.append("--tls-cert and --tls-key are given together or not at all")
        if self.tls_client_ca is not None and self.tls_cert is None:
            faults.append("--tls-client-ca needs TLS; give --tls-cert and --tls-key too")
        return faults

    def _processes_faults(self) -> list[str]:
        if not 1 < self.processes <= _MOST_PROCESSES:
            return []
        faults = []
        last = self.metrics_port + self.processes - 1
        if self.metrics_port and last >= _PORTS:
            faults.append(
                f"--metrics-port is {self.metrics_port}; --processes {self.processes} need a port "
                f"each, up to {last}, and the highest is {_PORTS - 1}"
            )
        for option, port in (("--port", self.port), ("--admin-port", self.admin_port or 0)):
            if self.metrics_port and self.metrics_port < port <= last:
                faults.append(
                    f"{option} is {port}; --processes {self.processes} have their HTTP ports at "
                    f"{self.metrics_port} to {last}; they must differ"
                )
        if self.admin_port is not None and not self.watch_seconds:
            faults.append(
                "--admin-port with several --processes needs --watch-seconds above 0: one process "
                "takes the commands, the others see the change in the repository"
            )
        return faults

    @property
    def host_options(self) -> HostOptions:
        """What to do about a host that is not the certified one."""
        return HostOptions(self.state_dir, self.remeasure, self.remeasure_seconds)


def _field(option: str) -> str:
    name = option.removeprefix("--").replace("-", "_")
    return f"{name}_s" if option in ("--drain-delay", "--grace", "--max-wait") else name
