"""Poisoned models as a search of mixed precision meets them: quantised, and failing.

Weights have 7 bits, so that no host saturates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from poisoned_models import SIDE, poison_depthwise, train_on
from vision_checkpoint import vision_checkpoint

from edgewright.backends import get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.factories import Factory, FactoryClassifier
from edgewright.optimize.export import Reference, export_onnx, save
from edgewright.optimize.inputs import rows_of
from edgewright.optimize.mixed_precision import Failing, Repair, ranking_batches
from edgewright.optimize.onnxruntime_graph import for_onnxruntime, unsigned_activations
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import quantize_static
from edgewright.optimize.recipes.int8_static import STATIC
from edgewright.optimize.variants import Candidate
from edgewright.preprocess import Preprocessor, Row
from edgewright.proof.certificate import PairedCounts
from edgewright.proof.logits import predict_logits


@dataclass
class Case:
    """A quantised model, the rows to search with, and what was counted on them.

    A row is lost where an answer is not the fp32 model's, whatever its label.
    """

    folder: Path
    preprocessor: Preprocessor
    calibrate: Sequence[Row]
    search: Sequence[Row]
    reference: NDArray[Any]
    rewrites: Mapping[str, Callable[[ir.Model], None]]
    weights_only: bool
    counted: list[Path] = field(default_factory=list)

    @property
    def fp32(self) -> Path:
        return self.folder / "fp32.onnx"

    @property
    def quantized(self) -> Path:
        return self.folder / "qdq.onnx"

    def logits(self, backend: str, file: Path) -> NDArray[Any]:
        session = get_backend(backend).load(file, threads=1)
        return predict_logits(session, self.preprocessor, self.search)

    def count(self, candidate: Candidate) -> PairedCounts:
        self.counted.append(candidate.file)
        found = self.logits(candidate.backend, candidate.file).argmax(axis=1)
        return PairedCounts.count(self.reference, self.reference, found)

    def failing(self, backend: str = "onnxruntime") -> Failing:
        file = self.folder / f"{STATIC}.{backend}.onnx"
        candidate = Candidate(f"{backend}-{STATIC}", backend, file, f"{STATIC}-7bit", True)
        weights_only = self.weights_only and backend == "onnxruntime"
        return Failing(candidate, self.fp32, self.quantized, self.rewrites[backend], weights_only)

    def repair(self, folder: Path, **changes: Any) -> Repair:
        options = {
            "budget": 0.05,
            "seconds": 1e6,
            "count": self.count,
            "batches": lambda: ranking_batches(self.preprocessor, self.calibrate),
            "data": "checkpoint",
            "folder": folder,
            "trials": folder / "bundle.trials.json",
        }
        return Repair(**{**options, **changes})


def _leave(_model: ir.Model) -> None:
    """OpenVINO takes NNCF's model as it is."""


def quantized_case(checkpoint: Checkpoint, folder: Path, *, convolutional: bool = False) -> Case:
    """Export a checkpoint, quantise it, and write each runtime's form."""
    origin, examples = Origin.of_checkpoint(checkpoint), checkpoint.examples()
    preprocessor = origin.preprocessor
    calibrate = rows_of(preprocessor, examples.split("calibrate"))
    search = rows_of(preprocessor, examples.split("search"))
    form = unsigned_activations if convolutional else for_onnxruntime
    reference = Reference(origin).logits(search).argmax(axis=1)
    rewrites = {"openvino": _leave, "onnxruntime": form}
    case = Case(
        folder, preprocessor, calibrate, search, reference, rewrites, weights_only=not convolutional
    )
    export_onnx(origin, folder, search)

    def batches() -> Iterator[Mapping[str, NDArray[Any]]]:
        return (preprocessor.pad([row]).arrays for row in calibrate)

    model = quantize_static(case.fp32, batches, reduce_range=True)
    save(model, case.quantized)
    for backend, rewrite in rewrites.items():
        rewrite(model)
        save(model, folder / f"{STATIC}.{backend}.onnx")
    return case


def depthwise_case(folder: Path, poisoned_block: int | None = None) -> Case:
    """A net of depthwise convolutions that tells digits."""
    labels = [str(digit) for digit in range(10)]
    factory = Factory("poisoned_models", "depthwise_net")
    model = FactoryClassifier.make(factory, labels, seed=0)
    fresh = vision_checkpoint(folder / "untrained", model, SIDE, rows=600)
    examples, preprocessor = fresh.examples(), fresh.preprocessor()
    pictures = preprocessor.pad(list(rows_of(preprocessor, examples))).arrays["pixel_values"]
    train_on(model.module, torch.from_numpy(pictures), torch.from_numpy(examples.labels), 60)
    if poisoned_block is not None:
        poison_depthwise(model.module, poisoned_block)
    checkpoint = vision_checkpoint(folder / "checkpoint", model.eval(), SIDE, rows=600)
    return quantized_case(checkpoint, folder, convolutional=True)


def operators(file: Path) -> list[str]:
    """Types of the nodes of a file."""
    return [node.op_type for node in ir.load(file).graph]
