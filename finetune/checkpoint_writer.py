"""Writing the checkpoint folder that ``edgewright.checkpoint`` describes, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml
from safetensors import SafetensorError

from edgewright.checkpoint import (
    AUDIT_FILE,
    CHECKPOINT,
    CONFIG_FILE,
    MEASUREMENTS_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PREPROCESSING_FOLDER,
    REPORT_FILE,
)
from edgewright.examples import Examples
from edgewright.kinds import IMAGE, TEXT
from edgewright.manifest import canonical_json, measured_json, new_folder, seal
from edgewright.preprocess import Preprocessor

# What can change the weights, tokens or pixels that the same inputs give.
_PACKAGES: Final = {
    TEXT: ("edgewright", "numpy", "tokenizers", "torch", "transformers"),
    IMAGE: ("edgewright", "numpy", "pillow", "torch", "transformers"),
}


@dataclass(frozen=True, eq=False)
class CheckpointContents:
    """Everything a checkpoint holds; only ``measurements`` and ``report`` may vary between runs."""

    model: Any  # a transformers model or a FactoryClassifier, in fp32
    preprocessor: Preprocessor
    examples: Examples
    config: Mapping[str, Any]  # the resolved options
    made_from: Mapping[str, str]  # name -> SHA-256
    splits: Mapping[str, Any]  # the split report
    metrics: Mapping[str, Any]  # history, validation and test
    audit: Mapping[str, Any] | None  # None where it was off
    measurements: Mapping[str, Any]  # seconds and the host
    report: Callable[[str], bytes]  # the manifest's SHA-256 -> HTML


def write_checkpoint(target: Path, contents: CheckpointContents, *, overwrite: bool) -> str:
    """Write the folder at ``target``; returns the manifest's SHA-256.

    Raises:
        ConfigError: ``target`` exists, as in ``manifest.refuse_existing``.
        OSError: the disk does not take it.
    """
    with new_folder(target, overwrite=overwrite) as folder:
        _write_weights(contents.model, folder / MODEL_FOLDER, target)
        contents.preprocessor.save(folder / PREPROCESSING_FOLDER)
        contents.examples.save(folder)
        (folder / METRICS_FILE).write_bytes(canonical_json(contents.metrics))
        if contents.audit is not None:
            (folder / AUDIT_FILE).write_bytes(canonical_json(contents.audit))
        (folder / CONFIG_FILE).write_text(_run_yaml(contents.config), encoding="utf-8")
        measured = {
            MEASUREMENTS_FILE: measured_json(contents.measurements),
            REPORT_FILE: contents.report,
        }
        return seal(folder, CHECKPOINT, _body(contents), measured)


def _write_weights(model: Any, folder: Path, target: Path) -> None:
    try:
        # One file whatever its size: the contract names it.
        model.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    except SafetensorError as error:  # that is how it tells of a full disk
        raise OSError(
            f"{target}: the weights cannot be written ({error}); make room, or write elsewhere"
        ) from error
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors lets only its owner read a file


def _body(contents: CheckpointContents) -> dict[str, Any]:
    return {
        "task": contents.examples.kind.task,
        "labels": list(contents.examples.label_names),
        "config": dict(contents.config),
        "seed": contents.config["seed"],
        "packages": {name: version(name) for name in _packages(contents)},
        "made_from": dict(contents.made_from),
        "splits": dict(contents.splits),
        "test": contents.metrics["test"],
    }


def _packages(contents: CheckpointContents) -> tuple[str, ...]:
    packages = _PACKAGES[contents.examples.kind]
    return packages if contents.config.get("lora") is None else (*packages, "peft")


def _run_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=True, allow_unicode=True)
