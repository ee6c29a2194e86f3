"""What `edgewright optimize` is asked to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Final

import yaml

from edgewright.backends import BACKENDS
from edgewright.errors import ConfigError
from edgewright.latency import Workload
from edgewright.optimize.given import NOTHING_GIVEN, Given
from edgewright.proof.certificate import MOST_CONFIDENCE
from edgewright.proof.ledger import DEFAULT_FOLDER

SPEED: Final = "speed"
SIZE: Final = "size"
PREFERENCES: Final = (SPEED, SIZE)


@dataclass(frozen=True)
class OptimizeConfig:
    """Options of one run; ConfigError tells every fault.

    ``max_drop`` is the accuracy that may be lost, as a share of rows: 0.01 is one point. ``prefer``
    says what is best among the candidates that pass: "speed", or "size" among those that are not
    slower than fp32. ``backends`` empty means all that are installed. ``workload`` None means
    single texts and batches as long as those of the search split. ``mixed_seconds`` is the time for
    finding layers that an int8 file must keep in float; 0 looks for none. ``ledger`` None means a
    folder beside the checkpoint. ``given`` is for models and rows that finetune did not make.
    """

    checkpoint: Path
    output: Path
    max_drop: float = 0.01
    confidence: float = 0.95
    prefer: str = SPEED
    backends: tuple[str, ...] = ()
    workload: str | None = None
    threads: int = 1
    mixed_seconds: float = 60.0
    ledger: Path | None = None
    allow_inconclusive: bool = False
    no_raw_examples: bool = False
    seed: int = 0
    overwrite: bool = False
    given: Given = NOTHING_GIVEN

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> Iterator[str]:
        if not 0 < self.max_drop < 1:
            yield f"--max-drop is {self.max_drop:g}; {_drop_advice(self.max_drop)}"
        if not 0.5 < self.confidence <= MOST_CONFIDENCE:
            yield (
                f"--confidence is {self.confidence!r}; it must be above 0.5 and at most "
                f"{MOST_CONFIDENCE}: 0.95 is 95%"
            )
        if self.prefer not in PREFERENCES:
            yield f"--prefer is {self.prefer}; it must be {' or '.join(PREFERENCES)}"
        for name in self.backends:
            if name not in BACKENDS:
                yield f"--backend is {name}; it must be one of {', '.join(BACKENDS)}"
        if not 0 <= self.mixed_seconds < inf:
            yield f"--mixed-seconds is {self.mixed_seconds:g}; it must be 0 or more seconds"
        if self.threads < 1:
            yield f"--threads is {self.threads}; it must be 1 or more"
        if not 0 <= self.seed < 2**32:
            yield f"--seed is {self.seed}; it must be from 0 to 4294967295"
        yield from self.given.faults()
        if self.output.name in ("", ".."):
            yield f"-o {self.output} has no name for a new folder; give one, as -o bundle"
        elif self.output.resolve() == self.checkpoint.resolve():
            yield f"-o {self.output} is the checkpoint itself; choose another path"
        if self.workload is not None:
            try:
                Workload.parse(self.workload)
            except ConfigError as error:
                yield from error.faults

    @property
    def ledger_folder(self) -> Path:
        """Where the trials on the certify split are written down."""
        beside = self.checkpoint if self.checkpoint.exists() else self.output  # a hub id is nowhere
        return self.ledger or beside.resolve().parent / DEFAULT_FOLDER

    @property
    def rejected(self) -> Path:
        """Where the report goes when no candidate may ship."""
        return self.output.with_name(f"{self.output.name}.rejected")

    def options(self) -> dict[str, Any]:
        """What decides the bundle's content, by option name; paths are left out."""
        return {
            "max-drop": self.max_drop,
            "confidence": self.confidence,
            "prefer": self.prefer,
            "backend": list(self.backends),
            "workload": self.workload,
            "threads": self.threads,
            "mixed-seconds": self.mixed_seconds,
            "allow-inconclusive": self.allow_inconclusive,
            "no-raw-examples": self.no_raw_examples,
            "seed": self.seed,
            **self.given.options(),
        }

    def yaml(self) -> bytes:
        """``options`` as run.yaml, which --config reads back."""
        return yaml.safe_dump(self.options(), sort_keys=True).encode()


def _drop_advice(max_drop: float) -> str:
    if max_drop == 0:
        return "no number of rows proves a loss of zero; 0.005 allows half a point"
    expected = "it must be a share of rows between 0 and 1, as 0.01 for one point"
    if 1 <= max_drop < 100:
        return f"{expected}: for {max_drop:g} points pass --max-drop {max_drop / 100:g}"
    return expected
