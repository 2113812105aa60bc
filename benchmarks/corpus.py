"""Speed of `ttl corpus`: its steps beside datatrove's stock steps of the same rules, and how the whole grows.

    pip install --target OTHER "datatrove==0.10.1" "xxhash<4" "spacy>=3.8"
    TTL_REAL_DATA=DATA python benchmarks/corpus.py steps --megabytes 1 --other_packages OTHER --json steps.json
    TTL_REAL_DATA=DATA python benchmarks/corpus.py whole --sizes 10 40 160 700 --workers 1 --json whole.json

DATA has `raw/leis_html.parquet` (html, url), `raw/parlamento.parquet`, `raw/outras_linguas.parquet`, `corpus/*.parquet`
(text, metadata) and `eval/` with `oab`, `enem_2022` and `faquad`.

steps  The same amount of text of each file, drawn at random with a fixed seed (pages without their tags), goes through
       each step by itself, in a process of its own on one core: ours and stock in turn, medians of processor seconds.
       `quality` are FineWeb-2's rules for Portuguese with its values, in stock GopherRepetitionFilter,
       FineWebQualityFilter and GopherQualityFilter; `duplicates` MinHash of 14 x 8 over what these rules keep. Ours
       begins with an empty table of words and compares true similarities besides. Stock's other steps need models that
       must be downloaded, or do less (its PIIFormatter knows e-mail and IP alone), so they stand alone.
       Documents that both do not decide alike are listed by both reasons.
whole  `ttl corpus` over a part of every file, chosen by row, from pages to shards and passport: wall and processor
       seconds, the peak memory of its largest process, and the seconds of each step as run.json has them. Beyond the
       size of the data, rows are taken again with one word in four of a text changed.
"""

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import in_child, median, parser, print_table, write_results
from corpus_data import DATA, files_of_data, our_duplicates, peak_mb, read_file, stock_duplicates, write_shards

LAW = {"quality": {"min_alphabetic_words": 0.6, "max_ellipses_per_word": None, "max_ellipsis_lines": None,
                   "max_duplicate_lines": 0.5, "max_duplicate_line_characters": 0.3,
                   "duplicate_n_grams": {5: 0.35, 10: 0.25}}}  # fmt: skip
SPEECH = {"quality": {"min_alphabetic_words": 0.7, "duplicate_n_grams": {5: 0.25, 10: 0.2}}}
FICTION = {"quality": {"min_alphabetic_words": 0.7}}
STEPS_OF = {"leis_html": LAW, "leis": LAW, "juridico": LAW, "parlamento": SPEECH, "romances": FICTION,
            "machado": FICTION}  # fmt: skip
EVALUATION = {"oab": ["question", "choices"], "enem_2022": ["context", "question", "alternatives"],
              "faquad": ["context", "question"]}  # fmt: skip
REASONS = {
    "dup_line_frac": "duplicate_lines", "line_punct_ratio": "punctuated_lines", "list_ratio": "lines_per_word",
    "char_dup_ratio": "duplicate_line_characters", "gopher_short_doc": "few_words", "gopher_long_doc": "many_words",
    "gopher_below_avg_threshold": "short_words", "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hashes", "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines", "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "alphabetic_words", "gopher_enough_stop_words": "stop_words", "empty": "empty",
    **{f"top_{size}_gram": f"top_{size}_grams" for size in (2, 3, 4)},
    **{f"duplicated_{size}_n_grams": f"duplicate_{size}_grams" for size in range(5, 11)},
}  # fmt: skip
# --- steps


def stock_filters() -> list[Any]:
    """Return datatrove's filters with the values and the calls of `fineweb-2-pipeline.py`."""
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    from teenytinyllama.cleaning.quality import STOP_WORDS, QualityConfig

    config, language = QualityConfig(), "por_Latn"
    return [
        GopherRepetitionFilter(
            language=language, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0,
            dup_line_frac=config.max_duplicate_lines, top_n_grams=tuple(config.top_n_grams.items()),
            dup_n_grams=tuple(config.duplicate_n_grams.items()),
        ),
        FineWebQualityFilter(
            language=language, short_line_thr=999, char_duplicates_ratio=config.max_duplicate_line_characters,
            line_punct_thr=config.min_punctuated_lines, new_line_ratio=config.max_lines_per_word,
        ),
        GopherQualityFilter(
            language=language, max_avg_word_length=config.max_word_characters, stop_words=STOP_WORDS,
            min_avg_word_length=config.min_word_characters, min_stop_words=config.min_stop_words,
            max_non_alpha_words_ratio=config.min_alphabetic_words,
        ),
    ]  # fmt: skip


