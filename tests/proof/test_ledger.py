from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgewright.errors import ConfigError, IntegrityError
from edgewright.manifest import canonical_json, sha256_bytes
from edgewright.proof.certificate import PairedCounts, Subject, Trial
from edgewright.proof.ledger import FORMAT_VERSION, open_ledger

SPLIT = "c" * 64
COUNTS = PairedCounts(n=600, lost=2, won=1)


def _subject(name: str, **changes: object) -> Subject:
    subject = Subject(
        file_sha256=sha256_bytes(name.encode()),
        runtime="onnxruntime 1.32.0",
        instruction_set="x86_64-amx",
        row_by_row=False,
    )
    return replace(subject, **changes)


def _no_wait(lock: Path) -> None:
    raise AssertionError(f"{lock} was held")


def _record(folder: Path, *names: str, **changes: object) -> None:
    subjects = {_subject(name, **changes): name for name in names}
    with open_ledger(folder, SPLIT, on_wait=_no_wait) as ledger:
        ledger.record(subjects, dict.fromkeys(subjects, COUNTS), 1)


def _slot(folder: Path, name: str, **changes: object) -> int | None:
    with open_ledger(folder, SPLIT, on_wait=_no_wait) as ledger:
        trial = ledger.find(_subject(name, **changes))
    return None if trial is None else trial.slot


def _ledger_file(folder: Path) -> Path:
    return folder / f"certify-{SPLIT}.json"


def test_trials_take_the_slots_in_order(tmp_path: Path) -> None:
    _record(tmp_path, "b")
    _record(tmp_path, "c", "a")
    assert [_slot(tmp_path, name) for name in "bca"] == [0, 1, 2]


def test_the_same_file_finds_the_counts_that_are_written(tmp_path: Path) -> None:
    _record(tmp_path, "a", "b")
    with open_ledger(tmp_path, SPLIT, on_wait=_no_wait) as ledger:
        assert ledger.find(_subject("a")) == Trial(slot=0, counts=COUNTS, threads=1)
        assert ledger.free_slots == 1


def test_a_fourth_file_has_no_slot(tmp_path: Path) -> None:
    _record(tmp_path, "a", "b", "c")
    before = _ledger_file(tmp_path).read_bytes()
    with pytest.raises(ValueError, match="0 trials left"):
        _record(tmp_path, "d")
    assert _ledger_file(tmp_path).read_bytes() == before
    assert _slot(tmp_path, "d") is None


def test_a_file_has_one_trial_only(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    with pytest.raises(ValueError, match="each for a new file"):
        _record(tmp_path, "a")


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "onnxruntime 1.33.0"},
        {"instruction_set": "x86_64-avx2"},
        {"row_by_row": True},
        {"session_options": (("key", "value"),)},
        {"interface_sha256": "e" * 64},
    ],
)
def test_the_same_file_run_otherwise_takes_a_slot(
    tmp_path: Path, change: dict[str, object]
) -> None:
    _record(tmp_path, "a")
    assert _slot(tmp_path, "a", **change) is None
    _record(tmp_path, "a", **change)
    assert _slot(tmp_path, "a", **change) == 1


def test_fresh_rows_have_slots_of_their_own(tmp_path: Path) -> None:
    _record(tmp_path, "a", "b", "c")
    with open_ledger(tmp_path, "d" * 64, on_wait=_no_wait) as ledger:
        assert ledger.free_slots == 3


def test_a_trial_is_on_disk_before_it_is_told(tmp_path: Path) -> None:
    with open_ledger(tmp_path, SPLIT, on_wait=_no_wait) as ledger:
        ledger.record({_subject("a"): "a"}, {_subject("a"): COUNTS}, 1)
        (trial,) = json.loads(_ledger_file(tmp_path).read_bytes())["trials"]
    assert (trial["slot"], trial["n"], trial["lost"], trial["won"]) == (0, 600, 2, 1)


def test_a_run_that_dies_while_writing_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _record(tmp_path, "a")
    before = _ledger_file(tmp_path).read_bytes()

    def die(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            _record(tmp_path, "b")
    assert _ledger_file(tmp_path).read_bytes() == before
    _record(tmp_path, "b")
    assert _slot(tmp_path, "b") == 1


def test_any_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    file = _ledger_file(tmp_path)
    content = file.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        file.write_bytes(bytes(changed))
        with pytest.raises(IntegrityError, match=file.name):
            _record(tmp_path, "b")


def test_a_trial_removed_by_hand_is_refused(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    file = _ledger_file(tmp_path)
    body = json.loads(file.read_bytes())
    file.write_bytes(canonical_json({**body, "trials": []}))
    with pytest.raises(IntegrityError, match="altered"):
        _record(tmp_path, "a")


def test_a_ledger_of_another_split_is_refused_under_this_name(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    other = tmp_path / f"certify-{'d' * 64}.json"
    other.write_bytes(_ledger_file(tmp_path).read_bytes())
    with (
        pytest.raises(IntegrityError, match=other.name),
        open_ledger(tmp_path, "d" * 64, on_wait=_no_wait),
    ):
        pass


def _rewrite(file: Path, **changes: object) -> None:
    """Change fields of a ledger, as whoever writes it so would: its checksum fits."""
    body = {**json.loads(file.read_bytes()), **changes}
    del body["checksum"]
    checksum = sha256_bytes(canonical_json(body))
    file.write_bytes(canonical_json({**body, "checksum": checksum}))


def test_a_trial_of_the_older_format_keeps_its_slot_and_proves_nothing_anew(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    (trial,) = json.loads(_ledger_file(tmp_path).read_bytes())["trials"]
    del trial["subject"]["interface_sha256"]
    _rewrite(_ledger_file(tmp_path), format_version=1, trials=[trial])
    assert _slot(tmp_path, "a", interface_sha256="e" * 64) is None
    _record(tmp_path, "a", interface_sha256="e" * 64)
    assert _slot(tmp_path, "a", interface_sha256="e" * 64) == 1


def test_a_newer_format_is_refused_as_such(tmp_path: Path) -> None:
    _record(tmp_path, "a")
    _rewrite(_ledger_file(tmp_path), format_version=FORMAT_VERSION + 1)
    with pytest.raises(IntegrityError, match="upgrade"):
        _record(tmp_path, "a")


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="--ledger"),
        open_ledger(tmp_path / "file", SPLIT, on_wait=_no_wait),
    ):
        pass


def _hold(folder: Path, held: Path, go: Path) -> None:
    with open_ledger(folder, SPLIT, on_wait=_no_wait) as ledger:
        held.touch()
        while not go.exists():
            time.sleep(0.005)
        ledger.record({_subject("a"): "a"}, {_subject("a"): COUNTS}, 1)
    os._exit(0)


def test_a_second_run_waits_and_then_sees_what_the_first_wrote(tmp_path: Path) -> None:
    held, go = tmp_path / "held", tmp_path / "go"
    process = multiprocessing.get_context("spawn").Process(
        target=_hold, args=(tmp_path / "ledger", held, go)
    )
    process.start()
    try:
        while not held.exists():
            assert process.is_alive()
            time.sleep(0.005)
        waited = []

        def on_wait(lock: Path) -> None:
            waited.append(lock)
            go.touch()

        with open_ledger(tmp_path / "ledger", SPLIT, on_wait=on_wait) as ledger:
            assert len(waited) == 1
            assert ledger.find(_subject("a")) == Trial(slot=0, counts=COUNTS, threads=1)
    finally:
        go.touch()
        process.join(timeout=30)
    assert process.exitcode == 0
