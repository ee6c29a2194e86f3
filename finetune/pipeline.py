"""One run of fine-tuning, from options to a checkpoint on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from edgewright.examples import Examples
from edgewright.finetune import report
from edgewright.finetune.batches import TokenRows
from edgewright.finetune.checkpoint_writer import CheckpointContents, write_checkpoint
from edgewright.finetune.config import LR_FULL, LR_PARTLY_FROZEN, FinetuneConfig
from edgewright.finetune.data import Dataset, read_dataset
from edgewright.finetune.device import resolve_device, resolve_precision
from edgewright.finetune.evaluate import Scores, predict_logits, score
from edgewright.finetune.freeze import FrozenPart, freeze, thaw
from edgewright.finetune.start import Start
from edgewright.finetune.train import Epoch, Fit, Recipe, Watcher, balanced_weights, fit
from edgewright.metrics import accuracy_interval
from edgewright.output import Output
from edgewright.preprocess import TextPreprocessor
from edgewright.proof.host import available_cores, this_host

# The splits that fine-tuning reads; calibrate, search and certify are left to optimize.
READ_SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Task:
    """A run with everything loaded and every choice made."""

    config: FinetuneConfig  # resolved
    start: Start
    dataset: Dataset
    model: Any
    preprocessor: TextPreprocessor
    rows: dict[str, TokenRows]  # by name of ``READ_SPLITS``
    part: FrozenPart
    device: torch.device

    @property
    def examples(self) -> Examples:
        """Every example, in its split."""
        return self.dataset.examples

    @property
    def truncated(self) -> float:
        """Share of the texts read that lost tokens to the length limit."""
        texts = sum(len(rows.labels) for rows in self.rows.values())
        return sum(rows.truncated for rows in self.rows.values()) / texts


class Stopwatch:
    """Seconds by phase."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._started = clock, clock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = self._clock()
        yield
        self.seconds[name] = self._clock() - started

    @property
    def total(self) -> float:
        """Seconds since the watch was made."""
        return self._clock() - self._started


