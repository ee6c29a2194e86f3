"""What is learnt of a task's rows before training: the audit, and the head's start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from edgewright.finetune.audit import Audit, AuditedRows, FeatureAudit, Lengths
from edgewright.finetune.batch_statistics import measure_first_epoch, trained_normalisations
from edgewright.finetune.batches import Indices, Rows, RowSubset
from edgewright.finetune.device import autocast
from edgewright.finetune.feed import Feed
from edgewright.finetune.findings import SHOWN
from edgewright.finetune.head import find_head, start_head
from edgewright.finetune.interpolation import encoder_of
from edgewright.finetune.linear_probe import FIT_ROWS, Features
from edgewright.finetune.survey import Survey, survey
from edgewright.finetune.task import Task


@dataclass(frozen=True, eq=False)
class Surveyed:
    """One pass over the rows that the audit and the head's probe want.

    Attributes:
        audited: rows that ``audit_task`` judges by their features; None without ``--audit full``.
        head: the layer to start from a probe; None where it has learnt its labels already, is
            not wanted, or is of no form that a probe could start.
        places: by split, the rows looked at, ascending.
        seen: by split, what was seen of them.
    """

    audited: AuditedRows | None
    head: nn.Linear | None
    places: Mapping[str, Indices]
    seen: Mapping[str, Survey]

    def features(self, wanted: Mapping[str, Indices]) -> Features | None:
        """The encoder's features of these rows of each split, split after split.

        What the head reads stands for them where the model has no encoder of its own.
        """
        parts = []
        for name, chosen in wanted.items():
            if len(chosen):
                seen = self.seen[name]
                features = seen.head_inputs if seen.pooled is None else seen.pooled
                if features is None:
                    return None
                parts.append(features[np.searchsorted(self.places[name], chosen)])
        return np.concatenate(parts)


def survey_task(task: Task, feed: Feed, *, audited: bool = True) -> Surveyed:
    """Run the model as it is over the rows that a new head and, if wanted, the audit ask for.

    Not for a head of a model whose batch normalisations train: see ``start_as_trained``.
    """
    drawn = None
    wanted: dict[str, Indices] = {name: np.empty(0, np.int64) for name in SHOWN}
    if audited and task.config.audit == "full":
        drawn = AuditedRows.draw(task.examples, seed=task.config.seed)
        wanted = drawn.by_split(_sizes(task))
    encoder = encoder_of(task.model)
    starts = task.config.head_first and not task.start.has_head
    head = None
    if starts or (drawn is not None and encoder is None):
        head = find_head(task.model, task.probe_inputs(1))
    if head is not None and starts and not trained_normalisations(feed.model):
        wanted["train"] = np.union1d(wanted["train"], _probed(feed.rows["train"], task.config.seed))
    seen = {
        name: _look(task, feed.model, RowSubset(feed.rows[name], chosen), head, encoder)
        for name, chosen in wanted.items()
        if len(chosen)
    }
    return Surveyed(drawn, head if starts else None, wanted, seen)


def audit_task(task: Task, surveyed: Surveyed) -> Audit | None:
    """The audit of the task's examples; None where none is wanted, or another process audits."""
    if task.tables is None:
        return None
    names, limit = task.examples.label_names, task.config.max_length
    lengths = None if limit is None else Lengths.of(task.rows, limit)
    audited = surveyed.audited
    features = None if audited is None else surveyed.features(audited.by_split(_sizes(task)))
    if audited is None or features is None:
        return Audit(task.config.audit, names, task.tables, lengths)
    judged = FeatureAudit.of(audited, features, len(names), seed=task.config.seed)
    return Audit(task.config.audit, names, task.tables, lengths, judged)


def start_from_probe(task: Task, feed: Feed, surveyed: Surveyed) -> None:
    """Give a new head the weights of a linear probe on what it reads of the train rows."""
    if surveyed.head is None:
        return
    if trained_normalisations(feed.model):
        start_as_trained(task, feed.model, feed.rows["train"], surveyed.head)
        return
    features = surveyed.seen["train"].head_inputs
    if features is not None:
        labels = task.rows["train"].labels[surveyed.places["train"]]
        start_head(surveyed.head, features, labels, task.config.seed)


def start_as_trained(task: Task, model: nn.Module, rows: Rows, head: nn.Linear) -> None:
    """Start ``head`` from a probe on what ``model`` gives as it is normalised in training.

    There batch normalisations that train go by the rows of a batch, so what the head reads is
    not what the statistics of pre-training give, and a head that has learnt that is near chance
    from the first step on. These are given the statistics of ``rows`` first.
    """
    measure_first_epoch(model, rows, task.recipe, task.device)
    chosen = _probed(rows, task.config.seed)
    features = _look(task, model, RowSubset(rows, chosen), head).head_inputs
    if features is not None:
        start_head(head, features, rows.labels[chosen], task.config.seed)


def _look(
    task: Task,
    model: nn.Module,
    rows: Rows,
    head: nn.Module | None,
    encoder: nn.Module | None = None,
) -> Survey:
    return survey(
        model,
        rows,
        task.device,
        head=head,
        encoder=encoder,
        precision=lambda: autocast(task.device, task.recipe.precision),
        processes=task.processes,
    )


def _sizes(task: Task) -> dict[str, int]:
    return {name: len(task.rows[name].labels) for name in SHOWN}


def _probed(rows: Rows, seed: int) -> Indices:
    """Places of rows for the head's probe: as many as it reads, drawn by seed."""
    count = len(rows.labels)
    order = np.random.default_rng([seed, count]).permutation(count)
    return np.sort(order[:FIT_ROWS])
