"""Small real bundles: a word tokenizer, an ONNX graph of a few nodes, goldens, a seal."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from edgewright.backends import get_backend
from edgewright.bundle import BUNDLE, Certificate, Variant, Verdict
from edgewright.manifest import (
    canonical_json,
    measured_json,
    new_folder,
    seal,
    sha256_bytes,
    sha256_file,
)
from edgewright.preprocess import TextPreprocessor, TextSettings
from edgewright.proof.goldens import make_goldens
from edgewright.proof.host import instruction_set

LABELS = ("business", "politics", "sport")
WORDS = (
    *("bank", "market", "shares", "vote", "minister", "law", "goal", "match", "team"),
    *("the", "a", "of", "in", "wins", "loses", "rises"),
)
POISON = "poison"  # its embedding is NaN
MAX_LENGTH = 16
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_VOCABULARY = (*_SPECIAL, *WORDS, POISON)


@dataclass(frozen=True)
class Recipe:
    """What kind of bundle to make."""

    batch_invariant: bool = True
    certificate: Verdict | None = Verdict.PASS
    runtime: str | None = None  # that the certificate names; None: the one installed
    isa: str | None = None  # likewise, of this host
    chosen: str = "onnxruntime-fp32"
    extra: tuple[Variant, ...] = ()
    weak: tuple[str, ...] = ()  # of ``extra``: their weights are others, so some answers are too
    wrong_goldens: tuple[str, ...] = ()  # variants whose recorded scores are those of other classes
    seed: int = 0
    features: bool = False  # whether the graph gives what its head reads too


def make_bundle(folder: Path, recipe: Recipe = Recipe()) -> Path:
    """Write a bundle of one or more variants on ONNX Runtime to ``folder``."""
    with new_folder(folder) as staging:
        (staging / "variants").mkdir()
        file = staging / "variants" / "fp32.onnx"
        file.write_bytes(graph(recipe).SerializeToString())
        preprocessor().save(staging / "preprocessing")
        weak = staging / "variants" / "weak.onnx"
        if recipe.weak:
            weak.write_bytes(graph(recipe, noise=1.0).SerializeToString())
        files = {each.name: weak if each.name in recipe.weak else file for each in recipe.extra}
        variants = [
            _variant(file, recipe),
            *(replace(each, file=f"variants/{files[each.name].name}") for each in recipe.extra),
        ]
        load = get_backend("onnxruntime").load
        goldens = make_goldens(
            ["bank shares rises", "minister loses vote", "team wins the match in a goal"],
            preprocessor(),
            {
                each.name: (load(staging / each.file, threads=1), not each.batch_invariant)
                for each in variants
            },
            keep_raw=True,
        )
        moved = {name: np.roll(goldens.scores[name], 1, axis=1) for name in recipe.wrong_goldens}
        replace(goldens, scores={**goldens.scores, **moved}).save(staging)
        (staging / "drift.json").write_text("{}")
        (staging / "run.yaml").write_text("seed: 0\n")
        measurements = {each.name: {"speedup": 1.0 + i} for i, each in enumerate(variants)}
        seal(
            staging,
            BUNDLE,
            {
                "task": "text-classification",
                "labels": list(LABELS),
                "variants": [each.to_json() for each in variants],
                "made_from": {"checkpoint": "0" * 64},
                "budget": 0.01,
                "confidence": 0.95,
            },
            {
                "measurements.json": measured_json({"variants": measurements}),
                "choice.json": measured_json({"variant": recipe.chosen}),
                "report.html": lambda digest: f"<p>{digest}".encode(),
            },
        )
    return folder


def seal_again(path: Path) -> None:
    """Let the seal be of the files as they are, so that only the goldens can tell."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    for name, entry in manifest["files"].items():
        entry["sha256"] = sha256_bytes((path / name).read_bytes())
    (path / "manifest.json").write_bytes(canonical_json(manifest))
    seal = json.loads((path / "seal.json").read_bytes())["files"]
    seal["manifest.json"] = sha256_bytes((path / "manifest.json").read_bytes())
    checksum = sha256_bytes(canonical_json(seal))
    (path / "seal.json").write_bytes(canonical_json({"files": seal, "checksum": checksum}))


