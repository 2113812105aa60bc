"""The tokenizer stage: learn a tokenizer on the training documents, audit it on the held-out ones, write a folder.

The tokenizer is byte-pair encoding with byte fallback, equal id for id to SentencePiece and llama.cpp (`files` has its
rules). An audit says how well a tokenizer fits texts: fertility, bytes, unknown text, exact round trips, use of the
vocabulary.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import ensure, ensure_disk_space
from ..data.sources import Corpus, CorpusConfig, Document
from ..energy.emissions import GRID_KEYS, GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import measured_into
from ..progress import progress
from ..stage_folder import AUDIT_NAME, EMISSIONS_NAME, LEDGER_NAME, StageFolder, sha256_json, write_json
from .encode import encode_texts, in_batches, tokenizer_fingerprint
from .files import (
    ALWAYS_IN_ALPHABET,
    BOS_TOKEN,
    EOS_TOKEN,
    NUM_RESERVED_TOKENS,
    PAD_TOKEN,
    SENTENCEPIECE_NAME,
    UNK_TOKEN,
    build_backend,
)
from .learn import (
    ENTRIES_PER_SUPERWORD,
    TextSample,
    TextWithSource,
    choose_alphabet,
    learn_entries,
    read_item,
    sample_texts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    alphabet = choose_alphabet(progress(sample.texts(), "counting letters", "pieces", total=len(sample.pieces)))
    first_piece = NUM_RESERVED_TOKENS + len(alphabet)
    ensure(vocab_size >= first_piece, _too_small(vocab_size, first_piece))
    vocabulary = learn_entries(sample, alphabet, vocab_size, num_superwords)
    ensure(
        len(vocabulary) == vocab_size,
        f"vocab_size={vocab_size}: larger than these texts support; they give {len(vocabulary)} entries. "
        f"Use at most {len(vocabulary)}, or more text.",
    )
    return _for_transformers(vocabulary)


def _too_small(vocab_size: int, smallest: int) -> str:
    return (
        f"vocab_size={vocab_size}: too small for {NUM_RESERVED_TOKENS} reserved entries and an alphabet of "
        f"{smallest - NUM_RESERVED_TOKENS} characters. Use at least {smallest}."
    )


def _for_transformers(vocabulary: list[str]) -> "PreTrainedTokenizerBase":
    """Return the transformers tokenizer of a finished vocabulary."""
    from .files import PreTrainedTokenizerFast

    build: Any = PreTrainedTokenizerFast  # transformers leaves its constructor untyped
    tokenizer: PreTrainedTokenizerBase = build(
        tokenizer_object=build_backend(vocabulary),
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


# What a start that was killed while it wrote leaves.
_OWN_FILES = frozenset({"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", SENTENCEPIECE_NAME,
                        AUDIT_NAME, EMISSIONS_NAME, LEDGER_NAME})  # fmt: skip
_NOT_OF_THE_PLAN = {"output_dir", "encoding"}  # the latter is there by `Corpus.choices`, where it is given


@dataclass
class TokenizerConfig(GridSettings, CorpusConfig):
    """`ttl tokenizer`: which documents, how many entries."""

    output_dir: str = field(default="", metadata={"help": "folder for the tokenizer"})
    vocab_size: int = field(default=32_000, metadata={"help": "entries, reserved tokens included"})
    max_bytes: int = field(
        default=1_000_000_000,
        metadata={"help": "bytes of text learnt from: a seeded sample at equal rates from all sources"},
    )
    num_superwords: int | None = field(
        default=None,
        metadata={"help": "most entries for sequences of function words (`de um`); 0: none; null: one entry in 32"},
    )
    audit_bytes: int = field(default=20_000_000, metadata={"help": "bytes of held-out text audited at most"})
    seed: int = field(default=0, metadata={"help": "of the sample"})

    def __post_init__(self) -> None:
        """Refuse values that no tokenizer can have.

        Raises:
            InputError: no output folder, a number that is not positive, or a negative number of superwords.
        """
        super().__post_init__()
        ensure(self.output_dir, "output_dir: missing. Give a folder for the tokenizer.")
        for name in ("vocab_size", "max_bytes", "audit_bytes"):
            ensure(getattr(self, name) > 0, f"{name}={getattr(self, name)}: must be positive.")
        ensure(
            self.num_superwords is None or self.num_superwords >= 0,
            f"num_superwords={self.num_superwords}: must be 0 or more. Leave it out for one entry in 32.",
        )


def build_tokenizer(config: TokenizerConfig) -> Path:
    """Train, save and audit a tokenizer; a second call with the same inputs finds it done.

    Raises:
        InputError: bad inputs, a folder that holds something else, or a vocabulary that the text cannot fill.
    """
    output = Path(config.output_dir)
    check_energy(config)
    corpus = Corpus(config)
    deciding = {name: value for name, value in asdict(config).items() if name not in GRID_KEYS | _NOT_OF_THE_PLAN}
    plan = {**deciding, "hashes": corpus.fingerprint(), **corpus.choices()}
    place = StageFolder(output, "tokenizer", "a tokenizer", _OWN_FILES)
    if place.is_done(sha256_json(plan)):
        print(f"{output} already holds this tokenizer")
        return output
    if corpus.split_exception:
        print(corpus.split_exception.note)
    ensure_disk_space("output_dir", output, 50_000_000, "Free some space or choose another disk.")
    with place.held("training a tokenizer into it"):
        # Nothing is written into the folder before the tokenizer is known to work.
        with measured_into(output, config):
            tokenizer, sample, audit = _learn(config, corpus)
        tokenizer.save_pretrained(output)
        write_json(output / AUDIT_NAME, audit)
        print(format_audit(audit) if audit["overall"]["documents"] else "no held-out document to audit with")
        content = {
            "config": asdict(config),
            "plan_sha256": sha256_json(plan),
            "inputs": plan["hashes"],
            "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
            "vocab_size": len(tokenizer),
            "sample": {"seen_bytes": sample.seen_bytes, "kept_bytes": sample.kept_bytes},
        }
        place.finish(content)
    print(f"tokenizer and {AUDIT_NAME} in {output}")
    return output


def _learn(config: TokenizerConfig, corpus: Corpus) -> "tuple[PreTrainedTokenizerBase, TextSample, dict[str, Any]]":
    """Return the tokenizer, the sample that it learnt from, and its audit."""
    held_out: list[Document] = []
    documents = _training_documents(corpus, held_out, config.audit_bytes)
    sample = sample_texts(documents, config.max_bytes, config.seed)
    seen, kept = sum(sample.seen_bytes.values()), sum(sample.kept_bytes.values())
    ensure(kept, f"inputs={', '.join(config.inputs)}: hold no training document with text.")
    print(f"learning {config.vocab_size:,} entries from {kept / 1e6:.1f} of {seen / 1e6:.1f} MB of training text")
    tokenizer = train_tokenizer(sample, config.vocab_size, num_superwords=config.num_superwords)
    audit = audit_tokenizer(tokenizer, progress(held_out, "auditing", "documents"), allow_none=True)
    return tokenizer, sample, audit


def _training_documents(corpus: Corpus, held_out: list[Document], audit_bytes: int) -> Iterator[Document]:
    """Yield the training documents of a corpus, and collect in the same reading the held-out ones to be audited.

    Args:
        corpus: which documents.
        held_out: filled with held-out documents until one would go beyond `audit_bytes`; with the first in any case.
        audit_bytes: the most bytes of held-out text.
    """
    left: float = math.inf  # any first document fits
    for split, document in corpus.documents("reading documents"):
        if split == "train":
            yield document
            continue
        size = len(document.text.encode())
        if size > left:
            left = -1
        else:
            left = (audit_bytes if left == math.inf else left) - size
            held_out.append(document)


BATCH_BYTES = 1_000_000  # of text encoded at a time, which bounds the memory
EXAMPLE_CHARS = 80
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass
class _Counts:
    """What an audit counts of the documents of one source, or of all."""

    used: NDArray[np.bool_]  # (entries of the vocabulary,)
    numbers: Counter[str] = field(default_factory=Counter)
    first_failure: dict[str, str] | None = None

    def add(self, other: "_Counts") -> None:
        """Add the counts of another source."""
        self.used |= other.used
        self.numbers += other.numbers
        self.first_failure = self.first_failure or other.first_failure


@dataclass
class _Vocabulary:
    """The entries of a tokenizer, and which of them an audit counts apart."""

    size: int
    unknown_id: int | None
    is_byte: NDArray[np.bool_]  # (size,)
    is_ordinary: NDArray[np.bool_]  # (size,): neither special nor a byte


def audit_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str | TextWithSource], allow_none: bool = False
) -> dict[str, dict[str, Any]]:
    """Measure a tokenizer on texts, per source and overall. Works with any transformers tokenizer.

    Streams: no more than about 1 MB of text is held, whatever the input.

    Args:
        tokenizer: ours or a foreign one; special strings in the texts are read as plain text.
        texts: `str` items, or documents with `.text` and `.source`.
        allow_none: no text gives a row of zeros instead of an error.

    Returns:
        `{"overall": row, "sources": {source: row}}`, ready for JSON. A row has `documents`, `words` (separated by
        whitespace, as `str.split`), `bytes` (UTF-8), `tokens`, `tokens_per_word`, `bytes_per_token`, `unknown_rate`
        and `byte_token_rate` (shares of the tokens), `round_trip_failures`, `first_failure` (text, decoded; around
        the first difference) and `vocabulary_use` (share of the entries that are neither special nor bytes).
        Ratios without a denominator are None.

    Raises:
        InputError: no text (without `allow_none`), an item that is not text, or invalid Unicode.
    """
    vocabulary = _describe_vocabulary(tokenizer)
    sources: dict[str, _Counts] = {}
    ensure(not isinstance(texts, str), "texts: got one str, and an iterator of str is needed. Write [text].")
    items = (read_item(item, position) for position, item in enumerate(texts))
    for batch in in_batches(items, lambda item: len(item[1]), BATCH_BYTES):
        for (text, data, source), ids in zip(batch, encode_texts(tokenizer, [item[0] for item in batch]), strict=True):
            counts = sources.setdefault(source, _Counts(np.zeros(vocabulary.size, dtype=bool)))
            counts.numbers["bytes"] += len(data)
            _count(counts, vocabulary, tokenizer, text, np.asarray(ids, dtype=np.int64))
    total = _Counts(np.zeros(vocabulary.size, dtype=bool))
    for counts in sources.values():
        total.add(counts)
    ensure(sources or allow_none, "texts: nothing to audit (no item). Check the path and the filters of the input.")
    return {
        "overall": _row(total, vocabulary),
        "sources": {name: _row(counts, vocabulary) for name, counts in sources.items()},
    }


def _describe_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> _Vocabulary:
    entries = tokenizer.get_vocab()
    size = max([len(tokenizer) - 1, *entries.values()]) + 1  # ids can have gaps
    is_byte, is_ordinary = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for token, index in entries.items():
        is_byte[index] = _BYTE_TOKEN.fullmatch(token) is not None
        is_ordinary[index] = not is_byte[index]
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    is_ordinary[[*special, *tokenizer.all_special_ids]] = False
    return _Vocabulary(size, tokenizer.unk_token_id, is_byte, is_ordinary)


def _count(
    counts: _Counts, vocabulary: _Vocabulary, tokenizer: "PreTrainedTokenizerBase", text: str, ids: NDArray[np.int64]
) -> None:
    """Add one document to the counts (its bytes are added by the caller)."""
    decoded = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    counts.numbers.update(
        documents=1,
        words=len(text.split()),
        tokens=len(ids),
        unknown=0 if vocabulary.unknown_id is None else int((ids == vocabulary.unknown_id).sum()),
        byte_tokens=int(vocabulary.is_byte[ids].sum()),
        failures=int(decoded != text),
    )
    counts.used[ids] = True
    if decoded != text:
        counts.first_failure = counts.first_failure or _first_difference(text, decoded)


def _first_difference(text: str, decoded: str) -> dict[str, str]:
    pairs = enumerate(zip(text, decoded, strict=False))
    at = next((place for place, (left, right) in pairs if left != right), min(len(text), len(decoded)))
    start = max(0, at - EXAMPLE_CHARS // 2)
    return {"text": text[start : start + EXAMPLE_CHARS], "decoded": decoded[start : start + EXAMPLE_CHARS]}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _row(counts: _Counts, vocabulary: _Vocabulary) -> dict[str, Any]:
    numbers = counts.numbers
    return {
        **{name: numbers[name] for name in ("documents", "words", "bytes", "tokens")},
        "tokens_per_word": _ratio(numbers["tokens"], numbers["words"]),
        "bytes_per_token": _ratio(numbers["bytes"], numbers["tokens"]),
        "unknown_rate": _ratio(numbers["unknown"], numbers["tokens"]),
        "byte_token_rate": _ratio(numbers["byte_tokens"], numbers["tokens"]),
        "round_trip_failures": numbers["failures"],
        "first_failure": counts.first_failure,
        "vocabulary_use": _ratio(int((counts.used & vocabulary.is_ordinary).sum()), int(vocabulary.is_ordinary.sum())),
    }


def format_audit(audit: dict[str, dict[str, Any]]) -> str:
    """Return the audit as a table of plain text, one line a source and one overall, then the first failure if any."""
    heads = ("source", "documents", "words", "tokens", "tok/word", "bytes/tok", "unk %", "bytes %", "failed", "vocab %")
    lines: list[tuple[str, ...]] = [heads]
    for name, row in [*sorted(audit["sources"].items()), ("overall", audit["overall"])]:
        lines.append(
            (
                name,
                *(f"{row[key]:,}" for key in ("documents", "words", "tokens")),
                *(_number(row[key], 1, 3) for key in ("tokens_per_word", "bytes_per_token")),
                *(_number(row[key], 100, 3) for key in ("unknown_rate", "byte_token_rate")),
                f"{row['round_trip_failures']:,}",
                _number(row["vocabulary_use"], 100, 1),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    failure = audit["overall"]["first_failure"]
    if failure:
        table.append(f"first failure: {failure['text']!r} decodes to {failure['decoded']!r}")
    return "\n".join(table)


def _number(value: float | None, scale: float, decimals: int) -> str:
    return "-" if value is None else f"{value * scale:.{decimals}f}"
