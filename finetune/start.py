"""What a run starts from: a pre-trained model, a factory, or a checkpoint of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from edgewright.checkpoint import PREPROCESSING_FOLDER, Checkpoint
from edgewright.errors import ConfigError
from edgewright.factories import FACTORY_FILE, Factory, FactoryClassifier, state_sha256
from edgewright.finetune.config import DEFAULT_FREEZE, DEFAULT_MODEL, FinetuneConfig
from edgewright.finetune.models import load_classifier
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.preprocess import (
    ImagePreprocessor,
    Preprocessor,
    TextPreprocessor,
)
from edgewright.preprocess.processors import image_preprocessor, plain_preprocessor
from edgewright.pretrained import (
    load_config,
    locate_model,
    max_positions,
    refuse_other_kind,
    refuse_unknown_inputs,
    weights_sha256,
)


@dataclass(frozen=True)
class Start:
    """A model folder in transformers' layout or a factory; the checkpoint it is from, if any."""

    name: str  # as the user knows it
    folder: Path
    model_config: Any  # transformers'; None for a factory's
    made_from: Mapping[str, str]  # name -> SHA-256
    checkpoint: Checkpoint | None = None
    factory: Factory | None = None

    @classmethod
    def of(cls, config: FinetuneConfig, *, quiet: bool) -> Start:
        """Find and check it; nothing heavy is read yet.

        Raises:
            ConfigError: the model cannot be found or used.
            ArtifactNotFoundError: --from is no checkpoint.
            IntegrityError: --from was altered.
        """
        if config.from_checkpoint is None:
            name = config.model or DEFAULT_MODEL
            factory = None if Path(name).exists() else Factory.parse(name, config.blocks)
            if factory is not None:
                return cls(name, Path(), None, {}, factory=factory)
            folder = locate_model(name, config.revision, quiet=quiet)
            made_from = {"model": weights_sha256(folder)}
            return cls(name, folder, load_config(folder, name), made_from)
        checkpoint = Checkpoint.open(Path(config.from_checkpoint))
        folder, name = checkpoint.model_folder, config.from_checkpoint
        made_from = {
            "model": weights_sha256(folder),
            "from": checkpoint.artifact.manifest_sha256,
        }
        if (folder / FACTORY_FILE).is_file():
            return cls(name, folder, None, made_from, checkpoint)
        return cls(name, folder, load_config(folder, name), made_from, checkpoint)

    def depth(self, asked: int | float | str | None) -> int | float | str:
        """The depth asked for, or that of the checkpoint gone on from."""
        if asked is not None:
            return asked
        recorded = {} if self.checkpoint is None else self.checkpoint.artifact.manifest["config"]
        depth: int | float = recorded.get("freeze", DEFAULT_FREEZE)
        return depth

    @property
    def has_head(self) -> bool:
        """Whether the model comes with a head that has learnt these labels."""
        return self.checkpoint is not None

    def load(self, label_names: Sequence[str], *, seed: int, kind: Kind = TEXT) -> nn.Module:
        """The model with one logit per label; a new head is drawn by ``seed``.

        Raises:
            ConfigError: it cannot be loaded, or does not classify examples of ``kind``.
        """
        if self.model_config is not None:
            refuse_other_kind(self.model_config, kind, self.name)
            return load_classifier(
                self.folder, self.model_config, label_names, seed=seed, name=self.name, kind=kind
            )
        if kind is not IMAGE:
            raise ConfigError(
                f"--model {self.name}: a factory's model reads images, and the examples are texts"
            )
        if self.factory is not None:
            return FactoryClassifier.make(self.factory, label_names, seed=seed)
        return FactoryClassifier.load(self.folder, label_names, seed=seed)

    def identified(self, model: nn.Module) -> Start:
        """The same start, with the hash of the weights that a factory drew or read."""
        if self.factory is None:
            return self
        return replace(self, made_from={"model": state_sha256(model)})

    def preprocessor(self, model: Any, config: FinetuneConfig, kind: Kind) -> Preprocessor:
        """The model's preprocessing, with the options that have a say in it.

        Raises:
            ConfigError: the tokenizer or image processor cannot be used, gives inputs that the
                model does not take, or an option contradicts it.
        """
        if kind is IMAGE:
            return self._image_preprocessor(config)
        return self._text_preprocessor(model, config.max_length)

    def _image_preprocessor(self, config: FinetuneConfig) -> ImagePreprocessor:
        options = config.images
        if self.factory is not None:
            mean, std = options.normalisation()
            return plain_preprocessor(options.shape(), mean, std, options.kept)
        given = [option for option, is_given in options.of_factories().items() if is_given]
        given += ["--blocks"] if config.blocks is not None else []
        if given:
            raise ConfigError(
                f"{', '.join(given)} describe the model of a factory; {self.name} brings a "
                "configuration of its own, so leave them out"
            )
        if self.checkpoint is not None:
            return ImagePreprocessor.load(self.checkpoint.path / PREPROCESSING_FOLDER)
        return image_preprocessor(str(self.folder))

    def _text_preprocessor(self, model: Any, max_length: int | None) -> TextPreprocessor:
        """``max_length`` None keeps a checkpoint's."""
        if self.checkpoint is None:
            preprocessor = TextPreprocessor.from_pretrained(
                str(self.folder), max_length=max_length, max_positions=max_positions(model)
            )
        else:
            preprocessor = _with_length(self.checkpoint, max_length)
        refuse_unknown_inputs(model, preprocessor.input_names, self.name)
        if model.config.pad_token_id is None:  # decoders look for the last token before padding
            model.config.pad_token_id = preprocessor.settings.pad_token_id
        return preprocessor


def _with_length(checkpoint: Checkpoint, max_length: int | None) -> TextPreprocessor:
    recorded = TextPreprocessor.load(checkpoint.path / PREPROCESSING_FOLDER)
    if max_length is None or max_length == recorded.max_length:
        return recorded
    limit = recorded.settings.model_max_length or max_length
    return recorded.with_settings(replace(recorded.settings, max_length=min(max_length, limit)))
