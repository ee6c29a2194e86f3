"""What one process counted of one load, and the sum over the processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgewright.bench.histogram import Histogram

# gRPC's code of a call that the server turned away, being full.
REFUSED = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True)
class Window:
    """When a load runs, in seconds of the machine's monotonic clock, which its processes share.

    What is due, or in a closed loop sent, from ``measured_from`` to ``end`` is measured.
    """

    start: float
    measured_from: float
    end: float

    @property
    def middle(self) -> float:
        """Where the second half of what is measured begins."""
        return (self.measured_from + self.end) / 2


@dataclass(frozen=True)
class Failure:
    """How a call ended that was not answered."""

    code: str  # "UNAVAILABLE"
    reason: str  # of google.rpc.ErrorInfo, where the server sent one
    message: str


@dataclass
class Failures:
    """Calls that ended alike."""

    message: str  # of the first
    first_s: float  # when it ended, from the start of what is measured
    last_s: float
    count: int = 1

    def add(self, other: Failures) -> None:
        """Count another's too."""
        if other.first_s < self.first_s:
            self.message, self.first_s = other.message, other.first_s
        self.last_s = max(self.last_s, other.last_s)
        self.count += other.count


@dataclass(frozen=True)
class Effort:
    """What a process needed for itself while it measured, as shares of that time."""

    cpu: float = 0.0  # of one core
    waited: float = 0.0  # ready to run, and without a core


@dataclass
class Tally:
    """Counts of the calls that were due in the window.

    Latency is in seconds from when a call was due ("response") and from when it was sent
    ("service"), of the calls that were answered; in a closed loop the two are the same.
    """

    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    halves: tuple[Histogram, Histogram] = field(
        default_factory=lambda: (Histogram(), Histogram())
    )  # of the response times, by when calls were due
    lag: Histogram = field(default_factory=Histogram)  # of the sends that nothing but us delayed
    failures: dict[tuple[str, str], Failures] = field(default_factory=dict)  # by code and reason
    held_back: int = 0  # sent late, since as many calls as are allowed were in flight
    unsent: int = 0  # due, and not sent when the time was over
    unfinished: int = 0  # sent, and broken off by the user
    # Ended within the window, whenever they were due: what throughput is made of, by half.
    answered_within: list[int] = field(default_factory=lambda: [0, 0])
    failed_within: int = 0
    efforts: list[Effort] = field(default_factory=list)  # one a process

    @property
    def answered(self) -> int:
        """Calls due in the window that were answered, be it after it."""
        return self.response.count

    @property
    def refused(self) -> int:
        """Those that the server turned away."""
        return sum(each.count for key, each in self.failures.items() if key[0] == REFUSED)

    @property
    def failed(self) -> int:
        """Those that ended in any other error."""
        return sum(each.count for key, each in self.failures.items() if key[0] != REFUSED)

    @property
    def due(self) -> int:
        """All calls that were due in the window."""
        ended = self.answered + self.refused + self.failed
        return ended + self.unsent + self.unfinished

    def ended(self, window: Window, due: float, sent: float, now: float) -> None:
        """A call was answered."""
        if window.measured_from <= now < window.end:
            self.answered_within[now >= window.middle] += 1
        if window.measured_from <= due < window.end:
            self.response.record(now - due)
            self.service.record(now - sent)
            self.halves[due >= window.middle].record(now - due)

    def broke(self, window: Window, due: float, failure: Failure, now: float) -> None:
        """A call ended in an error."""
        if window.measured_from <= now < window.end:
            self.failed_within += 1
        if window.measured_from <= due < window.end:
            at = now - window.measured_from
            self._count(failure.code, failure.reason, Failures(failure.message, at, at))

    def add(self, other: Tally) -> None:
        """Count all that another process has counted."""
        pairs = (
            (self.response, other.response),
            (self.service, other.service),
            (self.lag, other.lag),
            *zip(self.halves, other.halves, strict=True),
        )
        for mine, its in pairs:
            mine.add(its)
        for (code, reason), failures in other.failures.items():
            self._count(code, reason, failures)
        self.held_back += other.held_back
        self.unsent += other.unsent
        self.unfinished += other.unfinished
        self.failed_within += other.failed_within
        for half, count in enumerate(other.answered_within):
            self.answered_within[half] += count
        self.efforts += other.efforts

    def _count(self, code: str, reason: str, failures: Failures) -> None:
        known = self.failures.get((code, reason))
        if known is None:
            self.failures[code, reason] = failures
        else:
            known.add(failures)
