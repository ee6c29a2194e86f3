"""LitServe: processes that compute, batches that its loop collects."""

from __future__ import annotations

from typing import Any

import litserve
from numpy.typing import NDArray

from benchmarks.servers.classifier import Classifier
from benchmarks.servers.job import ServeJob

JOB = ServeJob.read()


class Texts(litserve.LitAPI):
    """Its hooks, in the order in which a request passes them."""

    def setup(self, device: str) -> None:
        """In every worker."""
        self.classify = Classifier(JOB)

    def decode_request(self, request: dict[str, str]) -> str:
        """A body."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """As they are: there is nothing to stack."""
        return inputs

    def predict(self, texts: list[str]) -> NDArray[Any]:
        """All of a batch."""
        return self.classify(texts)

    def unbatch(self, output: NDArray[Any]) -> list[NDArray[Any]]:
        """A row each."""
        return list(output)

    def encode_response(self, output: NDArray[Any]) -> dict[str, list[float]]:
        """A body."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Texts(max_batch_size=JOB.batch, batch_timeout=JOB.delay_ms / 1000),
        accelerator="cpu",
        workers_per_device=JOB.workers,
        **JOB.extra.get("server", {}),
    )
    server.run(
        host="127.0.0.1",
        port=JOB.port,
        log_level="error",
        generate_client_file=False,
        **JOB.extra.get("run", {}),
    )
