from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgewright.errors import ConfigError
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.given import Given
from edgewright.proof.certificate import MOST_CONFIDENCE, error_rates, rows_to_pass


def _config(**options: Any) -> OptimizeConfig:
    return OptimizeConfig(Path("checkpoint"), Path("out/bundle"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_drop": 1.5},
            r"--max-drop is 1.5; .*one point: for 1.5 points pass --max-drop 0.015",
        ),
        ({"max_drop": 1}, r"--max-drop is 1; .*pass --max-drop 0.01"),
        ({"max_drop": 0}, "no number of rows proves"),
        ({"max_drop": -0.1}, "share of rows between 0 and 1"),
        ({"max_drop": float("nan")}, "--max-drop is nan"),
        ({"confidence": 0.5}, "--confidence is 0.5"),
        ({"confidence": 95}, "0.95 is 95%"),
        ({"confidence": 0.99999}, "--confidence is 0.99999; .*at most 0.9999"),
        ({"backends": ("onnx",)}, "--backend is onnx; it must be one of onnxruntime, openvino"),
        ({"prefer": "small"}, "--prefer is small; it must be speed or size"),
        ({"threads": 0}, "--threads is 0"),
        ({"mixed_seconds": -1}, "--mixed-seconds is -1; it must be 0 or more"),
        ({"mixed_seconds": float("inf")}, "--mixed-seconds is inf"),
        ({"mixed_seconds": float("nan")}, "--mixed-seconds is nan"),
        ({"seed": -1}, "--seed is -1"),
        ({"workload": "1 by 32"}, "1 by 32"),
    ],
)
def test_an_option_that_cannot_work_is_told_with_what_would(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(**options)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        _config(max_drop=2, confidence=2, threads=0, seed=-1)
    assert len(caught.value.faults) == 4


def test_the_bundle_may_not_replace_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the checkpoint itself"):
        OptimizeConfig(tmp_path / "a", tmp_path / "b" / ".." / "a")


@pytest.mark.parametrize("output", [".", "..", "/"])
def test_a_bundle_needs_a_name(output: str) -> None:
    with pytest.raises(ConfigError, match="has no name for a new folder"):
        OptimizeConfig(Path("checkpoint"), Path(output))


def test_at_the_highest_confidence_every_slot_can_still_pass() -> None:
    assert all(rows_to_pass(0.01, rate) for rate in error_rates(MOST_CONFIDENCE))


def test_the_ledger_lies_beside_the_checkpoint_unless_told_otherwise(tmp_path: Path) -> None:
    config = OptimizeConfig(tmp_path / "checkpoint", tmp_path / "bundle")
    assert config.ledger_folder == tmp_path.resolve() / "edgewright-ledger"
    elsewhere = OptimizeConfig(tmp_path / "checkpoint", tmp_path / "b", ledger=tmp_path / "ledger")
    assert elsewhere.ledger_folder == tmp_path / "ledger"


def test_the_rejection_lies_beside_the_bundle() -> None:
    assert _config().rejected == Path("out/bundle.rejected")


def test_yaml_holds_every_option_but_the_paths() -> None:
    config = _config(
        max_drop=0.02, prefer="size", backends=("openvino",), workload="1x32:1", seed=3
    )
    assert yaml.safe_load(config.yaml()) == {
        "max-drop": 0.02,
        "confidence": 0.95,
        "prefer": "size",
        "backend": ["openvino"],
        "workload": "1x32:1",
        "threads": 1,
        "mixed-seconds": 60.0,
        "allow-inconclusive": False,
        "no-raw-examples": False,
        "seed": 3,
        **Given().options(),
    }
