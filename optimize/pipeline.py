"""One run of optimize, from a checkpoint to a sealed bundle or a rejection.

open        the checkpoint, verified; its splits; the ledger of its certify split
export      fp32 ONNX, compared with PyTorch
graph       what the export does in vain is left out, exactly
variants    more files, int8 ones calibrated on the calibrate split, each on every runtime
search      what every candidate answers on the search split, as it would be served
mixed       where int8 loses too much there, the layers to blame go back to float
measure     latency in turns, at the declared workload, in processes of their own
certify     at most three, frozen beforehand, on rows that nothing has seen
write       the best that passed, in a bundle; or why there is none
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgewright import model_file
from edgewright.backends import BACKENDS, get_backend
from edgewright.backends.tensorrt.profiles import format_profiles
from edgewright.bundle import Against, Certificate
from edgewright.errors import BackendUnavailableError, ConfigError, IntegrityError
from edgewright.latency import Effort, Timing, inputs_from_rows
from edgewright.optimize.artifacts import (
    Contents,
    bundled,
    room_for_targets,
    write_bundle,
    write_rejection,
)
from edgewright.optimize.bench import Bench
from edgewright.optimize.certify import certify
from edgewright.optimize.choice import Aim, Contender, Rules, choose, shippable, shortlist
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.doubts import timing_doubts
from edgewright.optimize.drift import drift_reference
from edgewright.optimize.export import Reference, export_onnx, sample_batches
from edgewright.optimize.graph_work import GraphWork, measure_passes, work_graph
from edgewright.optimize.inputs import Inputs
from edgewright.optimize.mixed_precision import Mixed
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.outcome_json import outcome_json
from edgewright.optimize.prepared import Preparation, Prepared, profiles_for
from edgewright.optimize.recipes import Materials
from edgewright.optimize.repairs import find_failing, repair
from edgewright.optimize.summary import summary_lines
from edgewright.optimize.variants import Skipped
from edgewright.optimize.workshop import Probe, Unbuilt, build_candidates
from edgewright.output import Output
from edgewright.proof.goldens import Goldens
from edgewright.proof.host import available_cores, has_bf16, instruction_set, saturates, this_host
from edgewright.proof.ledger import Ledger, open_ledger
from edgewright.proof.logits import answers

_GAINS_EFFORT: Final = Effort(budget_s=5.0, min_rounds=9)  # of the passes, beside each other


def run(config: OptimizeConfig, output: Output) -> None:
    """Optimise as ``config`` says, write the bundle or the rejection, and print the result.

    Raises:
        AccuracyGateError, GateInconclusiveError: nothing may ship; the rejection is written and the
            result is printed.
        EdgewrightError: the run cannot be done; nothing is written.
    """
    outcome = optimize(config, output)
    for doubt in timing_doubts(outcome):
        output.warn(doubt)
    output.result(outcome_json(outcome), summary_lines(outcome))
    if not outcome.shipped:
        raise outcome.refusal()


def optimize(
    config: OptimizeConfig, output: Output, *, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """Optimise as ``config`` says and write the bundle or the rejection; errors as in ``run``."""
    with room_for_targets(config.output, config.rejected, overwrite=config.overwrite):
        return _optimize(config, output, Stages(output, clock))


def _optimize(config: OptimizeConfig, output: Output, stages: Stages) -> Outcome:
    with stages("open"):
        inputs = Inputs.open(config)
        _look_ahead(inputs, config, output)
    with TemporaryDirectory(prefix="edgewright-optimize-") as folder:
        start = _make_candidates(inputs, config, Path(folder), stages)
        bench, skipped = start.bench, list(start.skipped)
        with stages(f"search: {len(bench.candidates)} candidates on {len(inputs.search)} rows"):
            scores = bench.search(bench.candidates)
        mixed, left_out = _mix(start, scores, config, stages)
        bench = bench.joined_by(each.candidate for each in mixed if each.candidate is not None)
        scores |= bench.search(bench.candidates.keys() - scores.keys())
        bench, unfit = bench.without_unfit(scores)
        with stages(f"measure latency at {inputs.workload}"):
            measured = bench.measure()
            gains = _gains(start, config)
        skipped += [*unfit, *(Skipped(name, why) for name, why in measured.failures.items())]
        standings = {
            name: _standing(bench, name, scores[name], timing)
            for name, timing in measured.timings.items()
        }
        with stages("certify"):
            certificates = _certify(bench, standings, config, output)
        skipped += left_out
        outcome = _conclude(bench, config, standings, certificates, skipped, stages.seconds)
        outcome = replace(outcome, mixed=tuple(mixed), graph_work=start.work, gains=gains)
        with stages("write"):
            if outcome.shipped:
                outcome = replace(outcome, nearness=bench.nearness(bundled(outcome)))
                unbuilt = [each for each in skipped if isinstance(each, Unbuilt)]
                write_bundle(outcome, _contents(bench, outcome, unbuilt, output))
            else:
                write_rejection(outcome)
    return outcome


class Stages:
    """Says which stage a run is in and keeps its seconds, by the first word of its name."""

    def __init__(self, output: Output, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._output, self._clock = output, clock

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One stage, for the length of the block."""
        self._output.note(name)
        started = self._clock()
        yield
        seconds = round(self._clock() - started, 3)
        self.seconds[re.split(r"\W", name)[0]] = seconds
        self._output.note(f"  {seconds:.1f} s")


