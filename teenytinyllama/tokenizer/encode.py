"""Encode whole corpora: every distinct word once, instead of every word each time.

Most of a batch encoding's time goes into building the tokens of words that were seen before. A tokenizer that splits
at spaces and nowhere else encodes each word on its own, so its ids can be kept: a document is then a lookup per word.
Only new words reach `tokenizers`, many at a time, and the result is the same id for id. Superwords are joined
afterwards, within runs of function words, and every distinct run is joined once.

Encode with a tokenizer, make it portable, fingerprint it: what every stage shares.

Superwords: one entry for a sequence of function words, such as `▁de▁um` or `▁o▁que▁se`.

Portuguese writes many pairs of function words as one (do, na, pelo, numa); these entries go on with it. Only words of
the closed list below take part, so that the tokens of a text do not depend on whether a content word follows: a prompt
and its continuation are cut where they were cut in training. Superwords have the highest ids. Joins inside words
therefore always go first, and the ids of a text are the ids of its words, then joined within runs of function words.
"""

import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import ensure
from .files import NUM_RESERVED_TOKENS, SPACE_MARK, pre_tokenizer_content, split_around_superwords, split_at_spaces

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


# The parts of tokenizer.json that decide ids. The decoder decides text only; padding and truncation belong to a call.
_ID_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")


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


def make_portable(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return the same tokenizer, made to save itself under a class name that transformers 4 and 5 both load.

    Only the generic fast class is touched (in place); a model's own class, such as LlamaTokenizer, has a name that
    both versions know.
    """
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    from .portable import PreTrainedTokenizerFast

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


MAX_WORDS = 4  # in a superword; longer ones hardly occur
# One entry in 32: 1,000 of 32,000. On 121 MB of mixed text 500, 1,000, 2,000 and 4,000 of 32,000 took 3.9, 4.2, 4.3 and
# 3.7 % fewer tokens than none; more of them join more places where a text can be cut (docs/lab-log.md).
ENTRIES_PER_SUPERWORD = 32
MIN_RUN_COUNT = 2  # a sequence seen once says nothing about the language

# Articles, prepositions and their contractions, pronouns, conjunctions, common adverbs, quantifiers and auxiliaries.
_WORDS = """
o a os as um uma uns umas de em por para com sem sob sobre entre até desde contra após ante perante segundo conforme
durante mediante do da dos das no na nos nas ao à aos às pelo pela pelos pelas dum duma num numa nuns numas
este esta estes estas esse essa esses essas aquele aquela aqueles aquelas isto isso aquilo
deste desta destes destas desse dessa desses dessas daquele daquela daqueles daquelas disto disso daquilo
neste nesta nestes nestas nesse nessa nesses nessas naquele naquela naqueles naquelas nisto nisso naquilo àquele àquela
eu tu ele ela nós eles elas você vocês me te se lhe lhes vos mim ti si comigo consigo dele dela deles delas
nele nela neles nelas meu minha meus minhas teu tua seu sua seus suas nosso nossa nossos nossas
que quem qual quais cujo cuja cujos cujas onde quando como quanto quanta quantos quantas
e ou mas nem porém porque pois logo portanto embora enquanto caso
não já só mais menos muito muita muitos muitas pouco tão tanto também ainda sempre nunca bem mal aqui ali lá assim então
depois antes agora todo toda todos todas outro outra outros outras algum alguma alguns algumas nenhum nenhuma cada tudo
nada mesmo mesma mesmos mesmas tal tais
é são era eram foi foram ser sendo sido seja será está estão estava estar ter tem têm tinha há havia
pode podem deve devem vai
""".split()  # noqa: SIM905
FUNCTION_WORDS = tuple(dict.fromkeys([*_WORDS, *(word.capitalize() for word in _WORDS)]))
# A word with more letters than this is no function word: between it and the next one no superword crosses.
LONGEST_FUNCTION_WORD = max(map(len, FUNCTION_WORDS))
_FIRST_CODE = 0xE000  # private use area: each function word becomes one character while sequences are learnt


def default_num_superwords(vocab_size: int) -> int:
    """Return how many superwords a vocabulary gets unless told otherwise."""
    return vocab_size // ENTRIES_PER_SUPERWORD


def function_word_pieces(vocabulary: Iterable[str]) -> list[str]:
    """Return the function words (with their mark) that are whole pieces of the vocabulary, in the order of the list."""
    pieces = set(vocabulary)
    return [SPACE_MARK + word for word in FUNCTION_WORDS if SPACE_MARK + word in pieces]


def learn_superwords(texts: Iterable[str], pieces: list[str], how_many: int) -> list[str]:
    """Learn the most frequent sequences of 2 to 4 of the words, best first.

    Byte-pair encoding one level up: its texts are runs of such words, its characters are the words.

    Args:
        texts: the texts to count in, read once.
        pieces: the words to join, each a whole piece of the vocabulary and with its mark: `function_word_pieces`.
        how_many: the most superwords wanted; fewer when the texts have fewer.

    Returns:
        Superwords such as `▁de▁um`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not pieces or how_many < 1:
        return []
    words = [piece[1:] for piece in pieces]
    codes = {word: chr(_FIRST_CODE + index) for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(codes) + how_many,
        min_frequency=MIN_RUN_COUNT,
        initial_alphabet=list(codes.values()),
        limit_alphabet=len(codes),
        max_token_length=MAX_WORDS + 1,  # `tokenizers` learns pieces strictly shorter than this
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(_coded_runs(texts, codes), trainer)
    learnt = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    marked = {ord(code): SPACE_MARK + word for word, code in codes.items()}
    return [run.translate(marked) for run, _ in learnt if len(run) > 1]


def _coded_runs(texts: Iterable[str], codes: dict[str, str]) -> Iterator[str]:
    """Yield for each text its runs of function words, one character a word, spaces between runs.

    A word that goes on with anything but a letter ends a run ("de um," has one); the first word of a text has no space
    before it and starts none.
    """
    head = re.compile(r"\w+")

    @lru_cache(maxsize=200_000)
    def code(word: str) -> str:
        if word in codes:
            return codes[word]
        start = head.match(word)
        return codes.get(start.group(), "") + " " if start else " "

    for text in texts:
        coded = "".join(map(code, text.split(" ")[1:]))
        yield " ".join(run for run in coded.split() if len(run) > 1)


def superword_parts(vocabulary: list[str]) -> list[str]:
    """Return the words (with their mark) that the superwords of a vocabulary are made of, sorted."""
    superwords = (piece for piece in vocabulary[NUM_RESERVED_TOKENS:] if SPACE_MARK in piece[1:])
    return sorted({SPACE_MARK + word for piece in superwords for word in piece.split(SPACE_MARK)[1:]})


# Distinct words kept, about 200 bytes each: 60 MB. When there are more, all are forgotten and the common ones are back
# at once; on 121 MB of mixed Portuguese one word in twelve is new with or without the limit.
MAX_WORDS_KEPT = 300_000
BATCH_CHARS = 1_000_000  # of text split into words at a time: words as Python strings take ten times their bytes
MAX_RUNS_KEPT = 300_000  # distinct runs of function words


class CorpusEncoder:
    """Encode documents without special tokens, as `encode_texts` does, into arrays of one integer type."""

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
    ours = [pre_tokenizer_content(rule()) for rule in (split_at_spaces, split_around_superwords)]
    return (
        content["normalizer"] is None
        and content["pre_tokenizer"] in ours
        and all(token["special"] for token in content["added_tokens"])  # others are found in the text, across words
    )
