"""What the benchmarks of the corpus stage share: real texts, and duplicates as ours and datatrove's steps find them."""

import html
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import peak_rss_mb

DATA = Path(os.environ.get("TTL_REAL_DATA", "data"))
SHARD_MEGABYTES = 10


def files_of_data() -> list[Path]:
    """Return the raw and the cleaned files of the data folder.

    Raises:
        SystemExit: there are none.
    """
    found = [*sorted((DATA / "raw").glob("*.parquet")), *sorted((DATA / "corpus").glob("*.parquet"))]
    if not found:
        raise SystemExit(
            f"TTL_REAL_DATA={DATA}: has no raw/*.parquet and corpus/*.parquet. Name the folder of the data."
        )
    return found


def peak_mb(process: str = "self") -> float:
    """Return the peak memory of a process in MB, 0 for one that has ended; on Linux without its parent's before it."""
    status = Path(f"/proc/{process}/status")
    if process == "self" and not status.exists():
        return peak_rss_mb()
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


# --- texts


def without_tags(page: str) -> str:
    """Return the text of a page of old mark-up: tags go, blocks become lines. A stand-in for a real extractor."""
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", page)
    page = re.sub(r"(?i)</?(?:p|div|tr|br|h\d|li|table|center)\b[^>]*>", "\n", re.sub(r"\s+", " ", page))
    page = html.unescape(re.sub(r"(?s)<[^>]*>", "", page)).replace("\xa0", " ")
    return "\n".join(line for line in (" ".join(line.split()) for line in page.split("\n")) if line)


def read_file(path: Path, megabytes: float, seed: int = 7, pages: bool = False) -> Iterator[str]:
    """Yield texts of a file (or its pages as they are) in a fixed random order until they make the size."""
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(path).names
    column = "text" if "text" in names else "html"
    rows = pyarrow.parquet.read_table(path, columns=[column])[column]
    left = megabytes * 1e6
    for place in random.Random(seed).sample(range(len(rows)), len(rows)):
        text = rows[place].as_py()
        text = without_tags(text) if column == "html" and not pages else text
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def write_shards(texts: list[str], folder: Path) -> None:
    """Write parquet shards of `text` and `id`, the place of the document."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    start, size, shard = 0, 0, 0
    for place, text in enumerate(texts):
        size += len(text.encode())
        if size >= SHARD_MEGABYTES * 1e6 or place == len(texts) - 1:
            ids = [str(number) for number in range(start, place + 1)]
            table = pyarrow.table({"text": texts[start : place + 1], "id": ids})
            pyarrow.parquet.write_table(table, folder / f"{shard:05}.parquet", row_group_size=500)
            start, size, shard = place + 1, 0, shard + 1


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a shard."""
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(500, columns=["text"]):
        yield from batch["text"].to_pylist()


# --- duplicates, ours and stock


def our_duplicates(shards: Path, work: Path) -> dict[str, Any]:
    """Find the duplicates of shards; returns seconds of the steps, peak memory and the removed documents."""
    from teenytinyllama.cleaning.word_hashes import fingerprints
    from teenytinyllama.corpus.duplicates import find_duplicates

    files = sorted(shards.glob("*.parquet"))
    start = time.process_time()
    made = [work / f"{shard}.npy" for shard in range(len(files))]
    for shard, path in enumerate(made):
        np.save(path, fingerprints(texts_of(files[shard])))
    middle = time.process_time()
    decided = [work / f"decided-{shard}.npy" for shard in range(len(files))]
    counts = find_duplicates(made, lambda shard: texts_of(files[shard]), decided, work / "scratch")
    end = time.process_time()
    decisions = np.concatenate([np.load(path) for path in decided])
    return {"seconds": end - start, "signatures": middle - start, "search": end - middle, "peak_mb": peak_mb(),
            "counts": counts, "removed": np.flatnonzero(~decisions["keep"]).tolist()}  # fmt: skip


def stock_duplicates(shards: Path, work: Path) -> dict[str, Any]:
    """Do the same with datatrove's stock steps, one task after another in this process."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.typeshelper import Languages
    from loguru import logger

    logger.remove()  # it speaks of every file
    config = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=5, num_buckets=14, hashes_per_bucket=8)
    files = len(list(shards.glob("*.parquet")))
    read = lambda: ParquetReader(str(shards))  # noqa: E731
    start = time.process_time()
    for task in range(files):
        signature = MinhashDedupSignature(str(work / "s"), config=config, language=Languages.portuguese__latn)
        signature.run(read().run(rank=task, world_size=files), task, files)
    middle = time.process_time()
    for bucket in range(14):
        MinhashDedupBuckets(str(work / "s"), str(work / "b"), config=config).run(None, bucket, 14)
    MinhashDedupCluster(str(work / "b"), str(work / "r"), config=config).run(None, 0, 1)
    kept: set[int] = set()
    for task in range(files):
        step = MinhashDedupFilter(str(work / "r"))
        kept |= {int(document.id) for document in step.run(read().run(rank=task, world_size=files), task, files)}
    end = time.process_time()
    total = sum(1 for task in range(files) for _ in read().run(rank=task, world_size=files))
    return {"seconds": end - start, "signatures": middle - start, "search": end - middle, "peak_mb": peak_mb(),
            "removed": sorted(set(range(total)) - kept)}  # fmt: skip


def similarity_to_kept(texts: list[str], removed: list[int]) -> list[float]:
    """Return for each removed document its largest true similarity to one that stays, found through all its n-grams."""
    from teenytinyllama.cleaning.word_hashes import gram_sets

    gone = set(removed)
    sets = list(gram_sets(texts))
    sizes = np.array([len(grams) for grams in sets])
    kept = [place for place in range(len(texts)) if place not in gone]
    grams = np.concatenate([sets[place] for place in kept])
    owner = np.repeat(kept, sizes[kept])
    order = np.argsort(grams, kind="stable")
    grams, owner = grams[order], owner[order]
    best = []
    for place in removed:
        first, last = (np.searchsorted(grams, sets[place], side) for side in ("left", "right"))
        owners = [owner[a:b] for a, b in zip(first, last, strict=True) if b > a]
        common = np.bincount(np.concatenate(owners), minlength=len(texts)) if owners else np.zeros(len(texts))
        best.append(float((common / np.maximum(1, sizes + sizes[place] - common)).max()))
    return best
