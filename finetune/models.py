"""Pre-trained encoders with a classification head: found, refused by name, loaded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.manifest import SEAL_FILE, sha256_bytes, sha256_file

_CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.safetensors"
_WEIGHTS_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What a model folder needs of a hub repository: its top level, and there no pickle.
_AUTO: Final = {
    TEXT: "AutoModelForSequenceClassification",
    IMAGE: "AutoModelForImageClassification",
}
_FETCHED: Final = ("*.json", "*.txt", "*.model", "*.safetensors")


def locate_model(name: str, revision: str | None, *, quiet: bool = False) -> Path:
    """The local folder of a model given by folder or by hub id; an id is fetched into the cache.

    Raises:
        ConfigError: no such folder, an id that cannot be fetched, or a folder that holds no
            safetensors weights.
    """
    folder = Path(name)
    if folder.exists() or _looks_like_path(name):
        if not folder.is_dir():
            raise ConfigError(f"--model {name}: no such folder; give a model folder or a hub id")
        if revision is not None:
            raise ConfigError(f"--revision {revision}: --model {name} is a folder, which has none")
    else:
        folder = _fetch(name, revision, quiet=quiet)
    _check_folder(folder, name)
    return folder


def weights_sha256(folder: Path) -> str:
    """Identifies the weights of a model folder: the file's SHA-256, or that of all shards'."""
    if (folder / _WEIGHTS).is_file():
        return sha256_file(folder / _WEIGHTS)
    shards = sorted(folder.glob("model-*.safetensors"))
    return sha256_bytes("\n".join(sha256_file(shard) for shard in shards).encode())


def load_config(folder: Path, name: str) -> Any:
    """The transformers configuration in ``folder``; ConfigError where it is none we can use."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--model {name}: cannot read its {_CONFIG}: {error}") from error
    if config.is_encoder_decoder:
        raise ConfigError(
            f"--model {name}: {config.model_type} has an encoder and a decoder; choose an encoder, "
            "such as a BERT, RoBERTa, DistilBERT or ELECTRA"
        )
    _refuse_other_problem(config, name)
    return config


def refuse_other_kind(config: Any, kind: Kind, name: str) -> None:
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
            f"--model {name}: the examples are {kind.many}, which {config.model_type} does not "
            f"classify; choose an encoder of {kind.many}, such as {advice[kind]}"
        )


def max_positions(model: nn.Module) -> int | None:
    """Rows of the position table that text can use; None where nothing limits the length.

    RoBERTa and its kin count positions from the row after the padding one, so that of 514 rows
    512 are left. Models without a table (rotary, relative positions) say a limit in their config.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            return module.num_embeddings - (0 if padding is None else padding + 1)
    declared = getattr(model.config, "max_position_embeddings", None)
    return declared if isinstance(declared, int) and declared > 0 else None


def load_classifier(
    folder: Path,
    config: Any,
    label_names: Sequence[str],
    *,
    seed: int,
    name: str,
    kind: Kind = TEXT,
) -> nn.Module:
    """The model in ``folder`` as fp32 with one logit per label; a head it lacks is drawn by seed.

    A head whose labels are the first of ``label_names`` grows: its rows stay, those of the labels
    that follow are drawn.

    Raises:
        ConfigError: the weights cannot be read, or parts of the encoder itself are missing.
    """
    import transformers
    from safetensors import SafetensorError

    config = copy.deepcopy(config)  # the labels in it tell whether the head grows
    grows = _is_beginning(config, label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {label: index for index, label in enumerate(label_names)}
    config.problem_type = "single_label_classification"
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.manual_seed(seed)
            model, report = getattr(transformers, _AUTO[kind]).from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head of another number of labels is drawn anew
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"--model {name}: cannot load it as a classifier of {kind.many}: {error}"
        ) from error
    _refuse_missing(model, report, name)
    if grows:
        _restore_rows(model, folder, _mismatched(report))
    classifier: nn.Module = model.float()
    return classifier


def _refuse_other_problem(config: Any, name: str) -> None:
    """Refuse a head that was trained for something else than one class a row."""
    problem = config.problem_type
    if problem is None and config.num_labels == 1:
        problem = "regression"  # as transformers reads a single output
    if problem in (None, "single_label_classification"):
        return
    told = "multi-label classification" if problem.startswith("multi_label") else problem
    raise ConfigError(
        f"--model {name}: its {_CONFIG} says {told}, and only single-label classification is "
        "supported; to use its encoder with a new head, take problem_type and id2label out of "
        f"{_CONFIG}"
    )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _fetch(name: str, revision: str | None, *, quiet: bool) -> Path:
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
            f"--model {name}: no such folder, and it cannot be fetched from the Hugging Face hub "
            f"({cause}); give the path of a folder with {_CONFIG}, {_WEIGHTS} and tokenizer.json"
        ) from error
    finally:
        if quiet and not hidden:
            enable_progress_bars()
    return Path(folder)


def _check_folder(folder: Path, name: str) -> None:
    if (folder / SEAL_FILE).is_file():
        raise ConfigError(
            f"--model {name} is an edgewright artifact; pass a checkpoint with --from"
        )
    if not (folder / _CONFIG).is_file():
        raise ConfigError(f"--model {name} holds no {_CONFIG}, so it is not a model folder")
    if (folder / _WEIGHTS).is_file() or (folder / _WEIGHTS_INDEX).is_file():
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ConfigError(
            f"--model {name}: its weights are a pickle ({pickles[0]}), which can run any code when "
            f"it is read and is never loaded; convert it to {_WEIGHTS} where you trust it, with "
            "`model.save_pretrained(folder, safe_serialization=True)`"
        )
    raise ConfigError(f"--model {name} holds no {_WEIGHTS}")


def _mismatched(report: dict[str, Any]) -> list[str]:
    """Tensors of another shape than the model's; some versions tell both shapes with the name."""
    return [each if isinstance(each, str) else each[0] for each in report["mismatched_keys"]]


def _is_beginning(config: Any, label_names: Sequence[str]) -> bool:
    """Whether the labels of ``config`` are the first of ``label_names``, and not all of them."""
    known = [config.id2label[index] for index in sorted(config.id2label)]
    return len(known) < len(label_names) and known == list(label_names[: len(known)])


def _restore_rows(model: nn.Module, folder: Path, keys: Sequence[str]) -> None:
    """Put the rows of smaller tensors in ``folder`` over the first rows of the model's own."""
    from safetensors import safe_open

    tensors = model.state_dict()
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as weights, torch.no_grad():
            for key in set(keys).intersection(weights.keys()):
                rows = weights.get_tensor(key)
                tensors[key][: len(rows)].copy_(rows)


def _refuse_missing(model: Any, report: dict[str, Any], name: str) -> None:
    """A head may be new; an encoder that is silently random may not."""
    prefix = f"{model.base_model_prefix}."
    lacking = sorted([*report["missing_keys"], *_mismatched(report)])
    encoder = [key for key in lacking if key.startswith(prefix) and ".pooler." not in key]
    if encoder:
        raise ConfigError(
            f"--model {name}: its weights lack {len(encoder)} tensors of the encoder, {encoder[0]} "
            f"the first; they do not belong to this {_CONFIG}"
        )


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
