"""What a host measured of a bundle's variants, and which one it serves because of it.

    STATE_DIR/<manifest hash>/<instruction set>-<hash of CPU and runtimes>/<threads>-threads.json

The folder is that of the bundle and of the host, so another CPU or another version of a runtime
finds no record and measures for itself. A record is written whole, carries a checksum, and one that
is damaged is left aside with a message: everything in it can be measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgewright.backends import get_backend
from edgewright.bundle import Bundle, Certificate, Verdict
from edgewright.errors import BackendUnavailableError
from edgewright.manifest import canonical_json, sha256_bytes
from edgewright.proof.host import available_cores, instruction_set, this_host
from edgewright.state_dir import StateDir
from edgewright.whole_file import write_whole

FORMAT: Final = "edgewright.host_record"
FORMAT_VERSION: Final = 1
_HASH_SHOWN: Final = 12  # hexadecimal digits; enough to tell the hosts of one state folder apart


@dataclass(frozen=True)
class HostKey:
    """What a measurement depends on: it says nothing where one of these differs."""

    instruction_set: str
    cpu: str
    runtimes: tuple[str, ...]  # of the bundle's backends installed here, as "onnxruntime 1.32.0"
    threads: int

    @classmethod
    def here(cls, bundle: Bundle, threads: int | None, isa: str | None = None) -> HostKey:
        """This host, for a bundle on ``threads``: None for as many as it was certified with.

        ``isa`` stands in for the host's class of instruction set.
        """
        runtimes = {_runtime(variant.backend) for variant in bundle.variants}
        return cls(
            instruction_set=isa or instruction_set(),
            cpu=this_host().cpu,
            runtimes=tuple(sorted(filter(None, runtimes))),
            threads=threads_here(bundle, threads),
        )

    @property
    def file_name(self) -> str:
        """Where its records lie within a bundle's folder."""
        identity = canonical_json([self.instruction_set, self.cpu, self.runtimes])
        digest = sha256_bytes(identity)[:_HASH_SHOWN]
        return f"{self.instruction_set}-{digest}/{self.threads}-threads.json"


def threads_here(bundle: Bundle, threads: int | None) -> int:
    """As many as asked for, else as were certified and this host has cores for."""
    return threads or min(bundle.certified_threads, available_cores())


def _runtime(backend: str) -> str | None:
    try:
        return get_backend(backend).runtime()
    except BackendUnavailableError:
        return None


