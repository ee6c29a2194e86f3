"""MLServer: a runtime of its own kind with adaptive batching, over gRPC (OIP v2)."""

from __future__ import annotations

import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import install_uvloop_event_loop

from benchmarks.servers.classifier import Classifier
from benchmarks.servers.job import ServeJob

JOB = ServeJob.read()


class Texts(MLModel):
    """A batch of texts to rows of scores."""

    async def load(self) -> bool:
        """In every worker."""
        self.classify = Classifier(JOB)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Those of several calls together, put together by MLServer."""
        scores = self.classify(StringCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)]
        )


async def _serve() -> None:
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        grpc_port=JOB.port,
        http_port=JOB.extra["http_port"],
        metrics_port=JOB.extra["metrics_port"],
        metrics_dir=JOB.extra["metrics_dir"],
        parallel_workers=JOB.workers,
        load_models_at_startup=True,
    )
    model = ModelSettings(
        name="texts",
        implementation="benchmarks.servers.mlserver_server.Texts",  # its workers import it
        max_batch_size=JOB.batch,
        max_batch_time=JOB.delay_ms / 1000,
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    install_uvloop_event_loop()  # as its command line does
    asyncio.run(_serve())
