"""A small artifact with nested, empty and measured files, for the tests of manifest."""

from __future__ import annotations

from pathlib import Path

from edgewright.manifest import (
    ArtifactKind,
    measured_json,
    seal,
)

KIND = ArtifactKind("edgewright.sample", 1, "sample", "edgewright sample -o SAMPLE")
FILES = {"weights.bin": bytes(range(40)), "nested/deeper/labels.json": b'["a"]', "empty": b""}
BODY = {"labels": ["business", "sport"], "seed": 0, "note": "naïve"}


def write(folder: Path, *, files: dict[str, bytes] = FILES, took_s: float = 1.5) -> str:
    """Fill and seal ``folder``; the manifest's hash."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    measured = {
        "measurements.json": measured_json({"took_s": took_s}),
        "report.html": lambda digest: f"<p>{digest}</p>".encode(),
    }
    return seal(folder, KIND, BODY, measured)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