def stock_quality() -> Callable[[str], str | None]:
    """Return what asks the stock filters in a row and gives the reason in our names, or None for a kept text."""
    from datatrove.data import Document

    filters = stock_filters()

    def decide(text: str) -> str | None:
        document = Document(text=text, id="0")
        for each in filters:
            result = each.filter(document)
            if result is not True:
                return REASONS[result[1]]
        return None

    return decide


def our_steps() -> dict[str, Callable[[str], Any]]:
    """Return our steps of one document by name, in the order of the chain."""
    from teenytinyllama.arguments import build
    from teenytinyllama.cleaning.language import NormaliseConfig, identify, normalise, variety_of
    from teenytinyllama.cleaning.page_text import HtmlConfig, remove_boilerplate, text_of_html
    from teenytinyllama.cleaning.personal_data import mask_personal_data
    from teenytinyllama.cleaning.quality import check_quality
    from teenytinyllama.corpus.chain import evaluation_index
    from teenytinyllama.corpus.config import BuildConfig
    from teenytinyllama.corpus.decontamination import decontaminate
    from teenytinyllama.corpus.text_statistics import TextStatistics

    index = evaluation_index(build(BuildConfig, config_of("unused", DATA, [])))
    statistics = TextStatistics()
    row = {"variety": "", "license": "", "tokens": 0}
    return {
        "html": lambda page: text_of_html(page.encode(), HtmlConfig()),
        "normalise": lambda text: normalise(text, NormaliseConfig()),
        "boilerplate": remove_boilerplate, "language": identify, "variety": variety_of,
        "quality": lambda text: (drop := check_quality(text)) and drop.reason,
        "personal data": mask_personal_data,
        "decontamination, count": lambda text: index and index.count_phrases([text]),
        "decontamination, search": lambda text: index and decontaminate(text, index),
        "statistics": lambda text: statistics.add({"text": text, **row}),
    }  # fmt: skip


def run_steps(folder: Path, side: str) -> dict[str, Any]:
    """Take the texts of a folder through the steps of one side; returns seconds and MB by step, and the reasons."""
    texts, pages = json.loads((folder / "texts.json").read_text()), json.loads((folder / "pages.json").read_text())
    steps = our_steps() if side == "ours" else {"quality": stock_quality()}
    megabytes = {name: sum(len(text.encode()) for text in of) / 1e6 for name, of in (("html", pages), ("text", texts))}
    rates: dict[str, list[float]] = {}
    reasons: list[str | None] = []
    for name, step in steps.items():
        of = pages if name == "html" else texts
        if name != "quality":  # what a step loads at its first text; the table of words stays empty
            step(of[0])
        start = time.process_time()
        found = [step(text) for text in of]
        rates[name] = [megabytes["html" if name == "html" else "text"], time.process_time() - start]
        reasons = found if name == "quality" else reasons
    kept = [text for text, reason in zip(texts, reasons, strict=True) if reason is None]
    with tempfile.TemporaryDirectory() as place:
        write_shards(kept, Path(place) / "shards")
        find = our_duplicates if side == "ours" else stock_duplicates
        found_twins = find(Path(place) / "shards", Path(place))
    size = sum(len(text.encode()) for text in kept) / 1e6
    rates["duplicates"] = [size, found_twins["seconds"]]
    return {"rates": rates, "reasons": reasons, "removed": len(found_twins["removed"]), "peak_mb": peak_mb()}


