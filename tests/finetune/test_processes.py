"""Several processes train one model as one process would, and none of them hangs."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
import several
import torch
import torch.distributed as dist
import transformers
from hypothesis import given
from hypothesis import strategies as st
from made_up_rows import MadeUpRows
from one_of_several import RECIPE, digest, small_bert, trained
from test_resume import told
from tiny_models import bert_config, save_tokenizer, tiny_classifier

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.evaluate import Scores
from edgewright.finetune.process_group import Connected, Place, open_processes
from edgewright.finetune.processes import ALONE, Processes
from edgewright.finetune.recipe import Fit, Watcher
from edgewright.finetune.task import Task
from edgewright.finetune.train import fit, refuse_processes
from edgewright.output import Output
from edgewright.proof.host import available_cores

ENVIRONMENT = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
}  # fmt: skip


class Together(Processes):
    """Processes of which each has ``everyone[rank]`` to give."""

    everyone: list

    def gather(self, own):
        return self.everyone


def together(everyone) -> Together:
    processes = Together(0, len(everyone))
    object.__setattr__(processes, "everyone", everyone)
    return processes


@given(st.lists(st.integers()), st.integers(1, 9))
def test_each_row_is_in_one_share_and_shares_differ_by_one_row_at_most(rows, count):
    shares = [rows[Processes(rank, count).mine] for rank in range(count)]
    assert sorted(row for share in shares for row in share) == sorted(rows)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers()), st.integers(1, 9))
def test_what_is_computed_of_the_shares_comes_in_the_order_of_the_rows(rows, count):
    shares = [rows[Processes(rank, count).mine] for rank in range(count)]
    assert together(shares).collect(shares[0]) == rows


def test_one_process_does_and_has_everything():
    assert ALONE.is_first
    assert [3, 1, 2][ALONE.mine] == [3, 1, 2]
    assert ALONE.by_first(lambda: 5) == 5
    assert ALONE.collect([3, 1]) == [3, 1]
    ALONE.refuse_unlike({"examples": "a"})


def test_processes_that_differ_are_refused_by_what_they_differ_in():
    same = {"examples": "a", "--seed": 1}
    together([same, same]).refuse_unlike(same)
    with pytest.raises(ConfigError) as refused:
        together([same, {"examples": "b"}]).refuse_unlike(same)
    told_of = "\n".join(refused.value.faults)
    assert "process 1 of 2 has other examples than process 0 (b, and a)" in told_of
    assert "other --seed than process 0 (None, and 1)" in told_of


def test_the_place_is_what_torchrun_says():
    assert Place.read({"MASTER_ADDR": "localhost", "PATH": "/bin"}) is None
    assert Place.read(ENVIRONMENT) == Place(rank=1, count=4, local_rank=1, local=2)


def test_a_single_process_of_torchrun_is_one_alone():
    single = {**ENVIRONMENT, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with open_processes("cpu", {**single, "LOCAL_WORLD_SIZE": "1"}) as processes:
        assert processes is ALONE


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
def test_an_environment_that_is_set_by_half_is_refused_by_name(name):
    half = {key: value for key, value in ENVIRONMENT.items() if key != name}
    with pytest.raises(ConfigError, match=rf"(?s){name} is missing; start it with `torchrun"):
        Place.read(half)


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "4"},
        {"RANK": "-1"},
        {"WORLD_SIZE": "two"},
        {"LOCAL_RANK": "2"},
        {"WORLD_SIZE": "1"},
    ],
)
def test_numbers_that_do_not_go_together_are_refused(changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}={value}.*do not go together"):
        Place.read({**ENVIRONMENT, **changes})


def test_batch_normalisations_that_train_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    refuse_processes(ALONE, model, 8)
    with pytest.raises(ConfigError, match="2 processes: this model has batch normalisations"):
        refuse_processes(Processes(0, 2), model, 8)
    model.requires_grad_(False)
    refuse_processes(Processes(0, 2), model, 8)


def test_more_processes_than_rows_of_a_step_are_refused():
    model = tiny_classifier("bert")
    refuse_processes(Processes(0, 2), model, 2)
    with pytest.raises(ConfigError, match=r"3 processes .* which are 2; .* --batch-size of 3"):
        refuse_processes(Processes(0, 3), model, 2)


class AllRows(Processes):
    """Processes that compute every row each; the first of them has scores of its own."""

    mine = slice(None)
    first = Scores(n=3, correct=1, loss=0.5, accuracy=1 / 3, macro_f1=0.2)

    def by_first(self, work):
        own = work()
        return self.first if isinstance(own, Scores) else own


def fitted(rank: int) -> tuple[list[float], Fit]:
    """Losses with dropout in one process of ``AllRows``, whose own scores are bad ones."""
    model, rows, losses = tiny_classifier("bert"), MadeUpRows(24), list[float]()
    bad = Scores(n=3, correct=0, loss=9.0, accuracy=0.0, macro_f1=0.0)
    watcher = Watcher(on_step=lambda _epoch, _step, loss: losses.append(loss))
    device, processes = torch.device("cpu"), AllRows(rank)
    outcome = fit(
        model, rows, RECIPE, device, validate=lambda: bad, watcher=watcher, processes=processes
    )
    return losses, outcome


def test_each_process_drops_other_units():
    assert fitted(0)[0] == fitted(0)[0] != fitted(1)[0]


def test_every_process_goes_by_the_scores_of_the_first():
    assert [epoch.validation for epoch in fitted(1)[1].epochs] == [AllRows.first] * 2


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process gives, and the cache it leaves."""
    root = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"live": trained(None, ALONE), "cached": trained(root, ALONE), "root": root}
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """What each of two processes gives."""
    out = tmp_path_factory.mktemp("two")
    ended = several.run("train", out, one["root"], out / "own")
    assert [code for code, _, _ in ended] == [0, 0], ended
    return [json.loads((out / f"{rank}.json").read_bytes()) for rank in range(2)], out / "own"


