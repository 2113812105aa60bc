"""The phases of the corpus stage: what one task of each does, from a shard of a source to a shard of the corpus.

    clean       per shard: documents through the chain of steps; their fingerprints
    duplicates  once: which documents repeat others, over all sources
    phrases     per shard: how often words of evaluation items stand in it, so that common phrases do not count
    finish      per shard: without duplicates, toxic documents and passages of evaluation items; tokens counted
    mix         once: every document as often as the weights want, in parquet shards

A phase writes into a folder of its own, each file under another name until it is whole. Each function here works on one
task and can be called again: it makes the same files.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import build, load_yaml
from ..checks import ensure
from ..cleaning.toxicity import ToxicityConfig, ToxicityScorer, judge
from ..cleaning.verdict import Drop
from ..data.sources import is_held_out
from ..passport.licences import document_licence
from ..passport.looks import Tracer
from ..passport.text_statistics import TextStatistics, year_of
from ..stage_folder import write_json
from .chain import build_chain, duplicates_config, evaluation_index
from .config import BuildConfig, nested
from .decontamination import EvaluationIndex, decontaminate
from .duplicates import find_duplicates, preference_order
from .funnel import Funnel, keep_aside
from .minhash import fingerprints
from .mixing import SourceShare, plan_shares, render_shares, repetitions
from .shards import BrokenRow, Draft, WorkShard, read_drafts, read_plan, save_array, text_hash

if TYPE_CHECKING:
    import pyarrow

CONFIG_FILE, PLAN_FILE = "config.yaml", "plan.json"
_BATCH_BYTES = 16 * 2**20  # of texts that are written, or scored, at once
_BYTES_PER_TOKEN = 4  # where no tokenizer counts: Portuguese in a vocabulary of 32,000


def load_config(work: str) -> BuildConfig:
    """Return the config that the phases below a folder work by."""
    config: BuildConfig = build(
        BuildConfig, load_yaml((Path(work) / CONFIG_FILE).read_text(encoding="utf-8"), CONFIG_FILE)
    )
    return config


def _schema() -> "pyarrow.Schema":
    import pyarrow

    text, number = pyarrow.large_string(), pyarrow.int64()
    return pyarrow.schema(
        [("text", text), ("source", pyarrow.string()), ("license", pyarrow.string()), ("url", pyarrow.string()),
         ("place", pyarrow.string()), ("variety", pyarrow.string()), ("hash", pyarrow.uint64()),
         ("cluster_size", number), ("tokens", number), ("year", pyarrow.int16())]
    )  # fmt: skip


class DocumentWriter:
    """Writes documents into one parquet file, which has its name once it is whole."""

    def __init__(self, path: Path, schema: "pyarrow.Schema") -> None:
        """Begin a file; the folder is made."""
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._file = pyarrow.parquet.ParquetWriter(self._partial, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self.total_bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        """Take the next document."""
        self._rows.append(row)
        size = len(row["text"].encode())
        self._bytes += size
        self.total_bytes += size
        if self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._file.write_batch(pyarrow.RecordBatch.from_pylist(self._rows, schema=self.schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Write what is left, and give the file its name."""
        self._flush()
        self._file.close()
        self._partial.replace(self.path)


