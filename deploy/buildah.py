"""buildah in chroot isolation: no engine, no namespaces, no registry.

Its base is a Debian that debootstrap makes. Its containers share the host's network and processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deploy.engine import (
    PREFIX,
    STOP_TIMEOUT_S,
    Container,
    Mounts,
    build_options,
    call,
    read,
    secrets,
    succeeds,
    volumes,
)
from deploy.host_pip import HostPip

SUITE: Final = "bookworm"  # the first Debian with Python 3.11
_CHROOT: Final = ("--isolation", "chroot")
_DOWNLOADED: Final = ("./var/cache/apt/archives/*.deb", "./var/lib/apt/lists/*")
_NEEDED: Final = ("buildah", "debootstrap")


@dataclass
class Buildah:
    """Everything lies in ``store``, and goes with it."""

    store: Path
    name: str = "buildah, chroot"
    host: str = "127.0.0.1"  # there is no other network than the host's
    containers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        missing = [program for program in _NEEDED if not shutil.which(program)]
        if missing:
            names = " ".join(missing)
            raise SystemExit(f"no Docker answers and {names} is missing; `apt-get install {names}`")

    def base(self) -> str | None:
        """A minimal Debian, unless one of an earlier run is in the store."""
        tag = f"{PREFIX}-base"
        if f"{tag}:latest" in self._read("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return tag
        with self._scratch() as scratch:
            call("debootstrap", "--variant=minbase", SUITE, f"{scratch}/root")
            left_out = [f"--exclude={each}" for each in _DOWNLOADED]
            call("tar", "-C", f"{scratch}/root", *left_out, "-cf", f"{scratch}/root.tar", ".")
            name = self._container("scratch")
            self._call("add", "--quiet", name, f"{scratch}/root.tar", "/")
            self._call("commit", "--quiet", "--format", "docker", name, tag)
        return tag

    def build(self, dockerfile: Path, tag: str, arguments: Mapping[str, str], pip: HostPip) -> None:
        """Build in Docker's format: the OCI's has no HEALTHCHECK."""
        with secrets(pip) as hidden:
            form = [*_CHROOT, "--format", "docker", "--layers"]
            folders = [f"--volume={folder}:{folder}:ro" for folder in pip.folders]
            options = [*form, *build_options(dockerfile, tag, arguments), *hidden, *folders]
            self._call("build", *options, str(dockerfile.parent))

    def config(self, tag: str) -> dict[str, Any]:
        """From ``buildah inspect``."""
        inspected = json.loads(self._read("inspect", "--type", "image", tag))
        return dict(inspected["Docker"]["config"])

    def size(self, tag: str) -> int:
        """Of the files, as they lie unpacked."""
        name = self._container(tag)
        root = self._read("mount", name).strip()
        try:
            return int(read("du", "--summarize", "--bytes", "--one-file-system", root).split()[0])
        finally:
            self._call("umount", name)

    def run(
        self, tag: str, command: Sequence[str], mounts: Mounts, *, entrypoint: bool = True
    ) -> str:
        """By ``buildah run``, which leaves the entrypoint to the caller."""
        first = self.config(tag)["Entrypoint"] if entrypoint else []
        return read(*self._run(self._runnable(tag), mounts, {}), *first, *command)

    def start(
        self, tag: str, mounts: Mounts, environment: Mapping[str, str], ports: Sequence[int]
    ) -> Container:
        """By ``buildah run`` in the background; ``ports`` are the host's in any case."""
        config, run = self.config(tag), self._run(self._runnable(tag), mounts, environment)
        command = [*run, *config["Entrypoint"], *config["Cmd"]]
        return _Running(run, subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def clean(self, *, keep_images: bool) -> None:
        """Remove the containers, and the store unless its images are to be kept."""
        for name in self.containers:
            succeeds(*self._buildah("rm"), name)
        if not keep_images:
            succeeds("umount", f"{self.store}/images/overlay")  # a build that was killed leaves it
            shutil.rmtree(self.store, ignore_errors=True)

    def _container(self, tag: str) -> str:
        name = self._read("from", tag).strip()
        self.containers.append(name)
        return name

    def _runnable(self, tag: str) -> str:
        """A container without the VOLUMEs: buildah 1.28 may lay an empty one over a mount."""
        name = self._container(tag)
        dropped = [f"--volume={volume}-" for volume in self.config(tag).get("Volumes") or {}]
        self._call("config", *dropped, name)
        return name

    def _run(self, name: str, mounts: Mounts, environment: Mapping[str, str]) -> list[str]:
        # The entrypoint's tini is not process 1 here, and complains unless it is told so.
        given = {**environment, "TINI_SUBREAPER": "1"}
        variables = [f"--env={key}={value}" for key, value in given.items()]
        return [*self._buildah("run"), *_CHROOT, *volumes(mounts), *variables, name, "--"]

    def _buildah(self, command: str) -> list[str]:
        places = [f"--root={self.store}/images", f"--runroot={self.store}/run"]
        return ["buildah", *places, command]

    def _call(self, command: str, *arguments: str) -> None:
        call(*self._buildah(command), *arguments)

    def _read(self, command: str, *arguments: str) -> str:
        return read(*self._buildah(command), *arguments)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        folder = self.store / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class _Running:
    run: Sequence[str]  # what a command of the same container begins with
    process: subprocess.Popen[bytes]

    def execute(self, command: Sequence[str]) -> int:
        return subprocess.run([*self.run, *command], check=False).returncode

    def stop(self) -> int:
        """Signal tini, which is process 1 elsewhere: ``buildah run`` itself hands no SIGTERM on."""
        below = _descendants(self.process.pid)
        _signal([process for process in below if _name(process) == "tini"], signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _signal(below, signal.SIGKILL)
            return self.process.wait()


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _name(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""  # it has ended


def _descendants(process: int) -> list[int]:
    """Process ids below ``process``, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    below = list(children.get(process, []))
    for each in below:  # grows as it goes
        below += children.get(each, [])
    return below
