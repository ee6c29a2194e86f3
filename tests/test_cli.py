"""The command line as a shell sees it: help, exit codes, configuration files."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgewright import cli, errors
from edgewright.cli import COMMANDS, run
from edgewright.options import Command, Group, config_option, output_options
from edgewright.output import Output

EXIT_CODES = {
    errors.EdgewrightError("plain"): 1,
    errors.ConfigError(["first fault", "second fault"]): 2,
    errors.DataError("rows.csv, row 3"): 2,
    errors.InputError("texts[0] is empty", field="texts[0]"): 2,
    errors.AccuracyGateError("loses more than allowed"): 3,
    errors.ArtifactError("unusable"): 4,
    errors.ArtifactNotFoundError("no bundle"): 4,
    errors.IntegrityError("weights was altered"): 4,
    errors.ModelNotFoundError("no model"): 4,
    errors.BackendUnavailableError("no library"): 5,
    errors.ServiceError("cannot answer"): 6,
    errors.GpuLostError("cudaErrorIllegalAddress"): 6,
    errors.NotReadyError("starting"): 6,
    errors.OverloadedError("full", retry_after_s=1.0): 6,
    errors.CallerLimitError("too many of yours", retry_after_s=1.0): 6,
    errors.FeedbackStoreError("disk full"): 6,
    errors.DeadlineError("late"): 6,
    errors.GateInconclusiveError("too few rows"): 7,
    errors.AccessError("not let in"): 8,
    errors.UnauthenticatedError("who calls?"): 8,
    errors.PermissionDeniedError("lacks the right"): 8,
}


def load(name: str) -> click.Command:
    module, attribute, _ = COMMANDS[name]
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def every_command() -> list[tuple[str, ...]]:
    """The names of each command, those of a group's own commands included."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = load(name)
        found.append((name,))
        if isinstance(command, Group):
            found += [(name, each) for each in command.commands]
    return found


def find(names: tuple[str, ...]) -> click.Command:
    command = load(names[0])
    for name in names[1:]:
        assert isinstance(command, Group)
        command = command.commands[name]
    return command


def put(monkeypatch: pytest.MonkeyPatch, command: click.Command) -> None:
    """Make ``command`` the only one, under the name "test"."""
    module = type(sys)("edgewright_test_command")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "COMMANDS", {"test": (module.__name__, "command", "A test.")})


def failing(action: Callable[[], Any]) -> click.Command:
    """A command that does ``action``."""

    @click.command("test", cls=Command, examples=("edgewright test",), no_args_is_help=False)
    def command() -> None:
        action()

    return command


def raising(error: BaseException) -> click.Command:
    def action() -> None:
        raise error

    return failing(action)


def test_help_lists_every_command_in_the_order_of_the_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    listed = re.findall(r"^  ([\w-]+)  ", told.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)
    assert "Call a served model with texts or images." in told


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"edgewright, version \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_installed_script_runs() -> None:
    script = Path(sys.executable).with_name("edgewright")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: edgewright")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["--nonsense"], ["verify", "--nonsense"]])
def test_wrong_use_is_exit_2_and_says_so_on_stderr(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(arguments) == 2
    told, notes = capsys.readouterr()
    assert told == ""
    assert "Usage: edgewright" in notes


@pytest.mark.parametrize("names", every_command(), ids=" ".join)
def test_every_command_ends_its_help_with_examples(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*names, "--help"]) == 0
    told = capsys.readouterr().out
    last_section = re.split(r"^(\w+):$", told, flags=re.MULTILINE)[-2:]
    assert last_section[0] == "Examples"
    examples = [line.strip() for line in last_section[1].strip().splitlines()]
    assert any(f"edgewright {' '.join(names)} " in example for example in examples)


