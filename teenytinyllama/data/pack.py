"""Packing: documents become rows of tokens that training maps into memory.

    documents   <s> a a a </s>   <s> b b b b b </s>   <s> c </s>
    stream      s a a a e s b b b b b e s c e
    rows of 4   [s a a a] [e s b b] [b b b e]  (the last, partial row of the corpus is dropped)

A packed folder holds, all readable with numpy alone:

* `train.npy`: (rows, context) token ids, uint16 if the vocabulary allows, rows shuffled once by `seed`;
* `validation.npy`: the held-out documents one after another, each `<s> … </s>`, never cut;
* `validation_documents.npy`: offset, tokens, bytes of text and source of each of them;
* `run.json`: what made it, with counts, licences and hashes. Written last.

There are no labels: for a causal model they are the inputs, and the collator makes them.

While a folder is being packed, its unfinished part lies in `.partial`: files of tokens that only grow, and a journal of
the chunks of documents that are done. After a kill, the same command goes on behind the last of them.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, available_cores, ensure, ensure_disk_space
from ..corpus.provenance import corpora_of
from ..energy.emissions import GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import StageMeter, move_energy_files
from ..progress import progress
from ..stage_folder import (
    EMISSIONS_NAME,
    JOURNAL_NAME,
    LEDGER_NAME,
    StageFolder,
    parse_record,
    sha256_file,
    sha256_json,
)
from .sources import Corpus, CorpusConfig, Document, count_document
from .workers import Chunk, DocumentEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_STREAMS = ("train", "validation", "documents")  # the files of an unfinished packing, NAME.bin
DOCUMENT_DTYPE = np.dtype([("offset", "<i8"), ("num_tokens", "<i8"), ("num_bytes", "<i8"), ("source", "<i4")])


def is_journal(folder: Path) -> bool:
    """Return whether a folder is the unfinished part of a packing: its first file is the plan, which holds a hash."""
    plan = folder / "plan"
    if folder.is_symlink() or not plan.is_file():
        return False
    return bool(re.fullmatch("[0-9a-f]{64}", plan.read_text(encoding="utf-8", errors="replace")))


@dataclass
class Totals:
    """Counts over the documents packed so far, written after each chunk: a kill loses the work on one chunk."""

    chunks: int = 0
    documents: int = 0  # of both splits, in the order of the corpus: after a kill, packing goes on behind them
    train_tokens: int = 0
    validation_tokens: int = 0
    # The last training documents (source, tokens, bytes), of which the end of the corpus may drop some.
    tail: list[tuple[str, int, int]] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)  # of the token files, so that damage is noticed after a kill
    sources: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"train": {}, "validation": {}})

    def without_tail(self, dropped_tokens: int) -> dict[str, dict[str, Any]]:
        """Return the records of the training sources without the last tokens, which make no whole row.

        A document that is dropped whole counts no longer; one that is cut keeps its bytes.

        Args:
            dropped_tokens: at the end; fewer than those of `tail`.
        """
        records = {name: dict(record) for name, record in self.sources["train"].items()}
        for source, num_tokens, num_bytes in reversed(self.tail):
            taken = min(num_tokens, dropped_tokens)
            dropped_tokens -= taken
            records[source]["tokens"] -= taken
            if taken == num_tokens:
                records[source]["documents"] -= 1
                records[source]["bytes"] -= num_bytes
            if not dropped_tokens:
                break
        return records


class Journal:
    """The unfinished folder `.partial`: token files that only grow, and one line per finished chunk.

    A line holds the totals, and the records of those sources alone that the chunk added to: there can be as many
    sources as documents. Where the token files are not as the last line says, packing starts from the beginning.
    """

    def __init__(self, folder: Path, plan: str, dtype: Any, context: int) -> None:
        self.folder, self.dtype, self.context = folder, dtype, context
        self.totals, self.source_ids = Totals(), dict[str, int]()
        marks = folder / JOURNAL_NAME
        if not (folder / "plan").exists() or (folder / "plan").read_text() != plan:
            if is_journal(folder):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan").write_text(plan)
        lines = marks.read_bytes().split(b"\n") if marks.exists() else []
        whole = [line for line in lines[:-1] if line]  # a kill can leave a last line without its end
        try:
            self._read(whole)
            self.digests = {name: self._checked(name) for name in _STREAMS}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(
                f"warning    what was packed so far in {folder} is damaged ({error}): packing begins anew", flush=True
            )
            self.totals, self.source_ids, whole = Totals(), {}, []
            self.digests = {name: hashlib.sha256() for name in _STREAMS}
        marks.write_bytes(b"".join(line + b"\n" for line in whole))
        self.files = {name: self._open(name) for name in _STREAMS}
        self.marks = marks.open("a")

    def _read(self, lines: list[bytes]) -> None:
        """Add up the marks.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: one is damaged.
        """
        for line in lines:
            mark = parse_record(line)
            for split, records in self.totals.sources.items():
                records.update(mark["sources"][split])
            self.totals = Totals(**{**mark, "sources": self.totals.sources})
        self.source_ids = {name: place for place, name in enumerate(self.totals.sources["validation"])}

    def _length(self, name: str) -> int:
        """Return the bytes of a token file that the marks vouch for."""
        return int({
            "train": self.totals.train_tokens * np.dtype(self.dtype).itemsize,
            "validation": self.totals.validation_tokens * np.dtype(self.dtype).itemsize,
            "documents": sum(r["documents"] for r in self.totals.sources["validation"].values())
            * DOCUMENT_DTYPE.itemsize,
        }[name])  # fmt: skip

    def _checked(self, name: str) -> "hashlib._Hash":
        """Return the hash of a token file so far.

        Raises:
            ValueError: the file is shorter than its marks, or holds something else.
        """
        digest, path, left = hashlib.sha256(), self.folder / f"{name}.bin", self._length(name)
        if left and (not path.is_file() or path.stat().st_size < left):
            raise ValueError(f"{path.name} is shorter than its journal says")
        if left:
            with path.open("rb") as file:
                while part := file.read(min(left, 1 << 22)):
                    digest.update(part)
                    left -= len(part)
        if self.totals.hashes.get(name, digest.hexdigest()) != digest.hexdigest():
            raise ValueError(f"{path.name} is not as its journal says")
        return digest

    def _open(self, name: str) -> Any:
        path = self.folder / f"{name}.bin"
        path.touch()
        os.truncate(path, self._length(name))
        return path.open("ab")

    def _write(self, name: str, content: bytes) -> None:
        self.files[name].write(content)
        self.digests[name].update(content)

    def append(self, chunk: list[tuple[str, Document]], encoded: list[NDArray[Any]]) -> None:
        """Add a chunk's documents to the token files and mark it done."""
        totals = self.totals
        touched: dict[str, dict[str, Any]] = {split: {} for split in totals.sources}
        for (split, document), ids in zip(chunk, encoded, strict=True):
            num_bytes = len(document.text.encode())
            count_document(totals.sources[split], document.source, document.license, bytes=num_bytes, tokens=len(ids))
            touched[split][document.source] = totals.sources[split][document.source]
            self._write(split, ids.tobytes())
            if split == "train":
                totals.train_tokens += len(ids)
                totals.tail.append((document.source, len(ids), num_bytes))
                continue
            source_id = self.source_ids.setdefault(document.source, len(self.source_ids))
            row = (totals.validation_tokens, len(ids), num_bytes, source_id)
            self._write("documents", np.array([row], dtype=DOCUMENT_DTYPE).tobytes())
            totals.validation_tokens += len(ids)
        totals.documents += len(chunk)
        totals.chunks += 1
        totals.hashes = {name: digest.hexdigest() for name, digest in self.digests.items()}
        self._shorten_tail()
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.marks.write(json.dumps({**vars(totals), "sources": touched}) + "\n")
        self.marks.flush()

    def _shorten_tail(self) -> None:
        """Keep the last training documents that hold the tokens of a row: no more than these can be dropped."""
        tail, tokens, place = self.totals.tail, 0, 0
        for place in range(len(tail) - 1, -1, -1):
            tokens += tail[place][1]
            if tokens >= self.context:
                break
        del tail[:place]

    def close(self) -> None:
        """Close all files."""
        for file in [*self.files.values(), self.marks]:
            file.close()


