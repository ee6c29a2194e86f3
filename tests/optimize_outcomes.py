"""Outcomes of runs that did not happen, for the tests of what is told about a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from image_data import digit_image
from numpy.typing import NDArray

from edgewright.backends.placement import Operation, Placement, Role
from edgewright.bundle import Against, Certificate
from edgewright.examples import Examples, example_id
from edgewright.kinds import IMAGE
from edgewright.latency import Latency, Timing
from edgewright.latency_process import Measured
from edgewright.optimize.bench import Bench
from edgewright.optimize.choice import Contender
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.graph_work import GraphWork, PassRecord
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.proof.certificate import PairedCounts, Subject, Trial, certificate, reused
from edgewright.proof.host import Host
from edgewright.tables import ImageFile

BUDGET = 0.015
LABELS = ("business", "sport")
SEARCH = [f"search text number {index} <b>&" for index in range(40)]


def search_examples() -> Examples:
    """Forty rows, the classes in turn."""
    ids = [example_id(text) for text in SEARCH]
    labels = np.arange(40) % 2
    return Examples(ids, SEARCH, labels.astype(np.int64), ["search"] * 40, ids, LABELS)


def image_examples(folder: Path) -> Examples:
    """As ``search_examples``, but each row is a picture in a file."""
    files = []
    for row in range(40):
        path = folder / f"picture {row}.png"
        digit_image(row).save(path)
        files.append(ImageFile(path, f"<i>{path.name}"))
    return replace(search_examples(), contents=files, kind=IMAGE)


def scores(wrong: int = 0) -> NDArray[np.float32]:
    """Scores of shape (40, 2) that answer the first ``wrong`` rows wrongly."""
    labels = search_examples().labels.copy()
    labels[:wrong] = 1 - labels[:wrong]
    return np.where(np.eye(2)[labels] == 1, 0.9, 0.1).astype(np.float32)


def certified(
    lost: int, n: int = 600, *, slot: int = 0, won: int = 0, against: Against = Against.LABELS
) -> Certificate:
    """What a trial with these counts gives."""
    subject = Subject("f" * 64, "onnxruntime 1", "x86_64-amx", row_by_row=False)
    trial = Trial(slot, PairedCounts(n=n, lost=lost, won=won), threads=1)
    return certificate(
        trial, subject, budget=BUDGET, confidence=0.95, split_sha256="c" * 64, against=against
    )


def came_too_late() -> Certificate:
    """The certificate of a fourth file."""
    subject = Subject("e" * 64, "onnxruntime 1", "x86_64-amx", row_by_row=False)
    return reused(subject, budget=BUDGET, threads=1, split_sha256="c" * 64)


def timing(speedup: float) -> Timing:
    """Measured three times, with an interval of 3% either way."""
    latency = Latency(10 / speedup, None, None, 15)
    ratios = (speedup * 0.99, speedup, speedup * 1.01)
    return Timing({"1x32": latency}, 10 / speedup, speedup, speedup * 0.97, speedup * 1.03, ratios)


def graph_work() -> GraphWork:
    """One pass that was kept and one that was not."""
    before = {"Constant": 60, "MatMul": 18, "Shape": 9, "Concat": 4, "Cast": 3, "Mul": 2}
    after = {"MatMul": 18, "Concat": 1, "Mul": 3}
    kept = PassRecord("fix-sizes", "", before, after, 2.4e-7)
    left_out = PassRecord("respell", "nothing to do <i>", after, after, 0.0)
    return GraphWork(Path("source.onnx"), Path("target.onnx"), (kept, left_out))


def placement(integer: int, in_float: int) -> Placement:
    """So many products, one in each layer, and an operation that is none."""
    return Placement(
        "onnxruntime",
        (
            *[
                Operation(f"/layer.{each}/query", "QLinearMatMul", Role.PRODUCT, "int8", "CPU")
                for each in range(integer)
            ],
            *[
                Operation(f"/layer.{each}/scores", "MatMul", Role.PRODUCT, "fp32", "CPU")
                for each in range(in_float)
            ],
            Operation("/norm", "LayerNormalization", Role.OTHER, "fp32", "CPU"),
        ),
    )


def int8_is_faster(bench: Bench) -> Measured:
    """In the place of ``Bench.measure``: how fast so small a model is says nothing."""
    speeds = {name: 2.0 if "int8" in name else 1.0 for name in bench.candidates}
    return Measured({name: timing(speed) for name, speed in speeds.items()}, {})


def standing(
    name: str,
    speedup: float,
    given: Certificate | None = None,
    *,
    backend: str = "onnxruntime",
    wrong: int = 0,
    size: int = 20_000_000,
) -> Standing:
    """A candidate with these properties."""
    contender = Contender(
        name=name,
        backend=backend,
        size_bytes=size,
        search=PairedCounts(n=40, lost=wrong, won=0),
        speedup=speedup,
        speedup_low=speedup * 0.97,
        speedup_high=speedup * 1.03,
    )
    return Standing(
        contender=contender,
        precision=name.partition("-")[2],
        row_by_row=False,
        timing=timing(speedup),
        scores=scores(wrong),
        certificate=given,
    )


def outcome(folder: Path, *standings: Standing, **changes: Any) -> Outcome:
    """A run whose candidates are fp32 and ``standings``; those with a certificate were frozen."""
    baseline = standing("onnxruntime-fp32", 1.0, size=80_000_000)
    everyone = (baseline, *standings)
    plain = Outcome(
        config=OptimizeConfig(folder / "checkpoint", folder / "bundle", max_drop=BUDGET),
        made_from={"checkpoint": "a" * 64},
        search=search_examples(),
        reference=scores().argmax(axis=1),
        standings=everyone,
        frozen=tuple(each.name for each in everyone if each.certificate),
        shipped=(),
        chosen=None,
        skipped=(("openvino-fp32", "openvino is not installed"),),
        certify_n=600,
        workload="1x32:1",
        host=Host("A Processor", "x86_64-amx", ("amx_int8",), 2, "Linux x86_64"),
        seconds={"export": 1.5, "certify": 2.25},
    )
    return replace(plain, **changes)