def _look_ahead(inputs: Inputs, config: OptimizeConfig, output: Output) -> None:
    """Find out before the work, not after it, what would make it worthless."""
    for note in inputs.notes:
        output.note(f"  {note}")
    if inputs.against is Against.REFERENCE:
        output.note(
            "  the certify rows have no labels: the loss is bounded by how often answers differ"
        )
    shortage = inputs.shortage(config)
    if shortage is not None:
        output.warn(shortage)
    with open_ledger(
        config.ledger_folder, inputs.certify_sha256, on_wait=_telling(output)
    ) as ledger:
        if not ledger.free_slots:
            output.warn(_used_up(ledger))


def _used_up(ledger: Ledger) -> str:
    names = ", ".join(entry.name for entry in ledger.entries)
    unbound = [entry.name for entry in ledger.entries if not entry.subject.interface_sha256]
    without = (
        f", but for {', '.join(unbound)}, of which an earlier edgewright did not write down the "
        "preprocessing"
    )
    return (
        f"the certify split has been used for {names} ({ledger.file}): only these same files can "
        f"pass{without if unbound else ''}; any other is REUSED until fresh rows come"
    )


@dataclass(frozen=True, eq=False)
class Start:
    """The candidates of a run, and what they were made from."""

    bench: Bench
    skipped: Sequence[Skipped]
    source: Path  # the fp32 file that all others are made from
    work: GraphWork | None = None


def _make_candidates(inputs: Inputs, config: OptimizeConfig, folder: Path, stages: Stages) -> Start:
    with stages("export to ONNX"):
        reference = Reference(inputs.origin, threads=available_cores())
        export = export_onnx(inputs.origin, folder, inputs.search_rows, opset=config.given.opset)
    with stages("graph: exact rewriting"):
        batches = sample_batches(inputs.preprocessor, inputs.search_rows)
        feeds = [inputs.preprocessor.pad(batch).arrays for batch in batches]
        steps = folder / "passes"
        steps.mkdir()
        work = work_graph(export.path, folder / "fp32-graph.onnx", feeds, steps=steps)
    materials = Materials(
        export=export,
        folder=folder,
        calibration=inputs.calibration,
        backends=inputs.backends,
        reduce_range=saturates(instruction_set()),
        bf16=has_bf16(),
        worked=work.target if work.applied else None,
        profiles=format_profiles(profiles_for(inputs.preprocessor, inputs.workload)),
    )
    with stages(f"variants, calibrated on {len(inputs.calibrate)} rows"):
        probe = Probe(inputs.preprocessor, inputs.search_rows)
        candidates, skipped = build_candidates(materials, probe, asked=config.backends)
    if inputs.search_against is Against.REFERENCE:
        inputs = inputs.judged_by(answers(reference.logits(inputs.search_rows)))
    by_name = {candidate.name: candidate for candidate in candidates}
    bench = Bench(inputs, reference, by_name, config.threads)
    return Start(bench, [*_absent(inputs), *skipped], materials.source, work)


def _absent(inputs: Inputs) -> Iterator[Skipped]:
    """The runtimes that are not here; one that was asked for has already been an error."""
    for name in BACKENDS:
        if name not in inputs.backends:
            try:
                get_backend(name)
            except BackendUnavailableError as error:
                yield Skipped(name, str(error))


def _gains(start: Start, config: OptimizeConfig) -> Mapping[str, Timing]:
    """What the passes bring, one after the other; nothing where none was kept."""
    if start.work is None or not start.work.applied:
        return {}
    inputs = start.bench.inputs
    rows = inputs_from_rows(inputs.preprocessor, inputs.search_rows)
    return measure_passes(
        start.work, inputs.workload, rows, threads=config.threads, effort=_GAINS_EFFORT
    )


def _mix(
    start: Start,
    scores: Mapping[str, NDArray[np.float32]],
    config: OptimizeConfig,
    stages: Stages,
) -> tuple[list[Mixed], list[Skipped]]:
    bench = start.bench
    failing = find_failing(bench, scores, config) if config.mixed_seconds else []
    if not failing:
        return [], []
    names = ", ".join(each.name for each in failing)
    with stages(f"mixed precision, for what loses too much on search: {names}"):
        return repair(failing, bench, config, start.source)


