"""Encoding texts: the one way from text to token ids for documents and prompts, and the fingerprint of a tokenizer.

`encode_texts` works with any tokenizer. `CorpusEncoder` encodes whole corpora: every distinct word once, instead of
every word each time. Most of a batch encoding's time goes into building the tokens of words that were seen before. A
tokenizer that splits at spaces and nowhere else encodes each word on its own, so its ids can be kept: a document is
then a lookup per word. Only new words reach `tokenizers`, many at a time, and the result is the same id for id.
Superwords (`files`) are joined afterwards, within runs of function words, and every distinct run is joined once.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..checks import ensure
from .files import SPACE_MARK, is_our_split, split_at_spaces, superword_parts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# Forty times the largest vocabulary in use. The library counts up to the largest id when it writes a tokenizer.
_MOST_IDS = 10_000_000
# The parts of tokenizer.json that decide ids. The decoder decides text only; padding and truncation belong to a call.
_ID_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")


def in_batches(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield the items in lists, each of which ends with the item that fills it.

    Args:
        items: of any kind.
        size_of: returns the size of an item.
        most: the size that fills a list.
    """
    batch: list[T] = []
    filled = 0
    for item in items:
        batch.append(item)
        filled += size_of(item)
        if filled >= most:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def compose(text: str) -> str:
    """Return a text with composed letters (Unicode's form NFC), as keyboards write them.

    Documents, prompts, questions and answers all pass through here: a model that learnt from `é` as one character
    reads `e` and an accent as something else, and in more tokens.
    """
    return unicodedata.normalize("NFC", text)


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, with no special token added and none read from the text.

    A `</s>` typed in a document stays four characters: read as the special token, it would be an end of text that
    anyone can inject. Equal to `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`, by the fastest
    batch call. Truncation and padding left behind by an earlier call are switched off.

    Args:
        tokenizer: any tokenizer of transformers; one without a Rust backend takes the slow way.
        texts: a list (not one string).

    Returns:
        One list of ids per text.

    Raises:
        InputError: `texts` is one string.
    """
    ensure(not isinstance(texts, str), "texts: got one str, and a list of str is needed. Write [text].")
    if not texts:
        return []
    if not tokenizer.is_fast:
        slow: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return slow
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True  # "encode the special strings as text"
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, add_special_tokens: bool = True) -> list[int]:
    """Return the token ids of a composed text, with the special tokens that the tokenizer puts around it.

    As `encode_texts`, special tokens typed in the text are text: a `</s>` in a question of a benchmark ends nothing.
    """
    found: Any = tokenizer(compose(text), add_special_tokens=add_special_tokens, split_special_tokens=True)
    return list(found["input_ids"])


def check_sound(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check what only later would raise, or take minutes and all memory.

    Raises:
        ValueError: padding would not find the tokens, or an id is so large that the library would count up to it.
    """
    if tokenizer.model_input_names[:1] != ["input_ids"]:
        raise ValueError("model_input_names in tokenizer_config.json does not begin with input_ids.")
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= _MOST_IDS:
        raise ValueError(f"the vocabulary has an entry of id {largest:,}, beyond {_MOST_IDS:,}.")


def make_portable(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return the same tokenizer, made to save itself under a class name that transformers 4 and 5 both load.

    Only the generic fast class is touched (in place); a model's own class, such as LlamaTokenizer, has a name that
    both versions know.
    """
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    from .files import PreTrainedTokenizerFast

    if type(tokenizer) is TokenizersBackend:
        tokenizer.__class__ = PreTrainedTokenizerFast  # adds no state, so changing the class is safe
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 (64 hexadecimal digits) of all that decides ids: equal before saving and after loading.

    Covers vocabulary, merges, added tokens, normalizer, pre-tokenizer and post-processor; not the chat template, the
    decoder, padding or truncation.

    Raises:
        InputError: a tokenizer without a Rust backend.
    """
    ensure(
        tokenizer.is_fast,
        f"tokenizer={type(tokenizer).__name__}: only a fast tokenizer has a fingerprint. Convert it to tokenizer.json.",
    )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: content.get(name) for name in _ID_PARTS}
    if "merges" in parts["model"]:  # written as "a b" by older versions, as ["a", "b"] by newer ones
        merges = parts["model"]["merges"]
        parts["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


# Distinct words kept, about 200 bytes each: 60 MB. When there are more, all are forgotten and the common ones are back
# at once; on 121 MB of mixed Portuguese one word in twelve is new with or without the limit.
MAX_WORDS_KEPT = 300_000
BATCH_CHARS = 1_000_000  # of text split into words at a time: words as Python strings take ten times their bytes
MAX_RUNS_KEPT = 300_000  # distinct runs of function words


class CorpusEncoder:
    """Encodes the documents of a corpus as `encode_texts` does, without special tokens, and keeps the ids of words."""

    def __init__(self, backend: "Tokenizer", dtype: Any) -> None:
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
            self._of_words = _read_plain_text(type(backend).from_str(backend.to_str()))
            self._of_words.pre_tokenizer = split_at_spaces()
        self._words: dict[str, bytes] = {}
        self._runs: dict[bytes, bytes] = {}

    def encode(self, texts: list[str]) -> list[bytes]:
        """Return the ids of each text as the bytes of an array of `dtype`."""
        if not self.keeps_words:
            return self._encode_batch(self.backend, texts)
        return [ids for batch in in_batches(texts, len, BATCH_CHARS) for ids in self._encode_by_words(batch)]

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

    def _encode_batch(self, backend: "Tokenizer", texts: list[str]) -> list[bytes]:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [np.asarray(encoding.ids, dtype=self.dtype).tobytes() for encoding in encodings]


def _read_plain_text(backend: "Tokenizer") -> "Tokenizer":
    """Set a tokenizer to encode texts whole and as they are, special strings included, and return it."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # "encode the special strings as text"
    return backend


def encodes_word_by_word(backend: "Tokenizer") -> bool:
    """Return whether a tokenizer encodes each word on its own, but for superwords: no normalizer, no other split."""
    content = json.loads(backend.to_str())
    return (
        content["normalizer"] is None
        and is_our_split(content["pre_tokenizer"])
        and all(token["special"] for token in content["added_tokens"])  # others are found in the text, across words
    )
