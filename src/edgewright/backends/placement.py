"""What a runtime makes of a file: which products run in integers, and where every node runs.

A file with int8 weights is a wish. A runtime that cannot match its QuantizeLinear and
DequantizeLinear to a kernel dequantises the weights at every call and multiplies in float: slower
than fp32, with int8's errors. So nobody believes the file: each session tells what it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

INTEGER: Final = "int8"


class Role(StrEnum):
    """What an operation is for."""

    PRODUCT = "product"  # matrix product or convolution: where the time goes
    QUANTIZE = "quantize"
    DEQUANTIZE = "dequantize"
    OTHER = "other"


@dataclass(frozen=True)
class Operation:
    """One node as the runtime runs it."""

    name: str
    kind: str  # the runtime's word: "MatMulIntegerToFloat", "FullyConnected"
    role: Role
    precision: str  # that it computes in: "int8", "fp32", "bf16", "fp16"; "" where it is not told
    device: str  # "CPUExecutionProvider", "CPU", "NVIDIA H200"
    fused: bool = False  # several nodes of the file, or one that the file does not have


@dataclass(frozen=True)
class Placement:
    """Everything that one loaded session runs."""

    runtime: str  # "onnxruntime"
    operations: tuple[Operation, ...]

    @property
    def integer_products(self) -> int:
        """Products that multiply 8-bit integers."""
        return self._products()[INTEGER]

    @property
    def float_products(self) -> dict[str, int]:
        """How many products run in each other precision."""
        return {name: count for name, count in self._products().items() if name != INTEGER}

    @property
    def fused(self) -> dict[str, int]:
        """How many operations of each kind stand for several of the file's, or for other ones."""
        return dict(Counter(each.kind for each in self.operations if each.fused))

    @property
    def devices(self) -> dict[str, int]:
        """How many operations run on each device or provider."""
        return dict(Counter(each.device for each in self.operations))

    def left(self, role: Role) -> int:
        """How many operations have a role: the QUANTIZE or DEQUANTIZE that nothing took in."""
        return sum(each.role is role for each in self.operations)

    def to_json(self) -> dict[str, Any]:
        """Counts, as the bundle's measurements keep them."""
        return {
            "integer_products": self.integer_products,
            "float_products": self.float_products,
            "quantize_left": self.left(Role.QUANTIZE),
            "dequantize_left": self.left(Role.DEQUANTIZE),
            "fused": self.fused,
            "devices": self.devices,
        }

    def _products(self) -> Counter[str]:
        products = (each for each in self.operations if each.role is Role.PRODUCT)
        return Counter(each.precision for each in products)


def computed_in_float(placement: Placement) -> str | None:
    """Why an int8 file is none on this runtime: no product of it runs in integers; else None.

    Some products may stay in float on purpose, as the scores of attention; all of them never. Where
    the runtime does not tell of every product what it computes in, nothing is claimed.
    """
    in_float = placement.float_products
    if placement.integer_products or not in_float or "" in in_float:
        return None
    products = sum(in_float.values())
    return (
        f"{placement.runtime} computes it in float: none of {products} products runs in integers,"
        f" and {placement.left(Role.DEQUANTIZE)} dequantisations are left"
    )


def what_runs(placements: Mapping[str, Placement]) -> list[dict[str, str]]:
    """The report's table: for each variant, by name, what stands in each column."""
    return [
        {
            "variant": name,
            "products in int8": str(each.integer_products),
            "products in float": _counts(each.float_products) or "0",
            "quantize left": str(each.left(Role.QUANTIZE)),
            "dequantize left": str(each.left(Role.DEQUANTIZE)),
            "fused": _counts(each.fused) or "nothing",
            "runs on": _counts(_plain(each.devices)),
        }
        for name, each in placements.items()
    ]


def _plain(devices: Mapping[str, int]) -> dict[str, int]:
    """The devices by their names alone: ONNX Runtime calls the CPU CPUExecutionProvider."""
    return {name.removesuffix("ExecutionProvider"): count for name, count in devices.items()}


def _counts(counts: Mapping[str, int]) -> str:
    """As "12 LayerNormalization, 6 BiasGelu", the most first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}".strip() for name, count in ranked)
