"""The checkpoint: what finetune writes and optimize reads.

checkpoint/
  model/           config.json, model.safetensors   (loads with transformers' from_pretrained)
                   or factory.json in place of config.json   (edgewright.factories)
  preprocessing/   preprocess.json, tokenizer.json  (edgewright.preprocess)
  examples.parquet splits.parquet                   (edgewright.examples)
  metrics.json     what each epoch and the test split gave
  audit.json       what may be wrong with the examples; not with --audit off
  run.yaml         the resolved configuration
  manifest.json    measurements.json  report.html  seal.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewright.examples import Examples
from edgewright.manifest import Artifact, ArtifactKind, read_artifact, verify
from edgewright.preprocess import ImagePreprocessor, TextPreprocessor, load_preprocessor

CHECKPOINT: Final = ArtifactKind(
    "edgewright.checkpoint", 1, "checkpoint", "edgewright finetune DATA -o CHECKPOINT"
)
MODEL_FOLDER: Final = "model"
PREPROCESSING_FOLDER: Final = "preprocessing"
METRICS_FILE: Final = "metrics.json"
AUDIT_FILE: Final = "audit.json"
CONFIG_FILE: Final = "run.yaml"
MEASUREMENTS_FILE: Final = "measurements.json"
REPORT_FILE: Final = "report.html"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder.

    The manifest's body holds ``task`` (a ``kinds.Kind``'s), ``labels``, ``config``, ``seed``,
    ``packages``, ``made_from`` (name -> SHA-256), ``splits`` (the split report) and ``test``.
    """

    artifact: Artifact

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read and verify, byte for byte.

        Raises:
            ArtifactNotFoundError: nothing there, or another kind of artifact.
            IntegrityError: a file was altered, is missing, or was added.
        """
        read_artifact(path, CHECKPOINT)
        return cls(verify(path))

    @property
    def path(self) -> Path:
        """The folder."""
        return self.artifact.path

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; a label's index is its place here."""
        return tuple(self.artifact.manifest["labels"])

    @property
    def model_folder(self) -> Path:
        """The model, in transformers' layout."""
        return self.path / MODEL_FOLDER

    def preprocessor(self) -> TextPreprocessor | ImagePreprocessor:
        """The only code that turns a raw text or image into this model's tensors."""
        return load_preprocessor(self.path / PREPROCESSING_FOLDER)

    def examples(self) -> Examples:
        """Every example with its split."""
        return Examples.load(self.path, self.labels)
