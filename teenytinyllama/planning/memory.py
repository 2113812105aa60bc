"""Memory: how many bytes a training needs; how tokens a step become rows, and rows micro-batches.

What a training needs is arithmetic on the model's shape. `benchmarks/micro_batch.py` compares it with the peak of real
training steps (docs/lab-log.md).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..checks import counted, ensure
from ..presets import Preset, count_parameters, layer_matrices

if TYPE_CHECKING:
    from transformers import LlamaConfig


# How the loss is computed, see `training/speed.py`; `whole` is from whole logits, as transformers does it.
LossKind = Literal["whole", "chunked", "compiled"]
# What trains the matrices of the layers, see `training/optimizer.py`.
OptimizerName = Literal["adamw", "muon", "normuon"]

# Whole logits of an evaluation batch, in bytes: 16-bit ones and the float32 copy that accelerate makes of them.
EVAL_LOGITS_BYTES = 2_000_000_000
_BYTES_PER_LOGIT = 6

# Readings of the same text up to which it teaches nearly as much as new text. Source: Muennighoff et al. 2023, Scaling
# Data-Constrained Language Models (arXiv 2305.16264). Here 160m still gained after 5.6 readings and got worse after
# seven to ten (docs/gpu.md).
REPEATS_WORTH_READING = 4

# What `optimal_batch_tokens` gives for 20 tokens a parameter of 160m (276,000), in a power of two.
LONG_RUN_TOKENS_PER_STEP = 262_144

# Logits of one chunk on a CPU, in bytes of float32: 512 tokens at 32,000 entries. 256 to 1,024 tokens were equally fast
# (docs/performance.md), torch's own choice of 16 took more than twice as long. On a GPU torch chooses.
CPU_CHUNK_BYTES = 64_000_000


def derive_batch(
    tokens_per_step: int, context: int, micro_batch: int | None, world_size: int, key: str = "tokens_per_step"
) -> tuple[int, int, int]:
    """Return rows a step, rows a rank computes at once, and accumulation: rows = micro-batch x accumulation x ranks.

    Args:
        tokens_per_step: global batch in tokens.
        context: tokens a row.
        micro_batch: rows a rank computes at once; None: the largest divisor up to 8, until it is chosen by memory.
        world_size: number of ranks.
        key: what the config calls the global batch; in pairs (`pairs_per_step`), a row counts as 1.

    Raises:
        InputError: the numbers do not divide; the message names those that do.
    """
    ensure(
        tokens_per_step > 0 and tokens_per_step % context == 0,
        f"{key}={tokens_per_step}: must be a positive multiple of the row length {context}. "
        f"Use {max(1, round(tokens_per_step / context)) * context}.",
    )
    rows = tokens_per_step // context
    ensure(
        rows % world_size == 0,
        f"{key}={tokens_per_step}: its {rows} rows cannot be shared by {world_size} ranks. "
        f"Use {_nearest_two(rows, world_size, context)}.",
    )
    rows_per_rank = rows // world_size
    divisors = row_divisors(rows_per_rank)
    micro = max(n for n in divisors if n <= 8) if micro_batch is None else micro_batch
    ensure(
        micro in divisors,
        f"per_device_train_batch_size={micro}: must divide the {rows_per_rank} rows that each of "
        f"{counted(world_size, 'rank')} computes in a step ({key}={tokens_per_step}). Use one of "
        f"{', '.join(map(str, divisors))}.",
    )
    return rows, micro, rows_per_rank // micro


def _nearest_two(rows: int, unit: int, context: int) -> str:
    """Return the nearest numbers of tokens, below and above, whose rows are a multiple of `unit`."""
    below = rows // unit * unit
    return " or ".join(str(count * context) for count in (below, below + unit) if count)


def shared_rows(rows: int, world_size: int, micro_batch: int | None = None) -> int:
    """Return the number of rows nearest to `rows` that ranks can share in whole micro-batches; at least one of each.

    Args:
        rows: wanted for a step.
        world_size: number of ranks.
        micro_batch: rows a rank computes at once; None: not given, one will do.
    """
    unit = world_size * (micro_batch or 1)
    below = rows // unit * unit
    return max(unit, below if rows - below <= below + unit - rows else below + unit)


def optimal_batch_tokens(tokens: float) -> float:
    """Return the tokens of a step with the lowest loss for a run of so many tokens.

    0.0306 D^0.383 sequences of 2,048 tokens. Source: Bergsma et al. 2025, Power Lines (arXiv 2505.13738).
    """
    return float(0.0306 * tokens**0.383 * 2048)


def batch_for(tokens: int | None, context: int, world_size: int = 1, micro_batch: int | None = None) -> int:
    """Return the tokens of a step where a config leaves them open: `optimal_batch_tokens` in a power of two of rows.

    Where ranks cannot share so many rows, it is the nearest number of rows that they can share.

    Rounded down, because a smaller batch costs speed alone and a larger one learns less from the same tokens: 160m on
    42 million tokens ended at 1.637 bits per byte in steps of 65,536 and at 1.565 in steps of 8,192 (docs/gpu.md).

    Args:
        tokens: of the whole run; None: not known yet, taken for a long run.
        context: tokens a row.
        world_size: number of ranks.
        micro_batch: rows a rank computes at once, where that is given.
    """
    best = LONG_RUN_TOKENS_PER_STEP if tokens is None else optimal_batch_tokens(tokens)
    rows = 1 << max(0, int(best // context).bit_length() - 1)
    return context * shared_rows(rows, world_size, micro_batch)


def mean_step_speed(records: Iterable[dict[str, Any]]) -> float | None:
    """Return the mean tokens/s of a run's steps: all tokens over all seconds, not the mean or median of intervals.

    Args:
        records: of `metrics.jsonl`, by step; those without a training loss do not count.
    """
    tokens, seconds = 0, 0.0
    for record in records:
        if "loss" in record and record.get("tokens_per_second"):
            seconds += (record["tokens"] - tokens) / record["tokens_per_second"]
            tokens = record["tokens"]
    return tokens / seconds if seconds > 0 else None


def row_divisors(rows_per_rank: int) -> list[int]:
    """Return the rows that a rank can compute at once, so that whole micro-batches make a step, in rising order."""
    low = [n for n in range(1, math.isqrt(rows_per_rank) + 1) if rows_per_rank % n == 0]
    return sorted({*low, *(rows_per_rank // n for n in low)})


def eval_rows(micro_batch: int, context: int, vocab_size: int, whole_logits: bool) -> int:
    """Return the held-out windows that a rank scores at once: as many as training rows, less if whole logits are made.

    Args:
        micro_batch: rows of a training step that a rank computes at once.
        context: tokens a row.
        vocab_size: entries of the vocabulary.
        whole_logits: whether an evaluation makes whole logits.
    """
    if not whole_logits:
        return micro_batch
    return max(1, min(micro_batch, EVAL_LOGITS_BYTES // (_BYTES_PER_LOGIT * context * vocab_size)))


# Bytes that the forward pass keeps for the backward pass, for each token and layer, as (hidden, query, key/value,
# intermediate): per element of the hidden state, of all query heads, of all key or all value heads, and of the MLP.
# Derivation in the manner of Korthikanti et al. (arXiv 2205.05198, section 4.1), for transformers' LlamaDecoderLayer
# with attention that keeps no scores; `tests/test_memory.py` counts the saved tensors of real layers:
#   fp32      4 bytes each: input, normed and scaled input of both norms (6); queries, attention output (2); keys,
#             values (2); gate, its activation, up, their product (4)
#   autocast  both norms keep 4 + 4; each of five projections keeps a 16-bit cast of its own (3 x 2 and 2 x 2), because
#             autocast remembers casts of weights only; all else in 2 bytes
#   16 bits   both norms keep a float32 copy (4), the normed and the scaled input (2 + 2); all else in 2 bytes
_LAYER_BYTES = {"fp32": (24, 8, 8, 16), "autocast": (26, 4, 4, 8), "16 bits": (16, 4, 4, 8)}
# The same for compiled layers: no float32 copy or second cast of anything, norms and activation are computed again.
# Within 1 per cent of the peaks of 160m and 460m by autocast on an H100 and an H200 (docs/gpu.md).
_COMPILED_LAYER_BYTES = {"fp32": (16, 8, 8, 12), "autocast": (10, 4, 4, 6), "16 bits": (8, 4, 4, 6)}

# Weights, gradients and the optimizer's state are float32 unless DeepSpeed holds 16-bit weights with float32 masters.
# Source: Rajbhandari et al. (arXiv 1910.02054), section 3.1, with float32 gradients added up as our ZeRO files ask.
_STATE_BYTES = {"weights": 4, "gradients": 4, "moments": 8}

# Elements of the matrices that Muon orthogonalises at once, over all ranks, but one matrix a rank at least.
ORTHOGONALISED_ELEMENTS = 1 << 25
# Bytes that it needs for each of them, in bf16 ("gpu") and in float32 ("cpu", and GPUs without bf16): the matrices,
# two that are made of them and two products as wide as their shorter side; or, in NorMuon, the bf16 updates and three
# copies in float32. torch allocates 20 bytes of square matrices in float32, and in bf16 11 for Muon and 14 for NorMuon.
_ORTHOGONALISING_BYTES = {"cpu": 20, "gpu": 14}

# DeepSpeed's two reduction buffers (overlap_comm) of 5e8 elements, made whether the model fills them or not. Source:
# deepspeed 0.19.8, runtime/zero/stage_1_and_2.py, `setup_buckets`, and its default reduce_bucket_size. Stage 1 in bf16
# has another optimizer, without them (runtime/bf16_optimizer.py).
_ZERO_BUFFER_ELEMENTS = 2 * 500_000_000

# What a process holds besides tensors once it computes: workspaces of kernels and buffers of the collectives.
FIXED_BYTES = {"cpu": 100_000_000, "gpu": 1_000_000_000}
# On a CPU, pieces of freed memory that the C library keeps for itself. Measured: 1.2 to 1.8 times the activations;
# with MALLOC_MMAP_THRESHOLD_=200000, which returns them at once, no more than the activations.
_HEAP_FACTOR = 1.3

# The share of the free memory that a choice made from arithmetic may use. CPU: predictions were at most 16 % below the
# peaks measured, and other programs live too. GPU: at most 1 % below, as far as tensors go; the rest is for pieces that
# torch cannot join.
USED_SHARE = {"cpu": 0.8, "gpu": 0.85}

# Tokens of a micro-batch beyond which nothing gets faster. CPU: measured, twice as many are slower (docs/lab-log.md).
# GPU: 32 rows of 2,048 tokens were 2 % faster than 16 with 160m on an H100 (docs/gpu.md).
MOST_TOKENS = {"cpu": 4096, "gpu": 65_536}


@dataclass(frozen=True)
class MemoryNeed:
    """What one rank's training holds at its peak, in bytes; the optimizer's step begins when the rows are done."""

    state_bytes: int
    row_bytes: int
    fixed_bytes: int
    step_bytes: int = 0

    def total_bytes(self, rows: int) -> int:
        """Return the peak with micro-batches of so many rows."""
        return self.state_bytes + self.fixed_bytes + max(rows * self.row_bytes, self.step_bytes)


@dataclass(frozen=True)
class Computation:
    """How a rank computes, as far as its memory depends on it.

    Attributes:
        precision: fp32, bf16 or fp16.
        zero_stage: DeepSpeed's stage, 0 to 3; None without DeepSpeed.
        world_size: number of ranks.
        loss: how the loss is made.
        compiled: whether layers are compiled.
        attention: transformers' name of the attention; `eager` keeps scores of all pairs of tokens.
        checkpointing: whether layers are computed again in the backward pass.
        on_gpu: whether tensors lie on a GPU.
        frozen_share: share of the parameters that have no gradient and no optimizer state.
        reference_models: models beside the trained one, weights alone.
        optimizer: what trains the layers' matrices.
    """

    precision: str = "fp32"
    zero_stage: int | None = None
    world_size: int = 1
    loss: LossKind = "whole"
    compiled: bool = False
    attention: str = "sdpa"
    checkpointing: bool = False
    on_gpu: bool = False
    frozen_share: float = 0.0
    reference_models: int = 0
    optimizer: OptimizerName = "adamw"

    @property
    def kind(self) -> str:
        """Return the row of `_LAYER_BYTES`: the Trainer trains 16 bits by autocast, DeepSpeed with 16-bit weights."""
        return "fp32" if self.precision == "fp32" else "autocast" if self.zero_stage is None else "16 bits"


def memory_need(config: "Preset | LlamaConfig", context: int, how: Computation) -> MemoryNeed:
    """Return what training a Llama of this shape on rows of `context` tokens needs on one rank."""
    fixed = FIXED_BYTES["gpu" if how.on_gpu else "cpu"]
    if how.loss == "chunked":  # the logits of a chunk, and the gradient of the head before it is added to the others
        fixed += CPU_CHUNK_BYTES + 4 * config.vocab_size * config.hidden_size
    row = activation_bytes_per_row(config, context, how)
    parameters = count_parameters(config)
    frozen = int(how.frozen_share * parameters)
    state = model_state_bytes(parameters - frozen, how, optimizer_bytes(config, how.optimizer, how.frozen_share))
    state += _STATE_BYTES["weights"] * (frozen + how.reference_models * parameters)
    step = 0 if how.optimizer == "adamw" else _orthogonalising_bytes(config, how)
    return MemoryNeed(state, row if how.on_gpu else int(_HEAP_FACTOR * row), fixed, step)


def optimizer_bytes(
    config: "Preset | LlamaConfig", optimizer: OptimizerName, frozen_share: float = 0.0, shares: int = 1
) -> int:
    """Return the bytes of an optimizer's state for a whole model, or of a share of it.

    All of it is float32. AdamW has two moments of each parameter; Muon one momentum of each element of the layers'
    matrices, beside AdamW's of the rest; NorMuon also a mean square of each of their rows. The counts of steps, four
    bytes each, are left out.

    Args:
        config: shape of the model.
        optimizer: what trains the layers' matrices.
        frozen_share: share of the parameters that are not trained.
        shares: ranks that share it under ZeRO; with NorMuon a few rows are kept twice.
    """
    matrices = layer_matrices(config).items()
    numbers = 2 * (count_parameters(config) - int(frozen_share * count_parameters(config)))
    if optimizer != "adamw":
        numbers -= sum(rows * columns * count for (rows, columns), count in matrices)
    if optimizer == "normuon":
        numbers += sum(rows * count for (rows, _), count in matrices)
    return 4 * numbers // shares


def _orthogonalising_bytes(config: "Preset | LlamaConfig", how: Computation) -> int:
    """Return what Muon's step needs for a while beside its state: see `training/optimizer.py`."""
    ranks = how.world_size if how.zero_stage is None else 1
    batch = max(
        min(rows * columns * count, max(ORTHOGONALISED_ELEMENTS, ranks * rows * columns))
        for (rows, columns), count in layer_matrices(config).items()
    )
    own = 0
    if how.zero_stage is not None:  # the updates of a rank's part in float32, and in the precision of the products
        elements = sum(rows * columns * count for (rows, columns), count in layer_matrices(config).items())
        own = elements * (6 if how.on_gpu else 4) // how.world_size
    in_bf16 = how.on_gpu and how.precision == "bf16"  # in fp16 or fp32 a GPU may have no bf16
    return own + batch * _ORTHOGONALISING_BYTES["gpu" if in_bf16 else "cpu"]


