"""Images by folder, and tables that name image files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_data import digit_folder, digit_image

from edgewright.errors import ConfigError, DataError
from edgewright.kinds import IMAGE
from edgewright.tables import Table, read_table
from edgewright.tables.columns import Columns


def names(table: Table) -> list[str]:
    return [image.name for image in table.contents if not isinstance(image, str)]


def test_a_class_is_a_sub_folder(tmp_path: Path) -> None:
    table = read_table(digit_folder(tmp_path, range(12)))
    assert (table.kind, len(table)) == (IMAGE, 12)
    assert sorted(zip(names(table), table.labels, strict=True)) == sorted(
        (f"{label}/{row}.png", str(label)) for row, label in enumerate([*range(10), 0, 1])
    )
    assert table.splits is None
    assert table.place(0) == f"{tmp_path}: 0/0.png"
    assert table.contents[0].read() == (tmp_path / "0" / "0.png").read_bytes()


def test_a_folder_may_have_a_table_that_names_its_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for row in range(3):
        digit_image(row).save(tmp_path / "images" / f"{row}.png")
    columns = {"file_name": ["images/2.png", "images/0.png"], "label": ["狐", "hund"]}
    pq.write_table(pa.table(columns), tmp_path / "metadata.parquet")
    table = read_table(tmp_path)
    assert (table.kind, names(table)) == (IMAGE, ["images/2.png", "images/0.png"])
    assert table.labels == ["狐", "hund"]
    assert table.contents[0].read() == (tmp_path / "images" / "2.png").read_bytes()
    assert table.place(1) == f"{tmp_path / 'metadata.parquet'}: row 2"
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(DataError, match=r"row 2 names 'images/0\.png', and there is no such file"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        {"file_name": ["0/0.png"], "taken_at": ["noon"]},
        {"file_name": ["0/0.png"], "text": ["a nought"], "label": ["caption"]},
        {"label": ["a", "b"]},
    ],
)
@pytest.mark.parametrize("optional", [False, True])
def test_a_table_without_paths_and_labels_leaves_sub_folders_their_classes(
    tmp_path: Path, said: dict[str, list[str]], optional: bool
) -> None:
    digit_folder(tmp_path, range(3))
    pq.write_table(pa.table(said), tmp_path / "metadata.parquet")
    table = read_table(tmp_path, Columns(label_optional=optional))
    assert (table.kind, table.labels) == (IMAGE, ["0", "1", "2"])
    assert "in metadata.parquet no columns are known" in table.notes[0]


def test_a_file_that_is_no_table_leaves_sub_folders_their_classes(tmp_path: Path) -> None:
    digit_folder(tmp_path, range(3))
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    assert read_table(tmp_path).labels == ["0", "1", "2"]


def test_a_table_alone_says_what_it_lacks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file_name": ["0.png"]}), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match=r"metadata\.parquet: no label column"):
        read_table(tmp_path)


def test_splits_are_sub_folders_of_classes(tmp_path: Path) -> None:
    for index, split in enumerate(("train", "Val", "test")):
        digit_folder(tmp_path / split, range(4 * index, 4 * index + 4))
    table = read_table(tmp_path)
    assert table.splits == ["validation"] * 4 + ["test"] * 4 + ["train"] * 4
    assert table.labels[-4:] == list("0123")


def test_images_may_lie_deeper_in_their_class(tmp_path: Path) -> None:
    digit_folder(tmp_path, range(3))
    digit_folder(tmp_path / "0" / "more", [10])
    table = read_table(tmp_path)
    assert ("0/more/0/10.png", "0") in zip(names(table), table.labels, strict=True)


def test_what_is_no_image_is_told_and_hidden_files_are_not(tmp_path: Path) -> None:
    digit_folder(tmp_path, range(3))
    (tmp_path / "0" / "notes.txt").write_text("mine")
    (tmp_path / "0" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "9").mkdir()
    left_out, empty = read_table(tmp_path).notes
    assert "left out 1 files that are no images by their ending, 0/notes.txt" in left_out
    assert "the folder of class '9' holds no image" in empty


@pytest.mark.parametrize("target", [".", "..", "../1"])
def test_a_link_back_is_refused_and_one_to_elsewhere_is_followed(tmp_path: Path, target) -> None:
    digit_folder(tmp_path, range(3))
    (tmp_path / "0" / "linked").symlink_to(target)
    if target == "../1":
        assert "0/linked/1.png" in names(read_table(tmp_path))
        return
    with pytest.raises(DataError, match=r"0/linked.*: a link leads back to .*/0, .* remove it"):
        read_table(tmp_path)


def test_images_outside_of_a_class_are_refused(tmp_path: Path) -> None:
    digit_folder(tmp_path, range(3))
    digit_image(5).save(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"1 images lie outside of a class, stray\.png"):
        read_table(tmp_path)


def test_splits_beside_something_else_are_refused(tmp_path: Path) -> None:
    digit_folder(tmp_path / "train", range(3))
    digit_folder(tmp_path / "extra", range(3))
    with pytest.raises(DataError, match=r"train hold classes .* beside them lies extra"):
        read_table(tmp_path)


def test_a_table_names_images_relative_to_its_folder(tmp_path: Path) -> None:
    digit_folder(tmp_path / "pictures", range(3))
    rows = "file_name,label\npictures/0/0.png,zero\npictures/1/1.png,one\n"
    (tmp_path / "t.csv").write_text(rows)
    table = read_table(tmp_path / "t.csv")
    assert (table.kind, table.text_column) == (IMAGE, "file_name")
    assert names(table) == ["pictures/0/0.png", "pictures/1/1.png"]
    assert table.contents[1].read() == (tmp_path / "pictures" / "1" / "1.png").read_bytes()
    with pytest.raises(DataError, match="holds images, and this works on texts alone"):
        _ = table.texts


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "parquet"])
def test_every_kind_of_table_may_name_images(tmp_path: Path, suffix: str) -> None:
    digit_folder(tmp_path, range(2))
    path = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        path.write_text('{"where": "0/0.png", "label": 0}\n{"where": "1/1.png", "label": 1}\n')
    elif suffix == "tsv":
        path.write_text("where\tlabel\n0/0.png\t0\n1/1.png\t1\n")
    else:
        pq.write_table(pa.table({"where": ["0/0.png", "1/1.png"], "label": [0, 1]}), path)
    table = read_table(path, Columns(image="where"))
    assert (names(table), table.labels) == (["0/0.png", "1/1.png"], ["0", "1"])


def test_a_text_column_goes_before_an_image_column(tmp_path: Path) -> None:
    digit_folder(tmp_path, range(2))
    (tmp_path / "t.csv").write_text("text,image,label\nnought,0/0.png,0\none,1/1.png,1\n")
    assert read_table(tmp_path / "t.csv").texts == ["nought", "one"]
    assert read_table(tmp_path / "t.csv", Columns(image="image")).kind is IMAGE


def test_images_that_are_not_there_are_told_by_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label\ngone.png,a\n,b\n")
    with pytest.raises(DataError) as raised:
        read_table(tmp_path / "t.csv")
    assert "column 'image': row 1 (line 2) names 'gone.png', and there is no" in str(raised.value)
    assert "row 2 (line 3) names no image" in str(raised.value)


def test_a_column_of_pictures_themselves_is_refused(tmp_path: Path) -> None:
    pictures = pa.array([{"bytes": b"x", "path": None}])
    pq.write_table(pa.table({"image": pictures, "label": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="image column 'image' is of type struct"):
        read_table(tmp_path / "t.parquet")


def test_text_and_image_columns_are_not_both_given() -> None:
    with pytest.raises(ConfigError, match="--text-column and --image-column are both given"):
        Columns(text="a", image="b")


def test_a_missing_image_column_is_told_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("picture,label\na.png,b\n")
    with pytest.raises(DataError, match=r"no column 'pic' \(--image-column\)"):
        read_table(tmp_path / "t.csv", Columns(image="pic"))
