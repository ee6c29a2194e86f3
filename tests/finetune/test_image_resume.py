"""A run on images that is killed and gone on with ends in the bytes of an unbroken one.

Batch normalisations of what trains, views of an augmentation and the frozen part's cache are part
of the state.
"""

import functools
import json
import signal

import pytest
from killed_runs import kill_at, start_command, told, wait

from edgewright.finetune import pipeline, train
from edgewright.finetune.activation_store import ActivationStore

OPTIONS = ["--epochs", "3", "--threads", "1", "--lr", "1e-3", "--quiet", "--audit", "off"]
OPTIONS += ["--precision", "fp32", "--device", "cpu", "--batch-size", "16"]
KINDS = {
    "cached": ["--cache", "on", "--freeze", "2"],
    "views": ["--cache", "on", "--freeze", "2", "--augment", "light", "--augment-views", "2"],
    "live": ["--augment", "light", "--freeze", "2"],
    "auto": ["--freeze", "auto", "--cache", "on"],
}


@pytest.fixture
def start(vision_folder, digits_folder, tmp_path, monkeypatch):
    """Starts the command in a process of its own, which saves after every step; returns its id."""
    monkeypatch.setattr(pipeline, "Saver", functools.partial(pipeline.Saver, every_s=0.0))

    def fork(out: str, *options: str, before=lambda: None) -> int:
        source = [str(digits_folder), "--model", str(vision_folder)]
        cache = ["--cache-dir", str(tmp_path / f"cache-{out}")]
        command = ["finetune", *source, *OPTIONS, *cache, "-o", str(tmp_path / out), *options]
        return start_command(command, before)

    return fork


@pytest.fixture(scope="module")
def whole():
    """By kind, what an unbroken run gives."""
    return {}


@pytest.mark.parametrize(
    ("kind", "module", "name", "call"),
    [
        ("cached", train._Training, "_step", 8),  # in the second epoch
        ("cached", ActivationStore, "append", 1),
        ("views", train._Training, "_step", 9),
        ("live", train._Training, "end_epoch", 2),
    ],
)
def test_it_ends_in_the_same_bytes(start, whole, tmp_path, kind, module, name, call):
    options = KINDS[kind]
    if kind not in whole:
        assert wait(start("whole", *options)) == 0
        whole[kind] = told(tmp_path / "whole")
    stop = kill_at(module, name, call)
    assert wait(start("killed", *options, before=stop)) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert wait(start("killed", "--resume", *options)) == 0
    assert told(tmp_path / "killed") == whole[kind]


def test_the_depth_and_the_cache_are_not_decided_again(start, tmp_path):
    options = KINDS["auto"]
    stop = kill_at(pipeline, "settle_weights", 1)
    assert wait(start("killed", *options, before=stop)) == -signal.SIGKILL
    decided = json.loads((tmp_path / "killed.unfinished" / "decided.json").read_bytes())["decided"]

    def forbidden(*_):
        raise AssertionError("decided again")

    again = start(
        "killed", "--resume", *options,
        before=lambda: setattr(pipeline, "choose_depth", forbidden),
    )  # fmt: skip
    assert wait(again) == 0
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_bytes())
    assert manifest["config"]["freeze"] == decided["depth"]["blocks"]
