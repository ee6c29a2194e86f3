"""The training loop: steps, epochs, the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.finetune.batch_statistics import (
    measure_statistics,
    rest_normalisations,
    trained_normalisations,
)
from edgewright.finetune.batches import (
    ChangingRows,
    Indices,
    Rows,
    micro_batches,
    to_device,
    training_steps,
)
from edgewright.finetune.device import autocast
from edgewright.finetune.evaluate import Scores
from edgewright.finetune.memory import is_out_of_memory, out_of_memory
from edgewright.finetune.processes import ALONE, Processes
from edgewright.finetune.recipe import Epoch, Fit, Recipe, Watcher
from edgewright.finetune.schedule import adamw, warmup_cosine
from edgewright.finetune.training_state import Progress, Saver, TrainingState

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")  # of AdamW


def fit(
    model: nn.Module,
    rows: Rows,
    recipe: Recipe,
    device: torch.device,
    *,
    validate: Callable[[], Scores | None],
    watcher: Watcher | None = None,
    saver: Saver | None = None,
    factors: Mapping[nn.Parameter, float] | None = None,
    processes: Processes = ALONE,
) -> Fit:
    """Train ``model`` in place on ``device`` and leave it with the weights of its best epoch.

    With a ``saver`` that holds a state the training goes on from there, and on the same CPU with
    the same number of threads ends in the bits in which it would have ended unbroken.

    Several processes train one model: each computes its share of every step's rows, and their
    gradients are added up, so that without dropout the losses are those of one process.

    Args:
        model: takes the inputs of ``rows`` by name and answers with ``.logits``.
        rows: what to train on.
        recipe: how.
        device: where the model is.
        validate: scores of the model as it is; None where there are no rows to score, then no
            epoch is better than another and the last one is kept.
        watcher: is told of steps, epochs and warnings.
        saver: keeps the state between steps.
        factors: of the learning rate, by parameter; see ``schedule.layer_factors``.
        processes: that train together, each with the same arguments.

    Raises:
        ConfigError: the loss or the gradient is not finite, one row does not fit in memory, or
            this model does not train in several processes.
    """
    watcher, saver = watcher or Watcher(), saver or Saver.none()
    training = _Training(model, rows, recipe, device, watcher, factors, processes)
    with _dropout_seed_restored(device):
        training.resume(processes.by_first(saver.load))
        training.share_weights()
        while not training.is_finished:
            number = training.epoch
            train_loss, lr = training.run_epoch(saver)
            epoch = Epoch(number, lr, train_loss, training.judge(validate))
            training.end_epoch(epoch)
            watcher.on_epoch(epoch)
            saver.save(training.state)
    training.best.restore(model)
    epochs, best = tuple(training.epochs), training.best.epoch
    return Fit(epochs, best, training.batch_size, len(epochs) < recipe.epochs)


@dataclass
class _Best:
    """The best epoch so far and a copy, on the CPU, of what trained by then."""

    metric: str
    epoch: Epoch = field(init=False)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, epoch: Epoch, model: nn.Module) -> None:
        """Keep ``epoch`` when it is better than the best, or cannot be compared."""
        comparable = self.weights and epoch.validation is not None
        if comparable and epoch.value(self.metric) <= self.epoch.value(self.metric):
            return
        self.epoch = epoch
        self.weights = _copies(model)

    def restore(self, model: nn.Module) -> None:
        """Put the kept weights back."""
        _put(model, self.weights)


class _Training:
    """The state that steps share."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        recipe: Recipe,
        device: torch.device,
        watcher: Watcher,
        factors: Mapping[nn.Parameter, float] | None,
        processes: Processes,
    ) -> None:
        refuse_processes(processes, model, recipe.step_rows)
        self.model, self.rows, self.recipe = model, rows, recipe
        self.device, self.watcher, self.processes = device, watcher, processes
        self.batch_size = recipe.batch_size
        self.epoch, self.losses = 1, list[float]()
        self.epochs: list[Epoch] = []
        self.best = _Best(recipe.metric)
        self.optimizer = adamw(
            model, lr=recipe.lr, weight_decay=recipe.weight_decay, factors=factors
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        # A batch normalisation needs two values by channel, and one picture may give a single one.
        self.least_rows = 2 if trained_normalisations(model) else 1
        self.steps_per_epoch = math.ceil(len(rows.labels) / recipe.step_rows)
        weights = recipe.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=device)

    @property
    def is_finished(self) -> bool:
        """Whether every epoch is run, or none was better for as many as the patience."""
        done = self.epoch - 1
        return done >= self.recipe.epochs or (
            done > 0 and done - self.best.epoch.number >= self.recipe.patience
        )

    def run_epoch(self, saver: Saver) -> tuple[float, float]:
        """Train on every row once, or on those that are left of an epoch begun before.

        Returns:
            The mean loss of its steps and the last learning rate.
        """
        recipe, number = self.recipe, self.epoch
        self.model.train()
        rest_normalisations(self.model)
        if isinstance(self.rows, ChangingRows):
            self.rows = self.rows.for_epoch(number)
        steps = training_steps(
            self.rows.lengths,
            recipe.step_rows,
            seed=recipe.seed,
            epoch=number,
            least=self.least_rows,
        )
        total = recipe.epochs * self.steps_per_epoch
        lr = 0.0
        for index in range(len(self.losses), len(steps)):
            done = (number - 1) * self.steps_per_epoch + index
            lr = recipe.lr * warmup_cosine(done, total, recipe.warmup)
            torch.manual_seed(_dropout_seed(recipe.seed, number, index, self.processes.rank))
            self.losses.append(self._step(steps[index], lr))
            self.watcher.on_step(number, index + 1, self.losses[-1])
            if index + 1 < len(steps):
                saver.save_now_and_then(self.state)
        self.share_weights()
        self._measure_statistics(steps)
        return float(np.mean(self.losses)), lr

    def share_weights(self) -> None:
        """Make the processes' weights those of the first: unlike CPUs round unlike."""
        self.processes.copy_first(tensor for _, tensor in _moving(self.model))

    def judge(self, validate: Callable[[], Scores | None]) -> Scores | None:
        """The scores of the model as it is, by which every process goes on or stops."""
        scores = validate()
        return _checked(self.processes.by_first(lambda: scores), self.epoch)

    def end_epoch(self, epoch: Epoch) -> None:
        """Count it, and keep its weights where it is the best."""
        self.epochs.append(epoch)
        self.best.offer(epoch, self.model)
        self.epoch, self.losses = epoch.number + 1, []

    def state(self) -> TrainingState:
        """All that the next step depends on."""
        moments = [self.optimizer.state.get(each, {}) for each in self._parameters]
        tensors = {f"model/{name}": tensor for name, tensor in _moving(self.model)}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.weights.items()}
        tensors |= {
            f"moment/{index}/{name}": moment[name]
            for index, moment in enumerate(moments)
            for name in _MOMENTS
            if moment
        }
        progress = Progress(
            self.epoch,
            self.losses,
            self.batch_size,
            [asdict(each) for each in self.epochs],
            self.best.epoch.number if self.epochs else 0,
            [float(moment["step"]) if moment else 0.0 for moment in moments],
            self.scaler.state_dict(),
        )
        return TrainingState(progress, tensors)

    def resume(self, state: TrainingState | None) -> None:
        """Go on from ``state``; None begins."""
        if state is None:
            return
        progress = state.progress
        self.epoch, self.losses = progress.epoch, list(progress.losses)
        self.batch_size = progress.batch_size
        self.epochs = [_read_epoch(each) for each in progress.epochs]
        if progress.best:
            self.best.epoch = self.epochs[progress.best - 1]
            self.best.weights = state.part("best")
        _put(self.model, state.part("model"))
        self._resume_optimizer(state)
        if progress.scaler:
            self.scaler.load_state_dict(dict(progress.scaler))

    def _resume_optimizer(self, state: TrainingState) -> None:
        for index, (parameter, step) in enumerate(
            zip(self._parameters, state.progress.optimizer_steps, strict=True)
        ):
            moments = state.part(f"moment/{index}")
            if moments:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(step, dtype=torch.float32, device=parameter.device),
                    **{name: each.to(parameter.device) for name, each in moments.items()},
                }

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [each for group in self.optimizer.param_groups for each in group["params"]]

    def _step(self, step: Indices, lr: float) -> float:
        """One optimiser step over the rows ``step``; its loss."""
        labels = torch.from_numpy(self.rows.labels[step])
        weight = float(self._weight_of(labels.to(self.device)))
        own = step[self.processes.mine]
        loss = self._gradients(own, weight)
        while loss is None:
            self._halve_batch()
            loss = self._gradients(own, weight)
        loss = self.processes.add_gradients(self._parameters, loss)
        if not math.isfinite(loss):
            raise ConfigError(self._diverged(f"the loss became {loss}"))
        self._update(lr)
        return loss

    def _measure_statistics(self, steps: list[Indices]) -> None:
        measure_statistics(
            self.model,
            self.rows,
            steps,
            self.device,
            batch_size=max(self.batch_size, self.least_rows),
            precision=self.recipe.precision,
        )

    def _gradients(self, rows: Indices, weight: float) -> float | None:
        """Accumulate the gradient of the rows' loss / ``weight``; None when memory ran out."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        try:
            for batch in micro_batches(rows, self.batch_size, self.least_rows):
                loss = self._loss(batch) / weight
                torch.autograd.backward(self.scaler.scale(loss))
                total += loss.item()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return total

    def _loss(self, batch: Indices) -> torch.Tensor:
        """The summed loss of ``batch``, weighted by class."""
        inputs = to_device(self.rows.inputs(batch), self.device)
        labels = torch.from_numpy(self.rows.labels[batch]).to(self.device)
        with autocast(self.device, self.recipe.precision):
            logits = self.model(**inputs).logits
        return nn.functional.cross_entropy(
            logits.float(), labels, weight=self.class_weights, reduction="sum"
        )

    def _weight_of(self, labels: torch.Tensor) -> torch.Tensor | int:
        return len(labels) if self.class_weights is None else self.class_weights[labels].sum()

    def _update(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.scaler.unscale_(self.optimizer)
        limit = self.recipe.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self._parameters, limit))
        # With a scaler an overflow is expected: the step is skipped and the scale lowered.
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise ConfigError(self._diverged(f"the gradient's norm became {norm}"))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _halve_batch(self) -> None:
        halved = self.batch_size // 2
        if halved < self.least_rows:
            raise ConfigError(out_of_memory(self.batch_size))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        passes = math.ceil(self.recipe.step_rows / halved)
        self.watcher.on_warning(
            f"out of memory: the batch of {self.batch_size} rows is halved to {halved}, "
            f"{passes} of them to a step, so that a step still has {self.recipe.step_rows} rows"
        )
        self.batch_size = halved

    def _diverged(self, what: str) -> str:
        cure = "--precision fp32 or " if self.recipe.precision == "fp16" else ""
        return f"training diverged: {what}; try {cure}a --lr below {self.recipe.lr:g}"


def _checked(scores: Scores | None, epoch: int) -> Scores | None:
    if scores is not None and not math.isfinite(scores.loss):
        raise ConfigError(
            f"training diverged: the validation loss became {scores.loss} in epoch {epoch}; "
            "try a lower --lr"
        )
    return scores


def refuse_processes(processes: Processes, model: nn.Module, step_rows: int) -> None:
    """Refuse what several processes cannot train as one would.

    Raises:
        ConfigError: rows of a step depend on each other, or are fewer than the processes.
    """
    if processes.count == 1:
        return
    if trained_normalisations(model):
        raise ConfigError(
            f"{processes.count} processes: this model has batch normalisations that train, and "
            "each process would normalise by its own rows; start one process, or --freeze all of "
            "its blocks"
        )
    if step_rows < processes.count:
        raise ConfigError(
            f"{processes.count} processes share the rows of a step, which are {step_rows}; start "
            f"fewer, or give a --batch-size of {processes.count} or more"
        )


def _moving(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What training changes: parameters that train, and buffers."""
    yield from ((name, each) for name, each in model.named_parameters() if each.requires_grad)
    yield from model.named_buffers()


def _copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in _moving(model)}


def _put(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _moving(model):
            tensor.copy_(weights[name])


def _read_epoch(record: Mapping[str, Any]) -> Epoch:
    scores = record["validation"]
    return Epoch(**{**record, "validation": None if scores is None else Scores(**scores)})


def _dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Of one step in one process, so that a step does not depend on how it was reached."""
    return int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0])


@contextmanager
def _dropout_seed_restored(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were found; dropout has no others."""
    devices: list[Any] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