@pytest.mark.parametrize("how", ["live", "cached", "found"])
def test_two_processes_give_the_losses_of_one(one, two, how):
    expected = one["live" if how == "live" else "cached"]
    assert len(expected["losses"]) == RECIPE.epochs * 10
    for told_by in two[0]:
        assert told_by[how]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        np.testing.assert_allclose(told_by[how]["logits"], expected["logits"], atol=1e-4)


@pytest.mark.parametrize("how", ["live", "cached"])
def test_both_end_with_the_same_weights_which_are_nearly_those_of_one(one, two, how):
    first, second = (told_by[how] for told_by in two[0])
    assert first["digest"] == second["digest"]
    assert first["digest"] != digest(small_bert().parameters())
    for ours, theirs in zip(first["weights"], one[how]["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["live", "cached"])
def test_what_is_frozen_hashes_equal_before_and_after_in_each(one, two, how):
    assert {*two[0][0][how]["frozen"], *two[0][1][how]["frozen"]} == {one[how]["frozen"][0]}


def test_a_cache_of_one_process_is_found_by_two_and_the_reverse(one, two):
    rows = one["cached"]["filled"]
    both, root = two
    for told_by in both:
        assert (told_by["cached"]["found"], told_by["cached"]["filled"]) == (0, rows)
        assert (told_by["found"]["found"], told_by["found"]["filled"]) == (rows, 0)
    shards = [json.loads(path.read_bytes()) for path in root.glob("*/*.json")]
    sizes = [len(shard["keys"]) for shard in shards if "keys" in shard]
    assert sorted(sizes) == [rows - 32 - 13, 32 + 13]  # of batches of 32, 32 and 13
    again = trained(root, ALONE)
    assert (again["found"], again["filled"]) == (rows, 0)
    assert again["losses"] == one["cached"]["losses"]


def test_a_disk_that_is_full_for_one_process_is_full_for_all(two):
    reasons = {told_by["full disk"] for told_by in two[0]}
    assert len(reasons) == 1
    assert "No space left on device" in reasons.pop()


def test_gradients_are_added_and_one_that_nobody_has_stays_away(two):
    for told_by in two[0]:
        assert told_by["gradients"] == [1.0, [[3.0, 3.0]] * 2, [[1.0, 1.0]] * 2, None]


def test_numbers_of_every_format_are_those_of_the_first(two):
    third = float(torch.tensor(1 / 3))
    for told_by in two[0]:
        assert told_by["numbers"] == [[[third, third]] * 3, 1, [False]]


HANGS = """
import time
from edgewright.finetune.process_group import open_processes

with open_processes("cpu", timeout_s=15.0) as processes:
    time.sleep(0 if processes.is_first else 600)
    processes.gather(0)
"""


def test_a_process_that_hangs_is_given_up():
    with several.started("-c", HANGS) as processes:
        _, err = processes[0].communicate(timeout=120)
        assert processes[1].poll() is None
    assert processes[0].returncode == 1
    assert "process 0 of 2: another process of this run has ended, or did not answer" in err


@pytest.fixture
def cuda(monkeypatch):
    """A machine with one GPU, as far as torch tells; the groups that are asked for."""
    groups = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: groups.append(index))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda told, src: None)
    monkeypatch.setattr(
        dist, "new_group", lambda backend, timeout: groups.append(backend) or "group"
    )
    return groups


