"""The cut after the frozen blocks: what goes over it, recorded once and given back later.

The frozen part answers a row alike in every epoch. ``record`` runs a batch up to the cut and no
further; ``Replayed`` runs the rest of the model from recorded activations, the frozen blocks giving
back what they are handed. The rest of the model is its own code, so masks, positions and heads are
those of the model, and ``Cut.find`` compares both ways before anyone relies on it.

Masks and lengths of texts are read behind the cut as well, so they are given again; of an image
nothing is, and a blank one stands in for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from edgewright.finetune.blocks import reads_images
from edgewright.finetune.freeze import find_blocks, outermost, tensors_of

# Of logits, between a live pass and a replayed one in fp32: rounding of sums in another order.
_TOLERANCE: Final = 1e-5


class UncacheableError(Exception):
    """Why the frozen part of a model cannot be replayed; training goes on without a cache."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Where activations are recorded and replayed in one model.

    Attributes:
        model: the whole model.
        blocks: how many lie before the cut.
        last: the last of them; its answer is what is recorded.
        replayed: modules that need not run when activations are given, each with the form of its
            answer: those blocks, and the module whose answer the first block takes; in a model of
            images, whose stages have modules between them, all that run before the cut alone.
        by_token: whether the activations' second dimension is that of the input tokens.
        blanks: inputs of one row, shape (1, ...), that stand in for those of any; empty where the
            rows' own are needed.
    """

    model: nn.Module
    blocks: int
    last: nn.Module
    replayed: Mapping[nn.Module, Callable[[torch.Tensor], Any]]
    by_token: bool
    blanks: Mapping[str, torch.Tensor]

    @classmethod
    def find(cls, model: nn.Module, blocks: int, inputs: Mapping[str, torch.Tensor]) -> Cut:
        """The cut after the first ``blocks`` blocks, proved on ``inputs``.

        Args:
            model: one whose blocks ``find_blocks`` finds.
            blocks: 1 or more.
            inputs: a batch on the model's device, of rows of unlike length where there are any.

        Raises:
            UncacheableError: the logits of a replayed pass differ from those of a live one.
        """
        before = find_blocks(model)[:blocks]
        seen = _Seen.watch(model, before, inputs)
        is_of_images = reads_images(model)
        source = [] if seen.source is None else [seen.source]
        modules = seen.finished if is_of_images else [*before, *source]
        cut = cls(
            model,
            blocks,
            before[-1],
            {module: _form(seen.answers[module]) for module in modules},
            _is_by_token(seen.activations, inputs),
            {k: torch.zeros_like(each[:1]) for k, each in inputs.items() if is_of_images},
        )
        cut._prove(seen, inputs)
        return cut

    def _prove(self, seen: _Seen, inputs: Mapping[str, torch.Tensor]) -> None:
        replayed = Replayed(self)
        replayed.eval()
        try:
            with torch.no_grad():
                again = replayed(_blank_padding(self, seen.activations, inputs), **inputs).logits
        except Exception as error:  # the model's own code, which meets shapes it does not expect
            raise UncacheableError(
                "what lies before its frozen blocks' answer cannot be left out: "
                f"{type(error).__name__}: {error}"
            ) from error
        away = float((again - seen.logits).abs().max())
        if not away <= _TOLERANCE * max(1.0, float(seen.logits.abs().max())):
            raise UncacheableError(
                "what follows its frozen blocks needs more than their answer: replayed logits are "
                f"{away:.2g} away from live ones"
            )

    @contextmanager
    def given(self, activations: torch.Tensor) -> Iterator[None]:
        """While open, the blocks before the cut do not run; the last answers ``activations``."""
        for module, form in self.replayed.items():
            module.forward = _answering(form, activations)
        try:
            yield
        finally:
            for module in self.replayed:
                del module.forward


class Replayed(nn.Module):
    """A model that takes recorded activations beside its inputs; the weights are the model's."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.model = cut.model
        self._cut = cut

    def forward(self, activations: torch.Tensor, **inputs: torch.Tensor) -> Any:
        """Activations (rows, ...) as recorded, padded to the inputs; answers as the model does.

        Inputs that the cut has blanks for are not read.
        """
        rows = len(activations)
        blanks = {k: each.expand(rows, *each.shape[1:]) for k, each in self._cut.blanks.items()}
        with self._cut.given(activations):
            return self.model(**{**inputs, **blanks})


