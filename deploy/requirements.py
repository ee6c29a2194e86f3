"""Print what ``edgewright[EXTRAS]`` requires, one requirement a line, from pyproject.toml alone.

    python requirements.py pyproject.toml train,optimize

pip can install a project's dependencies only together with the project. An image wants them in a
layer of their own, below the sources, so that a change of code leaves gigabytes untouched.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: str) -> list[str]:
    """Those of the project and of its ``extras`` (comma-separated), sorted, each once.

    ``project`` is the table of that name; an extra may name others, as in ``edgewright[train]``.

    Raises:
        SystemExit: there is no such extra.
    """
    found, seen = set(project["dependencies"]), set()
    waiting = _names(extras)
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in project["optional-dependencies"]:
            known = ", ".join(sorted(project["optional-dependencies"]))
            raise SystemExit(f"no extra {extra!r}; there are: {known}")
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{re.escape(project['name'])}\[(.+)\]", requirement)
            if own:
                waiting += _names(own[1])
            else:
                found.add(requirement)
    return sorted(found)


def _names(extras: str) -> list[str]:
    return [name.strip() for name in extras.split(",") if name.strip()]


if __name__ == "__main__":
    file, wanted = sys.argv[1:]
    table = tomllib.loads(Path(file).read_text(encoding="utf-8"))["project"]
    sys.stdout.write("".join(f"{line}\n" for line in requirements(table, wanted)))
