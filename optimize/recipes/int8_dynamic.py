"""int8 weights, activations scaled at every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.errors import ConfigError
from edgewright.optimize.quantize import is_convolutional, quantize_dynamic
from edgewright.optimize.recipes import Materials, Recipe, int8_options


def dynamic_file(materials: Materials) -> Path:
    """The file, written when it is not there yet.

    Raises:
        ConfigError: the library cannot make it, or it would stay fp32.
    """
    if is_convolutional(materials.source):
        raise ConfigError(
            "most of it are convolutions, which have fixed ranges or none: it would stay fp32"
        )
    path = materials.folder / "int8-dynamic.onnx"
    if not path.exists():
        quantize_dynamic(materials.source, path, reduce_range=materials.reduce_range)
    return path


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    return dict.fromkeys(backends, dynamic_file(materials))


RECIPE = Recipe("int8-dynamic", _make, int8_options)
