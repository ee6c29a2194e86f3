"""What a mixed-precision search has tried so far: BUNDLE.trials.json, until there is a bundle.

A run that was killed goes on where it was: the ranking and every outcome are written, durably, as
soon as they are known. They hold for the same files, rows and rules only, so each search is kept
under the hash of all that decides it. A file that is damaged is no more than work to do again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgewright.manifest import canonical_json, replace_file, sha256_bytes
from edgewright.optimize.sensitivity import Ranking, Sensitivity
from edgewright.proof.certificate import PairedCounts

FORMAT: Final = "edgewright.trials"
FORMAT_VERSION: Final = 2  # in 1 a row whose scores are no numbers could count as right
_SUFFIX: Final = ".trials.json"


@dataclass
class Trials:
    """One search's trials.

    Attributes:
        counts: rows lost and won with the first k groups in float, by k.
        ranking: of the groups, which several searches share; None before they were ranked.
        seconds: that the search has taken so far, earlier runs included.
    """

    path: Path
    search: str  # hash of all that decides the counts
    ranked: str  # hash of all that decides the ranking
    counts: dict[int, PairedCounts] = field(default_factory=dict)
    ranking: Ranking | None = None
    seconds: float = 0.0

    @classmethod
    def open(cls, path: Path, ranking: Mapping[str, Any], search: Mapping[str, Any]) -> Trials:
        """Those of the search that both mappings decide; none yet where it is another."""
        ranked = sha256_bytes(canonical_json(ranking))
        trials = cls(path, sha256_bytes(canonical_json([ranked, search])), ranked)
        saved = _read(path)
        trials.ranking = _ranking(saved["rankings"].get(ranked))
        if trials.search in saved["searches"]:
            mine = saved["searches"][trials.search]
            trials.counts = {int(k): PairedCounts(**each) for k, each in mine["counts"].items()}
            trials.seconds = mine["seconds"]
        return trials

    def save(self) -> None:
        """Write them beside those of other searches."""
        counts = {
            str(k): {"n": each.n, "lost": each.lost, "won": each.won}
            for k, each in self.counts.items()
        }
        saved = _read(self.path)
        saved["searches"][self.search] = {"counts": counts, "seconds": self.seconds}
        if self.ranking is not None:
            saved["rankings"][self.ranked] = _ranking_json(self.ranking)
        replace_file(self.path, _with_checksum(saved))


def trials_file(bundle: Path) -> Path:
    """Where the trials for a bundle are kept."""
    return bundle.with_name(bundle.name + _SUFFIX)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = path.read_bytes()
        body = json.loads(content)
        saved = {name: dict(body[name]) for name in ("rankings", "searches")}
        intact = content == _with_checksum(saved)
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    return saved if intact else {"rankings": {}, "searches": {}}


def _with_checksum(saved: Mapping[str, Any]) -> bytes:
    body = {**saved, "format": FORMAT, "format_version": FORMAT_VERSION}
    return canonical_json({**body, "checksum": sha256_bytes(canonical_json(body))})


def _ranking_json(ranking: Ranking) -> dict[str, Any]:
    groups = [
        [each.group, each.divergence if math.isfinite(each.divergence) else None]
        for each in ranking.groups
    ]
    return {"rows": ranking.rows, "groups": groups}


def _ranking(saved: Mapping[str, Any] | None) -> Ranking | None:
    if saved is None:
        return None
    groups = tuple(
        Sensitivity(group, math.inf if divergence is None else divergence)
        for group, divergence in saved["groups"]
    )
    return Ranking(groups, saved["rows"])
