"""A gRPC server on the event loop: it takes calls from gRPC's core and has them answered.

One thread polls the core, where calls and messages are read from connections. What it finds it
hands to the event loop, many at a time where there are many, and each call is one task there. What
the task sends goes to the core at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import grpc

from edgewright.serve.grpc_core import check_core, core
from edgewright.serve.rpc_call import CallLeft, RpcCall, Todo

# Answers a call: of a unary method with its message, of others by writing, and with None.
Method = Callable[[RpcCall], Awaitable[bytes | None]]

_ASKED: Final = 8  # calls that the core may hand over before it is asked again
# What is handed to the event loop before it comes to it; calls beyond that stay in the core, which
# bounds their number and how long they wait.
_AHEAD: Final = 32
# Calls that are to be read before they begin, and whose messages have not come. Of more, that which
# came first begins, and waits for its own: callers who are slow to send hold up nobody.
_UNREAD: Final = 64
# Calls that were taken and that the loop has not come to; what else comes stays in the core.
MOST_AHEAD: Final = _AHEAD + _ASKED + _UNREAD
_TOLD: Final = 200  # characters of a path; of a status that is long peers take none at all

log = logging.getLogger(__name__)


class Methods(Protocol):
    """What a server can do."""

    def is_read_first(self, path: str) -> bool:
        """Whether a call's message is to be read before it begins; on the polling thread."""
        ...

    def find(self, call: RpcCall) -> Method | None:
        """What answers a call, in the task that will; None where there is no such method."""
        ...


class RpcServer:
    """Ports, and the calls that come by them. Made on the running event loop, where it lives."""

    def __init__(self, methods: Methods, options: Sequence[tuple[str, Any]] = ()) -> None:
        """``options`` are gRPC's channel arguments.

        Raises:
            BackendUnavailableError: as ``check_core``.
        """
        check_core()
        self._methods = methods
        self._loop = asyncio.get_running_loop()
        self._core = core.Server(tuple(options), False)
        self._queue = core.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._todo: deque[Todo] = deque()
        self._woken = False  # whether the loop is about to look at ``_todo``
        self._owed: deque[None] = deque()  # one for each call that the core is to be asked for
        self._unread: dict[RpcCall, None] = {}  # as in ``_UNREAD``; the polling thread's
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._poll, name="rpc", daemon=True)
        self._stopping = False
        self._core_ended = False  # whether it has no calls any more; the polling thread sets it
        self._closing: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()  # set where an event was, and in the end
        self._ended = asyncio.Event()

    def add_insecure_port(self, address: str) -> int:
        """Bind HOST:PORT in the clear; its port, 0 where it cannot be had."""
        return int(self._core.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """The same, encrypted."""
        return int(self._core.add_http2_port(address.encode(), credentials._credentials))

    def start(self) -> None:
        """Take calls."""
        self._core.start()
        self._thread.start()
        for _ in range(_ASKED):
            self._ask()

    async def stop(self, grace_s: float | None) -> None:
        """Take no further calls, and return when all have ended: those in flight have so long.

        None ends them now. It may be called again, to end them sooner.
        """
        if self._thread.ident is None:
            self.start()  # a server that never started keeps its ports
        if not self._stopping:
            self._stopping = True
            self._core.shutdown(self._queue, self._on_end)
        if grace_s is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), None if math.isinf(grace_s) else grace_s)
        self._core.cancel_all_calls()  # of which it may have none any more
        await self._ended.wait()

    async def wait_for_termination(self) -> None:
        """Return when it has stopped, or is to be: what came from the core was lost.

        Calls in flight can still be finished, but nobody knows what others would hang.
        """
        await self._lost.wait()

    def _poll(self) -> None:
        """On a thread of its own, until the core has no further events."""
        last = core.CompletionType.queue_shutdown
        try:
            while (event := self._queue.poll()).completion_type != last:
                self._take(event)
                del event  # or the call that it is of would last until the next
        except BaseException:  # an edge: the server is to be found dead, not deaf
            log.critical("gRPC's core cannot be asked for calls any more", exc_info=True)
        self._tell(self._ended.set)
        self._tell(self._lost.set)

    def _take(self, event: Any) -> None:
        try:
            todo = event.tag(event)
        except Exception:  # an edge, as above; those in flight are still to hear of their events
            log.critical("what came from gRPC's core was lost", exc_info=True)
            self._tell(self._lost.set)
            return
        if todo is not None:
            self._todo.append(todo)
            self._wake()

    def _tell(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(what)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._work)

    def _work(self) -> None:
        self._woken = False  # first: what is handed over from here on wakes the loop again
        for _ in range(len(self._todo)):
            self._todo.popleft()()
        while self._owed:
            self._owed.pop()
            self._ask()

    def _ask(self) -> None:
        """For one more call."""
        if not self._stopping:
            with contextlib.suppress(ValueError):  # it stops at this moment
                self._core.request_call(self._queue, self._queue, self._on_request)

    def _on_request(self, event: Any) -> Todo | None:
        if not event.success or self._core_ended:  # the server stops, and soon has no queue
            return None
        if len(self._todo) < _AHEAD:
            self._ask()
        else:
            self._owed.append(None)
            self._wake()  # the loop may have done all of that meanwhile, and would not come back
        call = RpcCall(event, self._loop)
        call.on_request()
        if not self._methods.is_read_first(call.method):
            return partial(self._begin, call)
        self._unread[call] = None
        call.read_ahead(partial(self._on_read, call))
        if len(self._unread) <= _UNREAD:
            return None
        first = next(iter(self._unread))
        del self._unread[first]
        return partial(self._begin_unread, first)

    def _on_read(self, call: RpcCall) -> Todo:
        if call in self._unread:
            del self._unread[call]
            return partial(self._begin, call)
        return call.message_came

    def _begin_unread(self, call: RpcCall) -> None:
        call.begin_unread()
        self._begin(call)

    def _begin(self, call: RpcCall) -> None:
        if not (call.left or self._core_ended):
            call.task = task = self._loop.create_task(self._answer(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: RpcCall) -> None:
        response = None
        try:
            method = self._methods.find(call)
            if method is None:
                named = call.method[:_TOLD]
                call.end_with(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {named}")
            else:
                response = await method(call)
        except (asyncio.CancelledError, CallLeft):
            call.end_with(grpc.StatusCode.CANCELLED, "the server has ended the call")
        except Exception:  # an edge: what ``Methods`` let through
            log.exception("%s failed", call.method)
            call.end_with(grpc.StatusCode.INTERNAL, "the call failed; the server's log says why")
        try:
            call.finish(response)
        except Exception:  # an edge: as above
            log.exception("the answer of %s cannot be sent", call.method)

    def _on_end(self, _event: Any) -> Todo:
        self._core_ended = True
        return self._end

    def _end(self) -> None:
        self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        if self._tasks:  # which may still use their calls
            await asyncio.wait(self._tasks)
        self._core.destroy()
        self._queue.shutdown()