def run(
    config: FinetuneConfig,
    target: Path,
    *,
    overwrite: bool,
    output: Output,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Fine-tune as ``config`` says and write the checkpoint at ``target``.

    Returns:
        The summary that ``--json`` prints.

    Raises:
        ConfigError, DataError, ArtifactError, BackendUnavailableError: nothing is written then.
    """
    watch = Stopwatch(clock)
    with watch.phase("prepare"):
        task = prepare(config, output)
    _tell_plan(task, output)
    with watch.phase("train"):
        outcome = train(task, output)
    with watch.phase("evaluate"):
        validation, test = (_answers(task, name) for name in ("validation", "test"))
    summary = _summary(task, outcome, test, watch.total)
    story = report.Story(
        title=Path(task.start.name).name,
        summary=summary,
        label_names=task.examples.label_names,
        counts=task.examples.counts(),
        notes=task.dataset.notes,
        fit=outcome,
        validation=validation,
        test=test,
    )
    digest = write_checkpoint(target, _contents(task, story, watch), overwrite=overwrite)
    return {**summary, "checkpoint": str(target), "manifest_sha256": digest}


def prepare(config: FinetuneConfig, output: Output) -> Task:
    """Load what ``config`` names and make every choice that it left open."""
    config = config.with_defaults()
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    threads = config.threads or available_cores()
    torch.set_num_threads(threads)
    start = Start.of(config, quiet=output.silent)
    dataset = read_dataset(config, start.checkpoint)
    for note in dataset.notes:
        output.note(note)
    for warning in dataset.warnings:
        output.warn(warning)
    model = start.load(dataset.examples.label_names, seed=config.seed)
    preprocessor = start.preprocessor(model, config.max_length)
    rows = {name: _tokenise(preprocessor, dataset.examples.split(name)) for name in READ_SPLITS}
    part = freeze(model, config.freeze, rows["train"].inputs(np.arange(1)))
    resolved = replace(
        config,
        device=device.type,
        precision=precision,
        threads=threads,
        max_length=preprocessor.max_length,
        freeze=part.blocks,
        lr=config.lr or (LR_PARTLY_FROZEN if part.blocks else LR_FULL),
    )
    return Task(resolved, start, dataset, model.to(device), preprocessor, rows, part, device)


def train(task: Task, output: Output) -> Fit:
    """Train the task's model, tell how it goes, and leave it ordinary, on the CPU, at its best."""
    recipe = _recipe(task)
    validation = task.rows["validation"]
    if not len(validation.labels):
        output.warn("there are no validation rows: no early stopping, the last epoch is kept")
    steps = -(-len(task.rows["train"].labels) // recipe.step_rows)
    with output.progress() as bar:
        shown = bar.add_task("training", total=recipe.epochs * steps, status="")

        def on_step(epoch: int, loss: float) -> None:
            bar.update(shown, advance=1, status=f"epoch {epoch}/{recipe.epochs}, loss {loss:.3f}")

        watcher = Watcher(on_step, lambda epoch: _tell_epoch(epoch, recipe, output), output.warn)
        outcome = fit(
            task.model,
            task.rows["train"],
            recipe,
            task.device,
            validate=lambda: _score(task, validation),
            watcher=watcher,
        )
    thaw(task.part)
    if outcome.stopped_early:
        output.note(f"no better {recipe.metric} in {recipe.patience} epochs: stopped early")
    return outcome


def _tokenise(preprocessor: TextPreprocessor, examples: Examples) -> TokenRows:
    return TokenRows.of(preprocessor, examples.texts, examples.labels)


def _recipe(task: Task) -> Recipe:
    config = task.config
    labels, classes = task.rows["train"].labels, len(task.examples.label_names)
    balanced = config.class_weights == "balanced"
    return Recipe(
        epochs=config.epochs,
        lr=config.lr or LR_FULL,
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


def _score(task: Task, rows: TokenRows) -> Scores | None:
    return score(rows.labels, predict_logits(task.model, rows, task.device))


def _answers(task: Task, name: str) -> report.Answers:
    rows = task.rows[name]
    logits = predict_logits(task.model, rows, task.device)
    return report.Answers(name, task.examples.split(name).texts, rows.labels, logits)


def _tell_plan(task: Task, output: Output) -> None:
    config, part = task.config, task.part
    trained = _trainable(task.part, task.model)
    output.note(
        f"{len(task.rows['train'].labels)} train rows, {len(task.examples.label_names)} labels; "
        f"{part.blocks} of {part.of} blocks frozen, {trained / 1e6:.1f}M parameters train; "
        f"lr {config.lr:g}, {config.device} {config.precision}, {config.threads} threads"
    )
    output.note(
        f"{task.truncated:.1%} of the texts are longer than {config.max_length} tokens and are cut"
    )


def _tell_epoch(epoch: Epoch, recipe: Recipe, output: Output) -> None:
    line = f"epoch {epoch.number}/{recipe.epochs}  train loss {epoch.train_loss:.4f}"
    if epoch.validation is not None:
        scores = epoch.validation
        line += (
            f"  validation loss {scores.loss:.4f}  accuracy {scores.accuracy:.4f}  "
            f"macro-F1 {scores.macro_f1:.4f}"
        )
    output.note(line)


def _trainable(part: FrozenPart, model: nn.Module) -> int:
    frozen = set(part.parameters)
    return sum(
        each.numel() for each in model.parameters() if each.requires_grad and each not in frozen
    )


def _summary(task: Task, outcome: Fit, test: report.Answers, seconds: float) -> dict[str, Any]:
    tested = _test_scores(task, test)
    return {
        "test_accuracy": tested["accuracy"],
        "test_accuracy_interval": tested["accuracy_interval"],
        "macro_f1": tested["macro_f1"],
        "best_epoch": outcome.best.number,
        "epochs_run": len(outcome.epochs),
        "frozen": task.part.blocks,
        "blocks": task.part.of,
        "trainable_parameters": _trainable(task.part, task.model),
        "parameters": sum(each.numel() for each in task.model.parameters()),
        "rows": {split: sum(by.values()) for split, by in task.examples.counts().items()},
        "truncated": task.truncated,
        "max_length": task.config.max_length,
        "lr": task.config.lr,
        "batch_size": outcome.batch_size,
        "device": task.config.device,
        "precision": task.config.precision,
        "seconds": round(seconds, 2),
    }


def _test_scores(task: Task, test: report.Answers) -> dict[str, Any]:
    """The manifest's ``test``; every figure is None when the split is empty."""
    scores = score(test.labels, test.logits)
    groups = len(set(task.examples.split("test").groups))
    record: dict[str, Any] = {"split": "test", "n": len(test.labels), "groups": groups}
    if scores is None:
        return record | dict.fromkeys(("accuracy", "accuracy_interval", "macro_f1", "loss"))
    return record | {
        "accuracy": scores.accuracy,
        "accuracy_interval": list(accuracy_interval(scores.correct, scores.n)),
        "macro_f1": scores.macro_f1,
        "loss": scores.loss,
    }


def _contents(task: Task, story: report.Story, watch: Stopwatch) -> CheckpointContents:
    outcome = story.fit
    history = [asdict(epoch) for epoch in outcome.epochs]
    return CheckpointContents(
        model=task.model.cpu(),
        preprocessor=task.preprocessor,
        examples=task.examples,
        config=task.config.to_mapping(),
        made_from={**task.start.made_from, "data": task.dataset.sha256},
        splits=task.dataset.report,
        metrics={
            "epochs": history,
            "best_epoch": outcome.best.number,
            "metric": task.config.metric,
            "stopped_early": outcome.stopped_early,
            "truncated": task.truncated,
            "test": _test_scores(task, story.test),
        },
        measurements={
            "seconds": {name: round(value, 3) for name, value in watch.seconds.items()},
            "batch_size": outcome.batch_size,
            "host": this_host().to_json(),
        },
        report=lambda digest: report.render(story, digest),
    )
