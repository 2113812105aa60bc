"""Quality rules, boilerplate and personal data of the corpus stage, beside datatrove's stock filters, on one core.

    pip install "datatrove==0.10.1" "xxhash<4" "spacy>=3.8"
    python benchmarks/corpus_quality.py --inputs FOLDER FILE.parquet ... --megabytes 2

Each file gives the same amount of text, drawn at random with a fixed seed; a column `html` is read without its tags.
Stock filters and ours see the same blocks of about 1 MB in turn, so that a busy moment meets both, and processor
seconds are counted. Ours begin with an empty table of words. The rules have FineWeb-2's values for Portuguese.

It prints MB/s by set of rules and for all in a row (a dropped document is not asked again), the share of documents that
both decide alike, every other one with both reasons, and the drops by source and reason.
"""

import html
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import parser, print_table, write_results

from teenytinyllama.cleaning.boilerplate import remove_boilerplate
from teenytinyllama.cleaning.measured_text import _table
from teenytinyllama.cleaning.personal_data import mask_personal_data
from teenytinyllama.cleaning.quality import STOP_WORDS, QualityConfig, check_quality

BLOCK_BYTES = 1_000_000
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
# Our keys of each stock filter.
KEYS = {
    "Gopher repetition": ("max_duplicate_lines", "top_n_grams", "duplicate_n_grams"),
    "FineWeb quality": ("min_punctuated_lines", "max_duplicate_line_characters", "max_lines_per_word"),
    "Gopher quality": (
        "min_words", "max_words", "min_word_characters", "max_word_characters", "max_hashes_per_word",
        "max_ellipses_per_word", "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words", "min_stop_words",
    ),
}  # fmt: skip
Decide = Callable[[str], str | None]


def only(keys: tuple[str, ...]) -> QualityConfig:
    """Return the shipped config with all rules off but those of some keys."""
    every = {key for names in KEYS.values() for key in names}
    off: dict[str, Any] = {key: {} if key.endswith("n_grams") else None for key in every - set(keys)}
    return QualityConfig(**off)


def stock_filters() -> dict[str, Any]:
    """Return datatrove's filters with the values and the calls of `fineweb-2-pipeline.py`."""
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    config, language = QualityConfig(), "por_Latn"
    return {
        "Gopher repetition": GopherRepetitionFilter(
            language=language, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0,
            dup_line_frac=config.max_duplicate_lines, top_n_grams=tuple(config.top_n_grams.items()),
            dup_n_grams=tuple(config.duplicate_n_grams.items()),
        ),
        "FineWeb quality": FineWebQualityFilter(
            language=language, short_line_thr=999, char_duplicates_ratio=config.max_duplicate_line_characters,
            line_punct_thr=config.min_punctuated_lines, new_line_ratio=config.max_lines_per_word,
        ),
        "Gopher quality": GopherQualityFilter(
            language=language, max_avg_word_length=config.max_word_characters, stop_words=STOP_WORDS,
            min_avg_word_length=config.min_word_characters, min_stop_words=config.min_stop_words,
            max_non_alpha_words_ratio=config.min_alphabetic_words,
        ),
    }  # fmt: skip


def without_tags(page: str) -> str:
    """Return the text of a page of old mark-up: tags go, blocks become lines. A stand-in for a real extractor."""
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", page)
    page = re.sub(r"(?i)</?(?:p|div|tr|br|h\d|li|table|center)\b[^>]*>", "\n", re.sub(r"\s+", " ", page))
    page = html.unescape(re.sub(r"(?s)<[^>]*>", "", page)).replace("\xa0", " ")
    return "\n".join(line for line in (" ".join(line.split()) for line in page.split("\n")) if line)