def model_state_bytes(num_parameters: int, how: Computation, moments: int | None = None) -> int:
    """Return the bytes of weights, gradients, the optimizer's state, masters and reduction buffers on one rank.

    Args:
        num_parameters: that are trained.
        how: how a rank computes.
        moments: bytes of the optimizer's state for the whole model; None: AdamW's.
    """
    ranks, stage = how.world_size, how.zero_stage
    moments = num_parameters * _STATE_BYTES["moments"] if moments is None else moments
    if stage is None:
        cast = 0 if how.precision == "fp32" else 2  # autocast's copies of the weights
        buckets = 4 if ranks > 1 else 0  # DDP reduces copies of the gradients
        return num_parameters * (_STATE_BYTES["weights"] + _STATE_BYTES["gradients"] + cast + buckets) + moments
    low = 4 if how.precision == "fp32" else 2
    sharded = _STATE_BYTES["weights"]
    if stage == 3:
        return (num_parameters * (sharded + _STATE_BYTES["gradients"] + 2 * low) + moments) // ranks
    if stage == 2:
        sharded += _STATE_BYTES["gradients"]
    added = 0 if stage == 2 else _STATE_BYTES["gradients"]  # stage 1 adds the micro-batches' up whole, in float32
    buffered = how.on_gpu and not (stage == 1 and how.precision == "bf16")  # a CPU's are never filled
    buffers = _ZERO_BUFFER_ELEMENTS * (low if stage == 2 else 4) if buffered else 0
    return num_parameters * (2 * low + added) + (num_parameters * sharded + moments) // ranks + buffers


