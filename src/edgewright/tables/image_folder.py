"""Folders of images, a sub-folder for each class, and the image files that a table names.

pets/cat/1.jpg  pets/dog/2.png              classes cat and dog
pets/train/cat/1.jpg  pets/test/cat/2.jpg   likewise, with the splits given
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from edgewright.errors import DataError
from edgewright.kinds import IMAGE
from edgewright.tables.columns import SPLIT_ALIASES, SPLITS, Cells, FoundColumns

# Of a folder of images that has one: as Hugging Face datasets calls it, and feedback is exported.
IMAGE_TABLE: Final = "metadata.parquet"
SUFFIXES: Final = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip


class Image(Protocol):
    """An image file, read when it is wanted; ``name`` tells a person which one it is."""

    @property
    def name(self) -> str:
        """Path within its source."""
        ...

    def read(self) -> bytes:
        """The whole file; DataError when it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file on disk."""

    path: Path
    name: str

    def read(self) -> bytes:
        """The whole file; DataError when it cannot be read."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error


def image_missing(path: Path) -> str:
    """What is said of an --image that is no file."""
    if path.is_dir():
        return f"--image {path}: is a folder; give its files, each with an --image"
    return f"--image {path}: no such file"


def is_image_folder(path: Path) -> bool:
    """Whether it has sub-folders and an image file somewhere below one of them."""
    return any(True for folder in _folders(path) for file in _files(folder) if _is_image(file))


def read_image_folder(path: Path) -> Cells:
    """Every image below ``path`` with the class that its sub-folder names, in order of paths.

    A table that lies there is not looked at, and a note says so.

    Raises DataError where images lie outside of any class, or the folder mixes both layouts.
    """
    folders = _folders(path)
    given = [_split_of(folder.name) for folder in folders]
    _refuse_mixture(dict(zip(folders, given, strict=True)), path)
    if all(given):
        classes = [
            (split, each)
            for split, folder in zip(given, folders, strict=True)
            for each in _folders(folder)
        ]
        loose = [file for folder in (path, *folders) for file in folder.iterdir()]
    else:
        classes = [(None, folder) for folder in folders]
        loose = list(path.iterdir())
    _refuse_loose([file for file in loose if file.is_file() and _is_image(file)], path)
    rows = []
    left_out = []
    for split, folder in classes:
        for file in _files(folder):
            if _is_image(file):
                rows.append((ImageFile(file, str(file.relative_to(path))), folder.name, split))
            else:
                left_out.append(str(file.relative_to(path)))
    return Cells(
        FoundColumns("image", "folder", "split" if all(given) else None, IMAGE),
        [image for image, _, _ in rows],
        [label for _, label, _ in rows],
        [split for _, _, split in rows] if all(given) else None,
        typed=True,
        notes=tuple(_notes(path, left_out, [f for _, f in classes], {r[1] for r in rows})),
        names=[image.name for image, _, _ in rows],
    )


def has_loose_images(path: Path) -> bool:
    """Whether image files lie right in it: without a sub-folder they have no class."""
    return any(file.is_file() and _is_image(file) for file in path.iterdir())


def read_loose_images(path: Path) -> Cells:
    """Every image right in ``path``, in order of names; they have no labels."""
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not _is_hidden(file)]
    images = [ImageFile(file, file.name) for file in files if _is_image(file)]
    left_out = [file.name for file in files if not _is_image(file)]
    return Cells(
        FoundColumns("image", None, None, IMAGE),
        images,
        [],
        None,
        typed=True,
        notes=tuple(_notes(path, left_out, [], set())),
        names=[image.name for image in images],
    )


def _notes(path: Path, left_out: list[str], classes: list[Path], seen: set[str]) -> Iterator[str]:
    if classes and (path / IMAGE_TABLE).is_file():
        yield (
            f"{path}: in {IMAGE_TABLE} no columns are known for paths of images and their labels, "
            "so that the sub-folders are the classes"
        )
    if left_out:
        yield (
            f"{path}: left out {len(left_out)} files that are no images by their ending, "
            f"{left_out[0]} the first"
        )
    for name in sorted({folder.name for folder in classes} - seen):
        yield f"{path}: the folder of class '{name}' holds no image"


def _refuse_mixture(given: Mapping[Path, str | None], path: Path) -> None:
    """Sub-folders named like splits, and beside them others: the former would pass for classes."""
    splits = [folder.name for folder, split in given.items() if split and _folders(folder)]
    others = [folder.name for folder, split in given.items() if not split]
    if splits and others:
        raise DataError(
            f"{path}: {', '.join(splits)} hold classes as splits do, and beside them lies "
            f"{', '.join(others)}, which is no split ({', '.join(SPLITS)}); move it away"
        )


def _refuse_loose(loose: list[Path], path: Path) -> None:
    if loose:
        raise DataError(
            f"{path}: {len(loose)} images lie outside of a class, {loose[0].relative_to(path)} the "
            "first; each class needs a sub-folder of its own"
        )


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not _is_hidden(each))


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files at any depth, in order of paths; hidden ones, which file managers leave, are passed.

    Raises DataError where a link leads back to one of the folders ``above``: that has no end.
    """
    real = folder.resolve()
    if real in above:
        raise DataError(f"{folder}: a link leads back to {real}, which it lies in; remove it")
    for each in sorted(folder.iterdir()):
        if _is_hidden(each):
            continue
        if each.is_dir():
            yield from _files(each, (*above, real))
        else:
            yield each


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "__MACOSX")) or path.name in ("Thumbs.db", "desktop.ini")


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _split_of(name: str) -> str | None:
    folded = name.casefold()
    split = SPLIT_ALIASES.get(folded, folded)
    return split if split in SPLITS else None
