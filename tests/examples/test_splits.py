"""Shares, and where rows are placed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.errors import ConfigError
from edgewright.examples.near_duplicates import NearDuplicates
from edgewright.examples.splits import (
    QUARANTINE,
    SPLITS,
    Placement,
    SplitShares,
    foremost,
    hash_position,
)


def sentence(start: int, words: int = 30) -> str:
    return " ".join(f"w{number}" for number in range(start, start + words))


def test_the_default_shares_are_56_8_4_4_20_8() -> None:
    assert str(SplitShares()) == "56/8/4/4/20/8"
    assert SplitShares.parse("56/8/4/4/20/8") == SplitShares()


@given(st.lists(st.integers(1, 100), min_size=5, max_size=5))
def test_whole_percentages_survive_parsing_and_printing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 100]
    text = "/".join(str(high - low) for low, high in pairwise(edges))
    assert str(SplitShares.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "six percentages"),
        ("80/10/10", "six percentages"),
        ("56/8/4/4/20/9", "sum to 100"),
        ("a/8/4/4/20/8", "six percentages"),
        ("nan/8/4/4/20/8", "six percentages"),
        ("0/64/4/4/20/8", "the share of train is 0"),
        ("120/-44/4/4/8/8", "the share of validation is -0.44"),
    ],
)
def test_shares_that_cannot_be_are_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SplitShares.parse(text)


def test_leaving_out_splits_keeps_the_proportions_of_the_others() -> None:
    shares = SplitShares.parse("50/10/10/10/10/10").without({"validation", "test"})
    assert (shares.validation, shares.test) == (0, 0)
    assert shares.train == pytest.approx(5 * shares.certify)
    assert SplitShares.parse(str(shares)).train == pytest.approx(shares.train, rel=1e-5)


@given(st.integers(), st.text())
def test_every_id_has_a_position_below_one_and_a_split(seed: int, example_id: str) -> None:
    position = hash_position(seed, example_id.encode("utf-8", "ignore").hex())
    assert 0 <= position < 1
    assert SplitShares().split_at(position) in SPLITS


def test_the_end_of_the_scale_belongs_to_a_split_that_has_a_share() -> None:
    shares = SplitShares(0.1 + 0.2, 0.1 + 0.2, 0.4 - 1e-9, 0, 0, 0)
    assert shares.split_at(1 - 2**-53) in ("train", "validation", "calibrate")


def test_rows_come_to_the_splits_in_their_shares() -> None:
    shares = SplitShares()
    count = Counter(shares.split_at(hash_position(7, f"id{n}")) for n in range(50_000))
    for name in SPLITS:
        share = getattr(shares, name)
        assert abs(count[name] - 50_000 * share) < 5 * (50_000 * share * (1 - share)) ** 0.5


def test_the_seed_and_the_id_decide_together() -> None:
    assert hash_position(1, "a") != hash_position(2, "a")
    assert hash_position(1, "a") == hash_position(1, "a")


def test_a_row_given_twice_stays_in_the_split_held_out_longest() -> None:
    assert foremost("validation", "test") == "test"
    assert foremost(None, "validation") == "validation"
    assert foremost(None, None) is None


def place(
    texts: list[str],
    placed: list[tuple[str, str]],
    given: list[str | None] | None = None,
) -> Placement:
    ids = [f"id{number}" for number in range(len(texts))]
    new = len(texts) - len(placed)
    placement = Placement(ids, placed, given or [None] * new, shares=SplitShares(), seed=0)
    placement.place(NearDuplicates(texts))
    return placement


def test_a_near_duplicate_joins_the_split_and_group_of_the_earlier_row() -> None:
    placement = place([sentence(0), sentence(1)], [("certify", "id0")])
    assert placement.new_rows() == [("certify", "id0")]


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    placement = place([sentence(0), sentence(2), sentence(4)], [])
    assert len(set(placement.splits)) == 1
    assert set(placement.groups) == {"id0"}


def test_a_row_that_would_bridge_two_splits_is_quarantined() -> None:
    placement = place([sentence(0), sentence(4), sentence(2)], [("train", "id0"), ("test", "id1")])
    assert placement.new_rows() == [(QUARANTINE, "id2")]
    assert (placement.bridging, placement.leaked) == (1, 0)


def test_two_rows_that_bridge_two_splits_between_them_are_parted() -> None:
    """id2 is like the train row, id3 like the test row, and both are like each other."""
    texts = [sentence(0), sentence(6), sentence(2), sentence(4)]
    placement = place(texts, [("train", "id0"), ("test", "id1")])
    assert placement.new_rows() == [("train", "id0"), (QUARANTINE, "id3")]


def test_what_resembles_a_row_given_as_held_out_is_quarantined_not_added_to_it() -> None:
    placement = place([sentence(0), sentence(1), sentence(2)], [], ["test", None, None])
    assert placement.splits == ["test", QUARANTINE, QUARANTINE]
    assert placement.leaked == 2


def test_a_row_beyond_reach_of_the_held_out_one_is_split_by_hash() -> None:
    """id2 resembles only the quarantined id1."""
    placement = place([sentence(0), sentence(2), sentence(4)], [], ["test", None, None])
    assert placement.splits[1] == QUARANTINE
    assert placement.splits[2] == SplitShares().split_at(hash_position(0, "id2"))
    assert placement.groups[2] == "id2"


def test_of_rows_given_to_two_splits_the_one_in_test_stays() -> None:
    placement = place([sentence(0), sentence(1)], [], ["validation", "test"])
    assert placement.splits == [QUARANTINE, "test"]
    assert placement.bridging == 1


class TestComponentsTooLargeToCompare:
    """Four rows in a chain, of which no more than three may be compared."""

    CHAIN: Final = [sentence(0), sentence(2), sentence(4), sentence(6)]

    @pytest.fixture(autouse=True)
    def _three_at_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edgewright.examples.splits.COMPARED_ROWS", 3)

    def test_without_a_conflict_they_go_together_all_the_same(self) -> None:
        placement = place(self.CHAIN, [("search", "id0")])
        assert placement.new_rows() == [("search", "id0")] * 3

    def test_between_two_splits_all_new_rows_are_quarantined(self) -> None:
        placement = place(self.CHAIN, [("train", "id0"), ("test", "id1")])
        assert placement.new_rows() == [(QUARANTINE, "id2"), (QUARANTINE, "id3")]
        assert (placement.bridging, placement.leaked) == (2, 0)

    def test_rows_of_the_foremost_given_split_stay_as_one_group(self) -> None:
        placement = place(self.CHAIN, [], ["validation", "test", None, "test"])
        assert placement.splits == [QUARANTINE, "test", QUARANTINE, "test"]
        assert placement.groups[1] == placement.groups[3] == "id1"
        assert (placement.bridging, placement.leaked) == (0, 2)

    def test_given_rows_beside_placed_ones_of_their_split_join_their_group(self) -> None:
        placement = place(self.CHAIN, [("test", "id0")], ["test", None, None])
        assert placement.new_rows()[0] == ("test", "id0")
        assert placement.leaked == 2

    def test_given_rows_beside_placed_ones_of_another_split_are_quarantined(self) -> None:
        placement = place(self.CHAIN, [("train", "id0")], ["test", None, None])
        assert [split for split, _ in placement.new_rows()] == [QUARANTINE] * 3


def test_train_is_given_a_second_class_when_hashing_left_it_without() -> None:
    texts = [sentence(100 * number) for number in range(8)]
    labels = ["a"] * 4 + ["b"] * 4
    shares = SplitShares(1e-9, 1 - 1e-9, 0, 0, 0, 0)
    placement = Placement([f"id{n}" for n in range(8)], [], [None] * 8, shares=shares, seed=0)
    near = NearDuplicates(texts)
    placement.place(near)
    assert set(placement.splits) == {"validation"}
    assert placement.fill_train(labels, near) == 2
    in_train = {labels[row] for row, split in enumerate(placement.splits) if split == "train"}
    assert in_train == {"a", "b"}


def test_rows_given_as_held_out_are_never_moved_to_train() -> None:
    texts = [sentence(0), sentence(100)]
    placement = Placement(["x", "y"], [], ["test", "test"], shares=SplitShares(), seed=0)
    near = NearDuplicates(texts)
    placement.place(near)
    assert placement.fill_train(["a", "b"], near) == 0
    assert placement.splits == ["test", "test"]
