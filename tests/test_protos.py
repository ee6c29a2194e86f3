from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "src" / "edgewright"
MODULES = (
    "edgewright.v1.prediction_pb2_grpc",
    "edgewright.v1.model_pb2_grpc",
    "edgewright.v1.feedback_pb2_grpc",
    "edgewright.oip.inference_pb2_grpc",
)
IMPORT_ALL = f"import {', '.join(MODULES)}"


def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "protos" / "generate.py"))


def test_the_generated_code_is_fresh() -> None:
    assert script()["stale"]() == [], "run `make protos`"


def test_stale_missing_and_orphaned_code_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "edgewright" / "v1"
    for package in ("v1", "oip"):
        shutil.copytree(GENERATED / package, tmp_path / "edgewright" / package)
    (copy / "model_pb2.py").write_text("# edited")
    (copy / "model_pb2.pyi").unlink()
    (copy / "removed_pb2.py").touch()
    assert script()["stale"](tmp_path) == [
        f"edgewright/v1/{name}" for name in ("model_pb2.py", "model_pb2.pyi", "removed_pb2.py")
    ]


def test_a_proto_that_does_not_compile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    generate = script()["generate"]
    monkeypatch.setitem(generate.__globals__, "PROTOS", tmp_path)
    (tmp_path / "broken.proto").write_text("message {")
    with pytest.raises(subprocess.CalledProcessError):
        generate(tmp_path / "out")
    assert "broken.proto" in capfd.readouterr().err


def test_the_generated_code_imports_without_a_warning() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT_ALL], check=True, cwd="/")


@pytest.mark.slow
@pytest.mark.parametrize("protobuf", ["6.30.0", "6.33.0", "7.34.0"])
def test_the_generated_code_imports_under_protobuf(protobuf: str, tmp_path: Path) -> None:
    target = tmp_path / "protobuf"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*install, f"protobuf=={protobuf}"], check=True)
    check = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import google.protobuf; "
        f"assert google.protobuf.__version__ == {protobuf!r}, google.protobuf.__version__; "
        f"{IMPORT_ALL}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", check], check=True, cwd="/")


def files() -> list[FileDescriptor]:
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, cwd="/")
    for module in MODULES:
        __import__(module)
    pool = descriptor_pool.Default()
    return [
        pool.FindFileByName(f"edgewright/v1/{name}.proto")
        for name in ("prediction", "model", "feedback")
    ]


def test_the_protos_keep_the_rules_of_the_house() -> None:
    for file in files():
        assert file.package == "edgewright.v1"
        for service in file.services_by_name.values():
            assert service.name.endswith("Service")
            for method in service.methods:
                assert method.input_type.name == f"{method.name}Request"
                assert method.output_type.name == f"{method.name}Response"
        for enum in file.enum_types_by_name.values():
            prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_")
            assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
            assert all(value.name.startswith(prefix) for value in enum.values)


def test_no_field_number_is_used_twice_or_skipped_silently() -> None:
    for file in files():
        for message in file.message_types_by_name.values():
            numbers = sorted(field.number for field in message.fields)
            proto = message.file.serialized_pb
            assert numbers == list(range(1, len(numbers) + 1)) or b"reserved" in proto, message.name


def test_a_client_never_loads_the_open_inference_protocol() -> None:
    look = "import sys, edgewright.client; assert not [m for m in sys.modules if '.oip' in m]"
    subprocess.run([sys.executable, "-c", look], check=True, cwd="/")


def test_the_open_inference_protocol_has_the_numbers_of_the_specification() -> None:
    """Those that clients rely on, as the specification prints them; ModelConfig's are Triton's."""
    from edgewright.oip import inference_pb2

    messages = inference_pb2.DESCRIPTOR.message_types_by_name
    found = {
        name: " ".join(f"{field.number}:{field.name}" for field in messages[name].fields)
        for name in (
            "ModelInferRequest",
            "ModelInferResponse",
            "InferTensorContents",
            "ModelConfig",
        )
    }
    assert inference_pb2.DESCRIPTOR.package == "inference"
    assert found == {
        "ModelInferRequest": "1:model_name 2:model_version 3:id 4:parameters 5:inputs 6:outputs "
        "7:raw_input_contents",
        "ModelInferResponse": "1:model_name 2:model_version 3:id 4:parameters 5:outputs "
        "6:raw_output_contents",
        "InferTensorContents": "1:bool_contents 2:int_contents 3:int64_contents 4:uint_contents "
        "5:uint64_contents 6:fp32_contents 7:fp64_contents 8:bytes_contents",
        "ModelConfig": "1:name 2:platform 4:max_batch_size 5:input 6:output 11:dynamic_batching "
        "17:backend",
    }


def test_verdicts_and_states_on_the_wire_cover_ours() -> None:
    from edgewright.bundle import Verdict
    from edgewright.v1 import model_pb2

    wire = set(model_pb2.Verdict.keys()) - {"VERDICT_UNSPECIFIED"}
    assert wire == {f"VERDICT_{verdict}" for verdict in Verdict}


def test_a_score_is_a_float_and_an_id_a_string() -> None:
    from edgewright.v1.prediction_pb2 import Classification

    kinds = {field.name: field.type for field in Classification.DESCRIPTOR.fields}
    assert kinds["score"] == FieldDescriptor.TYPE_FLOAT
    assert kinds["prediction_id"] == FieldDescriptor.TYPE_STRING


def test_the_tools_are_the_pinned_ones() -> None:
    ask = "from importlib.metadata import version; print(version('grpcio-tools'))"
    told = subprocess.run(
        [script()["tools"](), "-c", ask], check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == "1.72.1"
