"""Presets: model shapes by name, their Llama configuration, and counts of parameters and FLOPs.

A preset is a shape. Vocabulary size and special ids come from the tokenizer, so that a model fits its tokenizer. What
is made of a preset is a plain `LlamaConfig`: to load a saved model nobody needs this package.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .checks import InputError, ensure, near_name

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase

# Special ids of the project's tokenizers (and of the published TeenyTinyLlama ones): <unk> 0, <s> 1, </s> 2, <pad> 3.
# LlamaConfig has no field for <unk>.
BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID = 1, 2, 3


@dataclass(frozen=True)
class Preset:
    """The shape of a model, with LlamaConfig's field names.

    Attributes:
        vocab_size: entries when no tokenizer is given.
        max_position_embeddings: context in tokens.
        source: where the shape comes from.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    source: str
    vocab_size: int = 32_000
    max_position_embeddings: int = 2048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    @property
    def num_parameters(self) -> int:
        """Return the parameters of a model with `vocab_size` entries, embedding and head both counted."""
        return count_parameters(self)


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=4096,
        max_position_embeddings=256,
        source="this project: learns the embedded stories on a laptop CPU in minutes",
    ),
    "160m": Preset(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        source="config.json of nicholasKluge/TeenyTinyLlama-160m (arXiv 2401.16640)",
    ),
    "460m": Preset(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        source="config.json of nicholasKluge/TeenyTinyLlama-460m (arXiv 2401.16640)",
    ),
    "1b1": Preset(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        source="TinyLlama-1.1B (arXiv 2401.02385)",
    ),
}


# Fields of a model that a shape cannot set, and what decides them.
_DECIDED_ELSEWHERE = {
    "vocab_size": "the tokenizer decides it. Make one of that size with `ttl tokenizer --vocab_size`.",
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), "the tokenizer decides it. Leave it out."),
}
_SHAPE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
               "head_dim", "max_position_embeddings")  # fmt: skip
_LARGEST_SIZE, _MOST_LAYERS = 1_000_000, 1_000  # beyond any model; above, building one would not end


def get_preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        InputError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise InputError(f"preset={name}: must be one of {', '.join(PRESETS)}.{near_name(name, PRESETS)}")
    return PRESETS[name]


def preset_config(name: str, tokenizer: "PreTrainedTokenizerBase | None" = None) -> "LlamaConfig":
    """Return the plain LlamaConfig of a preset.

    Args:
        name: a key of `PRESETS`.
        tokenizer: gives the vocabulary size and the special ids; without it the preset's own size and ids 1, 2, 3
            (beginning, end, padding) are used.

    Raises:
        InputError: unknown name, or a tokenizer without a beginning, end or padding token, or with ids beyond its
            length.
    """
    from transformers import LlamaConfig

    preset = get_preset(name)
    settings: dict[str, Any] = asdict(preset)
    del settings["source"]
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    special_ids = (BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID)
    if tokenizer is not None:
        settings["vocab_size"], special_ids = len(tokenizer), _special_ids(tokenizer)
    settings |= zip(("bos_token_id", "eos_token_id", "pad_token_id"), special_ids, strict=True)
    return LlamaConfig(**settings)


