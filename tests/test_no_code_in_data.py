"""What is read is data: nothing that is shipped unpickles, evaluates or opens what a caller names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("src/edgewright", "finetune", "optimize", "serve")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__"}
# Only ``safe_load`` builds plain data alone.
ATTRIBUTES = {("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system")}


def faults(code: str) -> Iterator[str]:
    """What ``code`` does that would run what it reads."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or ""]
        else:
            named = []
        yield from (name for name in named if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            yield from _called(node)


def _called(node: ast.Call) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in CALLS:
        yield function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        owner, name = function.value.id, function.attr
        if (owner, name) in ATTRIBUTES:
            yield f"{owner}.{name}"
        if (owner, name) == ("torch", "load") and not _says(node, "weights_only", True):
            yield "torch.load without weights_only=True"
    told = {
        keyword.arg: keyword.value.value
        for keyword in node.keywords
        if isinstance(keyword.value, ast.Constant)
    }
    for option in ("allow_pickle", "trust_remote_code", "shell"):
        if told.get(option):
            yield f"{option}={told[option]}"


def _says(node: ast.Call, option: str, value: object) -> bool:
    return any(
        keyword.arg == option
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is value
        for keyword in node.keywords
    )


@pytest.mark.parametrize("folder", SHIPPED)
def test_nothing_that_is_shipped_runs_what_it_reads(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert len(files) > 5
    found = [f"{file}: {fault}" for file in files for fault in faults(file.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from pickle import loads", "import joblib.memory", "eval(x)", "exec(x)",
        "import yaml\nyaml.load(x)", "import os\nos.system(x)", "np.load(x, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "torch.load(x)",
        "torch.load(x, weights_only=False)", "subprocess.run(x, shell=True)",
    ],
)  # fmt: skip
def test_each_way_to_run_what_is_read_is_found(code: str) -> None:
    assert len(list(faults(code))) == 1


@pytest.mark.parametrize(
    "code",
    ["yaml.safe_load(x)", "np.load(x, allow_pickle=False)", "torch.load(x, weights_only=True)"],
)
def test_what_reads_data_alone_is_not(code: str) -> None:
    assert list(faults(code)) == []
