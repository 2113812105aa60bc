"""Duplicates and decontamination: speed, memory, and what is found of planted copies, beside datatrove's MinHash.

    python benchmarks/corpus_twins.py --inputs corpus/*.parquet --megabytes 20 --other_packages FOLDER

The texts are taken at random up to the size. Pairs are planted: copies of texts whose words are changed, left out,
added, or whose passages are moved, until the true Jaccard similarity of the 5-grams falls to 0.80, 0.85 or 0.90.

A  ours, in a process of its own: fingerprints of each shard, decisions with true similarities, all on one core.
B  datatrove's stock MinHash in a process of its own: signatures, buckets, clusters and filter, on one core. It needs
   datatrove, xxhash<4 and spacy, which may lie in a folder of their own (pip install --target FOLDER …).

What a tool removed is judged the same way for both: the largest true similarity of a removed document to any that
stays. With --sizes, ours runs alone on corpora of several sizes made of the inputs, which shows how time and memory
grow. With --evaluation, rows of evaluation sets are planted into texts, and searched for in the inputs.
"""

import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import in_child, median, parser, peak_rss_mb, print_table, write_results

LEVELS = (0.80, 0.85, 0.90)
SHARD_MEGABYTES = 10


def peak_mb() -> float:
    """Return the peak memory of this process in MB; on Linux without what its parent held before it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), peak_rss_mb())


def read_texts(inputs: list[str], megabytes: float, seed: int = 0) -> list[str]:
    """Return documents of at least 50 words at random, up to a size."""
    import pyarrow.parquet

    texts = [text for path in inputs for text in pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()]
    random.Random(seed).shuffle(texts)
    chosen, size = [], 0.0
    for text in texts:
        if len(text.split()) >= 50 and size + len(text.encode()) / 1e6 <= megabytes:
            chosen.append(text)
            size += len(text.encode()) / 1e6
    return chosen


def edited(text: str, level: float, rng: random.Random) -> tuple[str, float]:
    """Return a copy that is changed at random places until its similarity is just above a level, and the similarity."""
    from teenytinyllama.corpus.minhash import gram_sets, jaccard

    words = text.split()
    places = rng.sample(range(len(words)), len(words))
    kinds = [rng.choice(("change", "leave out", "add")) for _ in words]
    others = rng.choices(words, k=len(words))
    [original] = gram_sets([text])

    def copy(edits: int) -> str:
        made = {place: (kinds[place], others[place]) for place in places[:edits]}
        out: list[str] = []
        for place, word in enumerate(words):
            kind, other = made.get(place, ("", ""))
            out += [word] if not kind else [other] if kind == "change" else [word, other] if kind == "add" else []
        return " ".join(out)

    low, high = 0, len(words)  # edits that leave the similarity above, and below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if jaccard(original, next(gram_sets([copy(middle)]))) >= level else (low, middle)
    made = copy(low)
    return made, jaccard(original, next(gram_sets([made])))


def without_twins(texts: list[str]) -> set[int]:
    """Return the places of texts that share less than a third of their n-grams with any other text."""
    from teenytinyllama.corpus.minhash import gram_sets

    sets = list(gram_sets(texts))
    values, counts = np.unique(np.concatenate(sets), return_counts=True)
    common = values[counts > 1]
    shares = (np.isin(grams, common, assume_unique=True).mean() if len(grams) else 1 for grams in sets)
    return {place for place, share in enumerate(shares) if share < 1 / 3}


def plant(texts: list[str], pairs: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Append copies to texts; returns all texts and what was planted.

    Each text is copied once at most, and none that is like another one: where a tool removes the copy or the original,
    it has found this pair.
    """
    rng = random.Random(1)
    alone = without_twins(texts)
    long = [place for place, text in enumerate(texts) if place in alone and 150 <= len(text.split()) <= 20_000]
    rng.shuffle(long)
    planted, copies = [], []
    pairs = min(pairs, len(long) // len(LEVELS))
    for number, level in enumerate(LEVELS):
        for place in long[number * pairs : (number + 1) * pairs]:
            made, similarity = edited(texts[place], level, rng)
            if similarity < level + 0.02:
                planted.append({"level": level, "original": place, "copy": len(texts) + len(copies)})
                copies.append(made)
    return [*texts, *copies], planted


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


def run_ours(shards: Path, work: Path) -> dict[str, Any]:
    """Find the duplicates of shards; returns seconds of the steps, peak memory and the removed documents."""
    import pyarrow.parquet

    from teenytinyllama.corpus.duplicates import find_duplicates
    from teenytinyllama.corpus.minhash import fingerprints

    files = sorted(shards.glob("*.parquet"))

    def texts_of(shard: int) -> Any:
        for batch in pyarrow.parquet.ParquetFile(files[shard]).iter_batches(500, columns=["text"]):
            yield from batch["text"].to_pylist()

    before = peak_mb()
    start = time.perf_counter()
    made = [work / f"{shard}.npy" for shard in range(len(files))]
    for shard, path in enumerate(made):
        np.save(path, fingerprints(texts_of(shard)))
    middle = time.perf_counter()
    decided = [work / f"decided-{shard}.npy" for shard in range(len(files))]
    counts = find_duplicates(made, texts_of, decided, work / "scratch")
    end = time.perf_counter()
    decisions = np.concatenate([np.load(path) for path in decided])
    return {"seconds": end - start, "signatures": middle - start, "search": end - middle, "peak_mb": peak_mb(),
            "before_mb": before, "counts": counts, "removed": np.flatnonzero(~decisions["keep"]).tolist()}  # fmt: skip


def run_datatrove(shards: Path, work: Path) -> dict[str, Any]:
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

    config = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=5, num_buckets=14, hashes_per_bucket=8)
    files = len(list(shards.glob("*.parquet")))
    read = lambda: ParquetReader(str(shards))  # noqa: E731
    start = time.perf_counter()
    for task in range(files):
        signature = MinhashDedupSignature(str(work / "s"), config=config, language=Languages.portuguese__latn)
        signature.run(read().run(rank=task, world_size=files), task, files)
    middle = time.perf_counter()
    for bucket in range(14):
        MinhashDedupBuckets(str(work / "s"), str(work / "b"), config=config).run(None, bucket, 14)
    MinhashDedupCluster(str(work / "b"), str(work / "r"), config=config).run(None, 0, 1)
    kept: set[int] = set()
    for task in range(files):
        step = MinhashDedupFilter(str(work / "r"))
        kept |= {int(document.id) for document in step.run(read().run(rank=task, world_size=files), task, files)}
    end = time.perf_counter()
    total = sum(1 for task in range(files) for _ in read().run(rank=task, world_size=files))
    return {"seconds": end - start, "signatures": middle - start, "search": end - middle, "peak_mb": peak_mb(),
            "removed": sorted(set(range(total)) - kept)}  # fmt: skip


