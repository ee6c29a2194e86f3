"""Whole runs on the small checkpoint: real export, answers, bounds and bundles.

Which files are made and how fast they are is given, for neither can be held still otherwise: files
that answer as the model does, one that is sabotaged, and speeds that a clock might have shown.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from optimize_outcomes import int8_is_faster

from edgewright.backends import get_backend
from edgewright.bundle import MEASUREMENTS_FILE, REJECTION, REPORT_FILE, Bundle, Verdict
from edgewright.checkpoint import Checkpoint
from edgewright.cli import run as edgewright
from edgewright.latency import Timing
from edgewright.latency_process import Measured
from edgewright.manifest import read_artifact, verify
from edgewright.optimize import bench, pipeline
from edgewright.optimize.bench import Bench
from edgewright.optimize.export import Reference, export_onnx
from edgewright.optimize.inputs import Inputs
from edgewright.optimize.origin import Origin
from edgewright.optimize.variants import Candidate, Skipped
from edgewright.proof.certificate import PairedCounts
from edgewright.proof.goldens import check_goldens

FP32 = "onnxruntime-fp32"


@dataclass(frozen=True)
class Entrant:
    """A candidate of a run: how much its first class is favoured, and how fast it is."""

    speedup: float
    bias: float = 0.0  # added to the logit of the first class
    mark: str = ""  # another mark, another file
    backend: str = "onnxruntime"
    batch_invariant: bool = True
    small: bool = False  # another file, without the names of its nodes
    no_number_above: float = math.inf  # where the first class's own logit is above, it gives NaN


@pytest.fixture(scope="session")
def fp32(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as ONNX, exported once."""
    rows = checkpoint.preprocessor().encode(checkpoint.examples().split("search").texts)
    return export_onnx(
        Origin.of_checkpoint(checkpoint), tmp_path_factory.mktemp("export"), rows
    ).path


def _write(source: Path, target: Path, entrant: Entrant) -> None:
    """The fp32 file, with the first class favoured by ``bias`` logits."""
    model = onnx.load(source)
    output = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["own" if name == output.name else name for name in node.output]
    bias = numpy_helper.from_array(np.float32([entrant.bias, 0, 0]), "bias")
    model.graph.initializer.append(bias)
    limit = entrant.no_number_above
    own = "own" if limit == math.inf else _without_numbers(model.graph, limit)
    model.graph.node.append(helper.make_node("Add", [own, "bias"], [output.name]))
    model.doc_string = entrant.mark
    for node in model.graph.node if entrant.small else ():
        node.name = ""
    onnx.save(model, target)


def _without_numbers(graph: onnx.GraphProto, limit: float) -> str:
    """The value with the logits, all of a row's NaN where the first of them is above the limit."""
    numbers = {"limit": np.float32(limit), "nan": np.float32(np.nan), "zero": np.float32(0)}
    numbers |= {"first": np.array([0], np.int64)}
    graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in numbers.items())
    graph.node.extend(
        [
            helper.make_node("Gather", ["own", "first"], ["of_first"], axis=1),
            helper.make_node("Greater", ["of_first", "limit"], ["above"]),
            helper.make_node("Where", ["above", "nan", "zero"], ["nothing_or_nan"]),
            helper.make_node("Add", ["own", "nothing_or_nan"], ["without_numbers"]),
        ]
    )
    return "without_numbers"


def _timing(speedup: float) -> Timing:
    return Timing({}, 10 / speedup, speedup, speedup * 0.98, speedup * 1.02)


