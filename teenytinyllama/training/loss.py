"""The language-model loss from hidden states, a few hundred tokens of logits at a time.

Whole logits are tokens x vocabulary: 0.5 GB for 4,096 tokens and 32,000 entries in float32, several times over in the
backward pass, more than all layers of a small model together. torch 2.13 computes the head and the cross-entropy chunk
by chunk (`torch.nn.functional.linear_cross_entropy`), gradients included. On a CPU it is also the faster way, because a
chunk stays in the cache (docs/performance.md).
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from .batch import CPU_CHUNK_BYTES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def has_chunked_loss() -> bool:
    """Return whether this torch computes head and loss in chunks (2.13 and later)."""
    return hasattr(torch.nn.functional, "linear_cross_entropy")


def chunk_loss(model: "PreTrainedModel") -> None:
    """Make `model(input_ids, labels=…)` compute its loss without whole logits, in place; other calls stay as they are.

    In training mode the output has `loss` alone. In evaluation mode its `logits` are (batch, 2): the summed nats of
    the scored tokens of each row and their number, which is what `evaluation.held_out.window_nats` makes of logits.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(input_ids: Any = None, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        if labels is None:
            return plain(input_ids, *args, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        hidden = model.base_model(input_ids, *args, **{**kwargs, "use_cache": False}).last_hidden_state
        return _output(hidden, model.get_output_embeddings().weight, labels, num_items, model.training)

    model.forward = forward  # type: ignore[method-assign]


def _output(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, num_items: Any, training: bool
) -> CausalLMOutputWithPast:
    """Return the loss (the mean over the scored tokens, or their sum over `num_items`) of hidden states.

    Args:
        hidden: (batch, tokens, hidden size).
        weight: (vocabulary, hidden size).
        labels: (batch, tokens), -100 where nothing is scored; labels[t] is predicted by hidden[t - 1].
        num_items: scored tokens of the whole optimizer step, over all ranks; None: those of this batch.
        training: see `chunk_loss`.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):  # the chunked op is not on autocast's list
        hidden, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (hidden, weight))
    states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    options = chunk_options(device, weight.shape[0])
    # A sum of thousands of nats in bfloat16 has two digits. The nats of single tokens are summed in float32 instead.
    reduction = "sum" if training and hidden.dtype == torch.float32 else "none"
    nats = torch.nn.functional.linear_cross_entropy(states, weight, targets, reduction=reduction, options=options)
    scored = labels[:, 1:] != -100
    if training:
        loss = nats.float().sum() / (scored.sum() if num_items is None else num_items)
        return CausalLMOutputWithPast(loss=loss)  # type: ignore[arg-type]
    rows = torch.stack([nats.view(scored.shape).float().sum(dim=1), scored.sum(dim=1).float()], dim=1)
    return CausalLMOutputWithPast(loss=rows[:, 0].sum() / rows[:, 1].sum(), logits=rows)  # type: ignore[arg-type]


def chunk_options(device: str, vocab_size: int) -> Any:
    """Return torch's options for the chunks on a device."""
    if device != "cpu":
        return torch.nn.LinearCrossEntropyOptions()
    return torch.nn.LinearCrossEntropyOptions(
        chunking_method=None, batch_chunk_size=max(1, CPU_CHUNK_BYTES // (4 * vocab_size))
    )
