"""fp32 ONNX to int8 ONNX.

Dynamic: weights are int8 in the file, and activations are scaled at every call over all its rows.
It needs no calibration, but a row's answer depends on the rows beside it.
Static: activations have fixed ranges, taken from calibration rows, so every row stands alone.

``reduce_range`` keeps weights to 7 bits. x86 without VNNI multiplies with VPMADDUBSW, which adds
two products into 16 bits and saturates. On such a host 8-bit weights gave MiniLM's logits 1.2
(dynamic) to 1.6 (static) times the error of 7-bit ones; no measurement on a VNNI host shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from edgewright.backends import get_backend
from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.optimize.export import save
from edgewright.optimize.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir

# Every call begins another pass over the same batches: arrays by input name, as preprocessed.
Calibration = Callable[[], Iterator[Mapping[str, NDArray[Any]]]]

CALIBRATION_BATCHES: Final = 128


def quantize_dynamic(source: Path, target: Path, *, reduce_range: bool) -> None:
    """Write ``source`` with the weights of MatMul and Gemm as int8 by output column.

    Activations become uint8 with one scale for each call, by ONNX Runtime's own operators.

    Raises:
        ConfigError: the library cannot quantise this graph.
    """
    get_backend("onnxruntime")  # the first import of it must be the one that holds its telemetry
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with quiet(), _told("ONNX Runtime", source):
        quantize(
            onnx.load(source),  # given a path, it writes beside it
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def quantize_static(source: Path, calibration: Calibration, *, reduce_range: bool) -> ir.Model:
    """NNCF's int8 form of ``source``: QDQ, per-channel weights, bias correction.

    Activations of transformers are made asymmetric and smoothed (SmoothQuant), those of
    convolutions are not. Statistics are collected as a stream: memory does not grow with the
    calibration rows.

    Args:
        source: an fp32 ONNX file.
        calibration: begins a pass over the batches; best of one row, for padding is activation
            too. The first 128 count, and are read more than once.
        reduce_range: 7-bit weights.

    Raises:
        BackendUnavailableError: NNCF is not installed.
        ConfigError: the library cannot quantise this graph.
    """
    import onnx
    import onnx_ir as ir

    with quiet():
        nncf = _nncf()
        convolutional = is_convolutional(source)
        # By channel, as NNCF would before depthwise convolutions, no integer kernel takes them:
        # EfficientNet-Lite0 ran at a quarter of fp32's speed on ONNX Runtime.
        by_tensor = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE,
            activations_quantization_params=by_tensor if convolutional else None,
        )
        with _told("NNCF", source):
            quantized = nncf.quantize(
                onnx.load(source),
                nncf.Dataset(_Batches(calibration)),
                subset_size=CALIBRATION_BATCHES,
                preset=nncf.QuantizationPreset.MIXED if convolutional else None,
                model_type=None if convolutional else nncf.ModelType.TRANSFORMER,
                advanced_parameters=advanced,
            )
    model: ir.Model = ir.from_proto(quantized)
    return model


def to_fp16(source: Path, target: Path) -> None:
    """Write ``source`` with fp16 weights and arithmetic; inputs and outputs keep their types.

    Raises:
        ConfigError: the library cannot convert this graph.
    """
    get_backend("onnxruntime")  # as above
    import onnx
    import onnx_ir as ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet(), _told("ONNX Runtime", source):
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True)
    save(ir.from_proto(model), target)


def is_convolutional(source: Path) -> bool:
    """Whether an fp32 ONNX file has more convolutions than products with fixed weights.

    ResNet, MobileNet and EfficientNet have; ConvNeXt, with a convolution to two products in each
    block, and ViT, with one in all, have not.
    """
    import onnx

    graph = onnx.load(source, load_external_data=False).graph
    constants = {each.name for each in graph.initializer}
    products = [
        node
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and not constants.isdisjoint(node.input)
    ]
    return sum(node.op_type == "Conv" for node in graph.node) > len(products)


@contextmanager
def _told(library: str, source: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of no common class: whatever a library met in the graph
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{library} cannot quantise {source.name}: {reason}") from error


class _Batches:
    """What NNCF iterates over, several times."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(arrays) for arrays in self._calibration())


def _nncf() -> ModuleType:
    """NNCF without its telemetry.

    At import it would write an id into the home folder, and each quantisation would be reported
    over the network, unless the package that does both is not there.
    """
    get_backend("onnxruntime")  # NNCF imports it, and the first import must hold its telemetry
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment] # the import system's own "absent"
    try:
        import nncf
    except ImportError as error:
        raise BackendUnavailableError(
            "NNCF is not installed; run `pip install 'edgewright[optimize]'`"
        ) from error
    finally:
        if hidden:
            del sys.modules[telemetry]
    return nncf  # type: ignore[no-any-return]
