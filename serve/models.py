"""Models that answer: verified, loaded, checked against their goldens, warmed up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import softmax
from edgewright.bundle import Bundle, Certificate, Variant, Verdict
from edgewright.kinds import IMAGE, Kind
from edgewright.model_file import FEATURES, LOGITS
from edgewright.preprocess import DecodedRow, Preprocessor, Row, TextPreprocessor
from edgewright.proof.goldens import GoldenResult, check_goldens
from edgewright.proof.host_record import threads_here
from edgewright.repository import Repository
from edgewright.serve.background import Background
from edgewright.serve.host_choice import (
    DEFAULT_OPTIONS,
    Choice,
    ChosenBy,
    HostOptions,
)
from edgewright.serve.opening import (
    Opening,
    check_apart,
    check_what_answers,
    loaded_libraries,
    opening,
)
from edgewright.serve.preprocessors import Preprocessors
from edgewright.serve.proof_process import ProofProcess
from edgewright.serve.runs import runs_of_similar_length
from edgewright.serve.sessions import Sessions

WARM_UP_TOKENS: Final = (8, 32, 128)
# English has between 4 and 5 letters and spaces a token, some scripts a token a letter.
_LETTERS_PER_TOKEN: Final = 4
_SPECIAL_TOKENS: Final = 2

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of one model, ready to answer from the compute threads."""

    name: str
    version: int
    bundle: Bundle
    variant: Variant
    chosen_by: ChosenBy
    verdict: Verdict  # the proof's, or UNVERIFIED where none holds on this host
    proof: Certificate | None  # the variant's, or the recount that VERIFIED rests on
    runtime: str  # "onnxruntime 1.32.0"
    session: Sessions
    preprocessor: Preprocessor

    @property
    def instances(self) -> int:
        """How many runs of it may go on at once."""
        return len(self.session.each)

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

    @property
    def features_width(self) -> int | None:
        """Of the vector that its head reads, -1 where it is not fixed; None: it gives none."""
        widths = [spec.shape[-1] for spec in self.session.outputs if spec.name == FEATURES]
        return widths[0] if widths else None

    def cost(self, given: Any) -> int:
        """Tokens that a row has, or about as many as a text will have; 1 for an image."""
        if self.kind is IMAGE:
            return 1
        if not isinstance(given, str):
            return len(given)
        letters = len(given) // (_LETTERS_PER_TOKEN if given.isascii() else 1)
        return min(_SPECIAL_TOKENS + letters, self.max_length)

    def encode(self, contents: Sequence[Any]) -> Sequence[Row]:
        """Tokens of each text, cut to what the model reads.

        Images arrive decoded, and what a caller has preprocessed arrives as rows.
        """
        if self.kind is IMAGE:
            return contents
        texts = [each for each in contents if isinstance(each, str)]
        encoded = iter(self.preprocessor.encode(texts) if texts else ())
        return [next(encoded) if isinstance(each, str) else each for each in contents]

    def decode(self, images: Sequence[bytes]) -> list[Row]:
        """Pixels of each image file, as the model sees them; from any thread."""
        return self.preprocessor.encode(images)

    def scores(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Softmax scores of shape (rows, classes), from one run."""
        return self.scores_with(rows, ())[0]

    def scores_with(
        self, rows: Sequence[Row], extras: Sequence[str]
    ) -> tuple[NDArray[np.float32], Mapping[str, NDArray[np.float32]]]:
        """The scores, and the logits or features as asked, each (rows, width), from one run."""
        arrays = self.preprocessor.pad(rows).arrays
        feed = {
            spec.name: arrays[spec.name].astype(spec.dtype, copy=False)
            for spec in self.session.inputs
        }
        logits = self.session.outputs[0].name
        features = [FEATURES] if FEATURES in extras else []
        found = self.session.run(feed, [logits, *features])
        return softmax(found[logits]), {
            name: found[logits if name == LOGITS else name] for name in extras
        }


def load_model(
    repository: Repository,
    name: str,
    version: int,
    *,
    threads: int | None,
    max_batch: int,
    batch_tokens: int | None = None,
    instances: int | None = None,
    cores: int | None = None,
    host: HostOptions = DEFAULT_OPTIONS,
    preprocessors: Preprocessors | None = None,
    background: Background | None = None,
) -> ServedModel:
    """Load one version and prove it fit to answer on this host.

    Args:
        repository: where its bundle lies.
        name: of the model.
        version: of the model.
        threads: of its session; None for as many as it was certified with, or this host has.
        max_batch: the most rows that will run together, for the warm-up.
        batch_tokens: likewise, with padding; None for any number.
        instances: sessions, each on ``threads``; None for as many as the cores hold.
        cores: that it may keep busy; None for all that this process may use.
        host: what to do where its certificate does not hold.
        preprocessors: those that may be shared with it.
        background: where others answer meanwhile: what proves it, in a process of its own where it
            can, and a piece at a time what cannot be done elsewhere. Sessions that start threads
            are opened on the thread that calls, for those must not give way.

    Raises:
        ModelNotFoundError: there is no such model or version.
        IntegrityError: bytes differ from the seal, or the goldens come out otherwise; named.
        BackendUnavailableError: no variant's runtime is installed.
        NotReadyError: ``background`` was closed, or its proof does not end or was killed.
    """
    started = time.monotonic()
    with ProofProcess(background) if background else nullcontext() as process:
        bundle = _verified(repository, name, version, process)
        threads = threads_here(bundle, threads, cores)
        host = replace(host, apart=process.run) if process else host
        way = opening(bundle, threads, instances, cores, max_batch, host)
        proven = _proven(bundle, way, preprocessors or Preprocessors(), process, background)
    model = _served(name, version, bundle, way, proven)
    if model.verdict is Verdict.UNVERIFIED:
        _warn_unverified(model, way.choice.instruction_set)
    _in(background, lambda: _warm_up(model, max_batch, batch_tokens))
    _log_ready(model, proven.goldens, time.monotonic() - started)
    return model


def _in(background: Background | None, work: Callable[[], T]) -> T:
    return work() if background is None else background.run(work)


def _verified(
    repository: Repository, name: str, version: int, process: ProofProcess | None
) -> Bundle:
    if process is None:
        return repository.bundle(name, version)
    return process.run(partial(repository.bundle, name, version, files_at_once=1))


class _Proven(NamedTuple):
    """What is to answer, and what the goldens showed of it."""

    sessions: Sessions
    preprocessor: Preprocessor
    goldens: GoldenResult


def _proven(
    bundle: Bundle,
    way: Opening,
    preprocessors: Preprocessors,
    process: ProofProcess | None,
    background: Background | None,
) -> _Proven:
    """Opened once another process has proven it, where one can."""
    goldens = _proven_apart(bundle, way, process)
    sessions = _in(background if way.without_threads else None, lambda: way.sessions(bundle))
    preprocessor = preprocessors.of(bundle)
    if goldens is None:
        goldens = _proven_here(bundle, way, sessions, preprocessor, background)
    elif process:
        process.run(partial(check_what_answers, bundle, way))
    return _Proven(sessions, preprocessor, goldens)


def _proven_apart(
    bundle: Bundle, way: Opening, process: ProofProcess | None
) -> GoldenResult | None:
    """What the goldens showed of it in another process; None where it must be this one."""
    if process is None or not way.on_cpu:
        return None
    return process.run(partial(check_apart, bundle, way, loaded_libraries()))


def _proven_here(
    bundle: Bundle,
    way: Opening,
    sessions: Sessions,
    preprocessor: Preprocessor,
    background: Background | None,
) -> GoldenResult:
    def check() -> GoldenResult:
        return check_goldens(
            bundle,
            way.choice.variant,
            sessions,
            preprocessor,
            same_host=way.holds,
            runs_at_once=1 if background else len(sessions.each),
        )

    return _in(background, check)


def _served(name: str, version: int, bundle: Bundle, way: Opening, proven: _Proven) -> ServedModel:
    verdict, proof = _verdict(way.choice, proven.goldens.verdict)
    return ServedModel(
        name=name,
        version=version,
        bundle=bundle,
        variant=way.choice.variant,
        chosen_by=way.choice.by,
        verdict=verdict,
        proof=proof,
        runtime=way.runtime,
        session=proven.sessions,
        preprocessor=proven.preprocessor,
    )


def _verdict(choice: Choice, verdict: Verdict) -> tuple[Verdict, Certificate | None]:
    """What is told of the variant: its certificate or, where only that holds here, the recount."""
    recount = choice.recount
    if verdict is Verdict.UNVERIFIED and recount and recount.verdict is Verdict.VERIFIED:
        return Verdict.VERIFIED, recount
    return verdict, choice.variant.certificate


def _warn_unverified(model: ServedModel, isa: str) -> None:
    name, certificate = model.variant.name, model.variant.certificate
    if certificate is None:
        log.warning("%s has no certificate; it is served UNVERIFIED", name)
        return
    log.warning(
        "%s was certified on %s with %s; on %s with %s it is served UNVERIFIED",
        name,
        certificate.instruction_set,
        certificate.runtime,
        isa,
        model.runtime,
    )


def _log_ready(model: ServedModel, goldens: GoldenResult, seconds: float) -> None:
    log.info(
        "%s version %d: %s on %s, %d instances, %s, %d goldens agree; ready in %.1f s",
        model.name,
        model.version,
        model.variant.name,
        model.runtime,
        model.instances,
        model.verdict,
        goldens.rows,
        seconds,
    )


def _warm_up(model: ServedModel, max_batch: int, batch_tokens: int | None) -> None:
    """Run the shapes that come first, so that no caller pays for a runtime's preparations."""
    rows = _rows_of_each_shape(model)
    lengths = [len(rows[0])] * max_batch
    most = runs_of_similar_length(lengths, model.row_by_row, batch_tokens or sum(lengths))[0]
    for session in dict.fromkeys(model.session.each):  # one may stand for several
        alone = replace(model, session=Sessions([session]))
        for row in rows:
            alone.scores([row])
        if len(most) > 1:
            alone.scores([rows[0]] * len(most))


def _rows_of_each_shape(model: ServedModel) -> list[Row]:
    """The shortest first."""
    if model.kind is IMAGE:
        height, width = model.preprocessor.input_shape[-2:]
        return [DecodedRow(np.zeros((height, width, 3), np.uint8))]
    (longest,) = model.encode(["word " * model.max_length])
    lengths = sorted({min(length, len(longest)) for length in WARM_UP_TOKENS})
    return [model.preprocessor.cut(longest, length) for length in lengths]
