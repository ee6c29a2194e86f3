"""What a run starts from: a pre-trained model, or a checkpoint of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from edgewright.checkpoint import PREPROCESSING_FOLDER, Checkpoint
from edgewright.errors import ConfigError
from edgewright.finetune.config import DEFAULT_FREEZE, DEFAULT_MODEL, FinetuneConfig
from edgewright.finetune.models import (
    load_classifier,
    load_config,
    locate_model,
    max_positions,
    weights_sha256,
)
from edgewright.preprocess import TOKENIZER_FILE, TextPreprocessor


@dataclass(frozen=True)
class Start:
    """A model folder in transformers' layout, and the checkpoint that it lies in, if any."""

    name: str  # as the user knows it
    folder: Path
    model_config: Any
    made_from: Mapping[str, str]  # name -> SHA-256
    checkpoint: Checkpoint | None = None

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
            folder = locate_model(name, config.revision, quiet=quiet)
            made_from = {"model": weights_sha256(folder)}
            return cls(name, folder, load_config(folder, name), made_from)
        checkpoint = Checkpoint.open(Path(config.from_checkpoint))
        folder, name = checkpoint.model_folder, config.from_checkpoint
        made_from = {
            "model": weights_sha256(folder),
            "from": checkpoint.artifact.manifest_sha256,
        }
        return cls(name, folder, load_config(folder, name), made_from, checkpoint)

    def load(self, label_names: Sequence[str], *, seed: int) -> nn.Module:
        """The model with one logit per label; a new head is drawn by ``seed``."""
        return load_classifier(
            self.folder, self.model_config, label_names, seed=seed, name=self.name
        )

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

    def preprocessor(self, model: Any, max_length: int | None) -> TextPreprocessor:
        """The model's preprocessing; ``max_length`` None keeps a checkpoint's.

        Raises:
            ConfigError: the tokenizer cannot be used, or gives inputs that the model does not take.
        """
        if self.checkpoint is None:
            preprocessor = TextPreprocessor.from_pretrained(
                str(self.folder), max_length=max_length, max_positions=max_positions(model)
            )
        else:
            preprocessor = _with_length(self.checkpoint, max_length)
        _refuse_unknown_inputs(model, preprocessor, self.name)
        if model.config.pad_token_id is None:  # decoders look for the last token before padding
            model.config.pad_token_id = preprocessor.settings.pad_token_id
        return preprocessor


def _with_length(checkpoint: Checkpoint, max_length: int | None) -> TextPreprocessor:
    recorded = checkpoint.preprocessor()
    if max_length is None or max_length == recorded.max_length:
        return recorded
    limit = recorded.settings.model_max_length or max_length
    settings = replace(recorded.settings, max_length=min(max_length, limit))
    tokenizer = checkpoint.path / PREPROCESSING_FOLDER / TOKENIZER_FILE
    return TextPreprocessor(settings, tokenizer.read_bytes().decode())


def _refuse_unknown_inputs(model: nn.Module, preprocessor: TextPreprocessor, name: str) -> None:
    import inspect

    known = inspect.signature(model.forward).parameters
    unknown = [each for each in preprocessor.input_names if each not in known]
    if unknown:
        raise ConfigError(
            f"--model {name}: its tokenizer gives {', '.join(unknown)}, which "
            f"{type(model).__name__} does not take; correct model_input_names in its "
            "tokenizer_config.json"
        )
