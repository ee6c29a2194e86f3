"""The bundle: what optimize writes, publish copies and serve answers from.

bundle/
  variants/        one or more ONNX files; several variants may share a file
  preprocessing/   as in the checkpoint
  goldens.npz      token ids of search examples and every variant's scores on them
  goldens.json     their raw texts (absent under --no-raw-examples)
  drift.json       how labels, scores and lengths were distributed on the search split
  run.yaml         the resolved configuration
  manifest.json    measurements.json  choice.json  report.html  seal.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from edgewright.errors import IntegrityError
from edgewright.manifest import HASHED_AT_ONCE, Artifact, ArtifactKind, read_artifact, verify
from edgewright.preprocess import ImagePreprocessor, TextPreprocessor, load_preprocessor

BUNDLE: Final = ArtifactKind(
    "edgewright.bundle", 1, "bundle", "edgewright optimize CHECKPOINT -o BUNDLE"
)
REJECTION: Final = ArtifactKind(
    "edgewright.rejection", 1, "rejection", "edgewright optimize CHECKPOINT -o BUNDLE"
)
BASELINE_BACKEND: Final = "onnxruntime"
VARIANTS_FOLDER: Final = "variants"
PREPROCESSING_FOLDER: Final = "preprocessing"
CHOICE_FILE: Final = "choice.json"
MEASUREMENTS_FILE: Final = "measurements.json"
REPORT_FILE: Final = "report.html"
DRIFT_FILE: Final = "drift.json"
CONFIG_FILE: Final = "run.yaml"


class Verdict(StrEnum):
    """What the certify split proved about one variant."""

    PASS = "PASS"  # upper bound of the loss <= budget
    FAIL = "FAIL"  # lower bound of the loss > budget
    INCONCLUSIVE = "INCONCLUSIVE"  # neither: more rows are needed
    REUSED = "REUSED"  # the certify split has been read too often to prove more
    UNVERIFIED = "UNVERIFIED"  # proven elsewhere: another instruction set or runtime
    # Not of the certify split: proven on this host by `edgewright tune --data`, against the
    # bundle's own fp32 variant.
    VERIFIED = "VERIFIED"


class Against(StrEnum):
    """What a loss was counted against."""

    LABELS = "labels"  # rows that the model answers rightly and the variant wrongly
    REFERENCE = "reference"  # rows without labels, that the two answer differently


@dataclass(frozen=True)
class Certificate:
    """The accuracy loss of one variant against the checkpoint, bounded on the certify split.

    It binds the file, the runtime and its version, the session options and the class of
    instruction set; on another one of these it proves nothing.
    """

    verdict: Verdict
    budget: float  # the largest loss allowed, as a share of rows (0.01 is one point)
    error_rate: float  # one-sided probability that PASS is wrong
    n: int  # near-duplicate groups of the certify split, one row each
    lost: int  # b: the reference is right and the variant wrong
    won: int  # c: the reverse
    loss_upper_bound: float
    loss_lower_bound: float
    needed_n: int | None  # smallest n that would pass at the observed rates, where INCONCLUSIVE
    certify_sha256: str  # of the certify split's ids and labels
    file_sha256: str
    runtime: str  # "onnxruntime 1.32.0"
    instruction_set: str  # edgewright.proof.host.instruction_set()
    threads: int
    against: Against = Against.LABELS

    def holds(self, runtime: str, instruction_set: str) -> bool:
        """Whether it was made with this runtime on this class of instruction set."""
        return (self.runtime, self.instruction_set) == (runtime, instruction_set)

    @property
    def at_most(self) -> str:
        """The bound as a predicate: "loses at most 0.27 points of accuracy"."""
        bound = f"{100 * self.loss_upper_bound:.2f}"
        if self.against is Against.REFERENCE:
            return f"answers at most {bound}% of rows otherwise than the model"
        return f"loses at most {bound} points of accuracy"

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Certificate:
        """The certificate that ``to_json`` wrote."""
        against = Against(value.get("against", Against.LABELS))
        return cls(**{**value, "verdict": Verdict(value["verdict"]), "against": against})


@dataclass(frozen=True)
class Variant:
    """One file on one runtime: the unit that is certified, measured, chosen and served."""

    name: str  # "onnxruntime-int8-dynamic"
    backend: str  # a key of edgewright.backends.BACKENDS
    file: str  # relative to the bundle
    precision: str  # "fp32", "fp16", "int8-dynamic", "int8-static"
    batch_invariant: bool  # False: served one row at a time, as it was certified
    size_bytes: int
    search_accuracy: float
    session_options: Mapping[str, str] = field(default_factory=dict)
    certificate: Certificate | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        certificate = self.certificate.to_json() if self.certificate else None
        return {
            **asdict(self),
            "session_options": dict(self.session_options),
            "certificate": certificate,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Variant:
        """The variant that ``to_json`` wrote."""
        certificate = value["certificate"]
        return cls(
            **{**value, "certificate": Certificate.from_json(certificate) if certificate else None}
        )


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder.

    The manifest's body holds ``task``, ``labels``, ``variants``, ``made_from`` (name ->
    SHA-256: the checkpoint's manifest), ``budget``, ``confidence``, ``allow_inconclusive``,
    ``config``, ``packages`` and ``seed``. The chosen variant is measured: choice.json has it.

    ``prepared`` holds what was made for a GPU on a host without one: files, profiles of shapes and
    the scores that the goldens must get. Nothing is proven of it before `edgewright build-engine`
    has built its engine on such a host, so it has no certificate and is never chosen here.
    """

    artifact: Artifact
    variants: tuple[Variant, ...]
    choice: Mapping[str, Any]
    prepared: tuple[Variant, ...] = ()

    @classmethod
    def open(cls, path: Path, *, files_at_once: int = HASHED_AT_ONCE) -> Bundle:
        """Read and verify, byte for byte, on as many threads as told.

        Raises:
            ArtifactNotFoundError: nothing there, or another kind of artifact.
            IntegrityError: a file was altered, is missing, or was added.
        """
        read_artifact(path, BUNDLE)
        artifact = verify(path, files_at_once=files_at_once)
        choice = json.loads((path / CHOICE_FILE).read_bytes())
        variants = tuple(Variant.from_json(each) for each in artifact.manifest["variants"])
        prepared = tuple(Variant.from_json(each) for each in artifact.manifest.get("prepared", ()))
        return cls(artifact, variants, choice, prepared)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.artifact.path

    @property
    def task(self) -> str:
        """ "text-classification" or "image-classification"."""
        return str(self.artifact.manifest["task"])

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; a label's index is its place here."""
        return tuple(self.artifact.manifest["labels"])

    def variant(self, name: str) -> Variant:
        """The variant of this name.

        Raises:
            IntegrityError: there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise IntegrityError(f"{self.path} has no variant {name}; it has {known}")

    @property
    def chosen(self) -> Variant:
        """The variant that optimize chose on the host where it ran."""
        return self.variant(self.choice["variant"])

    @property
    def baseline(self) -> Variant | None:
        """Fp32 on ONNX Runtime, which the others are held against; every bundle of optimize has it.

        None where a bundle was made otherwise.
        """
        return next(
            (
                each
                for each in self.variants
                if (each.backend, each.precision) == (BASELINE_BACKEND, "fp32")
            ),
            None,
        )

    @property
    def certified_threads(self) -> int:
        """Threads that optimize timed its variants with, and so chose for.

        A certificate may name others: answers that an earlier run has counted on another number of
        threads are not counted again. It speaks where the choice does not say; 1 where none does.
        """
        certificates = (each.certificate for each in (self.chosen, *self.variants))
        certified = next((each.threads for each in certificates if each is not None), 1)
        return int(self.choice.get("threads", certified))

    def preprocessor(self) -> TextPreprocessor | ImagePreprocessor:
        """The only code that turns a raw text or image into this model's tensors."""
        return load_preprocessor(self.path / PREPROCESSING_FOLDER)