def compare_steps(args: Any) -> dict[str, Any]:
    """Print and return MB/s by step, ours beside stock, and what is decided otherwise."""
    drawn = [(path.stem, text) for path in files_of_data() if path.stem != "outras_linguas"
             for text in read_file(path, args.megabytes)]  # fmt: skip
    random.Random(0).shuffle(drawn)
    sides = ["ours", "stock"] if args.other_packages else ["ours"]
    others = {"ours": [], "stock": [str(args.other_packages)]}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps([text for _, text in drawn]))
        pages = list(read_file(DATA / "raw" / "leis_html.parquet", 4 * args.megabytes, pages=True))
        (folder / "pages.json").write_text(json.dumps(pages))
        for _ in range(args.repeats):
            for side in sides:
                runs[side].append(in_child([__file__, "--child", side, name, *others[side]], {"OMP_NUM_THREADS": "1"}))
    rates: dict[str, dict[str, tuple[float, float]]] = {
        side: {step: (done[0]["rates"][step][0], median(run["rates"][step][1] for run in done))
               for step in done[0]["rates"]} for side, done in runs.items()}  # fmt: skip
    for own in rates.values():
        own["quality and duplicates"] = own["quality"][0], own["quality"][1] + own["duplicates"][1]
    ours = rates["ours"]
    every = [own for step, own in ours.items() if step not in ("html", "quality and duplicates")]
    ours["all steps of a text"] = ours["quality"][0], sum(seconds for _, seconds in every)
    speeds = {side: {step: size / seconds for step, (size, seconds) in own.items()} for side, own in rates.items()}
    stock = speeds.get("stock", {})
    print(f"{len(drawn):,} documents, {ours['quality'][0]:.1f} MB of text, {ours['html'][0]:.1f} MB of pages")
    print_table(["step", "ours MB/s", "stock MB/s", "times"],
                [[step, mb, stock.get(step), mb / stock[step] if step in stock else None]
                 for step, mb in speeds["ours"].items()])  # fmt: skip
    results: dict[str, Any] = {"documents": len(drawn), "rates": rates, "megabytes_per_second": speeds}
    if stock:
        results["decisions"] = report_decisions(drawn, runs["stock"][0]["reasons"], runs["ours"][0]["reasons"])
    return results


def report_decisions(drawn: list[tuple[str, str]], stock: list[str | None], ours: list[str | None]) -> dict[str, Any]:
    """Print and return where both decide otherwise, and our drops by source."""
    sources = [source for source, _ in drawn]
    alike = sum((a is None) == (b is None) for a, b in zip(stock, ours, strict=True))
    others = Counter((a or "kept", b or "kept") for a, b in zip(stock, ours, strict=True) if a != b)
    print(f"\ndecided alike: {alike:,} of {len(stock):,} documents ({alike / len(stock):.4%})")
    print_table(["stock", "ours", "documents"], [[*pair, count] for pair, count in others.most_common()])
    rows, drops = [], {}
    for source in dict.fromkeys(sources):
        counts = Counter(reason or "kept" for name, reason in zip(sources, ours, strict=True) if name == source)
        drops[source] = dict(counts.most_common())
        shown = ", ".join(f"{reason} {count}" for reason, count in counts.most_common() if reason != "kept")
        rows.append([source, sum(counts.values()), f"{counts['kept'] / sum(counts.values()):.1%}", shown])
    print_table(["source", "documents", "kept", "dropped by"], rows)
    return {"alike": alike, "otherwise": [[*pair, count] for pair, count in others.items()], "drops": drops}


# --- whole


def config_of(output: str, folder: Path, files: list[Path]) -> dict[str, Any]:
    """Return the config of a corpus of files below a folder, with limits of quality that suit their registers."""
    sources = {}
    for path in files:
        sources[path.stem] = {"inputs": [str(path)], "license": "other", "steps": STEPS_OF.get(path.stem, {})}
        if path.stem == "leis_html":
            sources[path.stem] |= {"html_column": "html", "url_column": "url"}
    sets = {name: {"inputs": [str(DATA / "eval" / f"{name}.parquet")], "columns": columns}
            for name, columns in EVALUATION.items()}  # fmt: skip
    return {"output_dir": output, "sources": sources or {"none": {"inputs": [str(folder)], "license": "other"}},
            "decontamination": {"sets": sets}}  # fmt: skip


def changed(text: str, copy: int, rng: random.Random) -> str:
    """Return a text, or the text of a page, with one word in four made another one; copy 0 is the text itself."""
    if not copy:
        return text
    alter = lambda match: match.group() if rng.random() > 0.25 else f"{match.group()}{copy}"  # noqa: E731
    return re.sub(r"(?<![<&/\w])[a-záéíóúâêôãõç]{3,}(?![^<>]*>)", alter, text)


def write_part(path: Path, target: Path, share: float) -> int:
    """Write a share of a file's rows, above 1 with changed copies; returns the bytes of its texts or pages."""
    import pyarrow
    import pyarrow.parquet

    size, copy, rng, owed = 0, 0, random.Random(2), 0.0
    column = "text" if "text" in pyarrow.parquet.read_schema(path).names else "html"
    writer = None
    while share > 0:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(500):
            rows = []
            for row in batch.to_pylist():
                owed += min(share, 1)
                if owed >= 1:
                    owed -= 1
                    rows.append({**row, column: changed(row[column], copy, rng)})
                    size += len(rows[-1][column].encode())
            writer = writer or pyarrow.parquet.ParquetWriter(target, batch.schema)
            writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=batch.schema))
        share, copy = share - 1, copy + 1
    if writer:
        writer.close()
    return size


