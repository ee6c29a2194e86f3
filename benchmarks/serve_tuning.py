"""Every peer at its best: of its settings, the one with the highest throughput is taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from benchmarks.process import RunFailedError
from benchmarks.serve_contender import OURS, Contender, Setting, contenders
from benchmarks.serve_visit import Scenario, Trial, Visitor, WrongAnswerError
from edgewright.manifest import canonical_json, sha256_bytes
from edgewright.proof.host import this_host

_SCENARIO: Final = Scenario(32, 12)
_TRIAL: Final = Trial(seconds=4.0, warmup=1.0)


@dataclass(frozen=True)
class Tuned:
    """By contender: the setting that is taken, and texts a second of all that were tried."""

    settings: dict[str, Setting]
    tried: dict[str, dict[str, float]]
    left_out: dict[str, str]


def tuned(
    visitor: Visitor,
    names: Sequence[str],
    told: Console,
    *,
    quick: bool = False,
    fresh: bool = False,
) -> Tuned:
    """Settings of ours, which are the defaults, and of the peers; found once on a host.

    Args:
        quick: take the first of each.
        fresh: try all again, though it was done before.
    """
    found = Tuned({}, {}, {})
    for name in names:
        contender = contenders()[name]
        if name == OURS or quick:
            found.settings[name] = contender.settings[0]
            continue
        rates = _rates(visitor, contender, told, fresh=fresh)
        if not any(rates.values()):
            found.left_out[name] = f"none of its settings works: {json.dumps(rates)}"
            continue
        found.tried[name] = rates
        found.settings[name] = max(contender.settings, key=lambda each: rates[each.name])
    return found


def _rates(
    visitor: Visitor, contender: Contender, told: Console, *, fresh: bool
) -> dict[str, float]:
    """Texts a second at 32 callers by setting, 0 where it fails."""
    file = visitor.folder / "tuning" / f"{contender.name}-{_key(visitor, contender)}.json"
    known = file.exists() and not fresh
    rates: dict[str, float] = json.loads(file.read_bytes()) if known else {}
    for setting in contender.settings:
        if setting.name not in rates:
            rates[setting.name] = _rate(visitor, contender, setting, told)
            told.print(f"{contender.name}: {setting.name}: {rates[setting.name]:.0f}/s")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rates, indent=1))
    return rates


def _rate(visitor: Visitor, contender: Contender, setting: Setting, told: Console) -> float:
    try:
        visit = visitor.visit(contender, setting, [_SCENARIO], _TRIAL)
    except (RunFailedError, WrongAnswerError) as error:
        told.print(f"[yellow]{contender.name}: {setting.name}: {error}[/yellow]")
        return 0.0
    return float(visit.cells[_SCENARIO.name]["per_second"])


def _key(visitor: Visitor, contender: Contender) -> str:
    told: dict[str, Any] = {
        "variant": visitor.subject.variant.name,
        "requirements": contender.environment.requirements,
        "host": this_host().to_json(),
    }
    return sha256_bytes(canonical_json(told))[:12]
