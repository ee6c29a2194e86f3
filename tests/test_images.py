"""What both Dockerfiles promise, read from their text; `make images` builds and runs them."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import trustme

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("Dockerfile.train", "Dockerfile.serve")
BEFORE_SOURCES = {"pyproject.toml", "constraints.txt", "deploy/requirements.py"}


@dataclass(frozen=True)
class Stage:
    name: str
    parent: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # instruction, what follows it

    def of(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]

    def last(self, instruction: str) -> str:
        assert self.of(instruction), f"stage {self.name!r} has no {instruction}"
        return self.of(instruction)[-1]

    def copied(self) -> set[str]:
        """Files and folders of the repository, not of another stage."""
        own = [rest.split() for rest in self.of("COPY") if "--from=" not in rest]
        return {source for words in own for source in words[:-1] if not source.startswith("--")}


@dataclass(frozen=True)
class Dockerfile:
    arguments: dict[str, str]  # before the first FROM
    stages: list[Stage]

    @property
    def final(self) -> Stage:
        return self.stages[-1]

    @property
    def copied(self) -> set[str]:
        return set().union(*(stage.copied() for stage in self.stages))

    @classmethod
    def read(cls, name: str) -> Dockerfile:
        lines = (ROOT / name).read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("#"))
        steps = [line.split(None, 1) for line in re.sub(r"\\\n", " ", text).splitlines() if line]
        found = cls({}, [])
        for instruction, rest in steps:
            if instruction == "FROM":
                parent, _, stage = rest.partition(" AS ")
                found.stages.append(Stage(stage, parent))
            elif found.stages:
                found.final.steps.append((instruction, rest))
            else:
                argument, _, default = rest.partition("=")
                found.arguments[argument] = default
        return found


@pytest.fixture(params=NAMES)
def dockerfile(request: pytest.FixtureRequest) -> Dockerfile:
    return Dockerfile.read(request.param)


@pytest.fixture
def serve() -> Dockerfile:
    return Dockerfile.read("Dockerfile.serve")


def load(file: str) -> ModuleType:
    """A module of deploy/, whose folder is on no path."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look a module up
    spec.loader.exec_module(module)
    return module


def project() -> dict[str, dict[str, list[str]]]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def requirements(extras: str) -> list[str]:
    command = [sys.executable, "deploy/requirements.py", "pyproject.toml", extras]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def extras(dockerfile: Dockerfile) -> str:
    (stage,) = (stage for stage in dockerfile.stages if stage.name == "dependencies")
    (default,) = (rest for rest in stage.of("ARG") if rest.startswith("EXTRAS="))
    return default.removeprefix("EXTRAS=")


def test_every_stage_comes_from_the_base_image_that_may_be_chosen(dockerfile: Dockerfile) -> None:
    known = ["${BASE_IMAGE}"]
    for stage in dockerfile.stages:
        assert stage.parent in known
        known.append(stage.name)
    assert len(dockerfile.stages) > 2


def test_the_default_base_is_pinned_to_a_python_and_a_debian(dockerfile: Dockerfile) -> None:
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", dockerfile.arguments["BASE_IMAGE"])


def test_the_process_is_not_root(dockerfile: Dockerfile) -> None:
    user, _, group = dockerfile.final.last("USER").partition(":")
    assert int(user) > 0  # a number: Kubernetes' runAsNonRoot cannot look a name up
    assert int(group) > 0
    after = dockerfile.final.steps[dockerfile.final.steps.index(("USER", f"{user}:{group}")) :]
    assert not [step for step in after if step[0] in ("RUN", "USER")][1:]


def test_a_signal_reaches_the_process(dockerfile: Dockerfile) -> None:
    """No shell stands between, and a process 1 hands SIGTERM on before Python listens."""
    assert json.loads(dockerfile.final.last("ENTRYPOINT")) == ["tini", "--", "edgewright"]
    assert isinstance(json.loads(dockerfile.final.last("CMD")), list)
    assert dockerfile.final.last("STOPSIGNAL") == "SIGTERM"
    assert any("tini" in rest for rest in dockerfile.stages[0].of("RUN"))


def test_whatever_pip_installs_is_pinned(dockerfile: Dockerfile) -> None:
    runs = [rest for stage in dockerfile.stages for rest in stage.of("RUN")]
    installs = [part for rest in runs for part in rest.split("&&") if " install " in part]
    by_pip = [part for part in installs if "/bin/pip " in part]
    assert len(by_pip) == 2
    for part in by_pip:
        assert "--constraint constraints.txt" in part or "--no-deps" in part


