"""What a run works on: a model, the rows of three splits, and runtimes to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from edgewright.backends import get_backend, installed_backends
from edgewright.bundle import Against
from edgewright.errors import ConfigError, DataError
from edgewright.examples import Examples, Table, read_table
from edgewright.examples.held_out import hold_out
from edgewright.kinds import IMAGE
from edgewright.latency import Workload, refuse_other_shapes
from edgewright.metrics import Labels
from edgewright.optimize.choice import SERVABLE_BACKEND
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.origin import Origin, open_origin
from edgewright.optimize.recipes import TENSORRT
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

    origin: Origin
    calibrate: Examples
    search: Examples
    certify: Examples
    backends: tuple[str, ...]  # the servable one first: fp32 on it is what others are held against
    workload: Workload
    notes: tuple[str, ...] = ()  # what a person should know of the rows given
    search_against: Against = Against.LABELS  # as ``against``, of the search rows as they came

    @property
    def preprocessor(self) -> Preprocessor:
        """The only code that turns a raw text or image into this model's tensors."""
        return self.origin.preprocessor

    @property
    def against(self) -> Against:
        """What answers on the certify split are held against: its labels, where it has any."""
        return Against.LABELS if _is_labelled(self.certify) else Against.REFERENCE

    def judged_by(self, answers: Labels) -> Inputs:
        """The same, with the model's own ``answers`` on the search rows in place of labels."""
        return replace(self, search=replace(self.search, labels=answers))

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
            ArtifactNotFoundError, IntegrityError, ConfigError: as ``open_origin``.
            BackendUnavailableError: a runtime that was asked for, or ONNX Runtime, is missing;
                TensorRT may be, for its engines can be prepared here.
            DataError: a split is empty, or rows given do not fit the model.
        """
        get_backend(SERVABLE_BACKEND)
        asked = [_asked(name) for name in config.backends] or installed_backends()
        origin = open_origin(config.checkpoint, config.given)
        splits, notes = _splits(origin, config)
        search = splits["search"].one_per_group()
        return cls(
            origin=origin,
            calibrate=splits["calibrate"],
            search=search,
            certify=splits["certify"].one_per_group(),
            backends=tuple(dict.fromkeys([SERVABLE_BACKEND, *asked])),
            workload=_workload(config, origin.preprocessor, search),
            notes=notes,
            search_against=Against.LABELS if _is_labelled(search) else Against.REFERENCE,
        )

    @property
    def certify_sha256(self) -> str:
        """Identity of the rows that certificates rest on."""
        names = (*self.certify.label_names, "")  # -1, of a row without a label, is the last
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


def _splits(
    origin: Origin, config: OptimizeConfig
) -> tuple[Mapping[str, Examples], tuple[str, ...]]:
    """The splits that a run needs, from the checkpoint or from the tables given; and notes."""
    given = config.given
    calibrate, certify = _table(given.calibrate, config), _table(given.certify, config)
    if origin.examples is None:
        _refuse_missing(origin, given.calibrate, given.certify)
    splits = {}
    if origin.examples is not None:
        splits = {name: origin.examples.split(name) for name in _PURPOSE}
    notes: tuple[str, ...] = ()
    if calibrate is not None or certify is not None:
        held_out = hold_out(
            calibrate, certify, origin.labels, kind=origin.model.kind, seed=config.seed,
            known=origin.examples,
        )  # fmt: skip
        splits, notes = {**splits, **held_out.splits}, held_out.notes
    _refuse_empty(origin, splits)
    return splits, notes


def _table(source: str | None, config: OptimizeConfig) -> Table | None:
    if source is None:
        return None
    return read_table(source, config.given.columns())


def _refuse_missing(origin: Origin, calibrate: str | None, certify: str | None) -> None:
    missing = [
        f"{option} DATA ({purpose})"
        for option, value, purpose in (
            ("--calibrate", calibrate, "int8 value ranges, and the search"),
            (
                "--certify",
                certify,
                "rows to bound the loss on; labels may be absent",
            ),
        )
        if value is None
    ]
    if missing:
        raise ConfigError(f"{origin.name} comes without examples: give {' and '.join(missing)}")


def _asked(name: str) -> str:
    """The name of a runtime that is here, or of TensorRT, here or not."""
    return name if name == TENSORRT else get_backend(name).name


def _refuse_empty(origin: Origin, splits: Mapping[str, Examples]) -> None:
    empty = [name for name in _PURPOSE if not len(splits[name])]
    if empty:
        raise DataError(
            f"{origin.name} has no rows in "
            + ", ".join(f"{name} ({_PURPOSE[name]})" for name in empty)
            + "; fine-tune with more rows, or give it a share with `edgewright finetune --splits`"
        )


def _is_labelled(examples: Examples) -> bool:
    return bool((examples.labels >= 0).all())


def rows_of(preprocessor: Preprocessor, examples: Examples) -> Sequence[Row]:
    """Texts as tokens; images as rows that read and decode one whenever it is asked for."""
    if examples.kind is IMAGE and isinstance(preprocessor, ImagePreprocessor):
        return [LazyRow(preprocessor, image.read, image.name) for image in examples.images]
    return preprocessor.encode(examples.texts)


def _workload(config: OptimizeConfig, preprocessor: Preprocessor, search: Examples) -> Workload:
    if config.workload is None:
        return Workload.from_lengths([len(row) for row in rows_of(preprocessor, search)])
    workload = Workload.parse(config.workload)
    refuse_other_shapes(workload, preprocessor)
    return workload
