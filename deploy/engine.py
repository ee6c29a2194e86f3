"""What every engine that builds and runs images does, and the parts that their commands share."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from deploy.host_pip import HostPip

STOP_TIMEOUT_S: Final = 60.0
PREFIX: Final = "localhost/edgewright-check"  # of every image that is made here

Mounts = Mapping[Path, str]  # folder of the host -> its place in the container, with :ro or without


class Container(Protocol):
    """One that runs."""

    def execute(self, command: Sequence[str]) -> int:
        """The exit code of a command beside the one that runs."""
        ...

    def stop(self) -> int:
        """Send SIGTERM to process 1, as ``docker stop`` does; its exit code."""
        ...


class Engine(Protocol):
    """Builds images and runs containers; whatever it made is gone after ``clean``."""

    name: str
    host: str  # what a server in a container listens on to be reached at 127.0.0.1

    def base(self) -> str | None:
        """An image to build from; None: the one that the Dockerfiles name."""
        ...

    def build(self, dockerfile: Path, tag: str, arguments: Mapping[str, str], pip: HostPip) -> None:
        """Build with the folder of the Dockerfile as context."""
        ...

    def config(self, tag: str) -> dict[str, Any]:
        """The image's own: User, Env, Entrypoint, Cmd, Healthcheck, Labels."""
        ...

    def size(self, tag: str) -> int:
        """Bytes of all layers."""
        ...

    def run(
        self, tag: str, command: Sequence[str], mounts: Mounts, *, entrypoint: bool = True
    ) -> str:
        """What the command writes to stdout; CalledProcessError unless it ends with 0."""
        ...

    def start(
        self, tag: str, mounts: Mounts, environment: Mapping[str, str], ports: Sequence[int]
    ) -> Container:
        """Start the image's default command, with ``ports`` open on 127.0.0.1."""
        ...

    def clean(self, *, keep_images: bool) -> None:
        """Remove containers, and images unless they are to be kept."""
        ...


@contextmanager
def secrets(pip: HostPip) -> Iterator[list[str]]:
    """Options that show pip's configuration and certificates to one build, and to no layer."""
    with tempfile.TemporaryDirectory(prefix="edgewright-pip-") as folder:
        file = Path(folder, "pip.conf")
        file.write_text(pip.config())
        found = {"pip.conf": file, "ca-bundle": pip.ca_bundle}
        yield [f"--secret=id={name},src={path}" for name, path in found.items() if path]


def build_options(dockerfile: Path, tag: str, arguments: Mapping[str, str]) -> list[str]:
    """Those that docker and buildah share."""
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    return [f"--file={dockerfile}", f"--tag={tag}", *given]


def volumes(mounts: Mounts) -> list[str]:
    """Options that mount folders of the host."""
    return [f"--volume={folder}:{place}" for folder, place in mounts.items()]


def call(*command: str) -> None:
    """Run it, its output on stderr; CalledProcessError unless it ends with 0."""
    subprocess.run(command, check=True, stdout=sys.stderr)


def read(*command: str) -> str:
    """What it writes to stdout; CalledProcessError unless it ends with 0."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def succeeds(*command: str) -> bool:
    """Whether it ends with 0; its output is nobody's."""
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
