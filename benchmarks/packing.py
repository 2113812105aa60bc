"""Packing against the batch encoding of `tokenizers`, on the same cores, in the same run.

    python benchmarks/packing.py --inputs corpus --tokenizer outputs/tokenizer

A  `tokenizers` encodes the texts, already in memory, in batches on all cores; ids are neither read nor written.
B  the ancestor's way: the `datasets`-style map in batches of 1,000 rows, lists of ids, concatenated and cut to rows.
C  `ttl pack` as a process of its own, from the files to the finished folder.

With --megabytes each size is a corpus made of the inputs over and over, which shows how time and memory grow.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import interleave, median, parser, print_table, seconds_of, write_results

BATCH_CHARS = 8_000_000


def read_texts(inputs: list[str]) -> list[str]:
    """Return all documents of the inputs, in a fixed random order, so that a batch is as mixed as a corpus is."""
    import random

    from teenytinyllama.data.sources import Corpus, CorpusConfig

    texts = [document.text for _, document in Corpus(CorpusConfig(inputs=inputs)).documents()]
    random.Random(0).shuffle(texts)
    return texts


def write_corpus(texts: list[str], megabytes: int, folder: Path) -> tuple[Path, int]:
    """Write shards of about 50 MB until the size is reached; a repeated document gets a number of its own."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    size = copy = shard = 0
    rows: list[str] = []
    pending = 0
    while size < megabytes * 1e6:
        for text in texts:
            rows.append(text if copy == 0 else f"{text}\n{copy}")
            pending += len(rows[-1].encode())
            if pending >= 50e6 or size + pending >= megabytes * 1e6:
                pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / f"{shard:04}.parquet")
                size, pending, rows, shard = size + pending, 0, [], shard + 1
            if size >= megabytes * 1e6:
                break
        copy += 1
    return folder, size


def batches(texts: list[str]) -> Any:
    """Yield the texts in batches of about 8 MB."""
    batch: list[str] = []
    filled = 0
    for text in texts:
        batch.append(text)
        filled += len(text)
        if filled >= BATCH_CHARS:
            yield batch
            batch, filled = [], 0
    yield batch


def library(tokenizer: Any, texts: list[str]) -> float:
    """A: seconds of the library's batch encoding."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True

    def run() -> None:
        for batch in batches(texts):
            backend.encode_batch_fast(batch, add_special_tokens=False)

    return seconds_of(run)


def ancestor(tokenizer: Any, texts: list[str], context: int) -> float:
    """B: seconds of the ancestor's two maps, less their disk format: tokenize 1,000 rows, then concatenate and cut."""

    def run() -> None:
        for start in range(0, len(texts), 1000):
            ids = tokenizer(texts[start : start + 1000])["input_ids"]
            stream = list(itertools.chain.from_iterable(ids))
            rows = [stream[i : i + context] for i in range(0, len(stream) // context * context, context)]
            [list(row) for row in rows]  # labels: a second copy

    return seconds_of(run)


def pack_folder(inputs: list[str], tokenizer: str, num_workers: int | None, context: int) -> dict[str, float]:
    """C: seconds and memory of `ttl pack`, of all its processes together."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "packed"
        command = [sys.executable, "-m", "teenytinyllama", "pack", "--inputs", *inputs]
        command += ["--tokenizer", tokenizer, "--output_dir", str(output), "--context", str(context)]
        command += ["--num_workers", str(num_workers)] if num_workers else []
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, tree_rss_mb(process.pid))
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"ttl pack failed: {' '.join(command)}")
        manifest = json.loads((output / "run.json").read_text())
        return {"seconds": seconds, "rss_mb": peak, "train_sha256": manifest["hashes"]["train.npy"]}


def tree_rss_mb(pid: int) -> float:
    """Return the resident memory of a process and its children, added up: what they share counts in each."""
    import psutil

    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
        return sum(process.memory_info().rss for process in family) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def main() -> None:
    """Print the tables."""
    options = parser(__doc__)
    options.add_argument("--inputs", nargs="+", required=True, help="corpus: files or folders")
    options.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    options.add_argument("--context", type=int, default=2048)
    options.add_argument("--megabytes", type=int, nargs="*", default=[], help="sizes for the second table")
    arguments = options.parse_args()
    from teenytinyllama.models import load_tokenizer

    tokenizer = load_tokenizer("tokenizer", arguments.tokenizer)
    texts = read_texts(arguments.inputs)
    size_mb = sum(len(text.encode()) for text in texts) / 1e6
    packs: list[dict[str, float]] = []

    def pack_once() -> float:
        packs.append(pack_folder(arguments.inputs, arguments.tokenizer, None, arguments.context))
        return packs[-1]["seconds"]

    cases = {
        "A tokenizers, batch encoding": lambda: library(tokenizer, texts),
        "B the ancestor's maps": lambda: ancestor(tokenizer, texts, arguments.context),
        "C ttl pack, files to rows": pack_once,
    }
    seconds = interleave(cases, arguments.repeats)
    base = median(seconds["A tokenizers, batch encoding"])
    rows = [[name, median(s), size_mb / median(s), base / median(s)] for name, s in seconds.items()]
    print(f"{size_mb:.1f} MB, {os.cpu_count()} cores, medians of {arguments.repeats}")
    print_table(["what", "seconds", "MB/s", "times A"], rows)
    figures: dict[str, Any] = {"seconds": seconds, "megabytes": size_mb, "pack": packs, "sizes": []}
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            corpus, size = write_corpus(texts, megabytes, Path(folder) / "corpus")
            for workers in (1, os.cpu_count() or 1):
                found = pack_folder([str(corpus)], arguments.tokenizer, workers, arguments.context)
                figures["sizes"].append({"megabytes": size / 1e6, "workers": workers, **found})
            shutil.rmtree(corpus)
    if figures["sizes"]:
        heads = ["MB", "workers", "seconds", "MB/s", "MB resident, all processes", "rows (sha256)"]
        print_table(heads, [[round(r["megabytes"]), r["workers"], r["seconds"], r["megabytes"] / r["seconds"],
                             r["rss_mb"], r["train_sha256"][:12]] for r in figures["sizes"]])  # fmt: skip
    write_results(arguments.json, figures)


if __name__ == "__main__":
    main()
