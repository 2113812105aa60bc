"""Exact and near duplicates: which documents say the same, and which one of them stays.

Two documents are exact duplicates if their words are the same in the same order and near duplicates
if the Jaccard similarity of their 5-grams of words reaches a threshold. MinHash proposes the pairs, each is confirmed
by its true similarity (see word_hashes.py for both).

The documents are gone through in one order, the most preferred first. A document is removed if its true similarity to a
document that stays reaches the threshold; it joins the cluster of the first such. So each removed document has a near
twin in the corpus, however long the chain of small changes between texts is: merging all pairs into connected groups
would also remove the ends of such chains, which nothing that stays is like.

    per shard   fingerprints(texts) -> one .npy, in any order, by any number of workers
    once        find_duplicates(the .npy files in order, the texts again) -> one .npy of decisions for each shard

Memory is bounded: what grows with the corpus lies in files of the scratch folder, cut by key so that each part fits.
"""

import itertools
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..checks import ensure, near_name
from ..cleaning.word_hashes import (
    DIGEST_COLUMNS,
    EMPTY_KEY,
    DuplicatesConfig,
    Hashes,
    Places,
    fingerprint_columns,
    gram_sets,
    jaccard,
)

DECISION_DTYPE = np.dtype(
    [("keeper", "<i8"), ("cluster_size", "<i8"), ("similarity", "<f4"), ("keep", "?"), ("exact", "?")]
)
_CHUNK_DOCUMENTS = 1 << 18
# Each document of a bucket is compared with the first documents of it and with those just before its own place.
_FIRST_OF_BUCKET = _LAST_OF_BUCKET = 8
_MEGABYTE = 1_000_000
_MOST_PARTS = 500  # a process may have 1,024 files open on most machines
_KEY_DTYPE = np.dtype([("key", "<u8"), ("key2", "<u8"), ("document", "<i8")])
_PAIR_DTYPE = np.dtype([("document", "<i8"), ("earlier", "<i8")])


def preference_order(sources: Sequence[str], preferred: Sequence[str]) -> list[int]:
    """Return the order in which shards are to be given to `find_duplicates`.

    Args:
        sources: the source of each shard, in the order of the config.
        preferred: sources whose documents stay first, the most preferred first; the others follow in their order.

    Returns:
        places in `sources`.

    Raises:
        InputError: `preferred` names a source twice, or one that is not there.
    """
    ensure(len(set(preferred)) == len(preferred), f"prefer={list(preferred)}: names a source twice. Name each once.")
    for name in preferred:
        ensure(
            name in sources,
            f"prefer={name}: no such source.{near_name(name, sources)} Sources: {', '.join(dict.fromkeys(sources))}.",
        )
    rank = {name: place for place, name in enumerate(preferred)}
    return sorted(range(len(sources)), key=lambda shard: rank.get(sources[shard], len(preferred)))


class _Parts:
    """Records in files of a folder, cut by a number that each record has; a file is read whole."""

    def __init__(self, folder: Path, dtype: Any, count: int) -> None:
        folder.mkdir(parents=True)
        self.dtype, self.paths = np.dtype(dtype), [folder / f"{part}.bin" for part in range(count)]
        self.files: list[BinaryIO] = [path.open("wb") for path in self.paths]

    def add(self, records: NDArray[Any], parts: Places) -> None:
        """Write records, (n,), each into the file that its number in `parts`, (n,), names."""
        if len(self.files) == 1:
            self.files[0].write(records.tobytes())
            return
        order = np.argsort(parts, kind="stable")
        bounds = np.searchsorted(parts[order], np.arange(len(self.files) + 1))
        for part in np.flatnonzero(np.diff(bounds)):
            self.files[part].write(records[order[bounds[part] : bounds[part + 1]]].tobytes())

    def read(self) -> Iterator[NDArray[Any]]:
        """Yield the records of each file, and delete the file."""
        for file in self.files:
            file.close()
        for path in self.paths:
            yield np.fromfile(path, dtype=self.dtype)
            path.unlink()


