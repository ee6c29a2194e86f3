"""What a run starts from: a verified checkpoint, the rows of its splits, and runtimes to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from edgewright.backends import get_backend, installed_backends
from edgewright.checkpoint import Checkpoint
from edgewright.errors import ConfigError, DataError
from edgewright.examples import Examples
from edgewright.kinds import IMAGE
from edgewright.latency import Workload
from edgewright.optimize.choice import SERVABLE_BACKEND
from edgewright.optimize.config import OptimizeConfig
from edgewright.preprocess import ImagePreprocessor, LazyRow, Preprocessor, Row
from edgewright.proof.certificate import certify_sha256, error_rates, rows_to_pass

_PURPOSE = {
    "calibrate": "int8 files get their value ranges from it",
    "search": "candidates are ranked on it",
    "certify": "the loss is bounded on it",
}


@dataclass(frozen=True, eq=False)
class Inputs:
    """Search and certify hold one row per near-duplicate group."""

    checkpoint: Checkpoint
    preprocessor: Preprocessor
    calibrate: Examples
    search: Examples
    certify: Examples
    backends: tuple[str, ...]  # the servable one first: fp32 on it is what others are held against
    workload: Workload

    @cached_property
    def search_rows(self) -> Sequence[Row]:
        """The search examples as rows, unpadded."""
        return rows_of(self.preprocessor, self.search)

    def calibration(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The calibrate rows, one at a time: padding would count as activation too."""
        for row in rows_of(self.preprocessor, self.calibrate):
            yield self.preprocessor.pad([row]).arrays

    @classmethod
    def open(cls, config: OptimizeConfig) -> Inputs:
        """Read and check everything that a run needs, before any work.

        Raises:
            ArtifactNotFoundError, IntegrityError: as ``Checkpoint.open``.
            BackendUnavailableError: a runtime that was asked for, or ONNX Runtime, is missing.
            DataError: a split is empty.
        """
        get_backend(SERVABLE_BACKEND)
        asked = [get_backend(name).name for name in config.backends] or installed_backends()
        checkpoint = Checkpoint.open(config.checkpoint)
        preprocessor: Preprocessor = checkpoint.preprocessor()
        examples = checkpoint.examples()
        _refuse_empty(checkpoint, examples)
        search = examples.split("search").one_per_group()
        return cls(
            checkpoint=checkpoint,
            preprocessor=preprocessor,
            calibrate=examples.split("calibrate"),
            search=search,
            certify=examples.split("certify").one_per_group(),
            backends=tuple(dict.fromkeys([SERVABLE_BACKEND, *asked])),
            workload=_workload(config, preprocessor, search),
        )

    @property
    def certify_sha256(self) -> str:
        """Identity of the rows that certificates rest on."""
        names = self.certify.label_names
        return certify_sha256(
            self.certify.ids, [names[label] for label in self.certify.labels.tolist()]
        )

    def shortage(self, config: OptimizeConfig) -> str | None:
        """A warning where the certify split is too small for any variant to pass; else None."""
        needed = rows_to_pass(config.max_drop, error_rates(config.confidence)[0])
        rows = len(self.certify)
        if needed is not None and rows >= needed:
            return None
        return (
            f"the certify split has {rows} rows, and even a variant that loses none needs "
            f"{needed or 'more than a million'} for --max-drop {config.max_drop:g}: nothing can "
            "pass; give certify a larger share (`edgewright finetune --splits`), add examples, or "
            "allow more"
        )


def _refuse_empty(checkpoint: Checkpoint, examples: Examples) -> None:
    empty = [name for name in _PURPOSE if not len(examples.split(name))]
    if empty:
        raise DataError(
            f"{checkpoint.path} has no rows in "
            + ", ".join(f"{name} ({_PURPOSE[name]})" for name in empty)
            + "; fine-tune with more rows, or give it a share with `edgewright finetune --splits`"
        )


def rows_of(preprocessor: Preprocessor, examples: Examples) -> Sequence[Row]:
    """Texts as tokens; images as rows that read and decode one whenever it is asked for."""
    if examples.kind is IMAGE and isinstance(preprocessor, ImagePreprocessor):
        return [LazyRow(preprocessor, image.read, image.name) for image in examples.images]
    return preprocessor.encode(examples.texts)


def _workload(config: OptimizeConfig, preprocessor: Preprocessor, search: Examples) -> Workload:
    if config.workload is None:
        return Workload.from_lengths([len(row) for row in rows_of(preprocessor, search)])
    workload = Workload.parse(config.workload)
    height = preprocessor.input_shape[-2]
    if preprocessor.kind is IMAGE and {shape.length for shape in workload.shares} != {height}:
        raise ConfigError(
            f"--workload is {config.workload}; this model takes images of {height} pixels in "
            f"height, so give shapes such as 1x{height},8x{height}"
        )
    return workload