def descendants(process: int) -> list[int]:
    """Return a process and all that it and they have started, as Linux lists them."""
    found = [process]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, tasks.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def run_corpus(config: Path) -> dict[str, float]:
    """Run `ttl corpus`; returns wall and processor seconds, and the peak memory of its largest process."""
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, "-m", "teenytinyllama", "corpus", "--config", str(config)]) as process:
        while process.poll() is None:
            time.sleep(0.2)  # first of all: a process has its parent's peak until it runs a program of its own
            for each in descendants(process.pid):
                try:
                    peak = max(peak, peak_mb(str(each)))
                except OSError:  # it has ended
                    continue
    if process.returncode:
        raise SystemExit(f"ttl corpus ended with {process.returncode}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak,
            "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}  # fmt: skip


def measure_whole(args: Any) -> dict[str, Any]:
    """Print and return speed, memory and the share of each step of runs of several sizes."""
    from teenytinyllama.arguments import write_yaml

    files = files_of_data()
    sizes = {path: size_of(path) for path in files}
    results = []
    for megabytes in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            share = megabytes * 1e6 / sum(sizes.values())
            raw = sum(write_part(path, folder / path.name, share) for path in files) / 1e6
            parts = [folder / path.name for path in files if (folder / path.name).exists()]
            config = {**config_of(str(folder / "out"), folder, parts), "workers": args.workers}
            write_yaml(folder / "corpus.yaml", config)
            found = run_corpus(folder / "corpus.yaml")
            manifest = json.loads((folder / "out" / "run.json").read_text())
            results.append({"megabytes": raw, **found, "steps": manifest["seconds"], "shares": manifest["shares"]})
    print_table(["MB", "seconds", "MB/s", "processor s", "MB/processor s", "peak MB"],
                [[found["megabytes"], found["seconds"], found["megabytes"] / found["seconds"],
                  found["processor_seconds"], found["megabytes"] / found["processor_seconds"], found["peak_mb"]]
                 for found in results])  # fmt: skip
    names = list(dict.fromkeys((phase, step) for found in results for phase, own in found["steps"].items()
                               for step in own))  # fmt: skip
    heads = [f"{found['megabytes']:.0f} MB" for found in results]
    totals = [sum(sum(own.values()) for own in found["steps"].values()) for found in results]
    print_table(["phase", "step", *heads],
                [[*name, *(f"{found['steps'].get(name[0], {}).get(name[1], 0) / total:.1%}"
                           for found, total in zip(results, totals, strict=True))] for name in names])  # fmt: skip
    return {"runs": results, "workers": args.workers}


def size_of(path: Path) -> int:
    """Return the bytes of the texts or pages of a file."""
    import pyarrow.compute
    import pyarrow.parquet

    column = "text" if "text" in pyarrow.parquet.read_schema(path).names else "html"
    batches = pyarrow.parquet.ParquetFile(path).iter_batches(500, columns=[column])
    return sum(pyarrow.compute.sum(pyarrow.compute.binary_length(batch[column])).as_py() or 0 for batch in batches)


def main() -> None:
    """Run what the command line asks for."""
    if "--child" in sys.argv:
        side, folder, *others = sys.argv[sys.argv.index("--child") + 1 :]
        sys.path[:0] = others  # before the installed ones: xxhash<4
        print(json.dumps(run_steps(Path(folder), side)))
        return
    made = parser(__doc__)
    made.add_argument("what", choices=["steps", "whole"])
    made.add_argument("--megabytes", type=float, default=1, help="steps: of text from each file")
    made.add_argument("--other_packages", type=Path, help="steps: the folder with datatrove; left out without it")
    made.add_argument("--sizes", type=float, nargs="+", default=[10, 40], help="whole: megabytes of raw material")
    made.add_argument("--workers", type=int, default=1, help="whole: shards worked on at once")
    made.add_argument("--folder", type=Path, help="whole: where the corpora are made; a temporary folder by default")
    args = made.parse_args()
    write_results(args.json, {"steps": compare_steps, "whole": measure_whole}[args.what](args))


if __name__ == "__main__":
    main()
