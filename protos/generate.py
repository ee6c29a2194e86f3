"""Make the Python code of the .proto files: ``python protos/generate.py [OUTPUT]``.

It needs grpcio-tools 1.72.1 exactly, the last whose code imports under protobuf 6.30 as well as
under 7: code that a newer protoc makes refuses an older runtime. Files of the package
``edgewright.v1`` land in ``OUTPUT/edgewright/v1``; OUTPUT is ``src`` unless given. The
``__init__.py`` there is written by hand.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

PROTOS = Path(__file__).parent
TOOLS_VERSION = "1.72.1"


def generate(output: Path) -> None:
    """Compile every .proto below this folder into ``output``.

    Raises:
        RuntimeError: another version of grpcio-tools is installed, or protoc refuses a file.
    """
    from grpc_tools import protoc

    installed = version("grpcio-tools")
    if installed != TOOLS_VERSION:
        raise RuntimeError(
            f"grpcio-tools {installed} is installed, and {TOOLS_VERSION} is wanted; "
            f"run `pip install grpcio-tools=={TOOLS_VERSION}`"
        )
    output.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    arguments = ["protoc", f"--proto_path={PROTOS}", *outputs, *sources]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed: {' '.join(arguments)}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent / "src")
