"""The figures of a finished run: what ``--json`` prints and what the checkpoint records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgewright.finetune.evaluate import Answers, score
from edgewright.finetune.recipe import Fit
from edgewright.finetune.task import Task
from edgewright.metrics import accuracy_interval


def test_figures(task: Task, answers: Answers) -> dict[str, Any]:
    """Accuracy with its 95% interval, macro-F1 and loss on the test split; None where it is empty.

    ``groups`` counts near-duplicate groups: where they are fewer than the rows, rows are not
    independent and the interval is too narrow.
    """
    groups = len(set(task.examples.split("test").groups))
    figures: dict[str, Any] = {"split": "test", "n": len(answers.labels), "groups": groups}
    scores = score(answers.labels, answers.logits)
    if scores is None:
        return figures | dict.fromkeys(("accuracy", "accuracy_interval", "macro_f1", "loss"))
    return figures | {
        "accuracy": scores.accuracy,
        "accuracy_interval": list(accuracy_interval(scores.correct, scores.n)),
        "macro_f1": scores.macro_f1,
        "loss": scores.loss,
    }


def summarise(task: Task, fit: Fit, test: Answers, seconds: float) -> dict[str, Any]:
    """The object of ``--json``, but for where the checkpoint lies."""
    tested = test_figures(task, test)
    return {
        "task": task.examples.kind.task,
        "test_accuracy": tested["accuracy"],
        "test_accuracy_interval": tested["accuracy_interval"],
        "macro_f1": tested["macro_f1"],
        "best_epoch": fit.best.number,
        "epochs_run": len(fit.epochs),
        "frozen": task.part.blocks,
        "blocks": task.part.of,
        "trainable_parameters": task.trainable_parameters,
        "lora": None if task.adapters is None else task.adapters.record(),
        "parameters": task.parameters,
        "rows": {split: sum(by.values()) for split, by in task.examples.counts().items()},
        "rows_added": dict(task.dataset.added),
        "truncated": task.truncated,
        "unknown": task.unknown,
        "max_length": task.config.max_length,
        "lr": task.config.lr,
        "batch_size": fit.batch_size,
        "device": task.config.device,
        "precision": task.config.precision,
        "processes": task.processes.count,
        "seconds": round(seconds, 2),
    }


def metrics_record(task: Task, fit: Fit, test: Answers) -> dict[str, Any]:
    """metrics.json: the history and the test figures; the same inputs give the same record."""
    return {
        "epochs": [asdict(epoch) for epoch in fit.epochs],
        "best_epoch": fit.best.number,
        "metric": task.config.metric,
        "stopped_early": fit.stopped_early,
        "truncated": task.truncated,
        "unknown": task.unknown,
        "lora": None if task.adapters is None else task.adapters.record(),
        "test": test_figures(task, test),
    }


def result_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""
    rows = summary["rows"]
    if summary["test_accuracy"] is None:
        tested = "test accuracy   none: the test split is empty"
    else:
        low, high = summary["test_accuracy_interval"]
        tested = (
            f"test accuracy   {summary['test_accuracy']:.4f}, with 95% confidence {low:.4f} to "
            f"{high:.4f}, on {rows['test']} rows; macro-F1 {summary['macro_f1']:.4f}"
        )
    truncated = (
        f"truncated       {summary['truncated']:.1%} of texts, at {summary['max_length']} tokens"
    )
    unknown = (
        f"unknown         {summary['unknown']:.1%} of texts, for the most part of their tokens"
    )
    return [
        tested,
        f"best epoch      {summary['best_epoch']} of {summary['epochs_run']} run",
        f"frozen          {summary['frozen']} of {summary['blocks']} blocks; "
        f"{summary['trainable_parameters']:,} of {summary['parameters']:,} parameters trained",
        *_lora_lines(summary),
        _calibration_line(summary),
        *_forgetting_lines(summary),
        *([truncated] if summary["max_length"] is not None else []),
        *([unknown] if summary["unknown"] else []),
        f"rows            {', '.join(f'{name} {count}' for name, count in rows.items() if count)}",
        f"seconds         {summary['seconds']:.1f}, {summary['device']} {summary['precision']}"
        f"{_of_processes(summary['processes'])}",
        f"checkpoint      {summary['checkpoint']}  (report.html tells more)",
        f"next            edgewright optimize {summary['checkpoint']} -o BUNDLE",
    ]


def _of_processes(count: int) -> str:
    return f", {count} processes" if count > 1 else ""


def millions(parameters: int) -> str:
    """A count of parameters: "22.7M", or "835" where so few are meant."""
    return f"{parameters / 1e6:.1f}M" if parameters >= 100_000 else f"{parameters:,}"


def lora_words(record: dict[str, int]) -> str:
    """What trained with --lora."""
    return (
        f"rank {record['rank']} in {record['blocks']} blocks, "
        f"{record['trained_parameters']:,} parameters trained"
    )


def _lora_lines(summary: dict[str, Any]) -> list[str]:
    lora = summary["lora"]
    return [] if lora is None else [f"LoRA            {lora_words(lora)}, merged"]


def _calibration_line(summary: dict[str, Any]) -> str:
    if summary["ece_after"] is None or summary["temperature"] == 1:
        return f"calibration     temperature {summary['temperature']:.3f}"
    return (
        f"calibration     temperature {summary['temperature']:.3f}; expected calibration error "
        f"{summary['ece_before']:.4f} before, {summary['ece_after']:.4f} after"
    )


def _forgetting_lines(summary: dict[str, Any]) -> list[str]:
    told, share = summary["forgetting"], summary["interpolate"]
    mixed = "" if share is None else f"; {share:g} of the new weights written"
    if told is None:
        return [f"interpolated    {mixed[2:]}"] if mixed else []
    named = told["metric"].replace("_", " ")
    figures = f"{told['before']:.3f} before, {told['written']:.3f} after"
    return [f"forgetting      {named} {figures} ({told['probe']}, {told['rows']} rows){mixed}"]
