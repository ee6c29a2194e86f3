"""Sealed checkpoints of image models, written without finetune's code: stages meet in artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from image_data import digit_folder

from edgewright.checkpoint import (
    CHECKPOINT,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PREPROCESSING_FOLDER,
    Checkpoint,
)
from edgewright.examples import Sources, SplitShares, build_examples, read_table
from edgewright.manifest import canonical_json, new_folder, seal
from edgewright.preprocess import ImagePreprocessor, ImageSettings


def vision_checkpoint(target: Path, model: Any, side: int, rows: int = 150) -> Checkpoint:
    """``model`` classifies ten digits, shown to it as pictures of ``side`` pixels."""
    data = digit_folder(target.with_name(f"{target.name}-data"), range(rows))
    shares = SplitShares.parse("40/5/15/15/20/5")
    examples, report = build_examples(Sources(read_table(data)), shares=shares, seed=0)
    with new_folder(target) as folder:
        model.save_pretrained(folder / MODEL_FOLDER)
        ImagePreprocessor(ImageSettings((side, side), ())).save(folder / PREPROCESSING_FOLDER)
        examples.save(folder)
        (folder / METRICS_FILE).write_bytes(canonical_json({"epochs": []}))
        (folder / CONFIG_FILE).write_text("seed: 0\n")
        body = {
            "task": "image-classification",
            "labels": list(examples.label_names),
            "config": {"seed": 0},
            "seed": 0,
            "packages": {},
            "made_from": {},
            "splits": report.to_json(),
            "test": {},
        }
        seal(folder, CHECKPOINT, body, {"report.html": lambda _: b"<!doctype html>"})
    return Checkpoint.open(target)
