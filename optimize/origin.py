"""What a run starts from: a checkpoint of finetune, a Hugging Face model, or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from edgewright.backends import Session
from edgewright.checkpoint import Checkpoint
from edgewright.errors import ConfigError
from edgewright.examples import Examples
from edgewright.kinds import IMAGE, Kind
from edgewright.manifest import SEAL_FILE
from edgewright.model_file import sha256
from edgewright.optimize.given import Given
from edgewright.optimize.onnx_model import OnnxModel
from edgewright.optimize.torch_model import TorchModel
from edgewright.preprocess import (
    SETTINGS_FILE,
    TOKENIZER_FILE,
    Preprocessor,
    TextPreprocessor,
    load_preprocessor,
)
from edgewright.preprocess.processors import image_preprocessor
from edgewright.pretrained import (
    CONFIG_FILE,
    kind_of,
    load_config,
    locate_model,
    max_positions,
    refuse_unknown_inputs,
    weights_sha256,
)

_ONNX: Final = ".onnx"
_CHECKPOINT: Final = "checkpoint"


class Model(Protocol):
    """A classifier that can be run as the reference and written as ONNX."""

    @property
    def kind(self) -> Kind:
        """What it takes."""
        ...

    def session(self, preprocessor: Preprocessor, classes: int, threads: int, /) -> Session:
        """The model in fp32, loaded anew."""
        ...

    def write(self, arrays: Mapping[str, NDArray[Any]], path: Path, opset: int | None, /) -> str:
        """Write it as ONNX to ``path``; says by what. ``arrays`` is one batch of inputs."""
        ...


@dataclass(frozen=True, eq=False)
class Origin:
    """A model with all that a bundle needs of it."""

    name: str  # as the user knows it
    labels: tuple[str, ...]  # in the order of the model's outputs
    preprocessor: Preprocessor
    model: Model
    made_from: Mapping[str, str]  # what it is -> its SHA-256
    examples: Examples | None = None  # of a checkpoint: all its splits

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Origin:
        """What finetune wrote, but for its examples."""
        preprocessor = checkpoint.preprocessor()
        return cls(
            name=str(checkpoint.path),
            labels=checkpoint.labels,
            preprocessor=preprocessor,
            model=TorchModel(checkpoint.model_folder, preprocessor.kind, str(checkpoint.path)),
            made_from={_CHECKPOINT: checkpoint.artifact.manifest_sha256},
        )


def open_origin(source: Path, given: Given) -> Origin:
    """Read what ``source`` names, and check it.

    Args:
        source: a checkpoint folder, a model folder or hub id ("owner/name"), or an ONNX file.
        given: the options for what finetune did not make.

    Raises:
        ArtifactNotFoundError, IntegrityError: as ``Checkpoint.open``.
        ConfigError: no classifier that can be used, or options that do not go with it.
    """
    if source.suffix.lower() == _ONNX and source.is_file():
        return _open_onnx(source, given)
    if _is_pretrained(source):
        return _open_pretrained(str(source), given)
    checkpoint = Checkpoint.open(source)
    if surplus := given.of_foreign_models():
        raise ConfigError(
            f"{', '.join(surplus)} describe a model that finetune did not make; {source} is a "
            "checkpoint and brings its own, so leave them out"
        )
    return replace(Origin.of_checkpoint(checkpoint), examples=checkpoint.examples())


def _is_pretrained(source: Path) -> bool:
    if source.exists():
        return (source / CONFIG_FILE).is_file() and not (source / SEAL_FILE).exists()
    return len(source.parts) == 2 and not source.is_absolute() and source.parts[0] != ".."


def _open_pretrained(name: str, given: Given) -> Origin:
    folder = locate_model(name, given.revision, option="")
    config = load_config(folder, name, option="")
    kind = kind_of(config, name)
    labels = given.label_names() or _labels_of(config)
    _refuse_other_count(labels, config.num_labels, name)
    model = TorchModel(folder, kind, name)
    loaded = model.load()
    source = given.preprocessing or str(folder)
    preprocessor = _preprocessor(source, kind, given.max_length, max_positions(loaded))
    refuse_unknown_inputs(loaded, preprocessor.input_names, name, option="")
    return Origin(
        name=name,
        labels=labels,
        preprocessor=preprocessor,
        model=model,
        made_from={"model": weights_sha256(folder)},
    )


def _open_onnx(path: Path, given: Given) -> Origin:
    if given.revision is not None:
        raise ConfigError(f"--revision is {given.revision}, and {path} is a file, which has none")
    model = OnnxModel(path)
    kind = model.kind
    beside = path.parent
    labels = given.label_names()
    if (beside / CONFIG_FILE).is_file():
        labels = labels or _labels_of(load_config(beside, str(beside), option=""))
    if labels is None:
        raise ConfigError(
            f"{path} does not name its classes, and there is no {CONFIG_FILE} beside it; give "
            "them as --labels a,b,c in the order of its outputs"
        )
    preprocessor = _preprocessor(given.preprocessing or str(beside), kind, given.max_length, None)
    if isinstance(preprocessor, TextPreprocessor):
        preprocessor = _with_inputs(preprocessor, model.text_inputs)
    return Origin(
        name=str(path),
        labels=labels,
        preprocessor=preprocessor,
        model=model,
        made_from={"onnx": sha256(path)},
    )


def _preprocessor(
    source: str, kind: Kind, max_length: int | None, max_positions: int | None
) -> Preprocessor:
    """From a folder of ours, or from a Hugging Face tokenizer or image processor."""
    if kind is IMAGE and max_length is not None:
        raise ConfigError(f"--max-length is {max_length}, and images have no length; leave it out")
    if (Path(source) / SETTINGS_FILE).is_file():
        found = load_preprocessor(Path(source))
        if found.kind is not kind:
            raise ConfigError(
                f"--preprocessing {source} is for {found.kind.many}, and the model takes "
                f"{kind.many}"
            )
        return found
    try:
        if kind is IMAGE:
            return image_preprocessor(source)
        return TextPreprocessor.from_pretrained(
            source, max_length=max_length, max_positions=max_positions
        )
    except ConfigError as error:
        what = "image processor" if kind is IMAGE else TOKENIZER_FILE
        raise ConfigError(
            [*error.faults, f"give the folder of the model's {what} as --preprocessing"]
        ) from error


def _with_inputs(preprocessor: TextPreprocessor, names: tuple[str, ...]) -> TextPreprocessor:
    """The same preprocessing for a file that takes fewer arrays than the tokenizer gives."""
    kept = tuple(name for name in preprocessor.input_names if name in names)
    return preprocessor.with_settings(replace(preprocessor.settings, input_names=kept))


def _labels_of(config: Any) -> tuple[str, ...]:
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def _refuse_other_count(labels: tuple[str, ...], outputs: int, name: str) -> None:
    if len(labels) != outputs:
        raise ConfigError(f"--labels names {len(labels)} classes, and {name} has {outputs} outputs")
