"""``edgewright feedback``: what a store has gathered, as training data or in figures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.options import Command, Group, output_options
from edgewright.output import Output

if TYPE_CHECKING:
    from edgewright.serve.feedback_store import FeedbackStore

_EXAMPLES = (
    "edgewright feedback export sqlite:///feedback.db -o feedback.parquet",
    "edgewright feedback report sqlite:///feedback.db",
    "edgewright feedback prune sqlite:///feedback.db --older-than 90",
)


def _read_since(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise ConfigError(
            f"--since {value}: a date or time in ISO 8601 is expected, as in 2026-01-31 or "
            "2026-01-31T18:00:00+01:00"
        ) from error
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


_STORE = click.argument("store_url", envvar="EDGEWRIGHT_FEEDBACK")
_SINCE = click.option(
    "--since", metavar="TIME", callback=_read_since, help="Only what was received from then on."
)
_MODEL = click.option("--model", help="Only what is about this model.")


@click.group(cls=Group, examples=_EXAMPLES)
def feedback() -> None:
    """Turn what a server's store has gathered into training data, or figures.

    STORE_URL is what `edgewright serve --feedback` was given; it may come from EDGEWRIGHT_FEEDBACK
    as well, where it does not show in the list of processes. The server may go on meanwhile.
    """


@feedback.command(
    "export",
    cls=Command,
    examples=(
        "edgewright feedback export sqlite:///feedback.db -o feedback.parquet",
        "edgewright feedback export sqlite:///feedback.db -o new.parquet --since 2026-01-31",
        "edgewright feedback export sqlite:///feedback.db -o pets-feedback --model pets",
    ),
)
@_STORE
@click.option(
    "-o",
    "--output-file",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="FILE.parquet to write or, of images, a folder.",
)
@_SINCE
@_MODEL
@click.option("--overwrite", is_flag=True, help="Replace the export that is there.")
@output_options
def export(
    store_url: str,
    target: Path,
    since: datetime | None,
    model: str | None,
    overwrite: bool,
    output: Output,
) -> None:
    """Write labelled texts or images for `edgewright finetune --from CHECKPOINT --add`.

    Of images the output is a folder: the files, and metadata.parquet that names them. Of several
    entries about one prediction the last one received counts. Entries whose input was neither
    logged nor sent along are counted, and left out.
    """
    store = _open(store_url)
    from edgewright.serve.feedback_export import export
    from edgewright.serve.feedback_rows import Selection

    with store:
        done = export(store, target, Selection(since, model), overwrite=overwrite)
    labels = dict(sorted(done.labels.items()))
    files = {} if done.images is None else {"images": done.images, "damaged": done.damaged}
    output.result(
        {
            "file" if done.images is None else "folder": str(target),
            "entries": done.entries,
            "exported": done.exported,
            "without_input": done.without_input,
            "superseded": done.superseded,
            **files,
            "labels": labels,
        },
        [
            f"{target}: {done.exported} rows of {done.entries} entries; left out are "
            f"{done.without_input} without input and {done.superseded} superseded by a later one",
            *([f"images          {done.images} files"] if files else []),
            *([f"damaged         {done.damaged} rows: left out too"] if done.damaged else []),
            *_counted(labels),
            f"next            edgewright finetune --from CHECKPOINT --add {target} -o BETTER",
        ],
    )


@feedback.command(
    "report",
    cls=Command,
    examples=(
        "edgewright feedback report sqlite:///feedback.db",
        "edgewright feedback report sqlite:///feedback.db --model news --json",
    ),
)
@_STORE
@_SINCE
@_MODEL
@output_options
def report(store_url: str, since: datetime | None, model: str | None, output: Output) -> None:
    """Count predictions and feedback, and say how often the served model was right."""
    store = _open(store_url)
    from edgewright.serve.feedback_report import report as report_of
    from edgewright.serve.feedback_rows import Selection

    with store:
        figures = report_of(store, Selection(since, model))
    output.result({"store": str(store.url), **figures}, _lines(figures))


@feedback.command(
    "prune",
    cls=Command,
    examples=("edgewright feedback prune sqlite:///feedback.db --older-than 90",),
)
@_STORE
@click.option(
    "--older-than",
    "days",
    required=True,
    metavar="DAYS",
    type=click.IntRange(1, 36500),
    help="Delete what was received or predicted longer ago, and images that nothing names then.",
)
@output_options
def prune(store_url: str, days: int, output: Output) -> None:
    """Delete what is old, for good. Export it first.

    A prediction with later feedback stays, with its image. A file of SQLite does not shrink: the
    room is used again, or given back by `sqlite3 FILE VACUUM`.
    """
    store = _open(store_url)
    from edgewright.serve.feedback_prune import prune as prune_store

    before = datetime.now(UTC) - timedelta(days=days)
    with store:
        done = prune_store(store, before)
    output.result(
        {
            "before": before.isoformat(timespec="seconds"),
            "entries": done.entries,
            "predictions": done.predictions,
            "images": done.images,
        },
        [
            f"deleted         {done.entries} entries, {done.predictions} predictions, "
            f"{done.images} images from before {before:%Y-%m-%d %H:%M} UTC"
        ],
    )


def _open(store_url: str) -> FeedbackStore:
    try:  # here, so that help and refusals need not wait for it
        from edgewright.serve.feedback_store import FeedbackStore
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"feedback needs {error.name}; pip install 'edgewright[serve]'"
        ) from error
    return FeedbackStore.open(store_url, create=False)


def _lines(figures: dict[str, Any]) -> list[str]:
    lines = [
        f"predictions     {figures['predictions']}, {figures['predictions_with_input']} of them "
        "with input",
        f"entries         {figures['entries']}, {figures['superseded']} of them superseded by a "
        "later one",
        f"unmatched       {figures['unmatched']}: no prediction of that id is logged",
        f"without input   {figures['without_input']}: cannot be exported",
        *_counted(figures["labels"]),
    ]
    for name, each in figures["models"].items():
        lines.append(
            f"{name:<15} right in {each['agreeing']} of {each['matched']}: {each['agreement']:.4f}"
        )
    return lines


def _counted(labels: dict[str, int]) -> list[str]:
    return [f"labels          {', '.join(f'{k} {v}' for k, v in labels.items()) or 'none'}"]
