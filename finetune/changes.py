"""What going on from a checkpoint changed: its answers on test before and after, old rows and new.

Old rows are those of the checkpoint's own test split; new ones came with ``--add``. A model that
learns what feedback teaches and unlearns something else shows it here and nowhere in the total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.finetune.evaluate import Answers
from edgewright.finetune.task import Task
from edgewright.metrics import accuracy_interval
from edgewright.report import Block, DataTable, Paragraph, Section


@dataclass(frozen=True)
class Change:
    """Rows of test that are ``which`` ("old" or "new"): how many were right before and after.

    ``lost`` were right before and are wrong now, ``won`` the reverse.
    """

    which: str
    n: int
    right_before: int
    right_after: int
    lost: int
    won: int


def answers_before(task: Task) -> Answers | None:
    """What the checkpoint that the run goes on from answers on test; None without one.

    Of the logits of a head that grows, those of the new labels were drawn, and are left out.
    """
    checkpoint = task.start.checkpoint
    if checkpoint is None:
        return None
    answers = task.answers("test")
    return replace(answers, logits=answers.logits[:, : len(checkpoint.labels)])


def changes(task: Task, before: Answers | None, after: Answers) -> tuple[Change, ...]:
    """Of old and of new test rows, where there are any; empty without a checkpoint."""
    checkpoint = task.start.checkpoint
    if checkpoint is None or before is None or not len(after.labels):
        return ()
    known = set(checkpoint.examples().split("test").ids)
    is_old = np.array([key in known for key in task.examples.split("test").ids])
    was = before.logits.argmax(axis=1) == before.labels
    now = after.logits.argmax(axis=1) == after.labels
    both = (_change("old", was[is_old], now[is_old]), _change("new", was[~is_old], now[~is_old]))
    return tuple(change for change in both if change.n)


def changes_record(told: Sequence[Change]) -> dict[str, Any]:
    """As metrics.json and --json hold it, by "old" and "new"."""
    return {
        change.which: {
            **asdict(change),
            "accuracy_before": change.right_before / change.n,
            "accuracy_after": change.right_after / change.n,
        }
        for change in told
    }


def changes_sections(told: Sequence[Change]) -> list[Section]:
    """The report's table; none where the run began from a pre-trained model."""
    if not told:
        return []
    columns = ["test rows", "n", "before", "after", "right before, wrong now", "the reverse"]
    blocks: list[Block] = [DataTable(columns, [_row(change) for change in told])]
    if not any(change.which == "new" for change in told):
        blocks.append(Paragraph("No new row fell to test."))
    intro = "Accuracy of the checkpoint that was gone on from and of this one, on the same rows."
    return [Section("What changed", blocks, intro)]


def _change(which: str, was: NDArray[np.bool_], now: NDArray[np.bool_]) -> Change:
    return Change(
        which,
        len(was),
        int(was.sum()),
        int(now.sum()),
        lost=int((was & ~now).sum()),
        won=int((~was & now).sum()),
    )


def _row(change: Change) -> list[str]:
    return [
        {"old": "of the checkpoint", "new": "added"}[change.which],
        str(change.n),
        _share(change.right_before, change.n),
        _share(change.right_after, change.n),
        str(change.lost),
        str(change.won),
    ]


def _share(right: int, n: int) -> str:
    low, high = accuracy_interval(right, n)
    return f"{right / n:.1%} ({low:.1%} to {high:.1%})"
