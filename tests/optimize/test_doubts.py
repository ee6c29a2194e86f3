from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from optimize_outcomes import certified, outcome, standing

from edgewright.optimize.doubts import timing_doubts
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.outcome_json import findings_json
from edgewright.optimize.report import optimize_report


def _noisy(name: str, *ratios: float) -> Standing:
    """Certified, and timed with these ratios to fp32, one for each restart."""
    speed = sorted(ratios)[1]
    plain = standing(name, speed, certified(0))
    return replace(plain, timing=replace(plain.timing, ratios=ratios))


def _run(folder: Path, *standings: Standing, prefer: str = "speed") -> Outcome:
    names = tuple(each.name for each in standings)
    run = outcome(folder, *standings, shipped=names, chosen=names[0])
    return replace(run, config=replace(run.config, prefer=prefer))


def test_who_may_be_faster_than_the_chosen_is_told(tmp_path: Path) -> None:
    run = _run(tmp_path, _noisy("a", 3.0, 2.6, 3.4), _noisy("b", 2.8, 3.1, 2.5))
    (doubt,) = timing_doubts(run)
    assert doubt.startswith("b may be up to ")
    assert "times as fast as a, which was chosen" in doubt
    assert findings_json(run)["doubts"] == [doubt]
    assert doubt in optimize_report(run, "a" * 64).decode()


def test_restarts_that_agree_leave_no_doubt(tmp_path: Path) -> None:
    alike = _run(tmp_path, _noisy("a", 3.0, 2.6, 3.4), _noisy("b", 2.95, 2.55, 3.35))
    assert timing_doubts(alike) == []
    apart = _run(tmp_path, _noisy("a", 3.0, 2.9, 3.1), _noisy("b", 2.0, 1.9, 2.1))
    assert timing_doubts(apart) == []


@pytest.mark.parametrize(("prefer", "doubts"), [("speed", 1), ("size", 0)])
def test_who_is_lost_in_the_noise_of_fp32_is_told_where_speed_counts(
    tmp_path: Path, prefer: str, doubts: int
) -> None:
    wide = standing("wide", 2.5)
    wide = replace(wide, contender=replace(wide.contender, speedup_low=0.8, speedup_high=7.0))
    told = timing_doubts(_run(tmp_path, _noisy("a", 3.0, 2.9, 3.1), wide, prefer=prefer))
    words = "wide was 2.50 (0.80–7.00) times as fast as fp32, an interval so wide"
    assert [each.startswith(words) for each in told] == [True] * doubts
