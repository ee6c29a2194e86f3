"""Connecting the processes that ``torchrun`` has started, by torch.distributed.

What is told and gathered goes by gloo, pickled, between processes of one run; gradients and weights
by gloo as well, or on CUDA by nccl, with a GPU for each process. A process that ends is noticed at
once, by its closed connections; one that hangs, when the time limit has passed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.finetune.device import resolve_device
from edgewright.finetune.processes import ALONE, Processes

T = TypeVar("T")

TIMEOUT_S: Final = 1800.0  # the others wait while the first audits or writes
_NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ADDRESS: Final = ("MASTER_ADDR", "MASTER_PORT")
_HOW: Final = "start it with `torchrun --nproc-per-node N -m edgewright finetune ...`"


@dataclass(frozen=True)
class Place:
    """Where ``torchrun`` has put this process."""

    rank: int
    count: int
    local_rank: int
    local: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Place | None:
        """From the variables that ``torchrun`` sets; None where it has started nothing.

        Raises:
            ConfigError: some of them are missing, or are no numbers that go together.
        """
        if not {"RANK", "WORLD_SIZE"} & environment.keys():
            return None
        missing = [name for name in (*_NUMBERS, *_ADDRESS) if not environment.get(name)]
        if missing:
            given = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
            raise ConfigError(
                f"{', '.join(given)} in the environment means several processes, and "
                f"{', '.join(missing)} is missing; {_HOW}, or for one process "
                f"`unset {' '.join(given)}`"
            )
        texts = [environment[name] for name in _NUMBERS]
        if all(text.isdecimal() for text in texts):
            rank, count, local_rank, local = map(int, texts)
            if rank < count and local_rank < local <= count:
                return cls(rank, count, local_rank, local)
        told = ", ".join(map("=".join, zip(_NUMBERS, texts, strict=True)))
        raise ConfigError(f"{told} in the environment do not go together; {_HOW}")


@contextmanager
def open_processes(
    device: str,
    environment: Mapping[str, str] = os.environ,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Processes]:
    """The processes of this run, connected while the block runs; one alone without ``torchrun``.

    Args:
        device: as ``resolve_device`` takes it; each process on CUDA takes a GPU for itself.
        environment: see ``Place.read``; torch reads the address from the process's own.
        timeout_s: how long a process waits for the others, at the start and ever after.

    Raises:
        ConfigError: as ``Place.read`` does.
        BackendUnavailableError: the others do not come or are lost, or there are too few GPUs.
    """
    place = Place.read(environment)
    if place is None or place.count == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise BackendUnavailableError(
            f"{place.count} processes need torch.distributed, which torch {torch.__version__} was "
            "built without; install another build, or start one process"
        )
    timeout = timedelta(seconds=timeout_s)
    with _answered(place, timeout):
        dist.init_process_group("gloo", rank=place.rank, world_size=place.count, timeout=timeout)
    try:
        connected = Connected(place.rank, place.count, place.local, place, timeout)
        yield connected.on(device)
        with _answered(place, timeout):
            dist.barrier()  # nobody hangs up while another still reads
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Connected(Processes):
    """Processes that exchange by torch.distributed; ``numbers`` carries tensors of the device."""

    place: Place = Place(0, 1, 0, 1)
    timeout: timedelta = timedelta()
    numbers: Any = None

    def on(self, device: str) -> Connected:
        """The same ones, with tensors on what ``device`` is in the first of them."""
        kind = self.by_first(lambda: resolve_device(device).type)
        if resolve_device(kind).type != "cuda":
            return self
        if self.place.local_rank >= torch.cuda.device_count():
            raise BackendUnavailableError(
                f"{self.place.local} processes on this machine, and torch sees "
                f"{torch.cuda.device_count()} GPUs; give each process one "
                f"(--nproc-per-node {torch.cuda.device_count()}), or pass --device cpu"
            )
        torch.cuda.set_device(self.place.local_rank)
        with _answered(self.place, self.timeout):
            numbers = dist.new_group(backend="nccl", timeout=self.timeout)
        return Connected(self.rank, self.count, self.local, self.place, self.timeout, numbers)

    def by_first(self, work: Callable[[], T]) -> T:
        """As ``Processes.by_first``."""
        told: list[Any] = [work() if self.is_first else None]
        with _answered(self.place, self.timeout):
            dist.broadcast_object_list(told, src=0)
        answer: T = told[0]
        return answer

    def gather(self, own: T) -> list[T]:
        """As ``Processes.gather``."""
        gathered: list[Any] = [None] * self.count
        with _answered(self.place, self.timeout):
            dist.all_gather_object(gathered, own)
        return gathered

    def add_gradients(self, parameters: Sequence[nn.Parameter], loss: float) -> float:
        """As ``Processes.add_gradients``, in one message of fp32 numbers."""
        device = parameters[0].device
        has = [float(each.grad is not None) for each in parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        head = torch.tensor([loss, *has], device=device)  # the loss, how many have each gradient
        message = torch.cat([head, *[grad.detach().float().flatten() for grad in grads]])
        with _answered(self.place, self.timeout):
            dist.all_reduce(message, group=self.numbers)
        head, *sums = torch.split(message, [len(head), *[grad.numel() for grad in grads]])
        total, *have = head.tolist()
        for parameter, grad, count in zip(parameters, sums, have, strict=True):
            if count:
                parameter.grad = grad.view(parameter.shape).to(parameter.dtype)
        return float(total)

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """As ``Processes.copy_first``."""
        for tensor in tensors:
            target = tensor.detach()
            # As bytes, so that any number format can travel.
            content = target.contiguous().reshape(-1).view(torch.uint8)
            with _answered(self.place, self.timeout):
                dist.broadcast(content, src=0, group=self.numbers)
            target.copy_(content.view(target.dtype).reshape(target.shape))


@contextmanager
def _answered(place: Place, timeout: timedelta) -> Iterator[None]:
    """Tell torch's errors about the others in our words."""
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises derives from it
        raise BackendUnavailableError(
            f"process {place.rank} of {place.count}: another process of this run has ended, or "
            f"did not answer within {timeout.total_seconds():g} s; what that one said tells why"
        ) from error
