"""Held-out text: bits per byte and perplexity of whole documents, of a packed folder or of any text files.

    document of 10 tokens, context 6, stride 3 (# scored, . context only, s and e are <s> and </s>)
    s a b c d f g h i e
    . # # # # #              window 1
          . . . # # #        window 2 (the end token is never scored)

Every text token of a document is scored exactly once, with at least `context - stride` tokens before it (fewer only
at the start of the document). `<s>` and `</s>` are not text and not scored, so that

    bits per byte = nats of all text tokens / (ln 2 x UTF-8 bytes of the text)

compares models with different tokenizers; perplexity = exp(nats per text token) does not.

The suite `lm` of `ttl evaluate` measures both per source and per register, and a training measures them as it goes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..checks import ensure, near_name
from ..data.input_files import SAMPLE
from ..data.pack import DOCUMENT_DTYPE
from ..data.packed import DOCUMENTS_NAME, VALIDATION_NAME, PackedCorpus, check_packed, load_packed
from ..data.sources import Corpus, CorpusConfig, parse_metadata
from ..distributed import spread
from ..progress import progress
from ..stage_folder import MANIFEST_NAME
from ..tokenizer.encode import encode_texts, tokenizer_fingerprint
from .marking import ratio_stderr
from .results import HELD_OUT, Measure
from .scoring import can_score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class HeldOutText:
    """Documents as texts and as tokens `<s> … </s>`, in the form of a packed folder's held-out part.

    Attributes:
        texts: one a document.
        validation: (tokens,) of all documents, one after another.
        documents: offset, tokens, bytes and source of each (`DOCUMENT_DTYPE`).
        source_names: of `documents["source"]`.
    """

    texts: list[str]
    validation: NDArray[Any]
    documents: NDArray[Any]
    source_names: list[str]


@dataclass(frozen=True)
class Window:
    """The tokens from `start` to `end` (exclusive) of the held-out tokens; those from `first_scored` on are scored."""

    document: int
    start: int
    end: int
    first_scored: int


def make_windows(offset: int, num_tokens: int, document: int, context: int, stride: int) -> list[Window]:
    """Return the windows of one document `<s> … </s>` that lies at `offset`; see the module's picture."""
    windows = []
    end_text = offset + num_tokens - 1  # the end token is not scored
    start, scored = offset, offset + 1  # nor is the start token
    while scored < end_text:
        end = min(start + context, end_text)
        windows.append(Window(document, start, end, scored))
        start, scored = start + stride, end
    return windows