CHUNK_BYTES = 4_000_000  # text encoded between two marks of progress: what a kill can lose, a second or two
_BYTES_PER_TOKEN = 3  # of Portuguese text, at least, for any tokenizer that suits it
_ROWS_AT_ONCE = 1000  # moved to their shuffled places
SMALL_BYTES = 8_000_000  # below, starting worker processes takes longer than they save


@dataclass
class PackConfig(GridSettings, CorpusConfig):
    """`ttl pack`: which documents, with which tokenizer, into rows of which length."""

    tokenizer: str = field(default="", metadata={"help": "folder or Hub id of the tokenizer (`ttl tokenizer`)"})
    output_dir: str = field(default="", metadata={"help": "folder for the packed rows"})
    context: int = field(default=2048, metadata={"help": "tokens a row: the context that the model is trained on"})
    seed: int = field(default=42, metadata={"help": "of the one shuffle of the rows"})
    num_workers: int | None = field(
        default=None, metadata={"help": "processes that encode; null: one a core. The rows are the same"}
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be packed.

        Raises:
            InputError: no tokenizer, no output folder, a row shorter than 8 tokens, or no worker.
        """
        super().__post_init__()
        ensure(self.tokenizer, "tokenizer: missing. Give the folder that `ttl tokenizer` wrote, or a Hub id.")
        ensure(self.output_dir, "output_dir: missing. Give a folder for the packed rows.")
        ensure(self.context >= 8, f"context={self.context}: a row needs at least 8 tokens. 2048 is usual.")
        ensure(
            self.num_workers is None or self.num_workers >= 1,
            f"num_workers={self.num_workers}: must be at least 1. Leave it out for one process a core.",
        )


def _chunks(documents: Iterator[tuple[str, Document]]) -> Iterator[Chunk]:
    """Yield the documents in chunks of about `CHUNK_BYTES` of text."""
    chunk: Chunk = []
    size = 0
    for item in documents:
        chunk.append(item)
        size += len(item[1].text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _load_tokenizer(config: PackConfig) -> "PreTrainedTokenizerBase":
    from ..models import load_tokenizer

    tokenizer = load_tokenizer("tokenizer", config.tokenizer)
    ensure(
        tokenizer.eos_token_id is not None,
        f"tokenizer={config.tokenizer}: has no end token to tell documents apart. Use one with eos_token.",
    )
    return tokenizer


def pack(config: PackConfig) -> Path:
    """Pack a corpus and return the folder; a second call with the same inputs finds it done, and a kill is resumed.

    Raises:
        InputError: bad inputs, a folder that holds other rows, no room on the disk, or no document at all.
    """
    from ..tokenizer.encode import tokenizer_fingerprint

    output = Path(config.output_dir)
    check_energy(config)
    corpus = Corpus(config)
    tokenizer = _load_tokenizer(config)
    inputs = corpus.fingerprint()
    plan = {
        "inputs": inputs,
        "order_of_inputs": list(inputs),  # a plan's keys are sorted before it is hashed, and a killed pack counts on it
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        **{key: getattr(config, key) for key in ("context", "seed", "validation_fraction", "text_column", "txt_unit")},
        "has_validation_inputs": bool(config.validation_inputs),
    }
    if config.validation_inputs:
        plan["num_training_files"] = len(corpus.files)  # the others are held out
    if config.metadata_column != PackConfig.metadata_column:
        plan["metadata_column"] = config.metadata_column
    plan |= corpus.choices()
    place = packed_folder(output)
    if place.is_done(sha256_json(plan)):
        print(f"{output} already holds these rows")
        return output
    num_documents, num_bytes = _check_documents(corpus)
    if corpus.split_exception:
        print(corpus.split_exception.note)
    # Not len(tokenizer): a tokenizer can leave out ids.
    dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values(), default=0) < 2**16 else np.uint32)
    needed_bytes = 2 * dtype.itemsize * num_bytes // _BYTES_PER_TOKEN  # the stream of tokens, and the shuffled rows
    ensure_disk_space("output_dir", output, needed_bytes, "Free some space or choose another disk.")
    num_workers = config.num_workers or (1 if num_bytes < SMALL_BYTES else available_cores())
    with place.held("packing into it"):
        journal = Journal(output / ".partial", sha256_json(plan), dtype, config.context)
        if journal.totals.chunks:
            print(f"going on after {journal.totals.documents} of {num_documents} documents")
        with StageMeter(journal.folder, config) as energy:
            with DocumentEncoder(tokenizer, dtype, num_workers) as encoder:
                _encode_all(corpus, encoder, journal, num_documents, energy)
            journal.close()
        # Not of the plan: a passport that is written again changes no row.
        corpora = corpora_of([file.path for file in (*corpus.files, *corpus.validation_files)], set(inputs.values()))
        told = {"plan": plan, "plan_sha256": sha256_json(plan), **({"corpora": corpora} if corpora else {})}
        _finish(place, config, journal, told, len(tokenizer))
    return output


def packed_folder(output: Path) -> StageFolder:
    """Return the output folder of `ttl pack`, with the names that an unfinished packing leaves in it."""
    unfinished = output / ".partial"
    if is_journal(unfinished):
        rows = ("train.npy", "validation.npy", "validation_documents.npy")
        return StageFolder(output, "pack", "rows", frozenset({".partial", *rows, EMISSIONS_NAME, LEDGER_NAME}))
    # What lies there was not made here, whatever its name; but for the empty folder that a kill leaves.
    is_empty = unfinished.is_dir() and not any(unfinished.iterdir())
    return StageFolder(output, "pack", "rows", frozenset({".partial"} if is_empty else ()))


def _check_documents(corpus: Corpus) -> tuple[int, int]:
    """Read all documents before anything is written, and return how many there are and the bytes of their text.

    Bad text stops the work before it starts, and the bytes say whether the disk has room. To be encoded, the documents
    are read a second time: keeping them would take the memory or the disk of the whole corpus.

    Raises:
        InputError: a file cannot be read, or there is no document with text.
    """
    num_bytes, count = 0, {"train": 0, "validation": 0}
    for split, document in corpus.documents("checking documents"):
        count[split] += 1
        num_bytes += len(document.text.encode())
    where = ", ".join(corpus.config.inputs)
    ensure(count["train"], f"inputs={where}: hold no document with text.")
    held_out = ", ".join(corpus.config.validation_inputs or [])
    ensure(count["validation"] or not held_out, f"validation_inputs={held_out}: hold no document with text.")
    return sum(count.values()), num_bytes


def _encode_all(
    corpus: Corpus, encoder: DocumentEncoder, journal: Journal, num_documents: int, energy: StageMeter
) -> None:
    done = journal.totals.documents
    waiting = _chunks(itertools.islice(corpus.documents(), done, None))
    with progress(None, "packing", "documents", total=num_documents, done=done) as bar:
        for chunk, encoded in encoder.encode_chunks(waiting):
            journal.append(chunk, encoded)
            energy.tick()
            bar.update(len(chunk))


def _write_rows(stream: Path, target: Path, order: NDArray[Any], context: int, dtype: Any) -> None:
    """Write the rows of a stream of tokens in another order as a .npy file.

    Read and written with plain calls: the pages of mapped files would count as this process's memory.
    """
    row_bytes = context * np.dtype(dtype).itemsize
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False,
              "shape": (len(order), context)}  # fmt: skip
    with stream.open("rb") as source, target.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in progress(range(0, len(order), _ROWS_AT_ONCE), "shuffling", "thousand rows"):
            block = order[start : start + _ROWS_AT_ONCE].tolist()
            file.write(b"".join(os.pread(source.fileno(), row_bytes, row * row_bytes) for row in block))
        file.flush()
        os.fsync(file.fileno())


def _finish(place: StageFolder, config: PackConfig, journal: Journal, plan: dict[str, Any], vocab_size: int) -> None:
    """Shuffle the rows into place, write the validation arrays, then the manifest, then drop the unfinished folder."""
    totals, partial, output = journal.totals, journal.folder, place.path
    num_rows = totals.train_tokens // config.context
    if num_rows == 0:
        shutil.rmtree(partial)
        raise InputError(
            f"context={config.context}: the corpus has only {totals.train_tokens} training tokens, less than one row. "
            "Add text or choose a smaller context."
        )
    order = np.random.default_rng(config.seed).permutation(num_rows)
    _write_rows(partial / "train.bin", output / "train.npy.partial", order, config.context, journal.dtype)
    (output / "train.npy.partial").replace(output / "train.npy")
    np.save(output / "validation.npy", np.fromfile(partial / "validation.bin", dtype=journal.dtype))
    np.save(output / "validation_documents.npy", np.fromfile(partial / "documents.bin", dtype=DOCUMENT_DTYPE))
    files = ("train.npy", "validation.npy", "validation_documents.npy")
    dropped_tokens = totals.train_tokens - num_rows * config.context
    content = {
        "config": asdict(config),
        **plan,
        "tokenizer_sha256": plan["plan"]["tokenizer_sha256"],
        "vocab_size": vocab_size,
        "dtype": np.dtype(journal.dtype).name,
        "context": config.context,
        "num_rows": num_rows,
        "train_tokens": num_rows * config.context,
        "dropped_tokens": dropped_tokens,
        "validation_tokens": totals.validation_tokens,
        "sources": totals.without_tail(dropped_tokens),
        "validation_sources": totals.sources["validation"],
        "same_document": plan["plan"].get("split") == "same document",  # held out: the last part of the only document
        "hashes": {name: sha256_file(output / name) for name in files},
    }
    move_energy_files(partial, output)
    place.finish(content)
    shutil.rmtree(partial)
