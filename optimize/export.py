"""A model as fp32 ONNX, and the model itself, which it and every variant are held against.

Wherever the file came from, it has one contract: inputs are the preprocessor's, int64, with dynamic
axes (rows, length), or for images float32 (rows, 3, height, width) of which the rows alone vary;
the outputs are ``logits``, float32 of shape (rows, classes), and where the classifier's head reads
one vector for each row ``features``, float32 of shape (rows, width); and the same model gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, get_backend
from edgewright.errors import ConfigError
from edgewright.kinds import IMAGE
from edgewright.model_file import FEATURES, LOGITS, data_file
from edgewright.optimize.onnx_contract import AXES
from edgewright.optimize.origin import Origin
from edgewright.preprocess import Preprocessor, Row, TextPreprocessor
from edgewright.proof.logits import BATCH_ROWS, batches_by_length, predict_batches

if TYPE_CHECKING:
    import onnx_ir as ir

FP32_FILE: Final = "fp32.onnx"
TOLERANCE: Final = 1e-3  # of a logit or feature; faithful exports stay near 1e-5
_LARGEST_BYTES: Final = 2**31 - 2**24  # protobuf ends at 2 GiB; the graph needs some of it
_LONGEST: Final = 4096  # tokens that are tried in one row


@dataclass(frozen=True)
class Export:
    """The fp32 ONNX file of a model."""

    path: Path
    exporter: str  # "optimum-onnx 0.1.0", "torch 2.13.0", or that it was given
    opset: int
    max_difference: float  # of any logit from the model's, over the rows and shapes compared


def export_onnx(
    origin: Origin, folder: Path, sample: Sequence[Row], *, opset: int | None = None
) -> Export:
    """Write ``folder``/fp32.onnx and compare it with the model on real rows of several shapes.

    Args:
        origin: the model, with its preprocessing.
        folder: exists; receives the file.
        sample: rows, texts best of different lengths: the shortest, the longest and the first 16
            are compared.
        opset: of ONNX; None: what the exporter writes best.

    Raises:
        BackendUnavailableError: torch, transformers or an exporter is missing.
        ConfigError: the model cannot be exported, or its ONNX file answers differently; says where.
    """
    onnxruntime = get_backend("onnxruntime")
    preprocessor, path = origin.preprocessor, folder / FP32_FILE
    with TemporaryDirectory(dir=folder) as scratch:  # weights may come in many files
        written = Path(scratch) / FP32_FILE
        arrays = preprocessor.pad(list(sample[:2]) * 2).arrays
        exporter = origin.model.write(arrays, written, opset)
        found_opset = _normalise(written, path, preprocessor)
    session = onnxruntime.load(path, threads=1)
    _check_contract(session, preprocessor, path, len(origin.labels))
    _check_length(session, preprocessor, sample[0], origin.name)
    # Loaded anew: an exporter may leave its own attention in the model that it traced.
    difference = _compare(session, Reference(origin), preprocessor, sample)
    return Export(path, exporter, found_opset, difference)


class Reference:
    """The model itself, in fp32: what every accuracy loss is measured against.

    A ``Session`` like those of the backends, so that one code asks all of them.
    """

    def __init__(self, origin: Origin, *, threads: int = 1) -> None:
        """Load the model, dropout off; BackendUnavailableError without the libraries."""
        self._preprocessor = origin.preprocessor
        self.name = origin.name
        self.session = origin.model.session(origin.preprocessor, len(origin.labels), threads)
        self.inputs, self.outputs = self.session.inputs, self.session.outputs

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass on the preprocessor's arrays; ``logits`` is float32 (rows, classes)."""
        return self.session.run(arrays, outputs)

    def logits(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits of shape (rows, classes), in the order of ``rows``.

        No text is padded: some architectures (FNet) answer differently beside a longer one.
        """
        batches = batches_by_length(rows, equal_lengths=True)
        return predict_batches(self, self._preprocessor, rows, batches)

    def features(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """What its head reads, of shape (rows, width), where ``outputs`` has it; as ``logits``."""
        batches = batches_by_length(rows, equal_lengths=True)
        return predict_batches(self, self._preprocessor, rows, batches, FEATURES)


def _normalise(source: Path, target: Path, preprocessor: Preprocessor) -> int:
    """Give the axes our names and drop what says where it was traced; returns the opset."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    model = ir.load(source)
    ClearMetadataAndDocStringPass()(model)
    model.graph.name = "edgewright"
    names, shape = preprocessor.input_names, preprocessor.input_shape
    for value in model.graph.inputs:
        value.shape = ir.Shape(
            [AXES[place] if axis < 0 else axis for place, axis in enumerate(shape)]
        )
    model.graph.inputs[:] = sorted(model.graph.inputs, key=lambda value: _position(value, names))
    for output in model.graph.outputs:
        if output.shape is not None and len(output.shape):
            output.shape = ir.Shape((AXES[0], *output.shape[1:]))
    model.graph.outputs[:] = sorted(model.graph.outputs, key=lambda value: value.name != LOGITS)
    save(model, target)
    return int(model.opset_imports[""])


def _position(value: ir.Value, names: Sequence[str]) -> int:
    return names.index(value.name) if value.name in names else len(names)


def save(model: ir.Model, path: Path) -> None:
    """Write one ONNX model, with the weights beside it where protobuf cannot hold them.

    The same model gives the same bytes.
    """
    import onnx_ir as ir

    weights = (value.const_value for value in model.graph.initializers.values())
    if sum(each.nbytes for each in weights if each is not None) > _LARGEST_BYTES:
        ir.save(model, path, external_data=data_file(path).name)
    else:
        ir.external_data.load_to_model(model)
        path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _check_length(session: Session, preprocessor: Preprocessor, row: Row, name: str) -> None:
    """The longest row that the preprocessing lets through must find its positions."""
    limit = preprocessor.max_length if isinstance(preprocessor, TextPreprocessor) else None
    if limit is None or limit > _LONGEST:
        return
    try:
        session.run(preprocessor.pad([row], limit).arrays)
    except Exception as error:  # the runtime's own classes
        raise ConfigError(
            f"{name} cannot take the {limit} tokens that its preprocessing lets through; pass "
            "the length it was made for as --max-length"
        ) from error


def _check_contract(session: Session, preprocessor: Preprocessor, path: Path, classes: int) -> None:
    names, dtype = preprocessor.input_names, preprocessor.input_dtype
    found = {spec.name: spec.dtype for spec in session.inputs}
    outputs = [(spec.name, spec.dtype) for spec in session.outputs]
    wanted = [(LOGITS, "float32"), (FEATURES, "float32")]
    if found != dict.fromkeys(names, dtype) or outputs not in (wanted[:1], wanted):
        raise ConfigError(
            f"{path} takes {found} and gives {outputs}; the preprocessing needs {dtype} "
            f"{', '.join(names)} and float32 {LOGITS}; fine-tune another architecture"
        )
    given = session.outputs[0].shape[-1:]
    if given not in ((-1,), (classes,)):
        raise ConfigError(f"{path} tells {given[0]} classes apart, and {classes} are named")


def _compare(
    session: Session,
    reference: Reference,
    preprocessor: Preprocessor,
    sample: Sequence[Row],
) -> float:
    """The largest difference of a logit over several shapes; ConfigError beyond ``TOLERANCE``."""
    largest = 0.0
    names = [spec.name for spec in session.outputs]
    for rows in sample_batches(preprocessor, sample):
        arrays = preprocessor.pad(rows).arrays
        expected, found = reference.run(arrays, names), session.run(arrays, names)
        if not np.isfinite(expected[LOGITS]).all():
            raise ConfigError(
                f"{reference.name} itself answers with what are no numbers; its weights are "
                "damaged, or its training diverged: train it again"
            )
        shape = "x".join(str(size) for size in next(iter(arrays.values())).shape)
        for name in names:
            # Logits are near 1; features have a scale of their own.
            scale = 1.0 if name == LOGITS else max(1.0, float(np.abs(expected[name]).max()))
            difference = np.abs(found[name] - expected[name]) / scale
            _refuse_difference(difference, name, reference.name, shape)
            if name == LOGITS:
                largest = max(largest, float(difference.max()))
    return largest


def _refuse_difference(
    difference: NDArray[np.floating[Any]], output: str, model: str, shape: str
) -> None:
    if difference.max() <= TOLERANCE:  # NaN is not
        return
    row, column = np.argwhere(~(difference <= TOLERANCE))[0]
    what, place = ("a logit", "class") if output == LOGITS else ("a feature", "feature")
    raise ConfigError(
        f"the ONNX export of {model} answers differently from the model: {what} differs by "
        f"{difference[row, column]:.2g} where {TOLERANCE:g} is allowed (inputs of {shape}, row "
        f"{row}, {place} {column}); fine-tune another architecture, or upgrade torch and optimum"
    )


def sample_batches(preprocessor: Preprocessor, sample: Sequence[Row]) -> Iterator[list[Row]]:
    """One row and many, short and long: an axis traced as a constant shows in one of them."""
    if preprocessor.kind is IMAGE:
        yield [sample[0]]
        yield [sample[-1], sample[0], sample[-1]]
        yield list(sample[:BATCH_ROWS])
        return
    shortest, longest = min(sample, key=len), max(sample, key=len)
    half = preprocessor.cut(longest, len(longest) // 2 + 1)
    yield [shortest]
    yield [longest]
    yield [half]
    yield [half, shortest, longest]
    yield list(sample[:BATCH_ROWS])
