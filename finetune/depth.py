"""``--freeze auto``: how many blocks to freeze, found by trying.

Five depths compete on validation by successive halving (Jamieson and Talwalkar 2016): each trains
on a few rows, the better ones on more, and of those the deepest within one paired standard error of
the best wins: deeper is cheaper to train and keeps more of what the model knew. All start from the
same weights and head. One pass of the encoder fills the caches of every depth. Where there are few
rows the same is done in folds, so that each row is judged once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright.errors import ConfigError
from edgewright.finetune.activation_cache import ActivationCache, CacheUse
from edgewright.finetune.audit_task import start_as_trained, start_from_probe, survey_task
from edgewright.finetune.batch_statistics import trained_normalisations
from edgewright.finetune.batches import Indices, Rows, RowSubset
from edgewright.finetune.evaluate import Logits, cross_entropy, predict_logits
from edgewright.finetune.feed import Feed, Keep, open_caches
from edgewright.finetune.freeze import find_blocks, find_part, hold, thaw
from edgewright.finetune.linear_probe import FIT_ROWS, fit_probe
from edgewright.finetune.task import ExampleRows, Task
from edgewright.finetune.train import fit
from edgewright.output import Output

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
RUNGS: Final = ((256, 3), (768, 1))  # train rows of a try, and how many depths go on
FEW_ROWS: Final = 500  # of train and validation together; fewer are tried in folds
FOLDS: Final = 3  # and rows, to be judged by at all
_ROUNDING: Final = 1e-9  # one row behind is one standard error, but for this


@dataclass(frozen=True)
class Try:
    """One depth trained on some rows and judged on others."""

    rows: int
    n: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Candidate:
    """A depth and how it did; ``behind`` is the accuracy lost to the best, with its error."""

    blocks: int
    probe_accuracy: float | None  # of a linear probe on the frozen part's answer
    tries: tuple[Try, ...]
    behind: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True)
class DepthChoice:
    """The depth chosen, and all that were tried, from shallow to deep."""

    blocks: int
    of: int
    candidates: tuple[Candidate, ...]
    folds: int  # 1: judged on the validation split

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any]) -> DepthChoice:
        """The inverse of ``dataclasses.asdict``."""
        candidates = tuple(
            Candidate(**{**each, "tries": tuple(Try(**one) for one in each["tries"])})
            for each in record["candidates"]
        )
        return cls(**{**record, "candidates": candidates})


def choose_depth(
    task: Task,
    output: Output,
    decided: CacheUse | None = None,
    keep: Keep = lambda _use: None,
) -> DepthChoice:
    """Try the depths of ``SHARES`` and choose one.

    The model is left as it was, but for a new head, which may be started from a linear probe.
    Whether the frozen parts are cached was ``decided`` by a run gone on with, or ``keep`` is told.

    Raises:
        ConfigError: the model's blocks are not recognised, or there are too few rows.
    """
    of = len(find_blocks(task.model))
    _refuse_too_few(len(task.rows["train"].labels) + len(task.rows["validation"].labels), of)
    depths = sorted({round(share * of) for share in SHARES})
    if task.config.lora is not None:
        depths.remove(of)  # adapters go into blocks that are not frozen
    race = _Race.open(task, depths, output, decided, keep)
    racing = list(depths)
    for rows, survivors in RUNGS:
        for depth in racing:
            if race.has_more(depth, rows):
                race.run(depth, rows)
                output.note(_line(depth, of, race.last(depth)))
        if survivors > 1:
            racing = task.processes.by_first(partial(race.fittest, racing, survivors))
    behind = {depth: race.behind(depth, race.best(racing)) for depth in racing}
    chosen = task.processes.by_first(
        lambda: max(depth for depth, (lost, error) in behind.items() if lost <= error + _ROUNDING)
    )
    candidates = tuple(
        Candidate(depth, race.probe(depth), tuple(race.tries[depth]), *behind.get(depth, ()))
        for depth in depths
    )
    output.note(f"--freeze auto: {chosen} of {of} blocks")
    return DepthChoice(chosen, of, candidates, len(race.folds))


def _refuse_too_few(rows: int, of: int) -> None:
    if rows < FOLDS:
        raise ConfigError(
            f"--freeze auto: train and validation have too few rows ({rows}) to tell which depth "
            f"is best; give more, or a number of blocks, as --freeze {of // 2}"
        )


def _line(depth: int, of: int, judged: Try) -> str:
    return (
        f"  {depth} of {of} blocks frozen, after {judged.rows} rows: accuracy "
        f"{judged.accuracy:.4f}, loss {judged.loss:.4f}, of {judged.n} rows"
    )


@dataclass(frozen=True, eq=False)
class _Fold:
    """Rows to train on and rows to judge by, as places in train and validation together."""

    train: Indices
    judged: Indices


class _Race:
    """Depths that train from the same start, on rows of train and validation together.

    But for a new ``head`` of a model with batch normalisations: what it reads at first depends on
    how many of them train, so each depth starts it anew. None where there is none to start so.
    """

    def __init__(
        self,
        task: Task,
        rows: ExampleRows,
        caches: Mapping[int, ActivationCache],
        head: nn.Linear | None,
    ) -> None:
        self.task, self.rows, self.caches, self.head = task, rows, caches, head
        self.folds = _folds(len(task.rows["train"].labels), len(rows.labels), task.config.seed)
        self.start = {name: each.detach().clone() for name, each in _state(task.model)}
        self.tries: dict[int, list[Try]] = {}
        self.right: dict[int, NDArray[np.bool_]] = {}

    @classmethod
    def open(
        cls,
        task: Task,
        depths: Sequence[int],
        output: Output,
        decided: CacheUse | None,
        keep: Keep,
    ) -> _Race:
        inputs = task.probe_inputs(1)
        parts = [find_part(task.model, depth, inputs) for depth in depths if depth]
        caches = open_caches(task, parts, output, decided, keep)
        if isinstance(caches, str):
            keep(CacheUse(False, caches))
            output.note(f"every depth computes its frozen part anew: {caches}")
            caches = []
        feed = Feed.cached(task, caches[-1]) if caches else Feed.live(task, "")
        seen = survey_task(task, feed, audited=False)
        anew = bool(trained_normalisations(task.model))
        if not anew:
            start_from_probe(task, feed, seen)
        rows = task.rows["train"].joined(task.rows["validation"])
        by_depth = {cache.cut.blocks: cache for cache in caches}
        return cls(task, rows, by_depth, seen.head if anew else None)

    def run(self, depth: int, rows: int) -> None:
        """Train at this depth, judge, and put the weights back."""
        chosen = [_spread(fold.train, rows, self.task.config.seed) for fold in self.folds]
        logits = [
            self._logits(depth, train, fold.judged)
            for train, fold in zip(chosen, self.folds, strict=True)
        ]
        answers = np.concatenate(logits)
        labels = self.rows.labels[np.concatenate([fold.judged for fold in self.folds])]
        self.right[depth] = answers.argmax(axis=1) == labels
        loss = float(cross_entropy(labels, answers).mean())
        judged = Try(len(chosen[0]), len(labels), float(self.right[depth].mean()), loss)
        self.tries.setdefault(depth, []).append(judged)

    def has_more(self, depth: int, rows: int) -> bool:
        """Whether training on ``rows`` would be on more than before."""
        available = min(len(fold.train) for fold in self.folds)
        return depth not in self.tries or self.last(depth).rows < min(rows, available)

    def last(self, depth: int) -> Try:
        return self.tries[depth][-1]

    def fittest(self, depths: Sequence[int], count: int) -> list[int]:
        """The ``count`` of least loss, from shallow to deep."""
        return sorted(sorted(depths, key=lambda depth: self.last(depth).loss)[:count])

    def best(self, depths: Sequence[int]) -> int:
        return max(depths, key=lambda depth: (self.last(depth).accuracy, depth))

    def behind(self, depth: int, best: int) -> tuple[float, float]:
        """Accuracy lost to the best, and its standard error, over the rows that both judged."""
        lost = self.right[best].astype(float) - self.right[depth]
        return float(lost.mean()), float(lost.std(ddof=1) / np.sqrt(len(lost)))

    def probe(self, depth: int) -> float | None:
        """Accuracy on the first fold of a linear probe on the mean of a row's activations."""
        if depth not in self.caches:
            return None
        fold, labels = self.folds[0], self.rows.labels
        train, seed = _spread(fold.train, FIT_ROWS, self.task.config.seed), self.task.config.seed
        cached = self.caches[depth].rows(self.rows)
        classes = len(self.task.examples.label_names)
        weight, bias = fit_probe(cached.means(train), labels[train], classes, seed=seed)
        predicted = (cached.means(fold.judged) @ weight.T + bias).argmax(axis=1)
        return float((predicted == labels[fold.judged]).mean())

    def _logits(self, depth: int, train: Indices, judged: Indices) -> Logits:
        task = self.task
        cache = self.caches.get(depth)
        model = task.model if cache is None else cache.model()
        rows: Rows = self.rows if cache is None else cache.rows(self.rows)
        part = find_part(task.model, depth, task.probe_inputs(1))
        hold(part)
        recipe = replace(task.recipe, epochs=1, lr=task.rate(depth))
        adapters = task.adapt(depth)
        shown = RowSubset(rows, train)
        try:
            if self.head is not None:
                start_as_trained(task, model, shown, self.head)
            fit(
                model,
                shown,
                recipe,
                task.device,
                validate=lambda: None,
                processes=task.processes,
            )
            return predict_logits(
                model, RowSubset(rows, judged), task.device, processes=task.processes
            )
        finally:
            if adapters is not None:
                adapters.remove()
            thaw(part)
            with torch.no_grad():
                for name, tensor in _state(task.model):
                    tensor.copy_(self.start[name])


def _folds(train: int, rows: int, seed: int) -> list[_Fold]:
    """Train and validation as they are; several folds of both where they are few."""
    if rows >= FEW_ROWS and train < rows:
        return [_Fold(np.arange(train), np.arange(train, rows))]
    fold_of = np.random.default_rng([seed, rows]).permutation(rows) % FOLDS
    return [_Fold(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in range(FOLDS)]


def _spread(rows: Indices, count: int, seed: int) -> Indices:
    """``count`` of the rows, drawn by seed: the same for every depth, and a larger draw's first."""
    return np.random.default_rng([seed, len(rows)]).permutation(rows)[:count]


def _state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
