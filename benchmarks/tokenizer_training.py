"""Training the tokenizer against `tokenizers`' own training on the same sample: time and peak memory by size.

    python benchmarks/tokenizer_training.py --inputs corpus --megabytes 10 100 500 2000

A  `tokenizers`: BpeTrainer of as many entries after a split at spaces, fed the sample from memory.
B  `train_tokenizer`, from the documents of the corpus: sampling, alphabet, learning, superwords, checks.

Each is a process of its own. Sizes beyond the inputs' are made of the inputs over and over, with a number in each
repeated document; from `--max_bytes` on the sample no longer grows.
"""

import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import in_child, median, parser, peak_rss_mb, print_table, write_results


def documents(inputs: list[str], megabytes: float) -> Iterator[Any]:
    """Yield documents of the inputs until the size is reached, in a fixed random order, again and again."""
    import random

    from teenytinyllama.data.sources import Corpus, CorpusConfig, Document

    found = [document for _, document in Corpus(CorpusConfig(inputs=inputs)).documents()]
    random.Random(0).shuffle(found)
    left = megabytes * 1e6
    for copy in itertools.count():
        for document in found:
            text = document.text if copy == 0 else f"{document.text}\n{copy}"
            if left <= 0:
                return
            left -= len(text.encode())
            yield Document(text, document.source, document.license)


def train(case: str, inputs: list[str], megabytes: float, vocab_size: int, max_bytes: int) -> dict[str, float]:
    """Train once in this process; the texts lie ready on the disk of the caller, not in memory."""
    from teenytinyllama.tokenizer.learn import sample_texts
    from teenytinyllama.tokenizer.train import train_tokenizer

    stream = documents(inputs, megabytes)
    before = peak_rss_mb()
    if case == "B":
        start = time.perf_counter()
        tokenizer = train_tokenizer(stream, vocab_size, max_bytes=max_bytes)
        return {"seconds": time.perf_counter() - start, "rss_mb": peak_rss_mb(), "entries": len(tokenizer)}
    sample = sample_texts(stream, max_bytes)
    start = time.perf_counter()
    entries = library(sample.texts(), vocab_size)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rss_mb": peak_rss_mb(), "entries": entries, "before_mb": before,
            "cpu_seconds": resource.getrusage(resource.RUSAGE_SELF).ru_utime}  # fmt: skip


def library(texts: Iterator[str], vocab_size: int) -> int:
    """A: train as the documentation of `tokenizers` shows; return the number of entries."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, limit_alphabet=200, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return int(backend.get_vocab_size())


def sampling_seconds(inputs: list[str], megabytes: float, max_bytes: int) -> float:
    """Return the seconds of reading and sampling, which A does not do."""
    from teenytinyllama.tokenizer.learn import sample_texts

    start = time.perf_counter()
    sample_texts(documents(inputs, megabytes), max_bytes)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--inputs", nargs="+", required=True, help="corpus: files or folders")
    options.add_argument("--megabytes", type=float, nargs="+", default=[10, 100])
    options.add_argument("--vocab_size", type=int, default=32_000)
    options.add_argument("--max_bytes", type=int, default=1_000_000_000)
    options.add_argument("--case", help="internal: A, B or S")
    arguments = options.parse_args()
    if arguments.case:
        size, limit = arguments.megabytes[0], arguments.max_bytes
        result = (
            {"seconds": sampling_seconds(arguments.inputs, size, limit), "rss_mb": peak_rss_mb()}
            if arguments.case == "S"
            else train(arguments.case, arguments.inputs, size, arguments.vocab_size, limit)
        )
        print(json.dumps(result))
        return
    rows, figures = [], []
    for size in arguments.megabytes:
        found: dict[str, list[dict[str, Any]]] = {"A": [], "B": [], "S": []}
        for _ in range(arguments.repeats):
            for case, results in found.items():
                command = [str(Path(__file__)), "--case", case, "--inputs", *arguments.inputs, "--megabytes", str(size)]
                command += ["--vocab_size", str(arguments.vocab_size), "--max_bytes", str(arguments.max_bytes)]
                results.append(in_child(command))
        seconds = {case: median(result["seconds"] for result in results) for case, results in found.items()}
        memory = {case: median(result["rss_mb"] for result in results) for case, results in found.items()}
        a, b, reading = (seconds[case] for case in ("A", "B", "S"))
        rows.append([round(size), a, b, reading, (b - reading) / a, b / a, memory["A"], memory["B"]])
        figures.append({"megabytes": size, "seconds": seconds, "rss_mb": memory})
        print(f"done: {size} MB", file=sys.stderr)
    heads = ["MB", "A s", "B s", "of it reading and sampling", "B without reading / A", "B / A", "A MB", "B MB"]
    print_table(heads, rows)
    write_results(arguments.json, {"sizes": figures})


if __name__ == "__main__":
    main()
