"""Masked tokens: whether the encoder still fills in the words that are hidden from it.

For models that come with the head they were pre-trained with (Devlin et al. 2019). The head stays
as it is; the encoder below it is the one before or after fine-tuning. The texts are rows of
validation, so that what is measured is language the model meets here, not language at large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.finetune.batches import Rows, RowSubset, evaluation_batches, to_device
from edgewright.finetune.interpolation import encoder_of
from edgewright.finetune.probe import Reading

_MOST_ROWS: Final = 64
_BATCH_ROWS: Final = 8
_HIDDEN_SHARE: Final = 0.15  # of the tokens, as in BERT's training


@dataclass(frozen=True, eq=False)
class MaskedProbe:
    """Share of hidden tokens that are guessed, and the perplexity over them."""

    language_model: Any  # with the encoder last read
    sample: Rows
    mask_id: int
    special: NDArray[np.int64]  # ids that are never hidden
    device: torch.device
    seed: int
    before: Reading
    reason: str
    name: str = "masked tokens"
    metric: str = "masked_accuracy"

    @classmethod
    def of(cls, folder: Path, rows: Rows, device: torch.device, *, seed: int) -> MaskedProbe | None:
        """The probe of the pre-trained model in ``folder``; None where it has no such head.

        None as well where chance hides no token of the few that there are.

        Args:
            folder: a model folder, tokenizer included.
            rows: texts to hide tokens of; a sample of them is used.
            device: where to compute.
            seed: of the sample and of the tokens hidden.
        """
        if not len(rows.labels) or "input_ids" not in rows.inputs(np.arange(1)):
            return None
        language_model = load_masked_lm(folder)
        tokens = None if language_model is None else _special_ids(folder)
        if language_model is None or tokens is None:
            return None
        mask_id, special = tokens
        sample = RowSubset.draw(rows, _MOST_ROWS, seed=seed)
        language_model = language_model.to(device).eval()
        hidden = _Hidden(sample, mask_id, special, seed)
        before = _read(language_model, hidden, device)
        if not before.figures["tokens"]:
            return None
        reason = (
            f"the model comes with its masked-language head: {before.figures['tokens']:.0f} tokens "
            f"hidden in {len(sample.labels)} rows of validation"
        )
        return cls(language_model, sample, mask_id, special, device, seed, before, reason)

    @property
    def rows(self) -> int:
        """How many texts have tokens hidden."""
        return len(self.sample.labels)

    def read(self, model: Any) -> Reading:
        """The same tokens hidden, ``model``'s encoder below the old head."""
        encoder, own = encoder_of(model), self.language_model.base_model
        weights = {} if encoder is None else encoder.state_dict()
        own.load_state_dict({name: weights[name] for name in own.state_dict()})
        hidden = _Hidden(self.sample, self.mask_id, self.special, self.seed)
        return _read(self.language_model, hidden, self.device)


def load_masked_lm(folder: Path) -> Any | None:
    """The masked language model in ``folder``; None where a tensor of it or its head is missing."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForMaskedLM

    from edgewright.pretrained import quiet_transformers

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or not _may_hold_a_head(folder, config):
        return None
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        model, report = AutoModelForMaskedLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return None if report["missing_keys"] or report["mismatched_keys"] else model.float()


@dataclass(frozen=True, eq=False)
class _Hidden:
    """Batches with tokens hidden: always the same ones."""

    rows: Rows
    mask_id: int
    special: NDArray[np.int64]
    seed: int

    def batches(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """(inputs, where tokens are hidden (rows, tokens), the hidden ids in that order)."""
        rng = np.random.default_rng(self.seed)
        for batch in evaluation_batches(self.rows.lengths, _BATCH_ROWS):
            inputs = self.rows.inputs(batch)
            ids = inputs["input_ids"].numpy()
            chances = rng.random(ids.shape)
            chances[np.isin(ids, self.special)] = 1.0
            hidden = torch.from_numpy(chances < _HIDDEN_SHARE)
            wanted = inputs["input_ids"][hidden]
            yield (
                {**inputs, "input_ids": inputs["input_ids"].masked_fill(hidden, self.mask_id)},
                hidden,
                wanted,
            )


def _read(language_model: Any, hidden: _Hidden, device: torch.device) -> Reading:
    loss, right, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, places, wanted in hidden.batches():
            if not len(wanted):
                continue
            logits = _logits_at(language_model, to_device(inputs, device), places.to(device))
            target = wanted.to(device)
            loss += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
            right += int((logits.argmax(dim=1) == target).sum())
            count += len(wanted)
    return Reading(
        {
            "masked_accuracy": right / max(count, 1),
            "pseudo_perplexity": float(np.exp(min(loss / max(count, 1), 50.0))),
            "tokens": float(count),
        }
    )


def _logits_at(language_model: Any, inputs: Any, places: torch.Tensor) -> torch.Tensor:
    """fp32 logits at ``places`` alone, (tokens, vocabulary): the head is spared all the others."""

    def pick(_encoder: object, _inputs: object, answer: Any) -> Any:
        answer.last_hidden_state = answer.last_hidden_state[places].unsqueeze(0)
        return answer

    hook = language_model.base_model.register_forward_hook(pick)
    try:
        logits: torch.Tensor = language_model(**inputs).logits[0].float()
    finally:
        hook.remove()
    return logits


def _special_ids(folder: Path) -> tuple[int, NDArray[np.int64]] | None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.mask_token_id is None:
        return None
    return tokenizer.mask_token_id, np.array(tokenizer.all_special_ids, np.int64)


def _may_hold_a_head(folder: Path, config: Any) -> bool:
    """Whether some tensor lies outside the encoder and is no classifier's: worth loading to see."""
    from safetensors import safe_open
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    kind: Any = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    prefix = f"{kind.base_model_prefix}."
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            names.update(weights.keys())
    outside = {name for name in names if not name.startswith(prefix) and "classifier" not in name}
    return bool(outside) and len(outside) < len(names)
