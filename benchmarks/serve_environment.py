"""The environment of every server: edgewright's has the wheel of this tree, a peer's the peer."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

from benchmarks.environment import ROOT, PeerMissingError, pip_install
from benchmarks.serve_contender import OURS, Contender

_CONSTRAINTS: Final = ROOT / "constraints.txt"
_NOT_SOURCES: Final = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "demo-out", "*.egg-info", "__pycache__", "tests"
)


def python_of(contender: Contender, folder: Path) -> Path:
    """The interpreter, made where it is not there yet; edgewright is as in this tree every time.

    Raises:
        PeerMissingError: pip cannot install it, or it cannot be imported.
    """
    environment = contender.environment
    if contender.name != OURS:
        return environment.python(folder)
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _build_wheel(Path(scratch))
        wanted = [f"{each} @ {wheel.as_uri()}" for each in environment.requirements]
        pip_install(python, wanted, _CONSTRAINTS)
        # Its version is that of the wheel that is there, so that pip would keep the older one.
        pip_install(python, ("--no-deps", "--force-reinstall", str(wheel)))
    return python


def _build_wheel(folder: Path) -> Path:
    """Of a copy, for setuptools leaves its work beside the sources."""
    shutil.copytree(ROOT, folder / "sources", ignore=_NOT_SOURCES)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--wheel-dir", str(folder), str(folder / "sources")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise PeerMissingError(f"edgewright's wheel cannot be built: {done.stderr.strip()[-300:]}")
    return next(folder.glob("*.whl"))
