"""One run of an optimiser: what it is told, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewright.checkpoint import Checkpoint
from edgewright.optimize.inputs import rows_of
from edgewright.optimize.quantize import CALIBRATION_BATCHES

MADE_FILE: Final = "made.json"


@dataclass(frozen=True)
class Optimizing:
    """What every contender of one benchmark is told alike."""

    checkpoint: str
    stock: str  # the fp32 ONNX file, as exported
    workload: str  # shapes of calls, as "1x32,8x128"
    threads: int  # of a session
    max_drop: float  # accuracy that edgewright may lose, as a share of rows


@dataclass(frozen=True)
class OptimizeJob:
    """One run."""

    optimizing: Optimizing
    out: str  # a folder, for files and ``MADE_FILE``
    started: float  # time.monotonic() when the process was started

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def read(cls, file: Path) -> OptimizeJob:
        """The inverse of ``to_json``, from a file."""
        record = json.loads(file.read_bytes())
        return cls(**{**record, "optimizing": Optimizing(**record["optimizing"])})

    @property
    def folder(self) -> Path:
        """Where the run leaves what it makes."""
        return Path(self.out)

    @property
    def stock(self) -> Path:
        """The fp32 ONNX file, as exported."""
        return Path(self.optimizing.stock)

    def calibrate_rows(self) -> list[dict[str, NDArray[Any]]]:
        """The calibrate rows that edgewright reads, each a batch of its own: arrays by input."""
        checkpoint = Checkpoint.open(Path(self.optimizing.checkpoint))
        preprocessor = checkpoint.preprocessor()
        rows = rows_of(preprocessor, checkpoint.examples().split("calibrate"))
        return [dict(preprocessor.pad([row]).arrays) for row in rows[:CALIBRATION_BATCHES]]


@dataclass(frozen=True)
class Served:
    """A file, and how a server would run it."""

    backend: str
    file: str
    options: Mapping[str, str]
    row_by_row: bool = False


@dataclass(frozen=True)
class Made:
    """What one run took and what it leaves.

    Attributes:
        served: how its file is to be run; more than once where more than one runtime takes it.
        command_s: from the start of the process to the file on disk.
        notes: what else there is to know of the run.
    """

    served: Sequence[Served]
    command_s: float
    notes: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Leave it for the process that started the run."""
        (folder / MADE_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Made:
        """The inverse of ``write``."""
        record = json.loads((folder / MADE_FILE).read_bytes())
        served = [Served(**each) for each in record["served"]]
        return cls(served, record["command_s"], record["notes"])
