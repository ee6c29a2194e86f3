"""Forgetting: what the model still knows of what it knew, and what mixing in old weights brings.

One of three probes: the accuracy on old examples where the user gives some, else masked tokens
where a model of texts came with its masked-language head, else nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from edgewright.finetune.batch_statistics import BatchNorm, measure_first_epoch
from edgewright.finetune.batches import Rows, RowSubset
from edgewright.finetune.evaluate import predict_logits, score
from edgewright.finetune.interpolation import SHARES, Movement, fresh_tensors
from edgewright.finetune.masked_probe import MaskedProbe
from edgewright.finetune.neighbour_probe import NeighbourProbe
from edgewright.finetune.old_set import OldSet, OldSetProbe, paired_change
from edgewright.finetune.probe import Probe, Reading
from edgewright.finetune.task import Task, example_rows
from edgewright.kinds import TEXT

_SWEPT_ROWS: Final = 400  # of validation; each of eleven mixtures answers them


@dataclass(frozen=True)
class Mixture:
    """The weights old + share * (new - old), on validation and in the eyes of the probe."""

    share: float
    validation_accuracy: float | None  # None where there are no validation rows
    retained: float


@dataclass(frozen=True, eq=False)
class Forgetting:
    """A probe's readings of the weights before training, after it, and as they are written."""

    probe: Probe
    after: Reading
    written: Reading  # the same as ``after`` unless weights are mixed
    sweep: tuple[Mixture, ...]  # empty unless asked for
    head_stays_new: bool
    swept_rows: int  # of validation

    @property
    def before(self) -> Reading:
        """Of the old weights."""
        return self.probe.before

    def summary(self) -> dict[str, Any]:
        """The probe and its figure, for ``--json``."""
        name = self.probe.metric
        readings = {"before": self.before, "after": self.after, "written": self.written}
        figures = {when: reading.figures[name] for when, reading in readings.items()}
        return {"probe": self.probe.name, "metric": name, "rows": self.probe.rows, **figures}

    def record(self) -> dict[str, Any]:
        """Everything, for metrics.json."""
        readings = {"before": self.before, "after": self.after, "written": self.written}
        paired = paired_change(self.before, self.written)
        return {
            "probe": self.probe.name,
            "reason": self.probe.reason,
            "metric": self.probe.metric,
            "rows": self.probe.rows,
            **{when: dict(reading.figures) for when, reading in readings.items()},
            "change": None
            if paired is None
            else {"lost": paired[0], "gained": paired[1], "interval": list(paired[2])},
            "sweep": [
                {
                    "share": each.share,
                    "validation_accuracy": each.validation_accuracy,
                    "retained": each.retained,
                }
                for each in self.sweep
            ],
            "swept_rows": self.swept_rows,
            "head_stays_new": self.head_stays_new,
        }


def settle_weights(task: Task, old: OldSet | None) -> Forgetting | None:
    """Leave the trained model of ``task`` with the weights that are to be written.

    They are the new ones, or with --interpolate a mixture. On the way there, unless --forgetting is
    off, the old ones and others are looked at. The old weights are loaded again from where the run
    started, so that nothing of them is held while training.

    Returns:
        What the probe found; None where it was not asked.
    """
    share = 1.0 if task.config.interpolate is None else task.config.interpolate
    if task.config.forgetting == "off" and share == 1:
        return None
    examples = task.examples
    before = task.start.load(examples.label_names, seed=task.config.seed, kind=examples.kind)
    movement = Movement.between(before, task.model, _fresh(task))
    del before
    if task.config.forgetting == "off":
        _mix(task, movement, share)
        return None
    return _look(task, old, movement, share)


def _look(task: Task, old: OldSet | None, movement: Movement, share: float) -> Forgetting:
    movement.restore(task.model)
    probe = choose_probe(task, old)
    _mix(task, movement, 1.0)
    after = probe.read(task.model)
    validation = RowSubset.draw(task.rows["validation"], _SWEPT_ROWS, seed=task.config.seed)
    sweep: tuple[Mixture, ...] = ()
    if task.config.forgetting == "full":
        sweep = tuple(_mixtures(task, probe, movement, validation, share))
    _mix(task, movement, share)
    written = after if share == 1 else probe.read(task.model)
    swept = len(validation.labels) if sweep else 0
    return Forgetting(probe, after, written, sweep, bool(movement.fresh), swept)


def choose_probe(task: Task, old: OldSet | None) -> Probe:
    """The probe nearest to what the model was made for; ``task.model`` holds its old weights."""
    validation, seed = task.rows["validation"], task.config.seed
    if old is not None:
        rows = example_rows(task.preprocessor, old.ids, old.contents, old.labels)
        return OldSetProbe.of(task.model, old, rows, task.device)
    why = "no old examples were given, and images have no words to hide"
    if task.examples.kind is TEXT:
        masked = MaskedProbe.of(task.start.folder, validation, task.device, seed=seed)
        if masked is not None:
            return masked
        why = "no old examples were given, and no masked-language head could be asked"
    return NeighbourProbe.of(
        task.model, validation, task.rows["train"], task.device, seed=seed, why=why
    )


def _mixtures(
    task: Task, probe: Probe, movement: Movement, validation: Rows, written: float
) -> Iterator[Mixture]:
    for share in sorted({*SHARES, written}):
        _mix(task, movement, share)
        logits = predict_logits(task.model, validation, task.device, processes=task.processes)
        scores = score(validation.labels, logits)
        retained = probe.read(task.model).figures[probe.metric]
        yield Mixture(share, None if scores is None else scores.accuracy, retained)


def _mix(task: Task, movement: Movement, share: float) -> None:
    """Mix the weights; what moved of batch normalisations is measured for a mixture's own.

    Statistics mixed as weights are would be those of neither model, nor of the mixture.
    """
    movement.mix(task.model, share)
    if not 0 < share < 1:
        return
    measure_first_epoch(
        task.model,
        task.rows["train"],
        task.recipe,
        task.device,
        of=[
            module
            for name, module in task.model.named_modules()
            if isinstance(module, BatchNorm) and f"{name}.running_mean" in movement.old
        ],
    )


def _fresh(task: Task) -> frozenset[str]:
    """What has no old self: the head, unless the checkpoint of --from has one of these labels."""
    checkpoint = task.start.checkpoint
    if checkpoint is not None and checkpoint.labels == tuple(task.examples.label_names):
        return frozenset()
    return fresh_tensors(task.model, task.start.folder)