def test_a_change_of_code_leaves_the_dependencies_cached(dockerfile: Dockerfile) -> None:
    stages = {stage.name: stage for stage in dockerfile.stages}
    above = stages[stages["dependencies"].parent]
    assert stages["dependencies"].copied() == BEFORE_SOURCES
    assert not above.copied()
    layers = [rest for rest in dockerfile.final.of("COPY") if "--from=" in rest]
    assert ["dependencies" in rest for rest in layers] == [True, False]


def test_the_final_stage_has_neither_pip_nor_compiler(dockerfile: Dockerfile) -> None:
    assert dockerfile.final.parent == dockerfile.stages[0].name
    lines = [*dockerfile.stages[0].of("RUN"), *dockerfile.final.of("RUN")]
    words = set(re.findall(r"[\w.+-]+", " ".join(lines)))
    assert not words & {
        "gcc",
        "g++",
        "build-essential",
        "clang",
        "python3-dev",
        "pip",
        "python3-pip",
    }


def test_nothing_of_the_hosts_pip_is_copied(dockerfile: Dockerfile) -> None:
    for stage in dockerfile.stages:
        for rest in stage.of("RUN"):
            assert ("/bin/pip " in rest) == ("type=secret,id=pip.conf" in rest)
        assert not [rest for rest in stage.of("COPY") if "pip.conf" in rest]
        assert not re.search(r"PIP_(EXTRA_)?INDEX_URL|https?://", " ".join(stage.of("ENV")))


def test_every_copied_source_is_in_git(dockerfile: Dockerfile) -> None:
    command = ["git", "ls-files", "--", *sorted(dockerfile.copied)]
    tracked = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for source in dockerfile.copied:
        assert any(
            file == source or file.startswith(f"{source}/") for file in tracked.splitlines()
        ), f"{source} is not in git"


def test_every_folder_of_a_package_is_copied(dockerfile: Dockerfile) -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {folder.split("/")[0] for folder in table["package-dir"].values()}
    assert wanted <= dockerfile.copied
    assert {project()["readme"], *project()["license-files"]} <= dockerfile.copied


def test_a_build_sees_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    shown = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert shown == set().union(*(Dockerfile.read(name).copied for name in NAMES))
    assert any(fnmatch.fnmatch("src/a/__pycache__", rule) for rule in rules[1:])


def test_the_default_extras_exist(dockerfile: Dockerfile) -> None:
    assert set(extras(dockerfile).split(",")) <= set(project()["optional-dependencies"])


def test_the_server_has_no_torch(serve: Dockerfile) -> None:
    names = {re.split(r"[^\w-]", line)[0] for line in requirements(extras(serve))}
    assert not names & {"torch", "transformers", "optimum", "nncf", "accelerate", "datasets"}
    assert {"onnxruntime", "grpcio", "click"} <= names


def test_the_trainer_has_both_stages() -> None:
    names = {
        re.split(r"[^\w-]", line)[0]
        for line in requirements(extras(Dockerfile.read("Dockerfile.train")))
    }
    assert {"torch", "transformers", "optimum", "nncf", "onnxruntime", "openvino"} <= names


def test_requirements_follow_extras_that_name_extras() -> None:
    table = project()["optional-dependencies"]
    own = {line for line in table["optimize"] if not line.startswith("edgewright[")}
    assert set(requirements("optimize")) == {*project()["dependencies"], *table["train"], *own}
    assert requirements("") == sorted(project()["dependencies"])


def test_an_unknown_extra_is_refused_by_name() -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        requirements("serve,nonsense")
    assert "no extra 'nonsense'" in raised.value.stderr


def test_labels_say_what_the_image_is(dockerfile: Dockerfile) -> None:
    labels = " ".join(dockerfile.final.of("LABEL"))
    for key in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{key}=" in labels


def test_a_trainer_has_no_health() -> None:
    assert Dockerfile.read("Dockerfile.train").final.last("HEALTHCHECK") == "NONE"


