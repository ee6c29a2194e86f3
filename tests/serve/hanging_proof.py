"""Run by a server: what proves a version of a model hangs, once it has written PROOF, its id."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from edgewright.serve.proof_process import ProofProcess

HANG = """
import os, time
from pathlib import Path
written = Path(os.environ["PROOF"] + ".partial")
written.write_text(str(os.getpid()))
written.rename(os.environ["PROOF"])
time.sleep(1000)
"""

if __name__ == "__main__":
    plain = ProofProcess.run

    def run(process: ProofProcess, _work: Any) -> Any:
        return plain(process, partial(exec, HANG))

    ProofProcess.run = run  # type: ignore[method-assign]
    exec(sys.argv.pop(1))
