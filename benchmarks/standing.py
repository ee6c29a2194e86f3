"""Files side by side: how large, how fast, and what they lose against the PyTorch model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.optimize_job import Served
from edgewright import model_file
from edgewright.backends import get_backend
from edgewright.latency import LEAST_RESTARTS, Effort, InputMaker, Timing, Workload
from edgewright.latency_process import Entrant, measure
from edgewright.metrics import Labels, accuracy_interval
from edgewright.optimize.workshop import Probe, is_batch_invariant
from edgewright.preprocess import Preprocessor, Row
from edgewright.proof.bound import loss_upper_bound
from edgewright.proof.certificate import PairedCounts
from edgewright.proof.host import available_cores
from edgewright.proof.logits import predict_logits

ERROR_RATE: Final = 0.05  # of the bound on the loss, one-sided


@dataclass(frozen=True)
class Entry:
    """A file on a runtime, and who made it."""

    name: str
    title: str
    served: Served

    def entrant(self) -> Entrant:
        """As ``measure`` takes it."""
        served = self.served
        return Entrant(
            self.name, served.backend, Path(served.file), served.options, served.row_by_row
        )


@dataclass(frozen=True)
class HeldOut:
    """Rows that no tool has read, with their labels and the PyTorch model's answers, (rows,)."""

    preprocessor: Preprocessor
    rows: Sequence[Row]
    labels: Labels
    reference: Labels

    def score(self, entry: Entry, threads: int) -> dict[str, Any]:
        """What a file answers as it would be served, against the labels and the model."""
        served = entry.served
        session = get_backend(served.backend).load(
            Path(served.file), threads=threads, options=served.options
        )
        logits = predict_logits(
            session, self.preprocessor, self.rows, one_row_at_a_time=served.row_by_row
        )
        counts = PairedCounts.count(self.labels, self.reference, logits.argmax(axis=1))
        right = int((logits.argmax(axis=1) == self.labels).sum())
        return {
            "n": counts.n,
            "right": right,
            "accuracy": right / counts.n,
            "accuracy_interval": list(accuracy_interval(right, counts.n)),
            "lost": counts.lost,
            "won": counts.won,
            "loss_upper_bound": loss_upper_bound(counts.lost, counts.won, counts.n, ERROR_RATE),
            "size_bytes": model_file.size_bytes(Path(served.file)),
            "batch_invariant": is_batch_invariant(session, Probe(self.preprocessor, self.rows)),
            "row_by_row": served.row_by_row,
            "backend": served.backend,
            "options": dict(served.options),
        }

    def scores(self, entries: Sequence[Entry], threads: int) -> dict[str, dict[str, Any]]:
        """``score`` of each, as many at once as there are cores for."""
        with ThreadPoolExecutor(max(1, available_cores() // threads)) as pool:
            jobs = {each.name: pool.submit(self.score, each, threads) for each in entries}
            return {name: job.result() for name, job in jobs.items()}


@dataclass(frozen=True)
class Race:
    """Every file at one shape of calls, in fresh processes and in turns.

    Attributes:
        fastest: name of the faster of the stock files, which ``timings`` are held against.
        timings: by name.
        failures: why there is no timing, by name.
    """

    fastest: str
    timings: Mapping[str, Timing]
    failures: Mapping[str, str]

    def over(self, name: str, other: str) -> float:
        """How many times as fast a file is as another."""
        return self.timings[name].ratio / self.timings[other].ratio

    def to_json(self, stock: Sequence[str]) -> dict[str, Any]:
        """Timings, and each file's ratio to either stock file."""
        return {
            "fastest_stock": self.fastest,
            "files": {
                name: {
                    **timing.to_json(),
                    "over": {other: self.over(name, other) for other in stock},
                }
                for name, timing in self.timings.items()
            },
            "failures": dict(self.failures),
        }


def race(
    stock: Sequence[Entry],
    others: Sequence[Entry],
    shape: str,
    make_inputs: InputMaker,
    *,
    threads: int,
    effort: Effort,
) -> Race:
    """Time the stock files to see which is the faster, then all against that one.

    Raises:
        BackendUnavailableError: neither stock file can be timed.
    """
    workload = Workload.parse(shape)
    short = replace(effort, budget_s=effort.budget_s / 4, restarts=LEAST_RESTARTS)
    heat = measure(
        [each.entrant() for each in stock], workload, make_inputs, threads=threads, effort=short
    )
    fastest = max(heat.timings, key=lambda name: heat.timings[name].ratio)
    first = [each for each in stock if each.name == fastest]
    rest = [each for each in stock if each.name != fastest]
    measured = measure(
        [each.entrant() for each in [*first, *rest, *others]],
        workload,
        make_inputs,
        threads=threads,
        effort=effort,
    )
    return Race(fastest, measured.timings, measured.failures)


def gains(notes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What the runtime, the graph, bf16 and int8 each bring to edgewright's choice, by shape.

    From the medians of one run of ``edgewright optimize``, each step over the one before it; their
    product is what they bring together. A step that the choice does not take is left out.
    """
    candidates, chosen = notes["candidates"], notes["variant"]
    backend, _, kind = chosen.partition("-")
    steps = {
        "runtime": f"{backend}-fp32",
        "graph": f"{backend}-fp32-graph",
        "bf16": f"{backend}-bf16",
        "int8": chosen if kind.startswith("int8") else None,
    }
    baseline = next(iter(candidates))
    found: dict[str, dict[str, float]] = {}
    for shape, start in candidates[baseline]["p50_ms"].items():
        before, found[shape] = start, {}
        for step, name in steps.items():
            if name in candidates and name != baseline:
                after = candidates[name]["p50_ms"][shape]
                before, found[shape][step] = after, before / after
    return found


def entries_of(name: str, title: str, served: Sequence[Served]) -> list[Entry]:
    """One entry for each runtime; its name is in theirs where there are more."""
    if len(served) == 1:
        return [Entry(name, title, served[0])]
    return [Entry(f"{name}-{each.backend}", f"{title} on {each.backend}", each) for each in served]
