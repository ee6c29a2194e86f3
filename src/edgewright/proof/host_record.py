"""What a host measured of a bundle's variants, and which one it serves because of it.

    STATE_DIR/bundles/<manifest hash>/<instruction set>-<hash of the host>/<threads>-threads.json

The folder is that of the bundle and of the host, so another CPU or another version of a runtime
finds no record and measures for itself. One that is damaged is left aside with a message: all that
is in it can be measured again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgewright.backends import get_backend
from edgewright.bundle import Bundle, Certificate, Verdict
from edgewright.errors import BackendUnavailableError, IntegrityError
from edgewright.manifest import canonical_json, sha256_bytes
from edgewright.proof.host import available_cores, instruction_set, this_host
from edgewright.state_dir import StateDir

FORMAT: Final = "edgewright.host_record"
FORMAT_VERSION: Final = 1
_RECORD: Final = "-threads"
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
    def folder(self) -> str:
        """What a bundle's results of this host lie in, within the bundle's part of the state."""
        identity = canonical_json([self.instruction_set, self.cpu, self.runtimes])
        return f"{self.instruction_set}-{sha256_bytes(identity)[:_HASH_SHOWN]}"

    @property
    def record_name(self) -> str:
        """Under which the state folder keeps this host's record of a bundle."""
        return f"{self.folder}/{self.threads}{_RECORD}"


def threads_here(bundle: Bundle, threads: int | None, cores: int | None = None) -> int:
    """As many as asked for, else as were certified and ``cores``, or this host's, can run."""
    return threads or min(bundle.certified_threads, cores or available_cores())


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


def write_record(state: StateDir, record: HostRecord) -> Path:
    """Put a record in its place, in that of an earlier one; OSError where it cannot be written."""
    value = {**record.to_json(), "format": FORMAT, "format_version": FORMAT_VERSION}
    return state.write(record.manifest_sha256, record.host.record_name, value)


def read_record(
    state: StateDir, bundle: Bundle, host: HostKey, warn: Callable[[str], None]
) -> HostRecord | None:
    """The record of this bundle on this host; None where there is none that can be used.

    ``warn`` is told of one that is damaged, of another format, or of another bundle or host.
    """
    manifest = bundle.artifact.manifest_sha256
    try:
        value = state.read(manifest, host.record_name)
        record = None if value is None else _parse(value)
    except (IntegrityError, OSError) as error:
        warn(f"what this host measured of {bundle.path} is left aside: {error}")
        return None
    fault = "" if record is None else _mismatch(record, bundle, host)
    if fault:
        warn(
            f"what this host measured of {bundle.path} is left aside: "
            f"{state.of(manifest) / host.record_name}.json {fault}"
        )
        return None
    return record


def records_here(state: StateDir, bundle: Bundle, warn: Callable[[str], None]) -> list[HostRecord]:
    """Every record of this bundle on this host, by threads; ``warn`` as in ``read_record``."""
    folder = state.of(bundle.artifact.manifest_sha256)
    if not folder.is_dir():
        return []  # so that no runtime need be imported
    host = HostKey.here(bundle, None)
    names = [file.stem.removesuffix(_RECORD) for file in (folder / host.folder).glob("*.json")]
    threads = sorted(int(name) for name in names if name.isdecimal())
    found = [read_record(state, bundle, replace(host, threads=each), warn) for each in threads]
    return [record for record in found if record is not None]


def _parse(value: Mapping[str, Any]) -> HostRecord:
    if (value.get("format"), value.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise IntegrityError("it is of another version of edgewright")
    try:
        return HostRecord.from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"it is no record of a host ({error!r})") from error


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
