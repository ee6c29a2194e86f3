"""The lines of a UTF-8 file, one at a time, refused with row, line and byte when they are not."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NoReturn, Self

from edgewright.errors import DataError

_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")


class TextLines:
    """Iterates over a file's lines, line ends kept (``\\n``, ``\\r\\n`` or ``\\r``), BOM dropped.

    The reader sets ``row`` to the data row it is about to read (1-based; 0 is the header), so that
    an error can name it; ``number`` is the 1-based line read last.

    Raises DataError for an empty file, for UTF-16, and where a line is not UTF-8 or holds NUL.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row = 0
        self.number = 0
        self._lines = self._read()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def refuse(self, message: str, advice: str) -> NoReturn:
        """Raise DataError about the line read last."""
        row = f"row {self.row}" if self.row else "header"
        raise DataError(f"{self.path}: {row} (line {self.number}): {message}. {advice}")

    def _read(self) -> Generator[str, None, None]:
        try:
            with self.path.open("rb") as file:
                yield from self._decoded(file)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _decoded(self, file: io.BufferedReader) -> Generator[str, None, None]:
        head = file.peek(3)
        if head.startswith(_UTF16_BOMS):
            raise DataError(
                f"{self.path}: is UTF-16, expected UTF-8. Convert it: "
                f"iconv -f UTF-16 -t UTF-8 {self.path.name} > utf8-{self.path.name}"
            )
        offset = file.seek(len(_BOM)) if head.startswith(_BOM) else 0
        for raw in file:
            for line in self._split(self._decode(raw, offset)):
                self.number += 1
                if "\0" in line:
                    self.refuse("holds a NUL byte", "Is this a text file? Save it as UTF-8.")
                yield line
            offset += len(raw)
        if self.number == 0:
            raise DataError(f"{self.path}: is empty, expected rows of text and label")

    def _decode(self, raw: bytes, offset: int) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.number += 1
            self.refuse(
                f"is not UTF-8 at byte {offset + error.start} (0x{raw[error.start]:02x})",
                "If the file is Latin-1 or Windows-1252, convert it: "
                f"iconv -f WINDOWS-1252 -t UTF-8 {self.path.name} > utf8-{self.path.name}",
            )

    @staticmethod
    def _split(chunk: str) -> Iterator[str]:
        """``chunk``, which ends at a newline, cut at bare carriage returns too (old Mac files)."""
        return iter(io.StringIO(chunk, newline="")) if "\r" in chunk else iter((chunk,))
