"""Everything that a GPU host needs to build a TensorRT engine, made on a host without one.

A prepared variant is a file, the profiles of shapes that its engine is built for, and the scores
that the goldens must get. Those are computed here, by ONNX Runtime with its quantisation fusions
off: QuantizeLinear and DequantizeLinear as the standard defines them, in float. They say what a
sound engine answers, and nothing about this very engine, so it stays unproven until
`edgewright build-engine` has built it and run the goldens there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import get_backend
from edgewright.backends.tensorrt.backend import PROFILES
from edgewright.backends.tensorrt.profiles import Profile, Range, format_profiles
from edgewright.bundle import VARIANTS_FOLDER, Variant
from edgewright.errors import ConfigError
from edgewright.latency import Workload
from edgewright.metrics import Labels, accuracy
from edgewright.preprocess import Preprocessor, Row, TextPreprocessor
from edgewright.proof.goldens import BATCH_ROWS, Goldens, golden_scores
from edgewright.proof.logits import predict_logits

BACKEND: Final = "tensorrt"
PREPARED_KINDS: Final = ("int8-static", "fp16")  # of files; fp32 gains little from an engine
MAX_ROWS: Final = 32  # the server's default of rows computed together
_AS_DEFINED: Final = {"session.disable_quant_qdq": "1"}
_QUANTIZERS: Final = ("QuantizeLinear", "DequantizeLinear")
_NOT_EXPLICIT: Final = ("DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul", "QLinearConv")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A variant for another host, its file, and the scores that its goldens must get."""

    variant: Variant
    file: Path
    scores: NDArray[np.float32]  # (rows, classes)


@dataclass(frozen=True, eq=False)
class Preparation:
    """What every prepared file of one run shares."""

    preprocessor: Preprocessor  # the bundle's
    profiles: Sequence[Profile]  # ``profiles_for``
    goldens: Goldens  # of the bundle; their inputs are run
    search_rows: Sequence[Row]
    search_labels: Labels  # of these rows, shape (rows,)

    def prepare(self, file: Path, kind: str, precision: str) -> Prepared:
        """Prepare one file for TensorRT.

        Args:
            file: ONNX with explicit S8 symmetric Q and DQ for int8, converted for fp16.
            kind: "int8-static", "fp16"; ends the variant's name.
            precision: as ``Variant.precision``.

        Raises:
            ConfigError: the file's quantisation is none that TensorRT builds; names the nodes.
        """
        refuse_unfit(file)
        session = get_backend("onnxruntime").load(file, threads=1, options=_AS_DEFINED)
        goldens = self.goldens
        scores = golden_scores(session, self.preprocessor, goldens.inputs, goldens.batch_rows)
        answers = predict_logits(
            session, self.preprocessor, self.search_rows, one_row_at_a_time=False
        ).argmax(axis=1)
        variant = Variant(
            name=f"{BACKEND}-{kind}",
            backend=BACKEND,
            file=f"{VARIANTS_FOLDER}/{file.name}",
            precision=precision,
            batch_invariant=True,
            size_bytes=file.stat().st_size,
            search_accuracy=accuracy(self.search_labels, answers),
            session_options={PROFILES: format_profiles(self.profiles)},
        )
        return Prepared(variant, file, scores)


def with_prepared(goldens: Goldens, prepared: Sequence[Prepared]) -> Goldens:
    """The goldens, with the scores of prepared variants beside the others'."""
    return replace(
        goldens, scores={**goldens.scores, **{each.variant.name: each.scores for each in prepared}}
    )


def profiles_for(
    preprocessor: Preprocessor, workload: Workload, *, max_rows: int = MAX_ROWS
) -> tuple[Profile, ...]:
    """One profile for each number of rows in the workload, from the fewest to the most.

    Each is tuned for its most frequent length and takes every length that the model reads, and one
    row up to its own number; the last takes ``max_rows``, at least as many as goldens run together.
    """
    best: dict[int, int] = {}
    for shape, _ in sorted(workload.shares.items(), key=lambda item: item[1]):
        best[shape.rows] = shape.length
    counts = sorted(best)
    most = max(max_rows, BATCH_ROWS, counts[-1])
    limits = [*counts[:-1], most]
    return tuple(
        _profile(preprocessor, rows, best[rows], limit)
        for rows, limit in zip(counts, limits, strict=True)
    )


def _profile(preprocessor: Preprocessor, rows: int, length: int, max_rows: int) -> Profile:
    longest = preprocessor.max_length if isinstance(preprocessor, TextPreprocessor) else length

    def dims(count: int, tokens: int) -> tuple[int, ...]:
        rest = (size if size > 0 else tokens for size in preprocessor.input_shape[1:])
        return (count, *rest)

    each = Range(dims(1, 1), dims(rows, min(length, longest)), dims(max_rows, longest))
    return Profile(dict.fromkeys(preprocessor.input_names, each))


def refuse_unfit(file: Path) -> None:
    """Check that every quantisation is explicit, signed and symmetric, as TensorRT wants it.

    Raises:
        ConfigError: tells every node that is not.
    """
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    zero_points = _zero_points(graph)
    faults = []
    for node in graph.node:
        named = f"{file.name}: {node.op_type} {node.name or node.output[0]}"
        if node.op_type in _NOT_EXPLICIT:
            faults.append(
                f"{named} is no QuantizeLinear or DequantizeLinear, and TensorRT has none"
            )
        elif node.op_type in _QUANTIZERS and not _is_signed_symmetric(node, zero_points):
            faults.append(
                f"{named} has a zero point other than int8 0; TensorRT wants S8 symmetric"
            )
    if faults:
        raise ConfigError(faults)


def _is_signed_symmetric(node: Any, zero_points: Mapping[str, NDArray[Any]]) -> bool:
    """Without a zero point QuantizeLinear gives uint8, and DequantizeLinear takes 0."""
    if len(node.input) < 3:
        return bool(node.op_type == "DequantizeLinear")
    values = zero_points.get(node.input[2])
    return values is not None and values.dtype == np.int8 and not values.any()


def _zero_points(graph: Any) -> dict[str, NDArray[Any]]:
    """Constants of the file itself that some quantiser names as its third input, by name."""
    from onnx import numpy_helper

    wanted = {
        node.input[2] for node in graph.node if node.op_type in _QUANTIZERS and len(node.input) > 2
    }
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.attribute[0].t
    return {
        name: np.asarray(numpy_helper.to_array(constants[name]))
        for name in wanted
        if name in constants
    }
