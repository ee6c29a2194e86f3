"""Models and rows that finetune did not make: Hugging Face folders, ONNX files, tables of rows."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from optimize_outcomes import int8_is_faster
from small_sentences import LABELS, sentences

from edgewright.bundle import Against, Bundle, Verdict
from edgewright.checkpoint import Checkpoint
from edgewright.cli import run as edgewright
from edgewright.errors import ConfigError, DataError
from edgewright.kinds import IMAGE, TEXT
from edgewright.optimize.bench import Bench
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.export import Reference, export_onnx
from edgewright.optimize.given import Given
from edgewright.optimize.inputs import Inputs
from edgewright.optimize.origin import Origin, open_origin
from edgewright.optimize.variants import Candidate
from edgewright.proof.certificate import Subject


def write_rows(path: Path, texts: Sequence[str], labels: Sequence[int] | None) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text"] if labels is None else ["text", "label"])
        for index, text in enumerate(texts):
            writer.writerow([text] if labels is None else [text, LABELS[labels[index]]])
    return path


@pytest.fixture(scope="module")
def foreign(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as anybody would save it: config, weights and tokenizer in one folder."""
    folder = tmp_path_factory.mktemp("foreign") / "news-bert"
    shutil.copytree(trained_model / "model", folder)
    for file in (trained_model / "tokenizer").iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def onnx_file(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one ONNX file, alone in its folder."""
    origin = open_origin(foreign, Given())
    texts, _ = sentences(20, seed=5)
    folder = tmp_path_factory.mktemp("onnx")
    return export_onnx(origin, folder, origin.preprocessor.encode(texts)).path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows to calibrate and to certify on, the latter with and without labels."""
    folder = tmp_path_factory.mktemp("tables")
    texts, labels = sentences(560, seed=3)
    return {
        "calibrate": write_rows(folder / "calibrate.csv", texts[:160], list(labels[:160])),
        "certify": write_rows(folder / "certify.csv", texts[160:], list(labels[160:])),
        "unlabelled": write_rows(folder / "unlabelled.csv", texts[160:], None),
    }


def config(source: Path, tmp_path: Path, **given: Any) -> OptimizeConfig:
    return OptimizeConfig(
        source, tmp_path / "bundle", given=Given(**given), backends=("onnxruntime",)
    )


def test_a_folder_of_hugging_face_answers_as_transformers_does(
    foreign: Path, checkpoint: Checkpoint
) -> None:
    origin = open_origin(foreign, Given())
    assert origin.labels == LABELS
    assert origin.model.kind is TEXT
    assert set(origin.made_from) == {"model"}
    rows = origin.preprocessor.encode(checkpoint.examples().split("search").texts[:20])
    expected = Reference(Origin.of_checkpoint(checkpoint)).logits(rows)
    assert np.array_equal(Reference(origin).logits(rows), expected)


def test_a_folder_without_a_head_is_refused(foreign: Path, tmp_path: Path) -> None:
    import transformers

    headless = shutil.copytree(foreign, tmp_path / "headless")
    model = transformers.AutoModel.from_pretrained(foreign)
    model.save_pretrained(headless, safe_serialization=True)
    with pytest.raises(ConfigError, match=r"weights lack .* tensors of the classifier"):
        open_origin(headless, Given())


def test_weights_that_are_no_numbers_are_told_as_such(foreign: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = shutil.copytree(foreign, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["classifier.bias"][1] = np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    origin = open_origin(broken, Given())
    with pytest.raises(ConfigError, match="itself answers with what are no numbers"):
        export_onnx(origin, tmp_path, origin.preprocessor.encode(["the bank", "a goal"]))


def test_texts_are_cut_to_the_length_asked_for(foreign: Path) -> None:
    origin = open_origin(foreign, Given(max_length=7))
    (row,) = origin.preprocessor.encode(["the " * 50])
    assert len(row) == 7


def test_an_onnx_file_answers_as_it_did(onnx_file: Path, foreign: Path) -> None:
    given = Given(preprocessing=str(foreign), labels=",".join(LABELS))
    origin = open_origin(onnx_file, given)
    rows = origin.preprocessor.encode(sentences(12, seed=8)[0])
    expected = Reference(open_origin(foreign, Given())).logits(rows)
    np.testing.assert_allclose(Reference(origin).logits(rows), expected, atol=1e-4)
    assert set(origin.made_from) == {"onnx"}


def test_what_an_onnx_file_does_not_say_is_asked_for(onnx_file: Path, foreign: Path) -> None:
    with pytest.raises(ConfigError, match="--labels a,b,c"):
        open_origin(onnx_file, Given(preprocessing=str(foreign)))
    with pytest.raises(ConfigError, match="--preprocessing"):
        open_origin(onnx_file, Given(labels="a,b,c"))
    with pytest.raises(ConfigError, match="leave it out"):
        export_onnx(
            open_origin(onnx_file, Given(preprocessing=str(foreign), labels="a,b,c")),
            onnx_file.parent,
            open_origin(foreign, Given()).preprocessor.encode(["the bank", "a goal"]),
            opset=17,
        )


def changed(source: Path, target: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    model = onnx.load(source)
    change(model.graph)
    onnx.save(model, target)
    return target


def _narrow(graph: onnx.GraphProto) -> None:
    """int32 inputs, as mobile exports have them."""
    for value in graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
        name = value.name
        for node in graph.node:
            node.input[:] = [f"{name}_wide" if each == name else each for each in node.input]
        graph.node.insert(
            0, helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.INT64)
        )


def _probabilities(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=-1))
    graph.output[0].name = "scores"


def _half(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16))
    graph.output[0].name = "half"
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize("change", [_narrow, _probabilities, _half])
def test_onnx_files_are_brought_to_the_contract(
    onnx_file: Path, foreign: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None]
) -> None:
    path = changed(onnx_file, tmp_path / "changed.onnx", change)
    origin = open_origin(path, Given(preprocessing=str(foreign), labels=",".join(LABELS)))
    rows = origin.preprocessor.encode(sentences(12, seed=8)[0])
    export = export_onnx(origin, tmp_path, rows)
    expected = Reference(open_origin(foreign, Given())).logits(rows)
    found = Reference(origin).logits(rows)
    np.testing.assert_allclose(found, expected, atol=1e-4 if change is not _half else 5e-3)
    assert export.exporter == "given"


