"""A run that is killed at any moment and gone on with ends in the bytes of an unbroken one."""

import functools
import json
import os
import random
import signal
import time
from collections import namedtuple

import pytest
import torch
from killed_runs import kill_at, start_command, told, wait

from edgewright.finetune import activation_cache, pipeline, train
from edgewright.finetune.activation_store import ActivationStore
from edgewright.finetune.training_state import Progress, Saver, TrainingState
from edgewright.manifest import canonical_json, sha256_bytes

OPTIONS = ["--epochs", "4", "--threads", "1", "--max-length", "32", "--lr", "1e-3", "--quiet"]
OPTIONS += ["--patience", "2", "--forgetting", "off", "--audit", "off"]
OPTIONS += ["--cache", "on"]  # else how fast this machine is at the moment decides
Disk = namedtuple("Disk", "free")


@pytest.fixture
def start(model_folder, data_file, tmp_path, monkeypatch):
    """Starts the command in a process of its own, which saves after every step; returns its id."""
    monkeypatch.setattr(pipeline, "Saver", functools.partial(Saver, every_s=0.0))
    # Else what others leave of the disk at the moment decides, of either run by itself.
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _folder: Disk(2**40))

    def fork(out: str, *options: str, before=lambda: None) -> int:
        source = [str(data_file), "--model", str(model_folder)]
        cache = ["--cache-dir", str(tmp_path / f"cache-{out}")]
        command = ["finetune", *source, *OPTIONS, *cache, "-o", str(tmp_path / out), *options]
        return start_command(command, before)

    return fork


@pytest.fixture
def unbroken(start, tmp_path, whole):
    """What an unbroken run with these options gives; run once for every test that asks."""

    def run(*options: str) -> dict[str, str]:
        if options not in whole:
            assert wait(start("whole", *options)) == 0
            whole[options] = told(tmp_path / "whole")
        return whole[options]

    return run


@pytest.fixture(scope="module")
def whole():
    return {}


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(start, tmp_path, cache):
    options = ["--cache", cache]
    began = time.monotonic()
    assert wait(start("whole", *options)) == 0
    seconds = time.monotonic() - began  # those to come may be faster, or slower
    moments = random.Random(cache)
    first = kill_at(train._Training, "_step", 2)
    assert wait(start("killed", *options, before=first)) == -signal.SIGKILL
    for _ in range(12):
        child = start("killed", "--resume", *options)
        time.sleep(moments.uniform(0.1, 0.8) * seconds)
        os.kill(child, signal.SIGKILL)
        if wait(child) == 0:
            break
    else:
        assert wait(start("killed", "--resume", *options)) == 0
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
    assert not (tmp_path / "killed.unfinished").exists()


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (train._Training, "_step", 1),
        (train._Training, "_step", 3),  # in the first epoch
        (train._Training, "_step", 8),  # in the second
        (train._Training, "end_epoch", 2),
        (TrainingState, "save", 4),
        (pipeline, "settle_weights", 1),
        (pipeline, "write_checkpoint", 1),
        (pipeline, "open_feed", 1),
    ],
)
def test_whatever_it_was_doing(start, unbroken, tmp_path, module, name, call):
    assert wait(start("killed", before=kill_at(module, name, call))) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert wait(start("killed", "--resume")) == 0
    assert told(tmp_path / "killed") == unbroken()


def test_a_file_that_was_half_written_is_not_read(start, unbroken, tmp_path):
    assert wait(start("killed", before=kill_at(os, "fsync", 12))) == -signal.SIGKILL
    assert wait(start("killed", "--resume")) == 0
    assert told(tmp_path / "killed") == unbroken()


def test_adapters_survive(start, unbroken, tmp_path):
    options = ["--lora", "2", "--freeze", "1"]
    stop = kill_at(train._Training, "_step", 8)
    assert wait(start("killed", *options, before=stop)) == -signal.SIGKILL
    assert wait(start("killed", "--resume", *options)) == 0
    assert told(tmp_path / "killed") == unbroken(*options)


