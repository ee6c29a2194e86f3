"""bf16 arithmetic on the fp32 file, where the CPU has instructions for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.errors import ConfigError
from edgewright.optimize.recipes import OPENVINO, OPENVINO_BF16, Materials, Options, Recipe


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    if not materials.bf16:
        raise ConfigError("this CPU has no bf16 instructions: it would be fp32, or far slower")
    return dict.fromkeys(backends, materials.source)


def _options(_materials: Materials) -> Options:
    return {OPENVINO: OPENVINO_BF16}


RECIPE = Recipe("bf16", _make, _options, only={OPENVINO})