@pytest.fixture
def readyz() -> Iterator[HTTPServer]:
    """Answers /readyz with ``status``, and anything else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(self.server.status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_the_health_check_asks_whether_the_server_is_ready(
    serve: Dockerfile, readyz: HTTPServer, status: int, healthy: bool
) -> None:
    readyz.status = status
    assert (health(serve, readyz.server_address[1]) == 0) == healthy


def test_the_health_check_fails_where_nothing_answers(serve: Dockerfile) -> None:
    assert health(serve, 1) != 0


def test_the_health_check_follows_the_server_to_tls(serve: Dockerfile, readyz: HTTPServer) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("edgewright.example.org").configure_cert(context)
    readyz.socket = context.wrap_socket(readyz.socket, server_side=True)
    readyz.status = 200
    assert health(serve, readyz.server_address[1], EDGEWRIGHT_TLS_CERT="/tls/server.pem") == 0
    readyz.status = 503
    assert health(serve, readyz.server_address[1], EDGEWRIGHT_TLS_CERT="/tls/server.pem") != 0


def health(serve: Dockerfile, port: int, **variables: str) -> int:
    """The exit code of the HEALTHCHECK, through no shell."""
    _, _, command = serve.final.last("HEALTHCHECK").partition("CMD ")
    python, *rest = json.loads(command)
    assert python == "python3"
    environment = {
        **os.environ,
        "EDGEWRIGHT_METRICS_PORT": str(port),
        "http_proxy": "http://x.invalid",
        **variables,
    }
    return subprocess.run(
        [sys.executable, *rest], env=environment, check=False, capture_output=True
    ).returncode


def test_a_build_gets_the_hosts_pip_configuration(tmp_path: Path) -> None:
    for folder in ("index/simple", "index/files", "wheels"):
        (tmp_path / folder).mkdir(parents=True)
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    listed = "\n".join(
        [
            ":env:.timeout='9'",
            "global.timeout='5'",
            f"global.cert='{bundle}'",
            f"global.extra-index-url='https://index.example/simple file://{tmp_path}/index/simple'",
            f"global.find-links='{tmp_path}/wheels'",
            "global.constraint='/somewhere/constraints.txt'",
            "list.format='json'",
        ]
    )
    pip = load("deploy/host_pip.py").HostPip.from_listing(listed, {})
    assert pip.folders == (tmp_path / "index", tmp_path / "wheels")
    assert pip.ca_bundle == bundle
    assert pip.settings["timeout"] == "9"  # the environment's, as with pip
    assert "cert = /run/secrets/ca-bundle" in pip.config()
    assert "constraint" not in pip.config()  # the project has its own
    without = pip.without_folders()
    assert without.settings["extra-index-url"] == "https://index.example/simple"
    assert "find-links" not in without.settings
    assert str(tmp_path) not in without.config()


FAKE_DOCKER = """#!/bin/sh
printf '%s\\n' "$*" >> "$DOCKER_LOG"
case "$1 $2" in
    "run --detach") echo c0ffee ;;
    "inspect --format") echo 0 ;;
    "image inspect") echo '[{"Config": {"User": "10001:10001"}, "Size": 5}]' ;;
esac
"""
ON_DOCKER = """
from pathlib import Path
from deploy.docker import Docker, answers
from deploy.host_pip import HostPip

assert answers()
docker = Docker()
pip = HostPip({"index-url": "https://index.example/simple"}, None, ())
docker.build(Path("/src/Dockerfile.serve"), "image", {"BASE_IMAGE": "base:1"}, pip)
assert (docker.size("image"), docker.config("image")["User"]) == (5, "10001:10001")
docker.run("image", ["verify", "x"], {Path("/data"): "/work"})
docker.run("image", ["python", "-V"], {}, entrypoint=False)
running = docker.start("image", {}, {"EDGEWRIGHT_PORT": "9001"}, [9001])
assert running.execute(["true"]) == 0
assert running.stop() == 0
docker.clean(keep_images=False)
"""


def test_docker_is_asked_for_the_same(tmp_path: Path) -> None:
    """By a stand-in that writes down how it was called: not every machine has an engine."""
    fake, log = tmp_path / "docker", tmp_path / "log"
    fake.write_text(FAKE_DOCKER)
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DOCKER_LOG": str(log)}
    command = [sys.executable, "-c", ON_DOCKER]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    lines = log.read_text().splitlines()
    build = next(line for line in lines if line.startswith("build "))
    assert "--file=/src/Dockerfile.serve --tag=image --build-arg=BASE_IMAGE=base:1" in build
    assert re.search(r"--secret=id=pip\.conf,src=\S+/pip\.conf /src$", build)
    assert [line for line in lines if not line.startswith(("build", "info", "image"))] == [
        "run --rm --volume=/data:/work image verify x",
        "run --rm --entrypoint python image -V",
        "run --detach --env=EDGEWRIGHT_PORT=9001 --publish=127.0.0.1:9001:9001 image",
        "exec c0ffee true",
        "stop --time 60 c0ffee",
        "inspect --format {{.State.ExitCode}} c0ffee",
        "rm --force --volumes c0ffee",
        "rmi image",
    ]