def _standing(bench: Bench, name: str, scores: NDArray[np.float32], timing: Timing) -> Standing:
    candidate = bench.candidates[name]
    contender = Contender(
        name=name,
        backend=candidate.backend,
        size_bytes=model_file.size_bytes(candidate.file),
        search=bench.count_on_search(scores),
        speedup=timing.ratio,
        speedup_low=timing.ratio_low,
        speedup_high=timing.ratio_high,
    )
    return Standing(
        contender=contender,
        precision=candidate.precision,
        row_by_row=not candidate.batch_invariant,
        timing=timing,
        scores=scores,
    )


def _certify(
    bench: Bench, standings: Mapping[str, Standing], config: OptimizeConfig, output: Output
) -> dict[str, Certificate]:
    """Freeze the shortlist and try it, with the ledger locked from before to after."""
    contenders = {name: standing.contender for name, standing in standings.items()}
    baseline = contenders.pop(bench.baseline)
    subjects = {name: bench.subject(name) for name in standings}
    aim = Aim(baseline, config.prefer)
    rules = Rules(config.max_drop, config.confidence, len(bench.inputs.certify))
    split = bench.inputs.certify_sha256
    with open_ledger(config.ledger_folder, split, on_wait=_telling(output)) as ledger:
        tried = {name for name, subject in subjects.items() if ledger.find(subject)}
        frozen = shortlist(list(contenders.values()), aim, rules, tried, ledger.free_slots)
        names = [contender.name for contender in frozen]
        output.note(f"  frozen for the certify split, in this order: {', '.join(names) or 'none'}")
        return certify(
            names, subjects, bench.count_on_certify, ledger, config, bench.inputs.against
        )


def _conclude(
    bench: Bench,
    config: OptimizeConfig,
    standings: Mapping[str, Standing],
    certificates: Mapping[str, Certificate],
    skipped: Sequence[Skipped],
    seconds: Mapping[str, float],
) -> Outcome:
    frozen = [standings[name].contender for name in certificates]
    aim = Aim(standings[bench.baseline].contender, config.prefer)
    shipped = shippable(frozen, certificates, aim, allow_inconclusive=config.allow_inconclusive)
    return Outcome(
        config=config,
        made_from=bench.inputs.origin.made_from,
        against=bench.inputs.against,
        search_against=bench.inputs.search_against,
        search=bench.inputs.search,
        reference=bench.reference_on_search,
        standings=tuple(
            replace(standing, certificate=certificates.get(name))
            for name, standing in standings.items()
        ),
        frozen=tuple(certificates),
        shipped=tuple(contender.name for contender in shipped),
        chosen=choose(shipped, aim).name if shipped else None,
        skipped=tuple((each.name, each.reason) for each in skipped),
        certify_n=len(bench.inputs.certify),
        workload=str(bench.inputs.workload),
        host=this_host(),
        placements=bench.placements,
        seconds=seconds,
    )


def _contents(
    bench: Bench, outcome: Outcome, unbuilt: Sequence[Unbuilt], output: Output
) -> Contents:
    names = bundled(outcome)
    goldens = bench.goldens(names, keep_raw=not outcome.config.no_raw_examples)
    return Contents(
        files={name: bench.candidates[name].file for name in names},
        session_options={name: bench.candidates[name].session_options for name in names},
        preprocessor=bench.inputs.preprocessor,
        goldens=goldens,
        drift=drift_reference(
            bench.inputs.search_rows,
            bench.inputs.preprocessor.kind,
            {name: outcome.standing(name).scores for name in names},
            outcome.search.label_names,
        ),
        prepared=_prepared(bench.inputs, goldens, unbuilt, output),
    )


def _prepared(
    inputs: Inputs, goldens: Goldens, unbuilt: Sequence[Unbuilt], output: Output
) -> list[Prepared]:
    """What a GPU host will build; a file that cannot be is left out with a warning."""
    preparation = Preparation(
        preprocessor=inputs.preprocessor,
        profiles=profiles_for(inputs.preprocessor, inputs.workload),
        goldens=goldens,
        search_rows=inputs.search_rows,
        search_labels=inputs.search.labels,
    )
    made = []
    for each in unbuilt:
        try:
            made.append(preparation.prepare(each.file, each.kind, each.precision))
        except (ConfigError, IntegrityError) as error:
            output.warn(f"{each.name} is not prepared: {error}")
    return made


def _telling(output: Output) -> Callable[[Path], None]:
    return lambda lock: output.warn(f"another run holds {lock}; waiting for it to end")
