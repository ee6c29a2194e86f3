"""The exported file after exact graph work: the gain of the graph alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.errors import ConfigError
from edgewright.optimize.recipes import Materials, Recipe, float_options


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    if materials.worked is None:
        raise ConfigError("no exact rewriting was applied: it would be fp32 once more")
    return dict.fromkeys(backends, materials.worked)


RECIPE = Recipe("fp32-graph", _make, float_options)
