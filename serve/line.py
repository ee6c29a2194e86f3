"""The line of calls that wait for compute, and which of them make the next batch.

Calls that fit one batch stand in one lane, larger ones in another. Each lane is served first come
first served, whatever the model; where both have calls, they take turns. So a large call cannot
hold up small ones, small ones cannot starve it, and no model starves another.

What a thread has encoded of small calls splits into runs of similar length. It computes one, and
the others go to whichever thread is idle next, before anything that came later.

Nothing here waits or locks: ``ComputeThreads`` calls it under its lock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from math import ceil

from edgewright.preprocess import Row as EncodedRow
from edgewright.serve.call import BatchModel, Call, Encoded, Row


@dataclass(frozen=True)
class BatchLimit:
    """What one batch may hold."""

    rows: int
    tokens: int  # of cost, as ``BatchModel.cost``

    def exceeded_by(self, call: Call) -> bool:
        """Whether ``call`` needs more than one batch."""
        return len(call.inputs) > self.rows or call.cost > self.tokens


@dataclass
class Batch:
    """What one compute thread takes at once."""

    model: BatchModel
    rows: list[Row] = field(default_factory=list)
    cost: int = 0  # of the rows
    expired: list[Call] = field(default_factory=list)  # met on the way; not to be computed
    large: bool = False  # whether it is of a call that needs more than one


@dataclass(frozen=True, eq=False)
class EncodedRun:
    """Rows of a batch that go through the model together, which is all that is left to do."""

    model: BatchModel
    rows: Sequence[Row]
    encoded: Sequence[EncodedRow]
    batch: Encoded

    @cached_property
    def cost(self) -> int:
        """Of the rows."""
        return sum(row.cost for row in self.rows)

    def part(self, places: Sequence[int]) -> EncodedRun:
        """Some of its rows."""
        rows, encoded = [self.rows[i] for i in places], [self.encoded[i] for i in places]
        return EncodedRun(self.model, rows, encoded, self.batch)


class Line:
    """Calls in the order of their coming."""

    def __init__(self, limit: BatchLimit) -> None:
        self.limit = limit
        self._lanes = (_Lane(), _Lane())  # by ``Call.large``
        self._turn = 0
        self._tickets = count()
        self._encoded: deque[EncodedRun] = deque()  # that no thread has taken yet
        self._running: Counter[BatchModel] = Counter()  # threads that have taken work
        self._computing: Counter[BatchModel] = Counter()  # its cost, and that of what is encoded

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes) + len(self._encoded)

    def add(self, call: Call) -> None:
        """To the end of its lane."""
        call.ticket = next(self._tickets)
        self._lanes[call.large].add(call)

    def discard(self, call: Call) -> None:
        """Take out what nobody wants any more; it may have left the line already."""
        self._lanes[call.large].discard(call)

    def take(self, now: float, idle: int) -> Batch | EncodedRun | None:
        """What comes next, or None where nothing may run; ``release`` it once it is computed.

        Args:
            now: on the clock of the calls' deadlines.
            idle: threads without work, this one among them.
        """
        for run in self._encoded:
            if self._running[run.model] < run.model.instances:
                self._encoded.remove(run)
                self._running[run.model] += 1
                return run
        for turn in (self._turn, 1 - self._turn):
            lane = self._lanes[turn]
            model = lane.first_model(self._running)
            if model is not None:
                self._turn = 1 - turn
                self._running[model] += 1
                batch = Batch(model, large=bool(turn))
                lane.fill(batch, self._share(lane, model, idle), now)
                self._computing[model] += batch.cost
                return batch
        return None

    def hand_over(self, batch: Batch, runs: Sequence[EncodedRun]) -> None:
        """Let ``runs`` of a batch be taken by other threads than the one that has encoded it."""
        self._encoded.extend(runs)
        batch.cost -= sum(run.cost for run in runs)

    def release(self, taken: Batch | EncodedRun) -> None:
        """Other work of its model may be taken."""
        for counter, share in ((self._running, 1), (self._computing, taken.cost)):
            counter[taken.model] -= share
            if not counter[taken.model]:
                del counter[taken.model]

    def _share(self, lane: _Lane, model: BatchModel, idle: int) -> BatchLimit:
        """Of what waits: idle threads get equal shares, and none more than its part of all work.

        What a busy thread leaves would wait for longer in one large batch than for that thread.
        """
        if model.row_by_row:  # a batch would only hold up what comes next
            return BatchLimit(1, self.limit.tokens)
        waiting, takers = lane.cost[model], min(idle, model.instances - self._running[model] + 1)
        part = (waiting + self._computing[model]) / model.instances
        tokens = ceil(min(waiting / takers, part))
        return BatchLimit(self.limit.rows, max(1, min(self.limit.tokens, tokens)))


class _Lane:
    """Calls by model, first come first served over all of them."""

    def __init__(self) -> None:
        self.cost: Counter[BatchModel] = Counter()  # of the rows that wait
        self._calls: dict[BatchModel, OrderedDict[Call, None]] = {}

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._calls.values())

    def add(self, call: Call) -> None:
        self._calls.setdefault(call.model, OrderedDict())[call] = None
        self.cost[call.model] += sum(call.costs)

    def discard(self, call: Call) -> None:
        calls = self._calls.get(call.model)
        if calls is None or call not in calls:
            return
        del calls[call]
        self.cost[call.model] -= sum(call.costs[call.taken :])
        if not calls:
            del self._calls[call.model], self.cost[call.model]

    def first_model(self, running: Counter[BatchModel]) -> BatchModel | None:
        """Whose oldest call came first, among those that may run."""
        heads = [
            next(iter(calls))
            for model, calls in self._calls.items()
            if running[model] < model.instances
        ]
        return min(heads, key=lambda call: call.ticket).model if heads else None

    def fill(self, batch: Batch, limit: BatchLimit, now: float) -> None:
        """Move rows of ``batch.model`` into ``batch``: at least one, unless all have expired."""
        tokens = 0
        while calls := self._calls.get(batch.model):
            call = next(iter(calls))
            if not call.wanted(now):
                self.discard(call)
                batch.expired.append(call)
                continue
            for place in range(call.taken, len(call.inputs)):
                tokens += call.costs[place]
                if batch.rows and (len(batch.rows) >= limit.rows or tokens > limit.tokens):
                    return
                batch.rows.append(Row(call, place))
                batch.cost += call.costs[place]
                call.taken += 1
                self.cost[call.model] -= call.costs[place]
            self.discard(call)
