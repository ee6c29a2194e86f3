"""The frozen part of a model computed once a row, and read back in every epoch.

The store outlives the run, and rows are known by their content: a run with another seed, head or
learning rate finds them all, and feedback rows are appended. Whether the cache pays, and whether
half precision keeps the model's answers, is measured on a sample of the rows.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from edgewright.factories import FactoryClassifier
from edgewright.finetune.activation_store import ActivationStore, Array, evict
from edgewright.finetune.batches import Indices, to_device
from edgewright.finetune.cached_rows import CachedRows, KeyedRows, RowSets, row_arrays
from edgewright.finetune.cut import Cut, Replayed, record
from edgewright.finetune.device import autocast
from edgewright.finetune.freeze import FrozenPart
from edgewright.finetune.memory import in_pieces
from edgewright.finetune.processes import ALONE, Processes

LIMIT_BYTES: Final = 20 * 2**30  # of all stores together; the least recently used go first
_BATCH_ROWS: Final = 32
_SHARD_BYTES: Final = 128 * 2**20
_SPARE_BYTES: Final = 2**30  # left free on the disk
_CHECKED_ROWS: Final = 8
# Half precision is taken where logits move by at most this, and by this share of their spread.
_LOGIT_TOLERANCE: Final = 1e-2
# Of a row computed again, relative to its largest number: fp16 rounds at 5e-4, bf16 at 4e-3.
_SAME: Final = {"float16": 2e-3, "float32": 1e-4}
_SAME_BF16: Final = 5e-2


@dataclass(frozen=True)
class CacheUse:
    """Whether a run reads its frozen part from a cache, and why."""

    used: bool
    reason: str
    dtype: str = ""
    found: int = 0  # rows that an earlier run had left
    filled: int = 0
    seconds: float = field(default=0.0, compare=False)  # that the fill took


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """A filled cache of one cut."""

    cut: Cut
    store: ActivationStore
    use: CacheUse

    def rows(self, rows: KeyedRows) -> CachedRows:
        """The same rows, with their activations."""
        return CachedRows(rows, self.store, self.cut)

    def model(self) -> Replayed:
        """The model that takes such rows."""
        return Replayed(self.cut)


@dataclass(frozen=True)
class CachePlan:
    """What a cache is asked for.

    Attributes:
        root: folder of all stores.
        device: where the model is.
        precision: of passes, as ``device.resolve_precision`` names it.
        epochs: for which rows will be read.
        must: fill it although it may not pay.
        dtype: of the store; None chooses.
        clock: seconds.
        processes: that compute a share of the rows each, and read what all have stored.
    """

    root: Path
    device: torch.device
    precision: str
    epochs: int
    must: bool = False
    dtype: str | None = None
    clock: Callable[[], float] = time.monotonic
    processes: Processes = ALONE


def fill_cache(
    cuts: Mapping[Cut, FrozenPart],
    rows: Sequence[KeyedRows],
    plan: CachePlan,
    *,
    views: Sequence[KeyedRows] = (),
    on_rows: Callable[[int], None] = lambda _rows: None,
    warn: Callable[[str], None] = lambda _message: None,
    keep: Callable[[CacheUse], None] = lambda _use: None,
) -> list[ActivationCache] | CacheUse:
    """Store what crosses each cut, for every row that is not stored yet, in one pass.

    Args:
        cuts: of one model on the plan's device; each with the part before it.
        rows: every set of rows that will be read, once an epoch.
        plan: how.
        views: sets that take turns with one of ``rows``.
        on_rows: is told how many rows this process has computed, batch by batch.
        warn: is told of damaged shards.
        keep: is told that there will be a cache, and its dtype, before a row is computed for it:
            a row that is stored makes another decision of the same question.

    Returns:
        A cache for each cut, or why there is none: it would not pay, the disk is short or fails,
        or stored rows are not what the model computes.
    """
    started = plan.clock()
    fill = _Fill(cuts, RowSets.of(rows, views), plan)
    for step in (partial(fill.decide, warn, keep), partial(fill.compute, on_rows), fill.check):
        fault = fill.fault_of(step)
        if fault is not None:
            return CacheUse(False, fault)
    return fill.caches(round(plan.clock() - started, 3))


class _Fill:
    """The state of one fill: a store a cut, and the rows that some store lacks."""

    def __init__(self, parts: Mapping[Cut, FrozenPart], rows: RowSets, plan: CachePlan) -> None:
        self.cuts, self.rows, self.plan = list(parts), rows, plan
        computed = {"device": plan.device.type, "precision": plan.precision}
        self.identities = [part_identity(cut, part) | computed for cut, part in parts.items()]
        self.stores: list[ActivationStore] = []
        self.dtypes: list[str] = []
        self.missing: list[set[int]] = []

    def fault_of(self, step: Callable[[], str | None]) -> str | None:
        """What ``step`` finds wrong, in the first process that finds anything."""
        try:
            fault = step()
        except OSError as error:
            fault = f"{self.plan.root} cannot be used ({error.strerror or error})"
        return next((each for each in self.plan.processes.gather(fault) if each is not None), None)

    def decide(self, warn: Callable[[str], None], keep: Callable[[CacheUse], None]) -> str | None:
        """In the first process: open the stores, choose formats, see whether it pays; tell it."""
        if not self.plan.processes.is_first:
            return None
        self.dtypes = [
            self.plan.dtype or self._choose_dtype(cut, identity)
            for cut, identity in zip(self.cuts, self.identities, strict=True)
        ]
        self._open()
        for store in self.stores:
            for shard in store.damaged:
                warn(f"the activation cache: {shard} was damaged; its rows are computed again")
        self.missing = [set(store.missing(self.rows.keys).tolist()) for store in self.stores]
        fault = self.no_use()
        if fault is None:
            keep(CacheUse(True, f"in {self.plan.root}", self.dtypes[0]))
        return fault

    def _open(self) -> None:
        for identity, dtype in zip(self.identities, self.dtypes, strict=True):
            self.stores.append(ActivationStore(self.plan.root, {**identity, "dtype": dtype}))

    @property
    def todo(self) -> Indices:
        """Rows that some store lacks, ascending."""
        return np.array(sorted(set().union(*self.missing)), np.int64)

    def no_use(self) -> str | None:
        """Why the cache would not fit or not pay; None where it does."""
        plan, todo = self.plan, self.todo
        if not len(todo):
            return None
        sample = self._sample()
        self._record(sample)  # warms up
        compute_s, arrays = self._timed(lambda: self._record(sample))
        needed = int(sum(each.nbytes for each in arrays) * self._share_of_work(sample, todo))
        free = shutil.disk_usage(plan.root).free - _SPARE_BYTES
        if needed > free:
            return f"it takes {_mib(needed)}, and {plan.root} has {_mib(max(free, 0))} to spare"
        if plan.must:
            return None
        read_s, _ = self._timed(lambda: [torch.from_numpy(each).float() for each in arrays])
        work = self._share_of_work(sample, np.arange(self.rows.epoch_rows))
        live = plan.epochs * work * compute_s
        cached = self._share_of_work(sample, todo) * compute_s + plan.epochs * work * read_s
        if cached >= live:
            return f"all epochs take {live:.1f} s of it, filling alone {cached:.1f} s"
        return None

    def compute(self, on_rows: Callable[[int], None]) -> None:
        """Compute the missing rows, always in the same batches, and store them by the shard."""
        processes = self.plan.processes
        self.dtypes, self.missing = processes.by_first(lambda: (self.dtypes, self.missing))
        if not processes.is_first:
            self._open()
        pending: list[dict[str, Array]] = [{} for _ in self.cuts]
        for batch in self.rows.batches(self.todo, _BATCH_ROWS)[processes.mine]:
            pieces = in_pieces(self._by_cut, batch)
            for place, store_rows in enumerate(pending):
                arrays = [array for by_cut in pieces for array in by_cut[place]]
                for index, array in zip(batch.tolist(), arrays, strict=True):
                    if index in self.missing[place]:
                        store_rows[self.rows.keys[index]] = array
            on_rows(len(batch))
            self._flush(pending, _SHARD_BYTES)
        self._flush(pending, 1)

    def check(self) -> str | None:
        """Look at what every process has stored; what is wrong with it, None: nothing."""
        processes, folders = self.plan.processes, [store.folder for store in self.stores]
        for store in self.stores if processes.count > 1 else ():
            store.refresh()
            if len(store.missing(self.rows.keys)):
                return f"{store.folder} is not one folder for all {processes.count} processes"
        if processes.is_first:
            evict(self.plan.root, LIMIT_BYTES, keep=folders)
        return self.disagreement()

    def disagreement(self) -> str | None:
        """What is wrong with some rows, drawn at random and computed again; None: nothing."""
        count = len(self.rows.keys)
        chosen = np.random.default_rng(count).choice(count, min(_CHECKED_ROWS, count), False)
        for index in chosen.tolist():
            by_cut = self._by_cut(np.array([index]), "float32")
            for (again,), store, dtype in zip(by_cut, self.stores, self.dtypes, strict=True):
                stored = store.read(self.rows.keys[index]).astype(np.float32)
                if not self._is_same(stored, again, dtype):
                    return f"{store.folder} holds other rows than the model computes; remove it"
        return None

    def caches(self, seconds: float) -> list[ActivationCache]:
        rows = len(set(self.rows.keys))
        return [
            ActivationCache(
                cut,
                store,
                CacheUse(
                    True,
                    f"{len(missing)} rows computed, {rows - len(missing)} found in {store.folder}",
                    dtype,
                    rows - len(missing),
                    len(missing),
                    seconds,
                ),
            )
            for cut, store, missing, dtype in zip(
                self.cuts, self.stores, self.missing, self.dtypes, strict=True
            )
        ]

    def _choose_dtype(self, cut: Cut, identity: Mapping[str, Any]) -> str:
        """float16 where the model answers a sample of rows alike with it, else float32.

        What an earlier run has stored as float32, before the head was what it is, is taken.
        """
        if ActivationStore.is_there(self.plan.root, {**identity, "dtype": "float32"}):
            return "float32"
        pieces = in_pieces(lambda rows: self._exact_and_rounded(cut, rows), self._sample())
        exact, rounded = (torch.cat(each) for each in zip(*pieces, strict=True))
        moved = float((rounded - exact).abs().max())
        spread = float(exact.std(dim=0).max()) if len(exact) > 1 else 1.0
        same = bool((rounded.argmax(-1) == exact.argmax(-1)).all())
        # False where fp16, whose largest number is 65504, overflowed.
        holds = moved <= _LOGIT_TOLERANCE * min(1.0, spread)
        return "float16" if holds and same else "float32"

    def _exact_and_rounded(self, cut: Cut, rows: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits from activations as computed, and from those rounded to float16."""
        inputs = to_device(self.rows.inputs(rows), self.plan.device)
        replayed = Replayed(cut)
        replayed.eval()
        with torch.no_grad(), autocast(self.plan.device, self.plan.precision):
            activations = record([cut], inputs)[0].float()
            exact = replayed(activations.clone(), **inputs).logits.float()
            rounded = replayed(activations.half().float(), **inputs).logits.float()
        return exact, rounded

    def _sample(self) -> Indices:
        """The middle batch: rows of middling length."""
        batches = self.rows.batches(np.arange(len(self.rows.sets[0].lengths)), _BATCH_ROWS)
        return batches[len(batches) // 2]

    def _share_of_work(self, sample: Indices, rows: Indices) -> float:
        """The work on ``rows`` in that on ``sample``, by tokens."""
        return float(self.rows.lengths[rows].sum() / max(1, self.rows.lengths[sample].sum()))

    def _record(self, rows: Indices) -> list[Array]:
        return [array for by in in_pieces(self._by_cut, rows) for each in by for array in each]

    def _by_cut(self, rows: Indices, dtype: str | None = None) -> list[list[Array]]:
        """What stores keep of these rows: for each cut one array a row."""
        inputs = to_device(self.rows.inputs(rows), self.plan.device)
        with autocast(self.plan.device, self.plan.precision):
            recorded = record(self.cuts, inputs)
        return [
            list(row_arrays(cut, activations, inputs, dtype or stored))
            for cut, activations, stored in zip(self.cuts, recorded, self.dtypes, strict=True)
        ]

    def _flush(self, pending: list[dict[str, Array]], least_bytes: int) -> None:
        for store, rows in zip(self.stores, pending, strict=True):
            if rows and sum(array.nbytes for array in rows.values()) >= least_bytes:
                store.append(list(rows), rows.values())
                rows.clear()

    def _is_same(self, stored: Array, again: Array, dtype: str) -> bool:
        if stored.shape != again.shape:
            return False
        tolerance = _SAME[dtype] if self.plan.precision == "fp32" else _SAME_BF16
        largest = float(np.abs(again).max(initial=1.0))
        return bool(float(np.abs(stored - again).max(initial=0.0)) <= tolerance * largest)

    def _timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        started = self.plan.clock()
        result = work()
        return self.plan.clock() - started, result


def part_identity(cut: Cut, part: FrozenPart) -> dict[str, Any]:
    """What makes the part before a cut what it is: weights, buffers, configuration.

    Args:
        cut: the cut.
        part: what lies before it.
    """
    digest = hashlib.sha256()
    inside: set[nn.Parameter] = set()
    for module in part.modules:
        inside.update(module.parameters())
        for name, tensor in sorted(module.state_dict().items()):
            _add(digest, name, tensor)
    for parameter in part.parameters:
        if parameter not in inside:  # it belongs to a module that runs behind the cut as well
            _add(digest, "", parameter)
    return {
        "model": type(cut.model).__name__,
        "blocks": cut.blocks,
        "weights": digest.hexdigest(),
        "numbers": _numbers(cut.model, part),
        "torch": torch.__version__,
    }


def _add(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())


def _numbers(model: Any, part: FrozenPart) -> dict[str, Any]:
    """What a configuration says of sizes and kinds; labels, paths and versions are left out.

    A factory's module has none: its name and how its modules are printed stand for it.
    """
    if isinstance(model, FactoryClassifier):
        return {"factory": str(model.factory), "modules": [repr(each) for each in part.modules]}
    if not hasattr(model, "config"):
        return {}
    plain = (int, float, str, bool)
    values = model.config.to_dict().items()
    left_out = ("_name_or_path", "transformers_version", "problem_type", "torch_dtype", "dtype")
    return {k: v for k, v in values if isinstance(v, plain) and k not in left_out}


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
