"""Commands about this host: ``edgewright tune``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgewright.errors import ConfigError, DataError
from edgewright.options import Command, config_option, output_options, state_dir_option
from edgewright.output import Output
from edgewright.state_dir import StateDir
from edgewright.tables.columns import Columns

if TYPE_CHECKING:  # numpy and the runtimes are imported when there is something to measure
    from edgewright.bundle import Bundle
    from edgewright.examples import Examples
    from edgewright.proof.host_record import HostRecord, VariantHere


@click.command(
    "tune",
    cls=Command,
    examples=(
        "edgewright tune bundle/",
        "edgewright tune repository/news/1 --threads 2 --workload 1x32:0.8,8x128:0.2 --json",
        "edgewright tune bundle/ --data field.csv --state-dir state/",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="ROWS",
    type=click.Path(path_type=Path),
    help="Labelled rows that the model has not learnt from, to count losses on: csv, tsv, jsonl, "
    "parquet, or a folder of images.",
)
@click.option("--text-column", help="Column of ROWS with the text, where it is not plain.")
@click.option("--label-column", help="Column of ROWS with the label, where it is not plain.")
@click.option("--image-column", help="Column of ROWS with paths of images.")
@click.option(
    "--workload",
    metavar="SHAPES",
    help="Calls to time, as 1x32:0.8,8x128:0.2.  [default: those that optimize timed]",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of the model, as it will be served.  [default: as many as were certified]",
)
@click.option(
    "--seconds",
    type=float,
    default=120.0,
    help="Seconds that timing may take at most; a quarter is planned.",
)
@state_dir_option
@config_option
@output_options
def tune(
    bundle: Path,
    data: Path | None,
    workload: str | None,
    threads: int | None,
    seconds: float,
    state_dir: Path | None,
    text_column: str | None,
    label_column: str | None,
    image_column: str | None,
    output: Output,
) -> None:
    """Measure BUNDLE's variants on this host and choose the one that `edgewright serve` will serve.

    With --data the loss of each is counted anew and bounded, against the bundle's own fp32 variant
    on ONNX Runtime, run here: what passes is VERIFIED. BUNDLE itself is not changed; the result
    goes to the state folder, where a server with the same --threads and --state-dir finds it.
    """
    from edgewright.bundle import Bundle
    from edgewright.proof.host_record import HostKey, read_record
    from edgewright.proof.host_trial import try_variants, workload_here

    columns = Columns(text=text_column, label=label_column, image=image_column)
    _check_options(data, columns, seconds)
    opened = Bundle.open(bundle)
    state = StateDir.at(state_dir)
    examples = None if data is None else _read(data, columns, opened, output)
    host = HostKey.here(opened, threads)
    shapes = workload_here(opened, workload)
    _check_writable(state)
    names = ", ".join(each.name for each in opened.variants)
    output.note(f"measuring {names} at {shapes}, threads {host.threads}")
    previous = read_record(state, opened, host, output.warn)
    record = try_variants(opened, host, shapes, limit_s=seconds, previous=previous)
    file = _write(state, record)
    if examples is not None:
        from edgewright.proof.host_recount import recount

        output.note(f"counting losses against fp32 on {len(examples)} rows")
        record = recount(opened, record, examples, file.parent, on_wait=_telling(output))
        _write(state, record)
    value = {**record.to_json(), "bundle": str(bundle), "record": str(file)}
    output.result(value, _lines(opened, record, file))


def _check_options(data: Path | None, columns: Columns, seconds: float) -> None:
    if not 0 < seconds < inf:
        raise ConfigError(f"--seconds is {seconds:g}; it must be above 0 seconds")
    if data is None and columns != Columns():
        raise ConfigError(
            "--text-column, --label-column and --image-column say where in --data the rows are; "
            "give --data too"
        )


def _check_writable(state: StateDir) -> None:
    """Before minutes are spent on what could not be kept."""
    try:
        state.path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=state.path).close()
    except OSError as error:
        raise _not_writable(state, error) from error


def _not_writable(state: StateDir, error: OSError) -> ConfigError:
    return ConfigError(
        f"{state.path} cannot be written ({error.strerror}); "
        "give a folder that can with --state-dir"
    )


def _read(data: Path, columns: Columns, bundle: Bundle, output: Output) -> Examples:
    """The rows to count on, one for each group of near-duplicates."""
    from edgewright.examples import read_table
    from edgewright.examples.held_out import hold_out
    from edgewright.proof.host_recount import shortages

    if not data.exists():
        raise DataError(f"--data {data}: there is no such file or folder; check the path")
    table, kind = read_table(data, columns), bundle.preprocessor().kind
    held_out = hold_out(None, table, bundle.labels, kind=kind, seed=0)
    examples = held_out.splits["certify"].one_per_group()
    for note in (*table.notes, *held_out.notes):
        output.note(note)
    for shortage in shortages(bundle, examples):
        output.warn(shortage)
    return examples


def _write(state: StateDir, record: HostRecord) -> Path:
    from edgewright.proof.host_record import write_record

    try:
        return write_record(state, record)
    except OSError as error:
        raise _not_writable(state, error) from error


def _lines(bundle: Bundle, record: HostRecord, file: Path) -> Iterator[str]:
    host = record.host
    yield f"{bundle.path} on {host.cpu} ({host.instruction_set}), {', '.join(host.runtimes)}"
    yield f"  workload {record.workload}, threads {host.threads}   (* is chosen here)"
    width = max(len(variant.name) for variant in record.variants)
    for variant in record.variants:
        mark = "*" if variant.name == record.chosen else " "
        yield f"  {mark} {variant.name:<{width}} {_told(variant)}"
    yield f"  optimize chose {bundle.chosen.name}"
    yield f"  written to {file}"


def _told(variant: VariantHere) -> str:
    if variant.speed is None:
        return f"does not serve here: {variant.refused}"
    low, high = variant.speed.speedup_interval
    speed = (
        f"{variant.speed.workload_ms:8.2f} ms  {variant.speed.speedup:.2f}x fp32 "
        f"({low:.2f} to {high:.2f})"
    )
    return f"{speed}  {variant.verdict}{_proof(variant)}"


def _proof(variant: VariantHere) -> str:
    counted = variant.recount
    if counted is None:
        return ""
    if not counted.n:
        return "; these rows were used for three other files, and prove nothing of this one"
    told = (
        f"; against fp32 here: {counted.lost} lost, {counted.won} won of {counted.n} rows, "
        f"at most {100 * counted.loss_upper_bound:.2f} points (error rate {counted.error_rate:g})"
    )
    needed = f", {counted.needed_n} rows would pass" if counted.needed_n else ""
    return told + needed


def _telling(output: Output) -> Any:
    return lambda lock: output.warn(f"another run holds {lock}; waiting for it to end")