def similarity_to_kept(texts: list[str], removed: list[int]) -> list[float]:
    """Return for each removed document its largest true similarity to one that stays, found through all its n-grams."""
    from teenytinyllama.corpus.minhash import gram_sets

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


def judged(found: dict[str, Any], texts: list[str], planted: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the recall of planted pairs by level, and the share of removed documents that are near one that stays."""
    removed = set(found["removed"])
    recall = {}
    for level in LEVELS:
        pairs = [pair for pair in planted if pair["level"] == level]
        hit = [pair["copy"] in removed or pair["original"] in removed for pair in pairs]
        recall[f"{level:.2f}"] = sum(hit) / max(1, len(hit))
    near = similarity_to_kept(texts, found["removed"])
    above = sum(similarity >= 0.75 for similarity in near) / max(1, len(near))
    return {"recall": recall, "removed": len(near), "above": above}


def compare(args: Any, folder: Path) -> dict[str, Any]:
    """Run ours and datatrove's on the same shards with planted pairs."""
    texts, planted = plant(read_texts(args.inputs, args.megabytes), args.pairs)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    write_shards(texts, folder / "shards")
    environment = {"OMP_NUM_THREADS": "1", "DATATROVE_COLORIZE_LOGS": "0"}
    tools = ["ours", "datatrove"] if args.other_packages else ["ours"]
    results: dict[str, Any] = {"megabytes": megabytes, "documents": len(texts), "planted": len(planted)}
    rows = []
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in tools}
    others = [str(args.other_packages)] if args.other_packages else []
    for repeat, name in itertools.product(range(args.repeats), tools):
        work = folder / f"{name}-{repeat}"
        work.mkdir()
        runs[name].append(
            in_child([__file__, "--child", name, str(folder / "shards"), str(work), *others], environment)
        )
    for name, repeats in runs.items():
        found = {**repeats[0], **{key: median(run[key] for run in repeats)
                                  for key in ("seconds", "signatures", "search", "peak_mb")}}  # fmt: skip
        verdict = judged(found, texts, planted)
        results[name] = {**{k: v for k, v in found.items() if k != "removed"}, **verdict}
        rows.append([name, megabytes / found["seconds"], found["signatures"], found["search"], found["peak_mb"],
                     *verdict["recall"].values(), verdict["removed"], verdict["above"]])  # fmt: skip
    print(f"{megabytes:.1f} MB, {len(texts)} documents, {len(planted)} planted pairs, one core each")
    print_table(["", "MB/s", "signatures s", "search s", "peak MB", *(f"recall at {level:.2f}" for level in LEVELS),
                 "removed", "of these above 0.75"], rows)  # fmt: skip
    return results


