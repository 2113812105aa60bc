"""GGUF: a Llama, its tokenizer and its chat template in the one file that llama.cpp, Ollama and their kin read.

Names of keys and tensors are those of the `gguf` package, which llama.cpp's own converter writes with. Rotary
positions turn pairs of neighbours in llama.cpp and pairs of halves in transformers: so the rows of the query and key
matrices change places (`LlamaModel.permute` of llama.cpp's conversion, github.com/ggml-org/llama.cpp).

The tokenizer is llama.cpp's `llama` (SentencePiece's BPE: any neighbours whose joined text is an entry, the highest
score first) for a vocabulary with byte tokens, and its `gpt2` for a byte-level BPE. A tokenizer that is not of `ttl
tokenizer` is tried in llama.cpp on `trial_lines`: the first reading that gives its ids is written, or none is.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure, ensure_packages
from ..disk import scratch_folder
from ..progress import progress
from ..tokenizer.files import BYTE_TOKENS, sentencepiece_model
from .llama_cpp import last_words, library, opened

if TYPE_CHECKING:
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Kinds of entries in a GGUF file (`gguf.TokenType`).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# How llama.cpp cuts texts before a byte-level BPE (`llama_vocab::impl::load`): the usual ones among small models.
_PRE_TOKENIZERS = ("gpt-2", "llama-bpe", "qwen2", "smollm", "default", "tekken", "gpt-4o", "deepseek-llm", "olmo")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file holds it.

    Attributes:
        model: `llama` or `gpt2`.
        pre: how texts are cut before a byte-level BPE.
        pieces: the entries by id.
        kinds: of the entries.
        scores: of the entries, for `llama`.
        merges: of a byte-level BPE.
        space_prefix: whether a space is put before a text.
    """

    model: str
    pre: str
    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    space_prefix: bool = False


def add_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary, rows: int, metadata: dict[str, Any]) -> None:
    """Write the tokenizer; embeddings beyond its entries get names of no text, as llama.cpp wants one for each."""
    spare = [f"[PAD{number}]" for number in range(len(vocabulary.pieces), rows)]
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list([*vocabulary.pieces, *spare])
    writer.add_token_types([*vocabulary.kinds, *[UNUSED] * len(spare)])
    if vocabulary.scores:
        lowest = min(vocabulary.scores)
        writer.add_token_scores([*vocabulary.scores, *(lowest - 1 - place for place in range(len(spare)))])
    if vocabulary.merges:
        writer.add_token_merges(list(vocabulary.merges))
    for role in ("bos", "eos", "eot", "unk", "pad"):
        if metadata.get(role) is not None:
            getattr(writer, f"add_{role}_token_id")(metadata[role])
    writer.add_add_bos_token(bool(metadata.get("add_bos")))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.space_prefix)
    if metadata.get("chat_template"):
        writer.add_chat_template(portable_template(metadata["chat_template"]))


def portable_template(template: str) -> str:
    """Return a chat template without the tag `generation`, which marks answers for training and no other program knows.

    A condition that always holds takes its place, so that white space is cut as before.
    """
    opened_tag = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened_tag)


