"""One run of fine-tuning, from options to a checkpoint on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewright.errors import BackendUnavailableError, ConfigError, DataError
from edgewright.examples import Columns
from edgewright.finetune import report
from edgewright.finetune.activation_cache import CacheUse
from edgewright.finetune.audit_task import audit_task, start_from_probe, survey_task
from edgewright.finetune.calibration import (
    Calibration,
    calibrate,
    calibration_figures,
    calibration_record,
)
from edgewright.finetune.changes import Change, answers_before, changes, changes_record
from edgewright.finetune.checkpoint_writer import CheckpointContents, write_checkpoint
from edgewright.finetune.config import AUTO_FREEZE, FinetuneConfig
from edgewright.finetune.depth import DepthChoice, choose_depth
from edgewright.finetune.evaluate import Answers
from edgewright.finetune.feed import Feed, Keep, open_feed
from edgewright.finetune.first_token import compute_every_token, compute_first_token_only
from edgewright.finetune.forgetting import settle_weights
from edgewright.finetune.freeze import thaw
from edgewright.finetune.notes import (
    StepLines,
    tell_audit,
    tell_epoch,
    tell_feed,
    tell_forgetting,
    tell_task,
)
from edgewright.finetune.old_set import OldSet, read_old_set
from edgewright.finetune.processes import ALONE, Processes
from edgewright.finetune.recipe import Fit, Watcher
from edgewright.finetune.summary import metrics_record, summarise
from edgewright.finetune.task import Task
from edgewright.finetune.train import fit
from edgewright.finetune.training_state import Saver
from edgewright.finetune.unfinished import (
    Decisions,
    Unfinished,
    open_unfinished,
    refuse_other,
)
from edgewright.kinds import TEXT
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
    resume: bool = False,
    processes: Processes = ALONE,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Fine-tune as ``config`` says and write the checkpoint at ``target``.

    With ``resume`` a run that was killed goes on where it was; without one it begins. Several
    processes, each called so, make one run; the first alone writes.

    Returns:
        The summary that ``--json`` prints.

    Raises:
        ConfigError, DataError, ArtifactError, BackendUnavailableError: nothing is written then.
    """
    with open_unfinished(
        target, resume=resume, overwrite=overwrite, processes=processes
    ) as unfinished:
        try:
            summary = _run(config, target, unfinished, overwrite, output, Stopwatch(clock))
        except (ConfigError, DataError):
            if not unfinished.is_resumed:  # begun just now, and to no good end
                unfinished.finish()
            raise
        except (KeyboardInterrupt, OSError, BackendUnavailableError):
            if unfinished.is_begun:
                output.warn(f"the run did not end; `--resume` goes on from {unfinished.folder}")
            raise
        unfinished.finish()
    return summary


def _run(
    config: FinetuneConfig,
    target: Path,
    unfinished: Unfinished,
    overwrite: bool,
    output: Output,
    watch: Stopwatch,
) -> dict[str, Any]:
    with watch.phase("prepare"):
        task = _prepare(config, unfinished, output)
        old = read_old(task)
    task, depth = _with_depth(config, task, unfinished, output, watch)
    tell_task(task, output)
    before = answers_before(task)
    with watch.phase("cache"):
        feed = _open_feed(config, task, unfinished, output)
    tell_feed(task, feed, output)
    with watch.phase("survey"):
        seen = survey_task(task, feed)
        start_from_probe(task, feed, seen)
    with watch.phase("audit"):
        audit = audit_task(task, seen)
    tell_audit(audit, output)
    unfinished.is_begun = True
    with watch.phase("train"):
        outcome = train(task, feed, output, Saver(unfinished.folder, output.warn))
    with watch.phase("forgetting"):
        forgetting = settle_weights(task, old)
    tell_forgetting(forgetting, output)
    with watch.phase("evaluate"):
        validation, test, calibration = evaluate(task)
    learnt = report.Learnt(outcome, validation, test, calibration, forgetting, audit, depth)
    story = _story(task, learnt, changes(task, before, test), watch.total)
    contents = _contents(task, story, feed, watch, old)
    digest = task.processes.by_first(
        lambda: write_checkpoint(target, contents, overwrite=overwrite)
    )
    return {**story.summary, "checkpoint": str(target), "manifest_sha256": digest}


def _prepare(config: FinetuneConfig, unfinished: Unfinished, output: Output) -> Task:
    """The task of the options, or of a run that is gone on with; the same in every process."""
    decided, processes = unfinished.decisions, unfinished.processes
    resolved = config if decided is None else FinetuneConfig.from_mapping(decided.resolved)
    task = Task.prepare(resolved, output, processes)
    if decided is not None and processes.is_first:
        refuse_other(decided, config, task.dataset.sha256, this_host().cpu, processes.count)
    options = {f"--{option}": value for option, value in task.config.to_mapping().items()}
    made_from = {"examples": task.dataset.sha256, **task.start.made_from}
    processes.refuse_unlike({**options, **made_from, "torch": torch.__version__})
    return task


def _with_depth(
    config: FinetuneConfig, task: Task, unfinished: Unfinished, output: Output, watch: Stopwatch
) -> tuple[Task, DepthChoice | None]:
    """The task frozen as deep as it is to be, and the choice of that, where it was one."""
    if task.config.freeze != AUTO_FREEZE:
        record = None if unfinished.decisions is None else unfinished.decisions.depth
        return task, None if record is None else DepthChoice.from_mapping(record)
    with watch.phase("depth"):
        decided = _decided_cache(unfinished, "depth_cache")
        keep = _keeper(unfinished, config, task, "depth_cache")
        depth = choose_depth(task, output, decided, keep)
    task = task.frozen(depth.blocks)
    _keep(unfinished, config, task, depth=asdict(depth))
    return task, depth