def read_documents(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file of a phase, in order."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def _texts_of(path: Path) -> Iterator[str]:
    return (row["text"] for row in read_documents(path, ["text"]))


def clean_shard(task: int, work: str, clean: str) -> None:
    """Clean the documents of one shard: `NNNNN.parquet`, their fingerprints `NNNNN.npy`, the funnel `NNNNN.json`."""
    config, shard = load_config(work), read_plan(Path(work) / PLAN_FILE)[task]
    target, funnel = Path(clean) / f"{task:05d}", Funnel()
    chain, source = build_chain(config, shard.source), config.source_configs[shard.source]
    tracer = None if config.sample is None else Tracer()
    writer, broken = DocumentWriter(target.with_suffix(".parquet"), _schema()), list[BrokenRow]()
    for draft in read_drafts(shard, source):
        if isinstance(draft, BrokenRow):
            broken.append(draft)
            if tracer is not None:
                tracer.begin(shard.source, draft.place, "", draft.content).drop("read", Drop("broken row", 1, 0))
            sample = {"text": draft.content, "place": draft.place, "value": 1, "limit": 0}
            size = len(draft.content.encode("utf-8", "replace"))
            funnel.dropped(shard.source, "read", size, "broken row", sample, text_hash(draft.place))
            continue
        draft.license, note = document_licence(draft.license, source.license)
        size = len(draft.page or draft.text.encode())
        funnel.passed(shard.source, "read", size, size, {note: 1} if note else None)
        if tracer is not None:
            tracer.begin(shard.source, draft.place, draft.url, draft.text)
        if _passes(draft, chain, funnel, tracer):
            order = text_hash(draft.text)
            funnel.kept(shard.source, {"text": draft.text, "place": draft.place, "url": draft.url}, order)
            writer.add({"text": draft.text, "source": shard.source, "license": draft.license,
                        "url": draft.url, "place": draft.place, "variety": draft.notes.get("variety", ""),
                        "hash": order, "cluster_size": 1, "tokens": 0,
                        "year": draft.notes.get("year") or year_of({}, draft.text)})  # fmt: skip
    writer.close()
    keep_aside(target.with_suffix(".broken"), broken)
    if config.duplicates is not False:
        save_array(target.with_suffix(".npy"), fingerprints(_texts_of(writer.path), duplicates_config(config)[0]))
    if tracer is not None:
        tracer.write(target.with_suffix(".looks"))
    funnel.write(target.with_suffix(".json"))


def _passes(draft: Draft, chain: list[Any], funnel: Funnel, tracer: Tracer | None = None) -> bool:
    """Return whether a draft passes all steps, which are counted."""
    for step in chain:
        before, text_before = draft.page if draft.is_page else draft.text.encode(), draft.text
        drop, changes = step(draft)
        if tracer is not None:
            tracer.note(step, text_before, draft, drop, changes)
        if drop is not None:
            text = draft.text or before.decode("utf-8", "replace")
            sample = {"text": text, "place": draft.place, "url": draft.url, "value": drop.value, "limit": drop.limit}
            funnel.dropped(draft.source, step.name, len(before), drop.reason, sample, text_hash(text))
            return False
        funnel.passed(draft.source, step.name, len(before), len(draft.text.encode()), changes)
    return True


def find_all_duplicates(task: int, work: str, clean: str, duplicates: str) -> None:
    """Decide which documents of all shards stay: `NNNNN.npy`, and `counts.json`."""
    config, shards = load_config(work), read_plan(Path(work) / PLAN_FILE)
    settings, preferred = duplicates_config(config)
    order = preference_order([shard.source for shard in shards], preferred)
    folder, cleaned = Path(duplicates), Path(clean)
    folder.mkdir(parents=True, exist_ok=True)
    counts = find_duplicates(
        [cleaned / f"{number:05d}.npy" for number in order],
        lambda place: _texts_of(cleaned / f"{order[place]:05d}.parquet"),
        [folder / f"{number:05d}.npy" for number in order],
        folder / "scratch",
        settings,
    )
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def _kept(clean: str, duplicates: str, task: int) -> Iterator[dict[str, Any]]:
    """Yield the documents of a shard that are no duplicates, each with the size of its cluster."""
    decisions = Path(duplicates) / f"{task:05d}.npy" if duplicates else None
    table = np.load(decisions) if decisions else None
    for row, document in enumerate(read_documents(Path(clean) / f"{task:05d}.parquet")):
        if table is not None:
            if not table["keep"][row]:
                continue
            document["cluster_size"] = int(table["cluster_size"][row])
        yield document


def count_phrases(task: int, work: str, clean: str, duplicates: str, phrases: str) -> None:
    """Count in one shard how many documents hold each word of the evaluation items: `NNNNN.npy`."""
    index = evaluation_index(load_config(work))
    assert index is not None
    folder = Path(phrases)
    folder.mkdir(parents=True, exist_ok=True)
    save_array(folder / f"{task:05d}.npy", index.count_phrases(row["text"] for row in _kept(clean, duplicates, task)))


def load_phrases(folder: Path) -> Any:
    """Return how many documents of all shards hold each word of the evaluation items."""
    return np.sum([np.load(path) for path in sorted(folder.glob("[0-9]*.npy"))], axis=0)


def finish_shard(task: int, work: str, clean: str, duplicates: str, phrases: str, finish: str) -> None:
    """Remove duplicates, toxic documents and evaluation items from one shard, and count its tokens."""
    config = load_config(work)
    shard = read_plan(Path(work) / PLAN_FILE)[task]
    index = evaluation_index(config)
    if index is not None:
        index.ignore_phrases(load_phrases(Path(phrases)))
    scorer = (
        ToxicityScorer(nested(ToxicityConfig, "toxicity", config.toxicity)) if config.toxicity is not False else None
    )
    is_torn = config.source_configs[shard.source].conversations  # by a cut: an answer without its question
    funnel, target = Funnel(config.sample), Path(finish) / f"{task:05d}"
    _count_duplicates(funnel, shard, clean, duplicates, task)
    writer = DocumentWriter(target.with_suffix(".parquet"), _schema())
    count, statistics = _token_counter(config), TextStatistics()
    for batch in _batches(_kept(clean, duplicates, task)):
        batch = _without_toxic(batch, scorer, funnel, statistics)
        for document in batch:
            if index is not None and not _decontaminated(document, index, funnel, whole=is_torn):
                continue
            document["tokens"] = count(document["text"])
            statistics.add(document)
            writer.add(document)
    writer.close()
    write_json(target.with_suffix(".statistics"), {shard.source: statistics.to_json()})
    funnel.write(target.with_suffix(".json"))


def _batches(documents: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document["text"])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_duplicates(funnel: Funnel, shard: WorkShard, clean: str, duplicates: str, task: int) -> None:
    if not duplicates:
        return
    table = np.load(Path(duplicates) / f"{task:05d}.npy")
    for row, document in enumerate(read_documents(Path(clean) / f"{task:05d}.parquet", ["text", "place", "hash"])):
        size = len(document["text"].encode())
        if table["keep"][row]:
            funnel.passed(shard.source, "duplicates", size, size)
            continue
        reason = "exact" if table["exact"][row] else "near"
        sample = {"text": document["text"], "place": document["place"], "value": float(table["similarity"][row])}
        funnel.dropped(shard.source, "duplicates", size, reason, sample, document["hash"])


def _without_toxic(
    batch: list[dict[str, Any]], scorer: ToxicityScorer | None, funnel: Funnel, statistics: TextStatistics
) -> list[dict[str, Any]]:
    if scorer is None:
        return batch
    kept = []
    for document, score in zip(batch, scorer.scores([row["text"] for row in batch]), strict=True):
        drop, size = judge(score, scorer.config), len(document["text"].encode())
        if drop is None:
            funnel.passed(document["source"], "toxicity", size, size)
            kept.append(document)
        else:
            sample = {"text": document["text"], "place": document["place"], "value": score, "limit": drop.limit}
            statistics.add_toxic(document["text"])
            funnel.dropped(document["source"], "toxicity", size, drop.reason, sample, document["hash"])
    return kept


def _decontaminated(document: dict[str, Any], index: EvaluationIndex, funnel: Funnel, whole: bool) -> bool:
    """Cut the passages of evaluation items out of a document, or `whole` drop it; return whether it stays."""
    before = len(document["text"].encode())
    text, drop, found = decontaminate(document["text"], index, whole)
    changes = {f"passages_of_{name}": number for name, number in found.items()}
    if drop is not None:
        sample = {"text": document["text"], "place": document["place"], "value": drop.value, "limit": drop.limit}
        funnel.dropped(document["source"], "decontamination", before, drop.reason, sample, document["hash"])
        funnel.counts[document["source"]]["decontamination"].changes.update(changes)
        return False
    if text != document["text"]:
        document["text"], document["hash"] = text, text_hash(text)
    funnel.passed(document["source"], "decontamination", before, len(text.encode()), changes)
    return True


def _token_counter(config: BuildConfig) -> Any:
    name = config.mixing_config.tokenizer
    if name is None:
        return lambda text: -(-len(text.encode()) // _BYTES_PER_TOKEN)
    from ..models import load_tokenizer

    tokenizer = load_tokenizer("mixing.tokenizer", name)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 2


def mix(task: int, work: str, finish: str, output: str) -> None:
    """Write the corpus: `train/` and, where documents are held out, `validation/`; `shares.json` beside them.

    Raises:
        InputError: nothing is left, or the shares cannot be.
    """
    config, shards = load_config(work), read_plan(Path(work) / PLAN_FILE)
    tables = _read_tables(config, shards, Path(finish))
    fraction = config.mixing_config.validation_fraction
    unique = {name: int(sum(table["tokens"].sum() for table in own.values())) for name, own in tables.items()}
    documents = {name: sum(len(table["tokens"]) for table in own.values()) for name, own in tables.items()}
    shares = plan_shares(config.source_configs, unique, documents, config.mixing_config)
    counted_by = config.mixing_config.tokenizer or f"a token is taken as {_BYTES_PER_TOKEN} bytes"
    print(render_shares(shares, f"counted by {counted_by}"), flush=True)
    ensure(
        sum(unique.values()), "sources: no document is left of any source. The passport says which step dropped them."
    )
    times = _all_times(config, tables, shares)
    most = config.mixing_config.shard_megabytes * 2**20
    split = {
        "train": _SplitWriter(Path(output) / "train", most),
        "validation": _SplitWriter(Path(output) / "validation", most),
    }
    rounds = max((int(own.max()) for own in times.values() if len(own)), default=0)
    for number in range(rounds):  # an epoch after the other, so that copies of a document lie far apart
        for shard in shards:
            for row, document in enumerate(read_documents(Path(finish) / f"{shard.number:05d}.parquet")):
                if times[shard.number][row] <= number:
                    continue
                held_out = fraction > 0 and is_held_out(document["text"], fraction)
                if held_out and number:
                    continue  # what is held out is there once
                split["validation" if held_out else "train"].add(document)
    for writer in split.values():
        writer.close()
    figures = {"shares": [vars(share) for share in shares], "counted_by": counted_by}
    (Path(output) / "shares.json").write_text(json.dumps(figures), encoding="utf-8")


def _read_tables(config: BuildConfig, shards: list[WorkShard], finish: Path) -> dict[str, dict[int, Any]]:
    """Return tokens, hashes and cluster sizes of all documents, by source and shard."""
    import pyarrow.parquet

    tables: dict[str, dict[int, Any]] = {name: {} for name in config.source_configs}
    for shard in shards:
        found = pyarrow.parquet.read_table(
            finish / f"{shard.number:05d}.parquet", columns=["tokens", "hash", "cluster_size"]
        )
        tables[shard.source][shard.number] = {name: found[name].to_numpy() for name in found.column_names}
    return tables


def _all_times(config: BuildConfig, tables: dict[str, dict[int, Any]], shares: list[SourceShare]) -> dict[int, Any]:
    """Return for each shard how often each of its documents is read."""
    times: dict[int, Any] = {}
    for share in shares:
        own = tables[share.source]
        whole = {
            name: np.concatenate([table[name] for table in own.values()]) for name in ("tokens", "hash", "cluster_size")
        }
        clusters = whole["cluster_size"] if config.mixing_config.upsample_by_cluster else None
        found = repetitions(share.epochs, whole["tokens"], whole["hash"], clusters)
        bounds = np.cumsum([0, *(len(table["tokens"]) for table in own.values())])
        for place, number in enumerate(own):
            times[number] = found[bounds[place] : bounds[place + 1]]
    return times


class _SplitWriter:
    """Writes one split of the corpus as numbered parquet shards; none without documents."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        import pyarrow

        metadata = pyarrow.struct([(name, pyarrow.string()) for name in ("source", "license", "url", "variety")])
        self._schema = pyarrow.schema([("text", pyarrow.large_string()), ("metadata", metadata)])
        self._folder, self._most, self._number = folder, most_bytes, 0
        self._writer: DocumentWriter | None = None
        for old in folder.glob("*.parquet*") if folder.is_dir() else ():
            old.unlink()

    def add(self, document: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = DocumentWriter(self._folder / f"{self._number:05d}.parquet", self._schema)
            self._number += 1
        metadata = {name: document[name] for name in ("source", "license", "url", "variety")}
        self._writer.add({"text": document["text"], "metadata": metadata})
        if self._writer.total_bytes >= self._most:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
