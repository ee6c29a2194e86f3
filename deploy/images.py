"""Build both images and prove them: train, optimise, serve, call, feed back and stop, on real data.

    python -m deploy.images            # from the root; `make images`

Docker does it where its engine answers, else buildah without one. What the host's pip needs to
reach its packages is shown to the builds and stays out of the images. Nothing is left behind.
"""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from demo import bbc_news, command_line, free_ports, minilm_folder
from deploy.buildah import Buildah
from deploy.docker import Docker, answers
from deploy.engine import PREFIX, Container, Engine
from deploy.host_pip import HostPip
from edgewright.client import AckStatus, Client, Feedback

ROOT: Final = Path(__file__).resolve().parent.parent
STORE: Final = ROOT / "build" / "images"  # buildah's; git and the builds ignore it
TRAIN: Final = f"{PREFIX}-train"
SERVE: Final = f"{PREFIX}-serve"
MODEL_NAME: Final = "bbc-news"
ROWS: Final = 600  # trained on and held out
CALLED: Final = 100  # rows that only the server sees
SPLITS: Final = "36/6/6/8/38/6"  # certify is large: certainty costs rows
READY_TIMEOUT_S: Final = 120.0
USER_ID: Final = 10001
COMPILERS: Final = ("cc", "gcc", "g++", "clang", "ld")
SETTINGS: Final = ("/etc/pip.conf", "/run/secrets")  # of the host, seen by the builds

# Run by an image's own Python, as the image's own user.
PROBE: Final = f"""
import importlib.util, json, os, shutil
print(json.dumps({{
    "user": os.getuid(),
    "torch": importlib.util.find_spec("torch") is not None,
    "pip": importlib.util.find_spec("pip") is not None,
    "compilers": [name for name in {COMPILERS!r} if shutil.which(name)],
    "settings": [name for name in {SETTINGS!r} if os.path.exists(name)],
}}))
"""


