"""Pictures of digits the whole way: fine-tuned, optimised, served, predicted, fed back.

How fast a variant is cannot be held still on a busy machine, so that alone is given.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from image_data import digit_folder, digit_image, digits

from edgewright.bundle import Bundle
from edgewright.checkpoint import Checkpoint
from edgewright.cli import run
from edgewright.client import AckStatus, Client, Feedback
from edgewright.errors import InputError
from edgewright.examples import image_id
from edgewright.latency import Timing
from edgewright.latency_process import Measured
from edgewright.optimize.bench import Bench

pytestmark = pytest.mark.slow

TRAINED, HELD_OUT = range(900), range(900, 960)
SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """A small ResNet from random weights, saved as any other model is, and fine-tuned."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(folder / "resnet")
    size = {"height": SIDE, "width": SIDE}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder / "resnet")
    data = digit_folder(folder / "digits", TRAINED)
    options = "--freeze 0 --epochs 6 --lr 0.003 --batch-size 32 --threads 1 --precision fp32"
    shares = "--splits 50/8/6/8/22/6 --quiet"
    command = ["finetune", data, "-o", folder / "checkpoint", "--model", folder / "resnet"]
    assert run([*map(str, command), *options.split(), *shares.split()]) == 0
    return folder / "checkpoint"


