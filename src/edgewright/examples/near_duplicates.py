"""Near-duplicate texts: true Jaccard similarity >= 0.8 over word 5-shingles, and none missed.

Words are what white space separates, case folded; a text of fewer than five words is one shingle.
Candidates come from prefix filtering: with shingles sorted rarest first, two sets as similar as
that must share one within a short prefix of each (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma
and Srikant 2007; the shorter indexing prefix is Xiao et al. 2008, "Efficient similarity joins for
near duplicate detection", section 3). Every candidate is verified.

Why not MinHash: it may miss a pair, and then two splits share an article; and rows cut from one
template ("order 123 has arrived ...") are all each other's candidates, 32 million among 8,000 such
rows. The rare prefix skips what a template has in common, and is exact.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS: Final = 5
# Jaccard >= 4/5, kept in integers so that no rounding decides: 5 * shared >= 4 * union.
_NUMERATOR: Final = 4
_DENOMINATOR: Final = 5


class NearDuplicates:
    """The near-duplicates among ``texts``, found once and asked by row (0-based).

    ``components``: lists of rows, each ascending, ordered by first row: every connected component
    of the near-duplicate relation, single rows included.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._starts, self._shingles = _shingle_sets(texts)
        self._sizes = np.diff(self._starts)
        self._parents = list(range(len(texts)))
        for rows, indexed in self._sharing_a_rare_shingle():
            self._unite(rows, indexed)
        components: dict[int, list[int]] = {}
        for row in range(len(texts)):
            components.setdefault(self._root(row), []).append(row)
        self.components: list[list[int]] = list(components.values())

    def pairs(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """All near-duplicate pairs (smaller row first) among ``rows``, which ascend.

        Takes time and memory in proportion to ``len(rows)`` squared when all of them are alike.
        """
        members = np.asarray(rows, dtype=np.int64)
        sizes = self._sizes[members]
        owners = np.repeat(np.arange(len(members)), sizes)
        shingles = np.concatenate([self._set(row) for row in rows])
        _, shingles, counts = np.unique(shingles, return_inverse=True, return_counts=True)
        owners_by_shingle = np.split(
            owners[np.argsort(shingles, kind="stable")], np.cumsum(counts)[:-1]
        )
        found: list[tuple[int, int]] = []
        for index, own in enumerate(np.split(shingles, np.cumsum(sizes)[:-1])):
            holders = np.concatenate([owners_by_shingle[shingle] for shingle in own])
            shared = np.bincount(holders, minlength=len(members))
            near = _similar(shared, sizes + sizes[index] - shared)
            found += [(rows[index], rows[o]) for o in np.flatnonzero(near).tolist() if o > index]
        return found

    def _set(self, row: int) -> NDArray[np.int64]:
        """(shingles of the row,) ascending, rarest first."""
        return self._shingles[self._starts[row] : self._starts[row + 1]]

    def _alike(self, row: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of ``others``, shape (others,), are near-duplicates of ``row``: all at once."""
        own, sizes = self._set(row), self._sizes[others]
        alike = _similar(np.minimum(sizes, len(own)), np.maximum(sizes, len(own)))
        others, sizes = others[alike], sizes[alike]
        if len(others):
            ends = np.cumsum(sizes)
            places = np.arange(ends[-1]) + np.repeat(self._starts[others] - ends + sizes, sizes)
            theirs = self._shingles[places]
            at = np.minimum(np.searchsorted(own, theirs), len(own) - 1)
            shared = np.add.reduceat(own[at] == theirs, ends - sizes, dtype=np.int64)
            alike[alike] = _similar(shared, sizes + len(own) - shared)
        return alike

    def _sharing_a_rare_shingle(self) -> Iterator[tuple[list[int], list[bool]]]:
        """Rows that hold one shingle in their probing prefix, smallest set first, by shingle.

        A pair need be compared only where the smaller holds the shingle in its indexing prefix,
        which the second list tells. Prefix lengths for a set of n: n - ceil(4n/5) + 1 to probe
        and n - ceil(8n/9) + 1 to index, where 8/9 = 2t/(1+t) at t = 4/5.
        """
        sizes = np.repeat(self._sizes, self._sizes)
        rows = np.repeat(np.arange(len(self._sizes)), self._sizes)
        position = np.arange(len(rows)) - np.repeat(self._starts[:-1], self._sizes)
        probing = position < sizes - -(-4 * sizes // 5) + 1
        indexed = position < sizes - -(-8 * sizes // 9) + 1
        shingles, rows, sizes, indexed = (
            values[probing] for values in (self._shingles, rows, sizes, indexed)
        )
        order = np.lexsort((rows, sizes, shingles))
        shingles, rows, indexed = shingles[order], rows[order], indexed[order]
        bounds = np.flatnonzero(np.diff(shingles, prepend=-1, append=-1))
        for start, end in pairwise(bounds.tolist()):
            if end - start > 1:
                yield rows[start:end].tolist(), indexed[start:end].tolist()

    def _unite(self, rows: list[int], indexed: list[bool]) -> None:
        """Join the components of those ``rows`` that are alike; none is compared with its own."""
        clusters: list[list[int]] = []
        for row, is_indexed in zip(rows, indexed, strict=True):
            own = self._root(row)
            apart = [cluster for cluster in clusters if self._root(cluster[0]) != own]
            joined = [cluster for cluster in clusters if self._root(cluster[0]) == own]
            for cluster in self._clusters_alike(row, apart):
                self._parents[self._root(row)] = self._root(cluster[0])
                joined.append(cluster)
            host = joined[0] if joined else []
            for cluster in joined[1:]:
                host += cluster
                cluster.clear()
            if is_indexed:
                host.append(row)
                clusters += [] if joined else [host]
            clusters = [cluster for cluster in clusters if cluster]

    def _clusters_alike(self, row: int, clusters: list[list[int]]) -> list[list[int]]:
        """Those of ``clusters`` that hold a near-duplicate of ``row``.

        Of all clusters the first member is looked at, then the next two, four and so on of those
        that are not found yet: one member mostly tells, and thousands may be alike.
        """
        found: list[list[int]] = []
        start, end = 0, 1
        while clusters:
            shown = [cluster[start:end] for cluster in clusters]
            owners = np.repeat(np.arange(len(shown)), [len(members) for members in shown])
            members = np.fromiter(chain.from_iterable(shown), np.int64, len(owners))
            alike = set(owners[self._alike(row, members)].tolist())
            found += [clusters[owner] for owner in sorted(alike)]
            clusters = [
                cluster
                for owner, cluster in enumerate(clusters)
                if owner not in alike and len(cluster) > end
            ]
            start, end = end, 2 * end + 1
        return found

    def _root(self, row: int) -> int:
        while self._parents[row] != row:
            self._parents[row] = self._parents[self._parents[row]]
            row = self._parents[row]
        return row


def near_duplicate_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """All pairs of rows (0-based, smaller first, sorted) whose texts are near-duplicates."""
    near = NearDuplicates(texts)
    return sorted(pair for rows in near.components if len(rows) > 1 for pair in near.pairs(rows))


def _similar(shared: NDArray[np.int64] | int, union: NDArray[np.int64] | int) -> NDArray[np.bool_]:
    return np.asarray(_DENOMINATOR * shared >= _NUMERATOR * union)


def _shingle_sets(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The set of shingles of each text, as ranks by rarity: (rows + 1,) starts, (total,) ranks.

    The ranks of row r are ``ranks[starts[r]:starts[r + 1]]``, ascending, the rarest first. Two
    different shingles share a rank only if their 64-bit hashes collide.
    """
    words, lengths = _word_numbers(texts)
    ends = np.repeat(np.cumsum(lengths), lengths)
    is_start = np.arange(len(words)) + SHINGLE_WORDS <= ends
    rows = np.repeat(np.arange(len(lengths)), lengths)[is_start]
    hashes = _window_hashes(words)[is_start[: len(words) - SHINGLE_WORDS + 1]]
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    rank_of = np.empty(len(counts), dtype=np.int64)
    rank_of[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    # (row, rank) as one number sorts several times as fast as two keys, or as np.unique.
    members = np.sort(rows * len(counts) + rank_of[inverse])
    rows, ranks = np.divmod(members[np.diff(members, prepend=-1) != 0], max(len(counts), 1))
    sizes = np.bincount(rows, minlength=len(texts))
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), ranks


def _word_numbers(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """All texts' words as numbers from 1, end to end, and (rows,) how many belong to each.

    Texts of fewer words than a shingle are filled up with 0.
    """
    vocabulary: defaultdict[str, int] = defaultdict(count(1).__next__)
    words = array("Q")
    lengths: list[int] = []
    for text in texts:
        numbers = [vocabulary[word] for word in text.casefold().split()]
        numbers += [0] * (SHINGLE_WORDS - len(numbers))
        words.extend(numbers)
        lengths.append(len(numbers))
    return np.array(words, dtype=np.uint64), np.array(lengths, dtype=np.int64)


def _window_hashes(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of every window of five words, mixed as in SplitMix64 (Steele et al. 2014)."""
    windows = max(len(words) - SHINGLE_WORDS + 1, 0)
    hashes = np.zeros(windows, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + windows]
        hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes ^= hashes >> np.uint64(31)
    return hashes
