"""One of several processes, as ``several.run`` starts it: does what its first argument says."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from made_up_rows import MadeUpRows
from tiny_models import bert_config

from edgewright import cli
from edgewright.finetune import pipeline, train
from edgewright.finetune.activation_cache import ActivationCache, CachePlan, fill_cache
from edgewright.finetune.activation_store import ActivationStore
from edgewright.finetune.cut import Cut
from edgewright.finetune.evaluate import predict_logits
from edgewright.finetune.freeze import FrozenPart, freeze
from edgewright.finetune.process_group import open_processes
from edgewright.finetune.processes import Processes
from edgewright.finetune.recipe import Recipe, Watcher
from edgewright.finetune.train import fit
from edgewright.finetune.training_state import Saver

CPU = torch.device("cpu")
BLOCKS = 2
RECIPE = Recipe(epochs=2, lr=1e-3, batch_size=8)


def small_bert() -> torch.nn.Module:
    """Without dropout, so that as many processes as one likes give the same losses."""
    torch.manual_seed(0)
    config = bert_config(num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def digest(tensors: Iterable[torch.Tensor]) -> str:
    content = b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


def trained(root: Path | None, processes: Processes) -> dict[str, Any]:
    """Train on made-up rows, from a cache below ``root`` or live; what came of it."""
    model, rows, losses = small_bert(), MadeUpRows(77), list[float]()
    part = freeze(model, BLOCKS, rows.inputs([0, 1]))
    held = [*part.parameters, *(b for module in part.modules for b in module.buffers())]
    before, told = digest(held), {}
    called, read = model, rows
    if root is not None:
        cache = filled(model, part, rows, root, processes)
        called, read = cache.model(), cache.rows(rows)
        told = {"found": cache.use.found, "filled": cache.use.filled}
    watcher = Watcher(on_step=lambda _epoch, _step, loss: losses.append(loss))
    fit(called, read, RECIPE, CPU, validate=lambda: None, watcher=watcher, processes=processes)
    logits = predict_logits(called, read, CPU, 8, processes=processes)
    return {
        **told,
        "losses": losses,
        "logits": logits.tolist(),
        "weights": [each.detach().flatten().tolist() for each in model.parameters()],
        "digest": digest(model.parameters()),
        "frozen": [before, digest(held)],
    }


def filled(
    model: torch.nn.Module, part: FrozenPart, rows: MadeUpRows, root: Path, processes: Processes
) -> ActivationCache:
    cut = Cut.find(model, BLOCKS, rows.inputs(range(4)))
    plan = CachePlan(root, CPU, "fp32", 5, must=True, dtype="float32", processes=processes)
    caches = fill_cache({cut: part}, [rows], plan)
    if not isinstance(caches, list):
        raise OSError(caches.reason)
    return caches[0]


def train_live_and_cached(out: Path, found: Path, own: Path) -> None:
    """``found`` holds a cache that one process has made; ``own`` is empty."""
    with open_processes("cpu") as processes:
        told = {
            "live": trained(None, processes),
            "cached": trained(own, processes),
            "found": trained(found, processes),
            "full disk": disk_full_for_one(out / "full", processes),
            "gradients": gradients_added(processes),
            "numbers": numbers_copied(processes),
        }
        (out / f"{processes.rank}.json").write_text(json.dumps(told))


def disk_full_for_one(root: Path, processes: Processes) -> str:
    """What each process is told where the last cannot write."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    append = ActivationStore.append
    if processes.rank == processes.count - 1:
        ActivationStore.append = full  # type: ignore[method-assign]
    model, rows = small_bert(), MadeUpRows(77)
    try:
        filled(model, freeze(model, BLOCKS, rows.inputs([0, 1])), rows, root, processes)
    except OSError as error:
        return str(error)
    finally:
        ActivationStore.append = append  # type: ignore[method-assign]
    return "it has worked"


def gradients_added(processes: Processes) -> list[Any]:
    """Of three parameters: one with a gradient everywhere, one in the first, one in none."""
    everywhere, somewhere, nowhere = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    everywhere.grad = torch.full((2, 2), 1.0 + processes.rank)
    somewhere.grad = torch.ones(2, 2) if processes.is_first else None
    loss = processes.add_gradients([everywhere, somewhere, nowhere], 0.5)
    grads = [None if p.grad is None else p.grad.tolist() for p in (everywhere, somewhere, nowhere)]
    return [loss, *grads]


def numbers_copied(processes: Processes) -> list[Any]:
    """Of several formats, one of them not contiguous and one without a dimension."""
    mine = processes.rank + 1
    tensors = [torch.full((2, 3), mine / 3).T, torch.tensor(mine), torch.tensor([mine > 1])]
    processes.copy_first(tensors)
    return [tensor.tolist() for tensor in tensors]


def command(step: int, arguments: list[str]) -> None:
    """The command line; the first process is killed at one of its steps, 0: at none."""
    pipeline.Saver = functools.partial(Saver, every_s=0.0)  # type: ignore[misc]
    original, calls = train._Training._step, [0]

    def counted(*args: Any) -> float:
        calls[0] += 1
        if calls[0] == step and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    train._Training._step = counted  # type: ignore[method-assign]
    sys.exit(cli.run(arguments))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *given = sys.argv[1:]
    if what == "train":
        train_live_and_cached(*map(Path, given))
    else:
        command(int(given[0]), given[1:])
