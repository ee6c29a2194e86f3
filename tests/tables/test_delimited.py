"""csv and tsv: what the writers of the world write is read back cell by cell, or refused by row."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.errors import DataError
from edgewright.tables.columns import Columns
from edgewright.tables.delimited import read_csv, read_tsv

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
awkward = st.sampled_from(
    [
        '"',
        '""',
        ",",
        "\t",
        "\n",
        "\r",
        "\r\n",
        "NA",
        "null",
        "001",
        "1.0",
        "🙂",
        "é",
        "\ufeff",
        "\x85",
    ]
)
texts = st.lists(cells | awkward, min_size=1, max_size=4).map("".join)
rows = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@given(rows)
@settings(deadline=None, max_examples=100)
def test_csv_gives_back_what_pythons_writer_wrote(rows: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        read = read_csv(path, Columns())
    assert list(zip(read.texts, read.labels, strict=True)) == rows


@given(rows)
@settings(deadline=None, max_examples=100)
def test_tsv_gives_back_what_pythons_writer_wrote(rows: list[tuple[str, str]]) -> None:
    """Tabs within a cell aside: beside line breaks there, a file may be read in two ways."""
    rows = [(text.replace("\t", ""), label.replace("\t", "")) for text, label in rows]
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.tsv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([("text", "label"), *rows])
        read = read_tsv(path, Columns())
    assert list(zip(read.texts, read.labels, strict=True)) == rows


def test_cells_stay_the_strings_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nNA,001\nnull,1.0\ntrue,nan\n")
    read = read_csv(path, Columns())
    assert read.texts == ["NA", "null", "true"]
    assert read.labels == ["001", "1.0", "nan"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\nx,y\n")
    assert read_csv(path, Columns()).columns.text == "text"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_one(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "a.csv", end.join(["text,label", "a,b", "", '"c', 'd",e', ""]))
    read = read_csv(path, Columns())
    assert read.labels == ["b", "e"]
    assert read.texts == ["a", f"c{end}d"]
    assert list(read.lines or ()) == [2, 4]


def test_a_text_longer_than_the_limit_of_pythons_reader_is_read(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", "text,label\n" + "x" * 200_000 + ",y\n")
    assert len(str(read_csv(path, Columns()).texts[0])) == 200_000
    assert csv.field_size_limit() == before


def test_an_opening_quotation_mark_in_a_tsv_does_not_swallow_the_rows_after_it(
    tmp_path: Path,
) -> None:
    lines = [
        "text\tlabel",
        '"A triumph" of a film\t1',
        '"the plot\tholes"',
        'so "bad"\t0',
        '"ok"\t1',
    ]
    read = read_tsv(write(tmp_path / "a.tsv", "\n".join(lines)), Columns())
    assert read.texts == ['"A triumph" of a film', '"the plot', 'so "bad"', "ok"]
    assert read.labels == ["1", 'holes"', "0", "1"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\na,b\nc\nd,e\n", r"row 2 \(line 3\): has 1 fields where .* 2 columns"),
        ('text,label\n"a\nb",c\nd,e,f\n', r"row 2 \(line 4\): has 3 fields"),
        ('text,label\na,b\n"c,d\ne,f\n', r"row 2 .*begins on line 3, quoting is broken"),
        ('text,label\n"a" b,c\n', r"row 1 \(line 2\): quoting is broken"),
        ("text,label\na,b\n\0,d\n", r"row 2 \(line 3\): holds a NUL byte"),
        ("\n\ntext,label\na\n", r"row 1 \(line 4\): has 1 fields"),
        (",\na,b\n", "must name the columns"),
        ("text,label,text\na,b,c\n", "more than one column is named 'text'"),
        ("text\tlabel\na\tb\n", r"separated by tabs; .*Name it \.tsv"),
        ("", "is empty"),
    ],
)
def test_a_broken_csv_is_refused_by_row_and_line(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_csv(write(tmp_path / "broken.csv", content), Columns())
    assert "broken.csv" in str(caught.value)


@pytest.mark.parametrize(("reader", "name"), [(read_csv, "excel.csv"), (read_tsv, "excel.tsv")])
def test_what_has_semicolons_is_read_after_the_command_that_is_told(
    tmp_path: Path, reader: Callable[..., Any], name: str
) -> None:
    content = '\ufeffid;text;label\n1;"so; ""fine"", ok\nünï";a\n'.encode()
    with pytest.raises(DataError, match="is separated by semicolons") as caught:
        reader(write(tmp_path / name, content), Columns())
    _, _, command = str(caught.value).partition("Convert it: ")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    read = read_csv(tmp_path / "commas-excel.csv", Columns())
    assert (read.texts, read.labels) == (['so; "fine", ok\nünï'], ["a"])


def test_a_tsv_with_commas_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"separated by commas; .*Name it \.csv"):
        read_tsv(write(tmp_path / "a.tsv", "text,label\na,b\n"), Columns())


@pytest.mark.parametrize("reader", [read_csv, read_tsv])
def test_a_byte_that_is_not_utf8_is_told_with_row_line_and_offset(tmp_path: Path, reader) -> None:  # type: ignore[no-untyped-def]
    separator = b"," if reader is read_csv else b"\t"
    content = b'text%slabel\n"a\nb"%sc\ncaf\xe9%sd\n'.replace(b"%s", separator)
    with pytest.raises(
        DataError, match=r"row 2 \(line 4\): is not UTF-8 at byte 22 \(0xe9\).*iconv"
    ):
        reader(write(tmp_path / "latin", content), Columns())


def test_a_bad_byte_in_a_tsv_with_a_stray_quotation_mark_is_told_with_its_own_row(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.tsv", b'text\tlabel\n"A triumph\tb\ncaf\xe9\td\n')
    with pytest.raises(DataError, match=r"row 2 \(line 3\): is not UTF-8 at byte 27"):
        read_tsv(path, Columns())


def test_utf16_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,b\n".encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16, expected UTF-8.*iconv -f UTF-16"):
        read_csv(path, Columns())


def test_blank_lines_of_a_tsv_are_no_rows(tmp_path: Path) -> None:
    read = read_tsv(write(tmp_path / "a.tsv", "text\tlabel\r\na\tb\r\n\r\nc\td\r\n"), Columns())
    assert (read.texts, read.labels) == (["a", "c"], ["b", "d"])
    assert list(read.lines or ()) == [2, 4]


def test_a_ragged_tsv_is_refused_by_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2 \(line 3\): has 3 fields"):
        read_tsv(write(tmp_path / "a.tsv", "text\tlabel\na\tb\nc\td\te\n"), Columns())
