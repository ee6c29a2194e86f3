"""SetFit, in the environment that ``setfit_environment`` makes.

    python -m benchmarks.contenders.setfit JOB

SetFit trains on pairs of texts, not on rows, so "the same epochs" says nothing to it. It is given
the least it can train on, one pair of the same class and one of another for each row, once: four
texts encoded and learnt from for each row, as many as in four epochs. Its usual setting, 20 pairs
of each kind, takes twenty times as long.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments  # type: ignore[import-not-found]

from benchmarks.job import Job, Outcome


def main(job: Job) -> None:
    """One run."""
    training = job.training
    torch.set_num_threads(training.threads)
    labels = sorted(set(job.rows("train")[1]))
    model = SetFitModel.from_pretrained(training.model, labels=labels)
    model.model_body.max_seq_length = training.max_length
    train, validation = dataset(job, "train", labels), dataset(job, "validation", labels)

    started = time.monotonic()
    trainer = Trainer(model=model, args=arguments(job), train_dataset=train, eval_dataset=None)
    trainer.train()
    answers = predicted(model, validation["text"])
    train_s = time.monotonic() - started
    model.save_pretrained(str(job.folder / "model"))
    command_s = time.monotonic() - job.started

    right = [
        labels[label] == answer for label, answer in zip(validation["label"], answers, strict=True)
    ]
    Outcome(
        train_s,
        command_s,
        {"train": train_s},
        predicted(model, job.rows("heldout")[0]),
        {"validation_accuracy": [sum(right) / max(1, len(right))], "precision": "fp32"},
    ).write(job.folder)


def dataset(job: Job, split: str, labels: list[str]) -> Dataset:
    """The rows of a split as SetFit takes them."""
    texts, names = job.rows(split)
    return Dataset.from_dict({"text": texts, "label": [labels.index(name) for name in names]})


def predicted(model: SetFitModel, texts: list[str]) -> list[str]:
    """The label of each text."""
    return [str(label) for label in model.predict(list(texts))] if len(texts) else []


def arguments(job: Job) -> TrainingArguments:
    """The benchmark's numbers; the learning rates are SetFit's own, for its loss is another."""
    return TrainingArguments(
        output_dir=str(job.folder / "setfit"),
        batch_size=job.training.batch_size,
        num_epochs=1,
        num_iterations=1,
        max_length=job.training.max_length,
        seed=job.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
