"""One call after the other to the server, as bytes: no message is built or read on the way."""

from __future__ import annotations

import itertools
from typing import Any

import grpc
import grpc.aio

from edgewright.bench.requests import Requests
from edgewright.bench.tally import Failure
from edgewright.connection import Connection
from edgewright.rpc_errors import told_reason


class Caller:
    """Sends the requests in turn over a channel, the ``first``-th of them first."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        connection: Connection,
        requests: Requests,
        first: int,
    ) -> None:
        self._method: Any = channel.unary_unary(requests.method)  # no serialiser: bytes
        messages = requests.messages
        self._messages = itertools.cycle([*messages[first:], *messages[:first]])
        self._terms = {"timeout": connection.timeout_s, "metadata": connection.metadata}

    async def __call__(self) -> Failure | None:
        """Make a call; how it ended, where it was not answered."""
        try:
            answer = await self._method(next(self._messages), **self._terms)
        except grpc.aio.AioRpcError as error:
            return Failure(error.code().name, told_reason(error), error.details() or "")
        return None if answer else Failure("OK", "", "the answer is empty")
