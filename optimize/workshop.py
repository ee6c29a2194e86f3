"""The workshop: makes every file, loads each on every runtime that it is for, and probes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, get_backend
from edgewright.backends.placement import computed_in_float
from edgewright.backends.tensorrt.backend import PROFILES
from edgewright.errors import BackendUnavailableError, ConfigError, IntegrityError
from edgewright.model_file import LOGITS
from edgewright.optimize.prepared import PREPARED_KINDS
from edgewright.optimize.recipes import GPU_BACKENDS, SEVEN_BITS, TENSORRT, Materials, Recipe
from edgewright.optimize.variants import RECIPES, Candidate, Skipped
from edgewright.preprocess import Preprocessor, Row
from edgewright.proof.host import available_cores
from edgewright.proof.logits import predict_logits

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
class Probe:
    """Real rows, unpadded, to see whether a row's answer depends on the rows beside it."""

    preprocessor: Preprocessor
    rows: Sequence[Row]  # 16 are used; best of different lengths


def build_candidates(
    materials: Materials, probe: Probe, *, asked: Collection[str] = ()
) -> tuple[list[Candidate], list[Skipped]]:
    """Make every file that the backends take, load each where it may run, and probe it.

    Args:
        materials: what to make files from, and for which backends.
        probe: for ``batch_invariant``.
        asked: backends that the user named: what they lack is an error, not a skipped row.

    Returns:
        The candidates, fp32 on the first backend first, and what was left out with the reason: a
        quantiser may not cope with the graph, a runtime may not know an operator, a device may be
        missing.

    Raises:
        BackendUnavailableError: NNCF is not installed, or a device of ``asked`` is not there.
    """
    made = [each for recipe in RECIPES for each in _make(recipe, materials)]
    made.sort(key=lambda each: materials.backends.index(each.backend))
    with ThreadPoolExecutor(available_cores()) as pool:
        tried = list(pool.map(lambda each: _try(each, probe, asked), made))
    candidates = [each for each in tried if isinstance(each, Candidate)]
    return candidates, [each for each in tried if isinstance(each, Skipped)]


@dataclass(frozen=True)
class Unbuilt(Skipped):
    """A file for TensorRT, which is not here: to be prepared for a host where it is."""

    kind: str
    precision: str
    file: Path


@dataclass(frozen=True)
class _Made:
    """A file for one backend; or why there is none."""

    backend: str
    name: str
    kind: str
    precision: str
    file: Path | ConfigError
    options: Mapping[str, str]


def _make(recipe: Recipe, materials: Materials) -> Iterator[_Made]:
    backends = [each for each in materials.backends if recipe.only is None or each in recipe.only]
    files: Mapping[str, Path | ConfigError] = {}
    if backends:
        try:
            files = recipe.make(materials, backends)
        except ConfigError as error:
            files = dict.fromkeys(backends, error)
    options = recipe.options(materials)
    for backend, file in files.items():
        short = recipe.is_int8 and materials.reduce_range and backend not in GPU_BACKENDS
        precision = recipe.kind + (SEVEN_BITS if short else "")
        name = f"{backend}-{recipe.kind}"
        own = dict(options.get(backend, {}))
        if backend == TENSORRT:
            own[PROFILES] = materials.profiles
        yield _Made(backend, name, recipe.kind, precision, file, own)


def _try(made: _Made, probe: Probe, asked: Collection[str]) -> Candidate | Skipped:
    """Load it and probe it, one thread each."""
    if isinstance(made.file, ConfigError):
        return Skipped(made.name, str(made.file))
    try:
        session = get_backend(made.backend).load(made.file, threads=1, options=made.options)
        placement = session.placement()
        in_float = computed_in_float(placement) if made.kind.startswith("int8") else None
        if in_float is not None:
            return Skipped(made.name, in_float)
        invariant = _probed(session, probe, made.name)
    except IntegrityError as error:
        return Skipped(made.name, shorten(str(error), _REASON_LENGTH))
    except BackendUnavailableError as error:
        if made.backend == TENSORRT:
            return _unbuilt(made, made.file, error)
        if made.backend in asked:
            raise
        return Skipped(made.name, shorten(str(error), _REASON_LENGTH))
    return Candidate(
        made.name,
        made.backend,
        made.file,
        made.precision,
        invariant,
        made.options,
        placement,
    )


def _probed(session: Session, probe: Probe, name: str) -> bool:
    """``is_batch_invariant``; IntegrityError where the model cannot run, or gives no numbers."""
    try:
        return is_batch_invariant(session, probe)
    except IntegrityError:
        raise
    except Exception as error:  # a runtime's own classes, without a common base
        raise IntegrityError(f"{name} cannot run: {error}") from error


def _unbuilt(made: _Made, file: Path, error: BackendUnavailableError) -> Skipped:
    if made.kind not in PREPARED_KINDS:
        return Skipped(made.name, shorten(str(error), _REASON_LENGTH))
    reason = (
        "prepared here, and unproven until `edgewright build-engine` has built it on a GPU host"
    )
    return Unbuilt(made.name, reason, made.kind, made.precision, file)


def is_batch_invariant(session: Session, probe: Probe) -> bool:
    """Whether a row's answer is its own, whatever rows are beside it.

    Sixteen rows get the same labels in a batch as alone, and all but an eighth of them logits
    within 2% of their spread; and four of them get the same logits again when the other twelve
    are replaced.

    Raises:
        IntegrityError: a logit is no number.
    """
    rows = probe.rows[:_PROBE_ROWS]
    alone = predict_logits(session, probe.preprocessor, rows, one_row_at_a_time=True)
    if not np.isfinite(alone).all():
        wrong = int((~np.isfinite(alone).all(axis=1)).sum())
        raise IntegrityError(f"it answers {wrong} of {len(rows)} rows with what are no numbers")
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