def _draw_documents(num_tokens: NDArray[Any], max_tokens: int, seed: int) -> NDArray[np.int64]:
    """Return the places of documents, drawn by a seed, that hold `max_tokens` together; at least the shortest one."""
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
        packed: PackedCorpus | HeldOutText,
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
        first = window.first_scored - window.start
        labels[first:] = tokens[first:]
        return {"input_ids": tokens, "labels": labels}

    def document_sums(self, nats_and_tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Return (documents, 2), summed nats and scored tokens of each of the chosen documents.

        Args:
            nats_and_tokens: (windows, 2), for each window in the dataset's order the summed negative log likelihood
                in nats and the number of scored tokens.
        """
        assert len(nats_and_tokens) == len(self.windows), "a held-out window was dropped or scored twice"
        sums = np.zeros((len(self.packed.documents), 2))
        np.add.at(sums, [window.document for window in self.windows], np.asarray(nats_and_tokens, dtype=np.float64))
        return sums[self.document_ids]

    def summarise(self, nats_and_tokens: NDArray[Any]) -> dict[str, Any]:
        """Return bits per byte, perplexity and counts, overall and per source; see `document_sums`."""
        sums, documents = self.document_sums(nats_and_tokens), self.packed.documents[self.document_ids]
        per_source = {
            name: _language_modeling_metrics(sums[mask], documents["num_bytes"][mask])
            for index, name in enumerate(self.packed.source_names)
            if (mask := documents["source"] == index).any()
        }
        return {**_language_modeling_metrics(sums, documents["num_bytes"]), "per_source": per_source}


def _language_modeling_metrics(sums: NDArray[Any], num_bytes: NDArray[Any]) -> dict[str, float | int]:
    """Return bits per byte, perplexity and counts of documents: (documents, 2) nats and tokens, (documents,) bytes."""
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
    """Return the scores of a model that makes them itself (`training.speed`) in place of logits."""
    return scores


def find_held_out(model: Path) -> list[str]:
    """Return the packed folder on which a run (or the run of a checkpoint) was trained, if it is still there."""
    for folder in (model, model.parent):
        try:
            packed = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["data"]["packed"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for place in (Path(packed), folder / packed, folder.parent / packed):
            if (place / MANIFEST_NAME).is_file():
                return [str(place)]
    return []


def load_held_out(inputs: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> HeldOutText:
    """Return the held-out documents that inputs stand for, as tokens of a model.

    Args:
        inputs: one packed folder, or files, folders, globs and `sample`, whose every document is taken (of `sample`:
            its held-out stories).
        tokenizer: the model's.

    Raises:
        InputError: nothing is there, there is no document, or a packed folder of another tokenizer.
    """
    if len(inputs) == 1 and (Path(inputs[0]) / MANIFEST_NAME).is_file():
        return _from_packed(inputs[0], tokenizer)
    texts, sources = _read_texts(list(inputs))
    ensure(texts, f"held_out={', '.join(inputs)}: holds no document with text.")
    return tokenized_texts("held_out", texts, sources, tokenizer)


def _from_packed(folder: str, tokenizer: "PreTrainedTokenizerBase") -> HeldOutText:
    """Return the held-out documents of a packed folder, with their texts."""
    packed = load_packed(folder, "held_out")
    ensure(
        packed.manifest["tokenizer_sha256"] == tokenizer_fingerprint(tokenizer),
        f"held_out={folder}: was packed with another tokenizer than the model's. Give the held-out texts themselves.",
    )
    ensure(
        len(packed.documents),
        f"held_out={folder}: no document is held out there. Give texts, or pack with validation_fraction.",
    )
    check_packed(packed, "held_out", names=(VALIDATION_NAME, DOCUMENTS_NAME))
    texts = []
    for start, count in zip(packed.documents["offset"], packed.documents["num_tokens"], strict=True):
        ids = packed.validation[start + 1 : start + count - 1].tolist()
        texts.append(str(tokenizer.decode(ids, skip_special_tokens=False)))
    return HeldOutText(texts, packed.validation, packed.documents, packed.source_names)


def _read_texts(inputs: list[str]) -> tuple[list[str], list[str]]:
    """Return the texts of all documents of some inputs, and the source of each."""
    texts, sources = [], []
    files = [text for text in inputs if text != SAMPLE]
    if files:
        # A fraction of nought calls every document `train`; all of them are meant here.
        for _, document in Corpus(CorpusConfig(inputs=files, validation_fraction=0.0)).documents():
            texts.append(document.text)
            sources.append(document.source)
    if SAMPLE in inputs:
        from ..data.sample import sample_documents

        for row in sample_documents("validation"):
            texts.append(row["text"])
            sources.append(parse_metadata(row["metadata"], SAMPLE)[0])
    return texts, sources


def tokenized_texts(
    key: str, texts: list[str], sources: list[str], tokenizer: "PreTrainedTokenizerBase"
) -> HeldOutText:
    """Return texts as tokens of a model, in the form of a packed folder's held-out part; messages name `key`.

    Raises:
        InputError: the tokenizer has neither a start nor an end token.
    """
    end = tokenizer.eos_token_id
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else end
    ensure(start is not None, f"{key}: the model's tokenizer has no start and no end token to begin a document with.")
    rows = [[start, *ids, start if end is None else end] for ids in encode_texts(tokenizer, texts)]
    names = {name: place for place, name in enumerate(dict.fromkeys(sources))}
    documents = np.zeros(len(texts), dtype=DOCUMENT_DTYPE)
    documents["num_tokens"] = [len(row) for row in rows]
    documents["offset"] = np.concatenate([[0], np.cumsum(documents["num_tokens"])[:-1]])
    documents["num_bytes"] = [len(text.encode()) for text in texts]
    documents["source"] = [names[source] for source in sources]
    return HeldOutText(texts, np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]), documents, list(names))


@torch.no_grad()
def score_windows(model: "PreTrainedModel", windows: HeldOutWindows, batch_size: int) -> NDArray[np.float64]:
    """Return (windows, 2): summed nats and scored tokens of each window, whatever the batch size and number of ranks.

    Args:
        model: any causal language model.
        windows: of the held-out documents.
        batch_size: windows read at once; those of one batch have about the same length.
    """
    with progress(None, "held-out text", "windows", total=len(windows)) as bar:

        def score(places: list[int]) -> list[NDArray[np.float64]]:
            found = []
            for start in range(0, len(places), batch_size):
                items = [windows[place] for place in places[start : start + batch_size]]
                # Padding stands behind the text, where causal attention never looks.
                tokens, labels = (
                    pad_sequence([torch.from_numpy(item[name]) for item in items], True, padding)
                    for name, padding in (("input_ids", 0), ("labels", -100))
                )
                nats = _batch_nats(model, tokens.to(model.device), labels.to(model.device))
                found += list(nats.cpu().double().numpy())
                bar.update(len(items))
            return found

        return np.array(spread(range(len(windows)), score, chunk=batch_size))


def _batch_nats(model: "PreTrainedModel", tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (rows, 2): summed nats and scored tokens of each row of a batch."""
    if not can_score(model):
        return window_nats(model(input_ids=tokens, use_cache=False).logits, labels)
    body: Any = model.base_model
    head: Any = model.get_output_embeddings()
    hidden_BTH = body(input_ids=tokens, use_cache=False).last_hidden_state
    # Row by row, and only where a token is scored: all logits of a batch would take gigabytes.
    rows = []
    for hidden_TH, label_T in zip(hidden_BTH, labels, strict=True):
        scored_T = label_T[1:] != -100
        logits_NV = head(hidden_TH[:-1][scored_T]).float()
        nats = cross_entropy(logits_NV, label_T[1:][scored_T], reduction="sum")
        rows.append(torch.stack([nats, scored_T.sum().to(nats.dtype)]))
    return torch.stack(rows)


def language_modeling_measures(
    model: "PreTrainedModel",
    text: HeldOutText,
    batch_size: int,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    registers: dict[str, list[str]] | None = None,
) -> list[Measure]:
    """Return bits per byte and perplexity over all documents, per source and per register.

    Args:
        model: the model.
        text: held-out documents as its tokens.
        batch_size: windows read at once; it does not change a figure.
        context: tokens seen at once; default the model's context.
        stride: tokens between two windows; default half a context.
        max_tokens: whole documents of at most so many tokens, drawn with a fixed seed; default all.
        registers: for each register (a kind of text) the sources that belong to it.

    Raises:
        InputError: a context that the model does not have, or a register of unknown sources.
    """
    longest = int(model.config.max_position_embeddings)
    context = context or longest
    ensure(
        2 <= context <= longest,
        f"context={context}: the model reads at most {longest} tokens. Give 2 to {longest}, or leave it out.",
    )
    ensure(  # the first token of a window is predicted by the one before it, so windows share at least one
        stride is None or 1 <= stride < context,
        f"stride={stride}: must be 1 to {context - 1}. Half the context is usual.",
    )
    registers = registers or {}
    for register, names in registers.items():
        for name in names:
            ensure(
                name in text.source_names,
                f"registers.{register}={name}: no held-out document has this source."
                f"{near_name(name, text.source_names)} There are {', '.join(text.source_names[:8])}.",
            )
    windows = HeldOutWindows(text, context, stride, max_tokens)
    sums = windows.document_sums(score_windows(model, windows, batch_size))
    documents = text.documents[windows.document_ids]
    parts: list[tuple[str | None, list[int]]] = [(None, list(range(len(text.source_names))))]
    parts += [(name, [number]) for number, name in enumerate(text.source_names)]
    parts += [
        (f"register: {register}", [text.source_names.index(name) for name in names])
        for register, names in registers.items()
    ]
    masks = [(part, np.isin(documents["source"], sources)) for part, sources in parts]
    return [
        measure
        for part, mask in masks
        if mask.any()
        for measure in _measures(part, sums[mask], documents["num_bytes"][mask])
    ]


def _measures(part: str | None, sums: NDArray[np.float64], num_bytes: NDArray[Any]) -> list[Measure]:
    """Return bits per byte and perplexity, with their errors, of one source, of a register, or of all (None)."""
    found = _language_modeling_metrics(sums, num_bytes)
    per_token_stderr = ratio_stderr(sums[:, 0].tolist(), sums[:, 1].tolist()) if found["scored_tokens"] else None
    bits_stderr = ratio_stderr((sums[:, 0] / math.log(2)).tolist(), num_bytes.tolist())
    # The error of an exponential, to first order.
    perplexity_stderr = None if per_token_stderr is None else found["perplexity"] * per_token_stderr
    return [
        Measure("lm", HELD_OUT, name, found[name], stderr, part, len(sums))
        for name, stderr in (("bits_per_byte", bits_stderr), ("perplexity", perplexity_stderr))
    ]
