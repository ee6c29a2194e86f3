"""SetFit in an environment of its own, over the libraries that this one has.

SetFit asks for a transformers that may not be ours. Here both work with the same torch and
transformers, so that it is not measured on another build: the environment holds SetFit alone and
sees everything else through a path file.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

# Installed without what they depend on: all of it comes with [train] and [optimize].
PINS: Final = ("setfit==1.1.3", "evaluate==0.4.6")
_TRY: Final = "import setfit, torch, transformers; setfit.Trainer, setfit.SetFitModel"


class SetFitMissingError(Exception):
    """Why SetFit cannot be compared with here; the benchmark goes on without it."""


def setfit_python(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``, made where it is not there yet.

    Raises:
        SetFitMissingError: pip cannot install the pins, or SetFit cannot be imported with what
            there is.
    """
    python = folder / "bin" / "python"
    if not python.exists() or not _works(python):
        venv.create(folder, clear=True, with_pip=False)
        _share_libraries(python)
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PINS], "pip install")
        _run([str(python), "-c", _TRY], "import setfit")
    return python


def _share_libraries(python: Path) -> None:
    """Let the environment see the libraries of this one after its own."""
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run([str(python), "-c", asked], "sysconfig").strip())
    # addsitedir also follows the path files there, such as that of an editable install.
    ours = sysconfig.get_path("purelib")
    (site / "shared.pth").write_text(f"import site; site.addsitedir({ours!r})\n")


def _works(python: Path) -> bool:
    tried = subprocess.run([str(python), "-c", _TRY], capture_output=True, check=False)
    return tried.returncode == 0


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise SetFitMissingError(f"{what} failed with {sys.executable}'s libraries: {last[0]}")
    return done.stdout
