"""What of the host a certificate and a measurement depend on."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgewright.proof.cgroup import cpu_limit

_CPUINFO: Final = Path("/proc/cpuinfo")
# The first that applies names the class: integer kernels differ between these, and with them the
# rounding of int8 activations.
_CLASSES: Final = (
    ("amx", {"amx_int8"}),
    ("avx512-bf16-vnni", {"avx512_vnni", "avx512_bf16"}),
    ("avx512-vnni", {"avx512_vnni"}),
    ("avx-vnni", {"avx_vnni"}),
    ("avx512", {"avx512f", "avx512bw"}),
    ("avx2", {"avx2"}),
    ("i8mm", {"i8mm"}),
    ("dotprod", {"asimddp"}),
    ("neon", {"asimd"}),
)
_BF16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's


# arch_prctl of x86_64 Linux (Documentation/arch/x86/xstate.rst), which the runtimes ask as well.
_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18


@dataclass(frozen=True)
class Host:
    """The machine that measured something."""

    cpu: str
    instruction_set: str
    flags: tuple[str, ...]
    cores: int
    system: str

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "flags": list(self.flags)}


def this_host(cpuinfo: str | None = None) -> Host:
    """The machine this runs on; ``cpuinfo`` stands in for /proc/cpuinfo in tests."""
    text = cpuinfo if cpuinfo is not None else _read_cpuinfo()
    flags = _flags(text) if cpuinfo is not None else _usable_flags()
    return Host(
        cpu=_field(text, "model name") or platform.processor() or platform.machine(),
        instruction_set=instruction_set(flags),
        flags=tuple(sorted(flags)),
        cores=available_cores(),
        system=f"{platform.system()} {platform.machine()}",
    )


def instruction_set(flags: frozenset[str] | None = None) -> str:
    """The class of integer kernels that this host's flags allow: "x86_64-avx512-vnni"."""
    have = _usable_flags() if flags is None else flags
    name = next((name for name, wanted in _CLASSES if wanted <= have), "baseline")
    return f"{platform.machine()}-{name}"


def saturates(isa: str) -> bool:
    """Whether sums of two U8S8 products are cut to 16 bits, as x86's VPMADDUBSW does.

    VNNI and AMX sum in 32 bits, and so does every ARM kernel.
    """
    return isa.startswith(("x86_64", "AMD64", "i686")) and not isa.endswith(("amx", "vnni"))


def has_bf16(flags: frozenset[str] | None = None) -> bool:
    """Whether this host's flags name an instruction that multiplies bf16."""
    have = _flags(_read_cpuinfo()) if flags is None else flags
    return not have.isdisjoint(_BF16)


def available_cores() -> int:
    """Cores this process may use: its affinity mask, cut by the CPU limits of its cgroups.

    A limit is rounded down, to 1 at the least: threads that use up what is allowed all stand still
    until the next period, those that answer among them.
    """
    cores = len(os.sched_getaffinity(0))
    limit = cpu_limit()
    return cores if limit is None else min(cores, max(1, int(limit)))


def _read_cpuinfo() -> str:
    return _CPUINFO.read_text() if _CPUINFO.is_file() else ""


def _usable_flags() -> frozenset[str]:
    """What the CPU has, but for AMX where the kernel or a sandbox does not let this process use it.

    /proc/cpuinfo lists AMX all the same, and runtimes fall back to other kernels in silence.
    """
    flags = _flags(_read_cpuinfo())
    amx = {flag for flag in flags if flag.startswith("amx_")}
    return flags - amx if amx and not _amx_is_permitted() else flags


def _amx_is_permitted() -> bool:
    system_call = ctypes.CDLL(None).syscall
    return bool(system_call(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def _flags(cpuinfo: str) -> frozenset[str]:
    return frozenset((_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split())


def _field(cpuinfo: str, name: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