def record(cuts: Sequence[Cut], inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What crosses each of several cuts of one model, in eval mode, in one pass that ends there.

    Returns:
        In the order of ``cuts``, shape (rows, ...).
    """
    model, deepest = cuts[0].model, max(cuts, key=lambda cut: cut.blocks)
    kept: dict[nn.Module, torch.Tensor] = {}

    def keep(block: nn.Module, _args: Any, answer: Any) -> None:
        if block is deepest.last:
            kept[block] = _main(answer)
            raise _AtTheCut
        kept[block] = _main(answer).clone()  # what follows may write into it

    model.eval()
    with torch.no_grad(), ExitStack() as hooks:
        for cut in cuts:
            hooks.callback(cut.last.register_forward_hook(keep).remove)
        with suppress(_AtTheCut):
            model(**inputs)
    return [kept[cut.last] for cut in cuts]


class _AtTheCut(Exception):  # noqa: N818 (no error: it ends a pass that has done its work)
    """Ends a pass at the cut."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """One live pass: what each module answered, and where the first block's input came from.

    ``finished`` are the outermost modules that answered before the cut and not after it.
    """

    answers: dict[nn.Module, Any]
    source: nn.Module | None
    finished: list[nn.Module]
    activations: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def watch(
        cls, model: nn.Module, blocks: Sequence[nn.Module], inputs: Mapping[str, torch.Tensor]
    ) -> _Seen:
        answers: dict[nn.Module, Any] = {}
        entering: list[torch.Tensor] = []
        crossing: list[torch.Tensor] = []
        early: list[nn.Module] = []
        late: set[nn.Module] = set()

        def keep(module: nn.Module, _args: Any, answer: Any) -> None:
            answers[module] = answer
            if crossing:
                late.add(module)
            elif any(True for _ in tensors_of(answer)):
                early.append(module)
            if module is blocks[-1]:
                crossing.append(_main(answer).clone())  # what follows may write into it

        def enter(_block: nn.Module, args: Any, kwargs: Any) -> None:
            entering.extend(tensors_of([*args, *kwargs.values()]))

        model.eval()
        with torch.no_grad(), ExitStack() as hooks:
            for module in model.modules():
                hooks.callback(module.register_forward_hook(keep).remove)
            hook = blocks[0].register_forward_pre_hook(enter, with_kwargs=True)
            hooks.callback(hook.remove)
            logits = model(**inputs).logits
        sources = [module for module, answer in answers.items() if answer is entering[0]]
        # An outer module answers after its inner ones.
        source = sources[-1] if sources else None
        finished = outermost([module for module in early if module not in late])
        return cls(answers, source, finished, crossing[0], logits)


def _main(answer: Any) -> torch.Tensor:
    """The hidden states among what a block answers: the first tensor, as in transformers."""
    return next(iter(tensors_of(answer)))


def _form(answer: Any) -> Callable[[torch.Tensor], Any]:
    """How to give a tensor the form of ``answer``: alone, or first in a tuple or list.

    Other tensors of it are left out; what is none, such as a height and width, is as it was.
    """
    if isinstance(answer, torch.Tensor):
        return lambda tensor: tensor
    kind = type(answer)
    others = [None if any(True for _ in tensors_of(each)) else each for each in answer[1:]]
    return lambda tensor: kind([tensor, *others])


def _answering(
    form: Callable[[torch.Tensor], Any], activations: torch.Tensor
) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: form(activations)


def _is_by_token(activations: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> bool:
    mask = inputs.get("attention_mask")
    return mask is not None and activations.shape[:2] == mask.shape


def _blank_padding(
    cut: Cut, activations: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Activations as a batch of stored rows has them: zeros where there is no token."""
    if not cut.by_token:
        return activations
    mask = inputs["attention_mask"].bool()
    return activations * mask.reshape(*mask.shape, *[1] * (activations.ndim - 2))
