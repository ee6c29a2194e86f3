"""The ``edgewright`` command: finds subcommands by name and turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from edgewright import __version__, huge_pages
from edgewright.errors import BackendUnavailableError, EdgewrightError

# Command -> module and attribute, imported when the command is named: neither `edgewright --help`
# nor another stage pays for torch.
COMMANDS: Final = {
    "finetune": (
        "edgewright.finetune.cli",
        "finetune",
        "Fine-tune a pre-trained model on labelled examples.",
    ),
    "optimize": (
        "edgewright.optimize.cli",
        "optimize",
        "Make a checkpoint small and fast, with a certified loss.",
    ),
    "tune": (
        "edgewright.host_commands",
        "tune",
        "Measure a bundle's variants on this host, and choose among them.",
    ),
    "publish": (
        "edgewright.artifact_commands",
        "publish",
        "Add a bundle to a repository as the next version.",
    ),
    "build-engine": (
        "edgewright.engine_command",
        "build_engine",
        "Build a bundle's TensorRT engines on this GPU host, and prove them.",
    ),
    "serve": ("edgewright.serve.cli", "serve", "Answer gRPC calls from a repository of bundles."),
    "token": ("edgewright.serve.token_cli", "token", "Make tokens for those who call a server."),
    "predict": (
        "edgewright.predict_command",
        "predict",
        "Call a served model with texts or images.",
    ),
    "bench": (
        "edgewright.bench_command",
        "bench",
        "Put load on a server, and tell how many calls it answers, and how fast.",
    ),
    "feedback": (
        "edgewright.serve.feedback_cli",
        "feedback",
        "Turn gathered feedback into training data, or figures.",
    ),
    "admin": (
        "edgewright.admin_command",
        "admin",
        "Change what a running server serves, or ask it.",
    ),
    "rollback": (
        "edgewright.artifact_commands",
        "rollback",
        "Serve the version before the current one.",
    ),
    "inspect": ("edgewright.artifact_commands", "inspect", "Say what an artifact holds."),
    "verify": ("edgewright.artifact_commands", "verify", "Check every byte of an artifact."),
}

# The extra that brings what a command needs beyond the command line itself.
EXTRAS: Final = {
    "finetune": "train",
    "optimize": "optimize",
    "tune": "tune",
    "publish": "serve",
    "build-engine": "serve-gpu",
    "serve": "serve",
    "token": "serve",
    "predict": "client",
    "bench": "bench",
    "feedback": "serve",
    "admin": "client",
    "rollback": "serve",
    "inspect": "train",
}

INTERRUPTED: Final = 130


class LazyGroup(click.Group):
    """A group whose commands live in ``COMMANDS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the data's way, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    epilog="`edgewright COMMAND --help` ends with examples. EDGEWRIGHT_DEBUG=1 shows tracebacks.",
)
@click.version_option(__version__, prog_name="edgewright")
def edgewright() -> None:
    """From labelled examples to a small, fast, certified model behind gRPC, and back again."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that ``errors`` documents."""
    if arguments is None and sys.argv[1:2] == ["serve"]:
        huge_pages.start_again()
    # Whatever it has to say is in our errors too, and stderr may be read as JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is returned."""
    try:
        # Where a command leaves by ctx.exit(code), click gives the code back.
        code = edgewright.main(args=arguments, prog_name="edgewright", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except EdgewrightError as error:
        return _tell(error, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        told = _missing_library(error, sys.argv[1:] if arguments is None else arguments)
        return _tell(told, getattr(told, "exit_code", 1))
    except Exception as error:  # the edge: whatever is left is a bug, and is said to be one
        return _tell(error, 1)
    return code if isinstance(code, int) else 0


def _missing_library(error: ModuleNotFoundError, arguments: Sequence[str]) -> Exception:
    """What to install; ``error`` itself where a module of our own is missing, which is a bug."""
    command = next((each for each in arguments if each in COMMANDS), "")
    if command not in EXTRAS or (error.name or "").partition(".")[0] == "edgewright":
        return error
    told = BackendUnavailableError(
        f"`edgewright {command}` needs {error.name}, which is not installed; "
        f"run `pip install 'edgewright[{EXTRAS[command]}]'`"
    )
    told.__cause__ = error
    return told


def _tell(error: Exception, code: int) -> int:
    if os.environ.get("EDGEWRIGHT_DEBUG") == "1":
        traceback.print_exception(error)
    elif isinstance(error, EdgewrightError | OSError):  # a full disk or a locked folder is no bug
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
    else:
        click.echo(
            f"error: {type(error).__name__}: {error}\n"
            "This is a bug in edgewright; run again with EDGEWRIGHT_DEBUG=1 and report the trace.",
            err=True,
        )
    return code
