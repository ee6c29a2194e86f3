"""Six splits, and the rules by which a row comes into one of them and stays there.

    train       fitting
    validation  early stopping, depth choice
    calibrate   quantisation ranges
    search      ranking of variants
    certify     opened once, to prove the bound
    test        the figures told to the user

A row without a near-duplicate goes where the hash of seed and id points. Rows alike go together:
to the split of the rows already placed that they resemble, else where the hash of the first of
them points. "First" is by id, so the order of a file decides nothing. A row that resembles rows
of two splits is quarantined, and so is one that resembles a row given as held out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Final, Protocol

from edgewright.errors import ConfigError
from edgewright.tables.columns import SPLITS

QUARANTINE: Final = "quarantine"
# Where rows given to different splits are alike, the one whose split is named first stays.
_PRECEDENCE: Final = ("test", "certify", "search", "calibrate", "validation")
# Larger components are not compared row by row (see Near.pairs).
COMPARED_ROWS: Final = 1024


class Near(Protocol):
    """Which rows are alike."""

    components: list[list[int]]  # connected ones, each ascending, ordered by first row

    def pairs(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """All pairs (smaller row first) that are alike among ``rows``, which ascend."""
        ...


@dataclass(frozen=True)
class SplitShares:
    """The share of rows each split gets, summing to 1."""

    train: float = 0.56
    validation: float = 0.08
    calibrate: float = 0.04
    search: float = 0.04
    certify: float = 0.20
    test: float = 0.08

    def __post_init__(self) -> None:
        shares = dict(zip(SPLITS, astuple(self), strict=True))
        faults = [
            f"the share of {name} is {share:g}, expected 0 to 1"
            for name, share in shares.items()
            if not 0 <= share <= 1
        ]
        if not faults and abs(sum(shares.values()) - 1) > 1e-6:
            faults.append(f"the shares of the splits sum to {sum(shares.values()):g}, expected 1")
        if faults:
            raise ConfigError(faults)

    @classmethod
    def parse(cls, text: str) -> SplitShares:
        """Read "56/8/4/4/20/8": percentages in the order of ``SPLITS``, summing to 100.

        Raises ConfigError on anything else.
        """
        try:
            shares = [float(part) for part in text.split("/")]
        except ValueError:
            shares = []
        if len(shares) != len(SPLITS) or not abs(sum(shares) - 100) < 0.01:
            raise ConfigError(
                f"splits '{text}': expected six percentages that sum to 100, for "
                f"{'/'.join(SPLITS)}, such as {cls()}"
            )
        if shares[0] == 0:
            raise ConfigError("the share of train is 0, so there would be nothing to learn from")
        return cls(*(share / sum(shares) for share in shares))

    def __str__(self) -> str:
        return "/".join(f"{100 * share:.6g}" for share in astuple(self))

    def without(self, names: Collection[str]) -> SplitShares:
        """The shares when nothing is to go to the splits ``names``, in the same proportions."""
        left = {n: 0.0 if n in names else getattr(self, n) for n in SPLITS}
        return SplitShares(**{name: share / sum(left.values()) for name, share in left.items()})

    def split_at(self, position: float) -> str:
        """The split at ``position``, 0 <= position < 1, when the shares are laid end to end."""
        for name, end in zip(SPLITS, accumulate(astuple(self)), strict=True):
            if position < end:
                return name
        return max(SPLITS, key=lambda name: float(getattr(self, name)))  # ends at 1 - 1e-16


def hash_position(seed: int, example_id: str) -> float:
    """A number in [0, 1), uniform over ids: the first 53 bits of SHA-256 of "seed:id"."""
    digest = sha256(f"{seed}:{example_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def foremost(one: str | None, other: str | None) -> str | None:
    """Of two held-out splits that one row is given to, the one it stays in."""
    return min(filter(None, (one, other)), key=_PRECEDENCE.index, default=None)


class Placement:
    """Puts new rows into splits beside rows that are already in theirs, which stay.

    Rows are numbered 0-based, placed ones first, the new ones after them sorted by id.

    Attributes:
        splits: (rows,) a name of SPLITS or ``quarantine``; None while a row is not placed.
        groups: (rows,) the id of the first row of the near-duplicate group.
        bridging: how many new rows are quarantined because they resemble rows of two splits.
        leaked: how many, because they resemble a row given as held out.
    """

    def __init__(
        self,
        ids: Sequence[str],
        placed: Sequence[tuple[str, str]],
        given: Sequence[str | None],
        *,
        shares: SplitShares,
        seed: int,
    ) -> None:
        """Prepare to place the rows that follow the placed ones.

        Args:
            ids: (rows,) all ids.
            placed: (placed rows,) (split, group) of each row already placed, none quarantined.
            given: (new rows,) the held-out split each new row was given to, if any.
            shares: of the rows that resemble nothing.
            seed: of the hash that places them.
        """
        new = [None] * len(given)
        self.ids = ids
        self.splits: list[str | None] = [*(split for split, _ in placed), *new]
        self.groups: list[str] = [*(group for _, group in placed), *ids[len(placed) :]]
        self.given: list[str | None] = [*([None] * len(placed)), *given]
        self.bridging = 0
        self.leaked = 0
        self._first_new = len(placed)
        self._shares = shares
        self._seed = seed

    def place(self, near: Near) -> None:
        """Place every new row; ``near`` holds all rows in the same order."""
        for rows in near.components:
            new = [row for row in rows if self.splits[row] is None]
            anchors = {split for row in rows if (split := self.splits[row]) is not None}
            given = {split for row in new if (split := self.given[row]) is not None}
            if not new:
                continue
            if not given and len(anchors) <= 1:
                self._place_together(rows, new)
            elif len(rows) <= COMPARED_ROWS:
                self._place_one_by_one(rows, near.pairs(rows))
            else:
                self._place_unseen(rows, new, given)

    def new_rows(self) -> list[tuple[str, str]]:
        """(split, group) of each new row, once placed."""
        new = slice(self._first_new, None)
        return [
            (split or QUARANTINE, group)
            for split, group in zip(self.splits[new], self.groups[new], strict=True)
        ]

    def fill_train(self, labels: Sequence[str], near: Near) -> int:
        """Move rows into train until it has two classes, and return how many moved.

        Only tiny tables need it. What moves are whole components of new rows, none given or
        quarantined, in the order of their hash. ``labels``: (rows,).
        """
        learnt = {labels[row] for row, split in enumerate(self.splits) if split == "train"}
        moved = 0
        for rows in sorted(filter(self._is_movable, near.components), key=self._component_hash):
            gained = {labels[row] for row in rows} - learnt
            if len(learnt) < 2 and gained:
                learnt |= gained
                moved += len(rows)
                for row in rows:
                    self.splits[row] = "train"
        return moved

    def _is_movable(self, rows: list[int]) -> bool:
        return all(
            row >= self._first_new and not self.given[row] and self._is_placed(row) for row in rows
        )

    def _component_hash(self, rows: list[int]) -> float:
        return hash_position(self._seed, self.ids[rows[0]])

    def _by_hash(self, row: int) -> str:
        return self._shares.split_at(hash_position(self._seed, self.ids[row]))

    def _place_together(self, rows: list[int], new: list[int]) -> None:
        first = rows[0]
        split = self.splits[first] or self._by_hash(first)
        for row in new:
            self.splits[row], self.groups[row] = split, self.groups[first]

    def _place_one_by_one(self, rows: list[int], pairs: list[tuple[int, int]]) -> None:
        """Place rows that touch several splits, or given rows: each by its own neighbours."""
        neighbours: dict[int, list[int]] = {row: [] for row in rows}
        for one, other in pairs:
            neighbours[one].append(other)
            neighbours[other].append(one)
        new = [row for row in rows if self.splits[row] is None]
        given = sorted((r for r in new if self.given[r]), key=lambda r: (self._rank(r), r))
        for row in given:
            self._place_row(row, neighbours[row])
        waiting = [row for row in new if not self.given[row]]
        for row in waiting:
            if any(self.given[n] and self._is_placed(n) for n in neighbours[row]):
                self.splits[row] = QUARANTINE
                self.leaked += 1
        while waiting := [row for row in waiting if self.splits[row] is None]:
            touching = (row for row in waiting if any(map(self._is_placed, neighbours[row])))
            row = next(touching, waiting[0])
            self._place_row(row, neighbours[row])

    def _place_row(self, row: int, neighbours: list[int]) -> None:
        around = sorted(filter(self._is_placed, neighbours))
        splits = {split for n in around if (split := self.splits[n]) is not None}
        wanted = self.given[row]
        if len(splits | ({wanted} if wanted else set())) > 1:
            self.splits[row] = QUARANTINE
            self.bridging += 1
            return
        self.splits[row] = wanted or next(iter(splits), None) or self._by_hash(row)
        if around:
            self.groups[row] = self.groups[around[0]]

    def _place_unseen(self, rows: list[int], new: list[int], given: set[str]) -> None:
        """A component too large to compare row by row: at most one given split's rows stay."""
        kept = min(given, key=_PRECEDENCE.index) if given else None
        stays = {self.splits[row] for row in rows} - {None} <= {kept}
        staying = [row for row in new if stays and self.given[row] == kept]
        first = rows[0] if self._is_placed(rows[0]) else staying[0] if staying else None
        for row in new:
            self.splits[row] = QUARANTINE
        for row in staying:
            self.splits[row] = kept
            self.groups[row] = self.groups[first] if first is not None else self.groups[row]
        if given:
            self.leaked += len(new) - len(staying)
        else:
            self.bridging += len(new)

    def _rank(self, row: int) -> int:
        return _PRECEDENCE.index(self.given[row] or _PRECEDENCE[-1])

    def _is_placed(self, row: int) -> bool:
        return self.splits[row] not in (None, QUARANTINE)
