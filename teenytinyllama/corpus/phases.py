"""The phases of the corpus stage: what one task of each does, from a shard of a source to a shard of the corpus.

    clean       per shard: documents through the chain of steps; their fingerprints
    duplicates  once: which documents repeat others, over all sources
    phrases     per shard: how often words of evaluation items stand in it, so that common phrases do not count
    finish      per shard: without duplicates, toxic documents and passages of evaluation items; tokens counted
    mix         once: every document as often as the weights want, in parquet shards

A phase writes into a folder of its own, each file under another name until it is whole. Each function here works on one
task and can be called again: it makes the same files.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments import build, load_yaml
from ..checks import ensure
from ..cleaning import Drop
from ..cleaning.toxicity import ToxicityConfig, ToxicityScorer, judge
from ..cleaning.word_hashes import fingerprints
from ..data.sources import is_held_out
from ..progress import say, told_of_reads
from ..stage_folder import write_json
from .chain import (
    SourceShare,
    Step,
    build_chain,
    duplicates_config,
    evaluation_index,
    load_phrases,
    plan_shares,
    render_shares,
    repetitions,
)
from .config import BuildConfig, SourceConfig, nested
from .decontamination import EvaluationIndex, decontaminate
from .documents import (
    BATCH_BYTES,
    DocumentWriter,
    Funnel,
    SplitWriter,
    StepSeconds,
    TaskShare,
    count_documents,
    document_schema,
    read_documents,
    save_array,
    save_arrays,
    texts_of,
)
from .duplicates import find_duplicates, preference_order
from .provenance import document_licence
from .sample_page import Tracer
from .shards import BrokenRow, Draft, WorkShard, read_drafts, read_plan, shard_bytes, text_hash
from .text_statistics import TextStatistics, year_of

CONFIG_FILE, PLAN_FILE = "config.yaml", "plan.json"
_CLEANING_PART = 0.9  # of the time of a task of the phase clean; fingerprints take the rest. For the bar alone
# Where no tokenizer counts: 362 MB of laws, debates, novels and documentation have 5.09 with one of 32,000 entries that
# was trained on such texts.
BYTES_PER_TOKEN = 5


def load_config(work: str) -> BuildConfig:
    """Return the config that the phases below a folder work by."""
    config: BuildConfig = build(
        BuildConfig, load_yaml((Path(work) / CONFIG_FILE).read_text(encoding="utf-8"), CONFIG_FILE)
    )
    return config


def clean_shard(task: int, work: str, clean: str) -> None:
    """Clean the documents of one shard: `NNNNN.parquet`, their fingerprints `NNNNN.npy`, the funnel `NNNNN.json`."""
    config, shard = load_config(work), read_plan(Path(work) / PLAN_FILE)[task]
    target, funnel, seconds = Path(clean) / f"{task:05d}", Funnel(), StepSeconds()
    chain, source = build_chain(config, shard.source), config.source_configs[shard.source]
    on_disk = shard_bytes(shard)
    share = TaskShare(clean, task, on_disk if config.duplicates is False else on_disk / _CLEANING_PART)
    tracer = None if config.sample is None else Tracer()
    writer, broken = DocumentWriter(target.with_suffix(".parquet"), document_schema()), list[BrokenRow]()
    for draft in _told_drafts(shard, source, share):
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
        seconds.lap("read")
        if _passes(draft, size, chain, funnel, seconds, tracer):
            order = text_hash(draft.text)
            funnel.kept(shard.source, {"text": draft.text, "place": draft.place, "url": draft.url}, order)
            writer.add({"text": draft.text, "source": shard.source, "license": draft.license,
                        "url": draft.url, "place": draft.place, "variety": draft.notes.get("variety", ""),
                        "hash": order, "cluster_size": 1, "tokens": 0,
                        "year": draft.notes.get("year") or year_of({}, draft.text)})  # fmt: skip
            seconds.lap("write")
    writer.close()
    seconds.lap("write")
    if broken:
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in broken]
        target.with_suffix(".broken").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    if config.duplicates is not False:
        left = on_disk * (1 / _CLEANING_PART - 1) / max(1, count_documents(writer.path))
        texts = share.counting(texts_of(writer.path), left)
        save_array(target.with_suffix(".npy"), fingerprints(texts, duplicates_config(config)[0]))
        seconds.lap("fingerprints")
    if tracer is not None:
        tracer.write(target.with_suffix(".looks"))
    funnel.write(target.with_suffix(".json"))
    seconds.write(clean, task)


def _told_drafts(shard: WorkShard, source: SourceConfig, share: TaskShare) -> Iterator[Draft | BrokenRow]:
    """Yield the documents of a shard, and note how much of it they are: by rows, or by the bytes that are read."""
    if shard.end is None:
        with told_of_reads(share.add):
            yield from read_drafts(shard, source)
        return
    row, row_bytes = shard.first, shard_bytes(shard) / max(1, shard.end - shard.first)
    for draft in read_drafts(shard, source):
        yield draft
        done = int(draft.place.rpartition(":")[2])  # rows are counted from 1 there
        share.add(row_bytes * (done - row))
        row = done


def _passes(
    draft: Draft, size: int, chain: list[Step], funnel: Funnel, seconds: StepSeconds, tracer: Tracer | None
) -> bool:
    """Return whether a draft of so many bytes passes all steps, which are counted and timed."""
    for step in chain:
        before, page = draft.text, draft.page
        drop, changes = step(draft)
        if tracer is not None:
            tracer.note(step, before, draft, drop, changes)
        if drop is not None:
            text = draft.text or before or page.decode("utf-8", "replace")
            sample = {"text": text, "place": draft.place, "url": draft.url, "value": drop.value, "limit": drop.limit}
            funnel.dropped(draft.source, step.name, size, drop.reason, sample, text_hash(text))
            seconds.lap(step.name)
            return False
        left = size if draft.text is before and draft.page is page else len(draft.text.encode())
        funnel.passed(draft.source, step.name, size, left, changes)
        size = left
        seconds.lap(step.name)
    return True


def find_all_duplicates(task: int, work: str, clean: str, duplicates: str) -> None:
    """Decide which documents of all shards stay: `NNNNN.npy`, and `counts.json`."""
    config, shards = load_config(work), read_plan(Path(work) / PLAN_FILE)
    settings, preferred = duplicates_config(config)
    order = preference_order([shard.source for shard in shards], preferred)
    folder, cleaned = Path(duplicates), Path(clean)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = StepSeconds()
    files = [cleaned / f"{number:05d}.parquet" for number in order]
    share = TaskShare(duplicates, task, sum(map(count_documents, files)))
    counts = find_duplicates(
        [cleaned / f"{number:05d}.npy" for number in order],
        lambda place: share.counting(texts_of(files[place])),
        [folder / f"{number:05d}.npy" for number in order],
        folder / "scratch",
        settings,
    )
    (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    seconds.lap("duplicates")
    seconds.write(folder, task)


def _kept(clean: str, duplicates: str, task: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a shard that are no duplicates, each with the size of its cluster."""
    decisions = Path(duplicates) / f"{task:05d}.npy" if duplicates else None
    table = np.load(decisions) if decisions else None
    for row, document in enumerate(read_documents(Path(clean) / f"{task:05d}.parquet", columns)):
        if table is not None:
            if not table["keep"][row]:
                continue
            document["cluster_size"] = int(table["cluster_size"][row])
        yield document


