"""From hidden states to log-probabilities, at the positions that are needed and no others."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from forethought.models.recurring import largest_step, recurring


class Reading(NamedTuple):
    """What a model says at N positions: `entropies` is None unless asked for."""

    logprobs: Tensor  # (N,) float32, log pi(target) in nats
    entropies: Tensor | None  # (N,) float32, of the distribution at temperature, in nats
    hidden: Tensor  # (N, D), the last hidden states


def token_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    position_ids: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """log pi(target) in nats at N flat positions; arguments are those of `read_tokens`."""
    return read_tokens(
        model, input_ids, positions, targets, temperature, position_ids=position_ids, mask=mask
    ).logprobs


def read_tokens(
    model: PreTrainedModel,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    *,
    position_ids: Tensor | None = None,
    mask: Tensor | None = None,
    wants_entropy: bool = False,
    head_function: type[Function] | None = None,
) -> Reading:
    """Log-probability of N targets, at flat positions of right-padded rows.

    input_ids: (B, T); positions: (N,) indices into B * T; targets: (N,). position_ids (B, T) and
    mask (B, 1, T, T), True where a query sees a key, are those of plain causal rows when left out.
    `head_function` does what _HeadLogprobs does, where that would be used.
    """
    layout: dict[str, Tensor] = {}
    if position_ids is not None:
        layout["position_ids"] = position_ids
    if mask is not None:
        layout["attention_mask"] = attention_mask(model, mask)
    hidden = model.base_model(input_ids=input_ids, use_cache=False, **layout).last_hidden_state
    head, count = _plain_head(model), len(positions)
    if head is not None and torch.is_autocast_enabled("cpu"):
        more = -(-recurring(count, largest_step(head.numel(), 3)) // _AT_ONCE) * _AT_ONCE - count
        positions, targets = F.pad(positions, (0, more)), F.pad(targets, (0, more))
    # not hidden[positions]: siblings share a position, and the gradient of an index adds such terms
    # up in whatever order the threads come, so that a resumed run would not end in the same bits
    needed = hidden.flatten(0, 1).index_select(0, positions)
    if head is None:
        logprobs, entropies = _by_model(model, needed, targets, temperature, wants_entropy)
    elif wants_entropy:
        logprobs, entropies = _HeadEntropies.apply(needed, head, targets, temperature)  # type: ignore[no-untyped-call]
    else:
        function: Any = head_function or _HeadLogprobs
        logprobs, entropies = function.apply(needed, head, targets, temperature), None
    shown = None if entropies is None else entropies[:count]
    return Reading(logprobs[:count], shown, needed[:count])


def _by_model(
    model: PreTrainedModel, needed: Tensor, targets: Tensor, temperature: float, wants_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies by the model's own head, whatever it does."""
    logits = project(model, needed).float()  # (N, V)
    if temperature != 1.0:
        logits = logits / temperature
    table = F.log_softmax(logits, dim=-1)
    entropies = -(table.exp() * table).sum(dim=-1) if wants_entropy else None
    return table.gather(1, targets[:, None])[:, 0], entropies


def _plain_head(model: PreTrainedModel) -> Tensor | None:
    """The head's weight (V, D) where logits are its product with the states and no more, and it is
    in float32; the product may be autocast."""
    caller: Any = model
    head = caller.get_output_embeddings()
    config = model.config.get_text_config()
    does_more = any(
        getattr(config, name, None)
        for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")
    )
    is_plain = type(head) is nn.Linear and head.bias is None and not does_more
    return head.weight if is_plain and head.weight.dtype == torch.float32 else None


