"""Pre-trained models in Hugging Face's layout: found in a folder or on the hub, checked, described.

Weights are read from safetensors alone, and no code that comes with a model is ever run.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgewright.errors import ConfigError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.manifest import SEAL_FILE, sha256_bytes, sha256_file

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE: Final = "config.json"
AUTO_CLASSES: Final = {  # of transformers, by what they classify
    TEXT: "AutoModelForSequenceClassification",
    IMAGE: "AutoModelForImageClassification",
}
_WEIGHTS: Final = "model.safetensors"
_WEIGHTS_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What a model folder needs of a hub repository: its top level, and there no pickle.
_FETCHED: Final = ("*.json", "*.txt", "*.model", "*.safetensors")
_OPTION: Final = "--model "  # how a stage is told of a model; with its name, it begins a message


def locate_model(
    name: str, revision: str | None, *, quiet: bool = False, option: str = _OPTION
) -> Path:
    """The local folder of a model given by folder or by hub id; an id is fetched into the cache.

    Raises:
        ConfigError: no such folder, an id that cannot be fetched, or a folder that holds no
            safetensors weights.
    """
    folder = Path(name)
    if folder.exists() or _looks_like_path(name):
        if not folder.is_dir():
            raise ConfigError(f"{option}{name}: no such folder; give a model folder or a hub id")
        if revision is not None:
            raise ConfigError(f"--revision {revision}: {option}{name} is a folder, which has none")
    else:
        folder = _fetch(name, revision, option, quiet=quiet)
    _check_folder(folder, name, option)
    return folder


def weights_sha256(folder: Path) -> str:
    """Identifies the weights of a model folder: the file's SHA-256, or that of all shards'."""
    if (folder / _WEIGHTS).is_file():
        return sha256_file(folder / _WEIGHTS)
    shards = sorted(folder.glob("model-*.safetensors"))
    return sha256_bytes("\n".join(sha256_file(shard) for shard in shards).encode())


def load_config(folder: Path, name: str, *, option: str = _OPTION) -> Any:
    """The transformers configuration in ``folder``; ConfigError where it is none we can use."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{option}{name}: cannot read its {CONFIG_FILE}: {error}") from error
    if config.is_encoder_decoder:
        raise ConfigError(
            f"{option}{name}: {config.model_type} has an encoder and a decoder; choose an encoder, "
            "such as a BERT, RoBERTa, DistilBERT or ELECTRA"
        )
    _refuse_other_problem(config, name, option)
    return config


def refuse_other_kind(config: Any, kind: Kind, name: str, *, option: str = _OPTION) -> None:
    """ConfigError where the architecture does not classify examples of this kind."""
    from transformers.models.auto import modeling_auto

    known = {
        TEXT: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        IMAGE: modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    }
    if type(config) not in known[kind]:
        advice = {
            TEXT: "a BERT, RoBERTa, DistilBERT or ELECTRA",
            IMAGE: "a ResNet, ViT, ConvNeXt, MobileNetV2 or EfficientNet",
        }
        raise ConfigError(
            f"{option}{name}: the examples are {kind.many}, which {config.model_type} does not "
            f"classify; choose an encoder of {kind.many}, such as {advice[kind]}"
        )


def kind_of(config: Any, name: str) -> Kind:
    """What a classifier of this configuration takes; ConfigError where it is none."""
    from transformers.models.auto import modeling_auto

    if type(config) in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return TEXT
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return IMAGE
    raise ConfigError(f"{name}: {config.model_type} classifies neither texts nor images")


def refuse_unknown_inputs(
    model: nn.Module, names: Sequence[str], name: str, *, option: str = _OPTION
) -> None:
    """ConfigError where a tokenizer gives arrays that the model does not take."""
    known = inspect.signature(model.forward).parameters
    unknown = [each for each in names if each not in known]
    if unknown:
        raise ConfigError(
            f"{option}{name}: its tokenizer gives {', '.join(unknown)}, which "
            f"{type(model).__name__} does not take; correct model_input_names in its "
            "tokenizer_config.json"
        )


def max_positions(model: nn.Module) -> int | None:
    """Rows of the position table that text can use; None where nothing limits the length.

    RoBERTa and its kin count positions from the row after the padding one, so that of 514 rows
    512 are left. Models without a table (rotary, relative positions) say a limit in their config.
    """
    from torch import nn

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            return module.num_embeddings - (0 if padding is None else padding + 1)
    declared = getattr(model.config, "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 else None


def _refuse_other_problem(config: Any, name: str, option: str) -> None:
    """Refuse a head that was trained for something else than one class a row."""
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"  # as transformers reads a single output
    if problem in (None, "single_label_classification"):
        return
    told = "multi-label classification" if problem.startswith("multi_label") else problem
    raise ConfigError(
        f"{option}{name}: its {CONFIG_FILE} says {told}, and only single-label classification is "
        "supported; to use its encoder with a new head, take problem_type and id2label out of "
        f"{CONFIG_FILE}"
    )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _fetch(name: str, revision: str | None, option: str, *, quiet: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hidden = are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(_FETCHED), ignore_patterns=["*/*"]
        )
    except (OSError, ValueError) as error:  # network, hub and cache errors all derive from these
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{option}{name}: no such folder, and it cannot be fetched from the Hugging Face hub "
            f"({cause}); give the path of a folder with {CONFIG_FILE}, {_WEIGHTS} and "
            "tokenizer.json"
        ) from error
    finally:
        if quiet and not hidden:
            enable_progress_bars()
    return Path(folder)


def _check_folder(folder: Path, name: str, option: str) -> None:
    if (folder / SEAL_FILE).is_file():
        raise ConfigError(
            f"{option}{name} is an edgewright artifact; pass a checkpoint with --from"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{option}{name} holds no {CONFIG_FILE}, so it is not a model folder")
    if (folder / _WEIGHTS).is_file() or (folder / _WEIGHTS_INDEX).is_file():
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"{option}{name}: its weights are a pickle ({pickles[0]}), which can run any code when "
            f"it is read and is never loaded; convert it to {_WEIGHTS} where you trust it, with "
            "`model.save_pretrained(folder, safe_serialization=True)`"
        )
    raise ConfigError(f"{option}{name} holds no {_WEIGHTS}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back the advice to train a head that is about to be trained."""
    from transformers.utils import logging as advice

    verbosity = advice.get_verbosity()
    advice.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        advice.set_verbosity(verbosity)
