"""Which calls may wait for compute: good input, and an answer that comes soon enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from edgewright.errors import CallerLimitError, DeadlineError, InputError, OverloadedError
from edgewright.serve.call import BatchModel, Call
from edgewright.serve.pace import Load, Stage

RETRY_FLOOR_S = 0.05
_RETRY_CEILING_S = 5.0
# Where several models are served, one may hold this many times what it leaves free: alone it gets
# four fifths of the queue, and there is always room for a model that has nothing in it.
_SHARE_OF_FREE = 4
_NEWEST = 0.1  # how much the newest call counts in what calls ask for lately


@dataclass(frozen=True)
class Limits:
    """The largest call that is taken."""

    max_texts: int
    max_text_chars: int

    def check(self, texts: Sequence[str], top_k: int, classes: int) -> None:
        """Raise InputError, naming the request's field, for what no model should be asked."""
        self._check_count("text", len(texts))
        for index, text in enumerate(texts):
            self._check_text(index, text)
        self._check_top_k(top_k, classes)

    def check_images(self, images: Sequence[bytes], top_k: int, classes: int) -> None:
        """The same for images; whether they can be decoded shows when they are."""
        self._check_count("image", len(images))
        for index, image in enumerate(images):
            if not image:
                field = f"images[{index}]"
                raise InputError(f"{field} is empty; leave it out of the call", field=field)
        self._check_top_k(top_k, classes)

    def _check_count(self, kind: str, count: int) -> None:
        field = f"{kind}s"
        if not count:
            raise InputError(f"{field} is empty; give at least one {kind}", field=field)
        if count > self.max_texts:
            raise InputError(
                f"{field} has {count} entries and at most {self.max_texts} are taken; "
                "split the call, or raise --max-texts of the server",
                field=field,
            )

    def _check_top_k(self, top_k: int, classes: int) -> None:
        if not 0 <= top_k <= classes:
            raise InputError(
                f"top_k is {top_k}; it must be 0 (all) to {classes}, the number of classes",
                field="top_k",
            )

    def _check_text(self, index: int, text: str) -> None:
        field = f"texts[{index}]"
        if not text or text.isspace():
            raise InputError(f"{field} is empty; leave it out of the call", field=field)
        if len(text) > self.max_text_chars:
            raise InputError(
                f"{field} has {len(text)} characters and at most {self.max_text_chars} are taken; "
                "shorten it, or raise --max-text-chars of the server",
                field=field,
            )


@dataclass(frozen=True)
class QueueLimit:
    """How much may wait."""

    rows: int  # bounds the memory
    wait_s: float  # estimated, before the last that was let in is computed
    caller_rows: int | None = None  # of one caller; None: as many as there are


