"""The host's fingerprint, from the /proc/cpuinfo of machines of several kinds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cgroups
import pytest
import without_amx

from edgewright.proof import cgroup, host
from edgewright.proof.host import available_cores, has_bf16, instruction_set, saturates, this_host

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: {name}
flags\t\t: {flags}
bugs\t\t: spectre_v1: spectre_v2

processor\t: 1
model name\t: another
flags\t\t: other flags
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm {flags}
"""
AVX2 = "fpu sse4_2 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw"
KINDS = {
    "sapphire rapids": (f"{AVX512} avx512_vnni avx_vnni amx_tile amx_int8", "amx", True),
    "zen 4": (f"{AVX512} avx512_vnni avx512_bf16", "avx512-bf16-vnni", True),
    "ice lake": (f"{AVX512} avx512_vnni", "avx512-vnni", True),
    "alder lake": (f"{AVX2} avx_vnni", "avx-vnni", True),
    "skylake server": (AVX512, "avx512", False),
    "no avx512bw": (f"{AVX2} avx512f", "avx2", False),
    "haswell": (AVX2, "avx2", False),
    "nehalem": ("fpu sse4_2", "baseline", False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_of_an_x86_follows_from_its_flags(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    flags, name, vnni = KINDS[kind]
    fingerprint = this_host(X86.format(name="Some CPU @ 2.40GHz", flags=flags))
    assert fingerprint.instruction_set == f"x86_64-{name}"
    assert saturates(fingerprint.instruction_set) is not vnni
    assert fingerprint.cpu == "Some CPU @ 2.40GHz"
    assert fingerprint.flags == tuple(sorted(flags.split()))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx512_bf16", True),
        ("amx_bf16", True),
        ("bf16", True),
        ("avx512_vnni", False),
        ("", False),
    ],
)
def test_bf16_is_told_by_its_instructions(flags: str, expected: bool) -> None:
    assert has_bf16(frozenset(flags.split())) is expected


@pytest.mark.parametrize(
    ("flags", "name"), [("asimddp i8mm", "i8mm"), ("asimddp", "dotprod"), ("", "neon")]
)
def test_the_class_of_an_arm_follows_from_its_features(
    flags: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    fingerprint = this_host(ARM.format(flags=flags))
    assert fingerprint.instruction_set == f"aarch64-{name}"
    assert not saturates(fingerprint.instruction_set)
    assert fingerprint.cpu  # such a cpuinfo names none


def test_a_machine_without_cpuinfo_has_a_class_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_CPUINFO", tmp_path / "none")
    assert instruction_set() == f"{platform.machine()}-baseline"
    assert this_host().flags == ()


@pytest.mark.parametrize(("is_permitted", "name"), [(True, "amx"), (False, "avx512-vnni")])
def test_amx_counts_only_where_this_process_may_use_it(
    is_permitted: bool, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(host, "_CPUINFO", sapphire_rapids(tmp_path))
    monkeypatch.setattr(host, "_amx_is_permitted", lambda: is_permitted)
    assert instruction_set() == this_host().instruction_set == f"x86_64-{name}"
    assert ("amx_int8" in this_host().flags) is is_permitted


def sapphire_rapids(folder: Path) -> Path:
    file = folder / "cpuinfo"
    file.write_text(X86.format(name="Xeon", flags=KINDS["sapphire rapids"][0]))
    return file


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is a part of x86_64")
def test_a_sandbox_that_denies_amx_is_a_host_without_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgewright.proof import host\n"
        "host._CPUINFO = Path(sys.argv[1]); print(host.instruction_set())"
    )
    command = [sys.executable, without_amx.__file__, code, str(sapphire_rapids(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "x86_64-avx512-vnni"


def test_this_machine_is_described_as_json() -> None:
    described = this_host().to_json()
    assert json.loads(json.dumps(described)) == described
    assert described["instruction_set"] == instruction_set()
    assert described["cores"] == available_cores()
    assert described["system"].startswith("Linux ")


@pytest.fixture
def one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def test_cores_are_those_this_process_may_use(one_core: None) -> None:
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("limit", "cores"),
    [(None, 8), (0.5, 1), (1.5, 1), (3.0, 3), (3.5, 3), (99.0, 8)],
)
@pytest.mark.parametrize("place", cgroups.PLACES)
def test_a_cgroup_limit_cuts_the_cores(
    limit: float | None,
    cores: int,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    cgroups.PLACES[place](tmp_path, limit)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert available_cores() == cores


def test_the_tightest_limit_of_a_cgroup_and_those_above_it_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cgroups.service_of_v2(tmp_path, 6.0)
    (tmp_path / "sys/fs/cgroup/system.slice/cpu.max").write_text("200000 100000\n")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert cgroup.cpu_limit() == 2.0


@pytest.mark.parametrize("content", ["", "max", "-1 100000", "100000 0", "lots of them"])
def test_a_limit_that_cannot_be_read_is_none(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cgroups.container_of_v2(tmp_path, 1.0)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(content)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert cgroup.cpu_limit() is None


def test_a_system_without_cgroups_has_no_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert cgroup.cpu_limit() is None
