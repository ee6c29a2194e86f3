"""Loads that a server began as it started: one that ended the process is seen at the next start.

The first load is proven in place, so a bundle that crashes its runtime ends the server, and would
end it at every start, whatever answered before. Whoever finds that an earlier load of the same
bundle has not come to its end can have another process prove it first.

    STATE_DIR/loading/<SHA-256 of the seal>   there from the beginning of a load to its end
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from edgewright.errors import ConfigError, NotReadyError
from edgewright.manifest import SEAL_FILE, sha256_bytes
from edgewright.state_dir import StateDir


class BegunLoads:
    """What this host remembers of them."""

    def __init__(self, state_dir: Path | None) -> None:
        """``state_dir`` as told by --state-dir; None for the user's. Nothing is written yet."""
        self._state_dir = state_dir

    @contextmanager
    def load(self, bundle: Path) -> Iterator[bool]:
        """Within, ``bundle`` is being loaded; whether an earlier load of it ended its process.

        That is remembered until a load succeeds, or is not ready for want of memory or of time: the
        process that proves it takes more of both, and what had ended the first may be gone. It is
        told to all who load it meanwhile. False where nothing can be written, or where another
        process is at the first load of it.
        """
        file, was_cut_off = self._begin(bundle)
        if file is None:
            yield False
            return
        with file:
            survived = not was_cut_off  # whatever is raised here
            try:
                yield was_cut_off
                survived = True
            except NotReadyError:
                survived = True
                raise
            finally:
                if survived:
                    with suppress(OSError):  # the next load is careful in vain
                        Path(file.name).unlink(missing_ok=True)

    def _begin(self, bundle: Path) -> tuple[FileIO | None, bool]:
        """The file, whose lock goes with the process, and whether an earlier load left it.

        Who does not know that others survive it locks out everybody; who is careful lets others be.
        """
        try:
            seal = sha256_bytes((bundle / SEAL_FILE).read_bytes())
            path = StateDir.at(self._state_dir).path / "loading" / seal
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        except (OSError, ConfigError):
            return None, False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            left = os.fstat(file.fileno())
            if left.st_size and left.st_nlink:  # another may have removed it at this moment
                return file, True
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(b"begun\n")
        except OSError:  # another process loads it, or the disk is full
            file.close()
            return None, False
        return file, False
