"""Which columns of a table hold the text or image, the label and the split, and their cells.

A column is taken by itself only when its name leaves no doubt; otherwise the caller is asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewright.errors import ConfigError, DataError
from edgewright.kinds import IMAGE, TEXT, Kind

# What a split column may say; ``edgewright.examples.splits`` tells what each is for.
SPLITS: Final = ("train", "validation", "calibrate", "search", "certify", "test")
SPLIT_ALIASES: Final = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
TEXT_NAMES: Final = (
    "text", "sentence", "content", "article", "document", "review", "body", "comment", "message",
    "tweet", "utterance", "query",
)  # fmt: skip
IMAGE_NAMES: Final = (
    "image", "image_path", "image_file", "img", "img_path", "picture", "photo", "file_name",
    "filename", "file_path", "filepath", "file", "path",
)  # fmt: skip
LABEL_NAMES: Final = (
    "label", "labels", "category", "class", "target", "topic", "intent", "sentiment",
)  # fmt: skip
_PAIRS: Final = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("text_a", "text_b"), ("text1", "text2"), ("question", "sentence"), ("question", "passage"),
)  # fmt: skip

# What a file may be separated by in place of what its name says, and what then helps.
_SEPARATORS: Final = {
    "\t": ("tabs", "Name it .tsv"),
    ";": (
        "semicolons",
        'Convert it: python3 -c "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader('
        "open('{name}', newline='', encoding='utf-8-sig'), delimiter=';'))\" > commas-{stem}.csv",
    ),
    ",": ("commas", "Name it .csv"),
}


@dataclass(frozen=True)
class Columns:
    """The columns as the caller names them; ``None`` means: find it by its usual name."""

    text: str | None = None
    label: str | None = None
    split: str | None = None
    image: str | None = None  # paths of image files, in place of texts
    label_optional: bool = False  # whether a table may come without labels

    def __post_init__(self) -> None:
        named = {
            "text": self.text,
            "label": self.label,
            "split": self.split,
            "image": self.image,
        }
        faults = [
            f"--{role}-column is empty; give the name of a column"
            for role, name in named.items()
            if name is not None and not name.strip()
        ]
        given = [name for name in named.values() if name is not None]
        faults += [
            f"column '{name}' is named for two roles; the text, label and split columns must differ"
            for name in sorted({name for name in given if given.count(name) > 1})
        ]
        if self.text is not None and self.image is not None:
            faults.append("--text-column and --image-column are both given; a table holds one kind")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class FoundColumns:
    """The columns of one table, settled."""

    text: str  # or image
    label: str | None  # None: the table has no labels, as ``Columns.label_optional`` allows
    split: str | None
    kind: Kind = TEXT


@dataclass(frozen=True)
class Cells:
    """The cells of one table as its file holds them, unchecked; one entry a row.

    ``lines`` holds the 1-based line of the file each row starts on, where that means anything.
    ``parts`` holds (first row, name) of each split of a dataset that comes in several.
    ``names`` holds the file of each row, where every row is one. ``typed`` is false where every
    cell is a string for want of types, as in csv.
    """

    columns: FoundColumns
    texts: Sequence[object]
    labels: Sequence[object]  # none at all where ``columns`` has no label
    splits: Sequence[object] | None
    typed: bool
    lines: Sequence[int] | None = None
    parts: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    names: Sequence[str] | None = None

    def place(self, index: int) -> str:
        """Where row ``index`` (0-based) is, in the words of someone looking at the file."""
        if self.names is not None:
            return self.names[index]
        if self.parts:
            first, name = self.parts[bisect_right([start for start, _ in self.parts], index) - 1]
            return f"split '{name}', row {index - first + 1}"
        line = f" (line {self.lines[index]})" if self.lines is not None else ""
        return f"row {index + 1}{line}"


def find_columns(names: Sequence[str], columns: Columns, source: str) -> FoundColumns:
    """Settle which of ``names`` hold text or image, label and split.

    Raises DataError naming the columns there are, and the option that settles the matter.
    """
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(f"{source}: more than one column is named {_listed(repeated)}; rename one")
    faults: list[str] = []
    kind = _kind(names, columns)
    usual, given = (IMAGE_NAMES, columns.image) if kind is IMAGE else (TEXT_NAMES, columns.text)
    content = _find(kind.name, usual, names, given, columns.label, faults)
    label = None
    if not (columns.label_optional and columns.label is None and _is_unlabelled(names, content)):
        label = _find("label", LABEL_NAMES, names, columns.label, given, faults)
    split = columns.split
    if split is not None and split not in names:
        faults.append(f"no column '{split}' (--split-column)")
    if faults:
        _refuse_other_separator(names, source)
        raise DataError(
            f"{source}: {'; '.join(faults)}. Its columns are {_listed(names)}.{_hint(names)}"
        )
    return FoundColumns(content, label, split, kind)


def _is_unlabelled(names: Sequence[str], content: str) -> bool:
    return not any(name != content and name.strip().casefold() in LABEL_NAMES for name in names)


def _kind(names: Sequence[str], columns: Columns) -> Kind:
    """Images where their column is named, or where no column could be a text and one an image."""
    if columns.image is not None:
        return IMAGE
    usual = [name.strip().casefold() for name in names if name != columns.label]
    if columns.text is not None or not set(usual).isdisjoint(TEXT_NAMES):
        return TEXT
    return TEXT if set(usual).isdisjoint(IMAGE_NAMES) else IMAGE


def _find(
    role: str,
    usual: Sequence[str],
    names: Sequence[str],
    given: str | None,
    taken: str | None,
    faults: list[str],
) -> str:
    """The column for ``role``; adds to ``faults`` and returns "" when there is none, or no one."""
    option = f"--{role}-column"
    if given is not None:
        if given in names:
            return given
        if role == "text" and "," in given:
            faults.append(
                f"text pairs ({option} {given}) are not supported; join them in one column"
            )
        elif role == "label" and all(part.strip() in names for part in given.split(",")):
            faults.append(
                f"several label columns ({option} {given}): multi-label classification is not "
                "supported, name one column"
            )
        else:
            faults.append(f"no column '{given}' ({option})")
        return ""
    fitting = [name for name in names if name != taken and name.strip().casefold() in usual]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        faults.append(f"several columns could be the {role}, {_listed(fitting)}: say {option} NAME")
    else:
        faults.append(f"no {role} column (looked for {', '.join(usual)}): say {option} NAME")
    return ""


def _hint(names: Sequence[str]) -> str:
    """What most probably went wrong, judging by the names of the columns; may be empty."""
    known = {name.strip().casefold() for name in names}
    for pair in _PAIRS:
        if known.issuperset(pair):
            return f" Text pairs ({pair[0]}, {pair[1]}) are not supported; join them in one column."
    return ""


def _refuse_other_separator(names: Sequence[str], source: str) -> None:
    """DataError where the only column's name holds what separates the columns of other files."""
    if len(names) != 1:
        return
    file = Path(source)
    for separator, (told, mended) in _SEPARATORS.items():
        if separator in names[0]:
            raise DataError(
                f"{source}: is separated by {told}; a .csv is read with commas between its "
                f"columns, a .tsv with tabs. {mended.format(name=file.name, stem=file.stem)}"
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name[:60]}'" for name in names[:30])
    return f"{shown} and {len(names) - 30} more" if len(names) > 30 else shown or "none"