def _fixed(graph: onnx.GraphProto) -> None:
    for value in graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, (1, 8), strict=True):
            axis.dim_value = size


def _two_outputs(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    graph.output[0].name = "one"
    for node in graph.node:
        node.output[:] = ["one" if each == "logits" else each for each in node.output]
    graph.node.append(helper.make_node("Identity", ["one"], ["other"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [(_fixed, "fixed shape 1 x 8.*dynamic axes"), (_two_outputs, "expected one output")],
)
def test_onnx_files_that_cannot_be_served_are_refused(
    onnx_file: Path,
    foreign: Path,
    tmp_path: Path,
    change: Callable[[onnx.GraphProto], None],
    message: str,
) -> None:
    path = changed(onnx_file, tmp_path / "changed.onnx", change)
    origin = open_origin(path, Given(preprocessing=str(foreign), labels=",".join(LABELS)))
    rows = origin.preprocessor.encode(["the bank", "a goal"])
    with pytest.raises(ConfigError, match=message):
        export_onnx(origin, tmp_path, rows)


def test_a_length_beyond_the_position_table_is_refused(
    onnx_file: Path, foreign: Path, tmp_path: Path
) -> None:
    wide = shutil.copytree(foreign, tmp_path / "tokenizer")
    settings = json.loads((wide / "tokenizer_config.json").read_text())
    (wide / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 99}))
    origin = open_origin(onnx_file, Given(preprocessing=str(wide), labels=",".join(LABELS)))
    with pytest.raises(ConfigError, match="cannot take the 99 tokens.*--max-length"):
        export_onnx(origin, tmp_path, origin.preprocessor.encode(["the bank", "a goal"]))


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    garbage = tmp_path / "model.onnx"
    garbage.write_bytes(b"no model at all")
    with pytest.raises(ConfigError, match=r"model\.onnx cannot be read as ONNX"):
        open_origin(garbage, Given(labels="a,b"))


def test_rows_are_placed_and_none_twice(
    foreign: Path, tables: dict[str, Path], tmp_path: Path
) -> None:
    given = {"calibrate": str(tables["calibrate"]), "certify": str(tables["certify"])}
    inputs = Inputs.open(config(foreign, tmp_path, **given))
    assert len(inputs.certify) == 400
    assert 50 < len(inputs.calibrate) < 110
    assert len(inputs.calibrate) + len(inputs.search) == 160
    assert inputs.against is Against.LABELS
    overlapping = tmp_path / "overlapping.csv"
    overlapping.write_text(tables["calibrate"].read_text() + "the bank said new profit,business\n")
    given["certify"] = str(overlapping)
    with pytest.raises(DataError, match="leaves no row for"):
        Inputs.open(config(foreign, tmp_path, **given))  # all of them are certify rows already


def test_a_checkpoint_may_be_certified_on_fresh_rows(
    checkpoint_path: Path, checkpoint: Checkpoint, tables: dict[str, Path], tmp_path: Path
) -> None:
    own = Inputs.open(config(checkpoint_path, tmp_path))
    learnt = checkpoint.examples().split("train").texts[0]
    rows = tmp_path / "fresh.csv"
    rows.write_text(tables["certify"].read_text() + f"{learnt},sport\n")
    inputs = Inputs.open(config(checkpoint_path, tmp_path, certify=str(rows)))
    assert learnt not in inputs.certify.texts
    assert not set(inputs.certify.ids) & set(checkpoint.examples().ids)
    assert inputs.certify_sha256 != own.certify_sha256
    assert inputs.search.ids == own.search.ids
    assert any("in the checkpoint" in note for note in inputs.notes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "comes without examples: give --calibrate DATA .* and --certify DATA"),
        ({"calibrate": "{calibrate}"}, "give --certify DATA"),
        ({"calibrate": "{calibrate}", "certify": "{other}"}, "labels that the model does not know"),
    ],
)
def test_missing_and_unfitting_rows_are_refused(
    foreign: Path,
    tables: dict[str, Path],
    tmp_path: Path,
    given: dict[str, str],
    message: str,
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text,label\nthe bank,banking\nthe goal,sport\n")
    paths = {**{name: str(path) for name, path in tables.items()}, "other": str(other)}
    filled = {name: value.format(**paths) for name, value in given.items()}
    with pytest.raises((ConfigError, DataError), match=message):
        Inputs.open(config(foreign, tmp_path, **filled))


def test_options_of_foreign_models_do_not_go_with_a_checkpoint(checkpoint_path: Path) -> None:
    with pytest.raises(ConfigError, match="--labels, --max-length describe a model"):
        open_origin(checkpoint_path, Given(labels="a,b", max_length=5))


def test_faults_of_the_options_are_told_together(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(foreign, tmp_path, max_length=0, opset=3, text_column="x", image_column="y")
    assert len(caught.value.faults) == 3


def test_a_foreign_model_is_certified_on_rows_without_labels(
    foreign: Path,
    tables: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """The whole run: nothing knows a label, so every other answer than the model's is a loss."""
    unlabelled = write_rows(tmp_path / "calibrate.csv", sentences(80, seed=11)[0], None)
    options = ["--calibrate", str(unlabelled), "--certify", str(tables["unlabelled"])]
    monkeypatch.setattr(Bench, "measure", int8_is_faster)
    bundle = tmp_path / "bundle"
    code = edgewright(
        ["optimize", str(foreign), "-o", str(bundle), "--backend", "onnxruntime",
         "--max-drop", "0.05", *options]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "the certify rows have no labels" in printed.err
    opened = Bundle.open(bundle)
    certificate = opened.chosen.certificate
    assert certificate is not None
    assert certificate.verdict is Verdict.PASS
    assert certificate.against is Against.REFERENCE
    assert (certificate.n, certificate.won) == (400, 0)
    assert set(opened.artifact.manifest["made_from"]) == {"model"}
    page = (bundle / "report.html").read_text()
    assert "model SHA-256" in page
    assert "agreement on search" in page
    assert "accuracy lost" not in page
    measured = json.loads((bundle / "measurements.json").read_bytes())
    assert measured["against"] == {"certify": "reference", "search": "reference"}


@pytest.mark.parametrize(
    "otherwise",
    [{"max_length": 8}, {"labels": ",".join(reversed(LABELS))}],
    ids=["texts cut shorter", "classes named in another order"],
)
def test_a_file_fed_or_read_otherwise_is_no_longer_what_was_certified(
    foreign: Path,
    onnx_file: Path,
    tables: dict[str, Path],
    tmp_path: Path,
    otherwise: dict[str, Any],
) -> None:
    def subject(**given: Any) -> Subject:
        rows = {name: str(tables[name]) for name in ("calibrate", "certify")}
        inputs = Inputs.open(config(foreign, tmp_path, **rows, **given))
        candidate = Candidate("a", "onnxruntime", onnx_file, "fp32", batch_invariant=True)
        return Bench(inputs, Reference(inputs.origin), {"a": candidate}, threads=1).subject("a")

    assert subject() == subject()
    assert subject(**otherwise) != subject()


def test_images_take_the_same_way(tmp_path: Path) -> None:
    from tiny_vision import save_vision_folder

    folder = save_vision_folder(tmp_path / "vision")
    origin = open_origin(folder, Given())
    assert origin.model.kind is IMAGE
    with pytest.raises(ConfigError, match="images have no length"):
        open_origin(folder, Given(max_length=5))
