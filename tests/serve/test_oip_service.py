"""inference.GRPCInferenceService of a running server, called with its own messages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewright.oip import inference_pb2 as pb
from edgewright.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from edgewright.repository import Repository
from edgewright.serve import inference
from edgewright.serve.config import ServeConfig
from edgewright.serve.registry import Lineup
from edgewright.serve.server import Server

from .bundles import LABELS, POISON, preprocessor
from .conftest import QUIET, Gate, Launch, LoopThread, Running, until
from .image_bundles import IMAGE_LABELS, SIDE, make_image_bundle, png

Code = grpc.StatusCode
TEXTS = ["bank shares", "team wins the match", "minister loses"]


@pytest.fixture(scope="module")
def served(
    loop: LoopThread, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One server of two models, "news" and "colours"."""
    folder = tmp_path_factory.mktemp("two")
    path = folder / "repository"
    Repository(path).publish(bundle, "news")
    Repository(path).publish(make_image_bundle(folder / "colours"), "colours")

    async def build() -> Server:
        # So that what comes while one computes waits, however many cores there are.
        server = Server(ServeConfig(path, **QUIET, max_texts=8, instances=1))
        await server.start()
        await server.load()
        return server

    server = loop.run(build())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, channel, loop)
    loop.run(server.__aexit__(None, None, None))


def stub(running: Running) -> Any:
    return GRPCInferenceServiceStub(running.channel)


def raw(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def tensor(name: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.MergeFrom(pb.InferTensorContents(**contents))
    return made


def request(inputs: list[Any], raws: list[bytes] = [], model: str = "news", **more: Any) -> Any:  # noqa: B006
    fields = {"model_name": model, "inputs": inputs, "raw_input_contents": raws, **more}
    return pb.ModelInferRequest(**fields)


def text_request(*texts: bytes, **more: Any) -> Any:
    return request([tensor("text", "BYTES", [len(texts)])], [raw(*texts)], **more)


def infer(running: Running, asked: Any) -> Any:
    return stub(running).ModelInfer(asked, timeout=30)


def unpacked(response: Any) -> dict[str, Any]:
    """Outputs of a raw answer by name."""
    found: dict[str, Any] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            values, place = [], 0
            while place < len(data):
                (size,) = struct.unpack_from("<I", data, place)
                values.append(data[place + 4 : place + 4 + size].decode())
                place += 4 + size
            found[output.name] = values
        else:
            found[output.name] = np.frombuffer(data, "<f4").reshape(output.shape)
    return found


def test_texts_get_the_answers_of_the_typed_api(served: Running) -> None:
    typed = served.classify(*TEXTS, model="news").classifications
    asked = text_request(*(text.encode() for text in TEXTS), id="call-7")
    response = infer(served, asked)
    assert (response.model_name, response.model_version, response.id) == ("news", "1", "call-7")
    shapes = {each.name: list(each.shape) for each in response.outputs}
    assert shapes == {"label": [3], "score": [3], "scores": [3, 3], "prediction_id": [3]}
    found = unpacked(response)
    assert found["label"] == [each.label for each in typed]
    np.testing.assert_allclose(found["score"], [each.score for each in typed], atol=1e-6)
    best = np.array([LABELS.index(label) for label in found["label"]])
    np.testing.assert_array_equal(found["scores"].argmax(axis=1), best)
    assert len(set(found["prediction_id"])) == 3


def test_typed_contents_get_typed_contents_and_a_column_is_taken(served: Running) -> None:
    column = tensor("text", "BYTES", [2, 1], bytes_contents=[b"bank", b"goal"])
    response = infer(served, request([column]))
    assert not response.raw_output_contents
    label, score, scores, _ = (each.contents for each in response.outputs)
    assert len(label.bytes_contents) == len(score.fp32_contents) == 2
    assert len(scores.fp32_contents) == 6


def test_outputs_come_as_asked_and_in_the_order_asked(served: Running) -> None:
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=n) for n in ("score", "label")]
    response = infer(served, text_request(b"bank", outputs=outputs))
    assert [each.name for each in response.outputs] == ["score", "label"]
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name="scores")
    wanted.parameters["classification"].int64_param = 2
    (words,) = unpacked(infer(served, text_request(b"bank", outputs=[wanted]))).values()
    scores = unpacked(infer(served, text_request(b"bank")))["scores"][0]
    best = np.argsort(-scores)[:2]
    assert words == [f"{scores[index]:f}:{index}:{LABELS[index]}" for index in best]


