"""What a bundle's variants lose on this host, counted again on rows that someone brings.

The fine-tuned model is not in the bundle, so the reference is the bundle's own fp32 variant on ONNX
Runtime, run here. Counts, bound and error rates are those of the certificate: at most ``SLOTS``
variants, the fastest here first, each with the error rate of its place. The counts are kept beside
the host's record, by the rows' hash, so that the same rows are not asked twice for another answer.

What passes is VERIFIED: proven here, of these rows, against fp32. It is not the bundle's PASS,
which was proven against the fine-tuned model. The rows must be ones that the model has not learnt
from; nothing in a bundle can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from edgewright import model_file
from edgewright.backends import get_backend
from edgewright.bundle import Bundle, Certificate, Variant, Verdict
from edgewright.errors import ConfigError
from edgewright.examples import Examples
from edgewright.kinds import IMAGE
from edgewright.metrics import Labels
from edgewright.preprocess import ImagePreprocessor, LazyRow, Preprocessor, Row
from edgewright.proof.certificate import (
    SLOTS,
    PairedCounts,
    Subject,
    certificate,
    certify_sha256,
    error_rates,
    reused,
    rows_to_pass,
)
from edgewright.proof.host_record import HostKey, HostRecord, VariantHere
from edgewright.proof.host_trial import conclude
from edgewright.proof.ledger import Ledger, open_ledger
from edgewright.proof.logits import answers, predict_logits

LEDGER_FOLDER: Final = "recounts"  # beside the record


def shortages(bundle: Bundle, examples: Examples) -> Iterator[str]:
    """Warnings: rows too few for anything to pass, classes without a row."""
    budget, confidence = _claim(bundle)
    needed = rows_to_pass(budget, error_rates(confidence)[0])
    if needed is None or len(examples) < needed:
        yield (
            f"there are {len(examples)} rows that differ, and even a variant that never differs "
            f"from fp32 needs {needed or 'more than a million'} to be proven within {budget:g}: "
            "none can be VERIFIED; bring more rows"
        )
    present = set(examples.labels.tolist())
    absent = [name for label, name in enumerate(bundle.labels) if label not in present]
    if absent:
        yield f"no row has the label {', '.join(absent)}; nothing is proven of such rows"


def recount(
    bundle: Bundle,
    record: HostRecord,
    examples: Examples,
    folder: Path,
    *,
    on_wait: Callable[[Path], None],
) -> HostRecord:
    """The record with every variant's loss on ``examples``, and the choice made anew.

    Args:
        bundle: verified.
        record: of this host; its timings stand.
        examples: labelled as the bundle is, one row for each group of near-duplicates.
        folder: exists; holds the host's record, and gets the counts.
        on_wait: as in ``open_ledger``.

    Raises:
        ConfigError: there is no fp32 variant that may serve here, so nothing to count against.
    """
    names = examples.label_names
    split = certify_sha256(examples.ids, [names[label] for label in examples.labels.tolist()])
    reference = _reference(bundle, record)
    frozen = _order(record, reference)
    subjects = {name: _subject(bundle.variant(name), bundle, record.host) for name in frozen}
    with open_ledger(folder / LEDGER_FOLDER, split, on_wait=on_wait) as ledger:
        _count(bundle, record.host, reference, subjects, examples, ledger)
        found = {
            name: _certificate(bundle, subject, ledger, record.host.threads)
            for name, subject in subjects.items()
        }
    variants = [each.with_recount(found.get(each.name)) for each in record.variants]
    return conclude(bundle, record.host, record.workload, variants)


def _claim(bundle: Bundle) -> tuple[float, float]:
    """The budget and the confidence that the bundle was certified with."""
    manifest = bundle.artifact.manifest
    return float(manifest["budget"]), float(manifest["confidence"])


def _reference(bundle: Bundle, record: HostRecord) -> Variant:
    baseline = bundle.baseline
    fit = {each.name for each in record.variants if not each.refused}
    if baseline is None or baseline.name not in fit:
        raise ConfigError(
            f"{bundle.path} has no fp32 variant for ONNX Runtime that may serve on this host, so "
            "there is nothing to count losses against; optimize again here"
        )
    return baseline


def _order(record: HostRecord, reference: Variant) -> list[str]:
    """Whom to count, the fastest first: fixed before a row is read."""
    timed = [each for each in record.variants if each.speed and each.name != reference.name]

    def slowness(each: VariantHere) -> tuple[float, str]:
        return (each.speed.workload_ms if each.speed else 0.0, each.name)

    return [each.name for each in sorted(timed, key=slowness)][:SLOTS]


def _subject(variant: Variant, bundle: Bundle, host: HostKey) -> Subject:
    return Subject(
        file_sha256=model_file.sha256(bundle.path / variant.file),
        runtime=get_backend(variant.backend).runtime(),
        instruction_set=host.instruction_set,
        row_by_row=not variant.batch_invariant,
        session_options=tuple(sorted(variant.session_options.items())),
    )


def _count(
    bundle: Bundle,
    host: HostKey,
    reference: Variant,
    subjects: dict[str, Subject],
    examples: Examples,
    ledger: Ledger,
) -> None:
    """Write down the counts of the subjects that have none yet, as far as there are slots."""
    new: dict[Subject, str] = {}
    for name, subject in subjects.items():
        if ledger.find(subject) is None and len(new) < ledger.free_slots:
            new.setdefault(subject, name)
    if not new:
        return
    preprocessor: Preprocessor = bundle.preprocessor()
    rows = _rows(preprocessor, examples)
    expected = _answers(bundle, reference, host, preprocessor, rows)
    counts = {
        subject: PairedCounts.count(
            examples.labels,
            expected,
            _answers(bundle, bundle.variant(name), host, preprocessor, rows),
        )
        for subject, name in new.items()
    }
    ledger.record(new, counts, host.threads)


def _rows(preprocessor: Preprocessor, examples: Examples) -> Sequence[Row]:
    if examples.kind is IMAGE and isinstance(preprocessor, ImagePreprocessor):
        return [LazyRow(preprocessor, image.read, image.name) for image in examples.images]
    return preprocessor.encode(examples.texts)


def _answers(
    bundle: Bundle,
    variant: Variant,
    host: HostKey,
    preprocessor: Preprocessor,
    rows: Sequence[Row],
) -> Labels:
    """Label indices of shape (rows,), as the variant would be served."""
    session = get_backend(variant.backend).load(
        bundle.path / variant.file, threads=host.threads, options=variant.session_options
    )
    alone = not variant.batch_invariant
    return answers(predict_logits(session, preprocessor, rows, one_row_at_a_time=alone))


def _certificate(bundle: Bundle, subject: Subject, ledger: Ledger, threads: int) -> Certificate:
    budget, confidence = _claim(bundle)
    trial = ledger.find(subject)
    split = ledger.split_sha256
    if trial is None:
        return reused(subject, budget=budget, threads=threads, split_sha256=split)
    found = certificate(trial, subject, budget=budget, confidence=confidence, split_sha256=split)
    return replace(found, verdict=Verdict.VERIFIED) if found.verdict is Verdict.PASS else found
