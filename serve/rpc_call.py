"""One gRPC call: its messages, its deadline, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import grpc

from edgewright.serve.grpc_core import core

Metadata = Sequence[tuple[str, str | bytes]]
# What the polling thread finds that the event loop is to do.
Todo = Callable[[], object]

_NO_FLAGS: Final = 0
_FOREVER_S: Final = 1e9  # a deadline as far off is none: gRPC writes the end of its time


class CallLeft(Exception):  # noqa: N818 -- nobody here is at fault
    """The call is over for its caller, so that he cannot be written to."""


class RpcCall:
    """A call as gRPC's core tells of it. It belongs to the event loop.

    Whoever answers it reads messages, may write some, and sets how it is to end; ``finish`` sends
    that, in one piece with the answer of a unary method. Messages are bytes here.

    ``on_...`` are told of the core's events on the thread that polls for them.
    """

    __slots__ = (
        "_ahead", "_call", "_code", "_deadline", "_details", "_ended", "_loop", "_message",
        "_metadata", "_metadata_sent", "_reading", "_writing", "left", "method", "read_bytes",
        "task", "trailers",
    )  # fmt: skip

    def __init__(self, event: Any, loop: asyncio.AbstractEventLoop) -> None:
        """``event`` is the core's, of a call that has come."""
        details = event.call_details
        self._call = event.call
        self._loop = loop
        self._metadata: Metadata = event.invocation_metadata
        self.method: str = details.method.decode("utf-8", "replace")
        left_s = details.deadline - time.time()
        self._deadline = time.monotonic() + left_s if left_s < _FOREVER_S else None
        self.left = False  # whether its caller has left, or its deadline passed
        self.task: asyncio.Task[None] | None = None  # that answers it
        self.trailers: Metadata = ()  # sent with the status
        self.read_bytes = 0  # of all messages that were read
        self._message: bytes | None = None  # that was read, and not yet taken
        self._ahead = False  # whether that was before the call began
        self._reading: asyncio.Future[None] | None = None
        self._writing = False
        self._metadata_sent = False
        self._ended = False
        self._code = grpc.StatusCode.OK
        self._details = ""

    def invocation_metadata(self) -> Metadata:
        """What the caller sent before his messages; bytes where a name ends in -bin."""
        return self._metadata

    def peer(self) -> str:
        """The caller's address as gRPC writes it, such as ipv4:127.0.0.1:80."""
        address: bytes = self._call.peer()
        return address.decode("utf-8", "replace")

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Properties of the connection, such as the subject of the client's certificate."""
        found = core.auth_context(self._call)
        return {name.decode("utf-8", "replace"): values for name, values in found.items()}

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, None where there is none. A clock that is set matters not."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def read(self) -> bytes | None:
        """The next message; None after the last, and once the caller has left."""
        if self._ahead:
            self._ahead = False
        else:
            if self._reading is None:
                self._reading = self._loop.create_future()
                self._receive(partial(_settle, self._reading))
            await asyncio.shield(self._reading)  # a reader who is cancelled loses no message
            self._reading = None
        message, self._message = self._message, None
        self.read_bytes += len(message or b"")
        return message

    async def write(self, message: bytes) -> None:
        """Send a message, and wait until the caller has room for more.

        Raises:
            CallLeft: he has left.
        """
        sent = self._loop.create_future()
        self._writing = True
        self._start((*self._metadata_once(), core.SendMessageOperation(message, _NO_FLAGS)),
                    partial(_tell_success, sent))  # fmt: skip
        if not await sent:
            raise CallLeft
        self._writing = False

    def end_with(
        self, code: grpc.StatusCode, details: str = "", trailers: Metadata | None = None
    ) -> None:
        """How it is to end once it is finished."""
        self._code, self._details = code, details
        if trailers is not None:
            self.trailers = trailers

    def finish(self, response: bytes | None = None) -> None:
        """Send what remains: of a unary call that goes well all of it, else the status."""
        if self.left or self._ended:
            return
        self._ended = True
        if self._writing:  # behind what the caller does not take, no status would ever come to him
            self._call.cancel(self._code.value[0], self._details)
            return
        message = () if response is None else (core.SendMessageOperation(response, _NO_FLAGS),)
        status = core.SendStatusFromServerOperation(
            self.trailers, self._code.value[0], self._details, _NO_FLAGS
        )
        with suppress(CallLeft):
            self._start((*self._metadata_once(), *message, status), _nothing)

    def on_request(self) -> None:
        """It has come: hear of its end."""
        self._start((core.ReceiveCloseOnServerOperation(_NO_FLAGS),), self.on_close)

    def read_ahead(self, todo: Todo) -> None:
        """Read its first message, and then do this: before the call begins."""
        self._ahead = True
        self._receive(todo)

    def on_close(self, event: Any) -> Todo | None:
        """It is over."""
        return self._leave if event.batch_operations[0].cancelled() else None

    def _on_message(self, todo: Todo, event: Any) -> Todo:
        self._message = event.batch_operations[0].message()
        return todo

    def _receive(self, todo: Todo) -> None:
        receive = core.ReceiveMessageOperation(_NO_FLAGS)
        self._start((receive,), partial(self._on_message, todo))

    def _leave(self) -> None:
        self.left = True
        if self.task is not None:
            self.task.cancel()

    def _metadata_once(self) -> tuple[Any, ...]:
        if self._metadata_sent:
            return ()
        self._metadata_sent = True
        return (core.SendInitialMetadataOperation((), _NO_FLAGS),)

    def _start(self, steps: tuple[Any, ...], on_event: Callable[[Any], Todo | None]) -> None:
        """Begin these together; the polling thread calls ``on_event`` when all are done."""
        if self._call.start_server_batch(steps, on_event):
            raise CallLeft


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _tell_success(sent: asyncio.Future[bool], event: Any) -> Todo:
    return partial(_set_success, sent, bool(event.success))


def _set_success(sent: asyncio.Future[bool], success: bool) -> None:
    if not sent.done():
        sent.set_result(success)


def _nothing(_event: Any) -> None:
    """Nobody waits for it."""
