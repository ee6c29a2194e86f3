"""Preprocessors shared by the bundles that have the same one."""

from __future__ import annotations

from typing import Final
from weakref import WeakValueDictionary

from edgewright.bundle import PREPROCESSING_FOLDER, Bundle
from edgewright.preprocess import Preprocessor

_FOLDER: Final = f"{PREPROCESSING_FOLDER}/"


class Preprocessors:
    """One preprocessor for each content, for as long as a model uses it.

    Reading a tokenizer holds the interpreter for tens of milliseconds, in which nobody is answered.
    The next version of a model mostly has the tokenizer of the one before.
    """

    def __init__(self) -> None:
        self._kept: WeakValueDictionary[frozenset[tuple[str, str]], Preprocessor]
        self._kept = WeakValueDictionary()

    def of(self, bundle: Bundle) -> Preprocessor:
        """The preprocessor of a verified bundle; raises as ``Bundle.preprocessor``."""
        files = bundle.artifact.manifest["files"].items()
        content = frozenset(
            (name, str(entry["sha256"])) for name, entry in files if name.startswith(_FOLDER)
        )
        preprocessor = self._kept.get(content)
        if preprocessor is None:
            preprocessor = self._kept[content] = bundle.preprocessor()
        return preprocessor
