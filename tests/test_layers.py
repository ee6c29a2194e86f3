"""The house's layers: every import points down, and none leads from one stage to another.

The imports are read, not run: those inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "edgewright": ROOT / "src" / "edgewright",
    "edgewright.finetune": ROOT / "finetune",
    "edgewright.optimize": ROOT / "optimize",
    "edgewright.serve": ROOT / "serve",
}
STAGES = ("edgewright.finetune", "edgewright.optimize", "edgewright.serve")
# From the ground up. A name stands for the module or the whole package. A new file goes into the
# lowest layer that holds what it needs.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(f"edgewright.{name}" if name else "edgewright" for name in names.split(" "))
    for names in (
        " errors folders huge_pages",
        "kinds manifest output options rpc_errors v1 oip",
        "tables pretrained pointer",
        "examples texts preprocess metrics report figures answers feedback deadline call_inputs"
        " failed_call calls streamed resumed_stream stream_calls connection async_client client"
        " connection_options shown_example state_dir",
        "backends bundle checkpoint factories model_file repository",
        "proof latency latency_rounds latency_process",
        "finetune optimize serve bench",
        "admin_command artifact_commands engine_command host_commands predict_command bench_command"
        " cli",
        "__main__",
    )
)
CLIENT_MAY_IMPORT = {"grpc", "google"}
HEAVY = {
    "torch", "transformers", "optimum", "nncf", "pyarrow", "scipy", "datasets", "matplotlib",
    "openvino", "onnx", "peft", "accelerate",
}  # fmt: skip
CLI_NEVER_IMPORTS = HEAVY | {
    "numpy", "grpc", "google.protobuf", "onnxruntime", "tokenizers", "jinja2", "safetensors",
    "sqlalchemy", "psycopg",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """``importer`` imports ``module`` on ``line`` of ``file``."""

    importer: str
    module: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.importer} imports {self.module}"


def modules(packages: Mapping[str, Path]) -> dict[str, Path]:
    """Dotted name -> file, of every Python file below the folders of ``packages``."""
    found = {}
    for package, folder in packages.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


def imports(packages: Mapping[str, Path]) -> list[Import]:
    """Every import there is, module by module; a name taken from a package may be a module."""
    known = modules(packages)
    found = []
    for importer, file in known.items():
        inside = importer if file.name == "__init__.py" else importer.rpartition(".")[0]
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            found += [
                Import(importer, module, file, getattr(node, "lineno", 0))
                for module in _imported(node, inside, known)
            ]
    return found


def _imported(node: ast.AST, inside: str, known: Iterable[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = inside.split(".")
        package = above[: len(above) - node.level + 1] if node.level else []
        base = ".".join([*package, *filter(None, [node.module])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        yield from [name for name in names if name in known] or [base]


def layer(module: str) -> int | None:
    """Its place from the ground, or None where it has none."""
    for name in (module, *_parents(module)):
        for index, names in enumerate(LAYERS):
            if name in names and (name != "edgewright" or module == name):
                return index
    return None


def _parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def stage(module: str) -> str | None:
    """The stage it belongs to."""
    return next((each for each in STAGES if f"{module}.".startswith(f"{each}.")), None)


def faults(packages: Mapping[str, Path]) -> list[str]:
    """Everything that breaks the rules, in words."""
    known = modules(packages)
    told = [
        f"{file}: {module} has no layer; add it to LAYERS in {Path(__file__).name}"
        for module, file in known.items()
        if layer(module) is None
    ]
    for each in imports(packages):
        if not f"{each.module}.".startswith("edgewright."):
            continue
        above, below = layer(each.importer), layer(each.module)
        if stage(each.module) and stage(each.module) != stage(each.importer):
            told.append(f"{each}, a stage; stages are reached by name, from cli.py alone")
        elif above is not None and below is not None and below > above:
            told.append(f"{each}, which lies above it")
    told += [f"imports run in a circle: {' -> '.join(circle)}" for circle in circles(packages)]
    return [*told, *stages_named(known)]


def stages_named(known: Mapping[str, Path]) -> Iterator[str]:
    """Strings that name a stage's module, outside cli.py."""
    dotted = re.compile(rf"({'|'.join(map(re.escape, STAGES))})(\.\w+)*")
    for module, file in known.items():
        if module == "edgewright.cli":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            if not isinstance(text, str) or not dotted.fullmatch(text):
                continue
            if stage(text) != stage(module):
                yield f"{file}: {module} names {text}; only cli.py may"


def circles(packages: Mapping[str, Path]) -> Iterator[list[str]]:
    """One circle of imports for each module that begins one; a package is not its submodule."""
    known = modules(packages)
    graph: dict[str, set[str]] = {module: set() for module in known}
    for each in imports(packages):
        if each.module in known and each.module != each.importer:
            graph[each.importer].add(each.module)
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
        elif module not in done:
            for below in sorted(graph[module]):
                yield from walk(below, [*path, module])
            done.add(module)

    for module in sorted(graph):
        yield from walk(module, [])


