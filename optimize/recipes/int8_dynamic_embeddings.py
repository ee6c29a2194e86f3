"""The dynamic int8 file with its embedding tables in int8 too: the smallest without calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.errors import ConfigError
from edgewright.optimize.embeddings import quantize_embeddings
from edgewright.optimize.recipes import Materials, Recipe, int8_options
from edgewright.optimize.recipes.int8_dynamic import dynamic_file


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    path = materials.folder / "int8-dynamic-embeddings.onnx"
    if not quantize_embeddings(dynamic_file(materials), path):
        raise ConfigError("no table of embeddings is in it: it would be int8-dynamic once more")
    return dict.fromkeys(backends, path)


RECIPE = Recipe("int8-dynamic-embeddings", _make, int8_options)
