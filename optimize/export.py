"""A checkpoint as fp32 ONNX, and the PyTorch model that it and every variant are held against.

One seam for two exporters: optimum for the architectures that it knows, torch.onnx for the others.
Whichever wrote it, the file has one contract: inputs are the preprocessor's, int64, with dynamic
axes (rows, length), or for images float32 (rows, 3, height, width) of which the rows alone vary;
the one output is ``logits``, float32 of shape (rows, classes); and the same checkpoint gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, TensorSpec, get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.optimize.quiet import quiet
from edgewright.preprocess import Preprocessor, Row
from edgewright.preprocess.images import PIXEL_VALUES
from edgewright.proof.logits import BATCH_ROWS, batches_by_length, predict_batches

if TYPE_CHECKING:
    import onnx_ir as ir

LOGITS: Final = "logits"
FP32_FILE: Final = "fp32.onnx"
TOLERANCE: Final = 1e-3  # of a logit; faithful exports stay near 1e-5
_AXES: Final = ("rows", "length")
_TASK: Final = TEXT.task
_AUTO: Final = {
    TEXT: "AutoModelForSequenceClassification",
    IMAGE: "AutoModelForImageClassification",
}
_TORCH_OPSET: Final = 18  # the oldest that torch.onnx writes without converting back
_LARGEST_BYTES: Final = 2**31 - 2**24  # protobuf ends at 2 GiB; the graph needs some of it


@dataclass(frozen=True)
class Export:
    """The fp32 ONNX file of a checkpoint."""

    path: Path
    exporter: str  # "optimum-onnx 0.1.0" or "torch 2.13.0"
    opset: int
    max_difference: float  # of any logit from PyTorch's, over the rows and shapes compared


def export_onnx(checkpoint: Checkpoint, folder: Path, sample: Sequence[Row]) -> Export:
    """Write ``folder``/fp32.onnx and compare it with PyTorch on real rows of several shapes.

    Args:
        checkpoint: what finetune wrote.
        folder: exists; receives the file.
        sample: rows, texts best of different lengths: the shortest, the longest and the first 16
            are compared.

    Raises:
        BackendUnavailableError: torch, transformers or an exporter is missing.
        ConfigError: the model cannot be exported, or its ONNX file answers differently; says where.
    """
    onnxruntime = get_backend("onnxruntime")
    preprocessor: Preprocessor = checkpoint.preprocessor()
    path = folder / FP32_FILE
    exporter = _write(checkpoint, preprocessor.pad(list(sample[:2]) * 2).arrays, path)
    opset = _normalise(path, preprocessor)
    session = onnxruntime.load(path, threads=1)
    _check_contract(session, preprocessor, path)
    # Loaded anew: an exporter may leave its own attention in the model that it traced.
    difference = _compare(session, Reference(checkpoint), preprocessor, sample)
    return Export(path, exporter, opset, difference)


def _write(checkpoint: Checkpoint, arrays: Mapping[str, NDArray[Any]], path: Path) -> str:
    """Export with the library that fits the architecture; returns its name and version."""
    model = Reference(checkpoint).model
    _refuse_too_large(model, checkpoint)
    config = _optimum_config(model, list(arrays))
    try:
        with quiet():
            if config is None:
                _export_with_torch(model, arrays, path)
                return f"torch {version('torch')}"
            _export_with_optimum(model, config, path)
            return f"optimum-onnx {version('optimum-onnx')}"
    except Exception as error:  # exporters let through whatever tracing raises
        raise ConfigError(
            f"{_model_type(model)}, the model of {checkpoint.path}, cannot be exported to ONNX: "
            f"{_first_line(error)}; fine-tune another architecture"
        ) from error


class Reference:
    """The checkpoint's own PyTorch model in fp32: what every accuracy loss is measured against.

    A ``Session`` like those of the backends, so that one code asks all of them.
    """

    def __init__(self, checkpoint: Checkpoint, *, threads: int = 1) -> None:
        """Load the model in fp32, dropout off; BackendUnavailableError without the libraries."""
        self._torch, _ = _libraries()
        self._threads = threads
        self._preprocessor: Preprocessor = checkpoint.preprocessor()
        self.model = _load_model(checkpoint, self._preprocessor.kind)
        dtype, shape = self._preprocessor.input_dtype, self._preprocessor.input_shape
        self.inputs: tuple[TensorSpec, ...] = tuple(
            TensorSpec(name, dtype, shape) for name in self._preprocessor.input_names
        )
        scores = TensorSpec(LOGITS, "float32", (-1, len(checkpoint.labels)))
        self.outputs: tuple[TensorSpec, ...] = (scores,)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass on the preprocessor's arrays; ``logits`` is float32 (rows, classes)."""
        torch = self._torch
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
                return {LOGITS: self.model(**tensors).logits.numpy()}
        finally:
            torch.set_num_threads(before)

    def logits(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Logits of shape (rows, classes), in the order of ``rows``.

        No text is padded: some architectures (FNet) answer differently beside a longer one.
        """
        batches = batches_by_length(rows, equal_lengths=True)
        return predict_batches(self, self._preprocessor, rows, batches)


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BackendUnavailableError(
            f"{error.name} is not installed; run `pip install 'edgewright[optimize]'`"
        ) from error
    return torch, transformers


def _load_model(checkpoint: Checkpoint, kind: Kind) -> Any:
    """The checkpoint's model in eval mode, made by a factory or by transformers."""
    from edgewright.factories import FACTORY_FILE, FactoryClassifier

    if (checkpoint.model_folder / FACTORY_FILE).is_file():
        return FactoryClassifier.load(checkpoint.model_folder)
    torch, transformers = _libraries()
    auto = getattr(transformers, _AUTO[kind])
    return auto.from_pretrained(
        checkpoint.model_folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()


def _refuse_too_large(model: Any, checkpoint: Checkpoint) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if size > _LARGEST_BYTES:
        raise ConfigError(
            f"the model of {checkpoint.path} has {size / 2**30:.1f} GiB of fp32 weights, and one "
            "ONNX file holds less than 2 GiB; fine-tune a smaller model"
        )


def _model_type(model: Any) -> str:
    factory = getattr(model, "factory", None)
    return str(model.config.model_type if factory is None else factory)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _optimum_config(model: Any, input_names: Sequence[str]) -> Any | None:
    """optimum's description of how to export this architecture; None where it has none.

    Image models go by torch.onnx, which optimum's own exporter of them wraps.
    """
    if input_names == [PIXEL_VALUES]:
        return None
    try:
        import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the architectures
        from optimum.exporters.tasks import TasksManager
    except ImportError:
        return None
    kind = _model_type(model)
    try:
        known = TasksManager.get_supported_tasks_for_model_type(
            kind, "onnx", library_name="transformers"
        )
    except KeyError:
        return None
    if _TASK not in known:
        return None
    make: Callable[[Any], Any] = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model=model, task=_TASK, library_name="transformers"
    )
    config = make(model.config)
    return _with_inputs(config, input_names) if set(input_names) <= set(config.inputs) else None


def _with_inputs(config: Any, input_names: Sequence[str]) -> Any:
    """The same configuration for a tokenizer that gives fewer inputs than the model could take."""
    if set(input_names) == set(config.inputs):
        return config
    axes = {name: config.inputs[name] for name in input_names}
    fewer = type(type(config).__name__, (type(config),), {"inputs": property(lambda _: axes)})
    config.__class__ = fewer
    return config


def _export_with_optimum(model: Any, config: Any, path: Path) -> None:
    from optimum.exporters.onnx import export

    export(model, config, path)


def _export_with_torch(model: Any, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(arrays, tensors, strict=True))).logits

    varying = _AXES[:1] if PIXEL_VALUES in arrays else _AXES
    axes = dict(enumerate(torch.export.Dim(name) for name in varying))
    torch.onnx.export(
        Logits(),
        tuple(torch.from_numpy(array) for array in arrays.values()),
        path,
        input_names=list(arrays),
        output_names=[LOGITS],
        dynamic_shapes={"tensors": tuple(axes for _ in arrays)},
        opset_version=_TORCH_OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def _normalise(path: Path, preprocessor: Preprocessor) -> int:
    """Give the axes our names and drop what says where it was traced; returns the opset."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    model = ir.load(path)
    ClearMetadataAndDocStringPass()(model)
    model.graph.name = "edgewright"
    names, shape = preprocessor.input_names, preprocessor.input_shape
    for value in model.graph.inputs:
        value.shape = ir.Shape(
            [_AXES[place] if axis < 0 else axis for place, axis in enumerate(shape)]
        )
    model.graph.inputs[:] = sorted(model.graph.inputs, key=lambda value: _position(value, names))
    for output in model.graph.outputs:
        if output.shape is not None and len(output.shape):
            output.shape = ir.Shape((_AXES[0], *output.shape[1:]))
    save(model, path)
    return int(model.opset_imports[""])


def _position(value: ir.Value, names: Sequence[str]) -> int:
    return names.index(value.name) if value.name in names else len(names)


def save(model: ir.Model, path: Path) -> None:
    """Write one self-contained ONNX file: the same model, the same bytes."""
    import onnx_ir as ir

    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _check_contract(session: Session, preprocessor: Preprocessor, path: Path) -> None:
    names, dtype = preprocessor.input_names, preprocessor.input_dtype
    found = {spec.name: spec.dtype for spec in session.inputs}
    outputs = [(spec.name, spec.dtype) for spec in session.outputs]
    if found != dict.fromkeys(names, dtype) or outputs != [(LOGITS, "float32")]:
        raise ConfigError(
            f"{path} takes {found} and gives {outputs}; the preprocessing needs {dtype} "
            f"{', '.join(names)} and one float32 {LOGITS}; fine-tune another architecture"
        )


def _compare(
    session: Session,
    reference: Reference,
    preprocessor: Preprocessor,
    sample: Sequence[Row],
) -> float:
    """The largest difference of a logit over several shapes; ConfigError beyond ``TOLERANCE``."""
    largest = 0.0
    for rows in _batches(preprocessor, sample):
        arrays = preprocessor.pad(rows).arrays
        difference = np.abs(session.run(arrays)[LOGITS] - reference.run(arrays)[LOGITS])
        if not difference.max() <= TOLERANCE:  # NaN is beyond it too
            row, column = np.argwhere(~(difference <= TOLERANCE))[0]
            shape = "x".join(str(size) for size in next(iter(arrays.values())).shape)
            raise ConfigError(
                f"the ONNX export of {_model_type(reference.model)} answers differently from "
                f"PyTorch: a logit differs by {difference[row, column]:.2g} where {TOLERANCE:g} "
                f"is allowed (inputs of {shape}, row {row}, class {column}); fine-tune another "
                "architecture, or upgrade torch and optimum"
            )
        largest = max(largest, float(difference.max()))
    return largest


def _batches(preprocessor: Preprocessor, sample: Sequence[Row]) -> Iterator[list[Row]]:
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
