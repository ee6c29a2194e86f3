"""Texts that resemble each other, and their pairs found by comparing all with all."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

from hypothesis import strategies as st

WORDS = [f"w{number}" for number in range(40)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))}


def alike(one: str, other: str) -> bool:
    ours, theirs = shingles(one), shingles(other)
    return Fraction(len(ours & theirs), len(ours | theirs)) >= Fraction(4, 5)


def pairs_by_brute_force(texts: Sequence[str]) -> list[tuple[int, int]]:
    rows = range(len(texts))
    return [(a, b) for a, b in combinations(rows, 2) if alike(texts[a], texts[b])]


@st.composite
def families(draw: st.DrawFn) -> list[str]:
    """Texts of a few families; members differ from their ancestor by a word here and there."""
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        ancestor = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=45))
        for _ in range(draw(st.integers(1, 6))):
            words = list(ancestor)
            for _ in range(draw(st.integers(0, 3))):
                at = draw(st.integers(0, len(words)))
                words[at : at + draw(st.integers(0, 1))] = [draw(st.sampled_from(WORDS))]
            texts.append(" ".join(words))
    return draw(st.permutations(texts))