def as_if_int8_were_faster(bench: Bench) -> Measured:
    speeds = {name: 2.0 if "int8" in name else 1.0 for name in bench.candidates}
    timings = {n: Timing({}, 10 / s, s, s * 0.98, s * 1.02) for n, s in speeds.items()}
    return Measured(timings, {})


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "measure", as_if_int8_were_faster)
        command = ["optimize", checkpoint, "-o", folder / "bundle", "--backend", "onnxruntime"]
        assert run([*map(str, command), "--max-drop", "0.08", "--quiet"]) == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path, folder: Path) -> Iterator[str]:
    """HOST:PORT of a server with a store of feedback."""
    repository = folder / "repository"
    assert run(["publish", str(bundle), str(repository), "--name", "digits"]) == 0
    command = [sys.executable, "-c", "from edgewright.cli import main; main()", "serve"]
    options = "--host 127.0.0.1 --port 0 --metrics-port 0 --json --log-inputs all"
    store = f"sqlite:///{folder / 'feedback.db'}"
    process = subprocess.Popen(
        [*command, str(repository), *options.split(), "--feedback", store],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield f"127.0.0.1:{told['port']}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def held_out(folder: Path) -> list[Path]:
    paths = []
    for row in HELD_OUT:
        digit_image(row).save(path := folder / f"{row}.png")
        paths.append(path)
    return paths


def test_the_bundle_holds_a_certified_int8_file_and_its_pictures(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.task == "image-classification"
    assert opened.chosen.precision.startswith("int8-static")
    assert list(json.loads((bundle / "goldens.json").read_bytes())) == ["images"]
    assert "brightness" in json.loads((bundle / "drift.json").read_text())
    assert run(["verify", str(bundle)]) == 0


def test_what_is_served_is_what_was_trained(
    server: str, checkpoint: Path, held_out: list[Path]
) -> None:
    files = [path.read_bytes() for path in held_out]
    with Client(server) as client:
        answers = client.classify_images(files, model="digits", top_k=3)
    made = Checkpoint.open(checkpoint)
    model = transformers.AutoModelForImageClassification.from_pretrained(made.model_folder).eval()
    values = made.preprocessor()(files).arrays["pixel_values"]
    with torch.no_grad():
        scores = model(torch.from_numpy(values)).logits.softmax(-1).numpy()
    labels = [str(digits()[1][row]) for row in HELD_OUT]
    right = np.mean([each.label == label for each, label in zip(answers, labels, strict=True)])
    assert right > 0.85
    theirs = [made.labels[row.argmax()] for row in scores]
    assert np.mean([a.label == label for a, label in zip(answers, theirs, strict=True)]) > 0.95
    ours = [row[made.labels.index(each.label)] for each, row in zip(answers, scores, strict=True)]
    assert np.median(np.abs([each.score for each in answers] - np.array(ours))) < 0.1
    assert all(len(each.scores) == 3 and not each.truncated for each in answers)


def test_predict_takes_image_files(
    server: str, held_out: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", "--target", server, "--image", str(held_out[0])]
    assert run([*command, "--image", str(held_out[1]), "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert [each["label"] for each in predictions] == [str(digits()[1][r]) for r in (900, 901)]
    assert run(command) == 0
    assert capsys.readouterr().out.strip().endswith("900.png")


def test_an_image_that_cannot_be_decoded_is_named(
    server: str, held_out: list[Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = held_out[0].read_bytes()
    with Client(server) as client:
        with pytest.raises(InputError, match=r"images\[2\] cannot be decoded") as raised:
            client.classify_images([good, good, good[:60]])
        assert raised.value.field == "images[2]"
        with pytest.raises(InputError, match=r"images\[0\] is no image"):
            client.classify_images(b"not an image")
        with pytest.raises(InputError, match=r"images\[0\] is empty"):
            client.classify_images(b"")
        with pytest.raises(InputError, match="digits reads images; call ClassifyImage"):
            client.classify("a text")
        with pytest.raises(InputError, match="top_k is 99"):
            client.classify_images(good, top_k=99)
    (folder / "broken.png").write_bytes(good[:60])
    assert run(["predict", "--target", server, "--image", str(folder / "broken.png")]) == 2
    assert "broken.png: " in capsys.readouterr().err
    assert run(["predict", "--target", server, "--image", "nowhere.png"]) == 2
    assert "--image nowhere.png: no such file" in capsys.readouterr().err
    assert run(["predict", "--target", server, "--image", str(held_out[0]), "a text"]) == 2


def test_what_is_fed_back_on_images_is_learnt(
    server: str,
    checkpoint: Path,
    held_out: list[Path],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [path.read_bytes() for path in held_out[:40]]
    labels = [str(digits()[1][row]) for row in HELD_OUT[:40]]
    with Client(server) as client:
        answers = client.classify_images(files)
        entries = [
            Feedback(label, a.prediction_id) for label, a in zip(labels, answers, strict=True)
        ]
        acks = client.send_feedback(entries)
    assert {ack.status for ack in acks} == {AckStatus.STORED}
    store = f"sqlite:///{folder / 'feedback.db'}"
    told = report_once_logged(store, capsys)
    right = sum(a.label == label for a, label in zip(answers, labels, strict=True))
    assert (told["entries"], told["without_input"], told["agreeing"]) == (40, 0, right)
    assert told["predictions_with_input"] == told["predictions"]
    exported, better = str(folder / "fed-back"), str(folder / "better")
    assert run(["feedback", "export", store, "-o", exported, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(set(files))
    command = ["finetune", "--from", str(checkpoint), "--add", exported, "-o", better]
    assert run([*command, "--epochs", "1", "--threads", "1", "--precision", "fp32", "--json"]) == 0
    old, new = Checkpoint.open(checkpoint).examples(), Checkpoint.open(Path(better)).examples()
    before = dict(zip(old.ids, old.splits, strict=True))
    assert before.items() <= dict(zip(new.ids, new.splits, strict=True)).items()
    learnt = {key: new.label_names[label] for key, label in zip(new.ids, new.labels, strict=True)}
    for data, label in zip(files, labels, strict=True):
        key = image_id(data)
        assert learnt[key] == label or key in before
    assert {image_id(data) for data in files} <= learnt.keys()


def report_once_logged(store: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The feedback report when its predictions are there: they are logged off the request path."""
    deadline = time.monotonic() + 30
    while True:
        assert run(["feedback", "report", store, "--json"]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        if not told["unmatched"] or time.monotonic() > deadline:
            return told
        time.sleep(0.1)
