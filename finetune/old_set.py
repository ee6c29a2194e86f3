"""The examples of the earlier task that the user gives with --old, and the probe on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.errors import DataError
from edgewright.examples import Columns, Examples, Image, Table, read_table, unknown_labels
from edgewright.examples.sources import gather
from edgewright.finetune.batches import Rows
from edgewright.finetune.evaluate import predict_logits
from edgewright.finetune.probe import Reading
from edgewright.manifest import canonical_json, sha256_bytes

# Held out for decisions that come later: whoever chooses a mixture by them has used them up.
_HELD_OUT: Final = ("calibrate", "search", "certify", "test")


@dataclass(frozen=True, eq=False)
class OldSet:
    """Labelled examples of the earlier task; ``labels`` (rows,) are indices into its classes."""

    source: str
    ids: Sequence[str]
    contents: Sequence[str] | Sequence[Image]
    labels: NDArray[np.int64]
    classes: int
    trained: int  # how many of them are train rows of this run
    set_aside: int  # rows left out, being held out here or of two labels

    @property
    def sha256(self) -> str:
        """Identifies the examples (by id) and their labels."""
        return sha256_bytes(canonical_json([list(self.ids), self.labels.tolist()]))


def read_old_set(
    source: str, columns: Columns, label_names: Sequence[str], examples: Examples
) -> OldSet:
    """Read ``source``; each example counts once, and rows held out for later decisions do not.

    Args:
        source: as in ``read_table``.
        columns: names of its columns.
        label_names: classes of the checkpoint, in the order of its logits.
        examples: of this run, with their splits.

    Raises:
        DataError: it cannot be read, has a label the checkpoint does not know, or no row is left.
    """
    table = read_table(source, columns)
    if table.kind is not examples.kind:
        raise DataError(
            f"--old {source}: holds {table.kind.many}, and the model reads {examples.kind.many}"
        )
    _refuse_unknown(table, label_names)
    split_of = dict(zip(examples.ids, examples.splits, strict=True))
    gathered = gather([(table, None)])
    kept = {
        key: row
        for key, row in gathered.items()
        if not row.conflicting and split_of.get(key) not in _HELD_OUT
    }
    if not kept:
        raise DataError(
            f"--old {source}: no row is left to measure on: {len(gathered)} {table.kind.many} are "
            f"held out by the checkpoint ({', '.join(_HELD_OUT)}) or have two labels; give other "
            "rows"
        )
    index_of = {name: index for index, name in enumerate(label_names)}
    contents: list[Any] = [row.content for row in kept.values()]
    splits = Counter(split_of.get(key) for key in kept)
    return OldSet(
        source,
        list(kept),
        contents,
        np.array([index_of[row.label] for row in kept.values()], np.int64),
        len(label_names),
        splits["train"],
        len(gathered) - len(kept),
    )


@dataclass(frozen=True, eq=False)
class OldSetProbe:
    """Accuracy on the old set, the same rows before and after."""

    inputs: Rows
    device: torch.device
    before: Reading
    reason: str
    name: str = "old examples"
    metric: str = "accuracy"

    @classmethod
    def of(cls, model: Any, old: OldSet, inputs: Rows, device: torch.device) -> OldSetProbe:
        """``inputs`` are the rows of ``old``; ``model`` holds its old weights."""
        before = _read(model, inputs, device, old.classes)
        reason = f"--old: {len(old.labels)} rows of {old.source}"
        if old.trained:
            reason += f", {old.trained} of which are train rows of this run too"
        if old.set_aside:
            reason += f"; {old.set_aside} left out, being held out or of two labels"
        return cls(inputs, device, before, reason)

    @property
    def rows(self) -> int:
        """How many rows are answered."""
        return len(self.inputs.labels)

    def read(self, model: Any) -> Reading:
        """Accuracy over all classes the model has by now."""
        return _read(model, self.inputs, self.device)


def paired_change(before: Reading, after: Reading) -> tuple[int, int, tuple[float, float]] | None:
    """Rows lost, rows gained, and the 95% interval of the change in accuracy; None if not by row.

    The interval is the exact one of ``edgewright.proof.bound``, each side at .025.
    """
    from edgewright.proof.bound import loss_lower_bound, loss_upper_bound

    if before.right is None or after.right is None:
        return None
    lost = int((before.right & ~after.right).sum())
    gained = int((~before.right & after.right).sum())
    rows = len(before.right)
    low = -loss_upper_bound(lost, gained, rows, 0.025)
    high = -loss_lower_bound(lost, gained, rows, 0.025)
    return lost, gained, (low, high)


def _read(model: Any, rows: Rows, device: torch.device, classes: int | None = None) -> Reading:
    """Accuracy by the first ``classes`` logits, all where None."""
    logits = predict_logits(model, rows, device)[:, :classes]
    right: NDArray[np.bool_] = logits.argmax(axis=1) == rows.labels
    return Reading({"accuracy": float(right.mean())}, right)


def _refuse_unknown(table: Table, label_names: Sequence[str]) -> None:
    if unknown := unknown_labels([table], label_names):
        raise DataError(
            f"--old has labels that the checkpoint of --from does not know: {unknown}. It knows "
            f"{', '.join(label_names)}"
        )
