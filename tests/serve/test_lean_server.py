"""``pip install edgewright[serve]`` is enough to serve a bundle."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from lean import lean_python, oldest, run_lean

from edgewright.client import Client

ABSENT = ("torch", "transformers", "optimum", "nncf", "openvino", "scipy", "pyarrow", "onnx")
FIND = f"""
from importlib.util import find_spec
print([name for name in {ABSENT!r} if find_spec(name)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("versions", [(), oldest("serve")], ids=["pinned", "oldest"])
def test_the_serve_extra_alone_serves_a_bundle(repository: Path, versions: tuple[str, ...]) -> None:
    python = lean_python("serve", versions)
    assert run_lean(python, "-c", FIND).strip() == "[]"
    edgewright = python.with_name("edgewright")
    options = ("--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--json")
    command = [edgewright, "serve", repository, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            told = json.loads(server.stdout.readline())
            target = f"127.0.0.1:{told['port']}"
            with Client(target) as client:
                (answer,) = client.classify("shares rose", model="news")
                assert answer.label in client.get_model("news").labels
            load = ("--rate", "20", "--duration", "0.2", "--warm-up", "0", "--json")
            assert subprocess.run([edgewright, "bench", target, *load], check=False).returncode == 0
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
