"""A run from beginning to end: the model is found and tried, then come the loads."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import replace
from typing import Final

from edgewright.bench.config import BenchConfig, Load, Protocol
from edgewright.bench.interrupt import interrupt_once
from edgewright.bench.processes import processes
from edgewright.bench.record import Record
from edgewright.bench.requests import Requests
from edgewright.bench.result import Result
from edgewright.bench.subject import Asked, prepare
from edgewright.bench.sweep import Sweep
from edgewright.connection import Connection
from edgewright.output import Output

_FIRST_CALL_S: Final = 10.0  # whatever the deadline: the first call is the slowest


def run(
    config: BenchConfig, connection: Connection, protocol: Protocol, asked: Asked, output: Output
) -> Record:
    """Make every load of ``config`` on the server behind ``connection``.

    Raises:
        EdgewrightError: the server or the model cannot be asked so; see ``prepare``.
    """
    patient = replace(connection, timeout_s=max(connection.timeout_s, _FIRST_CALL_S))
    subject, inputs, requests = prepare(protocol, patient, asked)
    output.note(f"{connection.target}: {subject}, {inputs.told}")
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    sweep, found_rate = _sweep(config, connection, requests, output)
    return Record(
        target=connection.target,
        subject=subject,
        inputs=inputs,
        requests=requests,
        config=config,
        results=[each for each in sweep.results if each.seconds],
        found_rate=found_rate,
        interrupted=sweep.interrupted,
        began=began,
        host={"name": platform.node(), "machine": platform.machine(), "cores": os.cpu_count()},
    )


def _sweep(
    config: BenchConfig, connection: Connection, requests: Requests, output: Output
) -> tuple[Sweep, float | None]:
    whole_s = config.warm_up_s + config.duration_s
    with output.progress() as progress, interrupt_once() as interrupt:
        task = progress.add_task("loads", total=len(config.loads) or None, status="")

        def watch(load: Load, seconds: float) -> bool:
            status = f"{load}: {min(max(seconds, 0), whole_s):.0f} of {whole_s:g} s"
            progress.update(task, status=status)
            return not interrupt.asked

        with processes(connection, requests, config, watch) as crew:

            def make(load: Load) -> Result:
                result = Result(crew.run(load), config.rows_per_call)
                output.note(f"{load}: {result.calls_per_s:.1f} calls/s")
                progress.advance(task)
                return result

            sweep = Sweep(make)
            return sweep, sweep.run(config)