def test_tokens_get_the_answers_of_their_texts(served: Running) -> None:
    arrays = preprocessor()(TEXTS).arrays
    ids, mask = arrays["input_ids"], arrays["attention_mask"]
    inputs = [tensor(name, "INT64", list(ids.shape)) for name in ("input_ids", "attention_mask")]
    found = unpacked(infer(served, request(inputs, [ids.tobytes(), mask.tobytes()])))
    texts = unpacked(infer(served, text_request(*(text.encode() for text in TEXTS))))
    assert found["label"] == texts["label"]
    np.testing.assert_allclose(found["scores"], texts["scores"], atol=1e-6)


def test_images_come_as_files_or_as_pixels(served: Running) -> None:
    files = [png((250, 10, 20), 30), png((0, 20, 200), 5)]
    asked = request([tensor("image", "BYTES", [2])], [raw(*files)], "colours")
    found = unpacked(infer(served, asked))
    assert found["label"] == ["red", "blue"]
    pixels = np.zeros((2, 3, SIDE, SIDE), np.float32)
    pixels[0, 0], pixels[1, 2] = 1, 1
    given = [tensor("pixel_values", "FP32", list(pixels.shape))]
    found = unpacked(infer(served, request(given, [pixels.tobytes()], "colours")))
    assert found["label"] == [IMAGE_LABELS[0], IMAGE_LABELS[2]]


def test_texts_and_tokens_files_and_pixels_are_computed_together(
    served: Running, gate: Callable[[], Gate]
) -> None:
    arrays = preprocessor()([TEXTS[1]]).arrays
    pairs = [(tensor(n, "INT64", list(a.shape)), a.tobytes()) for n, a in arrays.items()]
    green = np.zeros((1, 3, SIDE, SIDE), np.float32)
    green[0, 1] = 1
    asked = [
        text_request(TEXTS[0].encode()),
        request([each for each, _ in pairs], [data for _, data in pairs]),
        request([tensor("image", "BYTES", [1])], [raw(png((0, 0, 90)))], "colours"),
        request([tensor("pixel_values", "FP32", [1, 3, SIDE, SIDE])], [green.tobytes()], "colours"),
    ]
    alone = [unpacked(infer(served, each))["label"] for each in asked]
    held = gate()
    first = stub(served).ModelInfer.future(text_request(b"bank"), timeout=30)
    until(held.entered.is_set)
    calls = [stub(served).ModelInfer.future(each, timeout=30) for each in asked * 2]
    until(lambda: served.server.batcher.queue.rows == 9)
    held.open.set()
    assert first.result().outputs
    assert [unpacked(call.result())["label"] for call in calls] == alone * 2
    assert max(held.runs) > 1
    assert alone[2:] == [["blue"], ["green"]]


def test_a_large_tensor_is_taken_too(served: Running) -> None:
    """One that is decoded beside the event loop."""
    values = np.zeros((8, 3, SIDE, SIDE), np.float32)
    values[:, 0] = 1
    large = np.broadcast_to(values, values.shape).ravel().tolist()
    given = tensor("pixel_values", "FP32", list(values.shape), fp32_contents=large)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "_IN_PLACE", 100)
        answer = infer(served, request([given], model="colours"))
    assert list(answer.outputs[0].contents.bytes_contents) == [b"red"] * 8


