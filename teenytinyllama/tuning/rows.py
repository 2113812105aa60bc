"""Rows of conversations: several share one, each with positions of its own, so that none sees another.

    input_ids     s q q a a e s q a e p p      s, e: <s>, </s>; q: question, a: answer, p: padding
    labels        . . . a a e . . a e . .      . is not learnt
    position_ids  0 1 2 3 4 5 0 1 2 3 0 1      a 0 begins a new text

transformers builds the mask from the position ids as long as there is no attention mask (`create_causal_mask`,
`find_packed_sequence_indices`, transformers 5.23). `leaks` tries it before training.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.conversations import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset


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
