"""Runtimes behind one contract: what optimize measures is what serve runs.

``BACKENDS`` maps a backend's name to the module that implements it, imported when it is asked for.
Adding a runtime is one file and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.backends.placement import Placement
from edgewright.errors import BackendUnavailableError

BACKENDS: Final = {
    "onnxruntime": "edgewright.backends.onnxruntime",
    "openvino": "edgewright.backends.openvino",
    "onnxruntime-cuda": "edgewright.backends.onnxruntime_cuda",
    "tensorrt": "edgewright.backends.tensorrt",
}

ON_CPU: Final = ("onnxruntime", "openvino")  # which other processes can load beside this one


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a tensor; -1 stands for a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Session(Protocol):
    """A loaded model. ``run`` may be called from one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first."""
        ...


class PlacedSession(Session, Protocol):
    """A session of a file, which can tell what became of it."""

    def placement(self) -> Placement:
        """Which products run in integers, what was fused, where every node runs."""
        ...


class Backend(Protocol):
    """A runtime that loads ONNX files."""

    name: str

    def runtime(self) -> str:
        """Library and version, and the GPU where one computes, as bound by a certificate.

        As "onnxruntime 1.32.0".
        """
        ...

    def load(
        self, path: Path, *, threads: int, options: Mapping[str, str] | None = None
    ) -> PlacedSession:
        """Load an ONNX file on ``threads`` intra-op threads.

        Raises:
            BackendUnavailableError: the runtime cannot load here; says what to install.
            IntegrityError: the file is no model that the runtime can read.
        """
        ...

    def load_instances(
        self, path: Path, count: int, *, threads: int, options: Mapping[str, str] | None = None
    ) -> Sequence[Session]:
        """``count`` sessions that may run at once, on ``threads`` each; raises as ``load``.

        Where the runtime allows they hold the weights once, and one may stand there several times.
        """
        ...


def get_backend(name: str) -> Backend:
    """The backend of this name.

    Raises:
        BackendUnavailableError: unknown, or its library is not installed; says how to install it.
    """
    if name not in BACKENDS:
        raise BackendUnavailableError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}")
    backend: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    backend.runtime()
    return backend


def installed_backends() -> list[str]:
    """Names of the backends whose libraries are installed here."""
    found = []
    for name in BACKENDS:
        try:
            get_backend(name)
        except BackendUnavailableError:
            continue
        found.append(name)
    return found


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Scores of shape (rows, classes) from logits of the same shape, summing to 1 by row."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return np.asarray(scores, dtype=np.float32)