def test_metadata_configuration_and_index_tell_the_tensors(served: Running) -> None:
    meta = stub(served).ModelMetadata(pb.ModelMetadataRequest(name="news"))
    assert [(each.name, each.datatype, list(each.shape)) for each in meta.inputs] == [
        ("text", "BYTES", [-1, 1]),
        ("input_ids", "INT64", [-1, -1]),
        ("attention_mask", "INT64", [-1, -1]),
    ]
    assert [each.name for each in meta.outputs] == [
        *("label", "score", "scores", "prediction_id"), "logits",
    ]  # fmt: skip
    config = stub(served).ModelConfig(pb.ModelConfigRequest(name="colours")).config
    assert (config.max_batch_size, config.backend) == (8, "onnxruntime")
    assert [(each.name, list(each.dims), each.optional) for each in config.input] == [
        ("image", [1], False),
        ("pixel_values", [3, SIDE, SIDE], True),
    ]
    index = stub(served).RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    assert [(each.name, each.version, each.state) for each in index] == [
        ("colours", "1", "READY"), ("news", "1", "READY"),
    ]  # fmt: skip
    assert stub(served).ServerMetadata(pb.ServerMetadataRequest()).name == "edgewright"


def test_readiness_is_told_of_the_server_and_of_each_model(launch: Launch) -> None:
    running = launch(load=False)
    running.server.registry.put(Lineup("news", 1))
    calls = stub(running)

    def ready(name: str, version: str = "") -> bool:
        return bool(calls.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready)

    assert calls.ServerLive(pb.ServerLiveRequest()).live
    assert not calls.ServerReady(pb.ServerReadyRequest()).ready
    assert not ready("news")
    with pytest.raises(grpc.RpcError) as failure:
        infer(running, text_request(b"bank"))
    assert failure.value.code() is Code.UNAVAILABLE
    (index,) = calls.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert (index.state, index.reason) == ("UNAVAILABLE", "loading")
    assert not calls.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    running.load()
    assert calls.ServerReady(pb.ServerReadyRequest()).ready
    assert [ready("news"), ready("news", "1"), ready("news", "2"), ready("x")] == [
        True, True, False, False,
    ]  # fmt: skip


def ids(values: Any, name: str = "input_ids") -> tuple[Any, bytes]:
    array = np.array(values, "<i8")
    return tensor(name, "INT64", list(array.shape)), array.tobytes()


def tokens(given: Any, mask: Any) -> Any:
    pairs = [ids(given), ids(mask, "attention_mask")]
    return request([each for each, _ in pairs], [data for _, data in pairs])


def pixels(value: float, shape: tuple[int, ...] = (1, 3, SIDE, SIDE)) -> Any:
    data = np.full(shape, value, np.float32).tobytes()
    return request([tensor("pixel_values", "FP32", list(shape))], [data], "colours")


def with_parameter(asked: Any, name: str, **value: Any) -> Any:
    asked.parameters[name].CopyFrom(pb.InferParameter(**value))
    return asked


def output(name: str, classes: int | None = None) -> Any:
    wanted = pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
    if classes is not None:
        wanted.parameters["classification"].int64_param = classes
    return text_request(b"a", outputs=[wanted])


