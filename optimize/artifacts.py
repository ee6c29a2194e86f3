"""What a run leaves behind: a bundle or, when nothing may ship, a rejection with its report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from edgewright import model_file
from edgewright.bundle import (
    BUNDLE,
    CHOICE_FILE,
    CONFIG_FILE,
    DRIFT_FILE,
    MEASUREMENTS_FILE,
    PREPROCESSING_FOLDER,
    REJECTION,
    REPORT_FILE,
    VARIANTS_FOLDER,
    Variant,
)
from edgewright.errors import ConfigError
from edgewright.folders import made_folder
from edgewright.manifest import canonical_json, measured_json, new_folder, refuse_existing, seal
from edgewright.optimize.outcome import Outcome
from edgewright.optimize.outcome_json import measurements_json
from edgewright.optimize.prepared import Prepared, with_prepared
from edgewright.optimize.report import optimize_report
from edgewright.optimize.trials import trials_file
from edgewright.preprocess import Preprocessor
from edgewright.proof.goldens import Goldens

_PACKAGES: Final = (
    "edgewright", "nncf", "numpy", "onnx", "onnxruntime", "openvino", "optimum", "pillow",
    "scipy", "tokenizers", "torch", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle beside the outcome."""

    files: Mapping[str, Path]  # candidate name -> its ONNX file; several may share one
    session_options: Mapping[str, Mapping[str, str]]  # candidate name -> options
    preprocessor: Preprocessor
    goldens: Goldens
    drift: Mapping[str, Any]
    prepared: Sequence[Prepared] = ()  # for TensorRT, on a host without a GPU


def write_bundle(outcome: Outcome, contents: Contents) -> None:
    """Write and seal the bundle; a rejection and trials that earlier runs left beside it go.

    What is in the manifest is the same for the same checkpoint, options, packages and shortlist:
    latencies and the choice made by them lie in the measured files.
    """
    config = outcome.config
    with new_folder(config.output, overwrite=config.overwrite) as folder:
        (folder / VARIANTS_FOLDER).mkdir()
        files = [contents.files[name] for name in bundled(outcome)]
        for file in [*files, *(each.file for each in contents.prepared)]:
            _copy(file, folder / VARIANTS_FOLDER)
        contents.preprocessor.save(folder / PREPROCESSING_FOLDER)
        with_prepared(contents.goldens, contents.prepared).save(folder)
        (folder / DRIFT_FILE).write_bytes(canonical_json(contents.drift))
        (folder / CONFIG_FILE).write_bytes(config.yaml())
        variants = [_variant(outcome, contents, name) for name in sorted(bundled(outcome))]
        body = {
            **_body(outcome),
            "variants": [each.to_json() for each in variants],
            "prepared": [each.variant.to_json() for each in contents.prepared],
        }
        seal(folder, BUNDLE, body, {CHOICE_FILE: measured_json(_choice(outcome)), **_told(outcome)})
    shutil.rmtree(config.rejected, ignore_errors=True)
    trials_file(config.output).unlink(missing_ok=True)


def _copy(file: Path, folder: Path) -> None:
    """A model into the bundle; several variants may share one."""
    for part in model_file.parts(file):
        target = folder / part.name
        if not target.exists():
            shutil.copyfile(part, target)


def write_rejection(outcome: Outcome) -> None:
    """Write and seal ``BUNDLE.rejected``; what lies at BUNDLE stays as it is."""
    config = outcome.config
    with new_folder(config.rejected, overwrite=True) as folder:
        (folder / CONFIG_FILE).write_bytes(config.yaml())
        certificates = {
            each.name: each.certificate.to_json() for each in outcome.tried if each.certificate
        }
        body = {**_body(outcome), "certificates": certificates}
        seal(folder, REJECTION, body, _told(outcome))


@contextmanager
def room_for_targets(output: Path, rejected: Path, *, overwrite: bool) -> Iterator[None]:
    """Fail before any work when the bundle or the rejection could not be written.

    The folder that they go into is made, for trials of a search may come to lie there first; it
    goes again where nothing came.

    Raises:
        ConfigError: the bundle exists without ``overwrite``, either is something else than an
            artifact of ours, or nothing can be written there; all faults at once.
    """
    faults: list[str] = []
    for target, replace in ((output, overwrite), (rejected, True)):
        try:
            refuse_existing(target, overwrite=replace)
        except ConfigError as error:
            faults += error.faults
    with ExitStack() as made:
        try:
            made.enter_context(made_folder(output.parent))
            with TemporaryFile(dir=output.parent):
                pass
        except OSError as error:
            faults.append(f"-o {output}: nothing can be written there ({error.strerror})")
        if faults:
            raise ConfigError(faults)
        yield


def bundled(outcome: Outcome) -> list[str]:
    """Names of the variants in the bundle: what may ship, and fp32 to measure others against."""
    baseline = outcome.baseline.name
    return [*outcome.shipped, *([baseline] if baseline not in outcome.shipped else [])]


def _variant(outcome: Outcome, contents: Contents, name: str) -> Variant:
    standing = outcome.standing(name)
    return Variant(
        name=name,
        backend=standing.contender.backend,
        file=f"{VARIANTS_FOLDER}/{contents.files[name].name}",
        precision=standing.precision,
        batch_invariant=not standing.row_by_row,
        size_bytes=standing.contender.size_bytes,
        search_accuracy=outcome.search_accuracy(standing),
        session_options=contents.session_options[name],
        certificate=standing.certificate,
    )


def _body(outcome: Outcome) -> dict[str, Any]:
    config = outcome.config
    return {
        "task": outcome.search.kind.task,
        "labels": list(outcome.search.label_names),
        "made_from": dict(outcome.made_from),
        "budget": config.max_drop,
        "confidence": config.confidence,
        "allow_inconclusive": config.allow_inconclusive,
        "config": config.options(),
        "packages": package_versions(),
        "seed": config.seed,
    }


def _told(outcome: Outcome) -> dict[str, Callable[[str], bytes]]:
    """The measured files that a bundle and a rejection both have."""
    return {
        MEASUREMENTS_FILE: measured_json(measurements_json(outcome)),
        REPORT_FILE: lambda manifest_sha256: optimize_report(outcome, manifest_sha256),
    }


def _choice(outcome: Outcome) -> dict[str, Any]:
    foremost = outcome.foremost
    if foremost is None:
        raise ValueError("a bundle is written only when something was chosen")
    return {
        "variant": foremost.name,
        "order_of_trials": list(outcome.frozen),
        "workload": outcome.workload,
        "threads": outcome.config.threads,
        "host": outcome.host.to_json(),
        **foremost.timing.to_json(),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that a bundle's content depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
