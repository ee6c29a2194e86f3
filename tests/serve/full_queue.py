"""A server whose queue has room for nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewright.serve.refusals import Refusals

from .conftest import Gate, Launch, until

CLASSIFY = "/edgewright.v1.PredictionService/ClassifyText"


class FullQueue:
    """It is full until those who wait in it are answered."""

    def __init__(
        self,
        launch: Launch,
        gate: Callable[[], Gate],
        refusals: Refusals | None = None,
        metadata: Any = None,
        **options: Any,
    ) -> None:
        """``refusals`` take the place of the server's own; ``metadata`` is of who fills it."""
        self.running = launch(instances=1, queue_size=2, max_texts=2, **options)
        edge = self.running.server._edge
        self.refusals = edge.refusals = refusals or edge.refusals
        self._gate = gate()
        two = self.running.request("bank", "vote")
        self._waiting = self.running.predictions.ClassifyText.future(
            two, metadata=metadata, timeout=60
        )
        until(lambda: self.running.server.batcher.queue.rows == 2)

    def held(self, calls: int = 1, metadata: Any = None) -> list[Any]:
        """So many calls, which are refused and wait to be told so; ``refusals`` hold each."""
        call = self.running.channel.unary_unary(CLASSIFY)
        sent = [call.future(b"", metadata=metadata, timeout=60) for _ in range(calls)]
        until(lambda: self.refusals.held == calls)
        return sent

    def tell(self) -> None:
        """All who are refused, now."""
        self.running.loop.loop.call_soon_threadsafe(self.refusals.drain)

    def answer(self) -> None:
        """Those who wait in the queue."""
        self._gate.open.set()
        assert len(self._waiting.result().classifications) == 2
