"""A model as safetensors in another number format, whole or in shards, or with its layers in 8 bits.

Both forms are folders that `AutoModelForCausalLM.from_pretrained` and vLLM read without this package; 8 bits need
torchao there. docs/export.md says what they cost and why the vocabulary's matrices stay in bfloat16.

What is refused is refused by `check_safetensors` and `check_int8`, before anything is written.
"""

import copy
import importlib.metadata
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_packages
from ..models import finish_saved
from ..quantised import ensure_not_quantised

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Our names of number formats, which are llama.cpp's, and torch's.
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
DEFAULT_SHARD_SIZE = "5GB"
_SHARD_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]B)", re.IGNORECASE)
_UNIT_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # as huggingface_hub counts them
_SMALLEST_SHARD_BYTES = 100_000  # below, a model of 160M parameters would be thousands of files
# The first release whose int8 weights transformers reads from safetensors as we write them.
_OLDEST_TORCHAO = (0, 18)


def check_safetensors(model: "PreTrainedModel", name: str, dtype_name: str, max_shard_size: str) -> None:
    """Check that a model can be written as safetensors in a number format.

    Args:
        model: loaded.
        name: its folder or repository, for messages.
        dtype_name: one of `DTYPES`.
        max_shard_size: most bytes of a file, such as 2GB.

    Raises:
        InputError: an unknown format or size, weights that are quantised or are no numbers, or a weight that float16
            cannot hold.
    """
    ensure(dtype_name in DTYPES, f"type={dtype_name}: must be one of {', '.join(DTYPES)} for safetensors.")
    _check_shard_size(max_shard_size)
    ensure_not_quantised("model_name_or_path", name, model.config)
    largest, weight = _largest_weight(model, name)
    ensure(
        dtype_name != "f16" or largest <= 65504,  # torch.finfo(torch.float16).max
        f"type=f16: float16 holds numbers up to 65,504, and {weight} of {name} has one of size {largest:,.0f}. Use "
        "type=bf16, which holds them in as many bytes.",
    )


def _check_shard_size(max_shard_size: str) -> None:
    """Check a size such as 2GB.

    Raises:
        InputError: it is no size, or too small.
    """
    found = _SHARD_SIZE.fullmatch(max_shard_size.strip())
    size = float(found[1]) * _UNIT_BYTES[found[2].upper()] if found else 0
    ensure(
        size >= _SMALLEST_SHARD_BYTES,
        f"max_shard_size={max_shard_size}: must be a number with KB, MB, GB or TB, from 100KB, such as 2GB.",
    )


def check_int8(model: "PreTrainedModel", name: str) -> None:
    """Check that the layers of a model can be written in 8 bits.

    Args:
        model: loaded.
        name: its folder or repository, for messages.

    Raises:
        InputError: torchao is missing or too old, weights that are quantised or are no numbers, or a model without
            layers that torchao quantises.
    """
    ensure_packages("int8", "torchao")
    version = importlib.metadata.version("torchao")
    ensure(
        tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _OLDEST_TORCHAO,
        f"torchao {version} is too old to write 8 bits that transformers reads. Install a newer one: "
        "pip install 'teenytinyllama[int8]'",
    )
    ensure_not_quantised("model_name_or_path", name, model.config)
    _largest_weight(model, name)
    ensure(
        _has_linear_layers(model),
        f"format=int8: torchao quantises linear layers, and {name} ({model.config.model_type}) has none but its head. "
        "Use format=gguf or format=safetensors.",
    )


def _has_linear_layers(model: "PreTrainedModel") -> bool:
    """Return whether a model has linear layers besides its output embeddings: GPT-2 has convolutions in their place."""
    from torch.nn import Linear

    head = model.get_output_embeddings()
    return any(isinstance(module, Linear) and module is not head for module in model.modules())


def _largest_weight(model: "PreTrainedModel", name: str) -> tuple[float, str]:
    """Return the largest absolute value among a model's weights, and the name of the weight that holds it.

    Raises:
        InputError: a weight is infinite or no number.
    """
    found = (0.0, "")
    for weight, values in model.named_parameters():
        least, most = (float(value) for value in values.detach().aminmax())
        size = max(-least, most)
        ensure(
            size < float("inf"),  # false for NaN, too
            f"model_name_or_path={name}: {weight} holds values that are no finite numbers: the training of "
            "this model went wrong. Give an earlier checkpoint.",
        )
        found = max(found, (size, weight))
    return found


def write_safetensors(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    dtype_name: str,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
) -> None:
    """Write a model in a number format, and its tokenizer, into an empty folder.

    One file `model.safetensors`, or shards of at most `max_shard_size` with their index. The model itself stays as it
    is.

    Args:
        model: that passed `check_safetensors`; an adapter is merged by `models.from_pretrained`.
        tokenizer: its tokenizer, with the chat template.
        folder: exists and is empty.
        dtype_name: one of `DTYPES`.
        max_shard_size: most bytes of a file, such as 2GB; a larger weight gets a file of its own.
    """
    import torch

    written = _in_dtype(model, getattr(torch, DTYPES[dtype_name]))
    written.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    finish_saved(folder)


def _in_dtype(model: "PreTrainedModel", dtype: "torch.dtype") -> "PreTrainedModel":
    """Return a model whose weights have a dtype: the same one if they have, else a copy."""
    if all(parameter.dtype == dtype for parameter in model.parameters()):
        return model
    copied: Any = copy.deepcopy(model)
    return copied.to(dtype)  # type: ignore[no-any-return]


def write_int8(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a model with its linear layers in 8 bits, and its tokenizer, into an empty folder.

    torchao's `Int8WeightOnlyConfig`: each row of a weight matrix becomes integers of 8 bits and one scale in float32.
    Embeddings, head and norms are bfloat16, and so are activations: transformers quantises no embeddings, and vLLM
    reads no quantised head (vLLM 0.33, `TorchAOConfig.get_quant_method`: layers of `LinearBase` alone).

    Two exports hold the same weights, but their files may differ: safetensors writes its metadata in no fixed order.

    Args:
        model: that passed `check_int8`. It stays as it is.
        tokenizer: its tokenizer, with the chat template.
        folder: exists and is empty.
    """
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    weights = {weight: values.detach().cpu() for weight, values in model.state_dict().items()}
    quantised: Any = type(model).from_pretrained(
        None,
        config=copy.deepcopy(model.config),
        state_dict=weights,
        dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
    )
    quantised.generation_config = copy.deepcopy(model.generation_config)
    quantised.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    finish_saved(folder)
