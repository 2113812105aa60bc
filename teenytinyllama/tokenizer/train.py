"""The Portuguese tokenizer: byte-pair encoding with byte fallback, equal id for id to SentencePiece and llama.cpp.

Rules, all of them held by the vocabulary itself and so independent of who loads it: a space is always `▁` at the
start of a word, with no prefix added to the text; no piece crosses a space except superwords, which join function
words only; no piece has three digits in a row; a character outside the alphabet becomes its UTF-8 bytes (`<0x00>` to
`<0xFF>`), so there is no unknown text and decoding is exact on any string. One exception: a literal `▁` (U+2581)
decodes to a space, because it is the mark for one. There is no normalizer: texts are composed (NFC) where they are
read, documents and prompts alike (`compose`).

Learn the entries of the tokenizer from a sample: pieces of words first, then superwords.

The tokenizer stage: train on the training documents, audit on the held-out ones, write a folder.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_disk_space, ensure_folder
from ..data.sources import Corpus, CorpusConfig, Document, Split
from ..energy.emissions import GRID_KEYS, GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import measured_into
from ..stage_folder import (
    AUDIT_NAME,
    EMISSIONS_NAME,
    LEDGER_NAME,
    MANIFEST_NAME,
    read_manifest,
    sha256_json,
    write_json,
    write_manifest,
)
from .audit import audit_tokenizer, format_audit
from .encode import (
    ENTRIES_PER_SUPERWORD,
    default_num_superwords,
    function_word_pieces,
    learn_superwords,
    superword_parts,
    tokenizer_fingerprint,
)
from .files import (
    ALWAYS_IN_ALPHABET,
    BOS_ID,
    BOS_TOKEN,
    EOS_TOKEN,
    NUM_RESERVED_TOKENS,
    PAD_TOKEN,
    RESERVED_TOKENS,
    SPACE_MARK,
    SPECIAL_TOKENS,
    UNK_TOKEN,
    choose_alphabet,
    keep_reachable,
    known_parts,
    list_merges,
    number_entries,
    split_around_superwords,
    split_at_spaces,
)
from .sampling import TextSample, TextWithSource, sample_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from .sampling import TextSample


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
    if _is_done(output, sha256_json(plan)):
        print(f"{output} already holds this tokenizer")
        return output
    if corpus.split_exception:
        print(corpus.split_exception.note)
    ensure_disk_space("output_dir", output, 50_000_000, "Free some space or choose another disk.")
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
    write_manifest(output, "tokenizer", content)
    print(f"tokenizer and {AUDIT_NAME} in {output}")
    return output


def _learn(config: TokenizerConfig, corpus: Corpus) -> "tuple[PreTrainedTokenizerBase, TextSample, dict[str, Any]]":
    """Return the tokenizer, the sample that it learnt from, and its audit."""
    from .sampling import sample_texts

    sample = sample_texts(_documents(corpus, "train", "sampling"), config.max_bytes, config.seed)
    seen, kept = sum(sample.seen_bytes.values()), sum(sample.kept_bytes.values())
    ensure(kept, f"inputs={', '.join(config.inputs)}: hold no training document with text.")
    print(f"learning {config.vocab_size:,} entries from {kept / 1e6:.1f} of {seen / 1e6:.1f} MB of training text")
    tokenizer = train_tokenizer(sample, config.vocab_size, num_superwords=config.num_superwords)
    held_out = _up_to(_documents(corpus, "validation", "auditing"), config.audit_bytes)
    audit = audit_tokenizer(tokenizer, held_out, allow_none=True)
    return tokenizer, sample, audit


def _is_done(output: Path, plan_sha256: str) -> bool:
    ensure_folder("output_dir", output)
    if (output / MANIFEST_NAME).exists():
        found = read_manifest("output_dir", output, "tokenizer", "Choose another folder.")
        ensure(
            found["plan_sha256"] == plan_sha256,
            f"output_dir={output}: holds a tokenizer of other inputs or settings. Choose another folder, or delete it.",
        )
        return True
    own = {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        AUDIT_NAME,
        EMISSIONS_NAME,
        LEDGER_NAME,
    }
    others = sorted({path.name for path in output.iterdir()} - own) if output.is_dir() else []
    ensure(not others, f"output_dir={output}: is not empty ({', '.join(others[:3])}). Choose an empty or new folder.")
    return False


def _documents(corpus: Corpus, split: Split, description: str) -> Iterator[Document]:
    from tqdm import tqdm

    documents: Any = tqdm(corpus.documents(), desc=description, unit=" documents", mininterval=1.0, disable=None)
    return (document for found, document in documents if found == split)


def _up_to(documents: Iterator[Document], max_bytes: int) -> Iterator[Document]:
    """Yield documents until one would go beyond `max_bytes`; the first one in any case."""
    total = 0
    for document in documents:
        size = len(document.text.encode())
        if total and total + size > max_bytes:
            return
        total += size
        yield document
