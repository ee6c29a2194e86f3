"""PyTriton: Triton's dynamic batcher over Python processes, over gRPC (OIP v2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.servers.classifier import Classifier
from benchmarks.servers.job import ServeJob

JOB = ServeJob.read()


def _worker() -> Callable[..., Any]:
    """For a process, in which the session is made when the first batch comes."""
    made: list[Classifier] = []

    @batch
    def classify(text: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        if not made:
            made.append(Classifier(JOB))
        return {"scores": made[0]([each.decode() for each in text[:, 0]])}

    return classify


if __name__ == "__main__":
    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=JOB.port,
        allow_http=True,
        http_address="127.0.0.1",
        http_port=JOB.extra["http_port"],
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="texts",
            infer_func=[_worker() for _ in range(JOB.workers)],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=JOB.batch,
                batcher=DynamicBatcher(
                    max_queue_delay_microseconds=int(1000 * JOB.delay_ms),
                    **JOB.extra.get("batcher", {}),
                ),
            ),
        )
        triton.serve()