class _HeadLogprobs(Function):
    """log softmax(hidden @ weight.T / temperature)[target], with one (N, V) table in all.

    cross_entropy keeps logits and log-probabilities and makes a third table for the gradient; here
    the logits become probabilities in place, and these the gradient. So it can be walked back once.
    Under autocast the products are in its format, as those of a linear layer, and the table is not.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """hidden: (N, D); weight: (V, D); targets: (N,). Returns (N,) nats."""
        table, ctx.dtype = _shifted_logits(hidden, weight, temperature)
        chosen = table.gather(1, targets[:, None])[:, 0]
        total = table.exp_().sum(dim=-1)
        table.div_(total[:, None])
        ctx.save_for_backward(hidden, weight, targets)
        ctx.table, ctx.temperature = table, temperature
        return chosen - total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        table = _take_table(ctx)
        gradient = (gradient / ctx.temperature)[:, None]
        table.mul_(-gradient).scatter_add_(1, targets[:, None], gradient)
        return _to_inputs(ctx, table, hidden, weight)


class _HeadEntropies(Function):
    """Log-probabilities as above, and the entropy of each position's distribution.

    The table that is kept holds log-probabilities; a block of rows at a time is raised to
    probabilities.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """As above; returns log-probabilities and entropies, both (N,) in nats."""
        table, ctx.dtype = _shifted_logits(hidden, weight, temperature)
        table.sub_(torch.logsumexp(table, dim=-1, keepdim=True))
        parts = [-(rows.exp() * rows).sum(dim=-1) for rows in torch.split(table, _BLOCK)]
        entropies = torch.cat(parts) if parts else table.new_zeros(0)
        ctx.save_for_backward(hidden, weight, targets, entropies)
        ctx.table, ctx.temperature = table, temperature
        return table.gather(1, targets[:, None])[:, 0], entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor, of_entropies: Tensor) -> tuple[Tensor | None, ...]:
        """d logprob / d z_j = 1[j is the target] - p_j;  d H / d z_j = -p_j (log p_j + H)."""
        hidden, weight, targets, entropies = ctx.saved_tensors
        table = _take_table(ctx)
        of_logprobs = (of_logprobs / ctx.temperature)[:, None]
        of_entropies = (of_entropies / ctx.temperature)[:, None]
        for start in range(0, len(table), _BLOCK):
            some = slice(start, start + _BLOCK)
            rows = table[some]
            probabilities = rows.exp()
            rows.add_(entropies[some, None]).mul_(-of_entropies[some]).sub_(of_logprobs[some])
            rows.mul_(probabilities)
        table.scatter_add_(1, targets[:, None], of_logprobs)
        return _to_inputs(ctx, table, hidden, weight)


_AT_ONCE = 32  # numbers in bfloat16 that an instruction goes over at most
_BLOCK = 64  # rows of a table that are worked on at once


def _shifted_logits(
    hidden: Tensor, weight: Tensor, temperature: float
) -> tuple[Tensor, torch.dtype]:
    """hidden @ weight.T / temperature (N, V) in float32, less the largest of each row, and the
    format of the product."""
    product = hidden @ weight.T
    dtype = product.dtype
    table = product.float()
    if temperature != 1.0:
        table.div_(temperature)
    return table.sub_(table.amax(dim=-1, keepdim=True)), dtype


def _take_table(ctx: Any) -> Tensor:
    if ctx.table is None:
        raise RuntimeError("the log-probabilities of a head can be walked back only once")
    table: Tensor = ctx.table
    ctx.table = None
    return table


def _to_inputs(
    ctx: Any, table: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient of the logits, `table` (N, V), carried on to hidden states and weight."""
    wants_hidden, wants_weight = ctx.needs_input_grad[:2]
    table = table.to(ctx.dtype)
    to_hidden = (table @ weight.to(ctx.dtype)).to(hidden.dtype) if wants_hidden else None
    to_weight = (table.T @ hidden.to(ctx.dtype)).to(weight.dtype) if wants_weight else None
    return to_hidden, to_weight, None, None


def attention_mask(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """`mask` (B, 1, Q, K), True where a query sees a key, as the model's attention wants it."""
    if model.config._attn_implementation != "eager":
        return mask
    lowest = torch.finfo(model.dtype).min  # eager attention adds its mask to the scores
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)


def project(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, D), with what the model's family does to its logits."""
    caller: Any = model  # transformers' own annotations are in the way
    logits: Tensor = caller.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if softcap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = softcap * (logits / softcap).tanh()
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * factor
    return logits
