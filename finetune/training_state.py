"""A training in the middle: everything that the next step depends on, in one file that is whole.

    training-<start of the file's SHA-256>.safetensors

holds what training changes of the model, the best epoch's copy and AdamW's moments as tensors, and
the counters as JSON in its header; what is random depends on seed, epoch and step alone. The name
proves the content; the newest file that is sound counts, and the one before goes only when the next
one is on the disk.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError

from edgewright.errors import IntegrityError
from edgewright.manifest import sha256_file

_PATTERN: Final = "training-*.safetensors"
_HEADER: Final = "edgewright"  # safetensors keeps a mapping of strings beside the tensors


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epoch: in work, from 1; one more than the last epoch when all is done.
        losses: of its steps that are done.
        batch_size: smaller than asked where memory was short.
        epochs: the finished ones, as ``dataclasses.asdict`` gives them.
        best: number of the best of them; 0 before the first.
        optimizer_steps: of each parameter, in the order of the optimiser.
        scaler: state of the gradient scaler; empty without one.
    """

    epoch: int = 1
    losses: Sequence[float] = ()
    batch_size: int = 0
    epochs: Sequence[Mapping[str, Any]] = ()
    best: int = 0
    optimizer_steps: Sequence[float] = ()
    scaler: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class TrainingState:
    """``progress``, and tensors by name: "model/...", "best/...", "moment/..."."""

    progress: Progress
    tensors: Mapping[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below a prefix, by the rest of their name."""
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def save(self, folder: Path) -> Path:
        """Write it into ``folder`` and remove the files of before; OSError leaves those."""
        from safetensors.torch import save_file

        part = folder / "training.part"
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()
        }
        try:
            save_file(tensors, part, {_HEADER: json.dumps(asdict(self.progress))})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            path = folder / f"training-{sha256_file(part)[:32]}.safetensors"
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        for other in folder.glob(_PATTERN):
            if other != path:
                other.unlink()
        return path

    @classmethod
    def load(cls, folder: Path) -> TrainingState | None:
        """The newest sound one in ``folder``; None where none was written yet.

        Raises:
            IntegrityError: there are some, and every one is damaged.
        """
        from safetensors import safe_open

        files = sorted(folder.glob(_PATTERN), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files:
            if sha256_file(file)[:32] != file.stem.removeprefix("training-"):
                continue
            with safe_open(file, framework="pt") as stored:
                progress = Progress(**json.loads(stored.metadata()[_HEADER]))
                names = stored.keys()
                return cls(progress, {name: stored.get_tensor(name) for name in names})
        if files:
            raise IntegrityError(
                f"{files[0]} is damaged, and without it the training cannot go on; "
                "begin anew with --overwrite"
            )
        return None


@dataclass
class Saver:
    """Saves a training's state: after every epoch, and between steps once in ``every_s``.

    A disk that does not take it is told to ``warn``, and the training goes on.
    """

    folder: Path | None
    warn: Callable[[str], None] = lambda _message: None
    every_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _last: float = field(default=-math.inf, init=False)

    @classmethod
    def none(cls) -> Saver:
        """One that saves nothing."""
        return cls(None)

    def load(self) -> TrainingState | None:
        """The state that was saved last; None where there is none."""
        self._last = self.clock()
        return None if self.folder is None else TrainingState.load(self.folder)

    def save_now_and_then(self, state: Callable[[], TrainingState]) -> None:
        """Save, where the last time is long enough ago."""
        if self.clock() - self._last >= self.every_s:
            self.save(state)

    def save(self, state: Callable[[], TrainingState]) -> None:
        """Save now."""
        self._last = self.clock()
        if self.folder is None:
            return
        try:
            state().save(self.folder)
        except (OSError, SafetensorError) as error:
            self.warn(f"{self.folder}: cannot save the training ({error}); it goes on all the same")
