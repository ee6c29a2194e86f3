"""Text preprocessing: equal to transformers to the bit, stored and read back, refused by name."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lean import lean_python, run_lean
from tokenizer_cases import (
    ADVERSARIAL,
    MINILM,
    Case,
    assert_same,
    batched,
    edited,
    make_cases,
    two_thousand_texts,
)
from transformers import PreTrainedTokenizerFast

from edgewright.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    ConfigError,
    InputError,
    IntegrityError,
)
from edgewright.preprocess import SETTINGS_FILE, TOKENIZER_FILE, TextPreprocessor, padded_tokens

SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np
from edgewright.preprocess import TextPreprocessor

heavy = ("torch", "transformers", "optimum", "nncf", "datasets")
assert not [name for name in heavy if importlib.util.find_spec(name)], "not a lean environment"
texts = json.loads(Path(sys.argv[1], "texts.json").read_text())
compared = 0
for folder in sorted(Path(sys.argv[1]).glob("*/")):
    preprocessor, expected = TextPreprocessor.load(folder), np.load(folder / "expected.npz")
    assert len(expected.files) == -(-len(texts) // 16) * len(preprocessor.input_names)
    for start in range(0, len(texts), 16):
        for name, array in preprocessor(texts[start : start + 16]).arrays.items():
            want = expected[f"{start}-{name}"]
            same = (array.dtype, array.shape) == (want.dtype, want.shape)
            assert same and array.tobytes() == want.tobytes(), (folder.name, start, name)
            compared += array.size
print(compared)
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return make_cases(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return two_thousand_texts()


@pytest.fixture
def saved(cases: dict[str, Case], tmp_path: Path) -> Path:
    cases["minilm"].ours.save(tmp_path / "preprocessing")
    return tmp_path / "preprocessing"


def test_2000_texts_equal_transformers_to_the_bit(cases: dict[str, Case], texts: list[str]) -> None:
    assert len(texts) == len(set(texts)) == 2000
    for _, batch in batched(texts):
        assert_same(cases["minilm"].ours(batch).arrays, cases["minilm"].expected(batch))


def test_every_family_of_tokenizers_equals_transformers(
    cases: dict[str, Case], texts: list[str]
) -> None:
    some = [*ADVERSARIAL, *texts[::10]]  # All 2,000 in the lean environment, below.
    for case in cases.values():
        for _, batch in batched(some):
            assert_same(case.ours(batch).arrays, case.expected(batch))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # It may have to install the environment first.
def test_equal_from_an_environment_with_serve_alone(
    cases: dict[str, Case], texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    total = 0
    for name, case in cases.items():
        case.ours.save(tmp_path / name)
        expected: dict[str, Any] = {
            f"{start}-{key}": array
            for start, batch in batched(texts)
            for key, array in case.expected(batch).items()
        }
        total += sum(array.size for array in expected.values())
        np.savez(tmp_path / name / "expected.npz", **expected)
    (tmp_path / "compare.py").write_text(SCRIPT)
    printed = run_lean(lean_python("serve"), tmp_path / "compare.py", tmp_path)
    assert int(printed) == total


@settings(max_examples=150, deadline=None, derandomize=True)
@given(batch=st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_any_text_equals_transformers(cases: dict[str, Case], batch: list[str]) -> None:
    for case in cases.values():
        theirs = case.expected(batch)
        if theirs["input_ids"].size == 0:  # NumPy takes [[]] for floats; ours stay integers.
            theirs = {name: array.astype(np.int64) for name, array in theirs.items()}
        assert_same(case.ours(batch).arrays, theirs)


def test_the_unknown_token_is_the_one_that_stands_for_what_is_not_known(
    cases: dict[str, Case],
) -> None:
    unknown = "\U0001f9ff"  # an amulet, which no news has
    for name, case in cases.items():
        token, found = case.ours.unknown_token_id, case.ours.encode([unknown])[0].input_ids
        if "roberta" in name or "gpt" in name:  # bytes, and all of them are known
            assert token is None, name
        else:
            assert token == case.theirs.unk_token_id, name
            assert token in found, name
        assert case.ours.special_tokens == len(case.ours.encode([""])[0]), name


def test_input_names_are_in_the_models_order(cases: dict[str, Case]) -> None:
    for case in cases.values():
        assert case.ours.input_names == tuple(case.theirs.model_input_names)
        assert tuple(case.ours(["a"]).arrays) == case.ours.input_names


def test_truncated_rows_are_those_longer_than_max_length(
    cases: dict[str, Case], texts: list[str]
) -> None:
    some = texts[:400]
    for case in cases.values():
        untruncated = [len(ids) for ids in case.theirs(some, verbose=False)["input_ids"]]
        expected = [length > case.ours.max_length for length in untruncated]
        assert any(expected)
        assert not all(expected)
        assert case.ours(some).truncated.tolist() == expected


def test_a_text_of_exactly_max_length_is_not_truncated(cases: dict[str, Case]) -> None:
    fitting, longer = "dog " * 126, "dog " * 127
    rows = cases["minilm"].ours.encode([fitting, longer])
    assert [(len(row), row.truncated) for row in rows] == [(128, False), (128, True)]


def test_rows_of_several_requests_pad_into_one_batch(cases: dict[str, Case]) -> None:
    for case in cases.values():
        together = case.ours(["one text", "and another, longer one"])
        rows = [
            row
            for text in ("one text", "and another, longer one")
            for row in case.ours.encode([text])
        ]
        assert_same(case.ours.pad(rows).arrays, together.arrays)
        assert [len(row) for row in rows] == together.arrays["attention_mask"].sum(axis=1).tolist()


def test_padding_to_a_given_length_equals_transformers(cases: dict[str, Case]) -> None:
    for case in cases.values():
        theirs = case.theirs(["a b", "c"], padding="max_length", max_length=20, return_tensors="np")
        assert_same(case.ours(["a b", "c"], length=20).arrays, dict(theirs))


def test_padding_below_the_longest_row_is_refused(cases: dict[str, Case]) -> None:
    with pytest.raises(ConfigError, match="pad to 3 tokens: the longest row has 5"):
        cases["minilm"].ours(["one two three"], length=3)


@pytest.mark.parametrize(("lengths", "tokens"), [((), 0), ((7,), 7), ((2, 9, 4), 27)])
def test_padded_tokens_are_rows_times_the_longest(lengths: tuple[int, ...], tokens: int) -> None:
    assert padded_tokens(lengths) == tokens


def test_threads_share_one_preprocessor(cases: dict[str, Case], texts: list[str]) -> None:
    ours = cases["minilm"].ours
    batches = [batch for _, batch in islice(batched(texts), 24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ours, batches))
    for batch, encoding in zip(batches, together, strict=True):
        assert_same(encoding.arrays, ours(batch).arrays)


@pytest.mark.parametrize(
    ("batch", "message", "field"),
    [
        ([], "the batch is empty", "texts"),
        ("one text", "wrap it in", ""),
        (["a", 3], "text 1 is of type int", "texts[1]"),
        (["a", "b", None], "text 2 is of type NoneType", "texts[2]"),
        ([("a", "pair")], "text 0 is of type tuple", "texts[0]"),
        (["a", "ok\ud800"], "text 1 has a lone surrogate at character 2", "texts[1]"),
    ],
)
def test_input_that_is_no_text_is_named(
    cases: dict[str, Case], batch: Any, message: str, field: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        cases["minilm"].ours.encode(batch)
    assert raised.value.field == field


def test_a_batch_of_no_rows_is_refused(cases: dict[str, Case]) -> None:
    with pytest.raises(InputError, match="the batch is empty"):
        cases["minilm"].ours.pad([])


def test_what_is_saved_is_the_same_bytes_every_time(cases: dict[str, Case], tmp_path: Path) -> None:
    for name, case in cases.items():
        again = TextPreprocessor.from_pretrained(str(case.folder), max_length=case.ours.max_length)
        case.ours.save(tmp_path / name / "1")
        again.save(tmp_path / name / "2")
        TextPreprocessor.load(tmp_path / name / "1").save(tmp_path / name / "3")
        for file in (SETTINGS_FILE, TOKENIZER_FILE):
            assert len({(tmp_path / name / part / file).read_bytes() for part in "123"}) == 1


def test_settings_are_plain_to_read(saved: Path) -> None:
    assert json.loads((saved / SETTINGS_FILE).read_text()) == {
        "kind": "text",
        "format_version": 1,
        "max_length": 128,
        "model_max_length": 512,
        "input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "pad_token_id": 0,
        "pad_type_id": 0,
        "padding_side": "right",
        "truncation_side": "right",
        "truncation_strategy": "longest_first",
        "split_special_tokens": False,
    }


def test_the_stored_tokenizer_leaves_truncation_and_padding_to_the_settings(saved: Path) -> None:
    assert json.loads((MINILM / TOKENIZER_FILE).read_text())["truncation"]["max_length"] == 128
    stored = json.loads((saved / TOKENIZER_FILE).read_text())
    assert (stored["truncation"], stored["padding"]) == (None, None)


def test_a_missing_file_is_named(saved: Path) -> None:
    for file in (TOKENIZER_FILE, SETTINGS_FILE):
        (saved / file).unlink()
        with pytest.raises(ArtifactNotFoundError, match=file):
            TextPreprocessor.load(saved)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"kind": "image"}, ArtifactNotFoundError, "of kind 'image'; expected text"),
        ({"format_version": 2}, IntegrityError, "format_version 2"),
        ({"surprise": 1}, IntegrityError, "unknown entries surprise"),
        ({"max_length": 0}, IntegrityError, "max_length is 0"),
        ({"max_length": True}, IntegrityError, "max_length is True"),
        ({"max_length": 10**30}, IntegrityError, "max_length is 1000000"),
        ({"max_length": 513}, IntegrityError, "model takes at most 512"),
        ({"max_length": 2}, IntegrityError, "2 tokens of a row are special"),
        ({"model_max_length": "512"}, IntegrityError, "model_max_length is '512'"),
        ({"pad_token_id": -1}, IntegrityError, "pad_token_id is -1"),
        ({"pad_token_id": 99999}, IntegrityError, "99999, which is not in the vocabulary"),
        ({"pad_type_id": 0.5}, IntegrityError, "pad_type_id is 0.5"),
        ({"padding_side": "up"}, IntegrityError, "padding_side is 'up'"),
        ({"truncation_side": []}, IntegrityError, r"truncation_side is \[\]"),
        ({"truncation_strategy": "only_second"}, IntegrityError, "longest_first"),
        ({"split_special_tokens": 1}, IntegrityError, "split_special_tokens is 1"),
        ({"input_names": ["attention_mask"]}, IntegrityError, "must be input_ids and"),
        ({"input_names": ["input_ids", "bbox"]}, IntegrityError, "must be input_ids and"),
        ({"input_names": ["input_ids", "input_ids"]}, IntegrityError, "each once"),
        ({"input_names": "input_ids"}, IntegrityError, "list of strings"),
    ],
)
def test_malformed_settings_are_refused_by_name(
    saved: Path, entries: dict[str, Any], error: type[ArtifactError], message: str
) -> None:
    record = json.loads((saved / SETTINGS_FILE).read_text())
    (saved / SETTINGS_FILE).write_text(json.dumps({**record, **entries}))
    with pytest.raises(error, match=message) as raised:
        TextPreprocessor.load(saved)
    assert SETTINGS_FILE in str(raised.value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_settings_file_gets_past_the_artifact_errors(
    cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("malformed")
    cases["roberta_like"].ours.save(folder)
    record = json.loads((folder / SETTINGS_FILE).read_text())
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    value = data.draw(scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(), scalars))
    key = data.draw(st.sampled_from(sorted(record)))
    (folder / SETTINGS_FILE).write_text(json.dumps({**record, key: value}))
    with contextlib.suppress(ArtifactError):
        assert len(TextPreprocessor.load(folder)(["a text"]).arrays["input_ids"]) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}"])
def test_a_settings_file_that_is_no_json_object_is_refused(saved: Path, content: bytes) -> None:
    (saved / SETTINGS_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=SETTINGS_FILE):
        TextPreprocessor.load(saved)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_a_malformed_tokenizer_is_refused_by_name(saved: Path, content: bytes) -> None:
    (saved / TOKENIZER_FILE).write_bytes(content)
    with pytest.raises(IntegrityError, match=TOKENIZER_FILE):
        TextPreprocessor.load(saved)


def test_a_tokenizer_that_fails_only_in_use_is_refused_at_load(saved: Path) -> None:
    record = json.loads((saved / TOKENIZER_FILE).read_text())
    record["model"]["unk_token"] = "[GONE]"
    (saved / TOKENIZER_FILE).write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=rf"{TOKENIZER_FILE} cannot be used: .*\[UNK\]"):
        TextPreprocessor.load(saved)


@pytest.mark.parametrize(
    ("asked", "positions", "length"),
    [(None, None, 512), (0, None, 512), (9999, None, 512), (None, 100, 100), (60, 100, 60)],
)
def test_max_length_is_capped_by_tokenizer_and_model(
    asked: int | None, positions: int | None, length: int
) -> None:
    made = TextPreprocessor.from_pretrained(str(MINILM), max_length=asked, max_positions=positions)
    assert made.max_length == length


def test_max_length_must_come_from_somewhere_and_leave_room(cases: dict[str, Case]) -> None:
    roberta = str(cases["roberta_like"].folder)
    with pytest.raises(ConfigError, match="set max_length"):
        TextPreprocessor.from_pretrained(roberta, max_length=None)
    with pytest.raises(ConfigError, match="2 tokens of a row are special; it must be 3"):
        TextPreprocessor.from_pretrained(roberta, max_length=2)
    with pytest.raises(ConfigError, match="max_length is -1"):
        TextPreprocessor.from_pretrained(roberta, max_length=-1)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", lambda it: it.pop("pad_token"), "no padding token"),
        ("tokenizer.json", lambda it: it["model"].update(dropout=0.1), "drops merges at random"),
        ("tokenizer.json", lambda it: it.pop("model"), "cannot load the tokenizer"),
        (
            "tokenizer_config.json",
            lambda it: it.update(model_input_names=["input_ids", "bbox"]),
            "input_names is .*bbox",
        ),
        (
            "tokenizer_config.json",
            lambda it: it.update(tokenizer_class="X", auto_map={"AutoTokenizer": ["x.X", "x.X"]}),
            "cannot load the tokenizer",
        ),
    ],
)
def test_an_unusable_tokenizer_is_refused_by_name(
    cases: dict[str, Case], tmp_path: Path, file: str, change: Callable[[Any], None], message: str
) -> None:
    folder = edited(cases["roberta_like"].folder, tmp_path / "model", file, change)
    with pytest.raises(ConfigError, match=message) as raised:
        TextPreprocessor.from_pretrained(folder, max_length=64)
    assert folder in str(raised.value)


def test_a_tokenizer_without_a_fast_form_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(ConfigError, match=r"ByT5Tokenizer, has no fast form.*choose a model"):
        TextPreprocessor.from_pretrained(str(tmp_path), max_length=64)


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing-here.*give a hub id or a folder"):
        TextPreprocessor.from_pretrained(str(tmp_path / "nothing-here"), max_length=64)


def test_a_tokenizer_that_does_more_in_python_is_refused(
    cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PreTrainedTokenizerFast._batch_encode_plus

    def shouting(self: Any, batch_text_or_text_pairs: list[str], **options: Any) -> Any:
        return plain(self, [text.upper() for text in batch_text_or_text_pairs], **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_batch_encode_plus", shouting)
    with pytest.raises(ConfigError, match=r"gives other input_ids.* than its tokenizer\.json"):
        TextPreprocessor.from_pretrained(str(cases["roberta_like"].folder), max_length=64)


def test_importing_and_loading_needs_no_heavy_library(saved: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from edgewright.preprocess import TextPreprocessor\n"
        "TextPreprocessor.load(Path(sys.argv[1]))(['a text'])\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'scipy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(saved)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_many_texts_are_encoded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own records of all of them at once would take gigabytes."""
    preprocessor = TextPreprocessor.from_pretrained(str(MINILM), max_length=8)
    texts = [f"text number {number} of them" for number in range(2500)]
    rows = [preprocessor.encode([text])[0] for text in texts]
    library, counts = preprocessor._tokenizer, []

    class Counting:
        def encode_batch_fast(self, some: list[str]) -> Any:
            counts.append(len(some))
            return library.encode_batch_fast(some)

    monkeypatch.setattr(preprocessor, "_tokenizer", Counting())
    found = preprocessor.encode(texts)
    assert max(counts) <= 1024
    assert sum(counts) == len(found) == 2500
    for one, other in zip(rows, found, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        assert one.truncated == other.truncated