@dataclass
class Check:
    """Images that are built and proved by one engine, in one scratch folder."""

    engine: Engine
    console: Console
    scratch: Path
    figures: dict[str, str] = field(default_factory=dict)  # what the closing table shows

    def timed(self, name: str, started: float) -> None:
        """Keep the seconds since ``started``, of ``time.monotonic``."""
        self.figures[name] = f"{time.monotonic() - started:.1f} s"
        self.console.print(f"{name} {self.figures[name]}", style="dim", highlight=False)

    def step(self, text: str) -> None:
        """Tell what comes."""
        self.console.print(f"\n[bold]{text}[/bold]", highlight=False)

    # ---- build

    def build(self, base: str | None, torch_index: str | None) -> None:
        """Both images, timed; on ``base`` where one is given."""
        pip = HostPip.of_this_host()
        started = time.monotonic()
        base = base or self.engine.base()
        if base:
            self.timed("base image, ready after", started)
        for tag in (SERVE, TRAIN):
            kind = tag.rpartition("-")[2]
            arguments = {"BASE_IMAGE": base} if base else {}
            if torch_index and tag == TRAIN:
                arguments["TORCH_INDEX_URL"] = torch_index
            self.step(f"build {kind}")
            started = time.monotonic()
            self.engine.build(ROOT / f"Dockerfile.{kind}", tag, arguments, pip)
            self.timed(f"{kind}: built in", started)
            self.figures[f"{kind}: size"] = f"{self.engine.size(tag) / 1e6:,.0f} MB"

    def probe(self) -> None:
        """What each image holds, by its own Python; a Python without pip that is not root's."""
        for tag, torch in ((TRAIN, True), (SERVE, False)):
            self.step(f"probe {tag}")
            told = self.engine.run(tag, ["python", "-c", PROBE], {}, entrypoint=False)
            expected = {
                "user": USER_ID,
                "torch": torch,
                "compilers": [],
                "pip": False,
                "settings": [],
            }
            demand(json.loads(told) == expected, f"{tag} holds {told}, expected {expected}")
            self.figures[f"{tag.rpartition('-')[2]}: runs as, has"] = (
                f"user {USER_ID}, {'torch' if torch else 'no torch'}, no compiler, no pip"
            )

    # ---- train

    def make_bundle(self) -> None:
        """Data, checkpoint, bundle and repository, all in a mounted folder that user 10001 owns."""
        write_rows(self.work / "examples.csv", 0, ROWS)
        write_rows(self.scratch / "called.csv", ROWS, ROWS + CALLED)
        self.edgewright(
            "finetune",
            *("examples.csv", "-o", "checkpoint", "--model", "/model", "--freeze", "4"),
            *("--epochs", "1", "--max-length", "32", "--lr", "5e-4", "--splits", SPLITS),
        )
        self.edgewright("optimize", "checkpoint", "-o", "bundle", "--max-drop", "0.05")
        self.edgewright("publish", "bundle", "repository", "--name", MODEL_NAME)

    @property
    def work(self) -> Path:
        """What is mounted at /work in the train image."""
        return open_folder(self.scratch / "work")

    @property
    def feedback(self) -> Path:
        """What is mounted at /feedback in the serve image, and seen by the train image."""
        return open_folder(self.work / "feedback")

    def edgewright(self, *arguments: str) -> str:
        """What one command writes in the train image."""
        self.step(f"train image: edgewright {' '.join(arguments)}")
        started = time.monotonic()
        mounts = {self.work: "/work", minilm_folder(): "/model:ro"}
        told = self.engine.run(TRAIN, arguments, mounts)
        self.console.print(told, markup=False, highlight=False)
        self.timed(f"train: {arguments[0]} took", started)
        return told

    # ---- serve

    def serve(self) -> None:
        """Start, wait until ready, ask for health, call, tell what was right, stop."""
        port, metrics_port = free_ports(2)
        environment = {
            "EDGEWRIGHT_HOST": self.engine.host,
            "EDGEWRIGHT_PORT": str(port),
            "EDGEWRIGHT_METRICS_PORT": str(metrics_port),
            "EDGEWRIGHT_FEEDBACK": "sqlite:////feedback/feedback.db",
            "EDGEWRIGHT_LOG_INPUTS": "all",
        }
        mounts = {self.work / "repository": "/repository:ro", self.feedback: "/feedback"}
        self.step("serve image: its default command")
        started = time.monotonic()
        container = self.engine.start(SERVE, mounts, environment, [port, metrics_port])
        try:
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_until_ready(timeout_s=READY_TIMEOUT_S)
                self.timed("serve: ready after", started)
                self.ask_for_health(container)
                self.stream_feedback(client, self.call(f"127.0.0.1:{port}"))
        finally:
            code = container.stop()
        demand(code == 0, f"the server ended with {code} after SIGTERM, expected 0")
        self.figures["serve: after SIGTERM"] = "exit 0"

    def call(self, target: str) -> list[Feedback]:
        """The host's ``edgewright predict`` of rows that nothing has seen; what is true of each."""
        rows = self.scratch / "called.csv"
        arguments = ["predict", "--target", target, "--model", MODEL_NAME, "--file", str(rows)]
        command = command_line(*arguments, "--text-column", "text", "--json")
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        answers = json.loads(told)["predictions"]
        with rows.open(newline="", encoding="utf-8") as file:
            truth = [row["label"] for row in csv.DictReader(file)]
        pairs = list(zip(answers, truth, strict=True))
        right = sum(answer["label"] == label for answer, label in pairs)
        demand(
            right > CALLED / 2, f"{right} of {CALLED} answers are right; by chance it is a fifth"
        )
        self.figures["serve: answers right"] = f"{right} of {CALLED}"
        return [Feedback(label, prediction_id=answer["prediction_id"]) for answer, label in pairs]

    def stream_feedback(self, client: Client, entries: list[Feedback]) -> None:
        """Twice the same: stored, then known as duplicates."""
        for status in (AckStatus.STORED, AckStatus.DUPLICATE):
            told = [answer.status for answer in client.stream_feedback(entries)]
            demand(told == [status] * len(entries), f"feedback is {told}, expected {status} of all")
        self.figures["serve: feedback"] = f"{len(entries)} stored, then {len(entries)} duplicates"

    def export_feedback(self) -> None:
        """What the server stored, as rows to train on, by the train image."""
        store, rows = "sqlite:////work/feedback/feedback.db", "feedback.parquet"
        done = json.loads(self.edgewright("feedback", "export", store, "-o", rows, "--json"))
        demand(done["exported"] == CALLED, f"{done['exported']} of {CALLED} rows are exported")
        self.figures["train: feedback exported"] = f"{done['exported']} rows"

    def ask_for_health(self, container: Container) -> None:
        """Run the image's HEALTHCHECK as an engine would."""
        test = self.engine.config(SERVE)["Healthcheck"]["Test"]
        code = container.execute(test[1:])
        demand(test[0] == "CMD" and code == 0, f"the health check {test} ended with {code}")
        self.figures["serve: HEALTHCHECK"] = "healthy"

    def show(self) -> None:
        """The table of what was measured."""
        table = Table(title=f"edgewright images, by {self.engine.name}", show_header=False)
        for name, value in sorted(self.figures.items()):
            table.add_row(name, value)
        self.console.print(table)


def open_folder(folder: Path) -> Path:
    """``folder``, there and open to whatever user a container has."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return folder


def write_rows(file: Path, first: int, end: int) -> None:
    """BBC News articles ``first`` to ``end`` of a fixed order in which topics take turns."""
    by_topic: dict[str, list[str]] = {}
    for text, label in bbc_news():
        by_topic.setdefault(label, []).append(text)
    turns = [
        (text, label)
        for texts in zip(*by_topic.values(), strict=False)
        for text, label in zip(texts, by_topic, strict=True)
    ]
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *turns[first:end]])


def demand(holds: bool, otherwise: str) -> None:
    """Stop the check with a message unless it holds."""
    if not holds:
        raise click.ClickException(otherwise)


@click.command()
@click.option("--base-image", help="Build from this image, not from the Dockerfiles' own.")
@click.option("--torch-index", help="TORCH_INDEX_URL of the train image, as for a CPU build.")
@click.option(
    "--keep", is_flag=True, help="Keep the images, and buildah's layers for the next run."
)
def main(base_image: str | None, torch_index: str | None, keep: bool) -> None:
    """Build both images, run the loop in them, and print sizes and times."""
    engine: Engine = Docker() if answers() else Buildah(STORE)
    console = Console(stderr=False)
    try:
        with tempfile.TemporaryDirectory(prefix="edgewright-images-") as scratch:
            check = Check(engine, console, Path(scratch))
            check.build(base_image, torch_index)
            check.probe()
            check.make_bundle()
            check.serve()
            check.export_feedback()
            check.show()
    except subprocess.CalledProcessError as error:
        raise click.ClickException(
            f"{' '.join(map(str, error.cmd))}: exit {error.returncode}"
        ) from error
    finally:
        engine.clean(keep_images=keep)


if __name__ == "__main__":
    main()
