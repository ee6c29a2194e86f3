"""Hugging Face Trainer, all of the model or with its first blocks held.

    python -m benchmarks.contenders.trainer JOB full|frozen

What ``edgewright finetune`` is asked to do, done the usual way: texts tokenised once, padded to the
longest row of a batch, AdamW, one evaluation an epoch. Nothing is saved or logged on the way, which
is to Trainer's advantage.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

from benchmarks.job import Job, Outcome


def main(job: Job, depth: str) -> None:
    """One run."""
    training = job.training
    torch.set_num_threads(training.threads)
    transformers.set_seed(job.seed)
    labels = sorted(set(job.rows("train")[1]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(training.model)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        training.model, num_labels=len(labels)
    )
    if depth == "frozen":
        hold(model, training.frozen)
    parts = {name: tokenised(job, name, tokenizer, labels) for name in ("train", "validation")}

    started = time.monotonic()
    trainer = transformers.Trainer(
        model=model,
        args=arguments(job),
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda answer: {
            "accuracy": float(np.mean(answer.predictions.argmax(-1) == answer.label_ids))
        },
    )
    trainer.train()
    train_s = time.monotonic() - started
    trainer.save_model(str(job.folder / "model"))
    tokenizer.save_pretrained(job.folder / "model")
    command_s = time.monotonic() - job.started

    answered = trainer.predict(tokenised(job, "heldout", tokenizer, labels))
    epochs = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_loss" in entry]
    Outcome(
        train_s,
        command_s,
        {"train": train_s},
        [labels[index] for index in answered.predictions.argmax(-1)],
        {
            "validation_accuracy": epochs,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "precision": "bf16" if trainer.args.bf16 else "fp32",
        },
    ).write(job.folder)


def hold(model: Any, blocks: int) -> None:
    """Let the embeddings and the first ``blocks`` blocks not train."""
    for module in [model.base_model.embeddings, *model.base_model.encoder.layer[:blocks]]:
        module.requires_grad_(False)


def tokenised(job: Job, split: str, tokenizer: Any, labels: list[str]) -> Dataset:
    """The rows of a split as Trainer takes them."""
    texts, names = job.rows(split)
    encoded = tokenizer(texts, truncation=True, max_length=job.training.max_length)
    return Dataset.from_dict({**encoded, "labels": [labels.index(name) for name in names]})


def arguments(job: Job) -> transformers.TrainingArguments:
    """The benchmark's numbers, edgewright's schedule and decay; all else is Trainer's default."""
    training = job.training
    return transformers.TrainingArguments(
        output_dir=str(job.folder / "trainer"),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=32,
        learning_rate=training.lr,
        weight_decay=0.01,
        warmup_ratio=0.1,
        lr_scheduler_type="cosine",
        bf16=training.precision == "bf16",
        seed=job.seed,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])), sys.argv[2])