def preprocessor() -> TextPreprocessor:
    """Words to ids, with [CLS] and [SEP] around them."""
    vocabulary = {word: index for index, word in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    settings = TextSettings(
        input_names=("input_ids", "attention_mask"),
        max_length=MAX_LENGTH,
        model_max_length=MAX_LENGTH,
        pad_token_id=0,
    )
    return TextPreprocessor(settings, tokenizer.to_str())


def graph(recipe: Recipe, noise: float = 0.0) -> onnx.ModelProto:
    """Mean of word embeddings, times a matrix. Not batch-invariant: plus the batch's maximum.

    ``noise`` is added to the matrix, whose own entries have a deviation of 3.
    """
    rng = np.random.default_rng(recipe.seed)
    table = rng.normal(size=(len(_VOCABULARY), 8)).astype(np.float32)
    table[_VOCABULARY.index(POISON)] = np.nan
    weights = rng.normal(size=(8, len(LABELS))) * 3
    constants = {
        "table": table,
        "weights": (weights + noise * rng.normal(size=weights.shape)).astype(np.float32),
        "last": np.array([2], np.int64),
        "tokens": np.array([1], np.int64),
        "batch": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["embedded", "wide_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["wide_mask", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weights"], ["own"]),
    ]
    if recipe.batch_invariant:
        nodes.append(helper.make_node("Identity", ["own"], ["logits"]))
    else:
        nodes.append(helper.make_node("ReduceMax", ["own", "batch"], ["highest"], keepdims=1))
        nodes.append(helper.make_node("Add", ["own", "highest"], ["logits"]))
    shape = ["rows", "length"]
    outputs = {"logits": len(LABELS)}
    if recipe.features:
        nodes.append(helper.make_node("Identity", ["mean"], ["features"]))
        outputs["features"] = 8
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "classifier",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape),
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
                for name, width in outputs.items()
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 12 words, no two alike on purpose."""
    rng: np.random.Generator = np.random.default_rng(seed)
    lengths: NDArray[np.int64] = rng.integers(1, 13, count)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def certificate(file: Path, recipe: Recipe) -> Certificate | None:
    """A certificate of this file, for this host unless the recipe says otherwise."""
    if recipe.certificate is None:
        return None
    return Certificate(
        verdict=recipe.certificate,
        budget=0.01,
        error_rate=0.03,
        n=400,
        lost=0,
        won=1,
        loss_upper_bound=0.008,
        loss_lower_bound=-0.01,
        needed_n=None,
        certify_sha256="1" * 64,
        file_sha256=sha256_file(file),
        runtime=recipe.runtime or get_backend("onnxruntime").runtime(),
        instruction_set=recipe.isa or instruction_set(),
        threads=1,
    )


def other_variant(
    name: str, verdict: Verdict | None = Verdict.PASS, backend: str = "onnxruntime"
) -> Variant:
    """For ``Recipe.extra``: int8 by name, certified on a host that nobody has."""
    given = verdict and Certificate(
        verdict, 0.01, 0.03, 400, 0, 0, 0.01, -0.01, None, "", "", "", "", 1
    )
    return Variant(name, backend, "", "int8-static", True, 1, 0.9, certificate=given)


def _variant(file: Path, recipe: Recipe) -> Variant:
    return Variant(
        name="onnxruntime-fp32",
        backend="onnxruntime",
        file="variants/fp32.onnx",
        precision="fp32",
        batch_invariant=recipe.batch_invariant,
        size_bytes=file.stat().st_size,
        search_accuracy=0.9,
        certificate=certificate(file, recipe),
    )
