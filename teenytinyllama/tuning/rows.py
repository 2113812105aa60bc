"""Rows of conversations: several share one, each with positions of its own, so that none sees another.

    input_ids     s q q a a e s q a e p p      s, e: <s>, </s>; q: question, a: answer, p: padding
    labels        . . . a a e . . a e . .      . is not learnt
    position_ids  0 1 2 3 4 5 0 1 2 3 0 1      a 0 begins a new text

transformers builds the mask from the position ids as long as there is no attention mask (`create_causal_mask`,
`find_packed_sequence_indices`, transformers 5.23). `leaks` tries it before training.

Whether conversations that share a row see each other: tried on the model itself before it is trained.

Held-out pairs of answers: how often, and by how much, the tuned model prefers the chosen one.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from transformers import EvalPrediction

from ..checks import ensure
from ..data.conversations import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@functools.lru_cache(maxsize=2)
def load_rows(path: Path, context: int, packing: bool) -> "Dataset":
    """Return the rows of a split: `input_ids`, `labels` and, when packed, `seq_lengths` of the texts in a row.

    Args:
        path: a parquet file of `data.conversations`.
        context: most tokens of a row.
        packing: put several conversations into one row (best-fit decreasing, TRL's `pack_dataset`); none is cut.
    """
    import datasets
    import pyarrow.parquet
    from trl import pack_dataset

    datasets.disable_progress_bars()
    # Fingerprints are given, for nothing is cached: datasets makes them by pickling, which fails with pyarrow 26.
    found = datasets.Dataset(pyarrow.parquet.read_table(path, columns=["input_ids", "labels"]), fingerprint="rows")
    return pack_dataset(found, context, "bfd", {"new_fingerprint": "packed"}) if packing else found


def order_rows(rows: "Dataset", count: int, seed: int) -> "Dataset":
    """Return `count` rows: the rows in a new random order for each epoch, as often as needed.

    The result is as long as the run, so that every optimizer step is whole and resuming is arithmetic.
    """
    epochs = -(-count // len(rows))
    orders = [np.random.default_rng([seed, epoch]).permutation(len(rows)) for epoch in range(epochs)]
    return rows.select(np.concatenate(orders)[:count]).with_format("numpy")


class RowCollator:
    """Make a batch of rows: side by side and padded on the right, or one behind the other for flash attention."""

    def __init__(self, pad_token_id: int, flatten: bool = False) -> None:
        """Pad with `pad_token_id`, or `flatten` instead."""
        self.pad_token_id, self.flatten = pad_token_id, flatten

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `labels` and `position_ids`, each (rows, longest row), or (1, all tokens) flattened.

        Flattened, it also has the boundaries (`cu_seq_lens_q` and its kin) of flash attention's kernels for texts of
        different lengths.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        width = max(lengths)
        shape = (1, sum(lengths)) if self.flatten else (len(rows), width)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        offset = 0
        for place, row in enumerate(rows):
            where = (0, slice(offset, offset + lengths[place])) if self.flatten else (place, slice(0, lengths[place]))
            own = text_positions(row.get("seq_lengths", [lengths[place]]))
            input_ids[where], positions[where] = row["input_ids"], own
            # The last token of one text must not learn to predict the first of the next.
            labels[where] = np.where(own == 0, IGNORED, row["labels"])
            if not self.flatten:
                positions[place, lengths[place] :] = np.arange(width - lengths[place])  # padding: a text of its own
            offset += lengths[place]
        batch: dict[str, Any] = {"input_ids": input_ids, "labels": labels, "position_ids": positions}
        batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {**batch, **_boundaries(positions[0])} if self.flatten else batch


def text_positions(lengths: "NDArray[Any] | list[int]") -> NDArray[np.int64]:
    """Return the positions of texts one behind the other: each begins with 0."""
    return np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])


def _boundaries(positions: NDArray[np.int64]) -> dict[str, Any]:
    """Return transformers' arguments for flash attention over texts that lie one behind the other."""
    starts = np.flatnonzero(positions == 0)
    ends = np.append(starts, len(positions)).astype(np.int32)
    longest = int(np.diff(ends).max())
    cumulated = torch.from_numpy(ends)
    return {"cu_seq_lens_q": cumulated, "cu_seq_lens_k": cumulated, "max_length_q": longest, "max_length_k": longest}


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


class HeldOutPairs(TorchDataset[dict[str, list[int]]]):
    """A map-style dataset of held-out pairs, the longest first."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """Show these rows of `data.conversations`."""
        self.rows = sorted(rows, key=lambda row: -len(row["prompt_ids"]) - len(row["chosen_ids"]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {name: self.rows[index][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


class PairEvaluation:
    """The Trainer's `compute_metrics` for held-out pairs; `last` keeps the newest full summary."""

    plot_key, plot_label = "accuracy", "held-out pairs, share with a higher reward for the chosen answer"

    def __init__(self, pairs: HeldOutPairs, beta: float) -> None:
        """Score these pairs; rewards are `beta` times the change of an answer's log probability."""
        self.pairs, self.beta = pairs, beta
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the flat figures; the per-source ones are in `last`."""
        scores = np.asarray(prediction.predictions, dtype=np.float64)
        assert len(scores) == len(self.pairs), "a held-out pair was dropped or scored twice"
        sources: dict[str, list[int]] = {}
        for place, row in enumerate(self.pairs.rows):
            sources.setdefault(row["source"], []).append(place)
        per_source = {name: summarise_pairs(scores[places], self.beta) for name, places in sorted(sources.items())}
        flat = summarise_pairs(scores, self.beta)
        self.last = {**flat, "per_source": per_source}
        return flat

    def describe(self) -> str:
        """Return the newest summary as a line."""
        assert self.last is not None
        return (
            f"accuracy {self.last['accuracy']:.3f}  margin {self.last['margin']:.4f}  "
            f"loss {self.last['preference_loss']:.4f}  ({self.last['pairs']} pairs)"
        )


def summarise_pairs(log_probabilities: NDArray[Any], beta: float) -> dict[str, float]:
    """Return accuracy, margin and loss over pairs.

    The reward of an answer is beta x (log probability by the model - by the reference), a pair's margin the difference
    of both rewards, its loss -log sigmoid(margin). Source: Rafailov et al. (arXiv 2305.18290), equations 5 and 7. A
    margin of exactly 0 counts half as right.

    Args:
        log_probabilities: (pairs, 4), nats of the whole answer: chosen and rejected by the model, then by the
            reference.
        beta: see above.
    """
    chosen, rejected, reference_chosen, reference_rejected = log_probabilities.T
    rewards = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    margins = rewards[0] - rewards[1]
    return {
        "accuracy": float(np.mean(np.where(margins == 0, 0.5, margins > 0))),
        "margin": float(margins.mean()),
        "preference_loss": float(np.logaddexp(0, -margins).mean()),
        "reward_chosen": float(rewards[0].mean()),
        "reward_rejected": float(rewards[1].mean()),
        "nats_chosen": float(-chosen.mean()),
        "nats_rejected": float(-rejected.mean()),
        "pairs": len(margins),
    }
