"""A small real bundle of images: the mean of each colour, times a matrix."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgewright.backends import get_backend
from edgewright.bundle import BUNDLE, Variant
from edgewright.manifest import measured_json, new_folder, seal
from edgewright.preprocess import ImagePreprocessor, ImageSettings
from edgewright.proof.goldens import make_goldens

IMAGE_LABELS = ("red", "green", "blue")
SIDE = 8


def png(colour: tuple[int, int, int], side: int = SIDE) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def make_image_bundle(folder: Path) -> Path:
    """Write a bundle of one variant, whose label is the strongest colour, to ``folder``."""
    preprocessor = ImagePreprocessor(ImageSettings(resize=(SIDE, SIDE), crop=()))
    with new_folder(folder) as staging:
        (staging / "variants").mkdir()
        file = staging / "variants" / "fp32.onnx"
        file.write_bytes(_graph().SerializeToString())
        preprocessor.save(staging / "preprocessing")
        session = get_backend("onnxruntime").load(file, threads=1)
        pictures = [png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))]
        sessions = {"onnxruntime-fp32": (session, False)}
        make_goldens(pictures, preprocessor, sessions, keep_raw=True).save(staging)
        (staging / "drift.json").write_text("{}")
        (staging / "run.yaml").write_text("seed: 0\n")
        variant = Variant(
            "onnxruntime-fp32", "onnxruntime", "variants/fp32.onnx", "fp32", True,
            file.stat().st_size, 0.9, certificate=None,
        )  # fmt: skip
        seal(
            staging,
            BUNDLE,
            {
                "task": "image-classification",
                "labels": list(IMAGE_LABELS),
                "variants": [variant.to_json()],
                "made_from": {"checkpoint": "0" * 64},
                "budget": 0.01,
                "confidence": 0.95,
            },
            {
                "measurements.json": measured_json({"variants": {variant.name: {"speedup": 1.0}}}),
                "choice.json": measured_json({"variant": variant.name}),
                "report.html": lambda digest: f"<p>{digest}".encode(),
            },
        )
    return folder


def _graph() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32) * 4, "weights")
    flat = numpy_helper.from_array(np.array([2, 3], np.int64), "flat")
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("ReduceMean", ["pixel_values", "flat"], ["mean"], keepdims=0),
                helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
            ],
            "colours",
            [
                helper.make_tensor_value_info(
                    "pixel_values", TensorProto.FLOAT, ["rows", 3, SIDE, SIDE]
                )
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 3])],
            [weights, flat],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
