"""The ledger: which files were tried on a certify split, for as long as the split lives.

Trying many files on the same rows and keeping the one that passes proves nothing. So each certify
split has ``SLOTS`` trials, ever, across runs: a file's counts are written down before its verdict
is told, the same file gets the counts that are written, and a file that comes after the last slot
is REUSED until fresh rows come (which make another split, with a ledger of its own).

What is kept are the counts b, c and n and the slot, not the verdict. The upper bound at the slot's
error rate does not depend on the budget, so asking again with another budget is answered from the
counts without reading a row, and is as sound as the first answer. Another confidence gives the same
slot the error rate that this confidence leaves it; the certificate states it. Choosing the
confidence after having seen a bound is the one freedom left: then read the error rate as stated,
not as a promise made beforehand.

    edgewright-ledger/certify-<hash of the split>.json     the trials, and a checksum over them
    edgewright-ledger/certify-<hash of the split>.lock     held while a run reads certify rows

A file is replaced by rename, so a crash leaves the old trials or the new ones. Deleting the folder
starts the count anew, and with it the proof's honesty: nothing here can prevent that.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgewright.errors import ConfigError, IntegrityError
from edgewright.manifest import canonical_json, replace_file, sha256_bytes
from edgewright.proof.certificate import SLOTS, PairedCounts, Subject, Trial

FORMAT: Final = "edgewright.ledger"
FORMAT_VERSION: Final = 2
# In 1 a subject had no interface: its trial counts, and proves no more.
_READ_VERSIONS: Final = (1, 2)
DEFAULT_FOLDER: Final = "edgewright-ledger"  # beside the checkpoint


@dataclass(frozen=True)
class Entry:
    """One file that was tried: what it was called then, what it binds, and what came out."""

    name: str
    subject: Subject
    trial: Trial


@dataclass
class Ledger:
    """The trials of one certify split. Open it with ``open_ledger``, which holds the lock."""

    file: Path
    split_sha256: str
    entries: list[Entry]

    @property
    def free_slots(self) -> int:
        """Trials that are left."""
        return SLOTS - len(self.entries)

    def find(self, subject: Subject) -> Trial | None:
        """The trial that is written for exactly this subject."""
        return next((each.trial for each in self.entries if each.subject == subject), None)

    def record(
        self, names: Mapping[Subject, str], counts: Mapping[Subject, PairedCounts], threads: int
    ) -> None:
        """Give each new subject the next slot, and write all down before anyone is told.

        Args:
            names: what each subject is called; their order is the order of the slots.
            counts: of each subject, on the certify rows.
            threads: that the subjects ran on.

        Raises:
            ValueError: more subjects than free slots, or one that has a trial already.
        """
        if len(names) > self.free_slots or any(self.find(subject) for subject in names):
            raise ValueError(f"{self.file} has {self.free_slots} trials left, each for a new file")
        first = len(self.entries)
        self.entries += [
            Entry(name, subject, Trial(slot, counts[subject], threads))
            for slot, (subject, name) in enumerate(names.items(), first)
        ]
        self._write()

    def _write(self) -> None:
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "certify_sha256": self.split_sha256,
            "trials": [_entry_json(entry) for entry in self.entries],
        }
        replace_file(self.file, _with_checksum(body))


@contextmanager
def open_ledger(
    folder: Path, split_sha256: str, *, on_wait: Callable[[Path], None]
) -> Iterator[Ledger]:
    """The ledger of one certify split, locked against other runs until the block ends.

    Args:
        folder: holds the ledgers; made when missing.
        split_sha256: ``certify_sha256`` of the split's rows.
        on_wait: called once, with the lock's path, when another run holds the lock.

    Raises:
        ConfigError: ``folder`` cannot be made or written.
        IntegrityError: the ledger was altered, or is of a newer format; names the file.
    """
    file = folder / f"certify-{split_sha256}.json"
    lock = file.with_suffix(".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = lock.open("w")
    except OSError as error:
        raise ConfigError(
            f"cannot write into {folder} ({error.strerror}); choose another folder with --ledger"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait(lock)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield Ledger(file, split_sha256, _read(file, split_sha256))


def _read(file: Path, split_sha256: str) -> list[Entry]:
    if not file.exists():
        return []
    content = file.read_bytes()
    try:
        body = {key: value for key, value in json.loads(content).items() if key != "checksum"}
        intact = content == _with_checksum(body) and body["certify_sha256"] == split_sha256
    except (ValueError, KeyError, AttributeError) as error:
        raise _altered(file) from error
    if not intact:
        raise _altered(file)
    if body["format"] != FORMAT or body["format_version"] not in _READ_VERSIONS:
        raise IntegrityError(
            f"{file} has format {body['format']} {body['format_version']}, and this edgewright "
            f"reads {FORMAT} {FORMAT_VERSION}; upgrade edgewright"
        )
    return [_entry(each) for each in body["trials"]]


def _altered(file: Path) -> IntegrityError:
    return IntegrityError(
        f"{file} was altered, so it cannot be told how often the certify rows were used; restore "
        "it from a backup, or bring fresh rows (`edgewright finetune --add`) and a new ledger"
    )


def _with_checksum(body: Mapping[str, Any]) -> bytes:
    return canonical_json({**body, "checksum": sha256_bytes(canonical_json(body))})


def _entry_json(entry: Entry) -> dict[str, Any]:
    counts = entry.trial.counts
    return {
        "name": entry.name,
        "subject": entry.subject.to_json(),
        "slot": entry.trial.slot,
        "n": counts.n,
        "lost": counts.lost,
        "won": counts.won,
        "threads": entry.trial.threads,
    }


def _entry(value: Mapping[str, Any]) -> Entry:
    counts = PairedCounts(n=value["n"], lost=value["lost"], won=value["won"])
    trial = Trial(slot=value["slot"], counts=counts, threads=value["threads"])
    return Entry(value["name"], Subject.from_json(value["subject"]), trial)
