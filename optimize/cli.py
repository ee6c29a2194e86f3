"""The ``edgewright optimize`` command."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from edgewright.backends import BACKENDS
from edgewright.optimize.config import PREFERENCES, SPEED, OptimizeConfig
from edgewright.optimize.given import Given
from edgewright.options import Command, config_option, output_options
from edgewright.output import Output

_PATH = click.Path(path_type=Path)


_EXAMPLES = (
    "edgewright optimize checkpoint -o bundle",
    "edgewright optimize checkpoint -o bundle --max-drop 0.02 --confidence 0.9",
    "edgewright optimize checkpoint -o bundle --backend onnxruntime --workload 1x32:0.5,8x128:0.5",
    "edgewright optimize checkpoint -o bundle --prefer size",
    "edgewright optimize checkpoint -o bundle --backend tensorrt",
    "edgewright optimize checkpoint -o bundle --certify fresh.csv",
    "edgewright optimize ./distilbert-sst2 -o bundle --calibrate rows.csv --certify others.csv",
    "edgewright optimize model.onnx -o bundle --preprocessing ./tokenizer --labels no,yes "
    "--calibrate rows.csv --certify unlabelled.csv",
    "edgewright optimize checkpoint -o bundle --mixed-seconds 300",
    "edgewright optimize checkpoint -o bundle --config run.yaml --overwrite --json",
)


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("checkpoint", type=_PATH)
@click.option(
    "-o", "--output-folder", "bundle", type=_PATH, required=True, help="Bundle folder to write."
)
@click.option(
    "--max-drop",
    type=float,
    default=0.01,
    help="Accuracy that may be lost, as a share of rows: 0.01 is one point.",
)
@click.option(
    "--confidence", type=float, default=0.95, help="That no more than --max-drop is lost."
)
@click.option(
    "--prefer",
    type=click.Choice(PREFERENCES),
    default=SPEED,
    help="What is best among those that pass: the fastest, or the smallest not slower than fp32.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(list(BACKENDS)),
    help=(
        "Runtime to consider; repeatable. Without a GPU, tensorrt prepares what `edgewright "
        "build-engine` builds on one.  [default: all that are installed]"
    ),
)
@click.option(
    "--workload",
    metavar="SHAPES",
    help=(
        "Rows x tokens : share of calls, as 1x32:0.5,8x128:0.5.  "
        "[default: single texts and batches as long as the data]"
    ),
)
@click.option(
    "--calibrate",
    metavar="DATA",
    help="Rows for value ranges and for the search, in place of the checkpoint's; needed where "
    "CHECKPOINT is a model that finetune did not make. A table, a folder of images, or a hub id.",
)
@click.option(
    "--certify",
    metavar="DATA",
    help="Likewise, rows on which the loss is bounded. Without labels it is bounded by how often "
    "answers differ from the model's.",
)
@click.option("--text-column", help="Of these tables.  [default: the one with a usual name]")
@click.option("--label-column", help="Of these tables.  [default: the one with a usual name]")
@click.option("--image-column", help="Of these tables, with paths of image files.")
@click.option(
    "--preprocessing",
    metavar="FOLDER",
    help="Tokenizer or image processor of such a model.  [default: beside it]",
)
@click.option(
    "--labels",
    metavar="A,B,C",
    help="Its classes in the order of its outputs, or a file with one a line.  "
    "[default: as its config.json says]",
)
@click.option(
    "--max-length", type=int, help="Tokens that its texts are cut to.  [default: all it can take]"
)
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--opset", type=int, help="Of the ONNX export.  [default: the exporter's]")
@click.option("--threads", type=int, default=1, help="Threads of one session.")
@click.option(
    "--mixed-seconds",
    type=float,
    default=60.0,
    metavar="SECONDS",
    help=(
        "Time for finding the layers to keep in float where int8 loses more than --max-drop on "
        "the search split; 0 looks for none."
    ),
)
@click.option(
    "--ledger",
    type=_PATH,
    help="Folder that records how often certify rows were used.  [default: beside CHECKPOINT]",
)
@click.option(
    "--allow-inconclusive",
    is_flag=True,
    help="Ship what too few rows could not decide; the bundle says so.",
)
@click.option(
    "--no-raw-examples",
    is_flag=True,
    help="Keep token ids or pixels in the bundle, but no text and no image file.",
)
@click.option("--seed", type=int, default=0, help="Of everything that draws at random.")
@click.option("--overwrite", is_flag=True, help="Replace BUNDLE when it exists.")
@config_option
@output_options
def optimize(output: Output, bundle: Path, backends: tuple[str, ...], **options: Any) -> None:
    """Make CHECKPOINT small and fast, and prove that it still answers as well.

    CHECKPOINT is what `edgewright finetune` wrote, a Hugging Face classifier (a folder or hub id),
    or an ONNX file.

    Exports the model, quantises it, times every file on every runtime, and certifies on rows that
    nothing else has seen that the fastest loses at most --max-drop. Exits with 3 when all that is
    faster loses more, with 7 when there are too few rows to tell; then no bundle is written and the
    report lies in BUNDLE.rejected.
    """
    from edgewright.optimize.pipeline import run

    given = Given(**{each.name: options.pop(each.name) for each in fields(Given)})
    config = OptimizeConfig(output=bundle, backends=tuple(backends), given=given, **options)
    run(config, output)
