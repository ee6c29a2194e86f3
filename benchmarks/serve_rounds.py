"""The rounds of the serving benchmark: who comes when, what is kept of it, and the record."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks.environment import installed
from benchmarks.process import RunFailedError
from benchmarks.record import versions
from benchmarks.serve_comparison import ServeComparison, Spread
from benchmarks.serve_contender import OURS, Setting, contenders
from benchmarks.serve_subject import TITLE
from benchmarks.serve_visit import (
    SESSION_ONLY,
    Scenario,
    Trial,
    Visit,
    Visitor,
    WrongAnswerError,
    read_visit,
)
from edgewright.manifest import canonical_json, sha256_bytes, sha256_file
from edgewright.proof.host import this_host

_TOLD: Final = ("onnxruntime", "tokenizers", "numpy", "grpcio", "protobuf")
_BUSY_CORES: Final = 0.1  # of others, above which a measurement is marked


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    chosen: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    trial: Trial
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "scenarios": [each.name for each in self.scenarios],
            **asdict(self.trial),
            "rounds": self.rounds,
        }


@dataclass(frozen=True)
class Ready:
    """All that a run needs, and who is left out of it."""

    visitor: Visitor
    settings: dict[str, Setting]
    tried: dict[str, dict[str, float]]
    left_out: dict[str, str]


def compare(plan: Plan, ready: Ready, work: Path, told: Console, *, fresh: bool) -> dict[str, Any]:
    """Rounds of all contenders, and what they come to."""
    runs = folder_of(plan, ready, work)
    visits: dict[str, dict[int, Visit]] = {name: {} for name in ready.settings}
    ceilings: list[Visit] = []
    left_out = dict(ready.left_out)
    for at in range(plan.rounds):
        order = [SESSION_ONLY, *ready.settings]
        for name in order[::-1] if at % 2 else order:
            if name in left_out:
                continue
            try:
                visit = visit_once(plan, ready, name, runs / f"{at}-{name}.json", told, fresh=fresh)
            except (RunFailedError, WrongAnswerError) as error:
                left_out[name] = str(error)
                told.print(f"[red]without {name}: {error}[/red]")
                continue
            told.print(f"round {at + 1} of {plan.rounds}: {name}: {in_short(visit)}")
            if name == SESSION_ONLY:
                ceilings.append(visit)
            else:
                visits[name][at] = visit
    return record_of(plan, ready, visits, ceilings, left_out)


def folder_of(plan: Plan, ready: Ready, work: Path) -> Path:
    """Where a run leaves its visits until it is whole."""
    return work / "runs" / key_of(plan, ready)


def forget(plan: Plan, ready: Ready, work: Path) -> None:
    """A run that is whole and written: the next one measures anew."""
    shutil.rmtree(folder_of(plan, ready, work), ignore_errors=True)


def visit_once(
    plan: Plan, ready: Ready, name: str, file: Path, told: Console, *, fresh: bool
) -> Visit:
    """A visit, or what an earlier run left of it."""
    if file.exists() and not fresh:
        told.print(f"{file.name}: of a run that was broken off")
        return read_visit(file)
    visitor = ready.visitor
    if name == SESSION_ONLY:
        words = sorted({each.words for each in plan.scenarios})
        visit = visitor.session_only(words, plan.trial)
    else:
        visit = visitor.visit(contenders()[name], ready.settings[name], plan.scenarios, plan.trial)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(visit.to_json()))
    os.replace(partial, file)
    return visit


def in_short(visit: Visit) -> str:
    """A visit, for the one who waits."""
    if visit.ready_s is None:
        return json.dumps(visit.cells)
    cells = (
        f"{name} {cell['per_second']:.0f}/s p99 {cell['latency_ms'].get('p99', 0):.1f} ms"
        + (f" errors {cell['errors']}" if cell["errors"] else "")
        + (" (others were busy)" if cell["other_cores"] > _BUSY_CORES else "")
        for name, cell in visit.cells.items()
    )
    return f"ready in {visit.ready_s:.1f} s; {'; '.join(cells)}"


def key_of(plan: Plan, ready: Ready) -> str:
    """Changes with whatever a run that goes on must share with its beginning."""
    visitor = ready.visitor
    told = {
        "plan": plan.to_json(),
        "file": sha256_file(visitor.subject.file),
        "settings": {name: asdict(each) for name, each in ready.settings.items()},
        "ours": installed_code(visitor.pythons[OURS]),
    }
    return sha256_bytes(canonical_json(told))[:16]


def installed_code(python: Path) -> str:
    """The hash of edgewright as it is installed in an environment."""
    folder = python.parent.parent
    files = sorted(folder.glob("lib/python*/site-packages/edgewright/**/*.py"))
    return sha256_bytes("".join(sha256_file(each) for each in files).encode())


def record_of(
    plan: Plan,
    ready: Ready,
    visits: Mapping[str, Mapping[int, Visit]],
    ceilings: Sequence[Visit],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """All of it, for JSON."""
    stayed = {name: found for name, found in visits.items() if found}
    comparison = ServeComparison(OURS, stayed)
    variant = ready.visitor.subject.variant
    return {
        "benchmark": "serve",
        "subject": TITLE,
        "settings": plan.to_json(),
        "file": {
            "variant": variant.name,
            "size_bytes": variant.size_bytes,
            "batch_invariant": variant.batch_invariant,
            "session_options": dict(variant.session_options),
        },
        "titles": {name: contenders()[name].title for name in stayed},
        "peer_settings": {
            name: {"taken": ready.settings[name].name, "tried": ready.tried.get(name, {})}
            for name in stayed
            if name != OURS
        },
        **comparison.to_json([each.name for each in plan.scenarios]),
        "session_only": ceiling(ceilings),
        "busiest_others": busiest(stayed),
        "left_out": dict(left_out),
        "host": this_host().to_json(),
        "versions": {
            **versions(("edgewright",)),
            **{name: told_versions(ready.visitor.pythons[name]) for name in stayed},
        },
    }


def ceiling(visits: Sequence[Visit]) -> dict[str, dict[str, Any]]:
    """Texts a second with no server, by words and by threads and batch."""
    return {
        words: {
            how: asdict(Spread.of([visit.cells[words][how] for visit in visits])) for how in rates
        }
        for words, rates in (visits[0].cells if visits else {}).items()
    }


def busiest(visits: Mapping[str, Mapping[int, Visit]]) -> float:
    """Cores that other processes had in the measurement that they disturbed most."""
    return max(
        (
            cell["other_cores"]
            for rounds in visits.values()
            for visit in rounds.values()
            for cell in visit.cells.values()
        ),
        default=0.0,
    )


def told_versions(python: Path) -> dict[str, str]:
    """Of the libraries that matter in an environment."""
    return {name: found for name, found in installed(python).items() if name in _TOLD}