def growth(args: Any, folder: Path) -> list[dict[str, Any]]:
    """Run ours on corpora of several sizes; beyond the inputs' size, copies with one word in four changed."""
    texts = read_texts(args.inputs, 1e9)
    rng = random.Random(2)
    rows: list[list[Any]] = []
    results = []
    for size in args.sizes:
        chosen: list[str] = []
        total = copy = 0
        while total < size * 1e6:
            for text in texts:
                words = text.split(" ")
                made = text if not copy else " ".join(w if rng.random() > 0.25 else f"{w}{copy}" for w in words)
                chosen.append(made)
                total += len(made.encode())
                if total >= size * 1e6:
                    break
            copy += 1
        shards, work = folder / f"shards-{size}", folder / f"work-{size}"
        write_shards(chosen, shards)
        work.mkdir()
        del chosen
        found = in_child([__file__, "--child", "ours", str(shards), str(work)], {"OMP_NUM_THREADS": "1"})
        del found["removed"]
        results.append({"megabytes": total / 1e6, **found})
        rows.append([total / 1e6, found["counts"]["documents"], found["seconds"], total / 1e6 / found["seconds"],
                     found["peak_mb"], found["peak_mb"] - found["before_mb"]])  # fmt: skip
    print_table(["MB", "documents", "seconds", "MB/s", "peak MB", "of these work"], rows)
    return results


def evaluation_items(paths: list[str]) -> dict[str, list[list[str]]]:
    """Return the items of evaluation sets: every text column of a row but its id, answers and copies of the row."""
    import pyarrow.parquet

    from teenytinyllama.corpus.decontamination import item_texts

    left_out = {"id", "answer", "answerKey", "label", "exam", "number", "raw", "title", "area", "index_id", "category"}
    sets = {}
    for path in paths:
        table = pyarrow.parquet.read_table(path)
        columns = [name for name in table.column_names if name not in left_out and not name.endswith("labels")]
        columns = [name for name in columns if name != "answers"]
        sets[Path(path).stem] = [item_texts(row, columns) for row in table.to_pylist()]
    return sets