def shaped_config(preset: str, shape: dict[str, int] | None, tokenizer: "PreTrainedTokenizerBase") -> "LlamaConfig":
    """Return the LlamaConfig of a preset whose sizes a user has changed.

    Args:
        preset: a key of `PRESETS`.
        shape: changed sizes by LlamaConfig's names.
        tokenizer: gives the vocabulary size and the special ids.

    Raises:
        InputError: a field that LlamaConfig does not have or that is no size, or sizes that no model can have.
    """
    model_config = preset_config(preset, tokenizer)
    known = model_config.to_dict()
    for name, value in (shape or {}).items():
        ensure(name in known, f"shape={{{name}: {value}}}: LlamaConfig has no such field.{near_name(name, known)}")
        ensure(name not in _DECIDED_ELSEWHERE, f"shape={{{name}: {value}}}: {_DECIDED_ELSEWHERE.get(name)}")
        ensure(
            name in _SHAPE_KEYS,
            f"shape={{{name}: {value}}}: is no size. A shape sets {', '.join(_SHAPE_KEYS)} alone.",
        )
        ensure(
            isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIZE,
            f"shape={{{name}: {value}}}: must be an integer from 1 to {_LARGEST_SIZE:,}.",
        )
        setattr(model_config, name, value)
    ensure(
        model_config.num_hidden_layers <= _MOST_LAYERS,
        f"shape={shape}: num_hidden_layers must be at most {_MOST_LAYERS}.",
    )
    heads = model_config.num_attention_heads
    kv_heads = model_config.num_key_value_heads or heads
    ensure(
        model_config.hidden_size % heads == 0 and heads % kv_heads == 0,
        f"shape={shape}: {heads} heads must divide hidden_size={model_config.hidden_size}, and {kv_heads} "
        "num_key_value_heads must divide the heads.",
    )
    if shape and "head_dim" not in shape:
        model_config.head_dim = model_config.hidden_size // heads
    ensure(
        (model_config.head_dim or model_config.hidden_size // heads) % 2 == 0,
        f"shape={shape}: heads of {model_config.head_dim} cannot be turned in pairs, as rotary positions "
        "are. head_dim must be even.",
    )
    return model_config


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int, int]:
    """Return the ids of the beginning, end and padding tokens.

    Raises:
        InputError: one of them is missing, or the tokenizer has ids beyond its length.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    missing = [f"{role}_token" for role, token_id in ids.items() if token_id is None]
    ensure(
        not missing,
        f"tokenizer={tokenizer.name_or_path or type(tokenizer).__name__}: has no {', '.join(missing)}. "
        "All of bos_token, eos_token and pad_token must be set; `ttl tokenizer` trains one that has them.",
    )
    # len() counts entries: a vocabulary with gaps has ids that lie outside of an embedding of that many rows.
    largest_id = max(tokenizer.get_vocab().values())
    ensure(
        largest_id < len(tokenizer),
        f"tokenizer={tokenizer.name_or_path or type(tokenizer).__name__}: the largest id is {largest_id}, but there "
        f"are only {len(tokenizer)} entries. Ids must be 0 to {len(tokenizer) - 1} without gaps; train the tokenizer "
        "again with `ttl tokenizer`.",
    )
    return ids["bos"], ids["eos"], ids["pad"]


# How the FLOPs behind an MFU (model FLOPs utilisation) are counted, by the figure's key in metrics and manifests.
MFU_CONVENTIONS = {
    "mfu": "6 N + 12 L h T FLOPs a token (PaLM, appendix B; N with embeddings, full attention)",
    "mfu_matrix_products": "matrix products alone (as nanochat counts: the input embedding, a lookup, is left out)",
}


def count_parameters(config: "Preset | LlamaConfig") -> int:
    """Return the number of parameters of a Llama of this shape, without building it.

    Embedding and head are both counted unless tied. Per layer: query and output projections (hidden x heads x head),
    key and value projections (hidden x kv heads x head), three MLP matrices and two norms; one final norm.
    Biases are not counted: no preset has them.

    Source: the weight shapes of transformers' LlamaForCausalLM (tests compare with the model on the meta device).
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    matrices = sum(rows * columns * count for (rows, columns), count in layer_matrices(config).items())
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return embeddings + matrices + (2 * layers + 1) * hidden


def layer_matrices(config: "Preset | LlamaConfig") -> dict[tuple[int, int], int]:
    """Return how many matrices of each shape (rows, columns) the layers of a Llama have, all layers together.

    Source: transformers' LlamaAttention and LlamaMLP.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    width = head_size * config.num_attention_heads
    kv_width = head_size * (config.num_key_value_heads or config.num_attention_heads)
    attention = [(width, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, width)]
    shapes = Counter([*attention, (inner, hidden), (inner, hidden), (hidden, inner)])
    return {shape: config.num_hidden_layers * count for shape, count in shapes.items()}


def flops_per_token(config: "Preset | LlamaConfig", context: int | None = None) -> int:
    """Return the training FLOPs (forward and backward) for one token of a Llama of this shape; see `training_flops`.

    Args:
        config: shape of the model.
        context: tokens a row; the config's longest by default.

    Raises:
        InputError: the context is not positive.
    """
    tokens = config.max_position_embeddings if context is None else context
    ensure(tokens > 0, f"context={tokens}: must be at least 1 token. Use {config.max_position_embeddings}.")
    return training_flops(count_parameters(config), config.num_hidden_layers, config.hidden_size, tokens)


def matrix_flops_per_token(config: "Preset | LlamaConfig", context: int | None = None) -> int:
    """Return the training FLOPs for one token that are matrix products, of weights or of attention.

    It is `flops_per_token` without what multiplies nothing: the input embedding, whose rows are looked up, and the
    norms' vectors. The head is a product, also where it is tied to the embedding. 1.053 GFLOP for 160m, where
    `flops_per_token` has 1.201: the same speed is 45.5 % of a peak by this count and 51.9 % by that.

    Source: `estimate_flops` of nanochat's gpt.py (github.com/karpathy/nanochat), whose norms have no parameters.

    Args:
        config: shape of the model.
        context: tokens a row; the config's longest by default.

    Raises:
        InputError: the context is not positive.
    """
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    return flops_per_token(config, context) - 6 * (looked_up + norms)


def training_flops(num_parameters: int, num_hidden_layers: int, hidden_size: int, context: int) -> int:
    """Return the training FLOPs (forward and backward) for one token, by convention A.

    6 N + 12 L h T, where N counts every parameter (the input embedding too), L is the layers, h the hidden size and
    T the context in tokens: attention is counted in full, not only its causal half. It is the convention of published
    MFU figures and above what a causal kernel computes (1.201 against 0.940 GFLOP for 160m): name it beside the number.

    Source: PaLM (arXiv 2204.02311), appendix B, with N for all parameters.
    """
    return 6 * num_parameters + 12 * num_hidden_layers * hidden_size * context
