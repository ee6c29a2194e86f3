"""Where this host keeps what it found out about bundles, for a bundle itself is never written.

    ROOT/<hash of the bundle's manifest>/    what was measured or built here for this bundle

ROOT is --state-dir, EDGEWRIGHT_STATE_DIR, $XDG_STATE_HOME/edgewright or ~/.local/state/edgewright.
Everything in it can be made again: it may be deleted at any time, and lost with a container.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgewright.errors import ConfigError


@dataclass(frozen=True)
class StateDir:
    """The folder of this host's results; nothing is made until something is written."""

    root: Path

    @classmethod
    def find(cls, given: Path | None) -> StateDir:
        """As told by --state-dir or, without it, in the user's state folder (XDG).

        Raises:
            ConfigError: this user has no home folder.
        """
        if given is not None:
            return cls(given)
        try:
            state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise ConfigError(
                "this user has no home folder to keep results in; give a folder with --state-dir"
            ) from error
        return cls(Path(state) / "edgewright")

    def of(self, manifest_sha256: str) -> Path:
        """The folder of one bundle, by its manifest's hash: published copies share it."""
        return self.root / manifest_sha256