def read_vocabulary(name: str, tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """Return a tokenizer in the form of a GGUF file.

    Raises:
        InputError: it is no BPE, or llama.cpp gives other ids in every reading that is known here.
    """
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    content = json.loads(backend.to_str())
    model = content["model"]
    ensure(
        model.get("type") == "BPE",
        f"model_name_or_path={name}: its tokenizer is a {model.get('type')}; only a BPE is written as GGUF. "
        "llama.cpp's convert_hf_to_gguf.py may know it.",
    )
    pieces, kinds = _entries(content)
    ours = Vocabulary("llama", "default", pieces, kinds, tuple(-float(index) for index in range(len(pieces))))
    if sentencepiece_model(content) is not None:
        return ours
    ensure_packages("gguf", "llama_cpp")
    for tried in _readings(ours, content):
        if not differing_lines(tried, tokenizer):
            return tried
    line = min(differing_lines(next(_readings(ours, content)), tokenizer), key=len)
    raise InputError(
        f"model_name_or_path={name}: llama.cpp gives other ids than its tokenizer, for example of {line!r}. Such a "
        "file would answer worse and not say so, so none is written. llama.cpp's convert_hf_to_gguf.py may know it."
    )


def _entries(content: dict[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the entries of a `tokenizer.json` by id, and their kinds; a gap in the ids gets an unused entry."""
    added = {token["id"]: token for token in content["added_tokens"]}
    numbers = {index: piece for piece, index in content["model"]["vocab"].items()}
    numbers |= {index: token["content"] for index, token in added.items()}
    unknown, pieces, kinds = content["model"].get("unk_token"), [], []
    bytes_tokens = set(BYTE_TOKENS) if content["model"].get("byte_fallback") else set()
    for index in range(max(numbers) + 1):
        piece = numbers.get(index)
        kind = NORMAL
        if piece is None:
            piece, kind = f"[PAD{index}]", UNUSED
        elif piece in bytes_tokens:
            kind = BYTE
        elif piece == unknown:
            kind = UNKNOWN
        elif index in added:
            kind = CONTROL if added[index]["special"] else USER_DEFINED
        pieces.append(piece)
        kinds.append(kind)
    return tuple(pieces), tuple(kinds)


def _readings(plain: Vocabulary, content: dict[str, Any]) -> Iterator[Vocabulary]:
    """Yield the ways in which llama.cpp could read a tokenizer, the likeliest first."""
    model = content["model"]
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    if "ByteLevel" in json.dumps(content["pre_tokenizer"]):
        yield from (Vocabulary("gpt2", pre, plain.pieces, plain.kinds, merges=merges) for pre in _PRE_TOKENIZERS)
        return
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), -float(rank))
    by_rank = tuple(ranks.get(piece, -float(len(merges) + place)) for place, piece in enumerate(plain.pieces))
    for scores in (plain.scores, by_rank):
        for space_prefix in (True, False):
            yield replace(plain, scores=scores, space_prefix=space_prefix)


@cache
def trial_lines() -> tuple[str, ...]:
    """Return lines on which two tokenizers are compared: the embedded stories, and what tokenizers stumble over."""
    from ..data.sample import sample_documents

    texts = [row["text"] for row in sample_documents("validation")]
    stories = [line for text in texts for line in text.splitlines() if line.strip()][:300]
    hard = [
        "São 1.234.567,89 euros.", "R$ 10,50 (dez reais)", "2026-11-30T12:00:00Z", "  dois  espaços", " começa aqui",
        "acaba aqui ", "tab\taqui", "linha\nnova\n\nvazia", "\n", "ação, avô, avó, pinguim, cônsul", "AÇÃO E REAÇÃO",
        "guarda-chuva d'água", "def f(x):\n    return x + 1", "<b>html</b> & co.", "https://exemplo.pt/a?b=c#d",
        "🙂👍🏽", "日本語とPortuguês", "é" * 20, "a" * 40, "0" * 13, "…—“”‘’«»", "don't we'll I'm", "{}[]()\\|",
        "de que se não para os que já a uma", "Lisboa,Porto;Braga:Faro", "fim.Início", "X₂ + y² = ½", "Ñandú Œuvre ß",
    ]  # fmt: skip
    return tuple(unicodedata.normalize("NFC", line) for line in (*stories, *hard))


def differing_lines(vocabulary: Vocabulary, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the lines of `trial_lines` of which llama.cpp with a vocabulary gives other ids than the tokenizer."""
    import gguf

    with scratch_folder() as folder:
        path = folder / "vocabulary.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        add_vocabulary(writer, vocabulary, len(vocabulary.pieces), {})
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return different_ids(path, tokenizer)


def different_ids(path: Path, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the lines of `trial_lines` of which llama.cpp gives other ids with a GGUF file than the tokenizer."""
    with opened(path, vocabulary_only=True) as read:
        return [
            line
            for line in trial_lines()
            if read.tokenize(line) != tokenizer(line, add_special_tokens=False)["input_ids"]
        ]


_BLOCK = 32  # values of a block of Q8_0 and Q4_0
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
