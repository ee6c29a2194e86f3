"""The exported file as it is: what every other one is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.optimize.recipes import Materials, Recipe, float_options


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    return dict.fromkeys(backends, materials.export.path)


RECIPE = Recipe("fp32", _make, float_options)
