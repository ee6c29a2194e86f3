"""``edgewright predict``: texts or image files, to a server and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgewright.connection_options import ConnectionOptions, connection_options
from edgewright.errors import ConfigError, InputError
from edgewright.options import Command, config_option, output_options
from edgewright.output import Output
from edgewright.tables.image_folder import ImageFile, image_missing
from edgewright.texts import Text, read_texts, split_lines

if TYPE_CHECKING:  # gRPC is imported when there is something to send
    from edgewright.client import Classification, Client

_EXCERPT: Final = 60  # characters of a text shown beside its class
_OTHER_KIND: Final = {
    "ClassifyText": "give TEXT or --file ROWS, not --image",
    "ClassifyImage": "give --image FILE",
}


@click.command(
    "predict",
    cls=Command,
    examples=(
        'edgewright predict --target localhost:8001 --model news "Shares rose four per cent"',
        "edgewright predict --target localhost:8001 --model news --file field.csv --json",
        "head -n 20 lines.txt | edgewright predict --target localhost:8001 --model news -",
        "edgewright predict --target localhost:8001 --model pets --image cat.jpg --image dog.png",
        "edgewright predict --target field:8001 --tls-ca ca.pem --token-file mine.token Shares",
    ),
)
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option("--target", metavar="HOST:PORT", required=True, help="Where the server answers.")
@click.option(
    "--model",
    default="",
    show_default=False,
    help="Model to ask; needed where the server holds several.",
)
@click.option(
    "--file",
    metavar="ROWS",
    type=click.Path(path_type=Path),
    help="Rows to classify: csv, tsv, jsonl, or txt with one text a line.",
)
@click.option(
    "--image",
    "images",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Image to classify; may be repeated.",
)
@click.option("--text-column", help="Column of ROWS that holds the text, where it is not plain.")
@click.option(
    "--top-k",
    type=click.IntRange(0),
    default=0,
    help="Classes to give for each text or image, best first; 0 is all.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    help="Seconds that each request of up to 64 texts or images may take.",
)
@connection_options
@config_option
@output_options
def predict(
    texts: tuple[str, ...],
    target: str,
    model: str,
    file: Path | None,
    images: tuple[Path, ...],
    text_column: str | None,
    top_k: int,
    timeout: float,
    connection: ConnectionOptions,
    output: Output,
) -> None:
    """Classify TEXTs, the lines of standard input (-), the rows of a file, or images."""
    inputs: list[Text] | list[ImageFile]
    inputs = _images(images, texts, file) if images else _inputs(texts, file, text_column)
    with connection.client(target, timeout) as client:
        answers = list(_classify(client, inputs, model, top_k, output))
    cut = sum(answer.truncated for answer in answers)
    if cut:
        output.note(f"{cut} of {len(answers)} texts were longer than the model reads, and were cut")
    output.result(
        {"target": target, "model": model, "predictions": [_to_json(each) for each in answers]},
        _table(inputs, answers, shown=max(top_k, 1)),
    )


def _images(images: Sequence[Path], texts: Sequence[str], file: Path | None) -> list[ImageFile]:
    if texts or file is not None:
        raise ConfigError("--image is given along with texts; classify one kind at a time")
    missing = [image_missing(path) for path in images if not path.is_file()]
    if missing:
        raise ConfigError(missing)
    return [ImageFile(path, str(path)) for path in images]


def _inputs(texts: Sequence[str], file: Path | None, column: str | None) -> list[Text]:
    if file is not None and texts:
        raise ConfigError("TEXT and --file are both given; choose one")
    if file is None and column is not None:
        raise ConfigError("--text-column says where in --file the text is; give --file too")
    if file is not None:
        return read_texts(file, column)
    if texts == ("-",) or (not texts and not sys.stdin.isatty()):
        return split_lines(sys.stdin.buffer.read(), "standard input")
    if not texts:
        raise ConfigError("nothing to classify; give a TEXT, --file ROWS, or - for standard input")
    return [Text(text, f"TEXT {number}") for number, text in enumerate(texts, 1)]


def _classify(
    client: Client,
    inputs: Sequence[Text] | Sequence[ImageFile],
    model: str,
    top_k: int,
    output: Output,
) -> Iterator[Classification]:
    """Every answer, one request after the other; each has its own deadline."""
    from edgewright.call_inputs import MAX_TEXTS

    with output.progress() as progress:
        task = progress.add_task("classify", total=len(inputs), status="")
        for start in range(0, len(inputs), MAX_TEXTS):
            chunk = inputs[start : start + MAX_TEXTS]
            try:
                yield from _answers(client, chunk, model, top_k)
            except InputError as error:
                raise _placed(error, chunk) from error
            progress.advance(task, len(chunk))


def _answers(
    client: Client, chunk: Sequence[Text] | Sequence[ImageFile], model: str, top_k: int
) -> list[Classification]:
    images = [each.read() for each in chunk if isinstance(each, ImageFile)]
    if images:
        return client.classify_images(images, model=model, top_k=top_k)
    texts = [each.content for each in chunk if isinstance(each, Text)]
    return client.classify(texts, model=model, top_k=top_k)


def _placed(error: InputError, chunk: Sequence[Text] | Sequence[ImageFile]) -> InputError:
    """The error with the place of the input at fault, where it names one, in terms of options."""
    method = re.search("; call (Classify(?:Text|Image))$", str(error))
    if method is not None:  # by a program, that is
        return InputError(
            f"{str(error)[: method.start()]}; {_OTHER_KIND[method[1]]}", field=error.field
        )
    index = re.fullmatch(r"(?:texts|images)\[(\d+)\]", error.field)
    if index is None or int(index[1]) >= len(chunk):
        return error
    at_fault = chunk[int(index[1])]
    place = at_fault.place if isinstance(at_fault, Text) else at_fault.name
    return InputError(f"{place}: {error}", field=error.field)


def _to_json(answer: Classification) -> dict[str, Any]:
    return {
        "prediction_id": answer.prediction_id,
        "label": answer.label,
        "score": answer.score,
        "scores": {each.label: each.score for each in answer.scores},
        "truncated": answer.truncated,
    }


def _table(
    inputs: Sequence[Text] | Sequence[ImageFile], answers: Sequence[Classification], shown: int
) -> Iterator[str]:
    """One line an input: its best classes with their scores, and how a text begins."""
    longest = (len(each.label) for answer in answers for each in answer.scores[:shown])
    width = max(longest, default=0)
    names = [each.content if isinstance(each, Text) else each.name for each in inputs]
    for name, answer in zip(names, answers, strict=True):
        classes = (f"{each.label:<{width}} {each.score:6.4f}" for each in answer.scores[:shown])
        yield f"{'  '.join(classes)}  {_excerpt(name)}"


def _excerpt(text: str) -> str:
    """The beginning on one line, without characters that would steer the terminal."""
    line = "".join(each if each.isprintable() else " " for each in text[: 4 * _EXCERPT])
    words = " ".join(line.split())
    return words if len(words) <= _EXCERPT else f"{words[: _EXCERPT - 1]}…"
