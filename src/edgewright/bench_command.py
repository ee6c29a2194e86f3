"""``edgewright bench``: load on a running server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgewright.connection_options import ConnectionOptions, connection_options
from edgewright.errors import ConfigError
from edgewright.options import Command, config_option, output_options
from edgewright.output import Output
from edgewright.tables.image_folder import ImageFile, image_missing
from edgewright.texts import read_texts

if TYPE_CHECKING:  # gRPC is imported when there is something to send
    from edgewright.bench.arrivals import Arrivals
    from edgewright.bench.config import BenchConfig, Load
    from edgewright.bench.inputs import Inputs
    from edgewright.bench.record import Record

INTERRUPTED: Final = 130
NOT_ANSWERED: Final = 6
_CONCURRENCY: Final = (1, 8, 32)
_P99_MS: Final = 50.0


def _numbers(kind: Callable[[str], float]) -> Callable[..., tuple[float, ...] | None]:
    """A callback that reads numbers with commas between them."""

    def read(
        ctx: click.Context, param: click.Parameter, value: str | None
    ) -> tuple[float, ...] | None:
        try:
            return None if value is None else tuple(map(kind, value.split(",")))
        except ValueError:
            raise click.BadParameter(
                f"{value!r}: numbers with commas between them are expected", ctx, param
            ) from None

    return read


@click.command(
    "bench",
    cls=Command,
    sections={
        "--model": "Load",
        "--data": "What is sent",
        "--processes": "Generator and report",
        "--tls": "Connection",
        "--config": "Common",
    },
    examples=(
        "edgewright bench localhost:8001 --model news",
        "edgewright bench localhost:8001 --model news --rate 50,100,200 -o report.html",
        "edgewright bench localhost:8001 --model news --find-rate --p99-ms 50",
        "edgewright bench localhost:8001 --model news --data field.csv --concurrency 32 --json",
        "edgewright bench localhost:8001 --model news --protocol oip --concurrency 8 --duration 5",
        "edgewright bench field:8001 --model news --tls-ca ca.pem --token-file mine.token",
    ),
)
@click.argument("target", metavar="HOST:PORT")
@click.option(
    "--model",
    default="",
    show_default=False,
    help="Model to ask; needed where the server holds several, and by --protocol oip.",
)
@click.option(
    "--concurrency",
    metavar="N[,N]...",
    callback=_numbers(int),
    help="Closed loop: callers at once; each number is a load.  [default: 1,8,32]",
)
@click.option(
    "--rate",
    metavar="R[,R]...",
    callback=_numbers(float),
    help="Open loop: calls that are due each second, answered or not; each number is a load.",
)
@click.option(
    "--find-rate",
    is_flag=True,
    help="Open loop: search for the highest rate with a p99 of at most --p99-ms.",
)
@click.option(
    "--p99-ms",
    type=float,
    help="What --find-rate holds to, with 99.9% of the calls answered.  [default: 50]",
)
@click.option(
    "--arrivals",
    type=click.Choice(["constant", "poisson"]),
    default="constant",
    help="How the calls of an open loop are spaced.",
)
@click.option("--duration", type=float, default=10.0, help="Seconds that each load is measured.")
@click.option("--warm-up", type=float, default=2.0, help="Seconds before that, not counted.")
@click.option("--deadline-ms", type=float, default=30_000.0, help="Deadline of each call.")
@click.option("--rows-per-call", type=int, default=1, help="Texts or images in each call.")
@click.option(
    "--data",
    metavar="ROWS",
    type=click.Path(path_type=Path),
    help="Texts to send in turn: csv, tsv, jsonl, or txt with one text a line.",
)
@click.option("--text-column", help="Column of ROWS that holds the text, where it is not plain.")
@click.option("--text", "texts", multiple=True, help="Text to send; may be repeated.")
@click.option(
    "--image",
    "images",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Image to send; may be repeated.",
)
@click.option(
    "--words",
    type=click.IntRange(1, 100_000),
    default=12,
    help="Words of each text that is made up, where no texts are given.",
)
@click.option(
    "--image-size",
    type=click.IntRange(1, 8192),
    default=224,
    help="Width and height of each image that is made up, where the model takes images.",
)
@click.option(
    "--protocol",
    type=click.Choice(["edgewright", "oip"]),
    default="edgewright",
    help="oip is the Open Inference Protocol, which KServe and Triton speak too.",
)
@click.option("--processes", type=int, default=1, help="Processes that make the load.")
@click.option("--seed", type=int, default=0, help="Of texts, images and Poisson arrivals.")
@click.option(
    "-o",
    "--output",
    "files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Report to write, .html (needs the extra [bench]) or .json; may be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace the FILE that is there.")
@connection_options
@config_option
@output_options
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    target: str,
    connection: ConnectionOptions,
    output: Output,
    **options: Any,
) -> None:
    """Put load on the server at HOST:PORT, and tell how many calls it answers, and how fast.

    A closed loop (--concurrency) sends when an answer is there. An open loop (--rate) sends by a
    schedule and counts each call's time from when it was due, so that a server which stalls is
    charged for all the calls that had to wait. Stopped by Ctrl-C it tells what was measured so far.
    """
    from edgewright.bench.config import Protocol
    from edgewright.bench.files import check_files, write_file
    from edgewright.bench.run import run
    from edgewright.bench.subject import Asked
    from edgewright.bench.table import lines

    config = _config(options)
    check_files(options["files"], overwrite=options["overwrite"])
    asked = Asked(options["model"], config.rows_per_call, _inputs(options))
    reached = connection.connection(target, config.deadline_s)
    record = run(config, reached, Protocol(options["protocol"]), asked, output)
    output.result(record.to_json(), lines(record))
    for result in record.results:
        for warning in result.warnings():
            output.warn(f"{result.load}: {warning}")
    for file in options["files"]:
        write_file(file, record)
        output.note(f"written: {file}")
    if record.interrupted:
        ctx.exit(INTERRUPTED)
    if not record.answered:
        output.warn(_unanswered(record))
        ctx.exit(NOT_ANSWERED)


def _unanswered(record: Record) -> str:
    if record.answered_within:  # in the window, and due before it: there was no catching up
        return (
            "nothing was measured: of the calls that were due in time none was answered; ask for "
            "less, or give --processes more"
        )
    return f"{record.target} answered no call"


def _config(options: dict[str, Any]) -> BenchConfig:
    from edgewright.bench.arrivals import Arrivals
    from edgewright.bench.config import BenchConfig, Search

    kinds = [each for each in ("concurrency", "rate", "find_rate") if options[each]]
    if len(kinds) > 1:
        given = " and ".join(f"--{each.replace('_', '-')}" for each in kinds)
        raise ConfigError(f"{given} are given; choose one kind of load")
    if options["p99_ms"] is not None and not options["find_rate"]:
        raise ConfigError("--p99-ms is what --find-rate holds to; give --find-rate too")
    arrivals = Arrivals(options["arrivals"])
    p99_ms = _P99_MS if options["p99_ms"] is None else options["p99_ms"]
    searched = Search(p99_ms, arrivals=arrivals)
    return BenchConfig(
        loads=tuple(_loads(options, arrivals)),
        search=searched if options["find_rate"] else None,
        duration_s=options["duration"],
        warm_up_s=options["warm_up"],
        deadline_s=options["deadline_ms"] / 1e3,
        rows_per_call=options["rows_per_call"],
        processes=options["processes"],
        seed=options["seed"],
    )


def _loads(options: dict[str, Any], arrivals: Arrivals) -> Sequence[Load]:
    """The loads that are known beforehand."""
    from edgewright.bench.config import Closed, Open

    if options["find_rate"]:
        return []
    if options["rate"]:
        return [Open(rate, arrivals) for rate in options["rate"]]
    return [Closed(callers) for callers in options["concurrency"] or _CONCURRENCY]


def _inputs(options: dict[str, Any]) -> Callable[[str], Inputs]:
    """What to send, once it is known what the model takes; what is given is read now."""
    from edgewright.bench.inputs import Inputs, synthetic_images, synthetic_texts

    data, texts, images = options["data"], options["texts"], options["images"]
    given = [name for name in ("data", "texts", "images") if options[name]]
    if len(given) > 1:
        raise ConfigError("--data, --text and --image: give one kind of input")
    if options["text_column"] and data is None:
        raise ConfigError("--text-column says where in --data the text is; give --data too")
    if data is not None:
        rows = [each.content for each in read_texts(data, options["text_column"])]
        return lambda _kind: Inputs(rows, f"{_counted(rows, 'text')} of {data}")
    if texts:
        return lambda _kind: Inputs(texts, f"{_counted(texts, 'text')} given")
    if images:
        missing = [image_missing(path) for path in images if not path.is_file()]
        if missing:
            raise ConfigError(missing)
        files = [ImageFile(path, str(path)).read() for path in images]
        return lambda _kind: Inputs(files, f"{_counted(files, 'image')} given")

    def made_up(kind: str) -> Inputs:
        if kind == "image":
            return synthetic_images(options["image_size"], options["seed"])
        return synthetic_texts(options["words"], options["seed"])

    return made_up


def _counted(given: Sequence[object], name: str) -> str:
    return f"{len(given)} {name}" + ("" if len(given) == 1 else "s")