def test_on_cuda_each_process_takes_its_gpu_and_numbers_go_by_nccl(cuda):
    connected = Connected(0, 2, 1, Place(0, 2, 0, 1), timedelta(seconds=9)).on("auto")
    assert cuda == [0, "nccl"]
    assert connected.numbers == "group"
    assert (connected.rank, connected.count, connected.local) == (0, 2, 1)


def test_more_processes_than_gpus_are_refused(cuda):
    processes = Connected(0, 2, 2, Place(0, 2, 1, 2), timedelta(seconds=9))
    with pytest.raises(BackendUnavailableError, match="2 processes .* torch sees 1 GPUs"):
        processes.on("cuda")
    assert cuda == []


def test_processes_of_one_machine_share_its_cores(model_folder, data_file):
    config = FinetuneConfig(data=str(data_file), model=str(model_folder), audit="off")
    threads = [
        Task.prepare(config, Output(quiet=True), Processes(local=local)).config.threads
        for local in (1, 2, 999)
    ]
    assert threads == [available_cores(), max(1, available_cores() // 2), 1]


OPTIONS = ["--epochs", "2", "--threads", "1", "--max-length", "32", "--lr", "1e-3"]
OPTIONS += ["--forgetting", "off", "--precision", "fp32"]


@pytest.fixture(scope="module")
def steady_model(tmp_path_factory):
    """A model folder whose dropout is 0."""
    folder = tmp_path_factory.mktemp("model") / "steady-bert"
    torch.manual_seed(0)
    config = bert_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.slow
def test_the_command_started_by_torchrun_is_one_run(edgewright, steady_model, data_file, tmp_path):
    options = [str(data_file), "--model", str(steady_model), *OPTIONS, "--freeze", "auto"]
    options += ["--cache", "on", "--cache-dir", str(tmp_path / "cache"), "--json"]
    ended = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "edgewright", "finetune", *options, "-o", str(tmp_path / "two"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)  # of the first alone
    assert summary["processes"] == 2
    alone = edgewright("finetune", *options, "-o", tmp_path / "one")
    assert alone.json["processes"] == 1
    assert (summary["frozen"], summary["audit"]) == (alone.json["frozen"], alone.json["audit"])
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_bytes()) for name in ("one", "two")
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    cache = json.loads((tmp_path / "one" / "measurements.json").read_bytes())["activation_cache"]
    assert cache["filled"] == 0  # all was found


def losses(metrics) -> list[float]:
    return [x for e in metrics["epochs"] for x in (e["train_loss"], e["validation"]["loss"])]


@pytest.mark.slow
def test_a_killed_run_ends_in_each_process_and_is_gone_on_with_by_as_many(
    edgewright, model_folder, data_file, tmp_path
):
    options = ["finetune", str(data_file), "--model", str(model_folder), *OPTIONS, "--audit", "off"]
    options += ["--cache", "off", "--freeze", "1"]
    assert [
        code for code, _, _ in several.run("command", 0, *options, "-o", tmp_path / "whole")
    ] == [0, 0]
    killed, left = several.run("command", 8, *options, "-o", tmp_path / "killed")
    assert killed[0] == -signal.SIGKILL
    assert left[0] == 5
    assert left[2] == (
        "error: process 1 of 2: another process of this run has ended, or did not answer within "
        "1800 s; what that one said tells why\n"
    )
    refused = edgewright("finetune", "-o", tmp_path / "killed", "--resume")
    assert refused.code == 2
    assert "--resume: the run was begun in 2 processes, and these are 1" in refused.err
    again = several.run("command", 0, *options, "-o", tmp_path / "killed", "--resume")
    assert [code for code, _, _ in again] == [0, 0], again
    assert told(tmp_path / "killed") == told(tmp_path / "whole")
