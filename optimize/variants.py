"""The candidates: fp32 and int8 files, each on every runtime that can run it.

    file                            onnxruntime   openvino
    fp32.onnx                       fp32          fp32 (bf16 inside, where the CPU has it)
    int8-dynamic.onnx               int8-dynamic  int8-dynamic
    int8-static.onnxruntime.onnx    int8-static
    int8-static.openvino.onnx                     int8-static

A candidate is a file on a runtime: that pair is searched, certified, timed, chosen and served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, get_backend
from edgewright.errors import ConfigError, IntegrityError
from edgewright.optimize.export import Export, save
from edgewright.optimize.onnx_contract import LOGITS
from edgewright.optimize.quantize import (
    QDQ_FILE,
    Calibration,
    is_convolutional,
    quantize_dynamic,
    quantize_static,
)
from edgewright.preprocess import Preprocessor, Row
from edgewright.proof.host import saturates
from edgewright.proof.logits import predict_logits

FP32: Final = "fp32"
DYNAMIC: Final = "int8-dynamic"
STATIC: Final = "int8-static"
SEVEN_BITS: Final = "-7bit"  # ends the precision of files made for hosts that saturate

# The fusion takes the bias of the product before it, which is then no longer part of the integer
# kernel; without it int8 is 6% faster on MiniLM, fp32 the same.
_INT8_OPTIONS: Final = {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}
_PROBE_ROWS: Final = 16
_KEPT_ROWS: Final = 4
# Shares of the spread of the logits. With the shape of the batch sums are taken in another order,
# and a row on a rounding boundary may fall on its other side: now and then one moves, alone.
# Other neighbours in the same shape move nothing at all, unless a row depends on them.
_NOISE: Final = 1e-5
_MOVED: Final = 0.02
_FEW: Final = 1 / 8
_REASON_LENGTH: Final = 300  # characters; runtimes put the reason behind where they were


@dataclass(frozen=True)
class Candidate:
    """A file on a runtime, and how it must be run."""

    name: str  # "onnxruntime-int8-dynamic"
    backend: str
    file: Path
    precision: str  # "fp32", "int8-dynamic", "int8-static"; with "-7bit" for 7-bit weights
    batch_invariant: bool  # False: measure, certify and serve it one row at a time
    session_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A combination that was tried and left out."""

    name: str
    reason: str


@dataclass(frozen=True)
class Probe:
    """Real rows, unpadded, to see whether a row's answer depends on the rows beside it."""

    preprocessor: Preprocessor
    rows: Sequence[Row]  # 16 are used; best of different lengths


def build_candidates(
    export: Export,
    folder: Path,
    calibration: Calibration,
    *,
    backends: Sequence[str],
    instruction_set: str,
    probe: Probe,
) -> tuple[list[Candidate], list[Skipped]]:
    """Make every file that the backends need, load each where it may run, and probe it.

    Args:
        export: the fp32 file.
        folder: exists; receives the int8 files.
        calibration: batches of the calibrate split, for the static ranges.
        backends: names of ``edgewright.backends``; fp32 on the first one comes first.
        instruction_set: of the host that will serve, as ``proof.host.instruction_set`` tells it;
            without VNNI weights get 7 bits.
        probe: for ``batch_invariant``.

    Returns:
        The candidates, and what was left out with the reason: a quantiser may not cope with the
        graph, a runtime may not know an operator.

    Raises:
        BackendUnavailableError: a backend or NNCF is not installed.
    """
    recipe = _Recipe(export, folder, calibration, backends, saturates(instruction_set))
    files, skipped = _write_files(recipe)
    candidates = []
    for file in files:
        name = f"{file.backend}-{file.kind}"
        try:
            session = get_backend(file.backend).load(file.path, threads=1, options=file.options)
            invariant = is_batch_invariant(session, probe)
        except IntegrityError as error:
            skipped.append(Skipped(name, shorten(str(error), _REASON_LENGTH)))
            continue
        candidates.append(
            Candidate(name, file.backend, file.path, file.precision, invariant, file.options)
        )
    return candidates, skipped


