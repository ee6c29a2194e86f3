"""One run of fine-tuning, from options to a checkpoint on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from edgewright.finetune import report
from edgewright.finetune.audit import Audit
from edgewright.finetune.audit_task import audit_task, start_from_probe, survey_task
from edgewright.finetune.checkpoint_writer import CheckpointContents, write_checkpoint
from edgewright.finetune.config import AUTO_FREEZE, FinetuneConfig
from edgewright.finetune.depth import choose_depth
from edgewright.finetune.feed import Feed, open_feed
from edgewright.finetune.first_token import compute_every_token, compute_first_token_only
from edgewright.finetune.freeze import thaw
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
    depth = None
    if task.config.freeze == AUTO_FREEZE:
        with watch.phase("depth"):
            depth = choose_depth(task, output)
        task = task.frozen(depth.blocks)
    _tell_task(task, output)
    with watch.phase("cache"):
        feed = open_feed(task, output)
    output.note(_feed_line(feed))
    with watch.phase("survey"):
        seen = survey_task(task, feed)
    with watch.phase("audit"):
        audit = audit_task(task, seen)
    _tell_audit(audit, output)
    start_from_probe(task, seen)
    with watch.phase("train"):
        outcome = train(task, feed, output)
    with watch.phase("evaluate"):
        validation, test = task.answers("validation"), task.answers("test")
    summary = summarise(task, outcome, test, watch.total)
    summary["audit"] = None if audit is None else audit.summary()
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
        audit=audit,
        depth=depth,
    )
    digest = write_checkpoint(target, _contents(task, story, feed, watch), overwrite=overwrite)
    return {**summary, "checkpoint": str(target), "manifest_sha256": digest}


def train(task: Task, feed: Feed, output: Output) -> Fit:
    """Train the task's model, tell how it goes, and leave it an ordinary model at its best."""
    recipe = task.recipe
    if not len(task.rows["validation"].labels):
        output.warn("there are no validation rows: no early stopping, the last epoch is kept")
    steps = recipe.epochs * ceil(len(task.rows["train"].labels) / recipe.step_rows)
    if task.part.blocks < task.part.of:
        compute_first_token_only(task.model, task.probe_inputs(4))
    with output.progress() as bar:
        shown = bar.add_task("training", total=steps, status="")

        def on_step(epoch: int, loss: float) -> None:
            bar.update(shown, advance=1, status=f"epoch {epoch}/{recipe.epochs}, loss {loss:.3f}")

        outcome = fit(
            feed.model,
            feed.rows["train"],
            recipe,
            task.device,
            validate=lambda: feed.score("validation", task.device),
            watcher=Watcher(on_step, lambda epoch: _tell_epoch(epoch, recipe, output), output.warn),
        )
    compute_every_token(task.model)
    thaw(task.part)
    if outcome.stopped_early:
        output.note(f"no better {recipe.metric} in {recipe.patience} epochs: stopped early")
    return outcome


def _feed_line(feed: Feed) -> str:
    how = "computed once and cached" if feed.use.used else "computed in every pass"
    return f"the frozen part is {how}: {feed.use.reason}"


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


def _tell_audit(audit: Audit | None, output: Output) -> None:
    for note in () if audit is None else audit.notes:
        output.note(note)


def _tell_epoch(epoch: Epoch, recipe: Recipe, output: Output) -> None:
    line = f"epoch {epoch.number}/{recipe.epochs}  train loss {epoch.train_loss:.4f}"
    if epoch.validation is not None:
        scores = epoch.validation
        line += (
            f"  validation loss {scores.loss:.4f}  accuracy {scores.accuracy:.4f}  "
            f"macro-F1 {scores.macro_f1:.4f}"
        )
    output.note(line)


def _contents(task: Task, story: report.Story, feed: Feed, watch: Stopwatch) -> CheckpointContents:
    return CheckpointContents(
        model=task.model.cpu(),
        preprocessor=task.preprocessor,
        examples=task.examples,
        config=task.config.to_mapping(),
        made_from={**task.start.made_from, "data": task.dataset.sha256},
        splits=task.dataset.report,
        metrics=metrics_record(task, story.fit, story.test, story.depth),
        audit=None if story.audit is None else story.audit.to_json(),
        measurements={
            "seconds": watch.seconds,
            "batch_size": story.fit.batch_size,
            "activation_cache": asdict(feed.use),
            "host": this_host().to_json(),
        },
        report=lambda digest: report.render(story, digest),
    )