def _count_kept(clean: str, duplicates: str, task: int) -> int:
    if duplicates:
        return int(np.load(Path(duplicates) / f"{task:05d}.npy")["keep"].sum())
    return count_documents(Path(clean) / f"{task:05d}.parquet")


@functools.lru_cache(maxsize=1)
def _counting_index(work: str) -> EvaluationIndex | None:
    """Return the items of the evaluation sets, made once for all tasks of a process."""
    return evaluation_index(load_config(work))


@functools.lru_cache(maxsize=1)
def _searching_index(work: str, phrases: str) -> EvaluationIndex | None:
    """Return the same for the search: what `count_phrases` found common in all shards does not count."""
    index = evaluation_index(load_config(work))
    if index is not None:
        index.ignore_phrases(load_phrases(Path(phrases)))
    return index


def forget_indexes() -> None:
    """Make the evaluation sets be read anew: they may have changed since this process made a corpus before."""
    _counting_index.cache_clear()
    _searching_index.cache_clear()


def count_phrases(task: int, work: str, clean: str, duplicates: str, phrases: str) -> None:
    """Count in one shard how many documents hold each word of the evaluation items: `NNNNN.npz`, without zeros."""
    folder, seconds = Path(phrases), StepSeconds()
    index = _counting_index(work)
    assert index is not None
    seconds.lap("index")
    folder.mkdir(parents=True, exist_ok=True)
    share = TaskShare(folder, task, _count_kept(clean, duplicates, task))
    counts = index.count_phrases(row["text"] for row in share.counting(_kept(clean, duplicates, task, ["text"])))
    words = np.flatnonzero(counts)
    save_arrays(folder / f"{task:05d}.npz", words=words, counts=counts[words], size=np.array(len(counts)))
    seconds.lap("phrases")
    seconds.write(folder, task)


