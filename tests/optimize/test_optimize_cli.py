from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgewright.bundle import REJECTION, Bundle
from edgewright.cli import run
from edgewright.errors import BackendUnavailableError
from edgewright.manifest import read_artifact, verify
from edgewright.optimize.variants import RECIPES


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def _refused(capsys: Any, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a run that must end before it prints a result."""
    code = run(["optimize", *map(str, arguments)])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "bug in edgewright" not in printed.err
    return code, printed.err


def test_what_is_refused_leaves_no_empty_folder(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "no-checkpoint").write_text("")
    kept = tmp_path / "kept"
    kept.mkdir()
    for folder in (tmp_path / "new" / "folder", kept):
        code, told = _refused(capsys, tmp_path / "no-checkpoint", "-o", folder / "bundle")
        assert code == 4
        assert "no checkpoint at" in told
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "no-checkpoint"]


def test_help_names_every_option_and_ends_with_examples(capsys: Any) -> None:
    assert run(["optimize", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in (
        "--max-drop",
        "--confidence",
        "--prefer",
        "--backend",
        "--workload",
        "--mixed-seconds",
        "--ledger",
    ):
        assert option in printed
    assert printed.rstrip().splitlines()[-1].strip().startswith("edgewright optimize checkpoint -o")


def test_a_missing_checkpoint_is_told_with_the_command_that_makes_one(
    bundle: Path, capsys: Any, tmp_path: Path
) -> None:
    code, told = _refused(capsys, tmp_path / "nowhere", "-o", bundle)
    assert code == 4
    assert "edgewright finetune DATA -o CHECKPOINT" in told


def test_a_bundle_where_a_checkpoint_is_wanted_is_refused(
    bundle: Path, capsys: Any, checkpoint_path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    from edgewright.bundle import BUNDLE
    from edgewright.manifest import new_folder, seal

    with new_folder(other) as folder:
        seal(folder, BUNDLE, {}, {})
    code, told = _refused(capsys, other, "-o", bundle)
    assert code == 4
    assert "is an edgewright.bundle, and a checkpoint is wanted" in told


def test_a_tampered_checkpoint_is_refused_by_file_and_nothing_is_written(
    bundle: Path, capsys: Any, make_checkpoint: Callable[..., Path]
) -> None:
    checkpoint = make_checkpoint()
    file = checkpoint / "examples.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    code, told = _refused(capsys, checkpoint, "-o", bundle)
    assert code == 4
    assert "examples.parquet was altered" in told
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint"]


def test_an_existing_target_is_refused_before_the_checkpoint_is_opened(
    bundle: Path, capsys: Any, tmp_path: Path
) -> None:
    bundle.mkdir()
    (bundle / "mine").touch()
    code, told = _refused(capsys, tmp_path / "nowhere", "-o", bundle)
    assert code == 2
    assert "exists already" in told
    code, told = _refused(capsys, tmp_path / "nowhere", "-o", bundle, "--overwrite")
    assert code == 2
    assert "will not delete it" in told
    assert (bundle / "mine").exists()


def test_a_rejection_folder_that_is_not_ours_is_not_deleted(
    bundle: Path, capsys: Any, checkpoint_path: Path
) -> None:
    rejected = bundle.with_name("bundle.rejected")
    rejected.mkdir()
    (rejected / "mine").touch()
    code, told = _refused(capsys, checkpoint_path, "-o", bundle)
    assert code == 2
    assert "bundle.rejected is not an edgewright artifact" in told


@pytest.mark.parametrize("split", ["calibrate", "search", "certify"])
def test_an_empty_split_is_told_with_what_it_is_for(
    bundle: Path, capsys: Any, make_checkpoint: Callable[..., Path], split: str
) -> None:
    code, told = _refused(capsys, make_checkpoint(**{split: 0}), "-o", bundle)
    assert code == 2
    assert f"has no rows in {split} (" in told
    assert "--splits" in told


def test_faulty_options_are_told_together(bundle: Path, capsys: Any, checkpoint_path: Path) -> None:
    options = ("--max-drop", "1.5", "--confidence", "95", "--workload", "often")
    code, told = _refused(capsys, checkpoint_path, "-o", bundle, *options)
    assert code == 2
    assert len([line for line in told.splitlines() if line.startswith("error: ")]) == 3
    assert "pass --max-drop 0.015" in told


def test_a_backend_that_is_not_installed_is_told_with_the_command_that_installs_it(
    bundle: Path, capsys: Any, checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise BackendUnavailableError("OpenVINO is not installed; run `pip install ...`")

    monkeypatch.setattr("edgewright.backends.openvino._library", missing)
    code, told = _refused(capsys, checkpoint_path, "-o", bundle, "--backend", "openvino")
    assert code == 5
    assert "pip install" in told


def test_a_ledger_that_cannot_be_written_is_told_before_any_work(
    bundle: Path, capsys: Any, checkpoint_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, told = _refused(
        capsys, checkpoint_path, "-o", bundle, "--ledger", tmp_path / "file" / "ledger"
    )
    assert code == 2
    assert "--ledger" in told


def test_a_bundle_that_could_not_be_written_is_told_before_any_work(
    capsys: Any, checkpoint_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, told = _refused(capsys, checkpoint_path, "-o", tmp_path / "file" / "bundle")
    assert code == 2
    assert "nothing can be written there" in told
    assert "export" not in told


def test_texts_longer_than_the_model_reads_are_told_before_any_work(
    bundle: Path, capsys: Any, checkpoint_path: Path
) -> None:
    code, told = _refused(capsys, checkpoint_path, "-o", bundle, "--workload", "1x25")
    assert code == 2
    assert "this model reads at most 24 tokens" in told
    assert "export" not in told


@pytest.mark.slow
def test_a_real_run_ends_in_a_bundle_or_in_a_rejection_that_says_why(
    bundle: Path, capsys: Any, checkpoint_path: Path, tmp_path: Path
) -> None:
    """Every file is made and timed. Whether int8 is faster for so small a model is the clock's."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_path, checkpoint)
    code = run(["optimize", str(checkpoint), "-o", str(bundle), "--max-drop", "0.02", "--json"])
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    names = [candidate["name"] for candidate in told["candidates"]]
    skipped = [each["name"] for each in told["skipped"]]
    kinds = [recipe.kind for recipe in RECIPES if recipe.only is None]
    rows = [f"{backend}-{kind}" for backend in ("onnxruntime", "openvino") for kind in kinds]
    assert set(rows) | {"openvino-bf16"} <= {*names, *skipped}
    assert len(set(names + skipped)) == len(names + skipped)
    assert all(candidate["speedup"] > 0 for candidate in told["candidates"])
    if code == 0:
        assert told["verdict"] == "PASS"
        assert Bundle.open(bundle).chosen.name == told["variant"]
        assert yaml.safe_load((bundle / "run.yaml").read_text())["max-drop"] == 0.02
    else:
        assert code in (3, 7)
        assert not bundle.exists()
        folder = Path(told["folder"])
        assert verify(folder) == read_artifact(folder, REJECTION)
        assert "error: " in printed.err
