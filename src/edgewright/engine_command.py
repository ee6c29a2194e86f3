"""The ``edgewright build-engine`` command, which a GPU host runs before it serves."""

from __future__ import annotations

from pathlib import Path

import click

from edgewright.options import Command, output_options, state_dir_option
from edgewright.output import Output


@click.command(
    "build-engine",
    cls=Command,
    examples=(
        "edgewright build-engine bundle/",
        "edgewright build-engine repository/news/3 --state-dir /var/lib/edgewright --json",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@state_dir_option
@output_options
def build_engine(bundle: Path, state_dir: Path | None, output: Output) -> None:
    """Build the TensorRT engines of BUNDLE on this GPU host, and hold them against its goldens.

    Engines that are there already and fit this TensorRT, driver and GPU are not built again. An
    engine whose goldens come out is recorded, and a server with the same state folder takes it.
    Exits with 4 when an engine cannot be built or answers otherwise, with 5 without a GPU.
    """
    from edgewright.bundle import Bundle
    from edgewright.errors import IntegrityError
    from edgewright.proof.engines import build_and_prove
    from edgewright.state_dir import StateDir

    opened, state = Bundle.open(bundle), StateDir.at(state_dir)
    proofs, faults = build_and_prove(
        opened, state, tell=lambda name: output.note(f"{name}: build and prove")
    )
    output.result(
        {
            "bundle": str(bundle),
            "state_dir": str(state.path),
            "engines": [each.to_json() for each in proofs],
            "faults": faults,
        },
        [
            f"{each.variant}: {each.goldens} goldens agree (scores within "
            f"{each.largest_difference:.2g}, {each.labels_changed} labels changed); "
            f"{each.integer_products} products in int8, {each.float_products} in float; "
            f"{state.engines}/{each.key.digest}.engine"
            for each in proofs
        ],
    )
    if faults:
        raise IntegrityError("; ".join(faults))
