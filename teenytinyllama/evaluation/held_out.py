"""Bits per byte and perplexity on whole held-out documents.

    document of 10 tokens, context 6, stride 3 (# scored, . context only, s and e are <s> and </s>)
    s a b c d f g h i e
    . # # # # #              window 1
          . . . # # #        window 2 (the end token is never scored)

Every text token of a document is scored exactly once, with at least `context - stride` tokens before it (fewer only
at the start of the document). `<s>` and `</s>` are not text and not scored, so that

    bits per byte = nats of all text tokens / (ln 2 x UTF-8 bytes of the text)

compares models with different tokenizers; perplexity = exp(nats per text token) does not.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset


class HeldOutDocuments(Protocol):
    """Documents `<s> … </s>` one after another, as a packed folder holds them.

    Attributes:
        validation: (tokens,).
        documents: offset, tokens, bytes and source of each.
        source_names: of `documents["source"]`.
    """

    @property
    def validation(self) -> NDArray[Any]:
        """Return the tokens."""

    @property
    def documents(self) -> NDArray[Any]:
        """Return the documents."""

    @property
    def source_names(self) -> list[str]:
        """Return the names of the sources."""


@dataclass(frozen=True)
class Window:
    """Tokens `[start, end)` of the validation array, of which those from `first_scored` on to `last_scored` count."""

    document: int
    start: int
    end: int
    first_scored: int
    end_scored: int


def make_windows(offset: int, num_tokens: int, document: int, context: int, stride: int) -> list[Window]:
    """Return the windows of one document `<s> … </s>` that lies at `offset`; see the module's picture."""
    windows = []
    end_text = offset + num_tokens - 1  # the end token is not scored
    start, scored = offset, offset + 1  # nor is the start token
    while scored < end_text:
        end = min(start + context, end_text)
        windows.append(Window(document, start, end, scored, end))
        start, scored = start + stride, end
    return windows


def _draw_documents(num_tokens: NDArray[Any], max_tokens: int, seed: int) -> NDArray[np.int64]:
    drawn, room = [], max_tokens
    for index in np.random.default_rng(seed).permutation(len(num_tokens)):
        if num_tokens[index] <= room:
            drawn.append(index)
            room -= int(num_tokens[index])
    if not drawn and len(num_tokens):
        drawn = [num_tokens.argmin()]
    return np.array(drawn, dtype=np.int64)


class HeldOutWindows(Dataset[dict[str, NDArray[np.int64]]]):
    """A map-style dataset of windows over the held-out documents, the longest first, with labels for scored tokens."""

    def __init__(
        self,
        packed: HeldOutDocuments,
        context: int,
        stride: int | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        """Choose documents and cut windows.

        Args:
            packed: a packed corpus, or documents in its form.
            context: tokens the model sees at once.
            stride: tokens a window moves on; default half a context.
            max_tokens: use whole documents, drawn by `seed`, that fit into so many tokens; default all. (One book can
                be longer than that; if nothing fits, the shortest document is used.)
            seed: of that draw, so that every evaluation of a run scores the same documents.
        """
        self.packed = packed
        stride = stride or max(1, context // 2)
        order = np.arange(len(packed.documents))
        if max_tokens is not None:
            order = _draw_documents(packed.documents["num_tokens"], max_tokens, seed)
        self.document_ids = np.sort(order)
        windows = [
            window
            for i in self.document_ids
            for window in make_windows(
                int(packed.documents["offset"][i]), int(packed.documents["num_tokens"][i]), int(i), context, stride
            )
        ]
        # Equal lengths side by side waste no padding; the longest first shows a lack of memory at once.
        self.windows = sorted(windows, key=lambda window: window.start - window.end)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        window = self.windows[index]
        tokens = self.packed.validation[window.start : window.end].astype(np.int64)
        labels = np.full(len(tokens), -100, dtype=np.int64)
        scored = slice(window.first_scored - window.start, window.end_scored - window.start)
        labels[scored] = tokens[scored]
        return {"input_ids": tokens, "labels": labels}

    def summarise(self, nats_and_tokens: NDArray[Any]) -> dict[str, Any]:
        """Return bits per byte, perplexity and counts, overall and per source.

        Args:
            nats_and_tokens: (windows, 2), for each window in the dataset's order the summed negative log likelihood
                in nats and the number of scored tokens.
        """
        assert len(nats_and_tokens) == len(self.windows), "a held-out window was dropped or scored twice"
        sums = np.zeros((len(self.packed.documents), 2))
        np.add.at(sums, [window.document for window in self.windows], np.asarray(nats_and_tokens, dtype=np.float64))
        documents = self.packed.documents[self.document_ids]
        sums = sums[self.document_ids]
        overall = _language_modeling_metrics(sums, documents["num_bytes"])
        per_source = {
            name: _language_modeling_metrics(sums[mask], documents["num_bytes"][mask])
            for index, name in enumerate(self.packed.source_names)
            if (mask := documents["source"] == index).any()
        }
        return {**overall, "per_source": per_source}


def _language_modeling_metrics(sums: NDArray[Any], num_bytes: NDArray[Any]) -> dict[str, float | int]:
    nats, tokens, total_bytes = float(sums[:, 0].sum()), int(sums[:, 1].sum()), int(num_bytes.sum())
    nats_per_token = nats / max(tokens, 1)
    return {
        "bits_per_byte": nats / math.log(2) / max(total_bytes, 1),
        "perplexity": math.exp(min(nats_per_token, 700.0)),  # nats, so base e; exp(709) is the largest double
        "nats_per_token": nats_per_token,
        "scored_tokens": tokens,
        "scored_bytes": total_bytes,
        "documents": len(num_bytes),
    }


def window_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (batch, 2): summed nats of the scored tokens of each row, and their number.

    Args:
        logits: (batch, tokens, vocabulary), of any float type; raised to float32 row by row to bound memory.
        labels: (batch, tokens), -100 where nothing is scored; labels[t] is predicted by logits[t - 1].
    """
    rows = [
        cross_entropy(row_logits[:-1].float(), row_labels[1:], ignore_index=-100, reduction="sum")
        for row_logits, row_labels in zip(logits, labels, strict=True)
    ]
    return torch.stack([torch.stack(rows), (labels[:, 1:] != -100).sum(dim=1).float()], dim=1)


def already_scored(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the scores of a model that makes them itself (`training.loss`) in place of logits."""
    return scores
