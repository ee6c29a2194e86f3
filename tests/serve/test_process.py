"""The ``edgewright serve`` command as a process: its ports, its signals, its exit codes."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import without_amx
from click.testing import CliRunner

from edgewright import huge_pages
from edgewright.errors import IntegrityError
from edgewright.proof.host import instruction_set
from edgewright.repository import Repository
from edgewright.serve.cli import serve
from edgewright.serve.config import ServeConfig
from edgewright.serve.logs import log_to_stderr
from edgewright.serve.opening import instances_here
from edgewright.serve.server import Ready
from edgewright.serve.server import serve as serve_repository

from .bundles import make_bundle
from .conftest import Launch
from .processes import FREE_PORTS, Start, classify, page


@pytest.mark.skipif(
    not instruction_set().endswith("-amx"),
    reason="this CPU has no AMX, so there is nothing to deny a process",
)
def test_what_was_certified_with_amx_is_measured_again_where_a_process_may_not_use_it(
    start: Start, repository: Path, tmp_path: Path
) -> None:
    process = start(
        str(repository), *FREE_PORTS, "--json", "--state-dir", str(tmp_path), without=without_amx
    )
    (model,) = process.ready()["models"]
    assert (model["verdict"], model["chosen_by"]) == ("UNVERIFIED", "host")
    assert list(tmp_path.rglob("*-threads.json"))
    process.popen.send_signal(signal.SIGTERM)
    assert process.wait()[0] == 0


def test_its_memory_is_in_huge_pages_where_one_must_ask_for_them(
    start: Start, repository: Path
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json")
    process.ready()
    flags = Path(f"/proc/{process.popen.pid}/smaps").read_text().splitlines()
    advised = [line for line in flags if line.startswith("VmFlags") and " hg" in line]
    assert bool(advised) is bool(huge_pages.variables({}))


def test_it_says_where_it_serves_and_stops_with_0(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--json")
    told = process.ready()
    assert told["models"] == [
        {
            "name": "news",
            "version": 1,
            "variant": "onnxruntime-fp32",
            "runtime": told["models"][0]["runtime"],
            "instances": instances_here(threads=1),
            "verdict": "PASS",
            "chosen_by": "bundle",
        }
    ]
    assert told["ready_ms"] > 0
    assert classify(told["port"]).classifications
    assert page(told["metrics_port"], "/readyz")[0] == 200
    process.popen.send_signal(signal.SIGINT)
    assert process.wait() == (0, "", "")


def test_garbage_is_searched_for_seldom_and_threads_take_turns_soon(repository: Path) -> None:
    class LetGoError(Exception):
        pass

    frozen, settings = [], []
    before = (gc.get_threshold(), sys.getswitchinterval())

    def announce(_ready: Ready) -> None:
        frozen.append(gc.get_freeze_count())
        settings.append((gc.get_threshold(), sys.getswitchinterval()))
        raise LetGoError

    config = ServeConfig(repository, host="127.0.0.1", port=0, metrics_port=0)
    with log_to_stderr("text", level=logging.WARNING) as log_thread, pytest.raises(LetGoError):
        asyncio.run(serve_repository(config, announce, log_thread))
    assert frozen[0] > 10_000
    assert settings[0][0] > before[0]
    assert settings[0][1] < before[1]


def test_options_come_from_the_environment_too(start: Start, repository: Path) -> None:
    process = start(
        EDGEWRIGHT_REPOSITORY=str(repository),
        EDGEWRIGHT_HOST="127.0.0.1",
        EDGEWRIGHT_PORT="0",
        EDGEWRIGHT_METRICS_PORT="0",
        EDGEWRIGHT_LOG_FORMAT="json",
    )
    assert process.popen.stdout is not None
    assert process.popen.stdout.readline() == "news version 1: onnxruntime-fp32, PASS\n"
    line = process.popen.stdout.readline()
    assert re.fullmatch(r"ready in .* s: gRPC on 127.0.0.1:\d+, metrics on 127.0.0.1:\d+\n", line)
    process.popen.terminate()
    code, _, err = process.wait()
    assert code == 0
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["level"] for line in lines] == ["info"] * len(lines)
    assert "3 goldens agree" in lines[0]["message"]
    assert lines[-1]["message"] == "drained"


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_an_error_of_its_option(
    start: Start, repository: Path, option: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = start(str(repository), *FREE_PORTS, option, port).wait()
    assert (code, out) == (2, "")
    assert f"error: {option} {port} on 127.0.0.1 cannot be had" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("folder", "message"),
    [("missing", "error: no repository at"), (".", "holds no model")],
)
def test_without_a_model_it_stops_with_4(
    start: Start, tmp_path: Path, folder: str, message: str
) -> None:
    code, out, err = start(str(tmp_path / folder), *FREE_PORTS).wait()
    assert (code, out) == (4, "")
    assert message in err
    assert "edgewright publish" in err


def test_a_corrupt_bundle_stops_it_with_4_and_is_named(start: Start, tmp_path: Path) -> None:
    Repository(tmp_path / "repository").publish(make_bundle(tmp_path / "bundle"), "news")
    file = tmp_path / "repository" / "news" / "1" / "variants" / "fp32.onnx"
    flip(file, 100)
    code, out, err = start(str(tmp_path / "repository"), *FREE_PORTS).wait()
    assert (code, out) == (4, "")
    assert f"error: {file} was altered" in err
    assert "Traceback" not in err


def test_one_flipped_byte_in_any_file_is_refused_by_name(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "repository" / "news" / "1"
    Repository(tmp_path / "repository").publish(make_bundle(tmp_path / "bundle"), "news")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    assert len(files) >= 11
    for file in files:
        sound = file.read_bytes()
        flip(file, len(sound) // 2)
        with pytest.raises(IntegrityError, match=re.escape(str(file))):
            launch(tmp_path / "repository", load=False).load()
        file.unlink()
        with pytest.raises(IntegrityError, match=re.escape(str(file))):
            launch(tmp_path / "repository", load=False).load()
        file.write_bytes(sound)
    launch(tmp_path / "repository")


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


def test_importing_the_stage_imports_no_training_library() -> None:
    heavy = "torch transformers optimum nncf onnx scipy pyarrow datasets matplotlib jinja2 openvino"
    code = (
        "import sys, edgewright.serve.cli, edgewright.serve.server\n"
        f"found = sorted(set({heavy.split()}) & set(sys.modules))\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_every_option_has_a_twin_in_the_environment_and_help_says_so() -> None:
    shown = CliRunner().invoke(serve, ["--help"]).output
    for option in serve.params:
        if option.name not in ("repository", "help", "config", "output", "quiet"):
            assert f"EDGEWRIGHT_{option.opts[0][2:].replace('-', '_').upper()}" in shown
    assert "edgewright serve repository/" in shown


def test_the_log_is_whole_when_the_process_has_ended(start: Start, repository: Path) -> None:
    process = start(
        *(str(repository), *FREE_PORTS, "--json"),
        *("--access-log", "all", "--log-format", "json", "--quiet"),
    )
    told = process.ready()
    for _ in range(20):
        classify(told["port"])
    process.popen.send_signal(signal.SIGTERM)
    code, _, err = process.wait()
    assert code == 0
    lines = [json.loads(line) for line in err.splitlines()]
    accesses = [line for line in lines if line["logger"] == "edgewright.access"]
    assert len({line["request_id"] for line in accesses}) == 20
    assert {line["code"] for line in accesses} == {"OK"}
