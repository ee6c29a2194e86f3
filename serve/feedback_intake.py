"""What a server with a store does with feedback and predictions: check, queue, write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgewright.serve.config import ServeConfig
from edgewright.serve.feedback_checks import FeedbackChecks
from edgewright.serve.feedback_writer import FeedbackWriter
from edgewright.serve.instruments import Instruments
from edgewright.serve.prediction_log import LogInputs, PredictionLog
from edgewright.serve.registry import Registry

if TYPE_CHECKING:  # SQLAlchemy is imported by a server that keeps feedback
    from edgewright.serve.feedback_store import FeedbackStore


@dataclass(frozen=True, eq=False)
class FeedbackIntake:
    """The way into one store; lives on the event loop's thread."""

    checks: FeedbackChecks
    log: PredictionLog
    writer: FeedbackWriter

    @classmethod
    def start(
        cls,
        store: FeedbackStore,
        config: ServeConfig,
        registry: Registry,
        instruments: Instruments,
    ) -> FeedbackIntake:
        """Start the thread that writes to ``store``, and closes it in the end."""
        log = PredictionLog(LogInputs(config.log_inputs), instruments.predictions_dropped)
        return cls(
            checks=FeedbackChecks(registry, max_text_chars=config.max_text_chars),
            log=log,
            writer=FeedbackWriter(store, log, instruments),
        )

    async def close(self) -> None:
        """Write what waits, end the thread, close the store."""
        await self.writer.close()


def open_store(url: str | None) -> FeedbackStore | None:
    """The store at ``url``, if any; raises as ``FeedbackStore.open``."""
    if url is None:
        return None
    from edgewright.serve.feedback_store import FeedbackStore

    return FeedbackStore.open(url)
