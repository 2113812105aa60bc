"""How likely a model finds continuations of texts: what every multiple-choice and last-word task asks.

All continuations of one context share a row, so that the context, which is most of the work, is read once:

    tokens     c c c c c | x x | y y y | z
    positions  0 1 2 3 4 | 5 6 | 5 6 7 | 5       each part sees the context and itself, never another part

Logits are made for the tokens that are scored alone: of a prompt of 2,000 tokens that is a few dozen rows of the
vocabulary instead of all. The result is the harness's own to rounding, and it does not depend on the batch.

Scores over all answers at once, and the standard error of every score.

Means have a formula; macro-F1 and Pearson's correlation are drawn again from the items (bootstrap), with a fixed seed.

`measures.json` beside `results.json`: what has no upper bound or is no score, such as bits per byte.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..checks import InputError, MissingFileError, ensure
from ..stage_folder import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


RESAMPLES = 1000
_SEED = 0


def mean_stderr(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean, or None for a single value."""
    if len(values) < 2:
        return None
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) / math.sqrt(len(values))


def ratio_stderr(parts: Sequence[float], wholes: Sequence[float]) -> float | None:
    """Return the standard error of sum(parts) / sum(wholes) over independent items, or None for a single item.

    Source: the ratio estimator's linearised variance (W. G. Cochran, Sampling Techniques, 3rd ed., section 6.4).
    """
    if len(parts) < 2:
        return None
    numerator, denominator = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    residuals = numerator - numerator.sum() / denominator.sum() * denominator
    items = len(residuals)
    return float(math.sqrt(items / (items - 1) * (residuals**2).sum()) / denominator.sum())


def _confusion(pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64]:
    """Return (labels, labels): how often a label (row) was answered by another (column), over all that occur."""
    labels = sorted({str(label) for pair in pairs for label in pair})
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for gold, answer in pairs:
        counts[places[str(gold)], places[str(answer)]] += 1
    return counts


def _macro_f1(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the macro-F1 of (…, labels, labels) confusions; a label that occurs nowhere is left out."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(-1) + confusion.sum(-2)
    scores = np.divide(2 * right, either, out=np.zeros_like(either), where=either > 0)
    return np.asarray(scores.sum(-1) / np.maximum((either > 0).sum(-1), 1))


def macro_f1(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the mean over labels of their F1, of (right label, answer) pairs.

    An answer that is no label, such as an unreadable one, counts as a further class with an F1 of nought, as
    scikit-learn's `f1_score(average="macro")` has it.
    """
    return float(_macro_f1(_confusion(pairs)))


def macro_f1_stderr(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Return the bootstrap's standard error of the macro-F1, or None for a single pair."""
    if len(pairs) < 2:
        return None
    confusion = _confusion(pairs)
    draws = np.random.default_rng(_SEED).multinomial(len(pairs), confusion.ravel() / len(pairs), size=RESAMPLES)
    return float(_macro_f1(draws.reshape(RESAMPLES, *confusion.shape).astype(np.float64)).std(ddof=1))


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation along the last axis; nought where either side is constant."""
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.divide((first * second).sum(-1), scale, out=np.zeros_like(scale), where=scale > 1e-12)


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's correlation of (right value, answer) pairs; nought when all answers are the same."""
    values = np.asarray(pairs, dtype=np.float64)
    return float(_pearson(values[:, 0], values[:, 1]))


def pearson_stderr(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the bootstrap's standard error of the correlation, or None for a single pair."""
    if len(pairs) < 2:
        return None
    values = np.asarray(pairs, dtype=np.float64)
    drawn = values[np.random.default_rng(_SEED).integers(len(values), size=(RESAMPLES, len(values)))]
    return float(_pearson(drawn[..., 0], drawn[..., 1]).std(ddof=1))


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


@dataclass(frozen=True)
class Measure:
    """One figure; None is what is not known.

    Attributes:
        suite: it belongs to.
        task: in the harness, or `held_out`.
        metric: `bits_per_byte` (of text), `perplexity`, `answer_bits_per_byte` (of the right answer), or a further
            metric of a task.
        value: in the metric's unit.
        stderr: standard error, in the same unit.
        part: a source or register; None for all.
        num_items: documents or questions.
        step: of the checkpoint; None for the final model.
        tokens: seen by that checkpoint.
    """

    suite: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    part: str | None = None
    num_items: int | None = None
    step: int | None = None
    tokens: int | None = None


def write_measures(path: Path, measures: list[Measure]) -> None:
    """Write measures as a list of JSON objects."""
    write_json(path, [asdict(measure) for measure in measures])


def read_measures(path: Path) -> list[Measure]:
    """Return the measures of a file.

    Raises:
        InputError: no file, no JSON, or a row that does not fit; the message names file, row and key.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. The evaluation writes it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}). Run the evaluation again.") from error
    known = {field.name for field in fields(Measure)}
    ensure(isinstance(content, list), f"{path}: must hold a list. Run the evaluation again.")
    for number, row in enumerate(content):
        ensure(
            isinstance(row, dict)
            and set(row) <= known
            and {"suite", "task", "metric", "value"} <= set(row)
            and isinstance(row["value"], int | float)
            and math.isfinite(row["value"]),
            f"{path}: row {number} is no measure. Run the evaluation again.",
        )
    return [Measure(**row) for row in content]
