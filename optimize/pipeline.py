"""One run of optimize, from a checkpoint to a sealed bundle or a rejection.

    open        the checkpoint, verified; its splits; the ledger of its certify split
    export      fp32 ONNX, compared with PyTorch
    quantise    more files, calibrated on the calibrate split, each on every runtime
    search      what every candidate answers on the search split, as it would be served
    measure     latency in turns, at the declared workload
    certify     at most three, frozen beforehand, on rows that nothing has seen
    write       the fastest that passed, in a bundle; or why there is none
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import get_backend
from edgewright.bundle import Certificate
from edgewright.examples import Examples
from edgewright.latency import Timing, compare
from edgewright.manifest import sha256_file
from edgewright.optimize.artifacts import Contents, refuse_targets, write_bundle, write_rejection
from edgewright.optimize.certify import certify
from edgewright.optimize.choice import Contender, Rules, choose, shippable, shortlist
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.drift import drift_reference
from edgewright.optimize.export import Reference, export_onnx
from edgewright.optimize.inputs import Inputs
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.search import Answers, answer, depends_on_neighbours
from edgewright.optimize.summary import summary_lines
from edgewright.optimize.variants import Candidate, make_candidates
from edgewright.output import Output
from edgewright.proof.certificate import PairedCounts, Subject
from edgewright.proof.goldens import choose_rows, make_goldens
from edgewright.proof.host import instruction_set, this_host
from edgewright.proof.ledger import open_ledger


def run(config: OptimizeConfig, output: Output) -> None:
    """Optimise as ``config`` says, write the bundle or the rejection, and print the result.

    Raises:
        AccuracyGateError, GateInconclusiveError: nothing may ship; the rejection is written and the
            result is printed.
        EdgewrightError: the run cannot be done; nothing is written.
    """
    outcome = optimize(config, output)
    output.result(outcome.to_json(), summary_lines(outcome))
    if not outcome.shipped:
        raise outcome.refusal()


def optimize(config: OptimizeConfig, output: Output) -> Outcome:
    """Optimise as ``config`` says and write the bundle or the rejection; errors as in ``run``."""
    refuse_targets(config.output, config.rejected, overwrite=config.overwrite)
    bench = Bench(config, Inputs.open(config), Stages(output))
    _check_ledger(bench, output)
    with TemporaryDirectory(prefix="edgewright-optimize-") as work:
        with bench.stages("export"):
            reference = bench.reference()
            fp32 = bench.export(reference, Path(work))
        ...
