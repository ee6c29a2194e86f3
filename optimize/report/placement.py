"""What runs of every file, and how much of an int8 one is int8: a file is only a wish."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from edgewright.backends.placement import INTEGER, Operation, Placement, Role, what_runs
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.report import Block, DataTable, Section

_ALIKE_SHOWN: Final = 20
_LAYER: Final = re.compile(r"(?<=[./])\d+(?=[./])")


def placement_sections(outcome: Outcome) -> list[Section]:
    """Products by arithmetic, roundings left and devices, by candidate; none where none told."""
    if not outcome.placements:
        return []
    table = what_runs(outcome.placements)
    caption = "As each runtime tells of its own graph, after fusing."
    rows = [list(row.values()) for row in table]
    columns = ["candidate", *list(table[0])[1:]]
    return [Section("What runs", [DataTable(columns, rows, caption, wraps=[5])])]


def coverage_sections(outcome: Outcome, shown: Standing) -> list[Section]:
    """How many products of each int8 file run in integers, and which of ``shown`` do not."""
    int8 = {name: each for name, each in outcome.placements.items() if _is_int8(outcome, name)}
    if not int8:
        return []
    table = DataTable(
        ["candidate", "products", "in int8", "share", "in float, by kind"],
        [_coverage(name, each) for name, each in int8.items()],
        "A product is a matrix product or a convolution: where the time goes.",
        wraps=[4],
    )
    blocks: list[Block] = [table]
    if shown.name in int8:
        blocks += _left_in_float(shown.name, _float_products(int8[shown.name]))
    intro = (
        "Products of two activations, as the scores of attention, stay in float on purpose; so do "
        "layers that mixed precision took back."
    )
    return [Section("Coverage of int8", blocks, intro)]


def _is_int8(outcome: Outcome, name: str) -> bool:
    return any(
        each.name == name and each.precision.startswith(INTEGER) for each in outcome.standings
    )


def _coverage(name: str, placement: Placement) -> list[str]:
    floats = _float_products(placement)
    total = placement.integer_products + len(floats)
    kinds = Counter(
        f"{each.kind} in {each.precision}" if each.precision else each.kind for each in floats
    )
    return [
        name,
        str(total),
        str(placement.integer_products),
        f"{placement.integer_products / total:.0%}" if total else "–",
        ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none",
    ]


def _float_products(placement: Placement) -> list[Operation]:
    return [
        each
        for each in placement.operations
        if each.role is Role.PRODUCT and each.precision != INTEGER
    ]


def _left_in_float(name: str, floats: list[Operation]) -> list[Block]:
    alike = Counter((_LAYER.sub("*", each.name), each.kind, each.precision) for each in floats)
    if not alike:
        return []
    caption = f"Products of {name} that do not run in integers; * stands for the layers' numbers"
    if len(alike) > _ALIKE_SHOWN:
        caption += f"; the first {_ALIKE_SHOWN} of {len(alike)}"
    rows = [
        [product, str(count), kind, precision or "–"]
        for (product, kind, precision), count in list(alike.items())[:_ALIKE_SHOWN]
    ]
    columns = ["product", "times", "kind", "computes in"]
    return [DataTable(columns, rows, f"{caption}.", wraps=[0])]
