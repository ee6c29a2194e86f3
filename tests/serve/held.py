"""Run by a server of several processes: every run of a model waits while the file GATE exists.

Spawn imports the script of the first process into each, so that it holds for all of them, or for
the one that GATE_ONLY names.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from edgewright.serve.models import ServedModel

if __name__ in ("__main__", "__mp_main__"):
    plain, name = ServedModel.scores_with, current_process().name

    def scores_with(*arguments: Any) -> Any:
        here, gate = os.environ.get("GATE_ONLY", name) == name, Path(os.environ["GATE"])
        while here and gate.exists():
            gate.with_suffix(".entered").touch()
            time.sleep(0.01)
        return plain(*arguments)

    ServedModel.scores_with = scores_with  # type: ignore[method-assign]

if __name__ == "__main__":
    exec(sys.argv.pop(1))
