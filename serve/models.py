"""Models that answer: verified, loaded, checked against their goldens, warmed up."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, get_backend, softmax
from edgewright.bundle import MEASUREMENTS_FILE, Bundle, Variant, Verdict
from edgewright.errors import BackendUnavailableError
from edgewright.kinds import IMAGE, Kind
from edgewright.preprocess import DecodedRow, Preprocessor, Row, TextPreprocessor
from edgewright.proof.engines import proven_session
from edgewright.proof.goldens import check_goldens
from edgewright.proof.host import available_cores, instruction_set
from edgewright.repository import Repository
from edgewright.state_dir import StateDir

# Needs nothing but [serve], so every bundle holds a certified variant for it.
FALLBACK_BACKEND: Final = "onnxruntime"
WARM_UP_TOKENS: Final = (8, 32, 128)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of one model, ready to answer from the compute thread."""

    name: str
    version: int
    bundle: Bundle
    variant: Variant
    verdict: Verdict  # the certificate's, or UNVERIFIED where it does not hold on this host
    runtime: str  # "onnxruntime 1.32.0"
    session: Session
    preprocessor: Preprocessor

    @property
    def row_by_row(self) -> bool:
        """Whether every row must run alone, as it was certified."""
        return not self.variant.batch_invariant

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names; a label's index is its place here."""
        return self.bundle.labels

    @property
    def kind(self) -> Kind:
        """What it classifies."""
        return self.preprocessor.kind

    @property
    def max_length(self) -> int:
        """Tokens that it reads of a text; 0 where it reads images."""
        preprocessor = self.preprocessor
        return preprocessor.max_length if isinstance(preprocessor, TextPreprocessor) else 0

    def encode(self, contents: Sequence[Any]) -> Sequence[Row]:
        """Tokens of each text, cut to what the model reads; images arrive decoded."""
        if self.kind is IMAGE:
            return contents
        return self.preprocessor.encode(contents)

    def decode(self, images: Sequence[bytes]) -> list[Row]:
        """Pixels of each image file, as the model sees them; from any thread."""
        return self.preprocessor.encode(images)

    def scores(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Softmax scores of shape (rows, classes), from one run."""
        arrays = self.preprocessor.pad(rows).arrays
        feed = {
            spec.name: arrays[spec.name].astype(spec.dtype, copy=False)
            for spec in self.session.inputs
        }
        return softmax(self.session.run(feed)[self.session.outputs[0].name])


def load_model(
    repository: Repository,
    name: str,
    version: int,
    *,
    threads: int | None,
    max_batch: int,
    host_isa: str | None = None,
    state: StateDir | None = None,
) -> ServedModel:
    """Load one version and prove it fit to answer on this host.

    Args:
        repository: where its bundle lies.
        name: of the model.
        version: of the model.
        threads: of its session; None for as many as it was certified with, or this host has.
        max_batch: the most rows that will run together, for the warm-up.
        host_isa: class of instruction set of this host; None to look.
        state: what this host found out; an engine that is proven there answers. None: the default.

    Raises:
        ModelNotFoundError: there is no such model or version.
        IntegrityError: bytes differ from the seal, or the goldens come out otherwise; named.
        BackendUnavailableError: no variant's runtime is installed.
    """
    started = time.monotonic()
    bundle = repository.bundle(name, version)
    preprocessor: Preprocessor = bundle.preprocessor()
    engine = _built_engine(bundle, state, max_batch)
    if engine is not None:
        variant, session, runtime = engine
    else:
        variant = choose_variant(bundle)
        backend = get_backend(variant.backend)
        session = backend.load(
            bundle.path / variant.file,
            threads=threads or _certified_threads(variant),
            options=variant.session_options,
        )
        runtime = backend.runtime()
    holds = _certificate_holds(variant, runtime, host_isa or instruction_set())
    goldens = check_goldens(bundle, variant, session, preprocessor, same_host=holds)
    model = ServedModel(
        name=name,
        version=version,
        bundle=bundle,
        variant=variant,
        verdict=goldens.verdict,
        runtime=runtime,
        session=session,
        preprocessor=preprocessor,
    )
    _warm_up(model, max_batch)
    log.info(
        "%s version %d: %s on %s, %s, %d goldens agree; ready in %.1f s",
        name,
        version,
        variant.name,
        model.runtime,
        model.verdict,
        goldens.rows,
        time.monotonic() - started,
    )
    return model


def _built_engine(
    bundle: Bundle, state: StateDir | None, max_batch: int
) -> tuple[Variant, Session, str] | None:
    """An engine that `edgewright build-engine` built and proved on this host, and its runtime."""
    if not bundle.prepared:
        return None
    try:
        found = proven_session(bundle, state or StateDir.find(None))
    except BackendUnavailableError as error:
        log.warning("%s: no engine of it is used (%s)", bundle.path, error)
        return None
    if found is None:
        log.warning(
            "%s: no engine of it is proven on this host; run `edgewright build-engine %s`",
            bundle.path,
            bundle.path,
        )
        return None
    variant, session, backend = found
    if session.max_rows < max_batch:
        log.warning(
            "%s: its engine takes %d rows and --max-batch is %d, so it is not used",
            bundle.path,
            session.max_rows,
            max_batch,
        )
        return None
    return variant, session, backend.runtime()


def choose_variant(bundle: Bundle) -> Variant:
    """The variant that optimize chose or, where its runtime is missing, the best that runs here.

    Raises:
        BackendUnavailableError: no runtime of a certified variant is installed.
    """
    chosen = bundle.chosen
    try:
        get_backend(chosen.backend)
    except BackendUnavailableError as error:
        fallback = _fastest_certified(bundle, FALLBACK_BACKEND)
        if fallback is None:
            raise
        log.warning(
            "%s: the chosen variant %s cannot run here (%s); %s answers in its place",
            bundle.path,
            chosen.name,
            error,
            fallback.name,
        )
        return fallback
    return chosen


def _fastest_certified(bundle: Bundle, backend: str) -> Variant | None:
    measured = json.loads((bundle.path / MEASUREMENTS_FILE).read_bytes())["variants"]
    certified = [
        variant
        for variant in bundle.variants
        if variant.backend == backend
        and variant.certificate is not None
        and variant.certificate.verdict is Verdict.PASS
    ]
    return max(certified, key=lambda each: float(measured[each.name]["speedup"]), default=None)


def _certified_threads(variant: Variant) -> int:
    threads = variant.certificate.threads if variant.certificate else 1
    return min(threads, available_cores())


def _certificate_holds(variant: Variant, runtime: str, isa: str) -> bool:
    certificate = variant.certificate
    if certificate is None:
        log.warning("%s has no certificate; it is served UNVERIFIED", variant.name)
        return False
    holds = certificate.runtime == runtime and certificate.instruction_set == isa
    if not holds:
        log.warning(
            "%s was certified on %s with %s; on %s with %s it is served UNVERIFIED",
            variant.name,
            certificate.instruction_set,
            certificate.runtime,
            isa,
            runtime,
        )
    return holds


def _warm_up(model: ServedModel, max_batch: int) -> None:
    """Run the shapes that come first, so that no caller pays for a runtime's preparations."""
    rows = _rows_of_each_shape(model)
    for row in rows:
        model.scores([row])
    if not model.row_by_row:
        model.scores([rows[0]] * max_batch)


def _rows_of_each_shape(model: ServedModel) -> list[Row]:
    """The shortest first."""
    if model.kind is IMAGE:
        height, width = model.preprocessor.input_shape[-2:]
        return [DecodedRow(np.zeros((height, width, 3), np.uint8))]
    (longest,) = model.encode(["word " * model.max_length])
    lengths = sorted({min(length, len(longest)) for length in WARM_UP_TOKENS})
    return [model.preprocessor.cut(longest, length) for length in lengths]
