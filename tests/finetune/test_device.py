import pytest
import torch

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.finetune.device import resolve_device, resolve_precision
from edgewright.proof import host

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def cpu_with(monkeypatch, flags: str) -> None:
    real = host.this_host
    monkeypatch.setattr(host, "this_host", lambda: real(f"flags : {flags}\n"))


def gpu(monkeypatch, *, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    gpu(monkeypatch, bf16=True)
    assert resolve_device("auto") == CUDA
    assert resolve_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_never_replaced_in_silence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match=r"--device cuda.*--device cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("avx2 fma", "fp32"),
        ("avx2 avx512f avx512_vnni", "fp32"),
        ("avx512f avx512_bf16", "bf16"),
        ("amx_tile amx_bf16", "bf16"),
    ],
)
def test_a_cpu_takes_bf16_only_where_its_flags_say_so(monkeypatch, flags, precision):
    cpu_with(monkeypatch, flags)
    assert resolve_precision("auto", CPU) == precision
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="--precision fp16 needs a CUDA GPU"):
        resolve_precision("fp16", CPU)


def test_an_older_gpu_gets_fp16_and_refuses_to_emulate_bf16(monkeypatch):
    gpu(monkeypatch, bf16=False)
    assert resolve_precision("auto", CUDA) == "fp16"
    with pytest.raises(BackendUnavailableError, match="Tesla T4 does not compute in bf16"):
        resolve_precision("bf16", CUDA)
    gpu(monkeypatch, bf16=True)
    assert resolve_precision("auto", CUDA) == "bf16"
