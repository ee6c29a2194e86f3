"""Commands in processes of their own, which kill themselves where a test wants it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from edgewright import cli


def start_command(command: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Run the command line in a fork of this process, after ``before``; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.close(1)
        before()
        os._exit(cli.run(command))
    finally:
        os._exit(99)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def told(folder: Path) -> dict[str, str]:
    """What the bytes of a checkpoint depend on, the folder of its cache left out."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return {
        name: entry["sha256"] for name, entry in manifest["files"].items() if name != "run.yaml"
    }


def kill_at(module, name: str, call: int):
    """Makes the process kill itself at one call of a function."""

    def arrange() -> None:
        original, calls = getattr(module, name), [0]

        def counted(*args, **kwargs):
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, counted)

    return arrange
