"""A PyTorch classifier in a folder: run as the reference, and written as ONNX.

One seam for two exporters: optimum for the architectures that it knows, torch.onnx for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.kinds import TEXT, Kind
from edgewright.model_file import FEATURES, LOGITS
from edgewright.optimize.head_input import HeadInput
from edgewright.optimize.onnx_contract import AXES
from edgewright.optimize.quiet import quiet
from edgewright.preprocess import DecodedRow, Preprocessor
from edgewright.preprocess.images import PIXEL_VALUES
from edgewright.pretrained import AUTO_CLASSES

_TASK: Final = TEXT.task
_TORCH_OPSET: Final = 18  # the oldest that torch.onnx writes without converting back


@dataclass(frozen=True)
class TorchModel:
    """A model folder in transformers' layout, or of a factory (``edgewright.factories``)."""

    folder: Path
    kind: Kind
    name: str  # as the user knows it

    def session(self, preprocessor: Preprocessor, classes: int, threads: int) -> TorchSession:
        """The model in fp32; BackendUnavailableError without torch and transformers."""
        return TorchSession(self.load(), preprocessor, classes, threads)

    def write(self, arrays: Mapping[str, NDArray[Any]], path: Path, opset: int | None) -> str:
        """Export to ``path`` with the library that fits the architecture; its name and version.

        Args:
            arrays: one batch of two rows or more, traced by torch.onnx.
            path: of the file to write.
            opset: of ONNX; None: what the exporter writes best.

        Raises:
            ConfigError: the model cannot be exported.
        """
        model = self.load()
        config = _optimum_config(model, list(arrays))
        try:
            head = HeadInput.of(model, _tensors(arrays))
            with quiet():
                if config is None:
                    _export_with_torch(model, head, arrays, path, opset or _TORCH_OPSET)
                    return f"torch {version('torch')}"
                if head is not None:
                    config = _with_features(model, head, config)
                _export_with_optimum(model, config, path, opset)
                return f"optimum-onnx {version('optimum-onnx')}"
        except Exception as error:  # exporters let through whatever tracing raises
            at = "" if opset is None else f" at opset {opset}"
            advice = "fine-tune another architecture"
            raise ConfigError(
                f"{_model_type(model)}, the model of {self.name}, cannot be exported to ONNX{at}: "
                f"{_first_line(error)}; {advice if opset is None else 'leave --opset out'}"
            ) from error

    def load(self) -> Any:
        """The model in eval mode, made by a factory or by transformers.

        Raises:
            BackendUnavailableError: torch or transformers is missing.
            ConfigError: the folder lacks weights that the classifier needs.
        """
        from edgewright.factories import FACTORY_FILE, FactoryClassifier

        torch, transformers = _libraries()
        if (self.folder / FACTORY_FILE).is_file():
            return FactoryClassifier.load(self.folder)
        auto = getattr(transformers, AUTO_CLASSES[self.kind])
        model, report = auto.from_pretrained(
            self.folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        _refuse_missing(report, self.name)
        return model.eval()


class TorchSession:
    """A loaded model behind the contract of the backends, so that one code asks all of them."""

    def __init__(self, model: Any, preprocessor: Preprocessor, classes: int, threads: int) -> None:
        self._torch, _ = _libraries()
        self._threads = threads
        self.model = model
        dtype, shape = preprocessor.input_dtype, preprocessor.input_shape
        self.inputs: tuple[TensorSpec, ...] = tuple(
            TensorSpec(name, dtype, shape) for name in preprocessor.input_names
        )
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec(LOGITS, "float32", (-1, classes)),)
        self._head = HeadInput.of(model, _tensors(_two_rows(preprocessor)))
        if self._head is not None:
            self.outputs += (TensorSpec(FEATURES, "float32", (-1, self._head.width)),)

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass on the preprocessor's arrays; ``logits`` is float32 (rows, classes)."""
        torch = self._torch
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                found = {LOGITS: self.model(**_tensors(arrays)).logits}
                if self._head is not None:
                    found[FEATURES] = self._head.value
                return {name: found[name].numpy() for name in outputs or (LOGITS,)}
        finally:
            torch.set_num_threads(before)


def _two_rows(preprocessor: Preprocessor) -> Mapping[str, NDArray[Any]]:
    """Arrays of some rows, whatever they say."""
    if preprocessor.kind is TEXT:
        return preprocessor.pad(preprocessor.encode(["a", "a"])).arrays
    height, width = preprocessor.input_shape[-2:]
    return preprocessor.pad([DecodedRow(np.zeros((height, width, 3), np.uint8))] * 2).arrays


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    torch, _ = _libraries()
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BackendUnavailableError(
            f"{error.name} is not installed; run `pip install 'edgewright[optimize]'`"
        ) from error
    return torch, transformers


def _refuse_missing(report: Mapping[str, Any], name: str) -> None:
    """What a file lacks transformers draws: an encoder without a head would pass for a model."""
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ConfigError(
            f"{name}: its weights lack {len(lacking)} tensors of the classifier, {lacking[0]} the "
            "first; fine-tune it first (`edgewright finetune DATA --model`)"
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


def _export_with_optimum(model: Any, config: Any, path: Path, opset: int | None) -> None:
    from optimum.exporters.onnx import export

    export(model, config, path, opset=opset)


def _with_features(model: Any, head: HeadInput, config: Any) -> Any:
    """Let the model answer with the features too; the configuration that says so."""
    # optimum puts a forward of its own in the model's place; a hook has the last word.
    model.register_forward_hook(lambda _model, _given, told: (told[LOGITS], head.value))
    outputs = {name: dict(axes) for name, axes in config.outputs.items()}
    outputs[FEATURES] = {0: outputs[LOGITS][0]}
    more = type(type(config).__name__, (type(config),), {"outputs": property(lambda _: outputs)})
    config.__class__ = more
    return config


def _export_with_torch(
    model: Any, head: HeadInput | None, arrays: Mapping[str, NDArray[Any]], path: Path, opset: int
) -> None:
    import torch

    class Answers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            logits = self.model(**dict(zip(arrays, tensors, strict=True))).logits
            return logits if head is None else (logits, head.value)

    varying = AXES[:1] if PIXEL_VALUES in arrays else AXES
    axes = dict(enumerate(torch.export.Dim(name) for name in varying))
    torch.onnx.export(
        Answers(),
        tuple(_tensors(arrays).values()),
        path,
        input_names=list(arrays),
        output_names=[LOGITS] if head is None else [LOGITS, FEATURES],
        dynamic_shapes={"tensors": tuple(axes for _ in arrays)},
        opset_version=opset,
        external_data=False,
        dynamo=True,
        verbose=False,
    )