@dataclass(frozen=True)
class _Recipe:
    export: Export
    folder: Path
    calibration: Calibration
    backends: Sequence[str]
    reduce_range: bool


@dataclass(frozen=True)
class _File:
    kind: str
    backend: str
    path: Path
    precision: str
    options: Mapping[str, str]


def _write_files(recipe: _Recipe) -> tuple[list[_File], list[Skipped]]:
    """Every file, by backend and then by precision, and what a quantiser could not make."""
    files = [_File(FP32, each, recipe.export.path, FP32, {}) for each in recipe.backends]
    skipped = []
    for kind, write in ((DYNAMIC, _write_dynamic), (STATIC, _write_static)):
        try:
            paths = write(recipe)
        except ConfigError as error:
            skipped += [Skipped(f"{each}-{kind}", str(error)) for each in recipe.backends]
            continue
        precision = kind + (SEVEN_BITS if recipe.reduce_range else "")
        for backend, path in paths.items():
            options = _INT8_OPTIONS if backend == "onnxruntime" else {}
            files.append(_File(kind, backend, path, precision, options))
    return sorted(files, key=lambda file: recipe.backends.index(file.backend)), skipped


def _write_dynamic(recipe: _Recipe) -> dict[str, Path]:
    if is_convolutional(recipe.export.path):
        raise ConfigError(
            "most of it are convolutions, which have fixed ranges or none: it would stay fp32"
        )
    path = recipe.folder / f"{DYNAMIC}.onnx"
    quantize_dynamic(recipe.export.path, path, reduce_range=recipe.reduce_range)
    return dict.fromkeys(recipe.backends, path)


def _write_static(recipe: _Recipe) -> dict[str, Path]:
    """One set of statistics, one form of the graph for each runtime."""
    from edgewright.optimize.onnxruntime_graph import for_onnxruntime as products
    from edgewright.optimize.onnxruntime_graph import unsigned_activations as convolutions

    model = quantize_static(
        recipe.export.path, recipe.calibration, reduce_range=recipe.reduce_range
    )
    save(model, recipe.folder / QDQ_FILE)
    paths = {each: recipe.folder / f"{STATIC}.{each}.onnx" for each in recipe.backends}
    rewrite = convolutions if is_convolutional(recipe.export.path) else products
    # ONNX Runtime's form last: the model is rewritten in place.
    for backend in sorted(paths, key=lambda name: name == "onnxruntime"):
        if backend == "onnxruntime":
            rewrite(model)
        save(model, paths[backend])
    return paths


def is_batch_invariant(session: Session, probe: Probe) -> bool:
    """Whether a row's answer is its own, whatever rows are beside it.

    Sixteen rows get the same labels in a batch as alone, and all but an eighth of them logits
    within 2% of their spread; and four of them get the same logits again when the other twelve
    are replaced.
    """
    rows = probe.rows[:_PROBE_ROWS]
    alone = predict_logits(session, probe.preprocessor, rows, one_row_at_a_time=True)
    length = max(len(row) for row in rows)
    together = session.run(probe.preprocessor.pad(rows, length).arrays)[LOGITS]
    kept = [rows[index % min(_KEPT_ROWS, len(rows))] for index in range(len(rows))]
    others = session.run(probe.preprocessor.pad(kept, length).arrays)[LOGITS]
    own = slice(0, _KEPT_ROWS)
    return _agree(alone, together) and _equal(together[own], others[own], float(alone.std()))


def _agree(alone: NDArray[Any], together: NDArray[Any]) -> bool:
    """Both of shape (rows, classes)."""
    if not np.array_equal(alone.argmax(axis=1), together.argmax(axis=1)):
        return False
    moved = np.abs(alone - together).max(axis=1) > _MOVED * alone.std()
    return float(moved.mean()) <= _FEW


def _equal(first: NDArray[Any], second: NDArray[Any], spread: float) -> bool:
    return bool(np.abs(first - second).max() <= _NOISE * spread)
