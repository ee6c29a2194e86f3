"""The options for models and rows that finetune did not make: what a checkpoint would bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgewright.errors import ConfigError, DataError
from edgewright.tables.columns import Columns

_OPSETS: Final = range(13, 24)  # 13: the first with QDQ by channel; 23: what onnxruntime 1.20 reads


@dataclass(frozen=True)
class Given:
    """As they are typed; None is a default. ``OptimizeConfig`` tells what ``faults`` gives."""

    calibrate: str | None = None  # as ``read_table`` takes them
    certify: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    preprocessing: str | None = None  # a folder, or a hub id
    labels: str | None = None  # "a,b,c", or a text file with one a line
    max_length: int | None = None  # tokens
    opset: int | None = None
    revision: str | None = None  # of a hub model

    def faults(self) -> Iterator[str]:
        """What is wrong, option by option."""
        if self.max_length is not None and self.max_length < 1:
            yield f"--max-length is {self.max_length}; it must be 1 token or more"
        if self.opset is not None and self.opset not in _OPSETS:
            yield f"--opset is {self.opset}; it must be from {_OPSETS[0]} to {_OPSETS[-1]}"
        try:
            self.columns()
        except ConfigError as error:
            yield from error.faults

    def columns(self) -> Columns:
        """The columns of the tables; they may come without labels."""
        return Columns(
            text=self.text_column,
            label=self.label_column,
            image=self.image_column,
            label_optional=True,
        )

    def label_names(self) -> tuple[str, ...] | None:
        """The classes in the order of the model's outputs; None where --labels is not given.

        Raises:
            ConfigError: fewer than two, or one twice.
            DataError: the file cannot be read.
        """
        if self.labels is None:
            return None
        names = _lines(Path(self.labels)) or [name.strip() for name in self.labels.split(",")]
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            raise ConfigError(
                f"--labels is {self.labels}; expected two or more different names with commas, or "
                "a text file with one a line, in the order of the model's outputs"
            )
        return tuple(names)

    def of_foreign_models(self) -> list[str]:
        """The options given that a checkpoint of finetune leaves no room for."""
        values = {
            "--preprocessing": self.preprocessing,
            "--labels": self.labels,
            "--max-length": self.max_length,
            "--revision": self.revision,
        }
        return [option for option, value in values.items() if value is not None]

    def options(self) -> dict[str, Any]:
        """What decides the bundle's content, by option name; paths of data are left out."""
        return {
            "text-column": self.text_column,
            "label-column": self.label_column,
            "image-column": self.image_column,
            "labels": self.labels,
            "max-length": self.max_length,
            "opset": self.opset,
            "revision": self.revision,
        }


NOTHING_GIVEN: Final = Given()


def _lines(path: Path) -> list[str]:
    """The lines of a text file; none where there is no such file."""
    try:
        if not path.is_file():
            return []
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--labels {path}: cannot be read: {error}") from error
