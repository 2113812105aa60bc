"""The arithmetic of batches: tokens a step into rows a rank computes at once, and accumulation."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from ..checks import counted, ensure

# How the loss is made, see `loss.fuse_loss`; `whole` is with whole logits, as transformers makes it.
LossKind = Literal["whole", "chunked", "compiled"]

# Whole logits of an evaluation batch, in bytes: 16-bit ones and the float32 copy that accelerate makes of them.
EVAL_LOGITS_BYTES = 2_000_000_000
_BYTES_PER_LOGIT = 6

# Readings of the same text up to which it teaches nearly as much as new text. Source: Muennighoff et al. 2023, Scaling
# Data-Constrained Language Models (arXiv 2305.16264). Here 160m still gained after 5.6 readings and got worse after
# seven to ten (docs/gpu.md).
REPEATS_WORTH_READING = 4

# By the law below for 20 tokens a parameter of 160m (276,000), in a power of two.
LONG_RUN_TOKENS_PER_STEP = 262_144

# Logits of one chunk on a CPU, in bytes of float32: 512 tokens at 32,000 entries. 256 to 1,024 tokens were equally fast
# (benchmarks/loss.py), torch's own choice of 16 took more than twice as long. On a GPU torch chooses.
CPU_CHUNK_BYTES = 64_000_000


def derive_batch(
    tokens_per_step: int, context: int, micro_batch: int | None, world_size: int, key: str = "tokens_per_step"
) -> tuple[int, int, int]:
    """Return rows a step, rows a rank computes at once, and accumulation: rows = micro-batch x accumulation x ranks.

    Args:
        tokens_per_step: global batch in tokens.
        context: tokens a row.
        micro_batch: rows a rank computes at once; None: the largest divisor up to 8, until memory has been looked at.
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
    """Return the tokens of a step where a config leaves them open: by the law above, in a power of two of rows.

    Where ranks cannot share so many rows, it is the nearest number of rows that they can share.

    Rounded down, because a smaller batch costs speed alone and a larger one learns less from the same tokens: 160m on
    42 million tokens ended at 1.637 bits per byte in steps of 65,536 and at 1.565 in steps of 8,192 (docs/gpu.md).

    Args:
        tokens: of the whole run; None: not known yet, a long run is meant.
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
    """Return the held-out windows that a rank scores at once: as many as it trains on, which need more memory.

    Args:
        micro_batch: rows of a training step that a rank computes at once.
        context: tokens a row.
        vocab_size: entries of the vocabulary.
        whole_logits: whether an evaluation makes them; training may not.
    """
    if not whole_logits:
        return micro_batch
    return max(1, min(micro_batch, EVAL_LOGITS_BYTES // (_BYTES_PER_LOGIT * context * vocab_size)))
