"""How likely a model finds continuations of texts: what every multiple-choice and last-word task asks.

All continuations of one context share a row, so that the context, which is most of the work, is read once:

    tokens     c c c c c | x x | y y y | z
    positions  0 1 2 3 4 | 5 6 | 5 6 7 | 5       each part sees the context and itself, never another part

Logits are made for the tokens that are scored alone: of a prompt of 2,000 tokens that is a few dozen rows of the
vocabulary instead of all. The result is the harness's own to rounding, and it does not depend on the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of the context (at least one) and of the continuation
_MASKED = torch.finfo(torch.float32).min / 2


@dataclass(frozen=True)
class _Row:
    context: tuple[int, ...]
    parts: tuple[tuple[int, tuple[int, ...]], ...]  # (place of the pair, tokens of the continuation)

    def __len__(self) -> int:
        # The last token of a continuation is predicted, never read.
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.parts)


def can_score(model: "PreTrainedModel") -> bool:
    """Return whether logits are the output embeddings times the last hidden state and no more: a Llama's are."""
    return str(model.config.model_type) == "llama"


def score_continuations(
    model: "PreTrainedModel",
    pairs: Sequence[Pair],
    batch_size: int,
    on_scored: Callable[[int], object] | None = None,
) -> list[tuple[float, bool]]:
    """Return for each pair the log-likelihood of the continuation in nats, and whether greedy decoding writes it.

    A context that does not fit in front of a continuation loses its beginning. The model is left as it was.

    Args:
        model: a Llama, see `can_score`.
        pairs: contexts and continuations; pairs with one context are read together.
        batch_size: rows, which is contexts, read at once.
        on_scored: called with the number of pairs done since the last call (for a bar).
    """
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    config: Any = model.config
    shared = config._attn_implementation in ("sdpa", "eager")  # others take no mask of our own
    rows = sorted(_make_rows(pairs, config.max_position_embeddings, shared), key=len, reverse=True)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for place, result in _score_batch(model, batch):
            results[place] = result
        if on_scored:
            on_scored(sum(len(row.parts) for row in batch))
    return results


def _make_rows(pairs: Sequence[Pair], max_length: int, shared: bool) -> list[_Row]:
    """Return rows of one context each, with as many continuations as a row of `max_length` tokens takes."""
    open_rows: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    rows = []
    for place, (context, continuation) in enumerate(pairs):
        # The harness's rule: the newest max_length + 1 tokens of both, less the last, are read.
        kept = tuple(context)[-max(1, max_length + 1 - len(continuation)) :]
        parts = open_rows.setdefault(kept, [])
        used = len(kept) + sum(len(tokens) - 1 for _, tokens in parts)
        if parts and (not shared or used + len(continuation) - 1 > max_length):
            rows.append(_Row(kept, tuple(parts)))
            parts.clear()
        parts.append((place, tuple(continuation)))
    return rows + [_Row(context, tuple(parts)) for context, parts in open_rows.items()]


def _lay_out(rows: Sequence[_Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (rows, tokens) tensors: tokens, positions, and the part of each (0 context, -1 padding)."""
    shape = (len(rows), max(map(len, rows)))
    tokens, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    parts = torch.full(shape, -1)
    for index, row in enumerate(rows):
        end = len(row.context)
        tokens[index, :end] = torch.tensor(row.context)
        positions[index, :end] = torch.arange(end)
        parts[index, :end] = 0
        for number, (_, continuation) in enumerate(row.parts, start=1):
            start, end = end, end + len(continuation) - 1
            tokens[index, start:end] = torch.tensor(continuation[:-1], dtype=torch.long)
            positions[index, start:end] = torch.arange(len(row.context), len(row.context) + end - start)
            parts[index, start:end] = number
    return tokens, positions, parts


def _mask(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (rows, 1, tokens, tokens) to be added to attention scores: nought where a token may look."""
    length = parts.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=parts.device).tril()
    same = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    allowed = (earlier & same)[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=parts.device).masked_fill_(
        ~allowed, max(_MASKED, torch.finfo(dtype).min)
    )


@torch.no_grad()
def _score_batch(model: "PreTrainedModel", rows: Sequence[_Row]) -> list[tuple[int, tuple[float, bool]]]:
    tokens, positions, parts = (tensor.to(model.device) for tensor in _lay_out(rows))
    needs_mask = any(len(row.parts) > 1 for row in rows)  # otherwise plain causal attention, which is faster
    body: Any = model.base_model
    hidden_BTH = body(
        input_ids=tokens,
        position_ids=positions,
        attention_mask=_mask(parts, model.dtype) if needs_mask else None,
        use_cache=False,
    ).last_hidden_state
    where: list[tuple[int, int]] = []
    targets: list[int] = []
    lengths, places = [], []
    for index, row in enumerate(rows):
        end = len(row.context)
        for place, continuation in row.parts:
            start, end = end, end + len(continuation) - 1
            # The context's last token predicts the first of every part.
            where += [(index, len(row.context) - 1), *((index, step) for step in range(start, end))]
            targets += continuation
            lengths.append(len(continuation))
            places.append(place)
    index_N, step_N = torch.tensor(where, device=model.device).T
    head: Any = model.get_output_embeddings()
    logits_NV = head(hidden_BTH[index_N, step_N]).float()
    target_N = torch.tensor(targets, device=model.device)
    nats_N = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(1)
    greedy_N = logits_NV.argmax(1) == target_N
    nats = [float(part.sum()) for part in nats_N.cpu().split(lengths)]
    greedy = [bool(part.all()) for part in greedy_N.cpu().split(lengths)]
    return list(zip(places, zip(nats, greedy, strict=True), strict=True))
