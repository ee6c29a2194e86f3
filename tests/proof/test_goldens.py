from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from edgewright.backends import TensorSpec
from edgewright.bundle import Bundle, Variant, Verdict
from edgewright.errors import IntegrityError
from edgewright.manifest import Artifact
from edgewright.preprocess import TextPreprocessor, TextSettings
from edgewright.proof.certificate import PairedCounts, Subject, Trial, certificate
from edgewright.proof.goldens import (
    BATCH_ROWS,
    GOLDENS_FILE,
    RAW_FILE,
    Goldens,
    check_goldens,
    choose_rows,
    golden_scores,
    make_goldens,
)

WORDS = ("[PAD]", "[UNK]", "zero", "one", "two", "three")
TEXTS = ("zero", "one one one", "two", "three zero three", *("one two",) * 8, "two two two two")
VARIANT = Variant(
    name="onnxruntime-fp32",
    backend="onnxruntime",
    file="variants/fp32.onnx",
    precision="fp32",
    batch_invariant=True,
    size_bytes=1,
    search_accuracy=1.0,
)


class CountingSession:
    """Logits are how often words 2 and 3 occur in a row; notes the shape of every call."""

    inputs = (
        TensorSpec("input_ids", "int64", (-1, -1)),
        TensorSpec("attention_mask", "int64", (-1, -1)),
    )
    outputs = (TensorSpec("logits", "float32", (-1, 2)),)

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = np.array([shift, 0.0])
        self.shapes: list[tuple[int, ...]] = []

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        ids = arrays["input_ids"]
        self.shapes.append(ids.shape)
        counts = np.stack([(ids == 2).sum(axis=1), (ids == 3).sum(axis=1)], axis=1)
        return {"logits": (counts + self.shift).astype(np.float32)}


def _preprocessor(words: tuple[str, ...] = WORDS, side: str = "right") -> TextPreprocessor:
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = TextSettings(
        input_names=("input_ids", "attention_mask"),
        max_length=16,
        model_max_length=16,
        pad_token_id=0,
        padding_side=side,
    )
    return TextPreprocessor(settings, tokenizer.to_str())


def _bundle(folder: Path) -> Bundle:
    return Bundle(Artifact(folder, {}, ""), (VARIANT,), {})


def _write(folder: Path, variant: Variant = VARIANT, *, keep_raw: bool = True) -> Goldens:
    sessions = {variant.name: (CountingSession(), not variant.batch_invariant)}
    goldens = make_goldens(TEXTS, _preprocessor(), sessions, keep_raw=keep_raw)
    goldens.save(folder)
    return goldens


def _check(
    folder: Path, session: CountingSession, variant: Variant = VARIANT, **options: Any
) -> Any:
    arguments = {"preprocessor": _preprocessor(), "same_host": True, **options}
    return check_goldens(_bundle(folder), variant, session, **arguments)


def test_the_variant_that_made_them_passes_to_the_bit(tmp_path: Path) -> None:
    _write(tmp_path)
    result = _check(tmp_path, CountingSession())
    assert (result.rows, result.largest_difference, result.labels_changed) == (len(TEXTS), 0.0, 0)


def test_a_certified_variant_keeps_its_verdict_on_the_same_host(tmp_path: Path) -> None:
    _write(tmp_path)
    subject = Subject("f" * 64, "onnxruntime 1", "x86_64-amx", row_by_row=False)
    trial = Trial(slot=0, counts=PairedCounts(n=400, lost=0, won=0), threads=1)
    given = certificate(trial, subject, budget=0.01, confidence=0.95, split_sha256="c" * 64)
    certified = replace(VARIANT, certificate=given)
    assert _check(tmp_path, CountingSession(), certified).verdict is Verdict.PASS
    elsewhere = _check(tmp_path, CountingSession(), certified, same_host=False)
    assert elsewhere.verdict is Verdict.UNVERIFIED


def test_an_uncertified_variant_is_unverified(tmp_path: Path) -> None:
    _write(tmp_path)
    assert _check(tmp_path, CountingSession()).verdict is Verdict.UNVERIFIED


def test_scores_that_moved_are_refused_where_the_certificate_holds(tmp_path: Path) -> None:
    _write(tmp_path)
    with pytest.raises(IntegrityError, match=r"onnxruntime-fp32: golden 0 gets other scores"):
        _check(tmp_path, CountingSession(shift=0.14))


def test_scores_within_the_tolerance_pass(tmp_path: Path) -> None:
    _write(tmp_path)
    result = _check(tmp_path, CountingSession(shift=0.002))
    assert 0 < result.largest_difference < 1e-3


def test_elsewhere_scores_may_move_and_a_close_label_may_change(tmp_path: Path) -> None:
    _write(tmp_path)
    result = _check(tmp_path, CountingSession(shift=-0.14), same_host=False)
    assert result.verdict is Verdict.UNVERIFIED
    assert result.labels_changed == 2  # "two" twice over: neither class occurs, the logits tie


