"""A run with everything loaded and every choice made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from edgewright.examples import Examples
from edgewright.finetune.batches import TokenRows, to_device
from edgewright.finetune.config import AUTO_FREEZE, FinetuneConfig
from edgewright.finetune.data import Dataset, read_dataset
from edgewright.finetune.device import resolve_device, resolve_precision
from edgewright.finetune.evaluate import Answers, Scores, predict_logits, score
from edgewright.finetune.freeze import FrozenPart, freeze
from edgewright.finetune.lora import Adapters
from edgewright.finetune.start import Start
from edgewright.finetune.strict import refuse_violations
from edgewright.finetune.table_audit import TableAudit, audit_tables
from edgewright.finetune.train import Recipe, balanced_weights
from edgewright.output import Output
from edgewright.preprocess import TextPreprocessor
from edgewright.proof.host import available_cores

# The splits that fine-tuning reads; calibrate, search and certify are left to optimize.
READ_SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Task:
    """What to train, on what, and how."""

    config: FinetuneConfig  # resolved, but for ``freeze`` "auto" and the rate that depends on it
    start: Start
    dataset: Dataset
    model: Any  # a transformers model, on ``device``
    preprocessor: TextPreprocessor
    rows: dict[str, TokenRows]  # by name of ``READ_SPLITS``
    part: FrozenPart
    device: torch.device
    tables: TableAudit | None = None  # None where no audit is wanted
    adapters: Adapters | None = None  # None without --lora

    @classmethod
    def prepare(cls, config: FinetuneConfig, output: Output) -> Task:
        """Load what ``config`` names and make every choice that it left open.

        Raises:
            ConfigError, DataError, ArtifactError, BackendUnavailableError: one of them is unusable.
        """
        config = config.with_defaults()
        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        threads = config.threads or available_cores()
        torch.set_num_threads(threads)
        start = Start.of(config, quiet=output.silent)
        dataset = read_dataset(config, start.checkpoint)
        tables = None if config.audit == "off" else audit_tables(dataset)
        if config.strict and tables is not None:  # before anything heavy is loaded
            refuse_violations(tables)
        examples = dataset.examples
        model = start.load(examples.label_names, seed=config.seed)
        preprocessor = start.preprocessor(model, config.max_length)
        rows = {name: _tokenise(preprocessor, examples.split(name)) for name in READ_SPLITS}
        resolved = replace(
            config,
            device=device.type,
            precision=precision,
            threads=threads,
            max_length=preprocessor.max_length,
            freeze=start.depth(config.freeze),
        )
        model = model.to(device)
        part = FrozenPart(0, 0)
        task = cls(resolved, start, dataset, model, preprocessor, rows, part, device, tables)
        return task if resolved.freeze == AUTO_FREEZE else task.frozen(resolved.freeze)

    def frozen(self, depth: Any) -> Task:
        """The same task with the model's first blocks held, and with --lora adapters in the others.

        Raises:
            ConfigError, BackendUnavailableError: as ``freeze.freeze`` and ``Adapters.attach`` do.
        """
        part = freeze(self.model, depth, self.probe_inputs(1))
        config = replace(self.config, freeze=part.blocks, lr=self.config.rate(part.blocks))
        return replace(self, config=config, part=part, adapters=self.adapt(part.blocks))

    def adapt(self, frozen: int) -> Adapters | None:
        """Adapters in the blocks after the first ``frozen``; None without --lora."""
        if self.config.lora is None:
            return None
        return Adapters.attach(self.model, self.config.lora, frozen=frozen, seed=self.config.seed)

    @cached_property
    def recipe(self) -> Recipe:
        """How to train."""
        config, labels = self.config, self.rows["train"].labels
        classes = len(self.examples.label_names)
        balanced = config.class_weights == "balanced"
        return Recipe(
            epochs=config.epochs,
            lr=config.rate(self.part.blocks),
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            warmup=config.warmup,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            class_weights=balanced_weights(labels, classes) if balanced else None,
            metric=config.metric,
            patience=config.patience,
            precision=config.precision,
            seed=config.seed,
        )

    def probe_inputs(self, count: int) -> dict[str, torch.Tensor]:
        """At most ``count`` train rows from short to long, on the device: to try the model on."""
        rows = self.rows["train"]
        order = np.argsort(rows.lengths, kind="stable")
        places = np.linspace(0, len(order) - 1, min(count, len(order))).astype(np.int64)
        return to_device(rows.inputs(order[places]), self.device)

    @property
    def examples(self) -> Examples:
        """Every example, in its split."""
        return self.dataset.examples

    @property
    def truncated(self) -> float:
        """Share of the texts read that lost tokens to the length limit."""
        texts = sum(len(rows.labels) for rows in self.rows.values())
        return sum(rows.truncated for rows in self.rows.values()) / texts

    @property
    def parameters(self) -> int:
        """How many numbers the model holds."""
        return sum(each.numel() for each in self.model.parameters())

    @property
    def trainable_parameters(self) -> int:
        """How many of them train, those of adapters included."""
        if self.adapters is not None:
            return self.adapters.trained
        frozen = set(self.part.parameters)
        training = (each for each in self.model.parameters() if each.requires_grad)
        return sum(each.numel() for each in training if each not in frozen)

    def score(self, split: str) -> Scores | None:
        """The model as it is now on one of ``READ_SPLITS``; None when that is empty."""
        answers = self.answers(split)
        return score(answers.labels, answers.logits)

    def answers(self, split: str) -> Answers:
        """What the model as it is now answers on one of ``READ_SPLITS``."""
        rows = self.rows[split]
        logits = predict_logits(self.model, rows, self.device)
        return Answers(split, self.examples.split(split).texts, rows.labels, logits)


def _tokenise(preprocessor: TextPreprocessor, examples: Examples) -> TokenRows:
    return TokenRows.of(preprocessor, examples.texts, examples.labels)