def finish_shard(task: int, work: str, clean: str, duplicates: str, phrases: str, finish: str) -> None:
    """Remove duplicates, toxic documents and evaluation items from one shard, and count its tokens."""
    config, seconds = load_config(work), StepSeconds()
    shard = read_plan(Path(work) / PLAN_FILE)[task]
    index = _searching_index(work, phrases)
    seconds.lap("index")
    scorer = (
        ToxicityScorer(nested(ToxicityConfig, "toxicity", config.toxicity)) if config.toxicity is not False else None
    )
    is_torn = config.source_configs[shard.source].conversations  # by a cut: an answer without its question
    funnel, target = Funnel(config.sample), Path(finish) / f"{task:05d}"
    _count_duplicates(funnel, shard, clean, duplicates, task)
    writer = DocumentWriter(target.with_suffix(".parquet"), document_schema())
    count, statistics = _token_counter(config)[0], TextStatistics()
    share = TaskShare(finish, task, _count_kept(clean, duplicates, task) * (1 if scorer is None else 2))
    for batch in _batches(_kept(clean, duplicates, task)):
        seconds.lap("read")
        before = len(batch)
        batch = _without_toxic(batch, scorer, funnel, statistics, share)
        share.add(before - len(batch))  # which the loop below does not see
        seconds.lap("toxicity")
        for document in share.counting(batch):
            passes = index is None or _decontaminated(document, index, funnel, whole=is_torn)
            seconds.lap("decontamination")
            if passes:
                document["tokens"] = count(document["text"])
                seconds.lap("tokens")
                statistics.add(document)
                seconds.lap("statistics")
                writer.add(document)
                seconds.lap("write")
    writer.close()
    seconds.lap("write")
    write_json(target.with_suffix(".statistics"), {shard.source: statistics.to_json()})
    funnel.write(target.with_suffix(".json"))
    seconds.write(finish, task)


def _batches(documents: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document["text"])
        if size >= BATCH_BYTES:
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
    batch: list[dict[str, Any]],
    scorer: ToxicityScorer | None,
    funnel: Funnel,
    statistics: TextStatistics,
    share: TaskShare,
) -> list[dict[str, Any]]:
    if scorer is None:
        return batch
    kept = []
    for document, score in zip(batch, scorer.scores([row["text"] for row in batch], share.add), strict=True):
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


