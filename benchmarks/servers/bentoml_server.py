"""BentoML: a batchable method of a service with workers; run by ``bentoml serve``."""

from __future__ import annotations

import bentoml

from benchmarks.servers.classifier import Classifier
from benchmarks.servers.job import ServeJob

JOB = ServeJob.read()


@bentoml.service(
    workers=JOB.workers,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    **JOB.extra.get("service", {}),
)
class Texts:
    """One method."""

    def __init__(self) -> None:
        self.classifier = Classifier(JOB)

    @bentoml.api(
        batchable=JOB.extra.get("batchable", True),
        max_batch_size=JOB.batch,
        max_latency_ms=JOB.extra.get("max_latency_ms", 60_000),
    )
    def classify(self, texts: list[str]) -> list[list[float]]:
        """Those of several calls together."""
        return self.classifier(texts).tolist()