class _GramFile:
    """The sets of n-grams of documents that are in a proposed pair, in one file; the last ones used are remembered."""

    def __init__(self, folder: Path, documents: int, cache_bytes: int) -> None:
        self.path = folder / "grams.bin"
        self.places: NDArray[Any] = np.memmap(folder / "places.bin", dtype="<i8", mode="w+", shape=(documents, 2))
        self.cache: OrderedDict[int, Hashes] = OrderedDict()
        self.cache_bytes, self.cached_bytes = cache_bytes, 0

    def write(self, wanted: NDArray[Any], starts: Places, texts_of: Callable[[int], Iterable[str]], ngram: int) -> None:
        """Read the shards with wanted documents once, in order, and write the sets of those documents."""
        size = 0
        with self.path.open("wb") as file:
            for shard, (start, end) in enumerate(itertools.pairwise(starts)):
                of_shard = np.flatnonzero(wanted[start:end])
                if not len(of_shard):
                    continue
                chosen = (text for place, text in enumerate(texts_of(shard)) if wanted[start + place])
                for place, grams in zip(of_shard, gram_sets(chosen, ngram), strict=True):
                    file.write(grams.tobytes())
                    self.places[start + place] = size, len(grams)
                    size += grams.nbytes

    def size_of(self, document: int) -> int:
        return int(self.places[document, 1])

    def get(self, document: int) -> Hashes:
        """Return the n-grams of a document, from memory or from the file."""
        found = self.cache.get(document)
        if found is None:
            start, count = self.places[document]
            found = np.fromfile(self.path, dtype=np.uint64, count=int(count), offset=int(start))
            self.cache[document] = found
            self.cached_bytes += found.nbytes
            while self.cached_bytes > self.cache_bytes and len(self.cache) > 1:
                self.cached_bytes -= self.cache.popitem(last=False)[1].nbytes
        else:
            self.cache.move_to_end(document)
        return found


def find_duplicates(
    fingerprint_files: Sequence[Path],
    texts_of: Callable[[int], Iterable[str]],
    decision_files: Sequence[Path],
    scratch: Path,
    config: DuplicatesConfig | None = None,
) -> dict[str, int]:
    """Decide which documents of a corpus are duplicates, and write it for each shard.

    Args:
        fingerprint_files: what `fingerprints` gave for each shard, as .npy, in order of preference: of two duplicates
            the one stays whose shard comes first, in a shard the earlier one.
        texts_of: gives the texts of the shard at this place, in the same order as its fingerprints. It is called at
            most once for a shard, and only where a proposed pair must be confirmed.
        decision_files: where to write each shard's decisions, as .npy of `DECISION_DTYPE`, one a document. `keeper` is
            the number, over all shards in order, of the document of its cluster that stays; `cluster_size` counts the
            documents of the cluster; `similarity` is the true Jaccard similarity to the keeper; `keep` says whether
            this is the keeper; `exact` whether it is removed as an exact duplicate of another document.
        scratch: a folder for work, which is emptied before and removed after.
        config: as the fingerprints were made with; the defaults if None.

    Returns:
        counts: documents, exact (removed), near (removed), clusters (of more than one), proposed and compared (pairs).

    Raises:
        InputError: the config, or fingerprints of another one.
    """
    config = config or DuplicatesConfig()
    config.check()
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    tables = [np.load(path, mmap_mode="r") for path in fingerprint_files]
    columns = fingerprint_columns(config)
    for path, table in zip(fingerprint_files, tables, strict=True):
        ensure(
            table.ndim == 2 and table.shape[1] == columns and table.dtype == np.uint64,
            f"{path}: its shape is {table.shape}, and the fingerprints of this config have {columns} columns. "
            "They were made with other keys: delete the file and make it again.",
        )
    search = _Search(tables, scratch, config)
    search.match_exactly()
    if config.near:
        search.propose()
        search.confirm(texts_of)
    search.write(decision_files)
    shutil.rmtree(scratch)
    return search.counts


