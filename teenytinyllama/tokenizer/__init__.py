"""The Portuguese tokenizer: byte-pair encoding with byte fallback, equal id for id to SentencePiece and llama.cpp.

Rules, all of them held by the vocabulary itself and so independent of who loads it: a space is always `▁` at the
start of a word, with no prefix added to the text; no piece crosses a space except superwords, which join function
words only; no piece has three digits in a row; a character outside the alphabet becomes its UTF-8 bytes (`<0x00>` to
`<0xFF>`), so there is no unknown text and decoding is exact on any string. One exception: a literal `▁` (U+2581)
decodes to a space, because it is the mark for one. There is no normalizer: texts are composed (NFC) where they are
read, documents and prompts alike (`compose`).
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..checks import ensure
from .audit import audit_tokenizer, format_audit
from .encoding import (
    compose,
    encode_prompt,
    encode_texts,
    make_portable,
    tokenizer_fingerprint,
)
from .files import SENTENCEPIECE_NAME, finish_tokenizer
from .learning import learn_entries
from .reading import choose_alphabet
from .sampling import TextSample, TextWithSource, sample_texts
from .splitting import split_around_superwords, split_at_spaces
from .superwords import ENTRIES_PER_SUPERWORD, superword_parts
from .vocabulary import (
    ALWAYS_IN_ALPHABET,
    BOS_ID,
    BOS_TOKEN,
    BYTE_TOKENS,
    END_INSTRUCTION_ID,
    END_INSTRUCTION_TOKEN,
    EOS_ID,
    EOS_TOKEN,
    FIRST_BYTE_ID,
    INSTRUCTION_ID,
    INSTRUCTION_TOKEN,
    NUM_RESERVED_TOKENS,
    PAD_ID,
    PAD_TOKEN,
    SPACE_MARK,
    SPECIAL_TOKENS,
    UNK_ID,
    UNK_TOKEN,
    list_merges,
    number_entries,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BOS_ID",
    "BOS_TOKEN",
    "BYTE_TOKENS",
    "END_INSTRUCTION_ID",
    "END_INSTRUCTION_TOKEN",
    "EOS_ID",
    "EOS_TOKEN",
    "FIRST_BYTE_ID",
    "INSTRUCTION_ID",
    "INSTRUCTION_TOKEN",
    "NUM_RESERVED_TOKENS",
    "PAD_ID",
    "PAD_TOKEN",
    "SENTENCEPIECE_NAME",
    "SPECIAL_TOKENS",
    "UNK_ID",
    "UNK_TOKEN",
    "TextSample",
    "audit_tokenizer",
    "compose",
    "encode_prompt",
    "encode_texts",
    "finish_tokenizer",
    "format_audit",
    "make_portable",
    "sample_texts",
    "tokenizer_fingerprint",
    "train_tokenizer",
]

logger = logging.getLogger(__name__)


def train_tokenizer(
    texts: "Iterable[str | TextWithSource] | TextSample",
    vocab_size: int = 32_000,
    *,
    max_bytes: int = 1_000_000_000,
    seed: int = 0,
    num_superwords: int | None = None,
) -> "PreTrainedTokenizerBase":
    """Train the tokenizer on a sample of the texts.

    Same texts in the same order and same seed: same vocabulary, in any process.

    Args:
        texts: `str` items, documents with `.text` and `.source`, or a sample made by `sample_texts`.
        vocab_size: entries in all; `len(tokenizer)` is exactly this. Keep it a multiple of 128 for fast embeddings.
        max_bytes: the most text to train on, in bytes of UTF-8; ignored for a ready sample.
        seed: of the sampling; ignored for a ready sample.
        num_superwords: the most entries given to sequences of function words such as `▁de▁um`; 0 for none, None for one
            in 32.

    Returns:
        A fast tokenizer that adds `<s>` at the start, pads on the right and saves itself portably.

    Raises:
        InputError: no text, an item that is not text, invalid Unicode, `max_bytes` below 1, `vocab_size` too small for
            the reserved entries and the alphabet, or larger than the texts support, or a negative `num_superwords`.
    """
    ensure(
        num_superwords is None or num_superwords >= 0,
        f"num_superwords={num_superwords}: must be 0 or more. Leave it out for one entry in {ENTRIES_PER_SUPERWORD}.",
    )
    smallest = NUM_RESERVED_TOKENS + len(ALWAYS_IN_ALPHABET)  # known before anything is read
    ensure(vocab_size >= smallest, _too_small(vocab_size, smallest))
    sample = texts if isinstance(texts, TextSample) else sample_texts(texts, max_bytes, seed)
    kept, seen = sum(sample.kept_bytes.values()), sum(sample.seen_bytes.values())
    logger.info("training on %.1f MB of %.1f MB, %d sources", kept / 1e6, seen / 1e6, len(sample.seen_bytes))
    alphabet = choose_alphabet(sample.texts())
    first_piece = NUM_RESERVED_TOKENS + len(alphabet)
    ensure(vocab_size >= first_piece, _too_small(vocab_size, first_piece))
    vocabulary = learn_entries(sample, alphabet, vocab_size, num_superwords)
    ensure(
        len(vocabulary) == vocab_size,
        f"vocab_size={vocab_size}: larger than these texts support; they give {len(vocabulary)} entries. "
        f"Use at most {len(vocabulary)}, or more text.",
    )
    return _wrap(_build_backend(vocabulary))


def _too_small(vocab_size: int, smallest: int) -> str:
    return (
        f"vocab_size={vocab_size}: too small for {NUM_RESERVED_TOKENS} reserved entries and an alphabet of "
        f"{smallest - NUM_RESERVED_TOKENS} characters. Use at least {smallest}."
    )


def _build_backend(vocabulary: list[str]) -> "Tokenizer":
    """Return the Rust tokenizer of a finished vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    backend = Tokenizer(
        models.BPE(
            vocab=number_entries(vocabulary),
            merges=list_merges(vocabulary),
            unk_token=UNK_TOKEN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # No rule for digits or superwords here: the vocabulary holds them. Splitting changes no id either, but lets the
    # model keep the ids of words it has seen.
    backend.pre_tokenizer = split_around_superwords() if superword_parts(vocabulary) else split_at_spaces()
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN}:0 $A:0",
        pair=f"{BOS_TOKEN}:0 $A:0 {BOS_TOKEN}:1 $B:1",
        special_tokens=[(BOS_TOKEN, BOS_ID)],
    )
    # The byte tokens are left out on purpose: as added tokens, a typed "<0x41>" would become a byte.
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


def _wrap(backend: "Tokenizer") -> "PreTrainedTokenizerBase":
    """Return the transformers tokenizer around the backend."""
    from .portable import PreTrainedTokenizerFast

    build: Any = PreTrainedTokenizerFast  # transformers leaves its constructor untyped
    tokenizer: PreTrainedTokenizerBase = build(
        tokenizer_object=backend,
        unk_token=UNK_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,  # read by LlamaTokenizer, should someone load the folder with that class
        model_input_names=["input_ids", "attention_mask"],  # else transformers 4 adds token_type_ids
    )
    return tokenizer
