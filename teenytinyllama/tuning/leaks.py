"""Whether conversations that share a row see each other: tried on the model itself before it is trained."""

from typing import TYPE_CHECKING

import torch

from ..checks import ensure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 12  # of each of the two texts
# Attention kernels sum in other orders for other lengths; a leak moves hidden states by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def leak_between_texts(model: "PreTrainedModel", flatten: bool = False) -> float:
    """Return by how much a text's hidden states move when the text before it in the row is another one.

    The two texts are told apart by their position ids alone, as in training. 0.0 but for rounding: nothing leaks.

    Args:
        model: on any device.
        flatten: give the boundaries that kernels for rows of different lengths need, as for flash attention.
    """
    from .rows import RowCollator

    vocab_size = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    first, other, second = (torch.randint(0, vocab_size, (_TOKENS,), generator=generator).numpy() for _ in range(3))
    collator = RowCollator(0, flatten)
    states = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for before in (first, other):
            ids = [*before, *second]
            batch = collator([{"input_ids": ids, "labels": ids, "seq_lengths": [_TOKENS, _TOKENS]}])
            batch = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
                if name != "labels"
            }
            hidden = model.base_model(**batch, use_cache=False).last_hidden_state
            states.append(hidden[0, _TOKENS:].float())
    model.train(was_training)
    return float((states[0] - states[1]).abs().max())


def check_no_leaks(model: "PreTrainedModel", attention: str, flatten: bool) -> None:
    """Refuse to pack conversations into rows with a model that lets them see each other.

    Raises:
        InputError: they do.
    """
    leak = leak_between_texts(model, flatten)
    ensure(
        leak <= _TOLERANCE.get(model.dtype, 1e-2),
        f"packing=true: with attn_implementation={attention}, this {model.config.model_type} lets conversations in one "
        f"row see each other (hidden states move by {leak:.2g}). Set attn_implementation: sdpa, or packing: false.",
    )
