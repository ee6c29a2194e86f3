"""Graph work: every exact pass over the fp32 file, each proven on real rows before it is kept.

A pass is kept where the file it makes loads, answers within 1e-5 of the file it started from on
every batch that it is tried on, and is another file. Otherwise it is left out, and the record says
why: a graph that no pass understands goes on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgewright.backends import Session, get_backend
from edgewright.errors import ConfigError
from edgewright.latency import Effort, InputMaker, Timing, Workload
from edgewright.latency_rounds import HERE, compare
from edgewright.model_file import FEATURES, data_file
from edgewright.optimize.export import save
from edgewright.optimize.passes import PASSES, GraphPass
from edgewright.optimize.passes.edits import operators
from edgewright.optimize.passes.shapes import forget_shapes, without_weights

Feeds = Sequence[Mapping[str, NDArray[Any]]]

EXACT: Final = 1e-5  # of a logit or feature: the sums of a product are taken in another order
SOURCE: Final = "source"  # the name of the file as it was, beside those of the passes
_BACKEND: Final = "onnxruntime"
_REASON_LENGTH: Final = 300  # characters


@dataclass(frozen=True)
class PassRecord:
    """What one pass did."""

    name: str
    left_out: str  # why; empty where it was kept
    before: Mapping[str, int]  # nodes by operator
    after: Mapping[str, int]
    max_difference: float  # of any output from the source's, over all feeds; 0 where left out
    path: Path | None = None  # the file after this pass, where they were asked for

    @property
    def applied(self) -> bool:
        """Whether its rewrite is part of the file."""
        return not self.left_out

    @property
    def removed(self) -> dict[str, int]:
        """Nodes fewer by operator, most first; what it added is negative."""
        types = sorted({*self.before, *self.after})
        change = {each: self.before.get(each, 0) - self.after.get(each, 0) for each in types}
        return {each: n for each, n in sorted(change.items(), key=lambda item: -item[1]) if n}


@dataclass(frozen=True)
class GraphWork:
    """The passes in their order, and the file that they led to."""

    source: Path
    target: Path  # as the source where no pass was kept
    passes: tuple[PassRecord, ...]

    @property
    def applied(self) -> bool:
        """Whether the target differs from the source at all."""
        return any(each.applied for each in self.passes)

    @property
    def max_difference(self) -> float:
        """The target's: the largest difference of an output from the source's."""
        return next((each.max_difference for each in reversed(self.passes) if each.applied), 0.0)


def work_graph(
    source: Path,
    target: Path,
    feeds: Feeds,
    *,
    steps: Path | None = None,
    passes: Sequence[GraphPass] = PASSES,
) -> GraphWork:
    """Write ``source`` as a graph that does less and answers the same.

    Args:
        source: an fp32 ONNX file whose varying axes have names.
        target: is written; the same source gives the same bytes.
        feeds: arrays by input name, best in batches of several sizes and lengths, padded and not:
            a pass is believed on these.
        steps: an existing folder that keeps the file after each pass, to be timed.
        passes: in the order in which they are tried.

    Raises:
        ConfigError: there are no feeds.
        IntegrityError: ONNX Runtime cannot load the source.
    """
    if not feeds:
        raise ConfigError("graph work needs at least one batch to prove its passes on")
    expected = _answers(_load(source), feeds)
    records: list[PassRecord] = []
    with TemporaryDirectory(dir=target.parent, prefix=".graph-work-") as scratch:
        current = source
        for index, each in enumerate(passes, start=1):
            path = (steps or Path(scratch)) / f"{index}-{each.name}.onnx"
            before = operators(ir.load(current))
            try:
                difference = _apply(each, current, path, feeds, expected)
            except _LeftOutError as error:
                for written in (path, data_file(path)):
                    written.unlink(missing_ok=True)
                records.append(PassRecord(each.name, str(error), before, before, 0.0))
                continue
            current = path
            after = operators(ir.load(path))
            kept = path if steps is not None else None
            records.append(PassRecord(each.name, "", before, after, difference, kept))
        save(ir.load(current), target)
    return GraphWork(source, target, tuple(records))


def measure_passes(
    work: GraphWork,
    workload: Workload,
    make_inputs: InputMaker,
    *,
    threads: int,
    effort: Effort = HERE,
) -> dict[str, Timing]:
    """Time the file after each pass that was kept against the source, in turns.

    Returns:
        By name of the pass, and ``source``; a ratio tells all passes up to this one.

    Raises:
        ConfigError: the files were not kept (``steps``).
    """
    paths = {each.name: each.path for each in work.passes if each.applied}
    if None in paths.values():
        raise ConfigError("the files after each pass were not kept; give work_graph a folder")
    files = {SOURCE: work.source, **{name: path for name, path in paths.items() if path}}
    runs = {name: _load(path, threads).run for name, path in files.items()}
    return compare(runs, SOURCE, workload, make_inputs, effort=effort)


class _LeftOutError(Exception):
    """Why a pass is not kept."""


def _apply(
    each: GraphPass,
    current: Path,
    path: Path,
    feeds: Feeds,
    expected: list[dict[str, NDArray[Any]]],
) -> float:
    """Write the file after the pass; returns the largest difference of an output."""
    try:
        model = ir.load(current)
        before = _content(model)
        reason = each.rewrite(model)
        same = _same(before, _content(model))
    except Exception as error:  # of no common class: whatever a library met in the graph
        raise _LeftOutError(f"it cannot read this graph: {_reason(error)}") from error
    if reason is not None:
        raise _LeftOutError(reason)
    if same:
        raise _LeftOutError("nothing to do")
    try:
        save(model, path)
        answers = _answers(_load(path), feeds)
    except Exception as error:  # the runtime raises classes of its own, without a common base
        raise _LeftOutError(f"ONNX Runtime refuses what it made: {_reason(error)}") from error
    difference = max(_difference(*pair) for pair in zip(expected, answers, strict=True))
    if not difference <= EXACT:
        raise _LeftOutError(f"an output differs by {difference:.2g}, allowed are {EXACT:g}")
    return difference


def _content(model: ir.Model) -> tuple[bytes, list[Any]]:
    """The graph without notes on types and shapes, which it loses, and the tensors it holds."""
    forget_shapes(model)
    light = without_weights(model).SerializeToString(deterministic=True)
    return light, [value.const_value for value in model.graph.initializers.values()]


def _same(before: tuple[bytes, list[Any]], after: tuple[bytes, list[Any]]) -> bool:
    pairs = zip(before[1], after[1], strict=False)
    return before[0] == after[0] and all(first is second for first, second in pairs)


def _load(path: Path, threads: int = 1) -> Session:
    return get_backend(_BACKEND).load(path, threads=threads)


def _answers(session: Session, feeds: Feeds) -> list[dict[str, NDArray[Any]]]:
    names = [output.name for output in session.outputs]
    return [session.run(arrays, names) for arrays in feeds]


def _difference(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    """The largest over all outputs; infinite where names, shapes, NaN or infinities differ.

    Of features in shares of the largest where that is above 1: they have a scale of their own.
    """
    if expected.keys() != found.keys():
        return float("inf")
    return max(_distance(expected[n], found[n]) / _scale(n, expected[n]) for n in expected)


def _scale(output: str, expected: NDArray[Any]) -> float:
    return 1.0 if output != FEATURES else max(1.0, float(np.abs(expected).max(initial=0.0)))


def _distance(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    first, second = expected.astype(np.float64), found.astype(np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    apart = np.abs(np.subtract(first, second, where=~same, out=np.zeros_like(first)))
    return float(np.max(np.nan_to_num(apart, nan=np.inf), initial=0.0))


def _reason(error: Exception) -> str:
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], _REASON_LENGTH)
