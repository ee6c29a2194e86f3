"""What is installed is what lies here: editable, as a wheel, and as a wheel made from the sdist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from lean import requirements
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = (
    ".git", ".venv*", "build", "dist", "demo-out", "*.egg-info", "__pycache__", ".*_cache",
    ".hypothesis",
)  # fmt: skip
# No machine without a GPU can install these, so constraints.txt, made on one, cannot pin them.
GPU_ONLY = {"cuda-python", "onnxruntime-gpu", "tensorrt"}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_folders() -> dict[str, Path]:
    """Package -> folder, by the package-dir table's rules."""
    table = pyproject()["tool"]["setuptools"]["package-dir"]
    folders = {}
    for package in pyproject()["tool"]["setuptools"]["packages"]:
        base = max((each for each in table if f"{package}.".startswith(f"{each}.")), key=len)
        folders[package] = ROOT.joinpath(table[base], *package.removeprefix(base).split(".")[1:])
    return folders


def source_files() -> set[str]:
    """Every file that a wheel must hold, as it is named there."""
    kinds = (".py", ".pyi", ".typed", ".j2", ".css", ".js")
    return {
        f"{package.replace('.', '/')}/{file.relative_to(folder).as_posix()}"
        for package, folder in package_folders().items()
        for file in [*folder.glob("*"), *folder.glob("templates/*")]
        if file.suffix in kinds or file.name == "py.typed"
    }


@dataclass(frozen=True)
class Builds:
    """A copy of the sources, the sdist, the wheel made from it, and one made from the sources."""

    sources: Path
    sdist: Path
    wheel: Path
    direct_wheel: Path


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    folder = tmp_path_factory.mktemp("packaging")
    sources = folder / "sources"  # setuptools leaves a build folder beside what it builds
    shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = ("-m", "build", "--no-isolation", "--outdir")
    run(*build, folder / "out", sources)  # the sdist, and from it a wheel
    run(*build, folder / "direct", "--wheel", sources)
    (sdist,), (wheel,) = folder.glob("out/*.tar.gz"), folder.glob("out/*.whl")
    (direct,) = folder.glob("direct/*.whl")
    return Builds(sources, sdist, wheel, direct)


def run(*arguments: str | Path, python: Path | str = sys.executable, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(python), *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def contents(wheel: Path) -> dict[str, int]:
    """Name -> checksum of every file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_every_package_on_disk_is_listed() -> None:
    found = {
        f"{base}.{'.'.join(folder.parent.relative_to(ROOT / path).parts)}".removesuffix(".")
        for base, path in pyproject()["tool"]["setuptools"]["package-dir"].items()
        for folder in (ROOT / path).rglob("__init__.py")
    }
    assert sorted(pyproject()["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_folder_with_code_is_a_package() -> None:
    folders = {
        file.parent for folder in package_folders().values() for file in folder.rglob("*.py")
    }
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("stage", ["finetune", "optimize", "serve"])
def test_a_stage_refuses_to_be_imported_by_its_folders_name(stage: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {stage}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"ImportError: import this package as edgewright.{stage}" in done.stderr


@pytest.mark.slow
def test_the_wheel_holds_every_file_and_nothing_else(builds: Builds) -> None:
    names = {name for name in contents(builds.wheel) if ".dist-info/" not in name}
    assert names == source_files()
    assert {"edgewright/py.typed", "edgewright/v1/model_pb2.pyi"} <= names
    assert any(name.startswith("edgewright/templates/") for name in names)
    with zipfile.ZipFile(builds.wheel) as archive:
        metadata = {name.rpartition("/")[2]: name for name in archive.namelist()}
        assert b"edgewright = edgewright.cli:main" in archive.read(metadata["entry_points.txt"])
        assert "LICENSE" in metadata


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel_as_the_sources(builds: Builds) -> None:
    assert contents(builds.wheel) == contents(builds.direct_wheel)


@pytest.mark.slow
def test_the_sdist_holds_what_a_developer_needs(builds: Builds) -> None:
    with tarfile.open(builds.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    here = {
        path.relative_to(builds.sources).as_posix()
        for folder in ("protos", "tests")
        for path in (builds.sources / folder).rglob("*")
        if path.is_file()
    }
    assert here <= names
    assert {"constraints.txt", "Makefile", "LICENSE", "README.md", "CHANGELOG.md"} <= names


@pytest.mark.slow
def test_an_editable_install_finds_the_stages_in_their_folders(
    builds: Builds, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, *pyproject()["build-system"]["requires"], python=python)
    run(*install, "--no-deps", "--no-build-isolation", "-e", builds.sources, python=python)
    for package, folder in package_folders().items():
        # To find a package within a package imports the outer one, whose libraries are not here.
        outer, inner = package.split(".")[:2], package.split(".")[2:]
        code = f"import importlib.util; print(importlib.util.find_spec({'.'.join(outer)!r}).origin)"
        where = Path(run("-I", "-c", code, python=python, cwd=tmp_path).strip())
        found = where.parent.joinpath(*inner, "__init__.py")
        assert found.is_file()
        assert found == builds.sources / folder.relative_to(ROOT) / "__init__.py"
    run("-I", "-c", "import edgewright.finetune", python=python, cwd=tmp_path)


def normal(name: str) -> str:
    """As PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_constraints_pin_every_requirement_to_a_version_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert all(pins.values()), "constraints.txt holds a line that is no name==version"
    asked = [*map(Requirement, pyproject()["project"]["dependencies"])]
    for extra in pyproject()["project"]["optional-dependencies"]:
        asked += requirements(extra)
    missing = {normal(each.name) for each in asked} - set(pins) - GPU_ONLY
    assert not missing, f"`make constraints`: not pinned are {sorted(missing)}"
    wrong = [
        f"{each} but {pins[normal(each.name)]}"
        for each in asked
        if normal(each.name) in pins and not each.specifier.contains(pins[normal(each.name)])
    ]
    assert not wrong


def test_the_hub_s_library_is_held_back_as_transformers_holds_it_back() -> None:
    """Else pip takes the newest ``datasets``, which wants another, and tries every transformers."""
    asked = [*map(Requirement, metadata.requires("transformers") or ())]
    theirs, ours = (
        next(each for each in every if normal(each.name) == "huggingface-hub")
        for every in (asked, requirements("train"))
    )
    ends = [each.version for each in theirs.specifier if each.operator == "<"]
    assert ends
    assert not any(ours.specifier.contains(version) for version in ends)
