"""Classifiers that a user's own code makes: ``package.module:factory``.

factory(labels) gives a ``torch.nn.Module`` that takes pictures, float32 of shape (rows, 3, height,
width), and answers with logits of shape (rows, labels), or with an object that has ``.logits``. The
blocks that can be frozen are its attribute ``blocks``, or what ``--blocks`` names.

A checkpoint keeps two files of it, factory.json and model.safetensors: the weights, and the name of
the code. Reading one imports the module that it names, so the code must be installed, and only a
function or class that this module itself defines is ever called.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn

from edgewright.errors import ConfigError, IntegrityError

FACTORY_FILE: Final = "factory.json"
WEIGHTS_FILE: Final = "model.safetensors"
BLOCKS: Final = "blocks"  # the attribute that holds them, where no other is named
_SPELLED: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DECLARE: Final = (
    f"give the module an attribute {BLOCKS!r}, a ModuleList or Sequential in the order in which "
    "its blocks run, or name such attributes with --blocks, as in --blocks layer1,layer2; "
    "--freeze 0 trains all of it"
)


class Logits(NamedTuple):
    """An answer, as transformers' models give it; ``logits`` is (rows, labels)."""

    logits: torch.Tensor


@dataclass(frozen=True)
class Factory:
    """The code that makes a model; ``blocks`` are dotted paths of its lists of blocks."""

    module: str
    name: str
    blocks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, blocks: str | None = None) -> Factory | None:
        """Read "package.module:factory" and "path,path"; None where ``text`` is no such name."""
        if not _SPELLED.fullmatch(text):
            return None
        module, _, name = text.partition(":")
        return cls(module, name, tuple(each.strip() for each in (blocks or "").split(",") if each))

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"

    def make(self, labels: int) -> nn.Module:
        """Call it.

        Raises:
            ConfigError: it cannot be imported, is not defined there, fails, or gives no module.
        """
        make = self._code()
        try:
            module = make(labels)
        except Exception as error:  # the user's own code
            raise ConfigError(
                f"--model {self}: {self.name}({labels}) failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"--model {self}: {self.name}({labels}) gave a {type(module).__name__}; it must "
                "give a torch.nn.Module"
            )
        return module

    def _code(self) -> Any:
        if self.module.partition(".")[0] in sys.stdlib_module_names:
            raise ConfigError(f"--model {self}: {self.module} is Python's own; name your module")
        try:
            code = getattr(importlib.import_module(self.module), self.name)
        except ImportError as error:
            raise ConfigError(
                f"--model {self}: cannot import {self.module} ({error}); install its package, or "
                "put its folder into PYTHONPATH"
            ) from error
        except AttributeError as error:
            raise ConfigError(f"--model {self}: {self.module} has no {self.name}") from error
        if not callable(code) or getattr(code, "__module__", None) != self.module:
            raise ConfigError(
                f"--model {self}: {self.name} is no function or class that {self.module} defines"
            )
        return code


class FactoryClassifier(nn.Module):
    """A factory's module behind the face of a transformers image classifier."""

    main_input_name = "pixel_values"

    def __init__(self, factory: Factory, labels: Sequence[str], module: nn.Module) -> None:
        super().__init__()
        self.factory, self.labels = factory, tuple(labels)
        self.module = module

    @classmethod
    def make(cls, factory: Factory, labels: Sequence[str], *, seed: int) -> FactoryClassifier:
        """A new one in fp32; what it draws at random is drawn by ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(factory, labels, factory.make(len(labels)).float())

    def forward(self, pixel_values: torch.Tensor) -> Logits:
        """(rows, 3, height, width) -> logits (rows, labels)."""
        answer = self.module(pixel_values)
        return Logits(answer if isinstance(answer, torch.Tensor) else answer.logits)

    def block_list(self) -> list[nn.Module]:
        """The blocks that its author declared, in order.

        Raises:
            ConfigError: none are declared, or what is declared is no list of modules.
        """
        blocks: list[nn.Module] = []
        for path in self.factory.blocks or (BLOCKS,):
            found: Any = self.module
            for name in path.split("."):
                found = getattr(found, name, None)
            if not isinstance(found, nn.ModuleList | nn.Sequential | list | tuple) or not found:
                kind = "nothing" if found is None else f"a {type(found).__name__}"
                raise ConfigError(f"--model {self.factory}: {path} is {kind}; {_DECLARE}")
            blocks += list(found)
        if not all(isinstance(block, nn.Module) for block in blocks):
            raise ConfigError(f"--model {self.factory}: its blocks are no modules; {_DECLARE}")
        return blocks

    def save_pretrained(self, folder: Path, **_: object) -> None:
        """Write factory.json and model.safetensors, as ``load`` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "factory": str(self.factory),
            "blocks": list(self.factory.blocks),
            "labels": list(self.labels),
        }
        (folder / FACTORY_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        save_model(self.module, str(folder / WEIGHTS_FILE))

    @classmethod
    def load(
        cls, folder: Path, labels: Sequence[str] | None = None, *, seed: int = 0
    ) -> FactoryClassifier:
        """Read what ``save_pretrained`` wrote, in fp32 and eval mode.

        With more ``labels`` than were saved the head grows: tensors whose first axis is the number
        of labels keep the rows they have, and further rows are as the factory draws them.

        Raises:
            ConfigError: the code is not installed, or the weights do not fit what it makes.
            IntegrityError: a file cannot be read.
        """
        factory, known = _read_factory(folder)
        model = cls.make(factory, known if labels is None else labels, seed=seed)
        try:
            weights = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise IntegrityError(f"{folder / WEIGHTS_FILE}: cannot be read: {error}") from error
        _fill(model.module, weights, len(known), str(factory))
        model.eval()
        return model


def state_sha256(model: nn.Module) -> str:
    """Identifies the weights and buffers that a model has now."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_factory(folder: Path) -> tuple[Factory, list[str]]:
    try:
        record = json.loads((folder / FACTORY_FILE).read_bytes())
        factory = Factory.parse(record["factory"], ",".join(record["blocks"]))
        labels = [str(label) for label in record["labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{folder / FACTORY_FILE}: cannot be read: {error}") from error
    if factory is None:
        raise IntegrityError(f"{folder / FACTORY_FILE}: {record['factory']} names no factory")
    return factory, labels


def _fill(module: nn.Module, weights: dict[str, torch.Tensor], known: int, name: str) -> None:
    """Put saved tensors into the module's; of tensors that are shared one name is saved."""
    state = module.state_dict()
    shared: dict[int, bool] = {}
    with torch.no_grad():
        for key, tensor in state.items():
            saved = weights.pop(key, None)
            fills = saved is not None and _fits(saved, tensor, known)
            if saved is not None and fills:
                tensor[: len(saved)].copy_(saved) if saved.ndim else tensor.copy_(saved)
            shared[tensor.data_ptr()] = shared.get(tensor.data_ptr(), False) or fills
    lacking = [key for key, tensor in state.items() if not shared[tensor.data_ptr()]]
    if lacking or weights:
        raise ConfigError(
            f"{name} makes another model than the one that was saved: {len(lacking)} tensors "
            f"were not saved in their shape, {len(weights)} saved ones have no place "
            f"({', '.join([*lacking, *weights][:3])}); install the version that it was made with"
        )


def _fits(saved: torch.Tensor, tensor: torch.Tensor, known: int) -> bool:
    if saved.shape == tensor.shape:
        return True
    grows = saved.ndim > 0 and saved.shape[0] == known < tensor.shape[0]
    return grows and saved.shape[1:] == tensor.shape[1:]
