"""Starts several Python processes that find each other, as torchrun would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import TCPStore

PROGRAM = Path(__file__).with_name("one_of_several.py")


@contextmanager
def started(*arguments: object, count: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """``python ARGUMENTS``, by rank; killed when the block ends.

    As torchrun does, the parent holds the store where they meet, so that its port is free.
    """
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(PROGRAM.parent.parent),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run(*arguments: object, count: int = 2) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of ``one_of_several ARGUMENTS``, by rank, ended by themselves."""
    ended = []
    with started(PROGRAM, *arguments, count=count) as processes:
        for process in processes:
            out, err = process.communicate(timeout=300)
            ended.append((process.returncode, out, err))
    return ended
