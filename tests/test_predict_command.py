"""``edgewright predict`` as a shell sees it: output, streams and exit codes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme
from fake_server import FakeServer
from free_ports import silent_port

from edgewright.cli import run
from edgewright.errors import InputError, OverloadedError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.serve.prediction_service import PredictionService
from edgewright.v1.prediction_pb2 import ClassifyTextRequest


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def predict(server: FakeServer, *arguments: str | Path) -> int:
    return run(["predict", "--target", server.target, *map(str, arguments)])


def test_json_is_one_object_with_a_prediction_for_each_text(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(server, "--model", "news", "--json", "United won", "x" * 1001) == 0
    told, notes = capsys.readouterr()
    result = json.loads(told)
    assert (result["target"], result["model"]) == (server.target, "news")
    first, second = result["predictions"]
    assert list(first) == ["prediction_id", "label", "score", "scores", "truncated"]
    assert (first["label"], first["score"]) == ("sport", 0.75)
    assert first["scores"] == {"sport": 0.75, "business": 0.25}
    assert (first["truncated"], second["truncated"]) == (False, True)
    assert first["prediction_id"] != second["prediction_id"]
    assert notes == ""


def test_a_person_gets_a_line_for_each_text(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(server, "United won", "Shares\x1b[2J\nrose " * 80) == 0
    told, notes = capsys.readouterr()
    first, second = told.splitlines()
    assert first == "sport    0.7500  United won"
    assert second.startswith("business 0.7500  Shares [2J rose Shares")
    assert second.endswith("…")
    assert notes == "1 of 2 texts were longer than the model reads, and were cut\n"


def test_top_k_shows_more_classes_and_quiet_says_less(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(server, "--quiet", "--top-k", "2", "x" * 1001) == 0
    told, notes = capsys.readouterr()
    assert told.startswith("business 0.7500  sport    0.2500  xxx")
    assert notes == ""
    assert server.requests[0].top_k == 2


def test_a_file_is_classified_in_order_and_in_several_requests(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = tmp_path / "field.csv"
    rows.write_text("text,label\n" + "United won,sport\nShares rose,business\n" * 50)
    assert predict(server, "--file", rows, "--json") == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert [each["label"] for each in predictions] == ["sport", "business"] * 50
    assert len(server.requests) == 2


@pytest.mark.parametrize("arguments", [["-"], []])
def test_lines_of_a_pipe_are_classified(
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    pipe(monkeypatch, "Zürich won\nShares rose\n".encode())
    assert predict(server, "--json", *arguments) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert [each["label"] for each in predictions] == ["sport", "business"]


def test_the_model_may_come_from_a_configuration_file(server: FakeServer, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: news\ntop-k: 1\n")
    assert predict(server, "--config", config, "x") == 0
    assert (server.requests[0].model, server.requests[0].top_k) == ("news", 1)


def test_nothing_listening_is_exit_6_and_names_the_next_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with silent_port() as port:
        assert run(["predict", "--target", f"127.0.0.1:{port}", "x"]) == 6
    told, notes = capsys.readouterr()
    assert told == ""
    assert notes.startswith(f"error: no gRPC server answers at 127.0.0.1:{port}")
    assert "`edgewright serve REPOSITORY" in notes


def test_an_unknown_model_is_exit_4(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(server, "--model", "mail", "x") == 4
    assert "no model 'mail'" in capsys.readouterr().err


def test_a_refused_row_is_exit_2_and_named_by_file_and_row(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(request: Any) -> InputError | None:
        texts = list(request.texts)
        return (
            InputError("too long", field=f"texts[{texts.index('bad')}]") if "bad" in texts else None
        )

    server.refuse = refuse
    rows = tmp_path / "rows.csv"
    rows.write_text("text\n" + "fine\n" * 70 + "bad\n")
    assert predict(server, "--file", rows, "--json") == 2
    told, notes = capsys.readouterr()
    assert told == ""
    assert f"{rows}: row 71 (line 72), column 'text': {server.target}: too long" in notes


def test_a_full_queue_is_exit_6(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.failures = [OverloadedError("the queue is full", retry_after_s=99.0)]
    assert predict(server, "x") == 6
    assert "the queue is full" in capsys.readouterr().err


def test_a_deadline_is_exit_6(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.hold.clear()
    assert predict(server, "--timeout", "0.2", "x") == 6
    assert "within 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--file", "rows.csv"], "choose one"),
        (["x", "--text-column", "text"], "give --file too"),
        (["--file", "none.csv"], "none.csv: cannot be read"),
        (["--top-k", "-1", "x"], "--top-k"),
        (["--timeout", "0", "x"], "--timeout"),
        (["--timeout", "nan", "x"], "a positive number of seconds"),
        (["--timeout", "soon", "x"], "--timeout"),
        ([""], "texts[0] is empty"),
        (["fine", "not \udcff Unicode"], "TEXT 2"),
        (["--model"], "--model"),
    ],
)
def test_bad_use_is_exit_2_and_says_what_to_change(
    server: FakeServer, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    server.refuse = lambda request: (
        InputError("texts[0] is empty", field="texts[0]") if "" in request.texts else None
    )
    assert predict(server, *arguments) == 2
    told, notes = capsys.readouterr()
    assert told == ""
    assert message in notes
    assert "Traceback" not in notes


def test_a_target_without_a_port_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "--target", "localhost", "x"]) == 2
    assert "HOST:PORT is expected" in capsys.readouterr().err


def test_a_terminal_without_a_text_is_asked_for_one(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert predict(server) == 2
    assert "nothing to classify" in capsys.readouterr().err


def test_a_token_comes_from_a_file_or_the_environment_and_is_never_shown(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_TOKEN", "from-environment")
    assert predict(server, "x") == 0
    file = tmp_path / "mine.token"
    file.write_text("from-file\n")
    assert predict(server, "x", "--token-file", file) == 0
    monkeypatch.setenv("EDGEWRIGHT_TOKEN_FILE", str(file))
    assert predict(server, "x") == 0
    sent = [each["authorization"] for each in server.metadata]
    assert sent == ["Bearer from-environment", "Bearer from-file", "Bearer from-file"]
    told = "".join(capsys.readouterr())
    assert "from-" not in told
    for content in ("", "name 00ff call\n"):
        file.write_text(content)
        assert predict(server, "x") == 2
        assert "is to hold a token and nothing else" in capsys.readouterr().err
    assert predict(server, "x", "--token-file", tmp_path / "none") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_token_is_not_sent_to_another_machine_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_TOKEN", "secret")
    assert run(["predict", "--target", "nowhere.invalid:1", "x"]) == 2
    told = capsys.readouterr().err
    assert "--token-in-clear" in told
    assert "secret" not in told


def test_it_speaks_tls_and_has_its_faults_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = trustme.CA()
    issued, mine = authority.issue_cert("127.0.0.1"), authority.issue_cert("me")
    root, certificate, key = (tmp_path / name for name in ("ca.pem", "me.pem", "me.key"))
    authority.cert_pem.write_to_path(str(root))
    mine.cert_chain_pems[0].write_to_path(str(certificate))
    mine.private_key_pem.write_to_path(str(key))
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], root.read_bytes(), require_client_auth=True)
    with FakeServer(credentials=credentials) as server:
        pem = ("--tls-ca", root, "--tls-cert", certificate, "--tls-key", key)
        assert predict(server, *pem, "x") == 0
        assert predict(server, "--tls-ca", root, "--tls-cert", tmp_path / "none", "x") == 2
    told = capsys.readouterr().err
    assert f"no file {tmp_path / 'none'}" in told
    assert "given together or not at all" in told


@pytest.mark.parametrize(
    ("given", "reads", "advice"),
    [
        (IMAGE, TEXT, "news reads texts; give TEXT or --file ROWS, not --image"),
        (TEXT, IMAGE, "news reads images; give --image FILE"),
    ],
)
def test_a_model_of_the_other_kind_is_told_with_the_option_that_it_takes(
    given: Kind,
    reads: Kind,
    advice: str,
    server: FakeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = SimpleNamespace(name="news", kind=reads)
    predictor = SimpleNamespace(registry=SimpleNamespace(route=lambda *_: model))
    request = ClassifyTextRequest()
    with pytest.raises(InputError) as refused:  # in the words of a real server
        PredictionService._ready(SimpleNamespace(_predictor=predictor), request, given)
    server.failures.append(refused.value)
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    arguments = ["--image", tmp_path / "cat.jpg"] if given is IMAGE else ["a text"]
    assert predict(server, *arguments) == 2
    assert capsys.readouterr().err == f"error: {server.target}: {advice}\n"


def test_a_folder_of_images_is_not_said_to_be_missing(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(server, "--image", tmp_path, "--image", tmp_path / "cat.jpg") == 2
    told = capsys.readouterr().err
    assert f"--image {tmp_path}: is a folder; give its files" in told
    assert f"--image {tmp_path / 'cat.jpg'}: no such file" in told
