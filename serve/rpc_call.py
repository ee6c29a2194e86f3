"""One gRPC call: its messages, its deadline, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
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
    """The call is over, so that its caller cannot be written to."""


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

    @property
    def is_ahead(self) -> bool:
        """Whether the next message, or the end, is here already."""
        return self._ahead

    async def read(self) -> bytes | None:
        """The next message; None after the last, and once the caller has left.

        One reads at a time; another is told so by RuntimeError.

        Raises:
            CallLeft: the call is finished.
        """
        if self._ahead:
            self._ahead = False
        else:
            if self._reading is None:
                self._receive(lambda: self.message_came)
                self._reading = self._loop.create_future()
            reading = self._reading
            await asyncio.shield(reading)  # a reader who is cancelled loses no message
            if self._reading is not reading:  # he would take no message for the end
                raise RuntimeError("two read one call at a time")
            self._reading = None
        message, self._message = self._message, None
        return message

    async def fetch(self) -> None:
        """Have the next message here, so that ``read`` gives it at once."""
        if not self._ahead:
            self._message = await self.read()
            self._ahead = True

    async def write(self, message: bytes) -> None:
        """Send a message, and wait until the caller has room for more.

        One message at a time: another before that is a RuntimeError.

        Raises:
            CallLeft: he has left, or the call is finished.
        """
        if self._writing:  # also where who wrote was cancelled
            raise RuntimeError("the caller has no room yet for what was written last")
        sent = self._loop.create_future()
        send = core.SendMessageOperation(message, _NO_FLAGS)  # first: what is no bytes it refuses
        self._start((*self._metadata_once(), send), partial(self._on_sent, sent))
        self._writing = True
        if not await sent:
            raise CallLeft

    def end_with(
        self, code: grpc.StatusCode, details: str = "", trailers: Metadata | None = None
    ) -> None:
        """How it is to end once it is finished."""
        self._code, self._details = code, details
        if trailers is not None:
            self.trailers = trailers

    def finish(self, response: bytes | None = None) -> None:
        """Send what remains: of a unary call that goes well all of it, else the status.

        Nothing can be read or written from here on. What cannot be sent, as metadata that HTTP/2
        does not allow, is raised, and its caller hears of an internal error.
        """
        if self._ended:
            return
        try:
            if not self.left:
                self._send_end(response)
        except Exception:
            self._cancel(grpc.StatusCode.INTERNAL, "the answer cannot be sent")
            raise
        finally:
            self._ended = True

    def _send_end(self, response: bytes | None) -> None:
        if self._writing:  # behind what the caller does not take, no status would ever come to him
            well = self._code is grpc.StatusCode.OK  # as what is not whole must not look
            self._cancel(grpc.StatusCode.CANCELLED if well else self._code, self._details)
            return
        message = () if response is None else (core.SendMessageOperation(response, _NO_FLAGS),)
        details = self._details.encode("utf-8", "replace")
        status = core.SendStatusFromServerOperation(
            self.trailers, self._code.value[0], details, _NO_FLAGS
        )
        self._start((*self._metadata_once(), *message, status), _nothing)

    def _cancel(self, code: grpc.StatusCode, details: str) -> None:
        self._call.cancel(code.value[0], details.encode("utf-8", "replace"))

    def on_request(self) -> None:
        """It has come: hear of its end."""
        self._start((core.ReceiveCloseOnServerOperation(_NO_FLAGS),), self.on_close)

    def read_ahead(self, on_read: Callable[[], Todo]) -> None:
        """Read its first message before the call begins; ``on_read`` says what is to do then."""
        self._ahead = True
        self._receive(on_read)

    def begin_unread(self) -> None:
        """It begins before the message that is read ahead has come; ``message_came`` follows."""
        self._ahead = False
        self._reading = self._loop.create_future()

    def message_came(self) -> None:
        """Whoever reads may have it."""
        assert self._reading is not None
        self._reading.set_result(None)

    def on_close(self, event: Any) -> Todo | None:
        """It is over."""
        return self._leave if event.batch_operations[0].cancelled() else None

    def _receive(self, on_read: Callable[[], Todo]) -> None:
        """``_message`` is the next one when ``on_read`` is called."""
        receive = core.ReceiveMessageOperation(_NO_FLAGS)
        self._start((receive,), partial(self._on_message, on_read))

    def _on_message(self, on_read: Callable[[], Todo], event: Any) -> Todo:
        self._message = event.batch_operations[0].message()
        self.read_bytes += len(self._message or b"")
        return on_read()

    def _on_sent(self, sent: asyncio.Future[bool], event: Any) -> Todo:
        return partial(self._sent, sent, bool(event.success))

    def _sent(self, sent: asyncio.Future[bool], success: bool) -> None:
        self._writing = False
        if not sent.done():
            sent.set_result(success)

    def _leave(self) -> None:
        self.left = True
        if self.task is not None:
            self.task.cancel()
            self.task = None  # or what it ends with would keep the call until garbage is collected

    def _metadata_once(self) -> tuple[Any, ...]:
        if self._metadata_sent:
            return ()
        self._metadata_sent = True
        return (core.SendInitialMetadataOperation((), _NO_FLAGS),)

    def _start(self, steps: tuple[Any, ...], on_event: Callable[[Any], Todo | None]) -> None:
        """Begin these together; the polling thread calls ``on_event`` when all are done.

        Raises:
            CallLeft: the call is finished.
        """
        if self._ended:
            raise CallLeft
        if error := self._call.start_server_batch(steps, on_event):
            raise RuntimeError(f"gRPC's core does not take {steps} (error {error})")


def _nothing(_event: Any) -> None:
    """Nobody waits for it."""
