"""A real PostgreSQL of the tests' own, and small file systems that fill up."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg
import pytest
from free_ports import free_port

USER = "edgewright"
PASSWORD = "geheim-7f3a"


def postgresql_binaries() -> Path:
    """The newest installed server's; the test is skipped where there is none."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[4])
    )
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl): apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).parent


class Postgres:
    """One server on a free port of 127.0.0.1, in a folder of its own."""

    def __init__(self) -> None:
        self._binaries = postgresql_binaries()
        # PostgreSQL refuses to run as root; the package brings a user of its own.
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="edgewright-postgresql-"))
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self.port = free_port()

    def __enter__(self) -> Self:
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", f"--pwfile={secret}", "--no-sync")  # fmt: skip
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1"
        # Tests kill processes, never the machine; the recovery after a kill would sync every file
        # of the cluster, which on a busy disk takes minutes.
        options += " -c fsync=off"
        log = self._folder / "log"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", log, "-w", "-t", "180", "start")

    def stop(self) -> None:
        """As a crash does: connections die without a word."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop", check=False)

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"t{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        where = f"host=127.0.0.1 port={self.port} user={USER} password={PASSWORD} dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(statement)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str | Path, check: bool = True) -> None:
        # Not a pipe: the server would inherit it, and the wait for its end would not end.
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [self._binaries / program, *arguments],
                user=self._user, stdout=said, stderr=said, check=False, cwd="/",
            )  # fmt: skip
            said.seek(0)
            assert not check or done.returncode == 0, said.read().decode()


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system of ``size`` at ``folder``; the test is skipped where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