@dataclass(frozen=True)
class Speed:
    """One variant at the workload, timed in turns with the others."""

    p50_ms: Mapping[str, float]  # by shape, as "1x32"
    workload_ms: float  # the medians weighted by the workload's shares
    speedup: float  # how many times as fast as the baseline
    speedup_interval: tuple[float, float]

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than the baseline beyond the noise of the measurement."""
        return self.speedup_interval[0] > 1.0


@dataclass(frozen=True)
class VariantHere:
    """What became of one of the bundle's variants on this host."""

    name: str
    verdict: Verdict  # PASS where the certificate holds here, VERIFIED where rows proved it here
    speed: Speed | None  # None where it was refused
    refused: str = ""  # why it is not served here; empty: it may be
    recount: Certificate | None = None  # of rows given to `edgewright tune --data`

    def with_recount(self, recount: Certificate | None) -> VariantHere:
        """What holds once ``recount`` is known too; a PASS that holds here stays one."""
        if recount is None or self.refused:
            return self
        verdict = self.verdict
        if recount.verdict is Verdict.FAIL or (
            recount.verdict is Verdict.VERIFIED and verdict is not Verdict.PASS
        ):
            verdict = recount.verdict
        return replace(self, recount=recount, verdict=verdict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        recount = self.recount.to_json() if self.recount else None
        return {**asdict(self), "recount": recount}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VariantHere:
        """What ``to_json`` wrote."""
        speed, recount = value["speed"], value["recount"]
        if speed is not None:
            low, high = speed["speedup_interval"]
            speed = Speed(**{**speed, "speedup_interval": (float(low), float(high))})
        return cls(
            name=value["name"],
            verdict=Verdict(value["verdict"]),
            speed=speed,
            refused=value["refused"],
            recount=Certificate.from_json(recount) if recount else None,
        )


@dataclass(frozen=True)
class HostRecord:
    """One bundle on one host: every variant, and the choice."""

    manifest_sha256: str
    host: HostKey
    workload: str
    variants: tuple[VariantHere, ...]
    chosen: str

    def variant(self, name: str) -> VariantHere:
        """The variant of this name; KeyError where there is none."""
        return {each.name: each for each in self.variants}[name]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        return {
            "manifest_sha256": self.manifest_sha256,
            "host": {**asdict(self.host), "runtimes": list(self.host.runtimes)},
            "workload": self.workload,
            "variants": [each.to_json() for each in self.variants],
            "chosen": self.chosen,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> HostRecord:
        """What ``to_json`` wrote."""
        return cls(
            manifest_sha256=value["manifest_sha256"],
            host=HostKey(**{**value["host"], "runtimes": tuple(value["host"]["runtimes"])}),
            workload=value["workload"],
            variants=tuple(VariantHere.from_json(each) for each in value["variants"]),
            chosen=value["chosen"],
        )


def record_file(state: StateDir, bundle: Bundle, host: HostKey) -> Path:
    """Where the record of a bundle on a host lies, or would."""
    return state.of(bundle.artifact.manifest_sha256) / host.file_name


def write_record(state: StateDir, bundle: Bundle, record: HostRecord) -> Path:
    """Put a record in its place, in that of an earlier one.

    Raises:
        OSError: the state folder cannot be written.
    """
    file = record_file(state, bundle, record.host)
    write_whole(file, _with_checksum(record.to_json()))
    return file


def read_record(
    state: StateDir, bundle: Bundle, host: HostKey, warn: Callable[[str], None]
) -> HostRecord | None:
    """The record of this bundle on this host; None where there is none that can be used.

    ``warn`` is told of one that is damaged, of another format, or of another bundle or host.
    """
    file = record_file(state, bundle, host)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(f"{file} cannot be read ({error.strerror}); it is left aside")
        return None
    try:
        record = _parse(content)
        fault = "" if record is None else _mismatch(record, bundle, host)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        record, fault = None, "is damaged"
    if record is None or fault:
        warn(f"{file} {fault or 'is of another version of edgewright'}; it is left aside")
        return None
    return record


def records_here(state: StateDir, bundle: Bundle, warn: Callable[[str], None]) -> list[HostRecord]:
    """Every record of this bundle on this host, by threads; ``warn`` as in ``read_record``."""
    if not state.of(bundle.artifact.manifest_sha256).is_dir():
        return []  # so that no runtime need be imported
    host = HostKey.here(bundle, None)
    files = record_file(state, bundle, host).parent.glob("*-threads.json")
    threads = sorted(int(file.name.split("-")[0]) for file in files if file.name[0].isdecimal())
    found = [read_record(state, bundle, replace(host, threads=each), warn) for each in threads]
    return [record for record in found if record is not None]


def _parse(content: bytes) -> HostRecord | None:
    """ValueError and its like where it is damaged; None where it has another format."""
    value = json.loads(content)
    if (value["format"], value["format_version"]) != (FORMAT, FORMAT_VERSION):
        return None
    body = {key: value[key] for key in value.keys() - {"format", "format_version", "checksum"}}
    if content != _with_checksum(body):
        raise ValueError("the checksum differs")
    return HostRecord.from_json(body)


def _mismatch(record: HostRecord, bundle: Bundle, host: HostKey) -> str:
    if record.manifest_sha256 != bundle.artifact.manifest_sha256:
        return "is the record of another bundle"
    if record.host != host:
        return "is the record of another host"
    recorded = {each.name: each for each in record.variants}
    known = {each.name for each in bundle.variants}
    if not known >= set(recorded) or record.chosen not in recorded:
        return "names variants that the bundle lacks"
    return "chooses what it refuses" if recorded[record.chosen].refused else ""


def _with_checksum(body: Mapping[str, Any]) -> bytes:
    value = {**body, "format": FORMAT, "format_version": FORMAT_VERSION}
    return canonical_json({**value, "checksum": sha256_bytes(canonical_json(value))})
