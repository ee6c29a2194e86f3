"""Environments that hold edgewright with chosen extras and nothing else, for tests.

    python = lean_python("serve")                       # edgewright[serve]
    python = lean_python("client", ("protobuf<7",))     # edgewright[client], an older protobuf
    python = lean_python("client", oldest("client"))    # the oldest that pyproject.toml allows
    python = lean_python("")                            # no extra
    run_lean(python, script)                            # what it prints; raises when it fails

Two layers lie under build/lean, each named by a hash of what it was made from, so that neither ever
changes once it is there and tests may run side by side: the dependencies (slow, made anew when
pyproject.toml or constraints.txt change them), and on top a bare environment with a wheel of the
working tree (a second or two, made anew when the code changes).
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LEAN = ROOT / "build" / "lean"
CONSTRAINTS = ROOT / "constraints.txt"
_WHEEL_FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@functools.cache
def lean_python(extras: str, extra_requirements: tuple[str, ...] = ()) -> Path:
    """The interpreter of an environment with ``edgewright[extras]`` and the extra requirements.

    ``extras`` is a comma-separated list, or empty. Versions are those of constraints.txt, but for
    packages that an extra requirement names.
    """
    label = re.sub(r"[^a-z0-9]+", "-", extras.lower()).strip("-") or "bare"
    constraints = _constraints(extra_requirements)
    needs = _digest(
        sys.version, extras, json.dumps(extra_requirements), constraints, json.dumps(_project())
    )
    sources = _sources()
    wheel = _built(
        f"wheel-{_digest(*(part for source in sources.items() for part in source))}",
        lambda folder: _build_wheel(folder, sources),
    )
    dependencies = _built(
        f"{label}-dependencies-{needs}",
        lambda folder: _install_dependencies(
            folder, _only_wheel(wheel), extras, extra_requirements, constraints
        ),
    )
    environment = _built(
        f"{label}-{_digest(dependencies.name, wheel.name)}",
        lambda folder: _install_project(folder, dependencies, _only_wheel(wheel)),
    )
    return environment / "bin" / "python"


def requirements(extra: str) -> Iterator[Requirement]:
    """What an extra asks for, those of the extras it names included."""
    for requirement in map(Requirement, _project()["optional-dependencies"][extra]):
        if requirement.name == "edgewright":
            for other in requirement.extras:
                yield from requirements(other)
        else:
            yield requirement


def oldest(extra: str) -> tuple[str, ...]:
    """Extra requirements: the oldest version that is allowed of all that ``extra`` needs."""
    lowest: dict[str, Version] = {}
    for each in [*map(Requirement, _project()["dependencies"]), *requirements(extra)]:
        (bound,) = (Version(one.version) for one in each.specifier if one.operator == ">=")
        lowest[each.name] = max(bound, lowest.get(each.name, bound))
    return tuple(f"{name}=={version}" for name, version in lowest.items())


def run_lean(python: Path, *arguments: str | Path) -> str:
    """What ``python -I`` writes to stdout, given these arguments, away from the repository.

    -I ignores PYTHONPATH and the user's site; AssertionError with all output when it fails.
    """
    command = [str(python), "-I", *map(str, arguments)]
    done = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _built(name: str, build: Callable[[Path], None]) -> Path:
    """The folder of this name, built on the spot unless it is there; one process builds it."""
    folder = LEAN / name
    ready = folder / "ready"
    with _locked(LEAN / f"{name}.lock"):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            build(folder)
            ready.touch()
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_wheel(folder: Path, sources: dict[str, bytes]) -> None:
    """From a copy: setuptools leaves a build/ beside the sources, and reads stale files from it."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in sources.items():
            copy = Path(scratch, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), scratch)


def _install_dependencies(
    folder: Path, wheel: Path, extras: str, extra_requirements: tuple[str, ...], constraints: str
) -> None:
    venv.create(folder, symlinks=True)
    (folder / "constraints.txt").write_text(constraints)
    wanted = f"edgewright[{extras}] @ {wheel.as_uri()}"
    pinned = ("-c", str(folder / "constraints.txt"))
    into = ("--python", str(folder / "bin" / "python"))
    _pip(*into, "install", *pinned, wanted, *extra_requirements)
    _pip(*into, "uninstall", "--yes", "edgewright")


def _install_project(folder: Path, dependencies: Path, wheel: Path) -> None:
    venv.create(folder, symlinks=True)
    below = _site_packages(dependencies)
    link = f"import site; site.addsitedir({str(below)!r})\n"
    (_site_packages(folder) / "dependencies.pth").write_text(link)
    _pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", str(wheel))


def _pip(*arguments: str) -> None:
    """Without PYTHONPATH: what pip finds there it takes for installed, and does not install."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def _constraints(extra_requirements: tuple[str, ...]) -> str:
    """constraints.txt without the packages whose version an extra requirement decides."""
    if not CONSTRAINTS.exists():
        return ""
    decided = {_package(requirement) for requirement in extra_requirements}
    lines = CONSTRAINTS.read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if _package(line) not in decided)


def _package(requirement: str) -> str:
    """Its name as PEP 503 writes it; empty for a comment or a blank line."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def _project() -> dict[str, Any]:
    """The part of pyproject.toml that decides what is installed."""
    project = _pyproject()["project"]
    keys = ("dependencies", "optional-dependencies", "requires-python")
    return {key: project[key] for key in keys}


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _sources() -> dict[str, bytes]:
    """Every file that a wheel is made from, by its path below the root."""
    folders = _pyproject()["tool"]["setuptools"]["package-dir"].values()
    inside = {path for folder in folders for path in (ROOT / folder).rglob("*")}
    paths = inside | {ROOT / name for name in _WHEEL_FILES}
    wanted = sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in wanted}


def _digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()[:12]


def _only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def _site_packages(environment: Path) -> Path:
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder
