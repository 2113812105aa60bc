"""Encode whole corpora: every distinct word once, instead of every word each time.

Most of a batch encoding's time goes into building the tokens of words that were seen before. A tokenizer that splits
at spaces and nowhere else encodes each word on its own, so its ids can be kept: a document is then a lookup per word.
Only new words reach `tokenizers`, many at a time, and the result is the same id for id. Superwords are joined
afterwards, within runs of function words, and every distinct run is joined once.
"""

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .splitting import pre_tokenizer_content, split_around_superwords, split_at_spaces
from .superwords import superword_parts
from .vocabulary import SPACE_MARK

# Distinct words kept, about 200 bytes each: 60 MB. When there are more, all are forgotten and the common ones are back
# at once; on 121 MB of mixed Portuguese one word in twelve is new with or without the limit.
MAX_WORDS_KEPT = 300_000
BATCH_CHARS = 1_000_000  # of text split into words at a time: words as Python strings take ten times their bytes
MAX_RUNS_KEPT = 300_000  # distinct runs of function words


class CorpusEncoder:
    """Encode documents without special tokens, as `encode_texts` does, into arrays of one integer type."""

    def __init__(self, backend: Tokenizer, dtype: Any) -> None:
        """Take a Rust tokenizer; its switch for special strings in texts is set to "plain text".

        Args:
            backend: of any fast tokenizer. Ours takes the way described above, one that splits in other places the
                batch encoding of `tokenizers`.
            dtype: numpy integer type of the ids.
        """
        self.backend, self.dtype = _read_plain_text(backend), np.dtype(dtype)
        self.keeps_words = encodes_word_by_word(backend)
        entries = backend.get_vocab()
        self._pieces = {index: piece for piece, index in entries.items()}
        size = max(self._pieces, default=0) + 1
        self._starts_word, self._joins = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        self._starts_word[[index for index, piece in self._pieces.items() if piece.startswith(SPACE_MARK)]] = True
        self._of_words = backend  # gives the ids of words, before superwords are joined
        if self.keeps_words and (parts := superword_parts(sorted(entries, key=entries.__getitem__))):
            self._joins[[entries[part] for part in parts]] = True
            self._of_words = _read_plain_text(Tokenizer.from_str(backend.to_str()))
            self._of_words.pre_tokenizer = split_at_spaces()
        self._words: dict[str, bytes] = {}
        self._runs: dict[bytes, bytes] = {}

    def encode(self, texts: list[str]) -> list[bytes]:
        """Return the ids of each text as the bytes of an array of `dtype`."""
        if not self.keeps_words:
            return self._encode_batch(self.backend, texts)
        encoded, batch, filled = [], [], 0
        for text in texts:
            batch.append(text)
            filled += len(text)
            if filled >= BATCH_CHARS:
                encoded += self._encode_by_words(batch)
                batch, filled = [], 0
        return encoded + self._encode_by_words(batch)

    def _encode_by_words(self, texts: list[str]) -> list[bytes]:
        parts = [text.split(" ") for text in texts]  # "a  b" gives "a", "", "b": the empty word is a space of its own
        words: set[str] = set()
        for first_and_rest in parts:
            words.update(first_and_rest[1:])
        self._learn(words)
        known = self._words
        firsts = self._encode_batch(self._of_words, [first_and_rest[0] for first_and_rest in parts])
        encoded = [
            first + b"".join([known[word] for word in first_and_rest[1:]])
            for first, first_and_rest in zip(firsts, parts, strict=True)
        ]
        return self._join_superwords(encoded) if self._joins.any() else encoded

    def _join_superwords(self, documents: list[bytes]) -> list[bytes]:
        """Replace each run of two or more function words by its ids as a whole."""
        size, cuts = self.dtype.itemsize, []
        for document in documents:
            joins = self._joins[np.frombuffer(document, dtype=self.dtype)]
            edges = np.flatnonzero(np.diff(joins, prepend=False, append=False))
            starts, ends = edges[::2], edges[1::2]
            long = ends - starts > 1
            starts, ends = (starts[long] * size).tolist(), (ends[long] * size).tolist()
            cuts.append((starts, ends, [document[start:end] for start, end in zip(starts, ends, strict=True)]))
        self._learn_runs({run for _, _, runs in cuts for run in runs})
        joined = []
        for document, (starts, ends, runs) in zip(documents, cuts, strict=True):
            parts, last = [], 0
            for start, end, run in zip(starts, ends, runs, strict=True):
                parts += [document[last:start], self._runs[run]]
                last = end
            joined.append(b"".join([*parts, document[last:]]))
        return joined

    def _learn_runs(self, runs: set[bytes]) -> None:
        """Encode the runs that are new, written out as words: joins inside words have gone before, and stay."""
        new = [run for run in runs if run not in self._runs]
        if len(self._runs) + len(new) > MAX_RUNS_KEPT:
            self._runs.clear()
            new = list(runs)
        texts = ["".join(self._pieces[index] for index in np.frombuffer(run, dtype=self.dtype).tolist()) for run in new]
        self._runs.update(zip(new, self._encode_batch(self.backend, texts), strict=True))

    def _learn(self, words: set[str]) -> None:
        """Encode the words that are new, each as it stands after a space, and keep their ids."""
        known = self._words
        new = [word for word in words if word not in known]
        if len(known) + len(new) > MAX_WORDS_KEPT:
            known.clear()
            new = list(words)
        # One long text of them all costs far less than a call a word. Where a word begins is seen from the ids: only
        # there can a piece begin with the mark. A word that holds the mark itself would be cut by it, so it goes alone.
        plain = [word for word in new if SPACE_MARK not in word]
        if plain:
            stored, size = self._encode_batch(self._of_words, [" " + " ".join(plain)])[0], self.dtype.itemsize
            starts = np.flatnonzero(self._starts_word[np.frombuffer(stored, dtype=self.dtype)])
            assert len(starts) == len(plain), "a piece crosses a space: this tokenizer does not split there"
            bounds = [*(starts * size).tolist(), len(stored)]
            known.update(zip(plain, map(stored.__getitem__, map(slice, bounds, bounds[1:])), strict=False))
        marked = [word for word in new if SPACE_MARK in word]
        known.update(zip(marked, self._encode_batch(self._of_words, [" " + word for word in marked]), strict=True))

    def _encode_batch(self, backend: Tokenizer, texts: list[str]) -> list[bytes]:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [np.asarray(encoding.ids, dtype=self.dtype).tobytes() for encoding in encodings]


def _read_plain_text(backend: Tokenizer) -> Tokenizer:
    """Set a tokenizer to encode texts whole and as they are, special strings included, and return it."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # "encode the special strings as text"
    return backend


def encodes_word_by_word(backend: Tokenizer) -> bool:
    """Return whether a tokenizer encodes each word on its own, but for superwords: no normalizer, no other split."""
    content = json.loads(backend.to_str())
    ours = [pre_tokenizer_content(rule()) for rule in (split_at_spaces, split_around_superwords)]
    return (
        content["normalizer"] is None
        and content["pre_tokenizer"] in ours
        and all(token["special"] for token in content["added_tokens"])  # others are found in the text, across words
    )
