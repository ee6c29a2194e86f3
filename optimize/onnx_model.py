"""An ONNX file that somebody else exported: brought to our contract, and its own reference.

What changes is what surrounds the graph: integer inputs are taken as int64, the answers are called
``logits`` and are float32, and a closing softmax is taken off, for a score is made of logits once.
A second output that is called ``features`` stays; others go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from edgewright.backends import Session, get_backend
from edgewright.errors import ConfigError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.model_file import FEATURES, LOGITS
from edgewright.preprocess import TEXT_INPUTS, Preprocessor
from edgewright.preprocess.images import PIXEL_VALUES

if TYPE_CHECKING:
    import onnx_ir as ir

_INTEGERS: Final = ("INT32", "INT64")
_FLOATS: Final = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")


@dataclass(frozen=True)
class OnnxModel:
    """A classifier in an ONNX file."""

    path: Path

    @property
    def kind(self) -> Kind:
        """What it takes: texts as token ids, or one array of images."""
        inputs = self._inputs
        if "input_ids" in inputs:
            return TEXT
        if len(inputs) == 1:
            return IMAGE
        raise ConfigError(
            f"{self.path} takes {', '.join(inputs) or 'nothing'}; expected input_ids (texts) or "
            "one array of images"
        )

    @property
    def text_inputs(self) -> tuple[str, ...]:
        """Which of a tokenizer's arrays it takes."""
        return tuple(name for name in TEXT_INPUTS if name in self._inputs)

    def session(self, preprocessor: Preprocessor, _classes: int, threads: int) -> Session:
        """The file on ONNX Runtime."""
        with TemporaryDirectory(prefix="edgewright-onnx-") as folder:
            path = Path(folder) / "given.onnx"
            self._save(preprocessor, path)
            return get_backend("onnxruntime").load(path, threads=threads)

    def write(self, arrays: Mapping[str, NDArray[Any]], path: Path, opset: int | None) -> str:
        """Bring the file to our contract, at ``path``.

        Raises:
            ConfigError: it takes other inputs than ``arrays``, gives no logits, or has fixed axes;
                or ``opset`` is given.
        """
        if opset is not None:
            raise ConfigError(f"--opset is {opset}, and {self.path} is ONNX already; leave it out")
        self._save_for(tuple(arrays), path)
        return "given"

    def _save(self, preprocessor: Preprocessor, path: Path) -> None:
        self._save_for(preprocessor.input_names, path)

    def _save_for(self, names: tuple[str, ...], path: Path) -> None:
        import onnx_ir as ir

        model = _load(self.path)
        for value in model.graph.inputs:
            _refuse_fixed(value, self.path)
        if self.kind is IMAGE:
            _take_images(model.graph.inputs[0], self.path)
        else:
            _take_tokens(model.graph, names, self.path)
        _give_logits(model.graph, self.path)
        ir.save(model, path, external_data=f"{path.name}.data")

    @cached_property
    def _inputs(self) -> list[str]:
        return [str(value.name) for value in _load(self.path).graph.inputs]


def _load(path: Path) -> ir.Model:
    import onnx_ir as ir
    from google.protobuf.message import DecodeError

    try:
        return ir.load(path)
    except (OSError, ValueError, DecodeError) as error:
        raise ConfigError(f"{path} cannot be read as ONNX: {error}") from error


def _refuse_fixed(value: ir.Value, path: Path) -> None:
    """Rows must vary, and the length of texts; other axes of images are as they are."""
    shape = list(value.shape) if value.shape is not None else []
    varying = shape[:1] if len(shape) == 4 else shape
    if any(isinstance(axis, int) for axis in varying):
        told = " x ".join(str(getattr(axis, "value", axis) or "?") for axis in shape)
        raise ConfigError(
            f"{path}: its input {value.name} has the fixed shape {told}; export it again with "
            "dynamic axes for the rows and, of texts, the length"
        )


def _take_images(value: ir.Value, path: Path) -> None:
    shape = list(value.shape) if value.shape is not None else []
    if len(shape) != 4 or shape[1] != 3 or _type(value) != "FLOAT":
        raise ConfigError(
            f"{path}: its input {value.name} is {_type(value)} of {len(shape)} axes; expected "
            "float32 of rows x 3 x height x width"
        )
    value.name = PIXEL_VALUES


def _take_tokens(graph: ir.Graph, names: tuple[str, ...], path: Path) -> None:
    import onnx_ir as ir

    found = {str(value.name): value for value in graph.inputs}
    if set(found) != set(names):
        raise ConfigError(
            f"{path} takes {', '.join(found)}, and the preprocessing gives {', '.join(names)}; "
            "give the tokenizer it was trained with as --preprocessing, or export it with these "
            "inputs"
        )
    for value in found.values():
        given = _type(value)
        if given not in _INTEGERS:
            raise ConfigError(f"{path}: its input {value.name} is {given}; expected int64 or int32")
        if given == "INT32":
            value.type = ir.TensorType(ir.DataType.INT64)
            cast = ir.node("Cast", [value], {"to": ir.DataType.INT32}, name=f"{value.name}_int32")
            uses = [(use.node, use.idx) for use in value.uses() if use.node is not cast]
            for node, place in uses:
                node.replace_input_with(place, cast.outputs[0])
            graph.insert_before(graph[0], cast)


def _give_logits(graph: ir.Graph, path: Path) -> None:

    named = [value for value in graph.outputs if value.name == LOGITS]
    others = [value for value in graph.outputs if value.name != FEATURES]
    if len(others) != 1 and not named:
        raise ConfigError(
            f"{path} gives {', '.join(str(value.name) for value in graph.outputs)}; expected one "
            f"output, or one that is called {LOGITS}"
        )
    answer = (named or others)[0]
    if _type(answer) not in _FLOATS or (answer.shape is not None and len(answer.shape) != 2):
        raise ConfigError(
            f"{path}: its output {answer.name} is {_type(answer)} of {answer.shape}; expected "
            "floats of rows x classes"
        )
    producer = answer.producer()
    if producer is not None and producer.op_type == "Softmax" and producer.inputs[0] is not None:
        shape, kind = answer.shape, answer.type
        answer = producer.inputs[0]
        answer.shape, answer.type = shape, kind
    features = [value for value in graph.outputs if value.name == FEATURES and _is_features(value)]
    graph.outputs[:] = []
    for name, value in zip((LOGITS, FEATURES), [answer, *features], strict=False):
        graph.outputs.append(_named_float(graph, value, name))


def _is_features(value: ir.Value) -> bool:
    return _type(value) in _FLOATS and value.shape is not None and len(value.shape) == 2


def _named_float(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """The value as float32, under this name."""
    import onnx_ir as ir

    if _type(value) != "FLOAT":
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{name}_float")
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        graph.append(cast)
        value = cast.outputs[0]
    for node in graph:
        for other in node.outputs:
            if other.name == name and other is not value:
                other.name = f"{name}_given"
    value.name = name
    return value


def _type(value: ir.Value) -> str:
    return value.dtype.name if value.dtype is not None else "of no known type"
