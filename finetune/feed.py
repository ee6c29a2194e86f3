"""What training calls in every step: the model on its inputs, or the rest of it on cached ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.finetune.activation_cache import ActivationCache, CachePlan, CacheUse, fill_cache
from edgewright.finetune.batches import Rows
from edgewright.finetune.cached_rows import KeyedRows
from edgewright.finetune.cut import Cut, UncacheableError
from edgewright.finetune.evaluate import Scores, predict_logits, score
from edgewright.finetune.freeze import FrozenPart
from edgewright.finetune.processes import Processes
from edgewright.finetune.task import READ_SPLITS, Task
from edgewright.output import Output

_PROBE_ROWS = 4
Keep = Callable[[CacheUse], None]  # writes a decision down, before it is acted on


@dataclass(frozen=True, eq=False)
class Feed:
    """A model and the rows it is called with, by name of ``READ_SPLITS``."""

    model: nn.Module
    rows: Mapping[str, Rows]
    use: CacheUse
    processes: Processes

    @classmethod
    def live(cls, task: Task, reason: str) -> Feed:
        """The task's own model and rows."""
        return cls(task.model, task.rows, CacheUse(False, reason), task.processes)

    @classmethod
    def cached(cls, task: Task, cache: ActivationCache) -> Feed:
        """The rest of the model, and rows with what crosses the cut."""
        rows = {name: cache.rows(rows) for name, rows in task.rows.items()}
        return cls(cache.model(), rows, cache.use, task.processes)

    def score(self, split: str, device: torch.device) -> Scores | None:
        """The model as it is now on one of ``READ_SPLITS``; None when that is empty."""
        rows = self.rows[split]
        logits = predict_logits(self.model, rows, device, processes=self.processes)
        return score(rows.labels, logits)


def open_feed(
    task: Task, output: Output, decided: CacheUse | None = None, keep: Keep = lambda _use: None
) -> Feed:
    """From a cache of the task's frozen part where it is asked for, possible and pays; else live.

    What was decided, and why, is in the feed's ``use``; ``decided`` is that of a run gone on with,
    and ``keep`` is told of it, at the latest here.

    Raises:
        ConfigError: that run was cached, and the cache cannot be had any more.
    """
    if not task.part.blocks:
        feed = Feed.live(task, "no block is frozen")
    elif task.is_ever_new:
        feed = Feed.live(
            task,
            f"--augment {task.config.augment} shows other images in every epoch; with "
            "--augment-views some of each take turns, which can be kept",
        )
    else:
        views = task.rows["train"].views
        caches = open_caches(task, [task.part], output, decided, keep, views=views)
        feed = Feed.live(task, caches) if isinstance(caches, str) else Feed.cached(task, caches[0])
    keep(feed.use)
    return feed


def open_caches(
    task: Task,
    parts: Sequence[FrozenPart],
    output: Output,
    decided: CacheUse | None = None,
    keep: Keep = lambda _use: None,
    views: Sequence[KeyedRows] = (),
) -> list[ActivationCache] | str:
    """A filled cache after each part, or why there is none; of train rows, ``views`` as well.

    Raises:
        ConfigError: ``decided`` is that there is one, and it cannot be had any more.
    """
    if decided is not None and not decided.used:
        return decided.reason
    filled = _fill(task, parts, output, decided, keep, views)
    if isinstance(filled, str) and decided is not None:
        raise ConfigError(
            f"--resume: the run read its frozen part from a cache, which cannot be had now "
            f"({filled}); mend that, or begin anew with --overwrite"
        )
    return filled


def _fill(
    task: Task,
    parts: Sequence[FrozenPart],
    output: Output,
    decided: CacheUse | None,
    keep: Keep,
    views: Sequence[KeyedRows],
) -> list[ActivationCache] | str:
    config = task.config
    if config.cache == "off":
        return "--cache off"
    inputs = task.probe_inputs(_PROBE_ROWS)
    try:
        cuts = {Cut.find(task.model, part.blocks, inputs): part for part in parts}
    except UncacheableError as error:
        return str(error)
    plan = CachePlan(
        cache_root(config.cache_dir),
        task.device,
        task.recipe.precision,
        task.recipe.epochs,
        must=config.cache == "on" or decided is not None,
        dtype=decided.dtype if decided is not None and len(parts) == 1 else None,
        processes=task.processes,
    )
    rows = [task.rows[name] for name in READ_SPLITS]
    with output.progress() as bar:
        total = sum(len(each.labels) for each in (*rows, *views)) // task.processes.count
        shown = bar.add_task("frozen blocks", total=total, status="")
        filled = fill_cache(
            cuts,
            rows,
            plan,
            views=views,
            on_rows=lambda count: bar.update(shown, advance=count),
            warn=output.warn,
            keep=keep,
        )
    if isinstance(filled, CacheUse) and config.cache == "on":
        output.warn(f"--cache on, and yet without it: {filled.reason}")
    return filled.reason if isinstance(filled, CacheUse) else filled


def cache_root(folder: str | None) -> Path:
    """Where activations are kept: as told, or in the user's cache folder (XDG)."""
    if folder is not None:
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgewright" / "activations"
