"""``edgewright feedback``: what a store has gathered, as training data or in figures."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.options import Command, Group, output_options
from edgewright.output import Output

_EXAMPLES = (
    "edgewright feedback export sqlite:///feedback.db -o feedback.parquet",
    "edgewright feedback report sqlite:///feedback.db",
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
    ),
)
@_STORE
@click.option(
    "-o",
    "--output-file",
    "target",
    required=True,
    type=click.Path(path_type=Path),
    help="Parquet file to write.",
)
@_SINCE
@_MODEL
@click.option("--overwrite", is_flag=True, help="Replace the file that is there.")
@output_options
def export(
    store_url: str,
    target: Path,
    since: datetime | None,
    model: str | None,
    overwrite: bool,
    output: Output,
) -> None:
    """Write labelled texts for `edgewright finetune --from CHECKPOINT --add FILE`.

    Of several entries about one prediction the last one received counts. Entries whose text was
    neither logged nor sent along are counted, and left out.
    """
    feedback_export, store = _open(store_url)
    with store:
        selection = feedback_export.Selection(since, model)
        done = feedback_export.export(store, target, selection, overwrite=overwrite)
    labels = dict(sorted(done.labels.items()))
    output.result(
        {
            "file": str(target),
            "entries": done.entries,
            "exported": done.exported,
            "without_input": done.without_input,
            "superseded": done.superseded,
            "labels": labels,
        },
        [
            f"{target}: {done.exported} rows of {done.entries} entries; left out are "
            f"{done.without_input} without input and {done.superseded} superseded by a later one",
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
    feedback_export, store = _open(store_url)
    with store:
        figures = feedback_export.report(store, feedback_export.Selection(since, model))
    output.result({"store": str(store.url), **figures}, _lines(figures))


def _open(store_url: str) -> tuple[Any, Any]:
    try:  # here, so that help and refusals need not wait for it
        from edgewright.serve import feedback_export
        from edgewright.serve.feedback_store import FeedbackStore
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"feedback needs {error.name}; pip install 'edgewright[serve]'"
        ) from error
    return feedback_export, FeedbackStore.open(store_url, create=False)


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