def _open_feed(config: FinetuneConfig, task: Task, unfinished: Unfinished, output: Output) -> Feed:
    keep = _keeper(unfinished, config, task, "cache")
    return open_feed(task, output, _decided_cache(unfinished, "cache"), keep)


def _decided_cache(unfinished: Unfinished, name: str) -> CacheUse | None:
    """What an earlier start has decided on a cache under ``name``."""
    record = None if unfinished.decisions is None else getattr(unfinished.decisions, name)
    return None if record is None else CacheUse(**record)


def _keep(unfinished: Unfinished, config: FinetuneConfig, task: Task, **made: Any) -> None:
    """Write a choice down, with all that it was made for, before it is acted on."""
    begun = unfinished.decisions or Decisions(
        asked=config.to_mapping(),
        resolved={},
        data=task.dataset.sha256,
        cpu=this_host().cpu,
        processes=task.processes.count,
    )
    unfinished.record(replace(begun, resolved=task.config.to_mapping(), **made))


def _keeper(unfinished: Unfinished, config: FinetuneConfig, task: Task, name: str) -> Keep:
    """Keeps what is decided on a cache under ``name``."""
    return lambda use: _keep(unfinished, config, task, **{name: asdict(use)})


def train(task: Task, feed: Feed, output: Output, saver: Saver) -> Fit:
    """Train the task's model, tell how it goes, and leave it an ordinary model at its best."""
    recipe = task.recipe
    steps_per_epoch = ceil(len(task.rows["train"].labels) / recipe.step_rows)
    steps = recipe.epochs * steps_per_epoch
    lines = StepLines(output)
    if task.part.blocks < task.part.of and task.examples.kind is TEXT:
        compute_first_token_only(task.model, task.probe_inputs(4))
    with output.progress() as bar:
        shown = bar.add_task("training", total=steps, status="")

        def on_step(epoch: int, step: int, loss: float) -> None:
            done = (epoch - 1) * steps_per_epoch + step
            status = f"epoch {epoch}/{recipe.epochs}, loss {loss:.3f}"
            bar.update(shown, completed=done, status=status)
            lines.tell(f"{status}, step {done} of {steps}")

        outcome = fit(
            feed.model,
            feed.rows["train"],
            recipe,
            task.device,
            validate=lambda: feed.score("validation", task.device),
            watcher=Watcher(on_step, lambda epoch: tell_epoch(epoch, recipe, output), output.warn),
            saver=saver,
            factors=task.rate_factors,
            processes=task.processes,
        )
    compute_every_token(task.model)
    if task.adapters is not None:
        task.adapters.merge()
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
        calibration = calibrate(task.model, validation, task.probe_inputs(8))
    divided = replace(validation, logits=validation.logits / np.float32(calibration.temperature))
    return divided, task.answers("test"), calibration


def read_old(task: Task) -> OldSet | None:
    """The examples of --old, in the labels of the checkpoint of --from."""
    checkpoint = task.start.checkpoint
    if task.config.old is None or checkpoint is None:
        return None
    columns = Columns(task.config.text_column, task.config.label_column)
    return read_old_set(task.config.old, columns, checkpoint.labels, task.examples)


def _story(
    task: Task, learnt: report.Learnt, changed: Sequence[Change], seconds: float
) -> report.Story:
    """What the report tells."""
    return report.Story(
        data=task.config.sources,
        model=task.start.name,
        summary=_summary(task, learnt, changed, seconds),
        label_names=task.examples.label_names,
        counts=task.examples.counts(),
        notes=[*task.dataset.notes, *task.dataset.warnings],
        learnt=learnt,
        changes=changed,
    )


def _summary(
    task: Task, learnt: report.Learnt, changed: Sequence[Change], seconds: float
) -> dict[str, Any]:
    """What ``--json`` prints, but for where the checkpoint lies."""
    audit, forgetting = learnt.audit, learnt.forgetting
    return {
        **summarise(task, learnt.fit, learnt.test, seconds),
        **calibration_figures(learnt.calibration, learnt.test),
        "audit": None if audit is None else audit.summary(),
        "forgetting": None if forgetting is None else forgetting.summary(),
        "interpolate": task.config.interpolate,
        "changes": changes_record(changed),
    }


def _contents(
    task: Task, story: report.Story, feed: Feed, watch: Stopwatch, old: OldSet | None
) -> CheckpointContents:
    learnt = story.learnt
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
        metrics=metrics_record(task, learnt.fit, learnt.test)
        | {
            "depth": None if learnt.depth is None else asdict(learnt.depth),
            "calibration": calibration_record(learnt.calibration, learnt.test),
            "forgetting": None if learnt.forgetting is None else learnt.forgetting.record(),
            "interpolate": task.config.interpolate,
            "changes": changes_record(story.changes),
        },
        audit=None if learnt.audit is None else learnt.audit.to_json(),
        measurements={
            "seconds": watch.seconds,
            "batch_size": learnt.fit.batch_size,
            "processes": task.processes.count,
            "activation_cache": asdict(feed.use),
            "host": this_host().to_json(),
        },
        report=lambda digest: report.render(story, digest),
    )
