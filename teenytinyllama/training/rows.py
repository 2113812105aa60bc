"""What the Trainer reads: packed rows in their fixed order, and batches of them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset


class TrainingRows(Dataset[dict[str, NDArray[np.int64]]]):
    """A map-style dataset of exactly the rows of a run: the packed rows, repeated as often as the run needs.

    The first epoch is the packed order (shuffled once when packing); each later one is a permutation of its own.
    Because the dataset is as long as the run, every optimizer step has all its micro-batches, no row is dropped
    where two epochs meet, and resuming is arithmetic on the row's number.
    """

    def __init__(self, rows: NDArray[Any], num_rows: int, seed: int) -> None:
        """Show `num_rows` rows of the array (rows, context), going round as often as needed."""
        self.rows, self.num_rows, self.seed = rows, num_rows, seed
        self._epoch = 0
        self._order: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        epoch, place = divmod(index, len(self.rows))
        return {"input_ids": self.rows[self._place(epoch, place)].astype(np.int64)}

    def __getitems__(self, indices: list[int]) -> NDArray[np.int64]:
        """Return the rows of a batch, (rows, context), in one read; torch's loader asks for this when it is there."""
        places = [self._place(*divmod(index, len(self.rows))) for index in indices]
        return self.rows[places].astype(np.int64)

    def _place(self, epoch: int, place: int) -> int:
        if epoch == 0:
            return place
        if self._order is None or self._epoch != epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return int(self._order[place])


class CausalCollator:
    """Stack rows to a batch; rows without labels are their own labels, shorter rows are padded on the right.

    Padding needs no attention mask: in a causal model nothing before it sees it, and its labels are -100.
    """

    def __init__(self, pad_token_id: int) -> None:
        """Pad with `pad_token_id`."""
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, NDArray[np.int64]]] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, both (rows, longest row); full rows come as one array."""
        if isinstance(rows, np.ndarray):
            full = torch.from_numpy(rows)
            return {"input_ids": full, "labels": full}
        length = max(len(row["input_ids"]) for row in rows)
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), length), -100, dtype=np.int64)
        for place, row in enumerate(rows):
            tokens = row["input_ids"]
            input_ids[place, : len(tokens)] = tokens
            labels[place, : len(tokens)] = row.get("labels", tokens)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
