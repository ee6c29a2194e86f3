"""Make the Python code of the .proto files: ``python protos/generate.py [--check]``.

It needs grpcio-tools 1.72.1 exactly, whose code imports under protobuf 6.30 as well as under 7:
code that a newer protoc makes refuses an older runtime. Those tools want protobuf 6 for themselves,
so they live in an environment of their own, build/protoc, which is made when it is missing.

Files below ``edgewright/v1`` and ``edgewright/oip`` land in the folders of these names in
``src/edgewright``, where only ``__init__.py`` is written by hand. With ``--check`` nothing is
written, and the exit code is 1 where the files there are not what would be.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
SOURCES = PROTOS.parent / "src"
TOOLS = PROTOS.parent / "build" / "protoc"
TOOLS_VERSION = "1.72.1"
PACKAGES = ("v1", "oip")


def generate(output: Path) -> None:
    """Compile every .proto below this folder into ``output``.

    Raises:
        subprocess.CalledProcessError: the tools cannot be installed, or protoc refuses a file.
    """
    output.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    protoc = [str(tools()), "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    subprocess.run([*protoc, *outputs, *sources], check=True)


def tools() -> Path:
    """The interpreter of an environment with the pinned grpcio-tools."""
    python = TOOLS / "bin" / "python"
    ready = TOOLS / f"grpcio-tools-{TOOLS_VERSION}"
    if not ready.is_file():
        venv.create(TOOLS, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"grpcio-tools=={TOOLS_VERSION}", "setuptools"], check=True)
        ready.touch()
    return python


def stale(generated: Path = SOURCES) -> list[str]:
    """Names of the files that ``generate`` would change, add or leave without a source."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = _contents(Path(folder))
    stored = _contents(generated)
    return sorted(name for name in fresh | stored if fresh.get(name) != stored.get(name))


def _contents(root: Path) -> dict[str, bytes]:
    folders = [root / "edgewright" / package for package in PACKAGES]
    files = [file for folder in folders for file in folder.glob("*_pb2*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def main(arguments: list[str]) -> int:
    """Generate or, with --check, compare; the exit code is returned."""
    if arguments not in ([], ["--check"]):
        sys.exit("usage: python protos/generate.py [--check]")
    if not arguments:
        generate(SOURCES)
        return 0
    names = stale()
    for name in names:
        sys.stderr.write(f"{name} is not what protos/ gives; run `make protos`\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
