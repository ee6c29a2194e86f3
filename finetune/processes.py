"""The processes that train together, as each of them knows itself; as it stands here, one alone.

All run the same code on the same examples, and differ in three things: each computes its own share
of the rows, what a clock or a disk has a say in is decided by the first and told to the others, and
the first alone audits, writes and speaks. ``process_group`` connects several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from edgewright.errors import ConfigError

if TYPE_CHECKING:  # the command line reads what is decided before it needs torch
    import torch
    from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of its run.

    Every method but ``mine`` and ``is_first`` must be called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0, which is the first.
        count: of all of them.
        local: of those on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that decides, writes and speaks."""
        return self.rank == 0

    @property
    def mine(self) -> slice:
        """The share of a sequence that this process computes: every ``count``-th of it.

        Rows come sorted by length, so that shares are of like work.
        """
        return slice(self.rank, None, self.count)

    def by_first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the first process, which alone does it."""
        return work()

    def gather(self, own: T) -> list[T]:
        """What each process has, by rank."""
        return [own]

    def add_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """Give every process the sum of all gradients, in place; returns the sum of the losses.

        A parameter without a gradient in any process is left without one.
        """
        return loss

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the numbers of the first, in place."""

    def collect(self, shares: Sequence[T]) -> list[T]:
        """What was computed of a sequence's shares ``mine``, in the order of that sequence."""
        parts = self.gather(shares)
        total = sum(len(part) for part in parts)
        return [parts[place % self.count][place // self.count] for place in range(total)]

    def refuse_unlike(self, own: Mapping[str, object]) -> None:
        """Compare what must be the same in every process, by name.

        Raises:
            ConfigError: something is not; told by all of them.
        """
        first, *others = self.gather(own)
        faults = [
            f"process {rank} of {self.count} has other {name} than process 0 "
            f"({theirs.get(name)}, and {first.get(name)}); give all of them the same files, "
            "options and packages"
            for rank, theirs in enumerate(others, 1)
            for name in sorted({*first, *theirs})
            if theirs.get(name) != first.get(name)
        ]
        if faults:
            raise ConfigError(faults)


ALONE: Final = Processes()
