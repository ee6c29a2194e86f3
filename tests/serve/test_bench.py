"""``edgewright bench`` on a real server, in both of its protocols."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewright.cli import run
from edgewright.serve.tokens import Right, new_token

from .conftest import Launch

SHORT = ("--rate", "40", "--duration", "0.5", "--warm-up", "0", "--rows-per-call", "3", "--json")


@pytest.mark.parametrize("protocol", ["edgewright", "oip"])
def test_a_served_model_answers_every_call(
    launch: Launch, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    target = f"127.0.0.1:{launch().server.port}"
    assert run(["bench", target, "--model", "news", "--protocol", protocol, *SHORT]) == 0
    record = json.loads(capsys.readouterr().out)
    (result,) = record["results"]
    assert (result["calls"]["due"], result["calls"]["answered"]) == (20, 20)
    assert result["errors"] == []
    assert (record["protocol"], record["model"]["name"]) == (protocol, "news")
    assert record["model"]["version"] == "1"


@pytest.mark.parametrize("protocol", ["edgewright", "oip"])
def test_an_unknown_model_is_exit_4_and_a_call_too_large_exit_2(
    launch: Launch, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    target = f"127.0.0.1:{launch().server.port}"
    assert run(["bench", target, "--model", "mail", "--protocol", protocol]) == 4
    assert "no model 'mail'" in capsys.readouterr().err
    many = ("--rows-per-call", "300")
    assert run(["bench", target, "--model", "news", "--protocol", protocol, *many]) == 2
    assert "at most 256" in capsys.readouterr().err


def test_a_token_goes_with_every_call(
    launch: Launch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    secret, token = new_token("bench", (Right.CALL,))
    (tmp_path / "tokens.txt").write_text(token.line() + "\n")
    (tmp_path / "mine.token").write_text(secret)
    target = f"127.0.0.1:{launch(tokens=tmp_path / 'tokens.txt').server.port}"
    assert run(["bench", target, "--model", "news", *SHORT]) != 0
    assert capsys.readouterr().out == ""
    mine = ("--token-file", str(tmp_path / "mine.token"))
    assert run(["bench", target, "--model", "news", *SHORT, *mine]) == 0
    told, notes = capsys.readouterr()
    (result,) = json.loads(told)["results"]
    assert result["calls"]["answered"] == 20
    assert secret not in told + notes
