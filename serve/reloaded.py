"""Files that are read again when they change: a certificate is renewed, a token withdrawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from edgewright.errors import ConfigError

RELOAD_S: Final = 5.0  # between looks at the files

T = TypeVar("T")
log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """What some files say; where a change cannot be used, what they said before stays.

    Their bytes are compared, not their times: a clock may jump, and Kubernetes swaps links.
    """

    def __init__(
        self,
        what: str,
        paths: Mapping[str, Path],
        read: Callable[[Sequence[bytes]], T],
        told: Callable[[str, bool], None],
    ) -> None:
        """Read them for the first time.

        Args:
            what: "tls", for the log and the metric.
            paths: of the files, by the options that name them.
            read: their contents to a value; ConfigError where they cannot be used.
            told: called with ``what`` and whether the change was taken, after every change.

        Raises:
            ConfigError: a file cannot be read, or as ``read``.
        """
        self._what = what
        self._paths = dict(paths)
        self._read = read
        self._told = told
        self._contents: Sequence[bytes | str] = contents_of(self._paths)
        self.value = self._parsed(self._contents)

    def renew(self) -> bool:
        """Look at the files; whether they have a new, usable value. From any thread."""
        contents = contents_of(self._paths)
        if contents == self._contents:
            return False
        try:
            self.value = self._parsed(contents)
        except ConfigError as error:
            self._contents = contents  # told once
            log.error("%s: the change is not used, what was there before stays: %s",
                      self._what, error)  # fmt: skip
            self._told(self._what, False)
            return False
        self._contents = contents
        log.info("%s: read again from %s", self._what, ", ".join(map(str, self._paths.values())))
        self._told(self._what, True)
        return True

    def _parsed(self, contents: Sequence[bytes | str]) -> T:
        faults = [each for each in contents if isinstance(each, str)]
        if faults:
            raise ConfigError(faults)
        return self._read([each for each in contents if isinstance(each, bytes)])


def contents_of(paths: Mapping[str, Path]) -> list[bytes | str]:
    """The bytes of each file, or in words why it cannot be read; ``paths`` are by option."""
    return [_content(option, path) for option, path in paths.items()]


def _content(option: str, path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return f"{option} {path} cannot be read: {error.strerror}"
