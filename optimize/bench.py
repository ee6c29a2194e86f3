"""Candidates at work: searched, timed, certified, and asked for their goldens.

Each is loaded when it is needed and let go afterwards; it always runs as it would be served, in
batches or, where its answers depend on the rows beside it, one row at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgewright import model_file
from edgewright.backends import Session, get_backend, softmax
from edgewright.backends.placement import Placement
from edgewright.bundle import Against
from edgewright.errors import ConfigError
from edgewright.latency import inputs_from_rows
from edgewright.latency_process import Entrant, Measured, measure
from edgewright.metrics import Labels
from edgewright.model_file import FEATURES
from edgewright.optimize.export import Reference
from edgewright.optimize.inputs import Inputs, rows_of
from edgewright.optimize.nearness import Nearness
from edgewright.optimize.variants import Candidate, Skipped
from edgewright.preprocess import Row
from edgewright.proof.certificate import PairedCounts, Subject, interface_sha256
from edgewright.proof.goldens import Goldens, choose_rows, make_goldens
from edgewright.proof.host import available_cores, instruction_set
from edgewright.proof.logits import answers, predict_features, predict_logits


@dataclass(frozen=True, eq=False)
class Bench:
    """The candidates of one run, by name; the first is the baseline, fp32 on ONNX Runtime."""

    inputs: Inputs
    reference: Reference
    candidates: Mapping[str, Candidate]
    threads: int

    @property
    def baseline(self) -> str:
        """Name of fp32 on ONNX Runtime."""
        return next(iter(self.candidates))

    @property
    def placements(self) -> dict[str, Placement]:
        """What runs of each candidate, by its name."""
        found = {name: each.placement for name, each in self.candidates.items()}
        return {name: placement for name, placement in found.items() if placement is not None}

    @cached_property
    def reference_on_search(self) -> Labels:
        """What the model answers on the search rows, shape (rows,)."""
        return answers(self.reference.logits(self.inputs.search_rows))

    def search(self, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Scores of candidates on the search rows, each of shape (rows, classes)."""
        with self._workers() as pool:
            jobs = {
                name: pool.submit(self.scores_on_search, self.candidates[name]) for name in names
            }
            return {name: job.result() for name, job in jobs.items()}

    def scores_on_search(self, candidate: Candidate) -> NDArray[np.float32]:
        """Scores of a candidate, which need not be one of the run's, on the search rows."""
        return softmax(self._logits(candidate, self.inputs.search_rows))

    def count_on_search(self, scores: NDArray[np.float32]) -> PairedCounts:
        """Search rows that scores of shape (rows, classes) lose and win against the model."""
        labels = self.inputs.search.labels
        return PairedCounts.count(labels, self.reference_on_search, answers(scores))

    def joined_by(self, candidates: Iterable[Candidate]) -> Bench:
        """The same with more candidates."""
        return self._with({**self.candidates, **{each.name: each for each in candidates}})

    def without_unfit(
        self, scores: Mapping[str, NDArray[np.float32]]
    ) -> tuple[Bench, list[Skipped]]:
        """The same without the candidates that answer some search row with what are no numbers.

        Raises:
            ConfigError: the baseline does; then the model itself is to blame.
        """
        wrong = {name: int((answers(each) < 0).sum()) for name, each in scores.items()}
        if wrong[self.baseline]:
            raise ConfigError(
                f"{self.reference.name} answers {wrong[self.baseline]} of "
                f"{len(self.inputs.search)} search rows with what are no numbers; its weights are "
                "damaged, or its training diverged: train it again"
            )
        unfit = [
            Skipped(name, f"it answers {count} of {len(self.inputs.search)} search rows with what "
                    "are no numbers")
            for name, count in wrong.items() if count
        ]  # fmt: skip
        kept = {name: each for name, each in self.candidates.items() if not wrong[name]}
        return self._with(kept), unfit

    def _with(self, candidates: Mapping[str, Candidate]) -> Bench:
        """These candidates; what the model answers is not asked again."""
        bench = replace(self, candidates=candidates)
        vars(bench)["reference_on_search"] = self.reference_on_search  # as cached_property does
        return bench

    def measure(self) -> Measured:
        """Latency of every candidate at the workload, against the baseline."""
        entrants = [
            Entrant(
                each.name,
                each.backend,
                each.file,
                each.session_options,
                row_by_row=not each.batch_invariant,
            )
            for each in self.candidates.values()
        ]
        inputs = inputs_from_rows(self.inputs.preprocessor, self.inputs.search_rows)
        return measure(entrants, self.inputs.workload, inputs, threads=self.threads)

    def subject(self, name: str) -> Subject:
        """What a certificate of this candidate binds."""
        candidate = self.candidates[name]
        return Subject(
            file_sha256=model_file.sha256(candidate.file),
            runtime=get_backend(candidate.backend).runtime(),
            instruction_set=instruction_set(),
            row_by_row=not candidate.batch_invariant,
            session_options=tuple(sorted(candidate.session_options.items())),
            interface_sha256=self._interface_sha256,
        )

    def count_on_certify(self, names: Iterable[str]) -> dict[str, PairedCounts]:
        """Run candidates over the certify rows. The only thing that reads them."""
        rows = rows_of(self.inputs.preprocessor, self.inputs.certify)
        reference = answers(self.reference.logits(rows))
        # Without labels the model is right by definition, and every other answer is a loss.
        of_labels = self.inputs.against is Against.LABELS
        labels = self.inputs.certify.labels if of_labels else reference
        with self._workers() as pool:
            jobs = {name: pool.submit(self._logits, self.candidates[name], rows) for name in names}
            return {
                name: PairedCounts.count(labels, reference, answers(job.result()))
                for name, job in jobs.items()
            }

    def goldens(self, names: Sequence[str], *, keep_raw: bool) -> Goldens:
        """Search examples of every class with the scores of these candidates."""
        search = self.inputs.search
        chosen = [search.contents[row] for row in choose_rows(search.labels)]
        raw = [each if isinstance(each, str) else each.read() for each in chosen]
        sessions = {
            name: (self._load(self.candidates[name]), not self.candidates[name].batch_invariant)
            for name in names
        }
        return make_goldens(raw, self.inputs.preprocessor, sessions, keep_raw=keep_raw)

    def nearness(self, names: Iterable[str]) -> dict[str, Nearness]:
        """Of the features of candidates on the search rows; empty where the model gives none."""
        if FEATURES not in [spec.name for spec in self.reference.outputs]:
            return {}
        rows, preprocessor = self.inputs.search_rows, self.inputs.preprocessor
        expected = self.reference.features(rows)
        found: dict[str, Nearness] = {}
        for name in names:
            candidate = self.candidates[name]
            alone = not candidate.batch_invariant
            features = predict_features(
                self._load(candidate), preprocessor, rows, one_row_at_a_time=alone
            )
            found[name] = Nearness.of(expected, features)
        return found

    @cached_property
    def _interface_sha256(self) -> str:
        return interface_sha256(self.inputs.preprocessor, self.inputs.origin.labels)

    def _workers(self) -> ThreadPoolExecutor:
        """As many candidates at once as there are cores for; each still runs as it is served."""
        return ThreadPoolExecutor(max(1, available_cores() // self.threads))

    def _load(self, candidate: Candidate) -> Session:
        return get_backend(candidate.backend).load(
            candidate.file, threads=self.threads, options=candidate.session_options
        )

    def _logits(self, candidate: Candidate, rows: Sequence[Row]) -> NDArray[np.float32]:
        return predict_logits(
            self._load(candidate),
            self.inputs.preprocessor,
            rows,
            one_row_at_a_time=not candidate.batch_invariant,
        )
