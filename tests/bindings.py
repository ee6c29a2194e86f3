"""NVIDIA's own Python bindings without NVIDIA's libraries, to see what may be called.

The wheels come from PyPI when a test asks for them, and nothing of them is kept. TensorRT's bindings
want three libraries with nine symbols between them; a C file that has these and does nothing is
enough to import them. cuda-python's bindings load nothing before they are called.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_DOWNLOAD_S = 120  # a registry that cannot be reached must not hold the suite up

# Every public name of a module: of a class its own members with their documentation.
_DESCRIBE = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
def describe(value):
    if not isinstance(value, type):
        return {"doc": value.__doc__ or ""}
    members = {}
    for name in dir(value):
        if name == "__init__" or not name.startswith("_"):
            member = getattr(value, name)
            members[name] = {
                "doc": member.__doc__ or "",
                "kind": "property" if isinstance(member, property) else
                        "class" if isinstance(member, type) else
                        "method" if callable(member) else "value",
            }
            if isinstance(member, type):
                members[name]["members"] = [each for each in dir(member) if each[0] != "_"]
    return {"doc": value.__doc__ or "", "members": members}
names = [each for each in dir(module) if not each.startswith("_")]
print(json.dumps({name: describe(getattr(module, name)) for name in names}))
"""


@dataclass(frozen=True)
class Bindings:
    """A folder to import from."""

    folder: Path
    version: str

    def run(self, code: str, *arguments: str) -> str:
        """What a fresh interpreter prints, with these bindings in front of its own packages."""
        path = os.pathsep.join([str(self.folder), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOWNLOAD_S,
            env={**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": str(self.folder)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def describe(self, module: str) -> dict[str, Any]:
        """Name -> documentation and members, of everything public in a module."""
        described: dict[str, Any] = json.loads(self.run(_DESCRIBE, module))
        return described


def fetch(folder: Path, *requirements: str) -> None:
    """Unpack wheels from PyPI into ``folder``, or skip the test and name what is missing."""
    wheels = folder / "wheels"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), *requirements,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DOWNLOAD_S
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"no wheel of {', '.join(requirements)} within {_DOWNLOAD_S} s")
    if done.returncode:
        pytest.skip(f"no wheel of {', '.join(requirements)} for this Python from this registry")
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def tensorrt_bindings(folder: Path, package: str, version: str) -> Bindings:
    """``tensorrt`` of one version, over libraries that do nothing; or skip."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, with which to build stand-ins for TensorRT's libraries")
    fetch(folder, f"{package}=={version}")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{each}(void) {{ return 0; }}\n" for each in _SYMBOLS))
    for library in _LIBRARIES:
        name = f"lib{library}.so.{version.partition('.')[0]}"
        command = [compiler, "-shared", "-fPIC", "-o", name, source.name, f"-Wl,-soname,{name}"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (folder / "tensorrt.py").write_text(  # as the metapackage does
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    return Bindings(folder, version)
