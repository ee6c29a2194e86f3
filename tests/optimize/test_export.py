"""Export: one contract whichever exporter wrote the file, and answers equal to PyTorch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgewright import model_file
from edgewright.backends import get_backend
from edgewright.checkpoint import MODEL_FOLDER, PREPROCESSING_FOLDER, Checkpoint
from edgewright.errors import ConfigError
from edgewright.manifest import Artifact
from edgewright.model_file import FEATURES, LOGITS
from edgewright.optimize import export as export_module
from edgewright.optimize import torch_model
from edgewright.optimize.export import Reference, export_onnx
from edgewright.optimize.origin import Origin
from edgewright.preprocess import TextPreprocessor, TokenRow
from edgewright.proof.logits import predict_features, predict_logits

LABELS = ["business", "sport", "tech"]
TEXTS = ["deal", "the match was a goal in the final season for the team", "new phone users"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DISTIL_SIZES = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
TWO = ("input_ids", "attention_mask")
THREE = ("input_ids", "token_type_ids", "attention_mask")

ArchitectureMaker = Callable[..., Checkpoint]


@pytest.fixture
def make_architecture(checkpoint: Checkpoint, tmp_path: Path) -> ArchitectureMaker:
    """A checkpoint folder with a random model of another architecture, not sealed."""

    def make(model_type: str, input_names: Sequence[str], **sizes: int) -> Checkpoint:
        import torch
        import transformers

        preprocessor = checkpoint.preprocessor()
        preprocessing = checkpoint.path / PREPROCESSING_FOLDER / "tokenizer.json"
        settings = dataclasses.replace(preprocessor.settings, input_names=tuple(input_names))
        tokenizer = TextPreprocessor(settings, preprocessing.read_text())
        tokenizer.save(tmp_path / PREPROCESSING_FOLDER)
        config = transformers.AutoConfig.for_model(
            model_type,
            vocab_size=100,
            max_position_embeddings=40,
            num_labels=len(LABELS),
            pad_token_id=0,
            **sizes,
        )
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # away from initial values, where logits are all 0
                weight.add_(torch.randn_like(weight) * 0.05)
        model.save_pretrained(tmp_path / MODEL_FOLDER)
        return Checkpoint(Artifact(tmp_path, {"labels": LABELS}, ""))

    return make


def encode(checkpoint: Checkpoint, texts: Sequence[str] = TEXTS) -> list[TokenRow]:
    return checkpoint.preprocessor().encode(texts)


@pytest.mark.parametrize(
    ("model_type", "input_names", "sizes", "exporter"),
    [
        ("bert", THREE, SIZES, "optimum-onnx "),
        ("bert", TWO, SIZES, "optimum-onnx "),
        ("distilbert", TWO, DISTIL_SIZES, "optimum-onnx "),
        ("roberta", TWO, SIZES, "optimum-onnx "),
        ("albert", THREE, SIZES | {"embedding_size": 16}, "optimum-onnx "),
        ("mpnet", TWO, SIZES, "optimum-onnx "),
        ("ernie", THREE, SIZES, "torch "),
        ("roberta-prelayernorm", TWO, SIZES, "torch "),
    ],
)
def test_every_architecture_gives_the_one_contract(
    make_architecture: ArchitectureMaker,
    tmp_path: Path,
    model_type: str,
    input_names: Sequence[str],
    sizes: dict[str, int],
    exporter: str,
) -> None:
    checkpoint = make_architecture(model_type, input_names, **sizes)
    export = export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, encode(checkpoint))
    assert export.exporter.startswith(exporter)
    assert export.max_difference < 1e-4
    session = get_backend("onnxruntime").load(export.path, threads=1)
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [
        (name, "int64", (-1, -1)) for name in input_names
    ]
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.outputs] == [
        (LOGITS, "float32", (-1, 3)),
        (FEATURES, "float32", (-1, 32)),
    ]
    # Rows and lengths that were not traced, against a model that the exporter never touched.
    rows = encode(checkpoint, ["oil", "a " * 11, "the coach said", "game " * 20, "cup"])
    logits = predict_logits(session, checkpoint.preprocessor(), rows)
    np.testing.assert_allclose(
        logits, Reference(Origin.of_checkpoint(checkpoint)).logits(rows), atol=1e-4
    )
    assert logits.std(axis=0).min() > 1e-3  # the rows do get different answers
    reference = Reference(Origin.of_checkpoint(checkpoint))
    alone = [predict_features(reference, checkpoint.preprocessor(), [row])[0] for row in rows]
    np.testing.assert_allclose(
        predict_features(session, checkpoint.preprocessor(), rows), alone, atol=1e-4
    )


@pytest.mark.parametrize("model_type", ["bert", "ernie"])
def test_the_same_checkpoint_gives_the_same_bytes(
    make_architecture: ArchitectureMaker, tmp_path: Path, model_type: str
) -> None:
    checkpoint = make_architecture(model_type, THREE, **SIZES)
    contents = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        # Another sample must not show either: it is compared, not traced into the file.
        rows = encode(checkpoint, TEXTS if name == "first" else TEXTS[::-1])
        contents.append(
            export_onnx(Origin.of_checkpoint(checkpoint), folder, rows).path.read_bytes()
        )
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]
    assert b"site-packages" not in contents[0]


def test_export_says_what_it_wrote(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export = export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, encode(checkpoint))
    opsets = {each.domain: each.version for each in onnx.load(export.path).opset_import}
    assert export.opset == opsets[""]
    assert 0 < export.max_difference < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["fp32.onnx"]


def test_an_export_that_answers_differently_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faithful = torch_model._export_with_optimum

    def shifted(model: Any, config: Any, path: Path, opset: int | None) -> None:
        model.classifier.bias.data[1] += 0.01
        faithful(model, config, path, opset)

    monkeypatch.setattr(torch_model, "_export_with_optimum", shifted)
    with pytest.raises(ConfigError, match=r"inputs of 1x\d+, row 0, class 1") as caught:
        export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, encode(checkpoint))
    assert "0.01" in str(caught.value)
    assert str(checkpoint.path) in str(caught.value)


def test_an_export_that_holds_for_one_length_only_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tracing does to Python arithmetic on shapes: the length, 16 here, becomes a constant."""
    faithful = torch_model._export_with_optimum

    def frozen(model: Any, config: Any, path: Path, opset: int | None) -> None:
        plain = model.bert.forward

        def forward(input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
            length = int(attention_mask.shape[1])
            attention_mask = attention_mask.clone()
            attention_mask[:, length:] = 0
            return plain(input_ids=input_ids, attention_mask=attention_mask, **rest)

        model.bert.forward = forward
        faithful(model, config, path, opset)

    monkeypatch.setattr(torch_model, "_export_with_optimum", frozen)
    origin = Origin.of_checkpoint(checkpoint)
    export_onnx(origin, tmp_path, encode(checkpoint))  # none is longer than 16
    with pytest.raises(ConfigError, match=r"answers differently.*inputs of 1x22, row 0"):
        export_onnx(origin, tmp_path, encode(checkpoint, [*TEXTS, "goal " * 20]))


def test_a_model_that_cannot_be_traced_is_refused_by_name(
    make_architecture: ArchitectureMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = make_architecture("ernie", THREE, **SIZES)

    def fail(*_: Any) -> None:
        raise RuntimeError("unsupported operator: fly\nwith a long trace")

    monkeypatch.setattr(torch_model, "_export_with_torch", fail)
    with pytest.raises(ConfigError, match="ernie.*unsupported operator: fly") as caught:
        export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, encode(checkpoint))
    assert "long trace" not in str(caught.value)


def test_an_export_with_other_outputs_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faithful = torch_model._export_with_optimum

    def renamed(model: Any, config: Any, path: Path, opset: int | None) -> None:
        faithful(model, config, path, opset)
        graph = onnx.load(path)
        graph.graph.output.append(graph.graph.output[0])
        graph.graph.output[1].name = graph.graph.node[-2].output[0]
        onnx.save(graph, path)

    monkeypatch.setattr(torch_model, "_export_with_optimum", renamed)
    with pytest.raises(ConfigError, match="and float32 logits"):
        export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, encode(checkpoint))


