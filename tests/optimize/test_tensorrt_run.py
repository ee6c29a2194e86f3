"""One run for TensorRT on a host without a GPU, and what a GPU host makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_tensorrt import FakeTensorRt

from edgewright.backends import get_backend
from edgewright.backends.placement import computed_in_float
from edgewright.bundle import Bundle, Verdict
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.pipeline import optimize
from edgewright.output import Output
from edgewright.proof.engines import build_and_prove
from edgewright.state_dir import StateDir


@pytest.mark.slow
def test_a_run_without_a_gpu_prepares_engines_beside_what_it_certifies(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OptimizeConfig(
        checkpoint_path,
        tmp_path / "bundle",
        max_drop=0.05,
        backends=("tensorrt",),
        ledger=tmp_path / "ledger",
    )
    outcome = optimize(config, Output(quiet=True))
    bundle = Bundle.open(config.output)
    assert {each.backend for each in bundle.variants} == {"onnxruntime"}
    certificate = bundle.chosen.certificate
    assert certificate is not None
    assert certificate.verdict is Verdict.PASS
    assert [each.name for each in bundle.prepared] == ["tensorrt-fp16", "tensorrt-int8-static"]
    told = dict(outcome.skipped)
    assert "unproven until `edgewright build-engine`" in told["tensorrt-int8-static"]
    report = (bundle.path / "report.html").read_text()
    assert "What runs" in report
    assert "unproven until `edgewright build-engine`" in report
    for name, placement in outcome.placements.items():
        assert ("int8" in name) is (computed_in_float(placement) is None), name
    FakeTensorRt().install(monkeypatch)
    proofs, faults = build_and_prove(bundle, StateDir(tmp_path / "state"))
    assert faults == []
    assert {each.variant for each in proofs} == {each.name for each in bundle.prepared}
    assert get_backend("tensorrt").name == "tensorrt"
