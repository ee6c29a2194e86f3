"""The rules of ``--strict``: what the audit may find only where training is to be refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.errors import DataError
from edgewright.finetune.findings import MAX_GROUP_SHARE, Found, cut, has_dominant_group
from edgewright.finetune.table_audit import TableAudit
from edgewright.kinds import IMAGE, TEXT, Kind

MAX_IMBALANCE: Final = 20.0  # rows of the largest class for each of the smallest
NEEDS_EVERY_CLASS: Final = ("train", "validation", "certify")
_SHOWN: Final = 3


@dataclass(frozen=True)
class Rule:
    """``check`` words the violation with its count and first places; None where there is none."""

    name: str
    refuses: str
    check: Callable[[TableAudit], str | None]
    kind: Kind | None = None  # of examples that it is for; None: any


def rules_of(kind: Kind) -> list[Rule]:
    """The rules for examples of this kind."""
    return [rule for rule in RULES if rule.kind in (None, kind)]


def violations(audit: TableAudit) -> dict[str, str]:
    """Rule -> what violates it, in words."""
    found = {rule.name: rule.check(audit) for rule in rules_of(audit.kind)}
    return {name: words for name, words in found.items() if words is not None}


def refuse_violations(audit: TableAudit) -> None:
    """Stop before anything is trained or written.

    Raises:
        DataError: every rule that is violated, with counts and the first places.
    """
    found = violations(audit)
    if found:
        lines = [f"  {name}: {words}" for name, words in found.items()]
        raise DataError(
            "--strict refuses these examples:\n"
            + "\n".join(lines)
            + "\ncorrect them, or run without --strict to train all the same"
        )


def _conflicting(audit: TableAudit) -> str | None:
    return _told(audit.conflicts, audit.kind.name, "with more than one label")


def _twins(audit: TableAudit) -> str | None:
    if not audit.label_twins:
        return None
    return _first(
        [" and ".join(f"'{name}'" for name in names) for names in audit.label_twins],
        len(audit.label_twins),
        "label twin",
        "(one class in two spellings?)",
    )


def _leakage(audit: TableAudit) -> str | None:
    told = _told(audit.leaks, audit.kind.name, "given to two splits")
    if not audit.near_leaks:
        return told
    near = f"{audit.near_leaks} row{_s(audit.near_leaks)} resembling one given to another split"
    return near if told is None else f"{told}; {near}"


def _empty(audit: TableAudit) -> str | None:
    return _told(audit.empty, "text", "without a visible character")


def _blank(audit: TableAudit) -> str | None:
    return _told(audit.empty, "image", "of one colour")


def _absent(audit: TableAudit) -> str | None:
    absent = [
        f"{split} has no {', '.join(audit.absent[split][:_SHOWN])}"
        + (f" nor {len(audit.absent[split]) - _SHOWN} more" * (len(audit.absent[split]) > _SHOWN))
        for split in NEEDS_EVERY_CLASS
        if audit.absent.get(split)
    ]
    return "; ".join(absent) or None


def _imbalance(audit: TableAudit) -> str | None:
    if audit.imbalance <= MAX_IMBALANCE:
        return None
    most, least = audit.commonest, audit.rarest
    rows = audit.class_rows
    return (
        f"{rows[most]} rows of {most} and {rows[least]} of {least}; 1 in {MAX_IMBALANCE:g} is asked"
    )


def _group(audit: TableAudit) -> str | None:
    rows = sum(audit.rows.values())
    if not has_dominant_group(audit.largest_group, rows):
        return None
    share = audit.largest_group / rows
    return f"one group of near-duplicates holds {audit.largest_group} rows, {share:.0%} of all"


def _told(found: Found, noun: str, words: str) -> str | None:
    if not found.count:
        return None
    places = [
        f"{', '.join(group.places[:2]) or group.split} ('{cut(group.text, 40)}': "
        f"{', '.join(f'{label} {count}' for label, count in group.labels.items())})"
        for group in found.worst
    ]
    return _first(places, found.count, noun, words)


def _first(places: Sequence[str], count: int, noun: str, words: str) -> str:
    told = f"{count} {noun}{_s(count)} {words}"
    shown = "; ".join(places[:_SHOWN])
    more = f"; and {count - _SHOWN} more" if places and count > _SHOWN else ""
    return f"{told}: {shown}{more}" if shown else told


def _s(count: int) -> str:
    return "" if count == 1 else "s"


RULES: Final = (
    Rule("conflicting-labels", "a text or image that comes with more than one label",
         _conflicting),
    Rule("label-twins", "labels alike but for case, spacing or Unicode form", _twins),
    Rule("leakage", "a text or image, or two much alike, given to different splits", _leakage),
    Rule("empty-text", "a text in which nothing can be seen", _empty, TEXT),
    Rule("blank-image", "an image of one colour", _blank, IMAGE),
    Rule("absent-class", "train, validation or certify without a row of some class", _absent),
    Rule("imbalance", f"more than {MAX_IMBALANCE:g} rows of one class to one of another",
         _imbalance),
    Rule("dominant-group", f"near-duplicates of each other in over {MAX_GROUP_SHARE:.0%} of the "
         "rows", _group),
)  # fmt: skip