TEXT = tensor("text", "BYTES", [1])
BAD = {
    "datatype": (request([tensor("text", "INT64", [1])], [b"\0" * 8]), "'INT64'; BYTES is expec"),
    "shape": (request([tensor("text", "BYTES", [1, 2])], [raw(b"a", b"b")]), r"\[1, 2\]; \[-1, 1\]"),
    "negative shape": (request([tensor("text", "BYTES", [-1])], [raw(b"a")]), r"has shape \[-1\]"),
    "empty batch": (request([tensor("text", "BYTES", [0])], [b""]), "at least one row"),
    "name": (request([tensor("words", "BYTES", [1])], [raw(b"a")]), "takes the input 'text'"),
    "no input": (request([]), "the call has none"),
    "twice": (request([TEXT, TEXT], [raw(b"a")] * 2), "given twice"),
    "count": (request([tensor("text", "BYTES", [3])], [raw(b"a")]), "has 1 elements; its shape"),
    "more": (request([tensor("text", "BYTES", [1])], [b"\0" * 8_000_000]), "more than 1 elements"),
    "huge count": (request([tensor("text", "BYTES", [2**62])], [raw(b"a")]), "at most 8 are taken"),
    "token rows": (tokens([[2]] * 9, [[1]] * 9), "'input_ids' has 9 rows and at most 8 are taken"),
    "rows": (text_request(*[b"a"] * 9), "has 9 rows and at most 8 are taken"),
    "cut length": (request([TEXT], [b"\1\0"]), "ends within element 0"),
    "long length": (request([TEXT], [b"\xff\xff\xff\xff" + b"a"]), "ends within element 0"),
    "raw count": (request([TEXT], [raw(b"a"), raw(b"b")]), "has 2 entries for 1 inputs"),
    "raw and typed": (
        request([tensor("text", "BYTES", [1], bytes_contents=[b"a"])], [raw(b"a")]),
        "beside raw_input_contents",
    ),
    "other contents": (
        request([tensor("text", "BYTES", [1], int64_contents=[3])]),
        "1 elements in int64_contents; bytes_contents is expected",
    ),
    "no UTF-8": (text_request(b"fine", b"a\xff"), "element 1 is no UTF-8: invalid start byte at 1"),
    "blank": (text_request(b" "), r"texts\[0\] is empty"),
    "10 MB": (text_request(b"x" * 10_000_000), "has 10000000 characters and at most 100000"),
    "version": (text_request(b"a", model_version="one"), "version 'one' is none"),
    "parameter": (with_parameter(text_request(b"a"), "x", bool_param=True), "parameter 'x' is not"),
    "sequence": (
        with_parameter(text_request(b"a"), "sequence_id", int64_param=3), "'sequence_id' is not",
    ),
    "timeout": (with_parameter(text_request(b"a"), "timeout", string_param="1"), "'timeout' is '1'"),
    "output": (output("embedding"), "is no output of news; there are: label, score"),
    "classification": (output("label", 2), "cannot be asked for with classification"),
    "classes": (output("scores", 4), "1 to 3 is expected"),
    "no classes": (output("scores", 0), "has classification 0"),
    "token": (tokens([[2, 999, 3]], [[1, 1, 1]]), r"holds 999 at \[0, 1\]; 0 to 20 is expected"),
    "negative token": (tokens([[-1]], [[1]]), r"holds -1 at \[0, 0\]"),
    "many tokens": (tokens([[2] * 17], [[1] * 17]), "17 tokens and the model reads 16"),
    "no tokens": (tokens([[2, 3]], [[0, 0]]), "attention_mask' has a row 0"),
    "hole": (tokens([[2, 4, 3]], [[1, 0, 1]]), "zeros on the right"),
    "odd mask": (tokens([[2, 4, 3]], [[1, 2, 0]]), "attention_mask' has a row 0"),
    "mask alone": (request(*[[each] for each in ids([[1]], "attention_mask")]), "takes the input"),
    "mask shape": (tokens([[2, 3]], [[1]]), r"has shape \[1, 1\], but input_ids \[1, 2\]"),
    "byte length": (
        request([tensor(n, "INT64", [1, 2]) for n in ("input_ids", "attention_mask")], [b"abc"] * 2),
        "has 3 bytes; its shape .* takes 16",
    ),
    "corrupt image": (
        request([tensor("image", "BYTES", [1])], [raw(png((1, 2, 3))[:40])], "colours"),
        r"images\[0\]",
    ),
    "text for images": (text_request(b"a", model="colours"), "takes the input 'image'"),
    "pixel shape": (pixels(0, (1, 3, SIDE, SIDE + 1)), r"\[-1, 3, 8, 8\] is expected"),
    "pixel NaN": (pixels(float("nan")), "no number from -10 to 10"),
    "pixel value": (pixels(1e30), "no number from -10 to 10"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_what_was_expected(served: Running, case: str) -> None:
    asked, message = BAD[case]
    with pytest.raises(grpc.RpcError, match=message) as failure:
        infer(served, asked)
    assert failure.value.code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (text_request(b"a", model="wine"), Code.NOT_FOUND),
        (text_request(b"a", model_version="7"), Code.NOT_FOUND),
        (with_parameter(text_request(b"a"), "timeout", int64_param=1), Code.DEADLINE_EXCEEDED),
        (text_request(POISON.encode()), Code.INTERNAL),
    ],
)
def test_other_errors_have_the_code_that_clients_expect(
    served: Running, asked: Any, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        infer(served, asked)
    assert failure.value.code() is code
    assert infer(served, text_request(b"still alive")).outputs


def test_what_perf_analyzer_sends_with_every_call_is_taken(served: Running) -> None:
    name = "triton_enable_empty_final_response"
    asked = with_parameter(text_request(b"bank"), name, bool_param=True)
    assert stub(served).ModelInfer(asked, timeout=30).outputs


def test_a_long_timeout_and_unknown_fields_do_no_harm(served: Running) -> None:
    asked = with_parameter(text_request(b"bank"), "timeout", int64_param=30_000_000)
    data = asked.SerializeToString() + b"\xfa\x3f\x03abc"  # field 1023
    call = served.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    assert pb.ModelInferResponse.FromString(call(data, timeout=30)).outputs


DATATYPES = st.sampled_from(["BYTES", "INT64", "FP32", "", "UINT8"])
NAMES = st.sampled_from(["text", "image", "input_ids", "attention_mask", "pixel_values", "x"])
SHAPES = st.lists(st.sampled_from([-1, 0, 1, 2, 3, SIDE, 2**40]), max_size=4)
NUMBERS = st.lists(st.integers(0, 19), max_size=6).map(lambda values: np.array(values, "<i8"))
CONTENTS = st.one_of(
    st.binary(max_size=80),
    st.lists(st.binary(max_size=9), max_size=4).map(lambda each: raw(*each)),
    NUMBERS.map(lambda each: each.tobytes()),
)
INPUTS = st.lists(st.tuples(NAMES, DATATYPES, SHAPES, CONTENTS, st.booleans()), max_size=3)
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def code_of(running: Running, data: bytes) -> grpc.StatusCode:
    call = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        call(data, timeout=30)
    except grpc.RpcError as failure:
        return failure.code()
    return Code.OK


@FUZZ
@given(inputs=INPUTS, model=st.sampled_from(["news", "colours"]), typed=st.booleans())
def test_no_made_up_request_is_an_internal_error(
    served: Running, inputs: list[Any], model: str, typed: bool
) -> None:
    made, raws = [], []
    for name, datatype, shape, content, parameters in inputs:
        each = tensor(name, datatype, shape, **({"bytes_contents": [content]} if typed else {}))
        if parameters:
            each.parameters["content_type"].string_param = "str"
        made.append(each)
        raws += [] if typed else [content]
    data = request(made, raws, model).SerializeToString()
    assert code_of(served, data) in (Code.OK, Code.INVALID_ARGUMENT)


@FUZZ
@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 255))
def test_random_and_mutated_bytes_are_never_an_internal_error(
    served: Running, data: bytes, place: int, byte: int
) -> None:
    allowed = (Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED)
    assert code_of(served, data) in allowed
    good = bytearray(text_request(b"bank shares", b"goal", id="x").SerializeToString())
    good[place % len(good)] = byte
    assert code_of(served, bytes(good)) in allowed
