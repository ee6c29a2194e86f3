"""Commands on artifacts: inspect, verify, publish, rollback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgewright.errors import ArtifactError, ConfigError, ModelNotFoundError
from edgewright.manifest import SEAL_FILE, Artifact, read_artifact
from edgewright.manifest import verify as verify_artifact
from edgewright.options import Command, output_options, state_dir_option
from edgewright.output import Output
from edgewright.state_dir import StateDir

if TYPE_CHECKING:
    from edgewright.bundle import Bundle, Variant
    from edgewright.proof.host_record import HostRecord
    from edgewright.repository import Repository

_ARTIFACT = click.argument("artifact", type=click.Path(path_type=Path))
_REPOSITORY = click.argument("repository", type=click.Path(path_type=Path))
_BUNDLE: Final = "edgewright.bundle"
_CHECKPOINT: Final = "edgewright.checkpoint"
_FEW: Final = 5  # names of classes that a warning tells
_NAME = click.option("--name", required=True, help="Model name: the folder below REPOSITORY.")


@click.command(
    "verify",
    cls=Command,
    examples=("edgewright verify checkpoint/", "edgewright verify bundle/ --json"),
)
@_ARTIFACT
@output_options
def verify(artifact: Path, output: Output) -> None:
    """Check every byte of a checkpoint or bundle against its seal; name the first that is wrong."""
    sound = verify_artifact(artifact)
    count = len(sound.manifest["files"])
    output.result(
        {
            "path": str(artifact),
            "format": sound.manifest["format"],
            "files": count,
            "manifest_sha256": sound.manifest_sha256,
        },
        [f"{artifact}: sound ({sound.manifest['format']}, {count} files, {sound.manifest_sha256})"],
    )


@click.command(
    "inspect",
    cls=Command,
    examples=("edgewright inspect bundle/", "edgewright inspect checkpoint/ --json"),
)
@_ARTIFACT
@state_dir_option
@output_options
def inspect(artifact: Path, state_dir: Path | None, output: Output) -> None:
    """Say what an artifact holds, what it was made from, and what is proven of it.

    Of a bundle also which variant serves, by optimize's choice or by what this host measured.
    """
    sound = verify_artifact(artifact)
    value = {**sound.manifest, "manifest_sha256": sound.manifest_sha256}
    if sound.manifest["format"] == _BUNDLE:
        from edgewright.bundle import Bundle

        bundle = Bundle.open(artifact)
        records = _records(bundle, state_dir, output)
        chosen_here = [each.to_json() for each in records]
        value |= {"chosen": bundle.chosen.name, "host_records": chosen_here}
        output.result(value, [*_describe_bundle(bundle), *_describe_records(records)])
        return
    describe = _describe_checkpoint if sound.manifest["format"] == _CHECKPOINT else _describe_any
    output.result(value, describe(sound))


@click.command(
    "publish",
    cls=Command,
    examples=(
        "edgewright publish bundle/ repository/ --name news",
        "edgewright publish bundle/ repository/ --name news --keep-current",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@_REPOSITORY
@_NAME
@click.option(
    "--keep-current",
    is_flag=True,
    help="Leave the current version current: for a canary, a shadow, or a later load.",
)
@output_options
def publish(bundle: Path, repository: Path, name: str, keep_current: bool, output: Output) -> None:
    """Verify BUNDLE, copy it into REPOSITORY as the next version of a model, make it current.

    Servers of REPOSITORY follow by themselves.
    """
    from edgewright.repository import Repository

    opened = Repository(repository)
    version = opened.publish(bundle, name, keep_current=keep_current)
    _compare(opened, name, version, output)
    current = opened.current(name)
    beside = "" if current == version else f"; version {version} lies beside it"
    output.result(
        {
            "model": name,
            "version": version,
            "path": str(repository / name / str(version)),
        },
        [f"{name} version {current} is current in {repository}{beside}"],
    )


@click.command(
    "rollback",
    cls=Command,
    examples=("edgewright rollback repository/ --name news",),
)
@_REPOSITORY
@_NAME
@output_options
def rollback(repository: Path, name: str, output: Output) -> None:
    """Make the version that was current before this one current again. Nothing is deleted."""
    from edgewright.repository import Repository

    version = Repository(repository).rollback(name)
    output.result(
        {"model": name, "version": version},
        [f"{name} version {version} is current in {repository}"],
    )


def _compare(repository: Repository, name: str, version: int, output: Output) -> None:
    """Warn of what is mostly a mistake, beside the version that was current until now."""
    from edgewright.bundle import BUNDLE

    earlier = [each for each in repository.pointer(name).history if each != version]
    if not earlier:
        return
    try:
        before, now = (
            read_artifact(repository.folder(name, each), BUNDLE) for each in (earlier[-1], version)
        )
    except (ArtifactError, ModelNotFoundError):  # damaged or gone, which a server of it tells
        return
    if (before.path / SEAL_FILE).read_bytes() == (now.path / SEAL_FILE).read_bytes():
        output.warn(f"{name} version {version} is version {earlier[-1]} once more, byte for byte")
    _warn_of_other_classes(before, now, output)


def _warn_of_other_classes(before: Artifact, now: Artifact, output: Output) -> None:
    """Callers of a model go by its classes: a bundle of another task is published by mistake."""
    old, labels = before.manifest["labels"], now.manifest["labels"]
    new = [each for each in labels if each not in old]
    gone = [each for each in old if each not in labels]
    if new or gone:
        name, version = now.path.parts[-2:]
        output.warn(
            f"{name} version {version} has other classes than version {before.path.name}: "
            f"new are {_few(new)}, gone are {_few(gone)}"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more or "none"


def _describe_any(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    return [
        f"{artifact.path}: {manifest['format']} (format {manifest['format_version']})",
        f"  manifest   {artifact.manifest_sha256}",
        *(f"  made from  {name} {digest}" for name, digest in _made_from(manifest).items()),
        f"  files      {len(manifest['files'])}, {_megabytes(manifest)} MB",
    ]


def _describe_checkpoint(artifact: Artifact) -> list[str]:
    from edgewright.checkpoint import Checkpoint

    counts = Checkpoint(artifact).examples().counts()
    rows = ", ".join(f"{split} {sum(by_class.values())}" for split, by_class in counts.items())
    return [
        *_describe_any(artifact),
        f"  task       {artifact.manifest['task']}: {', '.join(artifact.manifest['labels'])}",
        f"  rows       {rows}",
    ]


def _describe_bundle(bundle: Bundle) -> list[str]:
    width = max(len(each.name) for each in (*bundle.variants, *bundle.prepared))

    def line(variant: Variant) -> str:
        proof = variant.certificate
        claim = f"{proof.verdict}, {proof.at_most} (n={proof.n})" if proof else "not certified"
        mark = "*" if variant.name == bundle.chosen.name else " "
        return f"  {mark} {variant.name:<{width}} {variant.size_bytes / 1e6:6.1f} MB  {claim}"

    return [
        *_describe_any(bundle.artifact),
        f"  task       {bundle.task}: {', '.join(bundle.labels)}",
        "  variants   (* is optimize's choice)",
        *(line(variant) for variant in bundle.variants),
        *_describe_features(bundle),
        *(
            f"    {each.name:<{width}} {each.size_bytes / 1e6:6.1f} MB  unproven until "
            "`edgewright build-engine` has built it on a GPU host"
            for each in bundle.prepared
        ),
    ]


def _describe_features(bundle: Bundle) -> Iterator[str]:
    from edgewright.bundle import MEASUREMENTS_FILE

    file = bundle.path / MEASUREMENTS_FILE
    measured = json.loads(file.read_bytes()) if file.exists() else {}
    for name, near in measured.get("features", {}).items():
        yield (
            f"  features   {name}: cosine to the model's {near['cosine_median']:.4f} (median), "
            f"{near['cosine_worst']:.4f} (worst of {near['rows']} rows); not certified"
        )


def _describe_records(records: Sequence[HostRecord]) -> Iterator[str]:
    if not records:
        yield "  this host  has measured nothing; optimize's choice stands until it does"
    for record in records:
        chosen = record.variant(record.chosen)
        speed = f"{chosen.speed.speedup:.2f}x fp32, " if chosen.speed else ""
        yield (
            f"  this host  chose {chosen.name} ({record.host.instruction_set}, threads "
            f"{record.host.threads}): {speed}{chosen.verdict}"
        )


def _records(bundle: Bundle, state_dir: Path | None, output: Output) -> list[HostRecord]:
    from edgewright.proof.host_record import records_here

    try:
        return records_here(StateDir.at(state_dir), bundle, output.warn)
    except ConfigError as error:  # no home folder, so nothing was kept in it
        output.warn(str(error))
        return []


def _made_from(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: digest for name, digest in manifest.get("made_from", {}).items() if digest}


def _megabytes(manifest: Mapping[str, Any]) -> str:
    return f"{sum(entry['size'] for entry in manifest['files'].values()) / 1e6:.1f}"
