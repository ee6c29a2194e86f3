"""The ``edgewright serve`` command."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from edgewright.options import Command, config_option, output_options, state_dir_option
from edgewright.output import Output
from edgewright.serve import event_loop
from edgewright.serve.access_log import AccessLevel
from edgewright.serve.announcement import lines, told
from edgewright.serve.config import ServeConfig
from edgewright.serve.grace import CUT_OFF
from edgewright.serve.host_choice import Remeasure
from edgewright.serve.logs import FORMATS, log_to_stderr
from edgewright.serve.prediction_log import LogInputs
from edgewright.serve.server import serve as serve_repository

# Options without their unit in the name, which the fields of the configuration have.
_SECONDS = ("drain_delay", "grace", "max_wait", "max_connection_age")


def _option(name: str, help_text: str, **settings: Any) -> Callable[[Any], Any]:
    twin = "EDGEWRIGHT_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(name, help=help_text, envvar=twin, show_envvar=True, **settings)


@click.command(
    cls=Command,
    no_args_is_help=False,  # everything may come from the environment
    sections={
        "--host": "Ports",
        "--versions": "Models",
        "--max-batch": "Batches and queue",
        "--max-texts": "Limits of callers",
        "--tls-cert": "Security",
        "--drain-delay": "Shutting down",
        "--feedback": "Feedback",
        "--state-dir": "This host",
        "--log-format": "Logs and traces",
        "--config": "Common",
    },
    examples=(
        "edgewright serve repository/",
        "edgewright serve repository/ --host 127.0.0.1 --port 0 --metrics-port 0 --json",
        "edgewright serve repository/ --feedback sqlite:///feedback.db --log-inputs all",
        "edgewright serve repository/ --state-dir state/ --remeasure always",
        "edgewright serve repository/ --access-log errors --log-format json",
        "edgewright serve repository/ --otlp-endpoint http://localhost:4317 --trace-sample 0.01",
        "edgewright serve repository/ --admin-port 8003 --versions latest:2 --watch-seconds 10",
        "edgewright serve repository/ --threads 1 --instances 2 --max-wait 0.5",
        "edgewright serve repository/ --processes 4 --metrics-port 9000",
        "edgewright serve repository/ --tls-cert cert.pem --tls-key key.pem --tokens tokens.txt",
        "EDGEWRIGHT_REPOSITORY=repository/ EDGEWRIGHT_THREADS=2 edgewright serve",
    ),
)
@click.argument("repository", type=click.Path(path_type=Path), envvar="EDGEWRIGHT_REPOSITORY")
@_option("--host", "Address to listen on; the default is every interface.", default="0.0.0.0")
@_option("--port", "gRPC port; 0 takes a free one and prints it.", type=int, default=8001)
@_option(
    "--metrics-port",
    "HTTP port of /metrics, /healthz, /readyz, /v1 and /v2; 0 as above.",
    type=int,
    default=8002,
)
@_option(
    "--admin-port",
    "gRPC port of `edgewright admin`; 0 takes a free one and prints it.  [default: none]",
    type=int,
)
@_option("--admin-host", "Address that the admin port listens on.", default="127.0.0.1")
@_option(
    "--versions",
    "Versions of each model that are held ready for calls that name one: current, latest:N or all. "
    "The current one, the canary and the shadow always are.",
    default="current",
)
@_option(
    "--watch-seconds",
    "Seconds between two looks at REPOSITORY for what is to be served; 0 never looks again.",
    type=float,
    default=2.0,
)
@_option(
    "--threads",
    "Threads of one instance of a model.  [default: as many as were certified]",
    type=int,
)
@_option(
    "--instances",
    "Instances of each model that compute at once.  [default: as many as the cores have room for, "
    "at most 8; 2 on a GPU]",
    type=int,
)
@_option(
    "--processes",
    "Processes that answer on --port and divide the cores; each has an HTTP port, from "
    "--metrics-port on. For hosts with many cores.",
    type=int,
    default=1,
)
@_option("--max-batch", "Rows that are computed together at most.", type=int, default=32)
@_option(
    "--batch-tokens",
    "Tokens that are computed together at most, with padding.",
    type=int,
    default=1024,
)
@_option("--queue-size", "Rows that may wait, over all calls.", type=int, default=1024)
@_option(
    "--max-wait",
    "Seconds that a call may wait for compute; one that would wait longer is refused.",
    type=float,
    default=2.0,
)
@_option("--max-texts", "Texts or images in one call at most.", type=int, default=256)
@_option("--max-text-chars", "Characters of one text at most.", type=int, default=100_000)
@_option("--max-message-mb", "MiB of one request at most.", type=int, default=16)
@_option(
    "--max-calls-per-caller",
    "Calls that one caller (token, certificate or address) may have in flight.  "
    "[default: no limit]",
    type=int,
)
@_option(
    "--max-connection-age",
    "Seconds, more or less a tenth, after which a gRPC connection takes no new calls: its client "
    "opens another, and finds replicas that are new. Calls in flight are finished.  "
    "[default: no limit]",
    type=float,
)
@_option(
    "--max-rows-per-caller",
    "Texts or images that one caller may have waiting, over all its calls.  [default: no limit]",
    type=int,
)
@_option(
    "--tls-cert",
    "PEM certificate of both ports, then those that lead to a root; read again when it changes.",
    metavar="FILE",
    type=click.Path(path_type=Path),
)
@_option("--tls-key", "PEM key of it.", metavar="FILE", type=click.Path(path_type=Path))
@_option(
    "--tls-client-ca",
    "PEM certificates of authorities; callers then need a certificate of one of them.",
    metavar="FILE",
    type=click.Path(path_type=Path),
)
@_option(
    "--tokens",
    "File of hashed tokens (`edgewright token new`); callers then need one of them.",
    metavar="FILE",
    type=click.Path(path_type=Path),
)
@_option(
    "--reflection/--no-reflection",
    "Let tools such as grpcurl list services and messages.",
    default=False,
)
@_option(
    "--drain-delay", "Seconds between saying not ready and refusing calls.", type=float, default=0.0
)
@_option(
    "--grace",
    "Seconds that calls in flight get to finish; 2 s later the process ends, whatever hangs.",
    type=float,
    default=30.0,
)
@_option(
    "--feedback",
    "Store of feedback and predictions: sqlite:///PATH or, for several replicas, "
    "postgresql://USER:PASSWORD@HOST/DATABASE. Without it no feedback is taken.",
    metavar="URL",
)
@_option(
    "--log-inputs",
    "Store classified texts and image files with their predictions; sampled is one in ten. What "
    "comes as tensors never is.",
    type=click.Choice([each.value for each in LogInputs]),
    default=LogInputs.OFF.value,
)
@state_dir_option
@_option(
    "--remeasure",
    "When to measure a bundle's variants here and choose anew: auto is where the certificate is "
    "of another instruction set or runtime and nothing was measured yet.",
    type=click.Choice([each.value for each in Remeasure]),
    default=Remeasure.AUTO.value,
)
@_option(
    "--remeasure-seconds",
    "Seconds that timing the variants of one bundle may take at most; a quarter is planned.",
    type=float,
    default=30.0,
)
@_option("--log-format", "Form of the log on stderr.", type=click.Choice(FORMATS), default="text")
@_option(
    "--access-log",
    "Log a line about each call that ended, or that failed: method, code, model, version, rows, "
    "caller, milliseconds by stage, request id. Never inputs.",
    type=click.Choice([each.value for each in AccessLevel]),
    default=AccessLevel.OFF.value,
)
@_option(
    "--otlp-endpoint",
    "OpenTelemetry collector to send traces to, by OTLP over gRPC: http://HOST:4317 or https://. "
    "Needs edgewright[otel]; without it nothing is traced.",
    metavar="URL",
)
@_option(
    "--trace-sample",
    "Share of the traces begun here that are kept; a caller's own traceparent decides for itself.",
    type=float,
    default=1.0,
)
@config_option
@output_options
def serve(
    output: Output,
    log_format: str,
    **options: Any,
) -> None:
    """Answer gRPC and HTTP calls from the current version of every model in REPOSITORY.

    Ready once the bundles' hashes and goldens hold on this host; says so on stdout, by the gRPC
    health protocol and at /readyz. SIGTERM and SIGINT finish what is in flight and exit with 0, or
    with 6 where --grace was too short for that. A second SIGTERM or SIGINT ends it at once.
    """
    config = ServeConfig(
        **{f"{name}_s" if name in _SECONDS else name: value for name, value in options.items()}
    )
    # A compute thread tokenises for itself: the other cores belong to the others.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = logging.WARNING if output.silent else logging.INFO
    process = "parent" if config.processes > 1 else ""
    with log_to_stderr(log_format, level=level, process=process) as log_thread:
        if config.processes > 1:
            # multiprocessing takes its time to load, which one process need not wait for.
            from edgewright.serve.member import Logs
            from edgewright.serve.processes import serve_in_processes

            logs = Logs(log_format, level)
            running = serve_in_processes(config, lambda each: _announce(output, each), logs)
            code = asyncio.run(running)
        else:
            whole = event_loop.run(
                serve_repository(config, lambda ready: _announce(output, told(ready)), log_thread)
            )
            code = 0 if whole else CUT_OFF
    if log_thread.stuck:  # the interpreter would wait at its end for whoever does not read stderr
        os._exit(code)
    click.get_current_context().exit(code)


def _announce(output: Output, announced: Mapping[str, Any]) -> None:
    output.result(announced, lines(announced))
