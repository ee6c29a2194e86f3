"""What a PromQL expression names: metrics, and the labels it selects or groups by."""

from __future__ import annotations

import re
from typing import NamedTuple

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}")
_LABEL = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)")
_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b")
_OPERATORS = {"and", "or", "unless", "bool", "by", "without", "on", "ignoring", "inf", "nan"}


class Named(NamedTuple):
    """``metrics`` with the labels that each is selected by, and the labels that are grouped by."""

    metrics: dict[str, set[str]]
    grouped: set[str]


def named(expression: str) -> Named:
    """By its text alone: no functions are checked, no types."""
    text = _RANGE.sub("", _STRING.sub('""', expression))
    grouped = {
        label.strip() for labels in _GROUPING.findall(text) for label in labels.split(",")
    } - {""}
    text = _GROUPING.sub(" ", text)
    metrics: dict[str, set[str]] = {}
    for metric, matchers in _SELECTOR.findall(text):
        metrics.setdefault(metric, set()).update(_LABEL.findall(matchers))
    rest = _SELECTOR.sub(" ", text)
    for match in _WORD.finditer(rest):
        called = re.match(r"\s*\(", rest[match.end() :])
        if match[0].lower() not in _OPERATORS and not called and not _within_number(rest, match):
            metrics.setdefault(match[0], set())
    return Named(metrics, grouped)


def _within_number(text: str, match: re.Match[str]) -> bool:
    return match.start() > 0 and text[match.start() - 1].isdigit()
