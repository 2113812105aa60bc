"""GGUF: a Llama and its tokenizer in the one file that llama.cpp, Ollama and their kin read.

Names of keys and tensors are those of the `gguf` package, which llama.cpp's own converter writes with. Rotary
positions turn pairs of neighbours in llama.cpp and pairs of halves in transformers: so the rows of the query and key
matrices change places (`LlamaModel.permute` of llama.cpp's conversion, github.com/ggml-org/llama.cpp).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import ensure, ensure_packages
from ..disk import scratch_folder
from ..help_text import progress
from .gguf_tokenizer import Vocabulary, add_vocabulary
from .llama_cpp import last_words, library

if TYPE_CHECKING:
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BLOCK = 32  # values of a block of Q8_0 and Q4_0
K_BLOCK = 256  # values of a block of the K-quants
_CHUNK_VALUES = 1 << 25  # of a matrix that is quantised at once: 128 MiB of float32


@dataclass(frozen=True)
class GgufType:
    """A type of GGUF file.

    Attributes:
        name: as the user gives it.
        suffix: in the file's name, by which the Hub, Ollama and llama.cpp's `-hf` find it.
        file_type: number in the file (`gguf.LlamaFileType`).
        matrices: type of the layers' matrices; None: llama.cpp's quantiser chooses.
        vocabulary: type of the embeddings and the head.
    """

    name: str
    suffix: str
    file_type: int
    matrices: str | None
    vocabulary: str | None


# In Q4_0 the vocabulary stays at 8 bits, as llama.cpp keeps the head at 6: errors there reach every token.
TYPES = {
    "f16": GgufType("f16", "F16", 1, "F16", "F16"),
    "q8_0": GgufType("q8_0", "Q8_0", 7, "Q8_0", "Q8_0"),
    "q4_0": GgufType("q4_0", "Q4_0", 2, "Q4_0", "Q8_0"),
    "q4_k_m": GgufType("q4_k_m", "Q4_K_M", 15, None, None),
}


def check_gguf(name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", types: Sequence[str]) -> None:
    """Check that a model and its tokenizer can be written as these types.

    Raises:
        InputError: it is no plain Llama, its tokenizer has more entries than it has embeddings, or llama-cpp-python is
            needed and missing.
    """
    ensure_packages("gguf", "gguf", *(["llama_cpp"] if any(TYPES[kind].matrices is None for kind in types) else []))
    config: Any = model.config
    which, other = f"model_name_or_path={name}", "llama.cpp's convert_hf_to_gguf.py may know it."
    ensure(
        config.model_type in ("llama", "mistral"),
        f"{which}: is of model_type {config.model_type}; llama and mistral are written as GGUF here. {other}",
    )
    rope = dict(getattr(config, "rope_parameters", None) or {})
    unusual = {
        "rope_type": rope.get("rope_type", "default") not in ("default", "linear"),
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "hidden_act": config.hidden_act != "silu",
        "sliding_window": bool(getattr(config, "sliding_window", None)),
    }
    found = [key for key, is_unusual in unusual.items() if is_unusual]
    ensure(not found, f"{which}: its config has {', '.join(found)} that are not written here. {other}")
    rows, entries = _embeddings(model).shape[0], max(tokenizer.get_vocab().values()) + 1
    ensure(
        entries <= rows,
        f"{which}: its tokenizer has {entries:,} entries and the model {rows:,} embeddings. Copy the tokenizer "
        "that belongs to the model into its folder.",
    )


def _embeddings(model: "PreTrainedModel") -> "torch.Tensor":
    embeddings: Any = model.get_input_embeddings()
    found: torch.Tensor = embeddings.weight
    return found


def estimate_bytes(model: "PreTrainedModel", kind: GgufType) -> int:
    """Return about how large a file of a type gets, and what is needed beside it while it is written."""
    bits = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5}
    matrices = bits.get(kind.matrices or "", 5.5)
    vocabulary = bits.get(kind.vocabulary or "", 6.6)
    values = sum(parameter.numel() for parameter in model.parameters())
    in_vocabulary = _embeddings(model).numel() * (1 if model.config.tie_word_embeddings else 2)
    size = ((values - in_vocabulary) * matrices + in_vocabulary * vocabulary) / 8 + 1e6
    return round(1.05 * size + (2 * values if kind.matrices is None else 0))


def write_gguf(
    model: "PreTrainedModel", vocabulary: Vocabulary, path: Path, kind: GgufType, metadata: dict[str, Any]
) -> None:
    """Write a model as a GGUF file.

    Args:
        model: see `check_gguf`.
        vocabulary: from `read_vocabulary`.
        path: of the file, which a former one is replaced by.
        kind: of `TYPES`.
        metadata: `name`, `license`, `languages`, `chat_template`, `description`; and ids of special tokens `bos`,
            `eos`, `eot`, `unk`, `pad`. What is None is left out.
    """
    if kind.matrices is None:
        with scratch_folder(path.parent) as folder:
            whole = folder / "f16.gguf"
            write_gguf(model, vocabulary, whole, TYPES["f16"], metadata)
            _quantise(whole, path, kind)
        return
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    _add_metadata(writer, model, kind, metadata)
    add_vocabulary(writer, vocabulary, _embeddings(model).shape[0], metadata)
    tensors = list(_tensors(model, kind))
    for name, shape, target, _ in tensors:
        stored = gguf.quant_shape_to_byte_shape(shape, target) if target not in (0, 1) else shape
        dtype = np.dtype({0: np.float32, 1: np.float16}.get(int(target), np.uint8))
        writer.add_tensor_info(name, stored, dtype, math.prod(stored) * dtype.itemsize, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, target, read in progress(tensors, f"writing {path.name}", "tensors"):
        writer.write_tensor_data(_converted(read(), target))
    writer.close()


def _add_metadata(writer: "GGUFWriter", model: "PreTrainedModel", kind: GgufType, metadata: dict[str, Any]) -> None:
    """Write what the file says of the model's shape and origin."""
    import gguf

    config: Any = model.config
    rope = dict(getattr(config, "rope_parameters", None) or {})
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    for name in ("name", "license", "languages", "description"):
        if metadata.get(name):
            getattr(writer, f"add_{name}")(metadata[name])
    writer.add_size_label(gguf.size_label(model.num_parameters(), 0, 0, 0))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _tensors(
    model: "PreTrainedModel", kind: GgufType
) -> "Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType, Callable[[], NDArray[np.float32]]]]":
    """Yield name, shape and type of each tensor of the file, and a function that returns its values."""
    import gguf

    config: Any = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    is_tied = bool(config.tie_word_embeddings)
    for name, parameter in model.state_dict().items():
        if is_tied and name == "lm_head.weight":
            continue
        new = names.get_name(name, try_suffixes=(".weight",))
        assert new is not None, f"{name} has no name in GGUF"
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        wanted = kind.vocabulary if new.startswith(("token_embd", "output.")) else kind.matrices
        shape = tuple(parameter.shape)
        target = gguf.GGMLQuantizationType[_fitting(wanted or "F16", shape)]

        def read(parameter: Any = parameter, heads: int | None = heads) -> NDArray[np.float32]:
            values: NDArray[np.float32] = parameter.detach().to("cpu").float().numpy()
            return values if heads is None else _permuted(values, heads)

        yield new, shape, target, read