def test_elsewhere_a_decided_label_that_changes_is_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    with pytest.raises(IntegrityError, match="golden 0 gets other scores"):
        _check(tmp_path, CountingSession(shift=-1.5), same_host=False)


@pytest.mark.parametrize("same_host", [True, False])
def test_a_session_that_gives_nan_is_refused(tmp_path: Path, same_host: bool) -> None:
    _write(tmp_path)
    with pytest.raises(IntegrityError, match="golden 0"):
        _check(tmp_path, CountingSession(shift=float("nan")), same_host=same_host)


def test_a_text_that_becomes_other_token_ids_is_refused_by_number(tmp_path: Path) -> None:
    _write(tmp_path)
    swapped = _preprocessor(("[PAD]", "[UNK]", "zero", "one", "three", "two"))
    with pytest.raises(IntegrityError, match=r"golden 2 .*token ids"):
        _check(tmp_path, CountingSession(), preprocessor=swapped)


def test_without_raw_texts_token_ids_alone_are_kept(tmp_path: Path) -> None:
    goldens = _write(tmp_path, keep_raw=False)
    assert goldens.raw is None
    assert not (tmp_path / RAW_FILE).exists()
    assert _check(tmp_path, CountingSession()).rows == len(TEXTS)


def test_an_invariant_variant_runs_in_batches_as_wide_as_their_longest_row() -> None:
    session = CountingSession()
    golden_scores(session, _preprocessor(), _preprocessor()(TEXTS).arrays, BATCH_ROWS)
    assert session.shapes == [(8, 3), (5, 4)]


def test_runs_at_once_overlap_and_give_the_same_scores_in_order() -> None:
    class Meeting(CountingSession):
        met = threading.Barrier(2)

        def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            self.met.wait(30)
            return super().run(arrays)

    arrays = _preprocessor()(TEXTS).arrays  # two batches
    alone = golden_scores(CountingSession(), _preprocessor(), arrays, BATCH_ROWS)
    together = golden_scores(Meeting(), _preprocessor(), arrays, BATCH_ROWS, runs_at_once=2)
    np.testing.assert_array_equal(together, alone)


def test_one_at_a_time_they_run_on_the_thread_that_asks() -> None:
    threads = set()

    class Noting(CountingSession):
        def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            threads.add(threading.get_ident())
            return super().run(arrays)

    golden_scores(Noting(), _preprocessor(), _preprocessor()(TEXTS).arrays, BATCH_ROWS)
    assert threads == {threading.get_ident()}


def test_a_variant_that_depends_on_its_neighbours_runs_row_by_row(tmp_path: Path) -> None:
    alone = replace(VARIANT, batch_invariant=False)
    _write(tmp_path, alone)
    session = CountingSession()
    _check(tmp_path, session, alone)
    assert session.shapes[:4] == [(1, 1), (1, 3), (1, 1), (1, 3)]
    assert len(session.shapes) == len(TEXTS)


def test_padding_on_the_left_is_cut_too() -> None:
    session = CountingSession()
    golden_scores(session, _preprocessor(), _preprocessor(side="left")(TEXTS).arrays, 1)
    assert session.shapes[0] == (1, 1)


def test_the_same_goldens_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        _write(folder)
    for name in (GOLDENS_FILE, RAW_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_goldens_survive_the_disk(tmp_path: Path) -> None:
    goldens = _write(tmp_path)
    loaded = Goldens.load(tmp_path)
    assert loaded.raw == TEXTS
    assert loaded.batch_rows == BATCH_ROWS
    for name, array in goldens.inputs.items():
        np.testing.assert_array_equal(loaded.inputs[name], array)
    np.testing.assert_array_equal(
        loaded.scores[VARIANT.name], goldens.scores[VARIANT.name], strict=True
    )


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_refused_by_folder(tmp_path: Path, content: bytes) -> None:
    _write(tmp_path)
    (tmp_path / GOLDENS_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match="goldens in"):
        Goldens.load(tmp_path)


def test_pickled_goldens_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / GOLDENS_FILE, batch_rows=np.array([{"a": 1}], dtype=object))
    with pytest.raises(IntegrityError, match="pickle"):
        Goldens.load(tmp_path)


def test_scores_of_an_unknown_variant_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    with pytest.raises(IntegrityError, match="no scores of another"):
        _check(tmp_path, CountingSession(), replace(VARIANT, name="another"))


def test_rows_come_from_every_class_in_turn() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    rows = choose_rows(labels, 9)
    assert np.bincount(labels[rows]).tolist() == [3, 3, 3]
    assert rows.tolist() == [0, 1, 2, 50, 51, 52, 53, 54, 55]
    assert len(choose_rows(labels)) == 32
    assert choose_rows(labels[:5]).tolist() == [0, 1, 2, 3, 4]
