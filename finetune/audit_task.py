"""The audit of a task that is ready to train."""

from __future__ import annotations

import numpy as np

from edgewright.finetune.audit import Audit, AuditedRows, FeatureAudit, Lengths
from edgewright.finetune.features import RowSubset, pooled_features
from edgewright.finetune.findings import SHOWN
from edgewright.finetune.probe import Features
from edgewright.finetune.task import Task


def audit_task(task: Task) -> Audit | None:
    """Audit the task's examples with its model as it is, pre-trained; None where that is off."""
    if task.tables is None:
        return None
    names = task.examples.label_names
    lengths = Lengths.of(task.rows, task.preprocessor.max_length)
    if task.config.audit != "full":
        return Audit(task.config.audit, names, task.tables, lengths)
    rows = AuditedRows.draw(task.examples, seed=task.config.seed)
    judged = FeatureAudit.of(rows, _features(task, rows), len(names), seed=task.config.seed)
    return Audit(task.config.audit, names, task.tables, lengths, judged)


def _features(task: Task, rows: AuditedRows) -> Features:
    """The encoder's features of the audited rows, in their order."""
    sizes = {name: len(task.rows[name].labels) for name in SHOWN}
    parts = [
        pooled_features(task.model, RowSubset(task.rows[name], chosen), task.device)
        for name, chosen in rows.by_split(sizes).items()
        if len(chosen)
    ]
    return np.concatenate(parts)