def reachable(packages: Mapping[str, Path], start: str) -> set[str]:
    """Every module that importing or using ``start`` may import, at any depth."""
    by_importer: dict[str, set[str]] = {}
    for each in imports(packages):
        by_importer.setdefault(each.importer, set()).add(each.module)
    found: set[str] = set()
    left = [start]
    while left:
        module = left.pop()
        if module not in found:
            found |= {module}
            left += [*by_importer.get(module, ()), *_parents(module)]
    return found


def loaded(code: str, names: Iterable[str]) -> set[str]:
    """Which of ``names`` a fresh interpreter has imported after running ``code``."""
    script = f"{code}\nimport sys\nprint(*sorted(set({sorted(names)!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("\n")[-2].split())


def test_every_import_points_down_and_no_stage_knows_another() -> None:
    assert faults(PACKAGES) == []


def test_every_layer_names_modules_that_exist() -> None:
    known = set(modules(PACKAGES))
    missing = set().union(*LAYERS) - known
    assert not missing, f"LAYERS names what is not there: {sorted(missing)}"


def test_the_client_imports_neither_a_stage_nor_oip_nor_a_heavy_library() -> None:
    reached = reachable(PACKAGES, "edgewright.client")
    assert "edgewright.rpc_errors" in reached
    assert not [module for module in reached if stage(module) or "oip" in module.split(".")]
    libraries = {module.partition(".")[0] for module in reached} - {"edgewright"}
    assert libraries - set(sys.stdlib_module_names) <= CLIENT_MAY_IMPORT


@pytest.mark.parametrize("package", ["edgewright.serve", "edgewright.preprocess"])
def test_serving_imports_no_training_library(package: str) -> None:
    names = [name for name in modules(PACKAGES) if f"{name}.".startswith(f"{package}.")]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    assert loaded(code, [*names, *HEAVY]) == set(names)


def test_the_command_line_imports_nothing_heavy_until_a_command_needs_it() -> None:
    code = "from edgewright.cli import run\nrun(['--version'])\nrun(['--help'])"
    assert loaded(code, CLI_NEVER_IMPORTS) == set()


def test_the_client_loads_nothing_heavy() -> None:
    names = {*CLI_NEVER_IMPORTS, "PIL", "edgewright.serve", "edgewright.oip"} - {
        "grpc", "google.protobuf",
    }  # fmt: skip
    assert loaded("import edgewright.client", names) == set()


BROKEN = {
    "upward": ({"manifest.py": "import edgewright.examples"}, "which lies above it"),
    "upward, by from": ({"errors.py": "from edgewright import manifest"}, "which lies above it"),
    "upward, relative": ({"errors.py": "from . import manifest"}, "which lies above it"),
    "upward, relative name": ({"errors.py": "from .manifest import x"}, "which lies above it"),
    "upward, in a function": (
        {"manifest.py": "def f():\n    from edgewright.examples import x\n    return x"},
        "which lies above it",
    ),
    "upward, for types": (
        {"manifest.py": "if TYPE_CHECKING:\n    from edgewright.examples import x"},
        "which lies above it",
    ),
    "between stages": ({"serve/a.py": "from edgewright.optimize.b import x"}, "a stage"),
    "between stages, relative": ({"serve/a.py": "from ..optimize import b"}, "a stage"),
    "to a stage": ({"cli.py": "import edgewright.serve.a"}, "a stage"),
    "to a stage, by name": (
        {"manifest.py": 'importlib.import_module("edgewright.serve.a")'},
        "only cli.py may",
    ),
    "no layer": ({"novelty.py": ""}, "has no layer"),
    "no layer, in a package": ({"novelty/__init__.py": ""}, "has no layer"),
    "a circle": (
        {"examples.py": "import edgewright.metrics", "metrics.py": "import edgewright.examples"},
        "circle: edgewright.examples -> edgewright.metrics -> edgewright.examples",
    ),
}


def house(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """A small sound tree, with ``files`` written over it."""
    sound = {
        "__init__.py": "", "errors.py": "import sys", "manifest.py": "import edgewright.errors",
        "examples.py": "from edgewright.manifest import x", "metrics.py": "",
        "cli.py": 'COMMANDS = {"serve": "edgewright.serve.a"}',
        "serve/__init__.py": "", "serve/a.py": "from edgewright.examples import y",
        "optimize/__init__.py": "", "optimize/b.py": "from edgewright.optimize import c",
        "optimize/c.py": "",
    }  # fmt: skip
    for name, code in {**sound, **files}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    return {"edgewright": folder}


def test_a_sound_tree_has_no_faults(tmp_path: Path) -> None:
    assert faults(house(tmp_path, {})) == []


@pytest.mark.parametrize("case", BROKEN)
def test_each_kind_of_wrong_arrow_is_found(tmp_path: Path, case: str) -> None:
    files, message = BROKEN[case]
    told = faults(house(tmp_path, files))
    assert any(message in fault for fault in told)
    stem = Path(next(iter(files))).stem
    assert any(stem in fault for fault in told)


def test_what_the_client_reaches_is_followed_to_the_end(tmp_path: Path) -> None:
    packages = house(
        tmp_path, {"client.py": "import edgewright.errors", "errors.py": "def f(): import numpy"}
    )
    assert {"edgewright.errors", "numpy"} <= reachable(packages, "edgewright.client")