@pytest.mark.parametrize("name", ["serve", "bench"])
def test_many_options_stand_below_headings_each_once(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = cli.edgewright.get_command(click.Context(cli.edgewright), name)
    assert isinstance(command, Command)
    assert run([name, "--help"]) == 0
    told = capsys.readouterr().out
    headings = re.findall(r"^([A-Z][\w ]+):$", told, flags=re.MULTILINE)
    assert headings == [*command.sections.values(), "Examples"]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            option = max(parameter.opts, key=len)
            assert len(re.findall(rf"^  (?:-\w, )?{option}\b(?!-)", told, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("names", every_command(), ids=" ".join)
def test_every_example_in_help_is_one_that_the_command_takes(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = find(names)
    if isinstance(command, Group):  # its examples are its commands'
        own = {each for name in command.commands for each in find((*names, name)).examples}  # type: ignore[attr-defined]
        assert set(command.examples) <= own
        return
    assert isinstance(command, Command)
    monkeypatch.chdir(tmp_path)
    for config in re.findall(r"--config (\S+)", " ".join(command.examples)):
        Path(config).parent.mkdir(exist_ok=True)
        Path(config).touch()
    for example in command.examples:
        for call in re.findall(rf"edgewright {' '.join(names)} ([^|<>]*)", example):
            arguments = shlex.split(call, comments=True)
            with command.make_context(names[-1], arguments) as context:
                assert context.args == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_described_as_it_is_listed(name: str) -> None:
    command = load(name)
    assert command.name == name
    assert command.help
    assert COMMANDS[name][2].endswith(".")
    undocumented = [
        parameter.name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert not undocumented


def test_every_error_class_has_its_code_here() -> None:
    tree = {errors.EdgewrightError}
    while more := {sub for each in tree for sub in each.__subclasses__()} - tree:
        tree |= more
    assert tree == {type(error) for error in EXIT_CODES}


@pytest.mark.parametrize("error", EXIT_CODES, ids=lambda error: type(error).__name__)
def test_an_error_becomes_its_exit_code_and_a_line(
    error: errors.EdgewrightError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(monkeypatch, raising(error))
    monkeypatch.delenv("EDGEWRIGHT_DEBUG", raising=False)
    assert run(["test"]) == EXIT_CODES[error]
    told, notes = capsys.readouterr()
    assert told == ""
    assert notes == "".join(f"error: {line}\n" for line in str(error).splitlines())


def test_the_tree_drawn_in_errors_is_the_tree_there_is() -> None:
    drawn = dict(re.findall(r"(\w+Error)\b(?:[^\n]*?exit (\d))?", errors.__doc__ or ""))
    for error, code in EXIT_CODES.items():
        name = type(error).__name__
        assert name in drawn
        assert drawn[name] in ("", str(code))


def test_a_traceback_is_shown_only_for_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, raising(errors.DataError("row 3")))
    monkeypatch.setenv("EDGEWRIGHT_DEBUG", "1")
    assert run(["test"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setenv("EDGEWRIGHT_DEBUG", "0")
    assert run(["test"]) == 2
    assert capsys.readouterr().err == "error: row 3\n"


def test_what_nobody_foresaw_is_called_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, raising(ZeroDivisionError("division by zero")))
    assert run(["test"]) == 1
    notes = capsys.readouterr().err
    assert notes.startswith("error: ZeroDivisionError: division by zero\n")
    assert "bug in edgewright" in notes
    assert "EDGEWRIGHT_DEBUG=1" in notes
    assert "Traceback" not in notes


@pytest.mark.parametrize(
    ("missing", "code", "told"),
    [
        (
            "torch",
            5,
            "`edgewright finetune` needs torch, which is not installed; run `pip install 'edgewright[train]'`",
        ),
        ("edgewright.gone", 1, "This is a bug in edgewright"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    missing: str,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = ModuleNotFoundError(f"No module named {missing!r}", name=missing)
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: raising(lost))
    assert run(["finetune"]) == code
    assert told in capsys.readouterr().err


def test_what_the_machine_refuses_is_not_called_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, raising(PermissionError(13, "Permission denied", "/out")))
    assert run(["test"]) == 1
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: '/out'\n"


def test_an_interruption_is_exit_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, raising(KeyboardInterrupt()))
    assert run(["test"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_an_exit_code_of_a_command_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, failing(lambda: click.get_current_context().exit(9)))
    assert run(["test"]) == 9


def test_a_reader_that_leaves_early_is_no_error_to_speak_of(tmp_path: Path) -> None:
    """As in ``edgewright inspect bundle/ | head -n 1``."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, types, click\n"
        "from edgewright import cli\n"
        "from edgewright.output import Output\n"
        "module = types.ModuleType('much')\n"
        "module.command = click.Command(\n"
        "    'much', callback=lambda: Output().result({}, ('x' * 99 for _ in range(99_999)))\n"
        ")\n"
        "sys.modules['much'] = module\n"
        "cli.COMMANDS['much'] = ('much', 'command', 'Much.')\n"
        "cli.main(['much'])\n"
    )
    piped = f"{shlex.quote(sys.executable)} {script} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["x" * 99, "1"]
    assert done.stderr == ""


@click.command("test", cls=Command, examples=("edgewright test x",))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--max-drop", default=0.01)
@click.option("--seed", type=int, default=0)
@click.option("--name")
@click.option("--add", multiple=True)
@config_option
@output_options
def configured(output: Output, path: Path, **options: Any) -> None:
    """Say what it was given."""
    given = {"path": str(path), **options}
    output.note("a note")
    output.warn("a warning")
    output.result(given, [f"{key} is {value}" for key, value in given.items()])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def test_a_configuration_file_gives_what_is_not_typed(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, configured)
    config.write_text("max-drop: 0.5\nseed: 7\nname: null\n")
    assert run(["test", "x", "--seed", "3", "--json", "--config", str(config)]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given == {"path": "x", "max_drop": 0.5, "seed": 3, "name": None, "add": []}


@pytest.mark.parametrize(
    ("yaml", "added"),
    [("add: more.csv", ["more.csv"]), ("add: [a.csv, b.csv]", ["a.csv", "b.csv"]), ("add:", [])],
)
def test_an_option_that_may_be_repeated_takes_a_value_or_a_list(
    yaml: str,
    added: list[str],
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(monkeypatch, configured)
    config.write_text(yaml)
    assert run(["test", "x", "--json", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["add"] == added


def test_an_empty_configuration_file_changes_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, configured)
    config.write_text("# nothing yet\n")
    assert run(["test", "x", "--config", str(config)]) == 0


CONFIG_FAULTS = {
    "unknown keys": (b"max-dropp: 1\nsead: 2\n", ["max-dropp", "sead", "there are: ", "max-drop"]),
    "not YAML": (b"max-drop: [1\n", ["is not YAML"]),
    "not a mapping": (b"- max-drop\n", ["a mapping of option names"]),
    "not UTF-8": (b"name: na\xefve\n", ["is not YAML"]),
    "python in YAML": (b"name: !!python/object/apply:os.getcwd []\n", ["is not YAML"]),
    "wrong type": (b"seed: soon\n", ["--seed"]),
    "a list for a value": (b"seed: [1, 2]\n", ["seed is [1, 2]; a single value"]),
    "a key that is no word": (b"3: 4\n", ["3"]),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_configuration_file_that_cannot_be_meant_is_exit_2(
    fault: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, configured)
    content, told = CONFIG_FAULTS[fault]
    config.write_bytes(content)
    assert run(["test", "x", "--config", str(config)]) == 2
    notes = capsys.readouterr().err
    assert all(word in notes for word in told)
    assert "Traceback" not in notes
    assert "bug" not in notes


@pytest.mark.parametrize("path", ["none.yaml", "."])
def test_a_configuration_file_that_is_not_there_is_exit_2(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, configured)
    assert run(["test", "x", "--config", path]) == 2
    assert f"--config {path}" in capsys.readouterr().err


LINES = "path is x\nmax_drop is 0.01\nseed is 0\nname is None\nadd is ()\n"
OBJECT = '{"path": "x", "max_drop": 0.01, "seed": 0, "name": null, "add": []}\n'


@pytest.mark.parametrize(
    ("flags", "out", "err"),
    [
        ([], LINES, "a note\nwarning: a warning\n"),
        (["--quiet"], LINES, "warning: a warning\n"),
        (["--json"], OBJECT, "warning: a warning\n"),
        (["--quiet", "--json"], OBJECT, "warning: a warning\n"),
        (["--json", "--quiet"], OBJECT, "warning: a warning\n"),
    ],
)
def test_data_goes_to_stdout_and_the_rest_to_stderr(
    flags: list[str],
    out: str,
    err: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(monkeypatch, configured)
    assert run(["test", "x", *flags]) == 0
    assert capsys.readouterr() == (out, err)


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Output(json_only=True).result({"share": float("nan")}, [])
