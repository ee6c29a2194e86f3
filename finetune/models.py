"""Pre-trained encoders with a classification head, loaded for the labels at hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.kinds import TEXT, Kind
from edgewright.pretrained import AUTO_CLASSES, CONFIG_FILE, quiet_transformers


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
            model, report = getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(
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
            f"the first; they do not belong to this {CONFIG_FILE}"
        )