def test_weights_that_protobuf_cannot_hold_lie_beside_the_graph(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, rows = Origin.of_checkpoint(checkpoint), encode(checkpoint)
    folders = [tmp_path / name for name in ("whole", "split", "again")]
    for folder in folders:
        folder.mkdir()
    whole = export_onnx(origin, folders[0], rows).path
    monkeypatch.setattr(export_module, "_LARGEST_BYTES", 1000)
    split, again = (export_onnx(origin, folder, rows).path for folder in folders[1:])
    assert model_file.parts(whole) == [whole]
    assert model_file.parts(split) == [split, split.with_name("fp32.onnx.data")]
    assert [part.read_bytes() for part in model_file.parts(split)] == [
        part.read_bytes() for part in model_file.parts(again)
    ]
    assert split.stat().st_size < whole.stat().st_size / 4
    session = get_backend("onnxruntime").load(split, threads=1)
    expected = predict_logits(
        get_backend("onnxruntime").load(whole, threads=1), origin.preprocessor, rows
    )
    assert np.array_equal(predict_logits(session, origin.preprocessor, rows), expected)
    before = model_file.sha256(split)
    data = model_file.data_file(split)
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    assert model_file.sha256(split) != before


def test_the_opset_can_be_chosen(make_architecture: ArchitectureMaker, tmp_path: Path) -> None:
    for model_type, opset in (("bert", 15), ("ernie", 19)):
        origin = Origin.of_checkpoint(make_architecture(model_type, THREE, **SIZES))
        export = export_onnx(origin, tmp_path, origin.preprocessor.encode(TEXTS), opset=opset)
        assert export.opset == opset


def test_export_prints_nothing(
    make_architecture: ArchitectureMaker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for model_type in ("bert", "ernie"):
        checkpoint = make_architecture(model_type, THREE, **SIZES)
        export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, encode(checkpoint))
    assert capfd.readouterr() == ("", "")


class TestReference:
    def test_it_answers_as_transformers_does(self, checkpoint: Checkpoint) -> None:
        import torch
        import transformers

        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            checkpoint.model_folder
        ).eval()
        preprocessor = checkpoint.preprocessor()
        texts = list(checkpoint.examples().split("search").texts[:40])
        arrays = preprocessor(texts).arrays
        with torch.no_grad():
            expected = model(**{k: torch.from_numpy(v) for k, v in arrays.items()}).logits
        logits = Reference(Origin.of_checkpoint(checkpoint)).logits(preprocessor.encode(texts))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)

    def test_no_row_is_padded(
        self, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A row beside a longer one gets the answer that it gets alone, in every architecture."""
        reference, session = Reference(Origin.of_checkpoint(checkpoint)), Echo()
        monkeypatch.setattr(reference, "run", session.run)
        rows = encode(checkpoint, ["deal oil", "the match", "the " * 15, "a b c", "cup"] * 5)
        logits = reference.logits(rows)
        assert session.shapes == [(5, 3), (10, 4), (5, 5), (5, 17)]
        assert session.masked == 0
        assert logits[:, 0].tolist() == [row.input_ids[1] for row in rows]

    def test_threads_are_given_back(self, checkpoint: Checkpoint) -> None:
        import torch

        before = torch.get_num_threads()
        seen = []
        reference = Reference(Origin.of_checkpoint(checkpoint), threads=before + 1)
        reference.session.model.register_forward_hook(
            lambda *_: seen.append(torch.get_num_threads())
        )
        reference.logits(encode(checkpoint))
        assert set(seen) == {before + 1}
        assert torch.get_num_threads() == before


class Echo:
    """Stands in for a model: its logits are each row's first two tokens; notes what it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.masked = 0

    def run(self, arrays):
        ids = arrays["input_ids"]
        self.shapes.append(ids.shape)
        self.masked += int((arrays["attention_mask"] == 0).sum())
        return {LOGITS: np.stack([ids[:, 1], ids[:, 0]], axis=1).astype(np.float32)}