def read_texts(path: Path, megabytes: float) -> Iterator[str]:
    """Yield texts of a parquet file in a fixed random order until they make the size."""
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    column = "text" if "text" in names else "html"
    rows = pq.read_table(path, columns=[column])[column]
    left = megabytes * 1e6
    for place in random.Random(7).sample(range(len(rows)), len(rows)):
        value = rows[place].as_py()
        text = value.decode("cp1252", "replace") if isinstance(value, bytes) else value
        text = without_tags(text) if column == "html" else text
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def decide_stock(filters: dict[str, Any]) -> Decide:
    """Return what asks the stock filters in a row and gives the reason in our names, or None for a kept text."""
    from datatrove.data import Document

    def decide(text: str) -> str | None:
        document = Document(text=text, id="0")
        for each in filters.values():
            result = each.filter(document)
            if result is not True:
                return REASONS[result[1]]
        return None

    return decide


def decide_ours(config: QualityConfig) -> Decide:
    """Return what asks our rules."""

    def decide(text: str) -> str | None:
        drop = check_quality(text, config)
        return drop.reason if drop else None

    return decide


def cases() -> dict[str, tuple[Decide, Decide]]:
    """Return by set of rules what is measured: stock, ours."""
    filters = stock_filters()
    named = {name: (decide_stock({name: each}), decide_ours(only(KEYS[name]))) for name, each in filters.items()}
    return {"all rules": (decide_stock(filters), decide_ours(QualityConfig())), **named}


def blocks(texts: list[str]) -> Iterator[list[int]]:
    """Yield the places of texts of about 1 MB together."""
    block, size = [], 0
    for place, text in enumerate(texts):
        block.append(place)
        size += len(text)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def measure(pairs: dict[str, tuple[Decide, Decide]], texts: list[str]) -> dict[str, Any]:
    """Return processor seconds and decisions by set of rules, stock and ours in turn on each block."""
    from datatrove.utils.text import split_into_parts

    found: dict[str, Any] = {}
    for name, pair in pairs.items():
        _table.cache_clear()
        seconds, decisions = [0.0, 0.0], ([], [])
        for block in blocks(texts):
            for side in (0, 1):
                split_into_parts.cache_clear()
                start = time.process_time()
                decisions[side].extend(pair[side](texts[place]) for place in block)
                seconds[side] += time.process_time() - start
        found[name] = {"seconds": seconds, "decisions": decisions}
    return found


def report_decisions(sources: list[str], stock: list[str | None], ours: list[str | None]) -> dict[str, Any]:
    """Print and return where both decide otherwise, and our drops by source."""
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
    return {"alike": alike, "documents": len(stock), "otherwise": [[*p, c] for p, c in others.items()], "drops": drops}


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--inputs", nargs="+", type=Path, required=True, help="parquet files, or folders of them")
    made.add_argument("--megabytes", type=float, default=2, help="of text from each file")
    options = made.parse_args()
    files = [file for path in options.inputs for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    drawn = [(file.stem, text) for file in files for text in read_texts(file, options.megabytes)]
    random.Random(0).shuffle(drawn)
    sources, texts = [source for source, _ in drawn], [text for _, text in drawn]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    pairs = cases()
    for stock, _ in pairs.values():
        stock("Uma frase para carregar o que é preciso.")
    found = measure(pairs, texts)
    rates = {name: [megabytes / seconds for seconds in found[name]["seconds"]] for name in pairs}
    rows = [[name, f"{a:.2f}", f"{b:.1f}", f"{b / a:.1f}"] for name, (a, b) in rates.items()]
    for name, step in (("boilerplate", remove_boilerplate), ("personal data", mask_personal_data)):
        start = time.process_time()
        for text in texts:
            step(text)
        rates[name] = [megabytes / (time.process_time() - start)]
        rows.append([name, "", f"{rates[name][0]:.1f}", ""])
    print(f"{len(texts):,} documents, {megabytes:.1f} MB")
    print_table(["rules", "stock MB/s", "ours MB/s", "ratio"], rows)
    decisions = report_decisions(sources, *found["all rules"]["decisions"])
    write_results(options.json, {"megabytes": megabytes, "megabytes_per_second": rates, **decisions})


if __name__ == "__main__":
    main()
