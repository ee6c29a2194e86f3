"""Raw examples to model inputs: the one code path of training, calibration and serving.

    text.py      texts to token arrays, by ``tokenizers`` and numpy
    decode.py    bytes of an image file to upright RGB pixels, by Pillow
    images.py    RGB pixels to a model's array, by Pillow and numpy
    processors.py   the settings of ``images`` from a Hugging Face image processor

What comes out equals, to the bit, what transformers' own tokenizer or image processor gives.
Neither torch nor transformers is imported, but for reading a model's settings for the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgewright.errors import ArtifactNotFoundError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.preprocess.encoding import Encoding
from edgewright.preprocess.images import (
    DecodedRow,
    ImagePreprocessor,
    ImageRow,
    ImageSettings,
    LazyRow,
    PixelRow,
)
from edgewright.preprocess.settings_file import SETTINGS_FILE, read_record
from edgewright.preprocess.text import (
    FORMAT_VERSION,
    TEXT_INPUTS,
    TOKENIZER_FILE,
    TextPreprocessor,
    TextSettings,
    TokenRow,
    padded_tokens,
)

__all__ = [
    "FORMAT_VERSION",
    "SETTINGS_FILE",
    "TEXT_INPUTS",
    "TOKENIZER_FILE",
    "DecodedRow",
    "Encoding",
    "ImagePreprocessor",
    "ImageRow",
    "ImageSettings",
    "LazyRow",
    "PixelRow",
    "Preprocessor",
    "Row",
    "TextPreprocessor",
    "TextSettings",
    "TokenRow",
    "load_preprocessor",
    "padded_tokens",
]


class Row(Protocol):
    """One example, encoded but not in a batch."""

    @property
    def truncated(self) -> bool:
        """Whether something of it was left out for want of room."""
        ...

    def __len__(self) -> int:
        """What a workload calls the length: tokens of a text, rows of pixels of an image."""
        ...


class Preprocessor(Protocol):
    """What texts and images have in common."""

    @property
    def kind(self) -> Kind:
        """What it reads."""
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the arrays, in the model's order."""
        ...

    @property
    def input_dtype(self) -> str:
        """numpy's name for the type of every array."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of every array; -1 is an axis that varies."""
        ...

    def encode(self, contents: Sequence[Any]) -> list[Any]:
        """One row for each text (str) or image (bytes of a file); InputError names the bad one."""
        ...

    def pad(self, rows: Sequence[Any], length: int | None = None) -> Encoding:
        """Rows as one batch; ConfigError where they cannot be of this length."""
        ...

    def cut(self, row: Any, length: int) -> Any:
        """The row at most this long; ConfigError where it cannot be shortened."""
        ...

    def save(self, folder: Path) -> None:
        """Write it into ``folder``: the same bytes every time."""
        ...


def load_preprocessor(folder: Path) -> TextPreprocessor | ImagePreprocessor:
    """Read what ``save`` of either kind wrote.

    Raises:
        ArtifactNotFoundError: a file is missing, or of a kind that is not known here.
        IntegrityError: a file is malformed; named.
    """
    path = folder / SETTINGS_FILE
    kind = read_record(path).get("kind")
    if kind == TEXT.name:
        return TextPreprocessor.load(folder)
    if kind == IMAGE.name:
        return ImagePreprocessor.load(folder)
    raise ArtifactNotFoundError(
        f"{path} is of kind {kind!r}; expected {TEXT.name} or {IMAGE.name} preprocessing"
    )
