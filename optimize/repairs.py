"""A run's int8 files that lose too much on search, and what is made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import ConfigError, IntegrityError
from edgewright.manifest import canonical_json, sha256_bytes
from edgewright.optimize.bench import Bench
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.fewest import Clock
from edgewright.optimize.inputs import rows_of
from edgewright.optimize.mixed_precision import Failing, Mixed, Repair, mix, ranking_batches
from edgewright.optimize.quantize import is_convolutional
from edgewright.optimize.recipes import ONNXRUNTIME, SEVEN_BITS
from edgewright.optimize.recipes.int8_static import STATIC, qdq_file, rewriter
from edgewright.optimize.trials import trials_file
from edgewright.optimize.variants import Candidate, Skipped


def find_failing(
    bench: Bench, scores: Mapping[str, NDArray[np.float32]], config: OptimizeConfig
) -> list[Candidate]:
    """The int8-static candidates that lose more than the budget on the search split."""
    return [
        candidate
        for name, candidate in bench.candidates.items()
        if name == f"{candidate.backend}-{STATIC}"
        and bench.count_on_search(scores[name]).loss > config.max_drop
    ]


def repair(
    failing: list[Candidate],
    bench: Bench,
    config: OptimizeConfig,
    fp32: Path,
    *,
    clock: Clock = time.monotonic,
) -> tuple[list[Mixed], list[Skipped]]:
    """Search each for layers to keep in float; all together take ``config.mixed_seconds``.

    Args:
        failing: from ``find_failing``.
        bench: counts what a mixed file loses.
        config: budget, seconds, and the bundle beside which the trials are kept.
        fp32: what the int8 files were made of; theirs lie in its folder.
        clock: seconds, monotonic.

    Returns:
        The searches, and those that could not be done with the reason.
    """
    mixed, skipped, deadline = [], [], clock() + config.mixed_seconds
    for candidate in failing:
        limits = Repair(
            budget=config.max_drop,
            seconds=max(deadline - clock(), 0.0),
            count=lambda each: bench.count_on_search(bench.scores_on_search(each)),
            batches=lambda: _batches(bench),
            data=_data(bench),
            folder=fp32.parent,
            trials=trials_file(config.output),
            clock=clock,
        )
        try:
            mixed.append(mix(_failing(candidate, fp32), limits))
        except (ConfigError, IntegrityError) as error:
            skipped.append(Skipped(f"{candidate.name}-mixed", str(error)))
    return mixed, skipped


def _failing(candidate: Candidate, fp32: Path) -> Failing:
    seven_bits = candidate.precision.endswith(SEVEN_BITS)
    products = candidate.backend == ONNXRUNTIME and not is_convolutional(fp32)
    return Failing(
        candidate,
        fp32,
        qdq_file(fp32.parent, reduce_range=seven_bits),
        rewriter(candidate.backend, fp32),
        weights_only=products,
    )


def _batches(bench: Bench) -> Iterator[Mapping[str, NDArray[np.generic]]]:
    rows = rows_of(bench.inputs.preprocessor, bench.inputs.calibrate)
    return ranking_batches(bench.inputs.preprocessor, rows)


def _data(bench: Bench) -> str:
    """Identity of the rows and of what their answers are held against."""
    inputs = bench.inputs
    return sha256_bytes(
        canonical_json(
            {
                "calibrate": list(inputs.calibrate.ids),
                "search": list(inputs.search.ids),
                "labels": inputs.search.labels.tolist(),
                "reference": bench.reference_on_search.tolist(),
            }
        )
    )
