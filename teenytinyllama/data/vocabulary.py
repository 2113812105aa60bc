"""The tokenizer stage: train on the training documents, audit on the held-out ones, write a folder."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_disk_space, ensure_folder
from ..emissions import EMISSIONS_NAME
from ..grid import GRID_KEYS, GridSettings
from ..ledger import LEDGER_NAME
from ..manifest import MANIFEST_NAME, read_manifest, sha256_json, write_json, write_manifest
from ..meter import check_energy
from ..recorder import measured_into
from .sources import Corpus, CorpusConfig, Document, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..tokenizer import TextSample

AUDIT_NAME = "audit.json"
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
    from ..tokenizer import format_audit, tokenizer_fingerprint

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
    from ..tokenizer import audit_tokenizer, sample_texts, train_tokenizer

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
