"""A run with everything loaded and every choice made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright.errors import ConfigError
from edgewright.examples import Examples, Image
from edgewright.finetune.augment import Augmentation
from edgewright.finetune.batch_statistics import trained_normalisations
from edgewright.finetune.batches import TokenRows, to_device
from edgewright.finetune.cached_rows import KeyedRows
from edgewright.finetune.config import AUTO_FREEZE, FinetuneConfig
from edgewright.finetune.data import Dataset, read_dataset
from edgewright.finetune.device import resolve_device, resolve_precision
from edgewright.finetune.evaluate import Answers, predict_logits
from edgewright.finetune.freeze import FrozenPart, find_blocks, freeze
from edgewright.finetune.image_rows import ImageRows
from edgewright.finetune.lora import Adapters
from edgewright.finetune.processes import ALONE, Processes
from edgewright.finetune.recipe import Recipe, balanced_weights
from edgewright.finetune.schedule import layer_factors
from edgewright.finetune.start import Start
from edgewright.finetune.strict import refuse_violations
from edgewright.finetune.table_audit import TableAudit, audit_tables
from edgewright.finetune.train import refuse_processes
from edgewright.kinds import IMAGE
from edgewright.output import Output
from edgewright.preprocess import ImagePreprocessor, Preprocessor, TextPreprocessor
from edgewright.proof.host import available_cores

# The splits that fine-tuning reads; calibrate, search and certify are left to optimize.
READ_SPLITS: Final = ("train", "validation", "test")


class ExampleRows(KeyedRows, Protocol):
    """Rows of examples: texts or images."""

    @property
    def truncated(self) -> int:
        """How many lost something to the length limit."""
        ...

    @property
    def unknown(self) -> int:
        """How many are for the most part nothing that the model's vocabulary has."""
        ...

    @property
    def views(self) -> Sequence[KeyedRows]:
        """What epochs show in turn in place of the rows; empty where they show none."""
        ...

    def joined(self, other: Any) -> ExampleRows:
        """These rows and, after them, others of their kind, as serving shows them."""
        ...


