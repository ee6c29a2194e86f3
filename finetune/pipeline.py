"""One run of fine-tuning, from options to a checkpoint on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from edgewright.examples import Columns
from edgewright.finetune import report
from edgewright.finetune.batches import to_device
from edgewright.finetune.calibration import (
    Calibration,
    calibrate,
    calibration_figures,
    calibration_record,
)
from edgewright.finetune.checkpoint_writer import CheckpointContents, write_checkpoint
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.evaluate import Answers
from edgewright.finetune.forgetting import Forgetting, settle_weights
from edgewright.finetune.freeze import thaw
from edgewright.finetune.old_set import OldSet, read_old_set
from edgewright.finetune.summary import metrics_record, summarise
from edgewright.finetune.task import Task
from edgewright.finetune.train import Epoch, Fit, Recipe, Watcher, fit
from edgewright.output import Output
from edgewright.proof.host import this_host


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
        self.seconds[name] = round(self._clock() - started, 3)

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
        task = Task.prepare(config, output)
        old = read_old(task)
    _tell_task(task, output)
    with watch.phase("train"):
        outcome = train(task, output)
    with watch.phase("forgetting"):
        forgetting = settle_weights(task, old)
    _tell_forgetting(forgetting, output)
    with watch.phase("evaluate"):
        validation, test, calibration = evaluate(task)
    summary = summarise(task, outcome, test, watch.total)
    summary |= calibration_figures(calibration, test)
    summary["forgetting"] = None if forgetting is None else forgetting.summary()
    summary["interpolate"] = task.config.interpolate
    story = report.Story(
        data=task.config.sources,
        model=task.start.name,
        summary=summary,
        label_names=task.examples.label_names,
        counts=task.examples.counts(),
        notes=[*task.dataset.notes, *task.dataset.warnings],
        fit=outcome,
        validation=validation,
        test=test,
        calibration=calibration,
        forgetting=forgetting,
    )
    digest = write_checkpoint(target, _contents(task, story, watch, old), overwrite=overwrite)
    return {**summary, "checkpoint": str(target), "manifest_sha256": digest}


def train(task: Task, output: Output) -> Fit:
    """Train the task's model, tell how it goes, and leave it an ordinary model at its best."""
    recipe = task.recipe
    if not len(task.rows["validation"].labels):
        output.warn("there are no validation rows: no early stopping, the last epoch is kept")
    steps = recipe.epochs * ceil(len(task.rows["train"].labels) / recipe.step_rows)
    with output.progress() as bar:
        shown = bar.add_task("training", total=steps, status="")

        def on_step(epoch: int, loss: float) -> None:
            bar.update(shown, advance=1, status=f"epoch {epoch}/{recipe.epochs}, loss {loss:.3f}")

        outcome = fit(
            task.model,
            task.rows["train"],
            recipe,
            task.device,
            validate=lambda: task.score("validation"),
            watcher=Watcher(on_step, lambda epoch: _tell_epoch(epoch, recipe, output), output.warn),
        )
    thaw(task.part)
    if outcome.stopped_early:
        output.note(f"no better {recipe.metric} in {recipe.patience} epochs: stopped early")
    return outcome


def evaluate(task: Task) -> tuple[Answers, Answers, Calibration]:
    """What the model to be written answers on validation and test, and its temperature."""
    validation = task.answers("validation")
    if task.config.calibrate == "none":
        calibration = Calibration(1.0, len(validation.labels), "--calibrate none")
    else:
        batch = task.rows["train"].inputs(np.arange(min(8, len(task.rows["train"].labels))))
        calibration = calibrate(task.model, validation, to_device(batch, task.device))
    divided = replace(validation, logits=validation.logits / np.float32(calibration.temperature))
    return divided, task.answers("test"), calibration


def read_old(task: Task) -> OldSet | None:
    """The examples of --old, in the labels of the checkpoint of --from."""
    checkpoint = task.start.checkpoint
    if task.config.old is None or checkpoint is None:
        return None
    columns = Columns(task.config.text_column, task.config.label_column)
    return read_old_set(task.config.old, columns, checkpoint.labels, task.examples)


def _tell_forgetting(forgetting: Forgetting | None, output: Output) -> None:
    if forgetting is not None:
        told = forgetting.summary()
        output.note(
            f"{told['metric'].replace('_', ' ')} {told['before']:.3f} before, "
            f"{told['after']:.3f} after, {told['written']:.3f} as written "
            f"({forgetting.probe.reason})"
        )


def _tell_task(task: Task, output: Output) -> None:
    for note in task.dataset.notes:
        output.note(note)
    for warning in task.dataset.warnings:
        output.warn(warning)
    config, part = task.config, task.part
    output.note(
        f"{len(task.rows['train'].labels)} train rows, {len(task.examples.label_names)} labels; "
        f"{part.blocks} of {part.of} blocks frozen, {task.trainable_parameters / 1e6:.1f}M of "
        f"{task.parameters / 1e6:.1f}M parameters train; lr {config.lr:g}, {config.device} "
        f"{config.precision}, {config.threads} threads"
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


def _contents(
    task: Task, story: report.Story, watch: Stopwatch, old: OldSet | None
) -> CheckpointContents:
    made_from = {**task.start.made_from, "data": task.dataset.sha256}
    if old is not None:
        made_from["old"] = old.sha256
    return CheckpointContents(
        model=task.model.cpu(),
        preprocessor=task.preprocessor,
        examples=task.examples,
        config=task.config.to_mapping(),
        made_from=made_from,
        splits=task.dataset.report,
        metrics=metrics_record(task, story.fit, story.test)
        | {
            "calibration": calibration_record(story.calibration, story.test),
            "forgetting": None if story.forgetting is None else story.forgetting.record(),
            "interpolate": task.config.interpolate,
        },
        measurements={
            "seconds": watch.seconds,
            "batch_size": story.fit.batch_size,
            "host": this_host().to_json(),
        },
        report=lambda digest: report.render(story, digest),
    )
