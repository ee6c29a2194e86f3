"""What runtimes make of files: products in integers or not, what is left, where it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import fp32_classifier, ids, int8_classifier

from edgewright.backends import get_backend
from edgewright.backends.placement import (
    Operation,
    Placement,
    Role,
    computed_in_float,
    what_runs,
)
from edgewright.errors import BackendUnavailableError


def placed(backend: str, path: Path, **options: str) -> Placement:
    return get_backend(backend).load(path, threads=1, options=options).placement()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def fused(folder: Path) -> Path:
    return int8_classifier(folder / "fused.onnx", activations=np.uint8)


@pytest.fixture(scope="module")
def unfused(folder: Path) -> Path:
    """Three products share one int8 activation."""
    return int8_classifier(folder / "unfused.onnx", activations=np.int8, heads=3)


@pytest.fixture(scope="module")
def fp32(folder: Path) -> Path:
    return fp32_classifier(folder / "fp32.onnx")


def test_onnxruntime_tells_the_integer_kernel_that_it_fused(fused: Path) -> None:
    placement = placed("onnxruntime", fused)
    assert placement.integer_products == 1
    assert placement.float_products == {}
    assert placement.fused == {"MatMulIntegerToFloat": 1}
    assert placement.left(Role.QUANTIZE) == 1
    assert placement.left(Role.DEQUANTIZE) == 0
    assert set(placement.devices) == {"CPUExecutionProvider"}
    assert computed_in_float(placement) is None


def test_a_file_that_stays_unfused_is_told_to_be_computed_in_float(unfused: Path) -> None:
    placement = placed("onnxruntime", unfused)
    assert placement.integer_products == 0
    assert placement.float_products == {"fp32": 3}
    assert placement.left(Role.DEQUANTIZE) >= 4
    reason = computed_in_float(placement)
    assert reason is not None
    assert reason.startswith(
        "onnxruntime computes it in float: none of 3 products runs in integers"
    )


def test_a_session_option_that_forbids_the_fusion_shows(fused: Path) -> None:
    placement = placed("onnxruntime", fused, **{"session.disable_quant_qdq": "1"})
    assert placement.integer_products == 0
    assert computed_in_float(placement) is not None


def test_openvino_runs_in_integers_what_onnxruntime_does_not(unfused: Path, fp32: Path) -> None:
    placement = placed("openvino", unfused)
    assert placement.integer_products > 0
    assert placement.float_products == {}
    assert placement.devices.keys() == {"CPU"}
    assert computed_in_float(placement) is None
    placement = placed("openvino", fp32, INFERENCE_PRECISION_HINT="f32")
    assert placement.float_products == {"fp32": 1}
    assert "openvino computes it in float" in str(computed_in_float(placement))


def test_openvino_tells_what_it_fused(fused: Path) -> None:
    assert sum(placed("openvino", fused).fused.values()) >= 1


def test_fp32_is_in_float_everywhere(fp32: Path) -> None:
    placement = placed("onnxruntime", fp32)
    assert placement.float_products == {"fp32": 1}
    assert placement.integer_products == 0
    assert placement.left(Role.QUANTIZE) == placement.left(Role.DEQUANTIZE) == 0


def test_a_placement_leaves_the_session_as_it_was(fused: Path) -> None:
    session = get_backend("onnxruntime").load(fused, threads=1)
    inputs = ids(2, 3)
    before = session.run(inputs)["logits"]
    session.placement()
    np.testing.assert_array_equal(session.run(inputs)["logits"], before)


def test_openvino_on_another_device_is_an_error(
    fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewright.backends import openvino as module

    library = module._library()
    compiled_model = type(library.Core().compile_model(library.Core().read_model(str(fp32)), "CPU"))
    monkeypatch.setattr(compiled_model, "get_property", lambda _self, _name: ["GPU.0", "CPU"])
    with pytest.raises(BackendUnavailableError, match=r"OpenVINO took GPU\.0, CPU where CPU was"):
        get_backend("openvino").load(fp32, threads=1)


PLACEMENT = Placement(
    "somewhere",
    (
        Operation("a", "FullyConnected", Role.PRODUCT, "int8", "CPU"),
        Operation("b", "FullyConnected", Role.PRODUCT, "int8", "CPU", fused=True),
        Operation("c", "MatMul", Role.PRODUCT, "bf16", "CPU"),
        Operation("d", "FakeQuantize", Role.QUANTIZE, "fp32", "CPU"),
        Operation("e", "Eltwise", Role.OTHER, "fp32", "GPU"),
    ),
)


@pytest.mark.parametrize("precisions", [[], ["", "fp32"], ["int8", "fp32"]])
def test_nothing_is_claimed_of_what_a_runtime_does_not_tell(precisions: list[str]) -> None:
    operations = [Operation("a", "gemm", Role.PRODUCT, each, "GPU") for each in precisions]
    assert computed_in_float(Placement("tensorrt", tuple(operations))) is None
    fp32 = Operation("a", "gemm", Role.PRODUCT, "fp32", "GPU")
    assert computed_in_float(Placement("tensorrt", (fp32,))) is not None


def test_the_table_says_what_runs() -> None:
    assert what_runs({"somewhere-int8": PLACEMENT}) == [
        {
            "variant": "somewhere-int8",
            "products in int8": "2",
            "products in float": "1 bf16",
            "quantize left": "1",
            "dequantize left": "0",
            "fused": "1 FullyConnected",
            "runs on": "4 CPU, 1 GPU",
        }
    ]
    onnxruntime = Operation("a", "gemm", Role.PRODUCT, "fp32", "CPUExecutionProvider")
    (row,) = what_runs({"onnxruntime-fp32": Placement("onnxruntime", (onnxruntime,))})
    assert row["runs on"] == "1 CPU"
    assert PLACEMENT.to_json() == {
        "integer_products": 2,
        "float_products": {"bf16": 1},
        "quantize_left": 1,
        "dequantize_left": 0,
        "fused": {"FullyConnected": 1},
        "devices": {"CPU": 4, "GPU": 1},
    }