@dataclass(frozen=True, eq=False)
class Task:
    """What to train, on what, and how."""

    config: FinetuneConfig  # resolved, but for ``freeze`` "auto" and the rate that depends on it
    start: Start
    dataset: Dataset
    model: Any  # a transformers model or a FactoryClassifier, on ``device``
    preprocessor: Preprocessor
    rows: dict[str, ExampleRows]  # by name of ``READ_SPLITS``
    part: FrozenPart
    device: torch.device
    tables: TableAudit | None = None  # None where no audit is wanted, or another process audits
    adapters: Adapters | None = None  # None without --lora
    processes: Processes = ALONE

    @classmethod
    def prepare(cls, config: FinetuneConfig, output: Output, processes: Processes = ALONE) -> Task:
        """Load what ``config`` names and make every choice that it left open.

        Of several processes each loads it all; the first has the say where hosts may differ.

        Raises:
            ConfigError, DataError, ArtifactError, BackendUnavailableError: one of them is unusable.
        """
        kind_of_device = processes.by_first(lambda: resolve_device(config.device).type)
        device = resolve_device(kind_of_device)
        precision = processes.by_first(lambda: resolve_precision(config.precision, device))
        cores = processes.by_first(available_cores)
        threads = config.threads or max(1, cores // processes.local)
        torch.set_num_threads(threads)
        start, dataset = _open(config, output)
        examples, kind = dataset.examples, dataset.examples.kind
        config = config.with_defaults(kind)
        audits = config.audit != "off" and processes.is_first
        tables = audit_tables(dataset) if audits else None
        if config.strict and tables is not None:  # before anything heavy is loaded
            refuse_violations(tables)
        model = start.load(examples.label_names, seed=config.seed, kind=kind)
        start = start.identified(model)
        preprocessor = start.preprocessor(model, config, kind)
        rows = {name: _rows(preprocessor, examples, name, config) for name in READ_SPLITS}
        if kind is IMAGE:
            _refuse_other_logits(model, rows["train"].inputs(np.arange(1)), examples, start.name)
        resolved = replace(
            config,
            device=device.type,
            precision=precision,
            threads=threads,
            max_length=_max_length(preprocessor),
            freeze=start.depth(config.freeze),
        )
        model = model.to(device)
        part = FrozenPart(0, 0)
        task = cls(
            resolved, start, dataset, model, preprocessor, rows, part, device, tables,
            processes=processes,
        )  # fmt: skip
        if resolved.freeze != AUTO_FREEZE:
            return task.frozen(resolved.freeze)
        task._refuse_batches()  # for every depth is tried
        return task

    def frozen(self, depth: Any) -> Task:
        """The same task with the model's first blocks held, and with --lora adapters in the others.

        Raises:
            ConfigError, BackendUnavailableError: as ``freeze.freeze`` and ``Adapters.attach`` do.
        """
        part = freeze(self.model, depth, self.probe_inputs(1))
        self._refuse_batches()
        lr = self.rate(part.blocks)
        config = replace(self.config, freeze=part.blocks, lr=lr)
        return replace(self, config=config, part=part, adapters=self.adapt(part.blocks))

    def _refuse_batches(self) -> None:
        """Batches that the model as it is frozen now cannot train on."""
        config = self.config
        _refuse_single_rows(self.model, config)
        refuse_processes(self.processes, self.model, config.batch_size * config.accumulate)

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
            lr=self.rate(self.part.blocks),
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

    def rate(self, frozen: int) -> float:
        """The highest learning rate where the first ``frozen`` blocks are held, as they are now."""
        normalises = bool(trained_normalisations(self.model))
        return self.config.rate(self.examples.kind, frozen, normalises=normalises)

    @property
    def rate_factors(self) -> dict[nn.Parameter, float]:
        """Of the learning rate, by parameter; empty without --layer-decay.

        Raises:
            ConfigError: the model's blocks are not recognised.
        """
        if self.config.layer_decay == 1:
            return {}
        return layer_factors(self.model, find_blocks(self.model), self.config.layer_decay)

    def probe_inputs(self, count: int) -> dict[str, torch.Tensor]:
        """At most ``count`` train rows from short to long, on the device: to try the model on."""
        rows = self.rows["train"]
        order = np.argsort(rows.lengths, kind="stable")
        places = np.linspace(0, len(order) - 1, min(count, len(order))).astype(np.int64)
        return to_device(rows.inputs(order[places]), self.device)

    @property
    def is_ever_new(self) -> bool:
        """Whether every epoch shows images that none has shown before."""
        return self.config.augment != "none" and self.config.augment_views is None

    @property
    def examples(self) -> Examples:
        """Every example, in its split."""
        return self.dataset.examples

    @property
    def truncated(self) -> float:
        """Share of the texts read that lost tokens to the length limit; 0 for images."""
        return sum(rows.truncated for rows in self.rows.values()) / self._rows_read

    @property
    def unknown(self) -> float:
        """Share of the texts read that are mostly unknown to the tokenizer; 0 for images."""
        return sum(rows.unknown for rows in self.rows.values()) / self._rows_read

    @property
    def _rows_read(self) -> int:
        return sum(len(rows.labels) for rows in self.rows.values())

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

    def answers(self, split: str) -> Answers:
        """What the model as it is now answers on one of ``READ_SPLITS``."""
        rows = self.rows[split]
        logits = predict_logits(self.model, rows, self.device, processes=self.processes)
        return Answers(split, self.examples.split(split).contents, rows.labels, logits)


def _open(config: FinetuneConfig, output: Output) -> tuple[Start, Dataset]:
    """What to start from, and the examples; a text model is the default, images have none."""
    if config.model is None and config.from_checkpoint is None:
        dataset = read_dataset(config, None)
        if dataset.examples.kind is IMAGE:
            raise ConfigError(
                "--model is missing: for images give the hub id or folder of a ResNet, ViT, "
                "ConvNeXt, MobileNetV2 or EfficientNet, or your own package.module:factory"
            )
        return Start.of(config, quiet=output.silent), dataset
    start = Start.of(config, quiet=output.silent)
    return start, read_dataset(config, start.checkpoint)


def example_rows(
    preprocessor: Preprocessor,
    ids: Sequence[str],
    contents: Sequence[str] | Sequence[Image],
    labels: NDArray[np.int64],
    augmentation: Augmentation | None = None,
) -> ExampleRows:
    """Examples as a model takes them; ``labels`` has shape (rows,)."""
    if isinstance(preprocessor, TextPreprocessor):
        texts = [each for each in contents if isinstance(each, str)]
        return TokenRows.of(preprocessor, texts, labels)
    if isinstance(preprocessor, ImagePreprocessor):
        images = [each for each in contents if not isinstance(each, str)]
        return ImageRows(preprocessor, ids, images, labels, augmentation)
    raise TypeError(f"rows of {type(preprocessor).__name__} are not known")


def _rows(
    preprocessor: Preprocessor, examples: Examples, split: str, config: FinetuneConfig
) -> ExampleRows:
    part = examples.split(split)
    changes = split == "train" and config.augment != "none"
    augmentation = Augmentation(config.augment, config.seed, config.augment_views)
    return example_rows(
        preprocessor, part.ids, part.contents, part.labels, augmentation if changes else None
    )


def _max_length(preprocessor: Preprocessor) -> int | None:
    return preprocessor.max_length if isinstance(preprocessor, TextPreprocessor) else None


def _refuse_other_logits(
    model: Any, inputs: dict[str, torch.Tensor], examples: Examples, name: str
) -> None:
    """A user's own model may give anything; find out before training."""
    expected = (1, len(examples.label_names))
    model.eval()
    try:
        with torch.no_grad():
            found = tuple(model(**inputs).logits.shape)
    except Exception as error:  # the user's own code
        shape = "x".join(map(str, inputs["pixel_values"].shape))
        raise ConfigError(
            f"--model {name}: fails on a picture of shape {shape}: {type(error).__name__}: {error}"
        ) from error
    if found != expected:
        raise ConfigError(
            f"--model {name}: gives logits of shape {found} for one picture and "
            f"{expected[1]} classes; {expected} is expected"
        )


def _refuse_single_rows(model: Any, config: FinetuneConfig) -> None:
    if config.batch_size == 1 and trained_normalisations(model):
        raise ConfigError(
            "--batch-size 1: this model normalises over its batch, so a pass needs two pictures "
            "or more; give --batch-size 2 at least, or --freeze all of its blocks"
        )
