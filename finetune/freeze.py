"""The frozen part of a model: everything up to and including its first N blocks.

A frozen module stays in eval mode and runs under no_grad whatever ``model.train()`` says, so that
neither its weights nor its buffers move and its dropout is off. What belongs to the part is found
by running the model once: the modules called before block N has answered, and every parameter that
this answer depends on (the relative positions of DeBERTa and MPNet lie beside the blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.finetune.blocks import image_blocks, reads_images


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """What does not train: ``blocks`` of ``of`` blocks, and all that their answer depends on."""

    blocks: int
    of: int
    modules: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()


def freeze(model: nn.Module, depth: int | float, inputs: Mapping[str, torch.Tensor]) -> FrozenPart:
    """Freeze the embeddings and the first blocks of a transformers model, in place.

    Args:
        model: a transformers model with a head.
        depth: a number of blocks, or as a float a share of them, rounded down; 0 freezes nothing.
        inputs: a batch that the model accepts, to run it once.

    Raises:
        ConfigError: the model's blocks are not recognised, are shared, or are fewer than asked for.
    """
    part = find_part(model, depth, inputs)
    hold(part)
    return part


def find_part(
    model: nn.Module, depth: int | float, inputs: Mapping[str, torch.Tensor]
) -> FrozenPart:
    """What ``freeze`` would freeze, as it is; raises as ``freeze`` does."""
    if depth == 0:
        return FrozenPart(0, _count_blocks(model))
    blocks = find_blocks(model)
    count = resolve_depth(depth, len(blocks))
    if count == 0:
        return FrozenPart(0, len(blocks))
    modules, parameters = _part_before(model, blocks[count - 1], inputs)
    return FrozenPart(count, len(blocks), tuple(modules), tuple(parameters))


def hold(part: FrozenPart) -> None:
    """Keep the part's weights and buffers, its dropout off, until ``thaw``."""
    for parameter in part.parameters:
        parameter.requires_grad_(False)
    for module in part.modules:
        _hold(module)


def thaw(part: FrozenPart) -> None:
    """Make the part's modules and parameters ordinary ones again."""
    for module in part.modules:
        module.__class__ = _own_class(module)
    for parameter in part.parameters:
        parameter.requires_grad_(True)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, in the order in which they run.

    Raises:
        ConfigError: there is no single list of ``num_hidden_layers`` blocks of one class, or they
            share weights (as ALBERT's do). For image models as ``blocks.image_blocks``.
    """
    if reads_images(model):
        return _separate(image_blocks(model, _own_class), model)
    count = _count_blocks(model)
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and len({_own_class(block) for block in module}) == 1
    ]
    if len(lists) != 1 or _share_weights(list(lists[0])):
        raise ConfigError(
            f"{type(model).__name__}: cannot freeze a part of it, for it has no list of {count} "
            "separate blocks (they are shared, as in ALBERT, or of an unknown form); "
            "pass --freeze 0 to train all of it"
        )
    return list(lists[0])


def resolve_depth(depth: int | float, blocks: int) -> int:
    """``depth`` as a number of blocks: an int is one already, a float is a share, rounded down.

    Raises:
        ConfigError: more blocks than there are.
    """
    if isinstance(depth, float):
        return int(depth * blocks)
    if depth > blocks:
        raise ConfigError(
            f"--freeze {depth}: the model has {blocks} blocks; freeze at most {blocks}"
        )
    return depth


class _Frozen(nn.Module):
    """Mixed in before a module's own class while the module is frozen."""

    def train(self, mode: bool = True) -> _Frozen:
        """Stay in eval mode."""
        return super().train(False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return super().__call__(*args, **kwargs)


def _hold(module: nn.Module) -> None:
    own = type(module)
    module.__class__ = type(own.__name__, (_Frozen, own), {"__module__": own.__module__})
    module.eval()


def _own_class(module: nn.Module) -> type[nn.Module]:
    return type(module).__bases__[1] if isinstance(module, _Frozen) else type(module)


def frozen_modules(model: nn.Module) -> set[nn.Module]:
    """Modules that are held, with all inside of them, and those whose parameters do not train."""
    held = [each for each in model.modules() if isinstance(each, _Frozen)]
    inside = {module for each in held for module in each.modules()}
    return inside | {each for each in model.modules() if _is_still(each)}


def _is_still(module: nn.Module) -> bool:
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(each.requires_grad for each in parameters)


def _count_blocks(model: nn.Module) -> int:
    """How many there are; 0 where they are not known, for then nothing can be frozen."""
    if not reads_images(model):
        return int(getattr(model.config, "num_hidden_layers", 0))
    try:
        return len(image_blocks(model, _own_class))
    except ConfigError:
        return 0


def _separate(blocks: list[nn.Module], model: nn.Module) -> list[nn.Module]:
    if _share_weights(blocks):
        raise ConfigError(
            f"{type(model).__name__}: cannot freeze a part of it, for its blocks share weights; "
            "pass --freeze 0 to train all of it"
        )
    return blocks


def _share_weights(blocks: Sequence[nn.Module]) -> bool:
    parameters = [id(parameter) for block in blocks for parameter in block.parameters()]
    return len(set(parameters)) < len(parameters)


def _part_before(
    model: nn.Module, last: nn.Module, inputs: Mapping[str, torch.Tensor]
) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """The outermost modules called until ``last`` has answered, and what trains of their answer."""
    called: list[nn.Module] = []
    later: set[nn.Module] = set()
    answers: list[torch.Tensor] = []
    answered = False

    def on_call(module: nn.Module, _args: object) -> None:
        if answered:
            later.add(module)
        else:
            called.append(module)

    def on_answer(_module: nn.Module, _args: object, answer: object) -> None:
        nonlocal answered
        answered = True
        answers.extend(tensor for tensor in tensors_of(answer) if tensor.requires_grad)

    hooks = [module.register_forward_pre_hook(on_call) for module in model.modules()]
    hooks.append(last.register_forward_hook(on_answer))
    model.eval()
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    around = {module for module in called if module is not last and last in set(module.modules())}
    # One activation may serve the whole network: held, it would cut off the gradient behind.
    shared = later.intersection(called) - around
    _refuse_shared_state(shared, model)
    modules = outermost([each for each in called if each not in around and each not in shared])
    return modules, _training(model, modules, answers)


def _refuse_shared_state(shared: set[nn.Module], model: nn.Module) -> None:
    """Modules that run on both sides of the cut may hold nothing that moves."""
    stateful = [each for each in model.modules() if each in shared and each.state_dict()]
    if stateful:
        raise ConfigError(
            f"{type(model).__name__}: a {type(stateful[0]).__name__} runs both before and after "
            "the last frozen block, so it cannot be frozen; choose another --freeze"
        )


def _training(
    model: nn.Module, modules: Sequence[nn.Module], answers: Sequence[torch.Tensor]
) -> list[nn.Parameter]:
    """Parameters that train now and belong to ``modules`` or reach one of ``answers``."""
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
        [each.sum() for each in answers], training, allow_unused=True
    )
    inside = {parameter for module in modules for parameter in module.parameters()}
    return [
        parameter
        for parameter, gradient in zip(training, gradients, strict=True)
        if gradient is not None or parameter in inside
    ]


def outermost(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those that lie in no other of ``modules``, in the order given."""
    inner = {child for module in modules for child in module.modules() if child is not module}
    return [module for module in dict.fromkeys(modules) if module not in inner]


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """The tensors in what a module takes or answers: itself, or those of a tuple or list."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_of(each)
