"""Learn the entries of the tokenizer from a sample: pieces of words first, then superwords."""

import sys
from collections.abc import Iterable

from .reading import known_parts
from .sampling import TextSample
from .splitting import split_at_spaces
from .superwords import default_num_superwords, function_word_pieces, learn_superwords
from .vocabulary import NUM_RESERVED_TOKENS, RESERVED_TOKENS, keep_reachable

# Longest piece, in characters. Longer ones are template lines of one site; the longest common words of Portuguese
# ("responsabilidade", "desenvolvimento") stay below 20.
MAX_PIECE_CHARS = 32
MIN_PAIR_COUNT = 2  # a pair seen once says nothing about the language
SUPERWORD_BYTES = 25_000_000  # of text that superwords are counted in: a quarter of 121 MB gave the same as all


def learn_entries(sample: TextSample, alphabet: list[str], vocab_size: int, num_superwords: int | None) -> list[str]:
    """Return the vocabulary: reserved entries, alphabet, pieces, superwords; shorter when the texts support no more.

    Args:
        sample: the texts.
        alphabet: the characters with entries of their own.
        vocab_size: entries wanted.
        num_superwords: the most superwords; None for the usual share, and for any number where pieces run out.
    """
    head = [*RESERVED_TOKENS, *alphabet]
    entries = keep_reachable(head, _learn_pieces(sample.weighted_texts(), alphabet, vocab_size), vocab_size)
    if len(entries) < vocab_size:
        wanted = vocab_size if num_superwords is None else num_superwords
        room = min(wanted, vocab_size - len(entries))
        start = len(entries)
    else:
        wanted = default_num_superwords(vocab_size) if num_superwords is None else num_superwords
        room = min(wanted, vocab_size - len(head))
        start = vocab_size - room
    every = -(-sum(sample.kept_bytes.values()) // SUPERWORD_BYTES)
    found = learn_superwords(sample.weighted_texts(every), function_word_pieces(entries[:start]), room)
    superwords = keep_reachable(entries[:start], found, vocab_size)[start:]
    return [*entries[: vocab_size - len(superwords)], *superwords]


def _learn_pieces(texts: Iterable[str], alphabet: list[str], vocab_size: int) -> list[str]:
    """Return the learnt pieces of two or more characters, best first, with some to spare for those that get dropped."""
    from tokenizers import Tokenizer, models, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = split_at_spaces()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + vocab_size // 50 + 64,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(RESERVED_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_CHARS,
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(known_parts(texts, alphabet), trainer)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in pieces[NUM_RESERVED_TOKENS + len(alphabet) :]]