class Queue:
    """What is between admission and answer, and how long it will take.

    A call is let in where the work before it will be done within the limit and within the call's
    own deadline. How fast work is done is measured (``learn``); until something was, only rows
    count. Used on the event loop's thread alone.
    """

    def __init__(self, limit: QueueLimit) -> None:
        self.rows = 0
        self.on_leave: Callable[[], None] = _nothing  # told of each that leaves: there may be room
        self._usual_rows, self._usual_s = 1.0, 0.0  # of a call, lately; it takes so long
        self._limit = limit
        # Weak, so that a model that is no longer served is not kept.
        self._loads: WeakKeyDictionary[BatchModel, Load] = WeakKeyDictionary()
        self._known: list[Load] = []  # the same, quicker to go through
        self._rows_of_callers: Counter[str] = Counter()  # counted only where there is a limit

    def wait_s(self, large: bool = False) -> float:
        """Estimated seconds until a call that comes now would begin to be computed.

        Small calls and large ones take turns (``Line``): a small one waits for those before it and
        for no more than as much of the large.
        """
        small = bulk = 0.0
        for load in self._known:
            small += load.seconds(False)
            bulk += load.seconds(True)
        return small + bulk if large else small + min(small, bulk)

    def refusal(self, waiting: int = 0, coming: int = 0) -> OverloadedError | None:
        """What every call would be told now, however small; None where one may be let in.

        ``waiting`` calls came before and wait for room, so that it is theirs. ``coming`` were let
        in and are not here yet; they are taken to be as large as calls are lately.
        """
        if self.rows >= self._limit.rows:
            return self._refusal(self._full(), large=False)
        wait_s = self.wait_s()
        if wait_s > self._limit.wait_s:
            return self._refusal(self._long(wait_s), large=False)
        rows, wait_s = self.rows + coming * self._usual_rows, wait_s + coming * self._usual_s
        if waiting or (coming and (rows >= self._limit.rows or wait_s > self._limit.wait_s)):
            return self._refusal(
                f"{waiting + coming} calls wait for room in the queue; try again later, or ask "
                "another replica",
                large=False,
            )
        return None

    def rows_of(self, model: BatchModel) -> int:
        """How many of ``rows`` are of ``model``."""
        load = self._loads.get(model)
        return load.rows if load is not None else 0

    def enter(self, call: Call, time_left_s: float | None) -> None:
        """Count ``call`` in; ``time_left_s`` None means no deadline.

        Raises:
            DeadlineError: its deadline has passed.
            OverloadedError: it would wait for too long; tells when to try again.
            CallerLimitError: its caller would have more rows here than one may.
        """
        if time_left_s is not None and time_left_s <= 0:
            raise DeadlineError("the deadline passed before the call was let in")
        load = self._load_of(call.model)
        self._usual_rows += _NEWEST * (len(call.inputs) - self._usual_rows)
        self._usual_s += _NEWEST * (call.cost * load.pace.seconds_per_unit - self._usual_s)
        self._check_caller(call)
        self._check_room(call, load)
        self._check_wait(call, load, time_left_s)
        call.load = load
        self.rows += len(call.inputs)
        load.rows += len(call.inputs)
        if self._limit.caller_rows is not None:
            self._rows_of_callers[call.caller] += len(call.inputs)
        load.cost[call.large] += call.cost

    def computed(self, call: Call, cost: int) -> None:
        """So much of ``call`` does not wait any more."""
        call.load.cost[call.large] -= cost

    def leave(self, call: Call) -> None:
        """Count ``call`` out, with what was not computed of it."""
        load = call.load
        self.rows -= len(call.inputs)
        load.rows -= len(call.inputs)
        load.cost[call.large] -= call.cost
        if self._limit.caller_rows is not None:
            self._rows_of_callers[call.caller] -= len(call.inputs)
            if not self._rows_of_callers[call.caller]:
                del self._rows_of_callers[call.caller]
        self.on_leave()

    def learn(
        self, model: BatchModel, stage: Stage, cost: int, seconds: float, threads: int
    ) -> None:
        """One of ``threads`` took ``seconds`` for a batch of ``cost``."""
        load = self._loads.get(model)
        if load is not None:
            load.pace.learn(stage, cost, seconds, threads)

    def _load_of(self, model: BatchModel) -> Load:
        load = self._loads.get(model)
        came = load is None
        if load is None:
            load = self._loads[model] = Load()
        if came or len(self._known) != len(self._loads):  # a model came, or has gone
            self._known = list(self._loads.values())
        return load

    def _check_caller(self, call: Call) -> None:
        limit = self._limit.caller_rows
        if limit is None:
            return
        rows, more = self._rows_of_callers[call.caller], len(call.inputs)
        if rows + more > limit:
            raise CallerLimitError(
                f"{call.caller} has {rows} rows waiting and asks for {more} more, and one caller "
                f"may have {limit} (--max-rows-per-caller of the server); wait for an answer "
                "before the next call, or send fewer rows at once",
                retry_after_s=self._retry_s(call.large),
            )

    def _check_room(self, call: Call, load: Load) -> None:
        limit, rows = self._limit.rows, len(call.inputs)
        crowding = len(self._known) > 1 and load.rows > _SHARE_OF_FREE * (limit - self.rows)
        if self.rows + rows > limit or crowding:
            raise self._refusal(self._full(), call.large)

    def _check_wait(self, call: Call, load: Load, time_left_s: float | None) -> None:
        wait_s, limit_s = self.wait_s(call.large), self._limit.wait_s
        own_s = load.seconds(False) + load.seconds(True)
        crowding = len(self._known) > 1 and own_s > _SHARE_OF_FREE * max(0.0, limit_s - wait_s)
        if wait_s > limit_s or (wait_s > 0 and crowding):
            raise self._refusal(self._long(wait_s), call.large)
        needed_s = wait_s + load.pace.batch_s + call.cost * load.pace.seconds_per_unit
        # With nothing before it, it is tried: the estimate may be wrong.
        if time_left_s is not None and wait_s > 0 and needed_s > time_left_s:
            raise self._refusal(
                f"the answer would take about {needed_s:.2g} seconds, for other work waits, and "
                f"the deadline leaves {time_left_s:.2g}; allow more, or ask another replica",
                call.large,
            )

    def _full(self) -> str:
        return (
            f"{self.rows} rows wait and {self._limit.rows} may; try again later, "
            "ask another replica, or raise --queue-size of the server"
        )

    def _long(self, wait_s: float) -> str:
        return (
            f"about {wait_s:.2g} seconds of work wait and --max-wait of the server is "
            f"{self._limit.wait_s:g}; try again later, or ask another replica"
        )

    def _refusal(self, message: str, large: bool) -> OverloadedError:
        return OverloadedError(message, retry_after_s=self._retry_s(large))

    def _retry_s(self, large: bool) -> float:
        half_s = round(self.wait_s(large) / 2, 2)
        return min(max(half_s, RETRY_FLOOR_S), _RETRY_CEILING_S)


def _nothing() -> None:
    """Nobody waits for room."""
