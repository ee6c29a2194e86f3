"""What of a server changes with the models that it holds, beside the registry."""

from __future__ import annotations

from edgewright.serve.admission import Queue
from edgewright.serve.health import HealthService
from edgewright.serve.instruments import Instruments
from edgewright.serve.models import ServedModel
from edgewright.serve.registry import Lineup, Registry, State


class ServerSurroundings:
    """The queue, health and metrics; lives on the event loop."""

    def __init__(
        self,
        registry: Registry,
        queue: Queue,
        health: HealthService,
        instruments: Instruments,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._health = health
        self._instruments = instruments

    def came(self, model: ServedModel) -> None:
        """Count what it does."""
        self._instruments.model_loaded(model)

    def changed(self, name: str, lineup: Lineup | None) -> None:
        """Say in health what answers now."""
        if self._registry.state is not State.DRAINING:
            answers = self._registry.state is State.READY and lineup is not None
            self._health.set([name], serving=answers)

    def is_busy(self, model: ServedModel) -> bool:
        """Whether rows of it are between admission and answer."""
        return self._queue.rows_of(model) > 0

    def left(self, model: ServedModel) -> None:
        """End its series in the metrics."""
        self._instruments.model_unloaded(model)
