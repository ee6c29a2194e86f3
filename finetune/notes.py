"""What a run says while it goes on, for the person who watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from edgewright.finetune.audit import Audit
from edgewright.finetune.feed import Feed
from edgewright.finetune.forgetting import Forgetting
from edgewright.finetune.recipe import Epoch, Recipe
from edgewright.finetune.summary import lora_words, millions
from edgewright.finetune.task import Task
from edgewright.output import Output

_LINE_EACH_S: Final = 60.0
_MANY_UNKNOWN: Final = 0.01  # of the texts


def tell_task(task: Task, output: Output) -> None:
    """The data and what trains."""
    for note in task.dataset.notes:
        output.note(note)
    for warning in task.dataset.warnings:
        output.warn(warning)
    config, part = task.config, task.part
    output.note(
        f"{len(task.rows['train'].labels)} train rows, {len(task.examples.label_names)} labels; "
        f"{part.blocks} of {part.of} blocks frozen, {millions(task.trainable_parameters)} of "
        f"{millions(task.parameters)} parameters train; lr {config.lr:g}, {config.device} "
        f"{config.precision}, threads {config.threads}"
        + (f" in each of {task.processes.count} processes" if task.processes.count > 1 else "")
    )
    if task.adapters is not None:
        output.note(f"LoRA {lora_words(task.adapters.record())}")
    if config.max_length is not None:
        output.note(
            f"{task.truncated:.1%} of the texts are longer than {config.max_length} tokens and "
            "are cut"
        )
    if task.unknown >= _MANY_UNKNOWN:
        output.warn(
            f"of {task.unknown:.1%} of the texts the tokenizer knows less than half, and the model "
            "sees the rest as one and the same token; give a --model made for their language"
        )
    if not len(task.rows["validation"].labels):
        output.warn("there are no validation rows: no early stopping, the last epoch is kept")


def tell_feed(task: Task, feed: Feed, output: Output) -> None:
    """Whether the frozen part is cached, and why; which images training shows."""
    config = task.config
    if task.part.blocks:
        how = "computed once and cached" if feed.use.used else "computed in every pass"
        output.note(f"the frozen part is {how}: {feed.use.reason}")
    if config.augment != "none":
        shown = "a new view in every epoch, computed live"
        if config.augment_views is not None:
            kept = "cached" if feed.use.used else "computed live"
            shown = f"{config.augment_views} views in turn, {kept}"
        output.note(f"--augment {config.augment} shows of each training image {shown}")


def tell_audit(audit: Audit | None, output: Output) -> None:
    """What the audit found."""
    for note in () if audit is None else audit.notes:
        output.note(note)


def tell_epoch(epoch: Epoch, recipe: Recipe, output: Output) -> None:
    """Losses and scores of one epoch."""
    line = f"epoch {epoch.number}/{recipe.epochs}  train loss {epoch.train_loss:.4f}"
    if epoch.validation is not None:
        scores = epoch.validation
        line += (
            f"  validation loss {scores.loss:.4f}  accuracy {scores.accuracy:.4f}  "
            f"macro-F1 {scores.macro_f1:.4f}"
        )
    output.note(line)


class StepLines:
    """How far training is, once a minute, where no bar shows it: a log file is silent else."""

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._output, self._clock, self._told_at = output, clock, clock()

    def tell(self, line: str) -> None:
        """Write ``line``, unless another was written less than a minute ago."""
        now = self._clock()
        if not self._output.draws_bars and now - self._told_at >= _LINE_EACH_S:
            self._told_at = now
            self._output.note(line)


def tell_forgetting(forgetting: Forgetting | None, output: Output) -> None:
    """What the model still knows of what it knew."""
    if forgetting is None:
        return
    told = forgetting.summary()
    output.note(
        f"{told['metric'].replace('_', ' ')} {told['before']:.3f} before, {told['after']:.3f} "
        f"after, {told['written']:.3f} as written ({forgetting.probe.reason})"
    )
