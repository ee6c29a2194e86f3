"""Rows to predict: the same texts from every kind of file, and faults named by their place."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.errors import DataError
from edgewright.texts import Text, read_texts, split_lines

TEXTS = ["Shares rose, again", 'He said "no"', "two\nlines", "naïve 株"]


def contents(texts: list[Text]) -> list[str]:
    return [text.content for text in texts]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_csv_and_tsv_give_the_text_column(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / ("rows.csv" if delimiter == "," else "rows.tsv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text", "label"])
        writer.writerows([[number, text, "x"] for number, text in enumerate(TEXTS)])
    texts = read_texts(path, None)
    assert contents(texts) == TEXTS
    assert texts[0].place == f"{path}: row 1 (line 2), column 'text'"
    assert contents(read_texts(path, "label")) == ["x"] * 4


def test_jsonl_gives_the_text_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS))
    texts = read_texts(path, None)
    assert contents(texts) == TEXTS
    assert texts[1].place == f"{path}: row 2 (line 3), column 'text'"


def test_txt_gives_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"one\r\ntwo\n")
    assert contents(read_texts(path, None)) == ["one", "two"]


def test_the_only_column_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("whatever\nShares rose\n")
    assert contents(read_texts(path, None)) == ["Shares rose"]


def test_a_text_may_be_longer_than_csvs_own_limit(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text\n{'x' * 2_000}\n")
    before = csv.field_size_limit(1_000)
    try:
        assert len(read_texts(path, None)[0].content) == 2_000
        assert csv.field_size_limit() == 1_000
    finally:
        csv.field_size_limit(before)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1))
def test_what_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    texts = [f"a{text}" for text in texts]
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in texts)])
    path.write_bytes(written.getvalue().encode())
    assert contents(read_texts(path, None)) == texts


FAULTS = {
    "ragged row": ("rows.csv", b"text,label\na,b\nc\n", r"row 2 \(line 3\): has 1 fields"),
    "broken quoting": ("rows.csv", b'text\n"a" b\n', r"line 2: quoting is broken"),
    "empty text": (
        "rows.csv",
        b"text,label\na,b\n ,b\n",
        r"row 2 \(line 3\), column.*empty",
    ),
    "no text column": (
        "rows.csv",
        b"a,b\n1,2\n",
        r"no columns could hold.*'a', 'b'",
    ),
    "two candidates": ("rows.csv", b"text,content\n1,2\n", "2 columns could hold the text"),
    "not UTF-8": ("rows.csv", b"text\nna\xefve\n", r"line 2.*not UTF-8 at byte 7"),
    "header only": ("rows.csv", b"text\n", "holds no rows"),
    "empty file": ("rows.csv", b"", "is empty"),
    "not JSON": ("rows.jsonl", b'{"text": "a"}\n{"text": \n', r"row 2 \(line 2\): is not JSON"),
    "no object": ("rows.jsonl", b'["a"]\n', "expected an object"),
    "no such key": ("rows.jsonl", b'{"text": "a"}\n{"other": "b"}\n', r"row 2.*null is no text"),
    "a number": ("rows.jsonl", b'{"text": 3}\n', r"column 'text': 3 is no text"),
    "blank line": ("rows.txt", b"a\n\nb\n", "line 2: is empty"),
    "other ending": ("rows.parquet", b"PAR1", r"ending '.parquet' is not known.*\.csv"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_file_row_and_column(tmp_path: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(path, None)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_and_a_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        read_texts(tmp_path / "none.csv", None)
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no columns are named 'c' \(--text-column\)"):
        read_texts(path, "c")
    lines = tmp_path / "rows.txt"
    lines.write_text("a\n")
    with pytest.raises(DataError, match="has no columns"):
        read_texts(lines, "text")


def test_a_pipe_gives_one_text_a_line_and_names_the_bad_one() -> None:
    assert contents(split_lines("one\r\nzwölf\n".encode(), "standard input")) == ["one", "zwölf"]
    for data, message in (
        (b"", "is empty"),
        (b"a\n\nb", "line 2: is empty"),
        (b"a\n\xff", "line 2"),
    ):
        with pytest.raises(DataError, match=f"standard input.*{message}"):
            split_lines(data, "standard input")