def _fitting(wanted: str, shape: tuple[int, ...]) -> str:
    """Return the type in which a tensor is written: vectors stay exact, and blocks must fill a row."""
    if len(shape) == 1:
        return "F32"
    return "F16" if wanted != "F16" and shape[-1] % _BLOCK else wanted


def _permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return the rows of a query or key matrix with the two halves of each head interleaved."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _converted(values: NDArray[np.float32], target: "GGMLQuantizationType") -> NDArray[Any]:
    """Return values in a type, rows by rows, so that little is in memory twice."""
    import gguf

    if int(target) in (0, 1):
        return np.ascontiguousarray(values, dtype=np.float16 if int(target) else np.float32)
    rows = max(1, _CHUNK_VALUES // values.shape[-1])
    parts = [gguf.quants.quantize(values[start : start + rows], target) for start in range(0, len(values), rows)]
    return np.concatenate(parts)


def _quantise(whole: Path, path: Path, kind: GgufType) -> None:
    """Let llama.cpp's quantiser make a file out of one of f16."""
    llama_cpp = library()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kind.file_type
    code = llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), parameters)
    ensure(code == 0, f"type={kind.name}: llama.cpp's quantiser failed ({last_words()}). Give another type.")


def count_types(path: Path) -> dict[str, int]:
    """Return how many matrices a GGUF file holds of each type, by its own tables."""
    import gguf

    counts: dict[str, int] = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
