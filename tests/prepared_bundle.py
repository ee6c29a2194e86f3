"""A small real bundle: certified for ONNX Runtime, and prepared for TensorRT in int8 and fp16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.transformers.float16 import convert_float_to_float16
from tiny_onnx import WORDS, fp32_classifier, int8_classifier
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from edgewright.backends import get_backend
from edgewright.bundle import BUNDLE, Certificate, Variant, Verdict
from edgewright.latency import Workload
from edgewright.manifest import measured_json, new_folder, seal, sha256_file
from edgewright.optimize.prepared import Preparation, Prepared, profiles_for, with_prepared
from edgewright.preprocess import TextPreprocessor, TextSettings
from edgewright.proof.goldens import Goldens, make_goldens
from edgewright.proof.host import instruction_set

LABELS = ("business", "politics", "sport")
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w11 w12", "w13 w14 w15", "w16 w17", "w18", "w19",
         "w20 w21 w22"]  # fmt: skip
MAX_LENGTH = 16
ScoreChange = Callable[[NDArray[Any]], NDArray[Any]]
WORKLOAD = Workload.parse("1x4:0.6,1x8:0.1,4x8:0.3")


def preprocessor() -> TextPreprocessor:
    """Each of w1, w2, … is a token."""
    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    settings = TextSettings(
        input_names=("input_ids", "attention_mask"),
        max_length=MAX_LENGTH,
        model_max_length=MAX_LENGTH,
        pad_token_id=0,
    )
    return TextPreprocessor(settings, tokenizer.to_str())


def reversed_classes(scores: NDArray[Any]) -> NDArray[Any]:
    """As of another model."""
    return scores[:, ::-1]


def slightly_off(scores: NDArray[Any]) -> NDArray[Any]:
    """As of another kind of kernel: every label the same."""
    flat = 0.98 * scores + 0.02 / scores.shape[1]
    return flat.astype(np.float32)


def preparation(goldens: Goldens) -> Preparation:
    """Of files for this preprocessing, workload and these goldens."""
    made = preprocessor()
    return Preparation(
        preprocessor=made,
        profiles=profiles_for(made, WORKLOAD),
        goldens=goldens,
        search_rows=made.encode(TEXTS),
        search_labels=np.arange(len(TEXTS)) % len(LABELS),
    )


def make_prepared(files: Path, goldens: Goldens) -> list[Prepared]:
    """Both engines' files below ``files``, with profiles and scores."""
    model = onnx.load(str(fp32_classifier(files / "fp32.onnx")))
    onnx.save(convert_float_to_float16(model, keep_io_types=True), files / "fp16.tensorrt.onnx")
    int8_classifier(files / "int8-static.tensorrt.onnx")
    return [
        preparation(goldens).prepare(files / f"{kind}.tensorrt.onnx", kind, kind)
        for kind in ("int8-static", "fp16")
    ]


def make_bundle(
    folder: Path, *, recorded: Mapping[str, ScoreChange] = {}, prepared: bool = True
) -> Path:
    """Seal a bundle at ``folder``; ``recorded`` changes a variant's scores before they are kept."""
    with new_folder(folder) as staging:
        (staging / "variants").mkdir()
        file = fp32_classifier(staging / "variants" / "fp32.onnx")
        made = preprocessor()
        made.save(staging / "preprocessing")
        session = get_backend("onnxruntime").load(file, threads=1)
        goldens = make_goldens(TEXTS, made, {"onnxruntime-fp32": (session, False)}, keep_raw=True)
        engines = make_prepared(staging / "variants", goldens) if prepared else []
        goldens = with_prepared(goldens, engines)
        scores = dict(goldens.scores)
        for name, change in recorded.items():
            scores[name] = change(scores[name])
        replace(goldens, scores=scores).save(staging)
        body = {
            "task": "text-classification",
            "labels": list(LABELS),
            "variants": [_certified(file).to_json()],
            "prepared": [each.variant.to_json() for each in engines],
            "made_from": {"checkpoint": "0" * 64},
        }
        measured = {
            "measurements.json": measured_json({"variants": {"onnxruntime-fp32": {"speedup": 1}}}),
            "choice.json": measured_json({"variant": "onnxruntime-fp32"}),
        }
        seal(staging, BUNDLE, body, measured)
    return folder


def _certified(file: Path) -> Variant:
    certificate = Certificate(
        verdict=Verdict.PASS,
        budget=0.01,
        error_rate=0.03,
        n=400,
        lost=0,
        won=0,
        loss_upper_bound=0.009,
        loss_lower_bound=-0.01,
        needed_n=None,
        certify_sha256="1" * 64,
        file_sha256=sha256_file(file),
        runtime=get_backend("onnxruntime").runtime(),
        instruction_set=instruction_set(),
        threads=1,
    )
    return Variant(
        name="onnxruntime-fp32",
        backend="onnxruntime",
        file=f"variants/{file.name}",
        precision="fp32",
        batch_invariant=True,
        size_bytes=file.stat().st_size,
        search_accuracy=0.9,
        certificate=certificate,
    )