def _token_counter(config: BuildConfig) -> tuple[Callable[[str], int], str]:
    """Return what counts the tokens of a text as `ttl pack` would (begin and end included), and how it is named.

    Of a tokenizer in a folder of this machine only the folder's own name is said: passports are published.
    """
    name = config.mixing_config.tokenizer
    if name is None:
        said = f"estimated at {BYTES_PER_TOKEN} bytes a token, for no tokenizer is named (mixing.tokenizer)"
        return lambda text: -(-len(text.encode()) // BYTES_PER_TOKEN), said
    from ..models import load_tokenizer
    from ..tokenizer.encode import CorpusEncoder, tokenizer_fingerprint

    tokenizer = load_tokenizer("mixing.tokenizer", name)
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    said = (
        f"counted by the tokenizer {shown} ({len(tokenizer):,} entries, sha256 {tokenizer_fingerprint(tokenizer)[:12]})"
    )
    encoder = CorpusEncoder(tokenizer.backend_tokenizer, np.uint32)
    return lambda text: len(encoder.encode([text])[0]) // np.uint32().itemsize + 2, said


def mix(task: int, work: str, finish: str, output: str) -> None:
    """Write the corpus: `train/` and, where documents are held out, `validation/`; `shares.json` beside them.

    Raises:
        InputError: nothing is left, or the shares cannot be.
    """
    config, shards, seconds = load_config(work), read_plan(Path(work) / PLAN_FILE), StepSeconds()
    tables = _read_tables(config, shards, Path(finish))
    fraction = config.mixing_config.validation_fraction
    unique = {name: int(sum(table["tokens"].sum() for table in own.values())) for name, own in tables.items()}
    documents = {name: sum(len(table["tokens"]) for table in own.values()) for name, own in tables.items()}
    shares = plan_shares(config.source_configs, unique, documents, config.mixing_config)
    counted_by = _token_counter(config)[1]
    say(render_shares(shares, counted_by))
    ensure(
        sum(unique.values()), "sources: no document is left of any source. The passport says which step dropped them."
    )
    times = _all_times(config, tables, shares)
    most = config.mixing_config.shard_megabytes * 2**20
    split = {
        "train": SplitWriter(Path(output) / "train", most),
        "validation": SplitWriter(Path(output) / "validation", most),
    }
    written = dict.fromkeys(split, 0)
    rounds = max((int(own.max()) for own in times.values() if len(own)), default=0)
    share = TaskShare(output, task, rounds * sum(len(own) for own in times.values()))
    for number in range(rounds):  # an epoch after the other, so that copies of a document lie far apart
        for shard in shards:
            documents_of = share.counting(read_documents(Path(finish) / f"{shard.number:05d}.parquet"))
            for row, document in enumerate(documents_of):
                if times[shard.number][row] <= number:
                    continue
                held_out = fraction > 0 and is_held_out(document["text"], fraction)
                if held_out and number:
                    continue  # what is held out is there once
                part = "validation" if held_out else "train"
                split[part].add(document)
                written[part] += document["tokens"]
    for writer in split.values():
        writer.close()
    content = {name: _content_hash(own) for name, own in tables.items()}
    figures = {"shares": [vars(share) for share in shares], "counted_by": counted_by, "tokens": written,
               "content_sha256": content}  # fmt: skip
    (Path(output) / "shares.json").write_text(json.dumps(figures), encoding="utf-8")
    seconds.lap("mix")
    seconds.write(output, task)


def _read_tables(config: BuildConfig, shards: list[WorkShard], finish: Path) -> dict[str, dict[int, Any]]:
    """Return tokens, hashes and cluster sizes of all documents, by source and shard."""
    import pyarrow.parquet

    tables: dict[str, dict[int, Any]] = {name: {} for name in config.source_configs}
    for shard in shards:
        found = pyarrow.parquet.read_table(
            (finish / f"{shard.number:05d}.parquet").absolute(), columns=["tokens", "hash", "cluster_size"]
        )
        tables[shard.source][shard.number] = {name: found[name].to_numpy() for name in found.column_names}
    return tables


def _content_hash(tables: dict[int, Any]) -> str:
    """Return the sha256 of the hashes of a source's cleaned texts in ascending order, so that it has no other order."""
    return hashlib.sha256(np.sort(np.concatenate([table["hash"] for table in tables.values()])).tobytes()).hexdigest()


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