def changed(text: str, words: list[str], rng: random.Random) -> str:
    """Return a text with one word in ten replaced by a word at random."""
    parts = text.split()
    for place in rng.sample(range(len(parts)), min(len(parts), max(1, round(len(parts) / 10)))):
        parts[place] = rng.choice(words)
    return " ".join(parts)


def contamination(args: Any) -> dict[str, Any]:
    """Plant items into texts by length, and measure the search's speed on the inputs."""
    from teenytinyllama.cleaning.word_hashes import hash_words
    from teenytinyllama.corpus.decontamination import EvaluationIndex

    sets = evaluation_items(args.evaluation)
    start = time.perf_counter()
    index = EvaluationIndex.from_sets(sets)
    seconds = time.perf_counter() - start
    texts = read_texts(args.inputs, args.megabytes)
    clean = [text for text in texts if not index.find_passages(text)]
    rng = random.Random(3)
    words = " ".join(clean[:200]).split()
    bounds = [5, 8, 15, 25, 50, 80, 10**9]
    found: dict[int, dict[str, list[bool]]] = {low: {"whole": [], "case": [], "one in ten": []} for low in bounds[:-1]}
    for items in sets.values():
        for item in rng.sample(items, min(200, len(items))):
            text = "\n".join(item)
            length = len(hash_words(text).hashes)
            low = max((bound for bound in bounds if bound <= length), default=None)
            if low is None:
                continue
            forms = {
                "whole": text,
                "case": rng.choice([text.upper(), text.title()]),
                "one in ten": changed(text, words, rng),
            }
            for form, made in forms.items():
                host = rng.choice(clean)
                place = rng.randrange(len(host))
                passages = index.find_passages(f"{host[:place]}\n{made}\n{host[place:]}")
                found[low][form].append(any(p.start <= place + len(made) and p.end > place for p in passages))
    rows = [[f"{low} to {high - 1}" if high < 10**9 else f"{low} or more", len(found[low]["whole"]),
             *(float(np.mean(hit)) if hit else None for hit in found[low].values())]
            for low, high in itertools.pairwise(bounds)]  # fmt: skip
    print_table(["words of the item", "items", "whole", "changed case", "one word in ten changed"], rows)
    start = time.perf_counter()
    hits = sum(bool(index.find_passages(text)) for text in texts)
    took = time.perf_counter() - start
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"index of {sum(index.sizes.values())} items: {seconds:.1f} s; {megabytes:.1f} MB searched at "
          f"{megabytes / took:.1f} MB/s, peak {peak_mb():.0f} MB; {hits} of {len(texts)} hit")  # fmt: skip
    return {"recall": rows, "megabytes_per_second": megabytes / took, "documents_hit": hits, "documents": len(texts)}


def main() -> None:
    """Run what the command line asks for."""
    if "--child" in sys.argv:
        name, shards, work, *others = sys.argv[sys.argv.index("--child") + 1 :]
        sys.path[:0] = others  # before the installed ones: xxhash<4
        run = {"ours": run_ours, "datatrove": run_datatrove}[name]
        print(json.dumps(run(Path(shards), Path(work))))
        return
    made = parser(__doc__)
    made.add_argument("--inputs", nargs="+", required=True, help="parquet files with a column text")
    made.add_argument("--megabytes", type=float, default=20)
    made.add_argument("--pairs", type=int, default=200, help="planted for each level")
    made.add_argument("--other_packages", type=Path, help="a folder with datatrove; left out without it")
    made.add_argument("--sizes", type=int, nargs="*", default=[], help="megabytes, for time and memory of ours alone")
    made.add_argument("--evaluation", nargs="*", default=[], help="parquet files of evaluation sets")
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {"compare": compare(args, Path(folder)), "growth": growth(args, Path(folder))}
    if args.evaluation:
        results["contamination"] = contamination(args)
    write_results(args.json, results)


if __name__ == "__main__":
    main()