def test_patience_survives(start, tmp_path):
    """A rate that learns nothing stops early, at the same epoch."""
    options = ["--lr", "1e-9", "--no-head-first", "--epochs", "9"]
    assert wait(start("whole", *options)) == 0
    epochs = json.loads((tmp_path / "whole" / "metrics.json").read_bytes())["epochs"]
    assert len(epochs) == 3
    stop = kill_at(train._Training, "_step", 8)
    assert wait(start("killed", *options, before=stop)) == -signal.SIGKILL
    assert wait(start("killed", "--resume", *options)) == 0
    assert json.loads((tmp_path / "killed" / "metrics.json").read_bytes())["epochs"] == epochs


def test_what_was_decided_is_not_decided_again(start, tmp_path, monkeypatch):
    """The depth and the cache of the first start are those of the second."""
    stop = kill_at(pipeline, "settle_weights", 1)
    options = ["--freeze", "auto", "--cache", "on"]
    assert wait(start("killed", *options, before=stop)) == -signal.SIGKILL
    decided = json.loads((tmp_path / "killed.unfinished" / "decided.json").read_bytes())["decided"]

    def fail(*_):
        raise AssertionError("chosen again")

    monkeypatch.setattr(pipeline, "choose_depth", fail)
    assert wait(start("killed", "--resume", *options)) == 0
    metrics = json.loads((tmp_path / "killed" / "metrics.json").read_bytes())
    assert metrics["depth"] == decided["depth"]
    assert metrics["depth"]["blocks"] == decided["resolved"]["freeze"]


@pytest.mark.parametrize(
    ("pays", "depth", "module", "name"),
    [
        (True, "2", ActivationStore, "append"),
        (True, "auto", ActivationStore, "append"),
        (False, "2", pipeline, "survey_task"),
    ],
)
def test_whether_a_cache_pays_is_decided_once(
    start, tmp_path, monkeypatch, pays, depth, module, name
):
    """Killed once that is decided, on a machine whose speed says the reverse the next time."""
    options = ["--cache", "auto", "--freeze", depth]

    def decided(paying: bool, then=lambda: None):
        def arrange() -> None:
            def no_use(fill):
                return None if fill.plan.must or not len(fill.todo) or paying else "too slow"

            monkeypatch.setattr(activation_cache._Fill, "no_use", no_use)
            then()

        return arrange

    stop = decided(pays, kill_at(module, name, 1))
    assert wait(start("killed", *options, before=stop)) == -signal.SIGKILL
    assert wait(start("killed", "--resume", *options, before=decided(not pays))) == 0
    measured = json.loads((tmp_path / "killed" / "measurements.json").read_bytes())
    assert measured["activation_cache"]["used"] is pays
    words = "rows computed" if pays else "too slow"
    assert words in measured["activation_cache"]["reason"]


def test_resume_needs_no_other_option(start, unbroken, edgewright, tmp_path):
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("killed", before=stop)) == -signal.SIGKILL
    run = edgewright("finetune", "-o", tmp_path / "killed", "--resume", "--json")
    assert run.code == 0, run.err
    assert told(tmp_path / "killed") == unbroken()


def test_a_run_that_did_not_end_is_not_overwritten_unasked(start, edgewright, finetune, tmp_path):
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("out", before=stop)) == -signal.SIGKILL
    refused = finetune()
    assert refused.code == 2
    assert "go on with --resume, or begin anew with --overwrite" in refused.err
    assert finetune("--overwrite").code == 0


def test_a_run_that_was_killed_before_it_had_decided_anything_is_no_hindrance(finetune, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    assert finetune().code == 0


def test_other_options_are_refused_by_name(start, finetune, tmp_path):
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("out", before=stop)) == -signal.SIGKILL
    refused = finetune("--resume", "--lr", 0.5)
    assert refused.code == 2
    assert "--lr was 0.001 when the run was begun, and --lr was 0.5 now" in refused.err
    assert (tmp_path / "out.unfinished" / "decided.json").exists()


