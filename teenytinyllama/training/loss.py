"""The language-model loss from hidden states, without whole logits in float32.

Whole logits are tokens x vocabulary: 0.5 GB for 4,096 tokens and 32,000 entries in float32, several times over in the
backward pass, more than all layers of a small model together. Two ways around them:

chunked   torch 2.13 computes the head and the cross-entropy chunk by chunk, gradients included
          (`torch.nn.functional.linear_cross_entropy`). On a CPU it is also the faster way, because a chunk stays in the
          cache (docs/performance.md).
compiled  on a GPU, head and cross-entropy are compiled together: logits exist in 16 bits alone, and float32 only within
          the kernels. Training 160m on an H100 went from 359,000 to 422,000 tokens/s by it (docs/gpu.md).
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from .batch import CPU_CHUNK_BYTES, LossKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def has_chunked_loss() -> bool:
    """Return whether this torch computes head and loss in chunks (2.13 and later)."""
    return hasattr(torch.nn.functional, "linear_cross_entropy")


# Models of transformers whose logits are the output embeddings times the last hidden state and no more: no bias, no
# scale, no soft cap, as Gemma 2, Granite, Cohere and Phi have.
PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


def has_plain_head(config: Any) -> bool:
    """Return whether `fuse_loss` may take the logits of a model for those of `PLAIN_HEADS`."""
    return str(config.model_type) in PLAIN_HEADS


def fuse_loss(model: "PreTrainedModel", kind: LossKind) -> None:
    """Make `model(input_ids, labels=…)` compute its loss without whole logits, in place; other calls stay as they are.

    In training mode the output has `loss` alone. In evaluation mode its `logits` are (batch, 2): the summed nats of
    the scored tokens of each row and their number, which is what `evaluation.held_out.window_nats` makes of logits.

    Args:
        model: a causal language model of transformers, see `has_plain_head`.
        kind: chunked or compiled; whole leaves the model alone.
    """
    if kind == "whole":
        return
    plain = model.forward

    @functools.wraps(plain)
    def forward(input_ids: Any = None, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return plain(input_ids, *args, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        hidden = model.base_model(input_ids, *args, **{**kwargs, "use_cache": False}).last_hidden_state
        weight, device = model.get_output_embeddings().weight, hidden.device.type
        if torch.is_autocast_enabled(device):  # the chunked op is not on autocast's list
            hidden, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, weight))
        with torch.autocast(device, enabled=False):
            if model.training:
                return _training_output(hidden, weight, labels, num_items, kind)
            return _evaluation_output(hidden, weight, labels, kind)

    model.forward = forward  # type: ignore[method-assign]


def _training_output(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, num_items: Any, kind: LossKind
) -> CausalLMOutputWithPast:
    """Return the loss (the mean over the scored tokens, or their sum over `num_items`) of hidden states.

    Args:
        hidden: (batch, tokens, hidden size).
        weight: (vocabulary, hidden size).
        labels: (batch, tokens), -100 where nothing is scored; labels[t] is predicted by hidden[t - 1].
        num_items: scored tokens of the whole optimizer step, over all ranks; None: those of this batch.
        kind: see `fuse_loss`.
    """
    states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if kind == "compiled":
        nats = _compiled_nats()(states, weight, targets)
    else:
        # A sum of thousands of nats in bfloat16 has two digits. The nats of single tokens are summed in float32.
        reduction = "sum" if hidden.dtype == torch.float32 else "none"
        nats = _chunked_nats(states, weight, targets, reduction).float().sum()
    return CausalLMOutputWithPast(  # type: ignore[arg-type]
        loss=nats / ((targets != -100).sum() if num_items is None else num_items)
    )


def _evaluation_output(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, kind: LossKind
) -> CausalLMOutputWithPast:
    """Return the mean loss of all scored tokens, and as `logits` what `fuse_loss` says; shapes as in training."""
    targets = labels[:, 1:]
    if kind == "compiled":  # evaluations bring many shapes and are not compiled: the logits of one row at a time
        pairs = zip(hidden[:, :-1], targets, strict=True)
        nats = torch.stack([_nats(states, weight, row, "none") for states, row in pairs])
    else:
        nats = _chunked_nats(hidden[:, :-1].flatten(0, 1), weight, targets.flatten(), "none").view(targets.shape)
    rows = torch.stack([nats.float().sum(dim=1), (targets != -100).sum(dim=1).float()], dim=1)
    return CausalLMOutputWithPast(loss=rows[:, 0].sum() / rows[:, 1].sum(), logits=rows)  # type: ignore[arg-type]


def _chunked_nats(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    options = chunk_options(states.device.type, weight.shape[0])
    nats: torch.Tensor = torch.nn.functional.linear_cross_entropy(
        states, weight, targets, reduction=reduction, options=options
    )
    return nats


def _nats(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    logits = torch.nn.functional.linear(states, weight).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)


@functools.cache
def _compiled_nats() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the summed nats of (tokens, hidden), (vocabulary, hidden), (tokens,) as one compiled function."""
    return torch.compile(functools.partial(_nats, reduction="sum"))


def chunk_options(device: str, vocab_size: int) -> Any:
    """Return torch's options for the chunks on a device."""
    if device != "cpu":
        return torch.nn.LinearCrossEntropyOptions()
    return torch.nn.LinearCrossEntropyOptions(
        chunking_method=None, batch_chunk_size=max(1, CPU_CHUNK_BYTES // (4 * vocab_size))
    )
