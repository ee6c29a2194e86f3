"""``edgewright finetune``, typed as a user types it; and two of its parts taken away.

    python -m benchmarks.contenders.edgewright JOB cached|every-token|live

``cached`` is the command as it is, from an empty activation cache. ``every-token`` computes the
last block for all tokens. ``live`` has no cache: the frozen blocks run in every epoch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.job import Job, Outcome
from edgewright.checkpoint import MEASUREMENTS_FILE, METRICS_FILE, Checkpoint

# From loaded model and tokenised rows to final weights: the fill of the cache, the pass that starts
# the head, the epochs with their validation.
TRAINING_PHASES: Final = ("cache", "survey", "train")
# The command in this process, with the last block left as it is.
_EVERY_TOKEN: Final = """
import sys
from unittest.mock import patch
from edgewright import cli
with patch("edgewright.finetune.pipeline.compute_first_token_only", lambda *_: False):
    sys.exit(cli.run(sys.argv[1:]))
"""


def main(job: Job, kind: str) -> None:
    """One run."""
    started = time.monotonic()  # not ``job.started``: no user waits for this process
    typed = options(job, kind)
    program = (
        [sys.executable, "-c", _EVERY_TOKEN]
        if kind == "every-token"
        else [str(Path(sys.executable).with_name("edgewright"))]
    )
    done = subprocess.run([*program, *typed], check=True, stdout=subprocess.PIPE)
    command_s = time.monotonic() - started
    summary = json.loads(done.stdout)
    refuse_other_rows(job, summary)
    checkpoint = Checkpoint.open(job.folder / "checkpoint")
    phases, notes = told(checkpoint)
    train_s = sum(phases[name] for name in TRAINING_PHASES)
    notes |= {"trainable_parameters": summary["trainable_parameters"]}
    Outcome(train_s, command_s, phases, answers(job, checkpoint), notes).write(job.folder)


def options(job: Job, kind: str) -> list[str]:
    """The command line after ``edgewright``."""
    training = job.training
    values = {
        "--output-folder": job.folder / "checkpoint",
        "--model": training.model,
        "--split-column": "split",
        "--splits": "100/0/0/0/0/0",  # what is not given for validation trains
        "--freeze": training.frozen,
        "--cache": "off" if kind == "live" else "on",
        "--cache-dir": job.folder / "cache",
        "--epochs": training.epochs,
        "--patience": training.epochs,  # every epoch is run, as by the others
        "--batch-size": training.batch_size,
        "--max-length": training.max_length,
        "--lr": training.lr,
        "--precision": training.precision,
        "--threads": training.threads,
        "--seed": job.seed,
    }
    given = [str(each) for option in values.items() for each in option]
    return ["finetune", training.data, *given, "--json"]


def refuse_other_rows(job: Job, summary: dict[str, Any]) -> None:
    """Whoever trains on fewer rows is faster."""
    for split in ("train", "validation"):
        expected, read = len(job.rows(split)[0]), summary["rows"][split]
        if read != expected:
            raise SystemExit(f"edgewright used {read} of {expected} {split} rows: no comparison")


def told(checkpoint: Checkpoint) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by phase, and what to note, from what the command has written."""
    measured = json.loads((checkpoint.path / MEASUREMENTS_FILE).read_bytes())
    epochs = json.loads((checkpoint.path / METRICS_FILE).read_bytes())["epochs"]
    cache = measured["activation_cache"]
    validation = [(epoch["validation"] or {}).get("accuracy") for epoch in epochs]
    notes = {
        "validation_accuracy": validation,
        "activation_cache": {key: cache[key] for key in ("used", "dtype", "filled", "seconds")},
        "precision": checkpoint.artifact.manifest["config"]["precision"],
    }
    return measured["seconds"], notes


def answers(job: Job, checkpoint: Checkpoint) -> list[str]:
    """What the written checkpoint says of the held-out rows."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from edgewright.finetune.batches import TokenRows
    from edgewright.finetune.evaluate import predict_logits

    torch.set_num_threads(job.training.threads)
    texts, names = job.rows("heldout")
    index = {label: place for place, label in enumerate(checkpoint.labels)}
    labels = torch.tensor([index[name] for name in names]).numpy()
    rows = TokenRows.of(checkpoint.preprocessor(), texts, labels)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint.model_folder)
    logits = predict_logits(model, rows, torch.device("cpu"))
    return [checkpoint.labels[place] for place in logits.argmax(axis=1)]


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])), sys.argv[2])