def checkpoint_bytes(
    num_parameters: int, precision: str, zero_stage: int | None = None, moments: int | None = None
) -> int:
    """Return the bytes of a checkpoint on the disk: weights, the optimizer's state and what else is kept of weights.

    Without DeepSpeed weights are float32 in every precision. Under it the weights are as they are trained, and float32
    masters lie beside the optimizer's state. Checkpoints of 5 million parameters were within 0.3 per cent of this.

    Args:
        num_parameters: that are trained.
        precision: fp32, bf16 or fp16.
        zero_stage: 0 without DeepSpeed; None: not known yet, taken to be something in between.
        moments: bytes of the optimizer's state for the whole model; None: AdamW's.
    """
    low = 4 if precision == "fp32" else 2
    moments = num_parameters * _STATE_BYTES["moments"] if moments is None else moments
    if zero_stage is None:
        return num_parameters * (4 if precision == "fp32" else 2 + 4) + moments
    return num_parameters * (4 + (low if zero_stage else 0)) + moments


def final_model_bytes(num_parameters: int) -> int:
    """Return the bytes on the disk of the model at the end, which is float32."""
    return 4 * num_parameters


def activation_bytes_per_row(config: "Preset | LlamaConfig", context: int, how: Computation) -> int:
    """Return the bytes that one row of `context` tokens adds to the peak of a micro-batch.

    The peak is at the end of the forward pass, with the loss on top of all layers, or soon after, in the MLP of the
    last one. torch's own count of allocations agrees within a tenth.
    """
    low = 4 if how.kind == "fp32" else 2
    stream = 2 if how.kind == "16 bits" else 4  # bytes of an element of the residual stream
    layer, hidden = layer_bytes_per_token(config, context, how), config.hidden_size
    layers = config.num_hidden_layers * layer
    if how.checkpointing:
        layers = config.num_hidden_layers * stream * hidden + layer
    last_norm = {"fp32": 12, "autocast": 10, "16 bits": 8}[how.kind] * hidden
    # Whole logits: log-softmax and two gradients, in float32. Compiled: the logits as they are computed, which give
    # their place to their gradient. In chunks: the hidden states and their gradient.
    loss = {"whole": 12 * config.vocab_size, "compiled": low * config.vocab_size, "chunked": 8 * hidden}[how.loss]
    backward = 2 * low * config.intermediate_size + 4 * stream * hidden
    return context * (layers + max(last_norm + loss, backward))