class Runs:
    """Runs of the command whose candidates are given."""

    def __init__(
        self, fp32: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        self.folder, self.bundle = folder, folder / "bundle"
        self._fp32, self._monkeypatch, self._capsys = fp32, monkeypatch, capsys
        self.stderr = ""

    @property
    def rejected(self) -> Path:
        return self.folder / "bundle.rejected"

    def __call__(
        self, checkpoint: Path, entrants: Mapping[str, Entrant], *options: str
    ) -> tuple[int, dict[str, Any]]:
        """Exit code and the JSON object of ``edgewright optimize``."""
        everyone = {FP32: Entrant(1.0), **entrants}

        def make(inputs: Inputs, config: Any, folder: Path, stages: Any) -> pipeline.Start:
            candidates = {}
            for name, entrant in everyone.items():
                file = self._fp32 if name == FP32 else folder / f"{name}.onnx"
                if name != FP32:
                    _write(self._fp32, file, entrant)
                candidates[name] = Candidate(
                    name, entrant.backend, file, "fp32", entrant.batch_invariant
                )
            reference = Reference(inputs.origin)
            bench = Bench(inputs, reference, candidates, config.threads)
            return pipeline.Start(bench, [Skipped("x", "no such")], self._fp32)

        def timed(bench: Bench) -> Measured:
            speeds = {name: everyone[name].speedup for name in bench.candidates}
            timings = {name: _timing(speed) for name, speed in speeds.items() if speed}
            return Measured(timings, {name: "it died" for name in speeds if name not in timings})

        self._monkeypatch.setattr(pipeline, "_make_candidates", make)
        self._monkeypatch.setattr(Bench, "measure", timed)
        self._capsys.readouterr()
        code = edgewright(["optimize", str(checkpoint), "-o", str(self.bundle), "--json", *options])
        printed = self._capsys.readouterr()
        self.stderr = printed.err
        return code, json.loads(printed.out) if printed.out else {}

    def without_reading_certify(self) -> None:
        """From here on, reading certify rows fails the test."""

        def refuse(_bench: Bench, names: Iterable[str]) -> dict[str, PairedCounts]:
            raise AssertionError(f"certify rows were read for {names}")

        self._monkeypatch.setattr(Bench, "count_on_certify", refuse)


@pytest.fixture
def runs(fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Runs:
    return Runs(fp32, tmp_path / "out", monkeypatch, capsys)


@pytest.fixture
def checkpoint_here(make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint with 600 certify rows and a ledger of its own beside it."""
    return make_checkpoint()


GOOD = Entrant(2.0)
BROKEN = Entrant(3.0, bias=3.0)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_the_fastest_that_passes_is_in_a_sealed_bundle(runs: Runs, checkpoint_here: Path) -> None:
    code, told = runs(checkpoint_here, {"a": GOOD, "b": Entrant(2.5, mark="b")})
    assert code == 0
    assert (told["variant"], told["verdict"], told["certify_n"]) == ("b", "PASS", 600)
    assert told["speedup_interval"] == pytest.approx([2.45, 2.55])
    bundle = Bundle.open(runs.bundle)
    assert bundle.chosen.name == "b"
    assert bundle.choice["order_of_trials"] == ["b", "a"]
    assert [variant.name for variant in bundle.variants] == ["a", "b", FP32]
    assert bundle.artifact.manifest["made_from"]["checkpoint"] == (
        Checkpoint.open(checkpoint_here).artifact.manifest_sha256
    )
    certificate = bundle.variant("b").certificate
    assert certificate is not None
    assert (certificate.error_rate, certificate.lost, certificate.won) == (0.03, 0, 0)
    assert bundle.variant(FP32).certificate is None
    assert not runs.rejected.exists()


def test_a_bundle_tells_how_near_its_features_are(
    runs: Runs, checkpoint_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(checkpoint_here, {"a": GOOD})
    measured = json.loads((runs.bundle / MEASUREMENTS_FILE).read_bytes())["features"]
    assert measured.keys() == {"a", FP32}
    assert measured["a"]["rows"] == 90
    assert measured["a"]["cosine_worst"] > 0.9999  # the same graph but for its logits
    report = (runs.bundle / REPORT_FILE).read_text()
    assert "Cosine between a variant" in report
    assert edgewright(["inspect", str(runs.bundle)]) == 0
    assert (
        "a: cosine to the model's 1.0000 (median), 1.0000 (worst of 90" in capsys.readouterr().out
    )


def test_every_variant_of_a_bundle_answers_its_goldens(runs: Runs, checkpoint_here: Path) -> None:
    runs(checkpoint_here, {"a": GOOD, "alone": Entrant(1.5, mark="x", batch_invariant=False)})
    bundle = Bundle.open(runs.bundle)
    assert len(bundle.variants) == 3
    for variant in bundle.variants:
        session = get_backend(variant.backend).load(
            bundle.path / variant.file, threads=1, options=variant.session_options
        )
        result = check_goldens(bundle, variant, session, bundle.preprocessor(), same_host=True)
        assert result.rows == 32
        certified = variant.certificate.verdict if variant.certificate else Verdict.UNVERIFIED
        assert result.verdict is certified


def test_a_candidate_built_to_lose_rows_fails_and_nothing_is_published(
    runs: Runs, checkpoint_here: Path
) -> None:
    code, told = runs(checkpoint_here, {"broken": BROKEN})
    assert code == 3
    assert (told["variant"], told["verdict"]) == ("broken", "FAIL")
    assert told["published"] is False
    assert not runs.bundle.exists()
    assert "broken loses between" in runs.stderr
    rejection = verify(runs.rejected)
    assert read_artifact(runs.rejected, REJECTION) == rejection
    assert rejection.manifest["certificates"]["broken"]["verdict"] == "FAIL"
    assert "FAIL: nothing ships" in (runs.rejected / "report.html").read_text()


def test_too_few_rows_are_inconclusive_with_the_number_needed_and_nothing_is_published(
    runs: Runs, make_checkpoint: Callable[..., Path]
) -> None:
    code, told = runs(make_checkpoint(certify=100), {"a": GOOD})
    assert code == 7
    assert (told["verdict"], told["certify_n"], told["needed_n"]) == ("INCONCLUSIVE", 100, 349)
    assert "the certify split has 100 rows" in runs.stderr
    assert "needs 349" in runs.stderr
    assert not runs.bundle.exists()
    assert verify(runs.rejected).manifest["certificates"]["a"]["needed_n"] == 349


def test_a_sound_candidate_ships_beside_a_faster_broken_one(
    runs: Runs, checkpoint_here: Path
) -> None:
    code, told = runs(checkpoint_here, {"broken": BROKEN, "a": GOOD})
    assert (code, told["variant"]) == (0, "a")
    names = [variant.name for variant in Bundle.open(runs.bundle).variants]
    assert names == ["a", FP32]


def test_a_fourth_file_is_reused_and_the_first_keeps_its_verdict(
    runs: Runs, checkpoint_here: Path
) -> None:
    marks = {name: Entrant(speed, mark=name) for name, speed in zip("abc", (4, 3, 2), strict=True)}
    assert runs(checkpoint_here, marks)[0] == 0
    runs.without_reading_certify()
    code, told = runs(checkpoint_here, {"d": Entrant(5.0, mark="d")}, "--overwrite")
    assert (code, told["variant"], told["verdict"]) == (7, "d", "REUSED")
    assert "only these same files can pass; any other is REUSED until fresh rows" in runs.stderr
    assert Bundle.open(runs.bundle).chosen.name == "a"
    code, told = runs(checkpoint_here, {"a": marks["a"]}, "--overwrite")
    assert (code, told["variant"], told["verdict"]) == (0, "a", "PASS")
    assert not runs.rejected.exists()


def test_files_of_an_older_ledger_are_told_to_pass_no_more(
    runs: Runs, checkpoint_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = {name: Entrant(speed, mark=name) for name, speed in zip("abc", (4, 3, 2), strict=True)}
    with monkeypatch.context() as patch:
        patch.setattr(bench, "interface_sha256", lambda *_of: "")
        assert runs(checkpoint_here, marks)[0] == 0
    runs.without_reading_certify()
    assert runs(checkpoint_here, marks, "--overwrite")[0] == 7
    told = "only these same files can pass, but for a, b, c, of which an earlier edgewright did"
    assert told in runs.stderr


def test_fresh_certify_rows_give_fresh_trials(
    runs: Runs, checkpoint_here: Path, make_checkpoint: Callable[..., Path]
) -> None:
    marks = {name: Entrant(speed, mark=name) for name, speed in zip("abc", (4, 3, 2), strict=True)}
    runs(checkpoint_here, marks)
    fresh = make_checkpoint("fresh", certify=601)
    code, told = runs(fresh, {"d": Entrant(5.0, mark="d")}, "--overwrite")
    assert (code, told["verdict"], told["certify_n"]) == (0, "PASS", 601)


def test_another_budget_or_confidence_is_answered_from_the_ledger(
    runs: Runs, checkpoint_here: Path
) -> None:
    first = {"a": Entrant(3.0, mark="a"), "b": GOOD}
    runs(checkpoint_here, first)
    runs.without_reading_certify()
    code, told = runs(checkpoint_here, first, "--overwrite", "--max-drop", "0.005")
    assert (code, told["verdict"], told["needed_n"]) == (7, "INCONCLUSIVE", 700)
    code, told = runs(checkpoint_here, first, "--overwrite", "--confidence", "0.9")
    certificates = {each["name"]: each["certificate"] for each in told["candidates"]}
    assert certificates["a"]["error_rate"] == pytest.approx(0.06)
    assert certificates["b"]["error_rate"] == pytest.approx(0.02)


def test_a_server_takes_the_threads_that_were_timed_though_a_verdict_is_of_others(
    runs: Runs, checkpoint_here: Path
) -> None:
    runs(checkpoint_here, {"a": GOOD})
    runs.without_reading_certify()
    runs(checkpoint_here, {"a": GOOD}, "--overwrite", "--threads", "2")
    bundle = Bundle.open(runs.bundle)
    certificate = bundle.chosen.certificate
    assert certificate is not None
    assert (certificate.threads, bundle.certified_threads) == (1, 2)


def test_an_inconclusive_variant_ships_only_when_allowed_and_the_bundle_says_so(
    runs: Runs, make_checkpoint: Callable[..., Path]
) -> None:
    small = make_checkpoint(certify=100)
    code, told = runs(small, {"a": GOOD}, "--allow-inconclusive")
    assert (code, told["verdict"], told["published"]) == (0, "INCONCLUSIVE", True)
    bundle = Bundle.open(runs.bundle)
    assert bundle.artifact.manifest["allow_inconclusive"] is True
    assert bundle.chosen.certificate is not None
    assert bundle.chosen.certificate.verdict is Verdict.INCONCLUSIVE
    assert "Not proven" in (runs.bundle / "report.html").read_text()


def test_a_failed_variant_does_not_ship_even_when_inconclusive_ones_may(
    runs: Runs, checkpoint_here: Path
) -> None:
    assert runs(checkpoint_here, {"broken": BROKEN}, "--allow-inconclusive")[0] == 3
    assert not runs.bundle.exists()


def test_certify_rows_are_in_nothing_that_is_written(runs: Runs, checkpoint_here: Path) -> None:
    runs(checkpoint_here, {"a": Entrant(3.0, bias=0.3), "b": GOOD}, "--max-drop", "0.05")
    bundle, checkpoint = runs.bundle, Checkpoint.open(checkpoint_here)
    runs.bundle = runs.folder / "second"
    runs(checkpoint_here, {"broken": BROKEN})
    certify = checkpoint.examples().split("certify")
    secrets = [*certify.texts, *certify.ids]
    written = [*_files(bundle), *_files(runs.folder / "second.rejected")]
    written += _files(checkpoint_here.parent / "edgewright-ledger")
    assert len(written) > 12
    for file in written:
        content = file.read_bytes().decode("utf-8", "replace")
        assert not [secret for secret in secrets if secret in content], file
    search = checkpoint.examples().split("search").texts
    assert any(text in (bundle / "goldens.json").read_text() for text in search)


def test_raw_texts_are_left_out_when_asked(runs: Runs, checkpoint_here: Path) -> None:
    options = ("--no-raw-examples", "--max-drop", "0.6")
    assert runs(checkpoint_here, {"a": Entrant(3.0, bias=3.0)}, *options)[0] == 0
    assert not (runs.bundle / "goldens.json").exists()
    report = (runs.bundle / "report.html").read_text()
    assert ">--no-raw-examples</span> leaves them out" in report
    texts = Checkpoint.open(checkpoint_here).examples().texts
    for file in _files(runs.bundle):
        content = file.read_bytes().decode("utf-8", "replace")
        assert not [text for text in texts if text in content], file


def test_the_same_inputs_give_the_same_manifest_whatever_the_clock_says(
    runs: Runs, checkpoint_here: Path, tmp_path: Path
) -> None:
    entrants = {"a": Entrant(3.02, mark="a"), "b": Entrant(2.95, mark="b"), "c": Entrant(1.5)}
    noisy = {name: replace(each, speedup=each.speedup * 1.02) for name, each in entrants.items()}
    noisy["b"] = replace(noisy["b"], speedup=3.2)
    runs(checkpoint_here, entrants, "--ledger", str(tmp_path / "first"))
    first = (runs.bundle / "manifest.json").read_bytes()
    assert Bundle.open(runs.bundle).chosen.name == "a"
    runs.bundle = runs.folder / "elsewhere"
    runs(checkpoint_here, noisy, "--ledger", str(tmp_path / "second"))
    assert (runs.bundle / "manifest.json").read_bytes() == first
    assert Bundle.open(runs.bundle).chosen.name == "b"


def test_two_runs_that_make_every_file_give_the_same_bytes(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the clock is given: int8 is faster."""
    monkeypatch.setattr(Bench, "measure", int8_is_faster)
    checkpoint = make_checkpoint(certify=400)
    files: list[dict[str, bytes]] = []
    for name in ("first", "second"):
        options = ["--ledger", str(tmp_path / f"ledger-{name}"), "--max-drop", "0.1", "--quiet"]
        command = ["optimize", str(checkpoint), "-o", str(tmp_path / name), *options]
        assert edgewright([*command, "--backend", "onnxruntime"]) == 0
        folder = tmp_path / name
        kept = [*(folder / "variants").iterdir(), folder / "manifest.json"]
        files.append({each.name: each.read_bytes() for each in kept})
    assert len(files[0]) == 5  # fp32, three int8 files, and the manifest
    assert files[0] == files[1]


def test_a_rejection_leaves_the_bundle_that_is_there(runs: Runs, checkpoint_here: Path) -> None:
    runs(checkpoint_here, {"a": GOOD})
    before = verify(runs.bundle)
    assert runs(checkpoint_here, {"broken": BROKEN}, "--overwrite")[0] == 3
    assert verify(runs.bundle) == before


def test_a_variant_that_depends_on_its_neighbours_is_certified_one_row_at_a_time(
    runs: Runs, checkpoint_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[str, set[int]] = {}

    def spying(name: str) -> Any:
        backend = get_backend(name)

        class Spy:
            def runtime(self) -> str:
                return backend.runtime()

            def load(self, path: Path, **options: Any) -> Any:
                session = backend.load(path, **options)
                run, seen = session.run, shapes.setdefault(path.stem, set())
                session.run = lambda arrays, outputs=(): (
                    seen.add(len(arrays["input_ids"])) or run(arrays, outputs)
                )
                return session

        return Spy()

    monkeypatch.setattr("edgewright.optimize.bench.get_backend", spying)
    entrants = {"alone": Entrant(3.0, batch_invariant=False), "batched": Entrant(2.0, mark="b")}
    assert runs(checkpoint_here, entrants)[0] == 0
    assert shapes["alone"] == {1}
    assert max(shapes["batched"]) > 1
    variant = Bundle.open(runs.bundle).variant("alone")
    assert not variant.batch_invariant
    assert "one row at a time" in (runs.bundle / "report.html").read_text()


def test_openvino_alone_brings_a_certified_onnx_runtime_variant_along(
    runs: Runs, checkpoint_here: Path
) -> None:
    pytest.importorskip("openvino")
    code, told = runs(checkpoint_here, {"openvino-a": Entrant(2.0, backend="openvino")})
    assert (code, told["variant"], told["backend"]) == (0, "openvino-a", "openvino")
    certificate = Bundle.open(runs.bundle).variant(FP32).certificate
    assert certificate is not None
    assert certificate.verdict is Verdict.PASS


def test_nothing_faster_than_fp32_certifies_nothing_and_ships_nothing(
    runs: Runs, checkpoint_here: Path
) -> None:
    runs.without_reading_certify()
    code, told = runs(checkpoint_here, {"a": Entrant(0.9)})
    assert (code, told["verdict"], told["variant"]) == (3, None, None)
    assert "no candidate is faster" in runs.stderr


def test_what_cannot_be_timed_is_told_with_the_reason_and_the_others_go_on(
    runs: Runs, checkpoint_here: Path
) -> None:
    code, told = runs(checkpoint_here, {"a": GOOD, "dead": Entrant(0.0, mark="dead")})
    assert (code, told["variant"]) == (0, "a")
    assert [each["name"] for each in told["candidates"]] == [FP32, "a"]
    assert {"name": "dead", "reason": "it died"} in told["skipped"]


def test_what_is_no_number_is_never_a_right_answer(runs: Runs, checkpoint_here: Path) -> None:
    """Of a row of NaN ``argmax`` makes the first class, and here that is mostly the right one."""
    entrants = {"nan": Entrant(3.0, no_number_above=1.0), "a": GOOD}
    code, told = runs(checkpoint_here, entrants)
    assert (code, told["variant"]) == (0, "a")
    (reason,) = (each["reason"] for each in told["skipped"] if each["name"] == "nan")
    assert re.fullmatch(r"it answers \d+ of 90 search rows with what are no numbers", reason)


def test_where_size_is_preferred_the_smaller_file_ships_first(
    runs: Runs, checkpoint_here: Path
) -> None:
    entrants = {"fast": Entrant(3.0, mark="fast"), "small": Entrant(1.5, small=True)}
    code, told = runs(checkpoint_here, entrants, "--prefer", "size")
    assert (code, told["variant"], told["prefer"]) == (0, "small", "size")
    assert told["size_ratio"] < 1
    bundle = Bundle.open(runs.bundle)
    assert bundle.artifact.manifest["config"]["prefer"] == "size"
    assert bundle.choice["order_of_trials"][0] == "small"
    runs.bundle = runs.folder / "second"
    assert runs(checkpoint_here, entrants)[1]["variant"] == "fast"


def test_int8_that_is_not_faster_is_a_verdict(runs: Runs, checkpoint_here: Path) -> None:
    entrants = {"a": GOOD, "even": Entrant(1.01, mark="e"), "slow": Entrant(0.5, mark="s")}
    _, told = runs(checkpoint_here, entrants)
    assert [each["faster"] for each in told["candidates"]] == [False, True, False, False]
    page = (runs.bundle / "report.html").read_text()
    assert "not faster" in page
    assert "slower" in page


def test_an_altered_ledger_is_refused_by_name_before_any_work(
    runs: Runs, checkpoint_here: Path
) -> None:
    runs(checkpoint_here, {"a": GOOD})
    (ledger,) = (checkpoint_here.parent / "edgewright-ledger").glob("*.json")
    ledger.write_bytes(ledger.read_bytes().replace(b'"lost": 0', b'"lost": 9'))
    code, told = runs(checkpoint_here, {"a": GOOD}, "--overwrite")
    assert (code, told) == (4, {})
    assert ledger.name in runs.stderr


def test_the_written_configuration_repeats_the_run(
    runs: Runs, checkpoint_here: Path, tmp_path: Path
) -> None:
    options = ("--max-drop", "0.03", "--confidence", "0.9", "--workload", "1x8:1", "--seed", "7")
    entrants = {"a": GOOD}
    runs(
        checkpoint_here,
        entrants,
        *options,
        "--backend",
        "onnxruntime",
        "--ledger",
        str(tmp_path / "1"),
    )
    first = (runs.bundle / "manifest.json").read_bytes()
    written = runs.bundle / "run.yaml"
    runs.bundle = runs.folder / "again"
    runs(checkpoint_here, entrants, "--config", str(written), "--ledger", str(tmp_path / "2"))
    assert (runs.bundle / "manifest.json").read_bytes() == first