class _Search:
    """The state of one search: arrays with a place for each document, in files, and counts."""

    def __init__(self, tables: list[NDArray[Any]], scratch: Path, config: DuplicatesConfig) -> None:
        self.tables, self.scratch, self.config = tables, scratch, config
        self.starts = np.cumsum([0, *(len(table) for table in tables)])
        self.documents = int(self.starts[-1])
        length = max(1, self.documents)  # a file of no bytes cannot be mapped
        self.keeper: NDArray[Any] = np.memmap(scratch / "keeper.bin", dtype="<i8", mode="w+", shape=length)
        self.similarity: NDArray[Any] = np.memmap(scratch / "similarity.bin", dtype="<f4", mode="w+", shape=length)
        self.exact: NDArray[Any] = np.memmap(scratch / "exact.bin", dtype="?", mode="w+", shape=length)
        self.wanted: NDArray[Any] = np.memmap(scratch / "wanted.bin", dtype="?", mode="w+", shape=length)
        for start in range(0, self.documents, _CHUNK_DOCUMENTS):
            end = min(start + _CHUNK_DOCUMENTS, self.documents)
            self.keeper[start:end] = np.arange(start, end)
            self.similarity[start:end] = 1
        self.counts = dict.fromkeys(("documents", "exact", "near", "clusters", "proposed", "compared"), 0)
        self.counts["documents"] = self.documents

    def _parts(self, name: str, dtype: Any, records: int) -> _Parts:
        """Open files for records; sorting the records of one takes about four times their size."""
        size = 4 * records * np.dtype(dtype).itemsize
        return _Parts(
            self.scratch / name, dtype, min(_MOST_PARTS, 1 + size // (self.config.memory_megabytes * _MEGABYTE))
        )

    def _chunks(self) -> Iterator[tuple[Places, Hashes]]:
        """Yield documents and their fingerprints, in order."""
        for first, table in zip(self.starts, self.tables, strict=False):
            for start in range(0, len(table), _CHUNK_DOCUMENTS):
                rows = np.asarray(table[start : start + _CHUNK_DOCUMENTS])
                yield np.arange(first + start, first + start + len(rows)), rows

    def match_exactly(self) -> None:
        """Let the first of the documents with the same words keep the others."""
        parts = self._parts("exact", _KEY_DTYPE, self.documents)
        for documents, rows in self._chunks():
            records = np.empty(len(rows), dtype=_KEY_DTYPE)
            records["key"], records["key2"], records["document"] = rows[:, 0], rows[:, 1], documents
            parts.add(records, _part_of(rows[:, 0], len(parts.files)))
        for records in parts.read():
            records = records[np.lexsort((records["document"], records["key2"], records["key"]))]
            new = (np.diff(records["key"]) != 0) | (np.diff(records["key2"]) != 0)
            first = np.maximum.accumulate(np.concatenate([[0], np.where(new, np.arange(1, len(new) + 1), 0)]))
            first = first[: len(records)]
            later = first != np.arange(len(records))
            self.keeper[records["document"][later]] = records["document"][first[later]]
            self.exact[records["document"][later]] = True
            self.counts["exact"] += int(later.sum())

    def propose(self) -> None:
        """Write the pairs of documents that share a band: the later document, and the earlier one."""
        dtype = np.dtype([("key", "<u8"), ("document", "<i8")])
        parts = self._parts("bands", dtype, self.documents * self.config.bands)
        for documents, rows in self._chunks():
            alone = ~self.exact[documents]
            keys = rows[alone, DIGEST_COLUMNS:].ravel()
            records = np.empty(len(keys), dtype=dtype)
            records["key"], records["document"] = keys, np.repeat(documents[alone], self.config.bands)
            records = records[keys != EMPTY_KEY]
            parts.add(records, _part_of(records["key"], len(parts.files)))
        most = self.documents * self.config.bands * (_FIRST_OF_BUCKET + _LAST_OF_BUCKET)
        self.pairs = self._parts("pairs", _PAIR_DTYPE, most)
        for records in parts.read():
            for pairs in _pairs_of(records):
                self.wanted[pairs["document"]] = self.wanted[pairs["earlier"]] = True
                self.pairs.add(pairs, pairs["document"] * len(self.pairs.files) // self.documents)

    def confirm(self, texts_of: Callable[[int], Iterable[str]]) -> None:
        """Go through the later documents of pairs in order, and remove those near to a document that stays."""
        grams = _GramFile(self.scratch, len(self.keeper), self.config.memory_megabytes * _MEGABYTE // 2)
        grams.write(self.wanted, self.starts, texts_of, self.config.ngram)
        for pairs in self.pairs.read():
            pairs = pairs[np.lexsort((pairs["earlier"], pairs["document"]))]
            new = (np.diff(pairs["document"]) != 0) | (np.diff(pairs["earlier"]) != 0)
            pairs = pairs[np.concatenate([[True], new])[: len(pairs)]]
            self.counts["proposed"] += len(pairs)
            bounds = np.flatnonzero(np.diff(pairs["document"], prepend=-1, append=-1))
            for start, end in itertools.pairwise(bounds):
                self._settle(int(pairs["document"][start]), pairs["earlier"][start:end], grams)

    def _settle(self, document: int, earlier: Places, grams: _GramFile) -> None:
        size, threshold = grams.size_of(document), self.config.threshold
        for keeper in np.unique(self.keeper[earlier]).tolist():  # what stays of the documents it may be like
            keeper_size = grams.size_of(keeper)
            if min(size, keeper_size) < threshold * max(size, keeper_size):
                continue  # the similarity is at most the ratio of the sizes
            self.counts["compared"] += 1
            similarity = jaccard(grams.get(document), grams.get(keeper))
            if similarity >= threshold:
                self.keeper[document], self.similarity[document] = keeper, similarity
                self.counts["near"] += 1
                return

    def write(self, decision_files: Sequence[Path]) -> None:
        """Count the clusters and write the decisions of each shard."""
        sizes = np.memmap(self.scratch / "sizes.bin", dtype="<i8", mode="w+", shape=len(self.keeper))
        for documents, _ in self._chunks():
            # An exact duplicate follows the document that it repeats, which may be near to an earlier one.
            repeats = documents[self.exact[documents]]
            followed = self.keeper[repeats]
            self.similarity[repeats], self.keeper[repeats] = self.similarity[followed], self.keeper[followed]
            np.add.at(sizes, self.keeper[documents], 1)
        for shard, path in enumerate(decision_files):
            documents = np.arange(self.starts[shard], self.starts[shard + 1])
            decisions = np.empty(len(documents), dtype=DECISION_DTYPE)
            keeper = self.keeper[documents]
            decisions["keeper"], decisions["cluster_size"] = keeper, sizes[keeper]
            decisions["keep"], decisions["exact"] = keeper == documents, self.exact[documents]
            decisions["similarity"] = self.similarity[documents]
            self.counts["clusters"] += int((decisions["keep"] & (decisions["cluster_size"] > 1)).sum())
            np.save(path, decisions)


def _part_of(keys: Hashes, parts: int) -> Places:
    """Return a part for each key by its upper 32 bits."""
    return ((keys >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.int64)


def _pairs_of(records: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the pairs of documents with the same key, in a few arrays.

    A bucket of many documents would give a pair for any two of them. Each is paired with the first of the bucket and
    with those just before it only: the first are those that stay.
    """
    records = records[np.lexsort((records["document"], records["key"]))]
    documents = records["document"]
    places = np.arange(len(records))
    new = np.diff(records["key"]) != 0
    first = np.maximum.accumulate(np.concatenate([[0], np.where(new, places[1:], 0)]))[: len(records)]
    for back in range(1, _LAST_OF_BUCKET + 1):
        later = np.flatnonzero(places - back >= first)
        yield _as_pairs(documents[later], documents[later - back])
    for ahead in range(_FIRST_OF_BUCKET):
        later = np.flatnonzero(places - _LAST_OF_BUCKET > first + ahead)
        yield _as_pairs(documents[later], documents[first[later] + ahead])


def _as_pairs(later: Places, earlier: Places) -> NDArray[Any]:
    pairs = np.empty(len(later), dtype=_PAIR_DTYPE)
    pairs["document"], pairs["earlier"] = later, earlier
    return pairs