def layer_bytes_per_token(config: "Preset | LlamaConfig", context: int, how: Computation) -> int:
    """Return the bytes that one layer keeps for each token of a row of `context` tokens."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = config.num_key_value_heads or heads
    eager = how.attention == "eager"
    kv_width = heads * head_size if eager else kv_heads * head_size  # eager attention repeats shared keys and values
    widths = (config.hidden_size, heads * head_size, kv_width, config.intermediate_size)
    sizes = (_COMPILED_LAYER_BYTES if how.compiled else _LAYER_BYTES)[how.kind]
    kept = sum(width * size for width, size in zip(widths, sizes, strict=True))
    # Scores after softmax in float32 and a 16-bit copy of them, or the log-sum-exp of each head alone.
    kept += heads * context * (4 if how.kind == "fp32" else 6) if eager else 4 * heads
    return kept + 8  # the root mean squares of both norms


def choose_rows(divisors: list[int], need: MemoryNeed, free_bytes: int, context: int, device_type: str) -> int:
    """Return the largest of `divisors` that fits into the free memory, up to `MOST_TOKENS`; at least the smallest.

    Args:
        divisors: the rows that a rank can compute at once, in rising order.
        need: see `memory_need`.
        free_bytes: see `free_memory_bytes`.
        context: tokens a row.
        device_type: `cpu`, or any GPU's.
    """
    kind = "cpu" if device_type == "cpu" else "gpu"
    usable_bytes = USED_SHARE[kind] * free_bytes
    useful = [rows for rows in divisors if rows * context <= MOST_TOKENS[kind]]
    return max((rows for rows in useful if need.total_bytes(rows) <= usable_bytes), default=divisors[0])
