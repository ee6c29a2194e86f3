"""What one run found out as JSON: what ``--json`` prints and what a bundle keeps as measured."""

from __future__ import annotations

from typing import Any, Final

from edgewright.optimize.doubts import timing_doubts
from edgewright.optimize.gain_split import gain_steps
from edgewright.optimize.losses import loss_by_class, loss_by_length
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.reasons import why_not

_HEADLINE: Final = (
    "variant", "backend", "verdict", "loss_upper_bound", "certify_n", "needed_n", "speedup",
    "speedup_interval", "size_ratio",
)  # fmt: skip


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    folder = outcome.config.output if outcome.shipped else outcome.config.rejected
    return {
        **_headline(outcome),
        "published": bool(outcome.shipped),
        "folder": str(folder),
        "prefer": outcome.config.prefer,
        "budget": outcome.config.max_drop,
        "confidence": outcome.config.confidence,
        "seconds": sum(outcome.seconds.values()),
        "seconds_by_stage": dict(outcome.seconds),
        "candidates": [candidate_json(outcome, each) for each in outcome.standings],
        "skipped": [{"name": name, "reason": reason} for name, reason in outcome.skipped],
        **findings_json(outcome),
    }


def measurements_json(outcome: Outcome) -> dict[str, Any]:
    """What a bundle and a rejection keep beside the manifest."""
    return {
        "host": outcome.host.to_json(),
        "variants": {each.name: each.timing.to_json() for each in outcome.standings},
        "why_not": {each.name: why_not(outcome, each) for each in outcome.standings},
        "frontier": [each.name for each in outcome.frontier],
        "seconds": dict(outcome.seconds),
        "skipped": [list(each) for each in outcome.skipped],
        **findings_json(outcome),
    }


def findings_json(outcome: Outcome) -> dict[str, Any]:
    """What the report shows in tables and figures of the whole run and of the foremost candidate.

    Losses are counted on the search split; no certify row is part of them.
    """
    shown = outcome.foremost or outcome.baseline
    return {
        "workload": outcome.workload,
        "threads": outcome.config.threads,
        "doubts": timing_doubts(outcome),
        "against": {"certify": outcome.against.value, "search": outcome.search_against.value},
        "placement": {name: each.to_json() for name, each in outcome.placements.items()},
        "graph_work": _graph_work(outcome),
        "gain": [each.to_json() for each in gain_steps(outcome, shown)],
        "mixed": [each.to_json() for each in outcome.mixed],
        "features": {name: each.to_json() for name, each in outcome.nearness.items()},
        "losses": {
            "candidate": shown.name,
            "by_class": [each.to_json() for each in loss_by_class(outcome, shown)],
            "by_length": [each.to_json() for each in loss_by_length(outcome, shown)],
        },
    }


def candidate_json(outcome: Outcome, standing: Standing) -> dict[str, Any]:
    """One row of the table of candidates."""
    contender = standing.contender
    return {
        "name": standing.name,
        "backend": contender.backend,
        "precision": standing.precision,
        "row_by_row": standing.row_by_row,
        "size_bytes": contender.size_bytes,
        "search_n": contender.search.n,
        "search_accuracy": outcome.search_accuracy(standing),
        "search_lost": contender.search.lost,
        "search_won": contender.search.won,
        "search_changed": len(outcome.search_changed(standing)),
        **standing.timing.to_json(),
        "faster": contender.is_faster,
        "certificate": standing.certificate.to_json() if standing.certificate else None,
        "shipped": standing.name in outcome.shipped,
        "chosen": standing.name == outcome.chosen,
        "on_frontier": standing in outcome.frontier,
        "why_not": why_not(outcome, standing),
    }


def _headline(outcome: Outcome) -> dict[str, Any]:
    foremost = outcome.foremost
    if foremost is None or foremost.certificate is None:
        return dict.fromkeys(_HEADLINE)
    contender, given = foremost.contender, foremost.certificate
    return {
        "variant": foremost.name,
        "backend": contender.backend,
        "verdict": given.verdict.value,
        "loss_upper_bound": given.loss_upper_bound,
        "certify_n": given.n,
        "needed_n": given.needed_n,
        "speedup": contender.speedup,
        "speedup_interval": [contender.speedup_low, contender.speedup_high],
        "size_ratio": outcome.size_ratio(foremost),
    }


def _graph_work(outcome: Outcome) -> list[dict[str, Any]]:
    """The passes in their order; a speed-up is that of all passes up to this one."""
    if outcome.graph_work is None:
        return []
    return [
        {
            "pass": each.name,
            "applied": each.applied,
            "left_out": each.left_out,
            "nodes_removed": each.removed,
            "max_difference": each.max_difference,
            "timing": outcome.gains[each.name].to_json() if each.name in outcome.gains else None,
        }
        for each in outcome.graph_work.passes
    ]
