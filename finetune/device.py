"""Where and in which number format a run trains."""

from __future__ import annotations

from typing import Final

import torch

from edgewright.errors import BackendUnavailableError, ConfigError

AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        BackendUnavailableError: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"--device cuda: torch {torch.__version__} sees no CUDA GPU here; install the CUDA "
            "build of torch and a driver, or pass --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """The number format of forward and backward passes; weights are fp32 in any case.

    "auto" is bf16 where the hardware multiplies it, fp16 (with a gradient scaler) on other GPUs,
    and fp32 on other CPUs.

    Raises:
        ConfigError: fp16 on a CPU.
        BackendUnavailableError: bf16 on a GPU that would only emulate it.
    """
    if name == "auto":
        if _multiplies_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a CUDA GPU; use bf16 or fp32 on a CPU")
    if name == "bf16" and device.type == "cuda" and not _multiplies_bf16(device):
        raise BackendUnavailableError(
            f"--precision bf16: {torch.cuda.get_device_name(device)} does not compute in bf16; "
            "use fp16 or fp32"
        )
    return name


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a pass in ``precision``, one that ``resolve_precision`` gave."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    from edgewright.proof.host import this_host

    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(this_host().flags)
