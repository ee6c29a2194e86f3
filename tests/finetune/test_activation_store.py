"""What was stored comes back, whatever happened in between; what is damaged is not believed."""

import errno
import os

import numpy as np
import pytest

from edgewright.finetune import activation_store
from edgewright.finetune.activation_store import ActivationStore, evict

IDENTITY = {"weights": "abc", "dtype": "float16"}


def arrays(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{seed}-{index}": rng.normal(size=(rng.integers(0, 9), 5)).astype(np.float16)
        for index in range(count)
    }


def filled(root, rows) -> ActivationStore:
    store = ActivationStore(root, IDENTITY)
    store.append(list(rows), rows.values())
    return store


def assert_holds(store, rows):
    for key, array in rows.items():
        np.testing.assert_array_equal(store.read(key), array)


def test_rows_come_back_from_the_store_and_from_one_opened_anew(tmp_path):
    rows = arrays(20)
    assert_holds(filled(tmp_path, rows), rows)
    assert_holds(ActivationStore(tmp_path, IDENTITY), rows)


def test_later_rows_are_appended_and_change_nothing_that_is_there(tmp_path):
    first, second = arrays(5), arrays(7, seed=1)
    store = filled(tmp_path, first)
    before = {file: file.read_bytes() for file in store.folder.iterdir()}
    store.append(list(second), second.values())
    assert before.items() <= {f: f.read_bytes() for f in store.folder.iterdir()}.items()
    assert_holds(ActivationStore(tmp_path, IDENTITY), first | second)


def test_missing_names_each_row_once(tmp_path):
    store = filled(tmp_path, arrays(2))
    assert store.missing(["0-0", "new", "0-1", "new", "other"]).tolist() == [1, 4]


def test_another_identity_is_another_store(tmp_path):
    filled(tmp_path, arrays(3))
    assert len(ActivationStore(tmp_path, {**IDENTITY, "weights": "abd"})) == 0


def test_two_stores_open_at_once_both_append(tmp_path):
    one, two = ActivationStore(tmp_path, IDENTITY), ActivationStore(tmp_path, IDENTITY)
    first, second = arrays(4), {**arrays(4), **arrays(3, seed=1)}
    one.append(list(first), first.values())
    two.append(list(second), second.values())
    assert_holds(ActivationStore(tmp_path, IDENTITY), first | second)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_flipped_byte_takes_its_shard_and_no_other(tmp_path, suffix):
    good, bad = arrays(3), arrays(4, seed=1)
    store = filled(tmp_path, bad)
    (file,) = (f for f in store.folder.glob(f"*{suffix}") if f.name != "identity.json")
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    store.append(list(good), good.values())
    file.write_bytes(content)
    again = ActivationStore(tmp_path, IDENTITY)
    if suffix == ".npy":
        assert [path.stem for path in again.damaged] == [file.stem]
        assert again.missing(list(bad)).tolist() == [0, 1, 2, 3]
    assert_holds(again, good)


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_shard_cut_short_is_taken_away(tmp_path, cut):
    store = filled(tmp_path, arrays(6))
    (file,) = store.folder.glob("*.npy")
    file.write_bytes(file.read_bytes()[:cut])
    again = ActivationStore(tmp_path, IDENTITY)
    assert len(again) == 0
    assert len(again.damaged) == 1
    assert [f.name for f in again.folder.iterdir()] == ["identity.json"]


def test_an_array_without_its_record_is_not_there(tmp_path):
    store = filled(tmp_path, arrays(6))
    (record,) = (f for f in store.folder.glob("*.json") if f.name != "identity.json")
    record.unlink()
    again = ActivationStore(tmp_path, IDENTITY)
    assert len(again) == 0
    assert again.damaged == []
    assert len(list(again.folder.glob("*.npy"))) == 1  # perhaps another run is just writing it


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path):
    store = filled(tmp_path, arrays(2))
    left = [store.folder / "x.npy.part", store.folder / "y.npy"]
    for file in left:
        file.write_bytes(b"half")
        os.utime(file, (1, 1))
    ActivationStore(tmp_path, IDENTITY)
    assert not any(file.exists() for file in left)


def test_a_full_disk_leaves_nothing_of_a_shard_behind(tmp_path, monkeypatch):
    store = filled(tmp_path, arrays(2))

    def full(_file, _items, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(activation_store.np, "save", full)
    with pytest.raises(OSError, match="No space"):
        store.append(["a"], [np.zeros((1, 5))])
    assert len(list(store.folder.iterdir())) == 3  # identity, and the shard of before


def test_the_least_recently_used_stores_go_when_there_are_too_many(tmp_path):
    stores = [ActivationStore(tmp_path, {"n": n}) for n in range(3)]
    for age, store in enumerate(stores):
        store.append(["a"], [np.zeros((1000, 5))])
        os.utime(store.folder, (age, age))
    size = sum(file.stat().st_size for file in stores[0].folder.iterdir())
    removed = evict(tmp_path, 2 * size + 10, keep=[stores[0].folder])
    assert removed == [stores[1].folder]
    assert set(tmp_path.iterdir()) == {stores[0].folder, stores[2].folder}


def test_what_another_run_renames_while_stores_are_measured_is_no_fault(tmp_path):
    stores = [ActivationStore(tmp_path, {"n": n}) for n in range(2)]
    for age, store in enumerate(stores):
        store.append(["a"], [np.zeros((1000, 5))])
        (store.folder / "x.npy.part").symlink_to("x.npy")  # listed, and gone when it is asked for
        os.utime(store.folder, (age, age))
    assert evict(tmp_path, 10, keep=[stores[1].folder]) == [stores[0].folder]