def test_options_typed_with_resume_alone_are_refused_as_well(start, edgewright, tmp_path):
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("killed", before=stop)) == -signal.SIGKILL
    refused = edgewright("finetune", "-o", tmp_path / "killed", "--resume", "--epochs", 9)
    assert refused.code == 2
    assert "--epochs was 4 when the run was begun, and --epochs was 9 now" in refused.err
    same = edgewright("finetune", "-o", tmp_path / "killed", "--resume", "--epochs", 4, "--json")
    assert same.code == 0, same.err


def test_other_examples_are_refused(start, data_file, edgewright, tmp_path):
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("killed", before=stop)) == -signal.SIGKILL
    text = data_file.read_bytes()
    try:
        data_file.write_bytes(text + b"a line that was not there before,sports\n")
        run = edgewright("finetune", "-o", tmp_path / "killed", "--resume")
    finally:
        data_file.write_bytes(text)
    assert run.code == 2
    assert "the examples are not those that the run was begun with" in run.err


def test_resume_without_a_run_begins_one(finetune):
    assert finetune("--resume").code == 0


def test_a_second_run_on_the_same_checkpoint_is_refused(start, finetune, tmp_path):
    child = start("out", before=lambda: setattr(pipeline, "train", lambda *_: time.sleep(600)))
    try:
        decided = tmp_path / "out.unfinished" / "decided.json"
        while not decided.exists():
            assert os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            time.sleep(0.1)
        refused = finetune("--resume")
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child)
    assert refused.code == 2
    assert "another run is at work" in refused.err


@pytest.mark.parametrize("pattern", ["decided.json", "training-*.safetensors"])
def test_a_damaged_state_is_named(start, edgewright, tmp_path, pattern):
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("killed", before=stop)) == -signal.SIGKILL
    (file,) = (tmp_path / "killed.unfinished").glob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run = edgewright("finetune", "-o", tmp_path / "killed", "--resume")
    assert run.code == 4
    assert file.name in run.err
    assert "begin anew with --overwrite" in run.err


def test_a_run_that_an_earlier_edgewright_began_is_gone_on_with(start, edgewright, tmp_path):
    """Which wrote down fewer decisions."""
    stop = kill_at(train._Training, "_step", 3)
    assert wait(start("killed", before=stop)) == -signal.SIGKILL
    file = tmp_path / "killed.unfinished" / "decided.json"
    decided = json.loads(file.read_bytes())["decided"]
    del decided["depth_cache"]
    checksum = sha256_bytes(canonical_json(decided))
    file.write_text(json.dumps({"decided": decided, "sha256": checksum}))
    run = edgewright("finetune", "-o", tmp_path / "killed", "--resume")
    assert run.code == 0, run.err


def test_a_run_that_cannot_end_well_leaves_nothing_to_go_on_with(finetune, tmp_path):
    assert finetune("--lr", 1e9, "--no-head-first", "--clip-norm", 0, "--epochs", 6).code == 2
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_full_disk_is_told_and_the_training_goes_on(tmp_path):
    warnings = []
    saver = Saver(tmp_path / "not there", warnings.append)
    saver.save(lambda: TrainingState(Progress(), {"model/x": torch.zeros(2)}))
    assert "cannot save the training" in warnings[0]


def test_the_state_of_before_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    TrainingState(Progress(epoch=1), {"model/x": torch.zeros(2)}).save(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _fd: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        TrainingState(Progress(epoch=2), {"model/x": torch.ones(2)}).save(tmp_path)
    assert TrainingState.load(tmp_path).progress.epoch == 1
    assert len(list(tmp_path.iterdir())) == 1
