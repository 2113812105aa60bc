"""Encode whole corpora: every distinct word once, instead of every word each time.

Most of a batch encoding's time goes into building the tokens of words that were seen before. A tokenizer that splits
at spaces and nowhere else encodes each word on its own, so its ids can be kept: a document is then a lookup per word.
Only new words reach `tokenizers`, many at a time, and the result is the same id for id.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .vocabulary import SPACE_MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Distinct words kept, about 200 bytes each: 60 MB. When there are more, all are forgotten and the common ones are back
# at once; on 121 MB of mixed Portuguese one word in twelve is new with or without the limit.
MAX_WORDS_KEPT = 300_000
BATCH_CHARS = 1_000_000  # of text split into words at a time: words as Python strings take ten times their bytes
_SPLITS_AT_SPACES = {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": True}


class CorpusEncoder:
    """Encode documents without special tokens, as `encode_texts` does, into arrays of one integer type."""

    def __init__(self, backend: "Tokenizer", dtype: Any) -> None:
        """Take a Rust tokenizer; its switch for special strings in texts is set to "plain text".

        Args:
            backend: of any fast tokenizer. One that splits at spaces alone (ours) takes the way described above, any
                other the batch encoding of `tokenizers`.
            dtype: numpy integer type of the ids.
        """
        self.backend, self.dtype = backend, np.dtype(dtype)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "encode the special strings as text"
        self.keeps_words = splits_at_spaces(backend)
        self._words: dict[str, bytes] = {}
        entries = backend.get_vocab()
        self._starts_word = np.zeros(max(entries.values(), default=0) + 1, dtype=bool)
        self._starts_word[[index for piece, index in entries.items() if piece.startswith(SPACE_MARK)]] = True

    def encode(self, texts: list[str]) -> list[bytes]:
        """Return the ids of each text as the bytes of an array of `dtype`."""
        if not self.keeps_words:
            return [self._array(encoding.ids).tobytes() for encoding in self._encode_batch(texts)]
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
        firsts = self._encode_batch([first_and_rest[0] for first_and_rest in parts])
        return [
            self._array(first.ids).tobytes() + b"".join([known[word] for word in first_and_rest[1:]])
            for first, first_and_rest in zip(firsts, parts, strict=True)
        ]

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
            ids = self._array(self._encode_batch([" " + " ".join(plain)])[0].ids)
            starts = np.flatnonzero(self._starts_word[ids])
            assert len(starts) == len(plain), "a piece crosses a space: this tokenizer does not split there"
            stored, size = ids.tobytes(), self.dtype.itemsize
            bounds = [*(starts * size).tolist(), len(stored)]
            known.update(zip(plain, map(stored.__getitem__, map(slice, bounds, bounds[1:])), strict=False))
        marked = [word for word in new if SPACE_MARK in word]
        for word, encoding in zip(marked, self._encode_batch([" " + word for word in marked]), strict=True):
            known[word] = self._array(encoding.ids).tobytes()

    def _encode_batch(self, texts: list[str]) -> list[Any]:
        return self.backend.encode_batch_fast(texts, add_special_tokens=False) if texts else []

    def _array(self, ids: list[int]) -> NDArray[Any]:
        return np.asarray(ids, dtype=self.dtype)


def splits_at_spaces(backend: "Tokenizer") -> bool:
    """Return whether a tokenizer encodes each word on its own: no normalizer, split before every space, no more."""
    content = json.loads(backend.to_str())
    return (
        content["normalizer"] is None
        and content["pre_tokenizer"] == _SPLITS_AT_SPACES
        and all(token["special"] for token in content["added_tokens"])  # others are found in the text, across words
    )
