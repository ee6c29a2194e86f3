"""``edgewright finetune``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.finetune.config import (
    AUDITS,
    CACHES,
    CALIBRATIONS,
    CLASS_WEIGHTS,
    DEFAULT_FREEZE,
    DEFAULT_MAX_LENGTH,
    DEFAULT_MODEL,
    DEFAULT_SPLITS,
    DEVICES,
    FORGETTINGS,
    LR_FULL,
    LR_IMAGES_FULL,
    LR_IMAGES_PARTLY_FROZEN,
    LR_LORA,
    LR_PARTLY_FROZEN,
    METRICS,
    PRECISIONS,
    FinetuneConfig,
    parse_freeze,
)
from edgewright.finetune.image_options import AUGMENTS, IMAGENET_CROP
from edgewright.finetune.unfinished import read_decisions
from edgewright.manifest import refuse_existing
from edgewright.options import Command, config_option, output_options
from edgewright.output import Output

_EXAMPLES = (
    "edgewright finetune reviews.csv -o checkpoint",
    "edgewright finetune reviews.csv -o checkpoint --model ./my-bert --freeze 4 --epochs 3",
    "edgewright finetune reviews.csv -o checkpoint --freeze auto",
    "edgewright finetune reviews.csv -o checkpoint --freeze 0 --lora 8",
    "edgewright finetune train.csv -o checkpoint --validation dev.csv --test test.csv",
    "edgewright finetune --from checkpoint --add feedback.parquet -o better",
    "edgewright finetune reviews.csv -o checkpoint --strict",
    "edgewright finetune --from checkpoint --add new.csv --old old.csv --interpolate 0.7 -o mixed",
    "edgewright finetune pictures/ -o checkpoint --model ./my-resnet --augment light",
    "edgewright finetune pictures/ -o checkpoint --model ./my-vit --augment light "
    "--augment-views 4",
    "edgewright finetune -o checkpoint --resume",
    "edgewright finetune --config checkpoint/run.yaml -o again",
    "torchrun --nproc-per-node 2 -m edgewright finetune reviews.csv -o checkpoint",
)


def _read_freeze(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> int | float | str | None:
    return None if value is None else parse_freeze(value)


def _one_label_column(
    _context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]
) -> str | None:
    """The column; click by itself would take the last of several without a word."""
    if len(names) > 1:
        raise ConfigError(
            f"--label-column is given {len(names)} times ({', '.join(names)}): multi-label "
            "classification is not supported; name one column"
        )
    return names[0] if names else None


@click.command(cls=Command, examples=_EXAMPLES)
@click.argument("data", required=False)
@click.option(
    "-o",
    "--output-folder",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint folder to write.",
)
@click.option(
    "--model",
    help="Hub id or local folder of a pre-trained encoder of texts or images, or for images a "
    f"function of yours that makes one, as package.module:factory. [texts: {DEFAULT_MODEL}]",
)
@click.option("--revision", help="Branch, tag or commit of a --model on the hub.")
@click.option("--data-revision", help="Branch, tag or commit of DATA on the hub.")
@click.option(
    "--from",
    "from_checkpoint",
    metavar="CHECKPOINT",
    help="Go on from a checkpoint: its weights, labels, splits.",
)
@click.option("--add", multiple=True, metavar="FILE", help="Further examples; may be repeated.")
@click.option(
    "--new-labels",
    is_flag=True,
    help="Let further examples bring classes that the checkpoint of --from lacks.",
)
@click.option("--text-column", help="Column of the text, where its name does not say so.")
@click.option("--image-column", help="Column with paths of image files, relative to the table.")
@click.option(
    "--label-column",
    multiple=True,
    callback=_one_label_column,
    help="Column of the label, where its name does not say so.",
)
@click.option("--split-column", help="Column with each row's split.")
@click.option("--validation", metavar="FILE", help="Examples for the validation split.")
@click.option("--test", metavar="FILE", help="Examples for the test split.")
@click.option(
    "--splits",
    metavar="SHARES",
    help=f"Percent for train/validation/calibrate/search/certify/test. [default: {DEFAULT_SPLITS}]",
)
@click.option(
    "--max-length", type=int, help=f"Tokens kept of a text. [default: {DEFAULT_MAX_LENGTH}]"
)
@click.option(
    "--freeze",
    callback=_read_freeze,
    metavar="BLOCKS|SHARE|auto",
    help="First blocks that do not train: 4 is four, 0.5 half of them, 0 none; auto tries five "
    f"depths and keeps the deepest that is as good. [default: {DEFAULT_FREEZE}, or as --from]",
)
@click.option(
    "--lora",
    type=int,
    metavar="RANK",
    help="Train adapters of this rank, such as 8, in the blocks that are not frozen; they are "
    "merged into the weights at the end.",
)
@click.option(
    "--head-first/--no-head-first",
    default=True,
    help="Start a new head from a linear probe, so that it does not distort the blocks.",
)
@click.option(
    "--cache",
    type=click.Choice(CACHES),
    default="auto",
    help="Compute the frozen blocks once a row and keep the result on disk; auto: where it pays.",
)
@click.option("--cache-dir", metavar="FOLDER", help="Of --cache. [default: ~/.cache/edgewright]")
@click.option(
    "--blocks",
    metavar="PATHS",
    help="Lists of blocks in a factory's model, in order, as layer1,layer2. [default: blocks]",
)
@click.option(
    "--augment",
    type=click.Choice(AUGMENTS),
    default="none",
    help="Images in training: flip mirrors half of them, crop shows a part, light does both.",
)
@click.option(
    "--augment-views",
    type=int,
    metavar="K",
    help="Make K views of each image, which epochs show in turn, so that --cache can keep them. "
    "[default: a new one in every epoch, computed live]",
)
@click.option("--image-size", help="Pixels that a factory's model takes: 224, or 224x192 (high).")
@click.option("--image-mean", metavar="R,G,B", help="Likewise, of values 0 to 1. [ImageNet's]")
@click.option("--image-std", metavar="R,G,B", help="Likewise. [ImageNet's]")
@click.option(
    "--image-crop",
    type=float,
    help=f"Likewise: share of the shorter side kept; 1 squeezes. [default: {IMAGENET_CROP:g}]",
)
@click.option("--epochs", type=int, default=5, help="Passes over the train split, at most.")
@click.option(
    "--lr",
    type=float,
    help=f"Highest learning rate. [texts: {LR_PARTLY_FROZEN:g} partly frozen, {LR_FULL:g} full; "
    f"images: {LR_IMAGES_PARTLY_FROZEN:g}, {LR_IMAGES_FULL:g} full without batch normalisations; "
    f"with --lora: {LR_LORA:g}]",
)
@click.option(
    "--batch-size", type=int, default=16, help="Rows of one pass; halved when memory is short."
)
@click.option("--accumulate", type=int, default=1, help="Passes of one optimiser step.")
@click.option("--warmup", type=float, default=0.1, help="Share of the steps whose rate rises.")
@click.option(
    "--weight-decay", type=float, default=0.01, help="Of AdamW; none on norms and biases."
)
@click.option(
    "--layer-decay",
    type=float,
    default=1.0,
    help="Factor on the rate from block to block, last to first, as 0.9.",
)
@click.option("--clip-norm", type=float, default=1.0, help="Largest norm of the gradients; 0: any.")
@click.option(
    "--class-weights",
    type=click.Choice(CLASS_WEIGHTS),
    default="none",
    help="balanced: rare classes count as much as common ones.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="accuracy",
    help="Of validation; chooses the epoch that is kept.",
)
@click.option(
    "--patience", type=int, default=2, help="Epochs without a better metric before training stops."
)
@click.option(
    "--calibrate",
    type=click.Choice(CALIBRATIONS),
    default="temperature",
    help="temperature: scores are made to say how often they are right, on validation.",
)
@click.option(
    "--forgetting",
    type=click.Choice(FORGETTINGS),
    default="fast",
    help="fast: what the model knew, before and after; full: and mixed with its old weights.",
)
@click.option("--old", metavar="FILE", help="Examples of the earlier task, with --from.")
@click.option(
    "--interpolate",
    type=float,
    metavar="SHARE",
    help="Share of the new weights in what is written; the rest is the old ones.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    help="auto: bf16 where the hardware has it, fp16 on older GPUs.",
)
@click.option(
    "--device", type=click.Choice(DEVICES), default="auto", help="auto: CUDA where there is one."
)
@click.option("--seed", type=int, default=0, help="Of splits, head, batches and dropout.")
@click.option("--threads", type=int, help="CPU threads. [default: the cores there are]")
@click.option(
    "--audit",
    type=click.Choice(AUDITS),
    default="full",
    help="What to check the examples for; fast: without the encoder's pass for label errors.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse to train on examples with two labels or in two splits, or without anything to be "
    "seen; on label twins; without a row of each class in train, validation and certify; on more "
    "than 20 rows of one class to one of another; on near-duplicates of each other in over a tenth "
    "of the rows.",
)
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint that is there.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a run of this checkpoint that was killed; begin where there is none.",
)
@config_option
@output_options
def finetune(target: Path, overwrite: bool, resume: bool, output: Output, **options: Any) -> None:
    """Fine-tune a pre-trained encoder on the labelled texts or images in DATA.

    DATA is a csv, tsv, jsonl or parquet file, a folder of images with a sub-folder for each class,
    a folder of Hugging Face datasets, or a hub id. The checkpoint holds the weights, the
    preprocessing, every example with its split, the metrics and a report.

    With `torchrun --nproc-per-node 2`, see the example, two processes share the rows of each step.
    """
    config = (_begun(target, options) if resume else None) or FinetuneConfig(**options)
    refuse_existing(target, overwrite=overwrite)
    _refuse_unwritable(target)
    try:  # here, for they import torch: help and refusals need not wait for it
        from edgewright.finetune.pipeline import run
        from edgewright.finetune.process_group import open_processes
        from edgewright.finetune.summary import result_lines
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"finetune needs {error.name}; pip install 'edgewright[train]'"
        ) from error
    with open_processes(config.device) as processes:
        voice = output if processes.is_first else replace(output, mute=True)
        summary = run(
            config, target, overwrite=overwrite, resume=resume, output=voice, processes=processes
        )
    voice.result(summary, result_lines(summary))


def _begun(target: Path, options: dict[str, Any]) -> FinetuneConfig | None:
    """The options of the run that --resume goes on with, where no source of data is given now.

    What is typed besides is among them, to be refused where it is not what the run was begun with.
    """
    decisions = read_decisions(target)
    if decisions is None or options["data"] or options["from_checkpoint"]:
        return None
    source = click.get_current_context().get_parameter_source
    typed = {k: v for k, v in options.items() if source(k) is not ParameterSource.DEFAULT}
    return replace(FinetuneConfig.from_mapping(decisions.asked), **typed)


def _refuse_unwritable(target: Path) -> None:
    """Find out now rather than after the training."""
    parent = next(each for each in target.absolute().parents if each.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise ConfigError(f"{target}: cannot write below {parent}; choose another path")
