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
FORMAT_VERSION: Final = 1
_SUFFIX: Final = ".trials.json"


@dataclass
class Trials:
    """One search's trials.

    Attributes:
        counts: rows lost and won with the first k groups in float, by k.
        ranking: of its groups; None before they were ranked.
        seconds: that the search has taken so far, earlier runs included.
    """

    path: Path
    key: str
    counts: dict[int, PairedCounts] = field(default_factory=dict)
    ranking: Ranking | None = None
    seconds: float = 0.0

    @classmethod
    def open(cls, path: Path, decided_by: Mapping[str, Any]) -> Trials:
        """Those of the search that ``decided_by`` describes; none yet where it is another."""
        key = sha256_bytes(canonical_json(decided_by))
        saved = _read(path).get(key)
        trials = cls(path, key)
        if saved is not None:
            trials.counts = {int(k): PairedCounts(**each) for k, each in saved["counts"].items()}
            trials.ranking = _ranking(saved["ranking"])
            trials.seconds = saved["seconds"]
        return trials

    def save(self) -> None:
        """Write them beside those of other searches."""
        mine = {
            "counts": {
                str(k): {"n": each.n, "lost": each.lost, "won": each.won}
                for k, each in self.counts.items()
            },
            "ranking": _ranking_json(self.ranking),
            "seconds": self.seconds,
        }
        searches = {**_read(self.path), self.key: mine}
        replace_file(self.path, _with_checksum(searches))


def trials_file(bundle: Path) -> Path:
    """Where the trials for a bundle are kept."""
    return bundle.with_name(bundle.name + _SUFFIX)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        searches = json.loads(content)["searches"]
        intact = content == _with_checksum(searches)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(searches) if intact else {}


def _with_checksum(searches: Mapping[str, Any]) -> bytes:
    checksum = sha256_bytes(canonical_json(searches))
    body = {"format": FORMAT, "format_version": FORMAT_VERSION, "checksum": checksum}
    return canonical_json({**body, "searches": searches})


def _ranking_json(ranking: Ranking | None) -> dict[str, Any] | None:
    if ranking is None:
        return None
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
