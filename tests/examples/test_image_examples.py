"""Images as examples: identity, near-duplicates, splits, and the checkpoint that keeps them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_cases import photographs, saved
from image_data import digit_folder, digit_image, digits
from PIL import Image, ImageEnhance

from edgewright.errors import DataError, IntegrityError
from edgewright.examples import (
    QUARANTINE,
    Columns,
    Examples,
    Sources,
    SplitReport,
    SplitShares,
    build_examples,
    image_id,
    read_table,
)
from edgewright.examples.near_images import NearImages, signatures
from edgewright.kinds import IMAGE
from edgewright.tables.image_folder import ImageFile


def build(folder: Path, *added: Path, previous: Examples | None = None, **options: object):
    main = read_table(folder) if previous is None else None
    sources = Sources(main=main, added=tuple(map(read_table, added)))
    return build_examples(sources, shares=SplitShares(), seed=0, previous=previous, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("digits"), range(120))


@pytest.fixture(scope="module")
def built(folder: Path) -> tuple[Examples, SplitReport]:
    return build(folder)


def in_memory(tmp_path: Path, images: list[Image.Image]) -> NearImages:
    files = []
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
        files.append(ImageFile(tmp_path / f"{index}.png", f"{index}.png"))
    return NearImages(signatures(files))


def test_an_id_is_the_hash_of_the_file(built: tuple[Examples, SplitReport]) -> None:
    examples, _ = built
    assert examples.kind is IMAGE
    assert examples.ids == sorted(image_id(image.read()) for image in examples.images)
    assert len(examples) == 120


def test_a_copy_is_the_same_example(folder: Path, tmp_path: Path) -> None:
    copy = digit_folder(tmp_path / "d", range(60))
    (copy / "0" / "again.png").write_bytes((copy / "0" / "0.png").read_bytes())
    examples, report = build(copy)
    assert (len(examples), report.exact_duplicates) == (60, 1)


def test_a_copy_in_another_class_is_quarantined(tmp_path: Path) -> None:
    copy = digit_folder(tmp_path / "d", range(60))
    (copy / "7" / "wrong.png").write_bytes((copy / "0" / "0.png").read_bytes())
    examples, report = build(copy)
    row = examples.ids.index(image_id((copy / "0" / "0.png").read_bytes()))
    assert (examples.splits[row], report.conflicting) == (QUARANTINE, 1)


def test_the_same_picture_in_another_file_shares_the_split(tmp_path: Path) -> None:
    copy = digit_folder(tmp_path / "d", range(60))
    for row in range(20):
        digit_image(row).save(copy / str(digits()[1][row]) / f"{row}.bmp")
    examples, report = build(copy)
    assert report.near_duplicate_pairs >= 20
    group = dict(zip([image.name for image in examples.images], examples.groups, strict=True))
    for row in range(20):
        name = f"{digits()[1][row]}/{row}"
        assert group[f"{name}.png"] == group[f"{name}.bmp"]


def test_a_picture_compressed_or_scaled_again_is_near_and_another_is_not(tmp_path: Path) -> None:
    photo = photographs()[0]
    again = Image.open(io.BytesIO(saved(photo, "JPEG", quality=60)))
    small = photo.resize((200, 133), Image.Resampling.LANCZOS)
    brighter = ImageEnhance.Brightness(photo).enhance(1.2)
    near = in_memory(tmp_path, [photo, again, small, brighter, photographs()[1]])
    assert near.components == [[0, 1, 2], [3], [4]]
    assert near.pairs([0, 1, 2]) == [(0, 1), (0, 2), (1, 2)]
    assert near.pairs([0, 2]) == [(0, 2)]


def test_flat_pictures_are_alike_only_when_they_are_equal(tmp_path: Path) -> None:
    greys = [Image.new("RGB", (9, 9), (level,) * 3) for level in (100, 101, 100)]
    assert in_memory(tmp_path, greys).components == [[0, 2], [1]]


def test_no_pair_is_missed(folder: Path) -> None:
    """Against every pair compared, among digits, noisy twins and twins two levels brighter."""
    rng = np.random.default_rng(0)
    reduced = signatures([ImageFile(p, p.name) for p in sorted(folder.rglob("*.png"))])
    noisy = np.clip(reduced.astype(int) + rng.integers(-4, 5, reduced.shape), 0, 255)
    brighter = np.minimum(reduced[:60].astype(int) + 2, 255)
    rows = np.concatenate([reduced, noisy.astype(np.uint8), brighter.astype(np.uint8)])
    colours = rows.reshape(len(rows), -1, 3).astype(float)
    contrast = np.abs(colours - colours.mean(axis=1, keepdims=True)).mean(axis=(1, 2))
    expected = [
        (one, other)
        for one in range(len(rows))
        for other in range(one + 1, len(rows))
        if np.abs(rows[one].astype(int) - rows[other]).mean()
        <= min(2, 0.1 * contrast[one], 0.1 * contrast[other])
    ]
    assert len(expected) >= 60
    assert NearImages(rows).pairs(range(len(rows))) == expected


def test_files_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    copy = digit_folder(tmp_path / "d", range(60))
    (copy / "0" / "0.png").write_bytes((copy / "0" / "0.png").read_bytes()[:70])
    (copy / "1" / "1.png").write_text("not an image")
    with pytest.raises(DataError) as raised:
        build(copy)
    assert "0/0.png cannot be decoded" in str(raised.value)
    assert "1/1.png is no image" in str(raised.value)


def test_a_checkpoint_keeps_the_files_byte_for_byte(
    built: tuple[Examples, SplitReport], tmp_path: Path
) -> None:
    examples, _ = built
    examples.save(tmp_path)
    loaded = Examples.load(tmp_path, examples.label_names)
    assert loaded.kind is IMAGE
    for one, other in zip(examples.images, loaded.images, strict=True):
        assert (one.name, one.read()) == (other.name, other.read())
    assert loaded.ids == examples.ids
    assert loaded.splits == examples.splits
    test, again = examples.split("test"), loaded.split("test")
    assert [image.read() for image in test.images] == [image.read() for image in again.images]
    with pytest.raises(DataError, match="the examples: holds images"):
        _ = loaded.texts


def test_the_same_images_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build(folder)[0].save(tmp_path / name)
    one, two = ((tmp_path / n / "examples.parquet").read_bytes() for n in ("one", "two"))
    assert one == two


def test_images_lie_in_small_row_groups(tmp_path: Path) -> None:
    for row in range(40):
        target = tmp_path / "noise" / str(row % 2)
        target.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target / f"{row}.png")
    examples, _ = build(tmp_path / "noise")
    examples.save(tmp_path)
    file = pq.ParquetFile(tmp_path / "examples.parquet")
    sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
    assert len(sizes) > 1
    assert max(sizes) < 2 << 20
    loaded = Examples.load(tmp_path, examples.label_names)
    for row in (39, 0, 20, 39):
        assert image_id(loaded.images[row].read()) == loaded.ids[row]


def test_an_altered_image_is_found(built: tuple[Examples, SplitReport], tmp_path: Path) -> None:
    examples, _ = built
    examples.save(tmp_path)
    data = bytearray((tmp_path / "examples.parquet").read_bytes())
    place = data.index(b"IDAT") + 6
    data[place] ^= 1
    (tmp_path / "examples.parquet").write_bytes(data)
    with pytest.raises(IntegrityError, match="an id is not that of its image"):
        Examples.load(tmp_path, examples.label_names)


def test_a_file_that_changes_meanwhile_is_found(tmp_path: Path) -> None:
    copy = digit_folder(tmp_path / "d", range(60))
    examples, _ = build(copy)
    digit_image(1000).save(copy / "0" / "0.png")
    with pytest.raises(DataError, match=r"0/0\.png: has changed while the run was reading it"):
        examples.save(tmp_path)


def test_added_images_move_none(
    built: tuple[Examples, SplitReport], folder: Path, tmp_path: Path
) -> None:
    examples, _ = built
    examples.save(tmp_path)
    previous = Examples.load(tmp_path, examples.label_names)
    more = digit_folder(tmp_path / "more", range(100, 160))
    grown, report = build(folder, more, previous=previous)
    assert (report.added, report.exact_duplicates, len(grown)) == (40, 20, 160)
    assert grown.ids[:120] == examples.ids
    assert grown.splits[:120] == examples.splits
    (tmp_path / "grown").mkdir()
    grown.save(tmp_path / "grown")
    assert Examples.load(tmp_path / "grown", grown.label_names).ids == grown.ids


def test_texts_and_images_do_not_mix(
    built: tuple[Examples, SplitReport], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("text,label\nhello,0\nworld,1\n")
    texts = read_table(tmp_path / "t.csv", Columns())
    with pytest.raises(DataError, match="holds texts, and .* images; a model learns from one kind"):
        Sources(main=read_table(folder), added=(texts,))
    with pytest.raises(DataError, match="holds texts, and the checkpoint was made from images"):
        build_examples(Sources(added=(texts,)), shares=SplitShares(), seed=0, previous=built[0])
