"""What the head does not read is not computed: the last block for the first token alone.

A head that reads the first token needs of the last block that token's query, attention output and
feed-forward, and what it attends to in the others. With one query the keys and values of the others
need not be computed either: q . (W x + b) = (q W) . x + q . b, and a sum of W x + b weighted by
attention is W times the weighted sum of x, so that W meets one vector a row instead of one a token.
The result is the same number; that the head reads one token, and that the logits agree, is found by
running both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.finetune.freeze import find_blocks, tensors_of

_TOLERANCE: Final = 1e-5  # of logits, in fp32

Forward = Callable[..., Any]


def compute_first_token_only(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Make the last block of ``model`` compute the first token's answer only, where that is exact.

    Args:
        model: a transformers model with a head.
        inputs: a batch on the model's device to prove it on; best with rows of unlike length.

    Returns:
        Whether it was done; ``compute_every_token`` undoes it.
    """
    block = _last_block(model)
    forward = None if block is None else _first_token_forward(block)
    if block is None or forward is None or not _reads_first_token_only(model, block, inputs):
        return False
    model.eval()
    with torch.no_grad():
        before = model(**inputs).logits
        block.forward = forward
        after = model(**inputs).logits
    if float((after - before).abs().max()) <= _TOLERANCE * max(1.0, float(before.abs().max())):
        return True
    del block.forward
    return False


def compute_every_token(model: nn.Module) -> None:
    """Make the last block an ordinary one again."""
    block = _last_block(model)
    if block is not None:
        block.__dict__.pop("forward", None)


def _last_block(model: nn.Module) -> nn.Module | None:
    try:
        return find_blocks(model)[-1]
    except ConfigError:
        return None


def _reads_first_token_only(
    model: nn.Module, block: nn.Module, inputs: Mapping[str, torch.Tensor]
) -> bool:
    """Whether the logits' gradient with respect to the block's answer is 0 but for one token."""
    answers: list[torch.Tensor] = []

    def detach(_block: nn.Module, _args: Any, answer: Any) -> Any:
        answers.extend(each.detach().requires_grad_() for each in tensors_of(answer))
        return answers[0] if isinstance(answer, torch.Tensor) else (answers[0], *answer[1:])

    hook = block.register_forward_hook(detach)
    model.eval()
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    if not answers or answers[0].ndim != 3 or answers[0].shape[1] < 2:
        return False
    (gradient,) = torch.autograd.grad(logits.square().sum() + logits.sum(), answers[:1])
    return bool(gradient[:, 0].any()) and not bool(gradient[:, 1:].any())


def _first_token_forward(block: Any) -> Forward | None:
    """The shortened forward of a block of known form: BERT and its kin, or DistilBERT."""
    attention = getattr(block, "attention", None)
    if hasattr(getattr(attention, "self", None), "query") and hasattr(block, "feed_forward_chunk"):
        return _bert_forward(block)
    if hasattr(attention, "q_lin") and hasattr(block, "sa_layer_norm"):
        return _distilbert_forward(block)
    return None


def _bert_forward(block: Any) -> Forward:
    """BERT, RoBERTa, ELECTRA and others: cross-attention of the first token to all of them."""

    def forward(
        hidden_states: torch.Tensor, attention_mask: Any = None, *_args: Any, **_kwargs: Any
    ) -> Any:
        first, mask = hidden_states[:, :1], _for_first_query(attention_mask)
        if _is_plain(block.attention.self, mask):
            attended = _attend(block.attention.self, hidden_states, mask)
        else:
            attended = block.attention.self(
                first, attention_mask=mask, encoder_hidden_states=hidden_states
            )[0]
        return (block.feed_forward_chunk(block.attention.output(attended, first)),)

    return forward


def _is_plain(attention: Any, mask: Any) -> bool:
    """Whether ``attention`` is softmax(q k) v of linear layers and no more; adapters are more."""
    layers = (attention.query, attention.key, attention.value)
    added = mask is None or (isinstance(mask, torch.Tensor) and mask.is_floating_point())
    positions = getattr(attention, "position_embedding_type", None) or "absolute"
    return added and positions == "absolute" and all(type(each) is nn.Linear for each in layers)


def _attend(attention: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What the first of ``tokens`` (rows, tokens, hidden) attends to, (rows, 1, hidden).

    ``mask``, (rows, 1, 1, tokens), is added to the scores.
    """
    by_head = (attention.num_attention_heads, attention.attention_head_size)
    query = attention.query(tokens[:, 0]).unflatten(-1, by_head)
    key, value = (each.weight.unflatten(0, by_head) for each in (attention.key, attention.value))
    scores = torch.einsum("rhe,hed->rhd", query, key) @ tokens.transpose(1, 2)
    if attention.key.bias is not None:
        scores = scores + (query * attention.key.bias.unflatten(0, by_head)).sum(-1, keepdim=True)
    scores = scores / math.sqrt(by_head[1])
    if mask is not None:
        scores = scores + mask[:, :, 0]
    weights = attention.dropout(scores.softmax(-1))  # (rows, heads, tokens)
    attended = torch.einsum("rhd,hed->rhe", weights @ tokens, value)
    if attention.value.bias is not None:
        attended = attended + attention.value.bias.unflatten(0, by_head) * weights.sum(-1, True)
    return attended.flatten(1).unsqueeze(1)


def _distilbert_forward(block: Any) -> Forward:
    def forward(x: torch.Tensor, attn_mask: Any = None, *_args: Any, **_kwargs: Any) -> Any:
        first = x[:, :1]
        mask = _for_first_query(attn_mask)
        (attended,) = block.attention(query=first, key=x, value=x, mask=mask)
        attended = block.sa_layer_norm(attended + first)
        return (block.output_layer_norm(block.ffn(attended) + attended),)

    return forward


def _for_first_query(mask: Any) -> Any:
    """The rows of a (rows, heads, queries, keys) mask that the first query needs."""
    if isinstance(mask, torch.Tensor) and mask.ndim == 4:
        return mask[:, :, :1]
    return mask
