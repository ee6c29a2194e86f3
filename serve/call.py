"""One caller's texts or images, from admission to the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.preprocess import Row as EncodedRow
from edgewright.serve.pace import Load


class BatchModel(Protocol):
    """What compute needs of a model. Its methods are called from several threads at once."""

    @property
    def name(self) -> str:
        """For messages and metrics."""
        ...

    @property
    def row_by_row(self) -> bool:
        """Whether its answers depend on a row's neighbours, so that it must have none."""
        ...

    @property
    def instances(self) -> int:
        """How many runs of it may go on at once."""
        ...

    def cost(self, given: Any) -> int:
        """About how much computing one input takes, in units of the model's own, 1 or more.

        Tokens for a text, before it is tokenised; 1 for an image.
        """
        ...

    def encode(self, inputs: Sequence[Any]) -> Sequence[EncodedRow]:
        """One row for each text or decoded image."""
        ...

    def scores(self, rows: Sequence[EncodedRow]) -> NDArray[np.float32]:
        """Softmax scores of shape (rows, classes), from one run."""
        ...

    def scores_with(
        self, rows: Sequence[EncodedRow], extras: Sequence[str]
    ) -> tuple[NDArray[np.float32], Mapping[str, NDArray[np.float32]]]:
        """The scores, and further outputs by name, each of shape (rows, width), from one run."""
        ...


_NOTHING: Final[Mapping[str, NDArray[np.float32]]] = {}


class Answer(NamedTuple):
    """One row's: class indices and their scores, best first, and whether the text was cut."""

    classes: list[int]
    scores: list[float]
    truncated: bool
    extras: Mapping[str, NDArray[np.float32]] = _NOTHING  # what its call asks for, each (width,)


class Encoded(NamedTuple):
    """When a batch was taken and encoded, on the batcher's clock."""

    taken: float
    ended: float


class Run(NamedTuple):
    """When rows were computed together, on the batcher's clock, and how many tokens that was."""

    batch: Encoded  # that they are of
    started: float
    ended: float
    rows: int
    tokens: int  # or whatever ``len`` of a row counts
    padded_tokens: int


class Call:
    """Inputs of one model and the future of their answers.

    It belongs to the event loop. Compute threads read its inputs and whether it is wanted, and
    ``taken`` is the line's.
    """

    __slots__ = (
        "admitted",
        "answers",
        "caller",
        "cost",
        "costs",
        "deadline",
        "decode_s",
        "decode_started",
        "extras",
        "future",
        "inputs",
        "large",
        "load",
        "model",
        "run",
        "taken",
        "ticket",
        "unanswered",
    )

    load: Load  # its model's; set at admission

    def __init__(
        self,
        model: BatchModel,
        inputs: Sequence[Any],
        deadline: float,
        future: asyncio.Future[list[Answer]],
        admitted: float = 0.0,
        extras: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.costs = [model.cost(each) for each in inputs]
        self.cost = sum(self.costs)  # of the rows without an answer
        self.deadline = deadline  # in seconds, on the batcher's clock, as all times here
        self.admitted = admitted
        self.caller = ""  # who asks, on a server that limits callers
        self.extras = extras  # outputs of the model that are answered beside the scores
        self.decode_s = 0.0  # that a thread spent on decoding its images
        self.decode_started = 0.0
        self.future = future
        self.answers: list[Any] = [None] * len(inputs)  # an Answer for each, once computed
        self.unanswered = len(inputs)
        self.large = False  # whether it needs more than one batch
        self.ticket = 0  # its place among all calls, given by the line
        self.taken = 0  # rows handed to compute
        self.run: Run | None = None  # the latest in which rows of it were computed

    def wanted(self, now: float) -> bool:
        """Whether anybody still waits for it, and can have the answer in time."""
        return not self.future.done() and now < self.deadline

    def settle(self, place: int, answer: Answer) -> None:
        """One row is computed; the last one answers the caller."""
        self.cost -= self.costs[place]
        self.answers[place] = answer
        self.unanswered -= 1
        if not self.unanswered:
            self.future.set_result(self.answers)

    def fail(self, error: BaseException) -> None:
        """Tell the caller that there will be no answer."""
        if not self.future.done():
            self.future.set_exception(error)


class Row(NamedTuple):
    """One text or image of a call."""

    call: Call
    place: int  # among the call's inputs

    @property
    def input(self) -> Any:
        """The text itself, or the image as it was decoded."""
        return self.call.inputs[self.place]

    @property
    def cost(self) -> int:
        """As ``BatchModel.cost``."""
        return self.call.costs[self.place]
