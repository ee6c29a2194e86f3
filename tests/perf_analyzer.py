"""Triton's perf_analyzer as it comes from PyPI, with the libraries of a Debian that is new enough.

The program wants glibc 2.38. Where this machine has an older one, the newer library and what goes
with it are unpacked beside the program, and its own loader starts it; nothing is installed.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_VERSION = "2.60.0"
_WHEEL = "manylinux_2_38_x86_64"
_GLIBC = (2, 38)
_DEBIAN = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} trixie main\n"
_PACKAGES = ("libc6", "libgcc-s1", "libssl3t64", "libstdc++6", "libzstd1", "zlib1g")


def perf_analyzer(folder: Path) -> list[str]:
    """The command, made in ``folder``; the test is skipped where it cannot be had."""
    if platform.machine() != "x86_64":
        pytest.skip("perf_analyzer is looked for on x86_64 alone")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
    chosen = ["--no-deps", "--only-binary=:all:", f"--platform={_WHEEL}", "-d", folder]
    _run(*pip, *chosen, f"perf-analyzer=={_VERSION}")
    (wheel,) = folder.glob("perf_analyzer-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        program = Path(opened.extract("perf_analyzer/bin/perf_analyzer", folder))
    program.chmod(0o755)
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(map(int, version.split("."))) >= _GLIBC:
        return [str(program)]
    _unpack_libraries(folder)
    libraries = folder / "usr" / "lib" / "x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", str(libraries), str(program)]


def _unpack_libraries(folder: Path) -> None:
    sources = folder / "sources.list"
    sources.write_text(_DEBIAN.format(mirror=_mirror()))
    for each in ("lists/partial", "archives/partial"):
        (folder / each).mkdir(parents=True)
    apt = [
        "apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-",
        "-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder}",
        "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
    ]  # fmt: skip
    _run(*apt, "update")
    _run(*apt, "download", *(f"{each}/trixie" for each in _PACKAGES), cwd=folder)
    for package in folder.glob("*.deb"):
        _run("dpkg", "-x", package, folder)


def _mirror() -> str:
    """Where this machine has Debian's packages from."""
    told = _run(
        "apt-get",
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    )
    found = [each for each in told.split() if each.rstrip("/").endswith("/debian")]
    if not found:
        pytest.skip("perf_analyzer needs a newer glibc, and this machine is no Debian")
    return found[0]


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        pytest.skip(f"perf_analyzer cannot be had here: {command[0]}: {done.stderr[-300:]}")
    return done.stdout
