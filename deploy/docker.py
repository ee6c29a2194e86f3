"""Docker with BuildKit, where its engine answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.engine import (
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


def answers() -> bool:
    """Whether there is an engine behind the docker command."""
    return shutil.which("docker") is not None and succeeds("docker", "info")


@dataclass
class Docker:
    """Docker with BuildKit."""

    name: str = "Docker"
    host: str = "0.0.0.0"
    containers: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def base(self) -> str | None:
        """The Dockerfiles' own, from the registry."""
        return None

    def build(self, dockerfile: Path, tag: str, arguments: Mapping[str, str], pip: HostPip) -> None:
        """Build; indexes that are folders of the host cannot be mounted here and are left out."""
        self.images.append(tag)
        with secrets(pip.without_folders()) as hidden:
            options = [*build_options(dockerfile, tag, arguments), *hidden]
            call("docker", "build", *options, str(dockerfile.parent))

    def config(self, tag: str) -> dict[str, Any]:
        """From ``docker image inspect``."""
        return dict(json.loads(read("docker", "image", "inspect", tag))[0]["Config"])

    def size(self, tag: str) -> int:
        """From ``docker image inspect``."""
        return int(json.loads(read("docker", "image", "inspect", tag))[0]["Size"])

    def run(
        self, tag: str, command: Sequence[str], mounts: Mounts, *, entrypoint: bool = True
    ) -> str:
        """By ``docker run --rm``."""
        first = [] if entrypoint else ["--entrypoint", command[0]]
        rest = command if entrypoint else command[1:]
        return read("docker", "run", "--rm", *volumes(mounts), *first, tag, *rest)

    def start(
        self, tag: str, mounts: Mounts, environment: Mapping[str, str], ports: Sequence[int]
    ) -> Container:
        """By ``docker run --detach``."""
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        publish = [f"--publish=127.0.0.1:{port}:{port}" for port in ports]
        options = [*volumes(mounts), *variables, *publish]
        name = read("docker", "run", "--detach", *options, tag).strip()
        self.containers.append(name)
        return _DockerContainer(name)

    def clean(self, *, keep_images: bool) -> None:
        """By ``docker rm`` and ``docker rmi``."""
        for name in self.containers:
            succeeds("docker", "rm", "--force", "--volumes", name)
        for tag in [] if keep_images else self.images:
            succeeds("docker", "rmi", tag)


@dataclass(frozen=True)
class _DockerContainer:
    name: str

    def execute(self, command: Sequence[str]) -> int:
        return subprocess.run(["docker", "exec", self.name, *command], check=False).returncode

    def stop(self) -> int:
        call("docker", "stop", "--time", str(round(STOP_TIMEOUT_S)), self.name)
        return int(read("docker", "inspect", "--format", "{{.State.ExitCode}}", self.name))
