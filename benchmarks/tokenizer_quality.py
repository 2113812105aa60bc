"""Compare designs of the tokenizer: tokens a word on held-out documents, clean cuts between prompt and continuation.

python benchmarks/tokenizer_quality.py --inputs corpus --independent evaluation/*.parquet --output quality.json

Trains every design on the training documents of `--inputs` and encodes the held-out documents of each source, and the
files of `--independent` (parquet; all text columns of a row joined), which no design is trained on. All designs have
the same number of entries, the same reserved ones and byte fallback. The table shows tokens a word of the first design
and the ratio of the others to it.

`cut %`: share of the places between two words of a sentence where the tokens of the text before are not the first
tokens of the whole, over all places, and over those before a word that is no function word.
"""

import argparse
import json
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from teenytinyllama.data.sources import Corpus, CorpusConfig
from teenytinyllama.tokenizer.files import (
    FUNCTION_WORDS,
    NUM_RESERVED_TOKENS,
    RESERVED_TOKENS,
    SPACE_MARK,
    SPLIT_PATTERN,
    keep_reachable,
    list_merges,
    number_entries,
    superword_parts,
)
from teenytinyllama.tokenizer.learn import (
    MAX_PIECE_CHARS,
    MIN_PAIR_COUNT,
    TextSample,
    choose_alphabet,
    function_word_pieces,
    known_parts,
    learn_entries,
    learn_superwords,
    sample_texts,
)

UNIGRAM_BYTES = 20_000_000  # of training text: its trainer is several times slower


@dataclass
class Material:
    """What every design is trained on."""

    sample: TextSample
    alphabet: list[str]
    vocab_size: int

    @cached_property
    def entries(self) -> list[str]:
        """The vocabulary of `train_tokenizer` without superwords, learnt once for the designs that add them."""
        return learn_entries(self.sample, self.alphabet, self.vocab_size, 0)


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Return the rule that each match of the pattern is a unit of its own."""
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def learn_bpe(
    material: Material, texts: Iterable[str], rules: list[pre_tokenizers.PreTokenizer], size: int
) -> list[str]:
    """Return a BPE vocabulary whose pieces keep to the rules."""
    backend = Tokenizer(models.BPE())
    mark = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="never", split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([mark, *rules])
    trainer = trainers.BpeTrainer(
        vocab_size=size + 500,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(RESERVED_TOKENS),
        initial_alphabet=material.alphabet,
        limit_alphabet=len(material.alphabet),
        max_token_length=MAX_PIECE_CHARS,
        show_progress=False,
    )
    backend.train_from_iterator(known_parts(texts, material.alphabet, cut_numbers=False), trainer)
    found = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    head = NUM_RESERVED_TOKENS + len(material.alphabet)
    return keep_reachable(found[:head], found[head:], size)


def encoder(vocabulary: list[str]) -> Tokenizer:
    """Return the tokenizer of a BPE vocabulary."""
    merges = list_merges(vocabulary)
    backend = Tokenizer(
        models.BPE(vocab=number_entries(vocabulary), merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    joins = [part[1:] for part in superword_parts(vocabulary)]
    mark = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="never", split=not joins)
    clean = all(word.isalpha() for word in joins)
    rest = [pre_tokenizers.Split(Regex(SPLIT_PATTERN), "merged_with_next")] if joins and clean else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([mark, *rest])
    return backend


def with_rule(*patterns: str) -> Callable[[Material], Tokenizer]:
    """Return the design: BPE on the texts as they are, units cut by the patterns."""
    return lambda material: encoder(
        learn_bpe(material, material.sample.texts(), [split_by(pattern) for pattern in patterns], material.vocab_size)
    )


def on_texts(change: Callable[[TextSample], Iterator[str]]) -> Callable[[Material], Tokenizer]:
    """Return the design: the default's rule for digits, no superwords, on changed texts."""

    def design(material: Material) -> Tokenizer:
        rules = [pre_tokenizers.Split(Regex("[0-9][0-9](?=[0-9])"), "merged_with_previous")]
        return encoder(learn_bpe(material, change(material.sample), rules, material.vocab_size))

    return design


def distinct_lines(sample: TextSample) -> Iterator[str]:
    """Yield the texts less the lines that came before."""
    seen: set[int] = set()
    for text in sample.texts():
        lines = [line for line in text.split("\n") if not line or hash(line) not in seen]
        seen.update(map(hash, lines))
        yield "\n".join(lines)


def once_a_document(sample: TextSample) -> Iterator[str]:
    """Yield the texts with each word once."""
    for text in sample.texts():
        yield " " + " ".join(sorted(set(text.split(" "))))


def superwords(
    num_superwords: int, choose: Callable[[list[str]], list[str]] = function_word_pieces
) -> Callable[[Material], Tokenizer]:
    """Return the design of `train_tokenizer`, with so many superwords of the pieces that `choose` takes."""

    def design(material: Material) -> Tokenizer:
        entries = material.entries[: material.vocab_size - num_superwords]
        found = learn_superwords(material.sample.weighted_texts(3), choose(entries), num_superwords)
        return encoder([*entries, *found])

    return design


def most_frequent(how_many: int) -> Callable[[list[str]], list[str]]:
    """Return the choice of the first learnt, so most frequent, whole words, whatever they mean."""
    return lambda entries: [piece for piece in entries if piece[0] == SPACE_MARK and piece[1:].isalpha()][:how_many]


def unigram(material: Material) -> Tokenizer:
    """Return a Unigram tokenizer. llama.cpp reads it as "t5", not as "llama"."""
    backend = Tokenizer(models.Unigram())
    mark = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="never", split=True)
    backend.pre_tokenizer = mark
    trainer = trainers.UnigramTrainer(
        vocab_size=material.vocab_size,
        special_tokens=list(RESERVED_TOKENS),
        initial_alphabet=material.alphabet,
        unk_token="<unk>",
        show_progress=False,
    )
    every = 1 + sum(material.sample.kept_bytes.values()) // UNIGRAM_BYTES
    backend.train_from_iterator(known_parts(material.sample.weighted_texts(every), material.alphabet, False), trainer)
    content = json.loads(backend.to_str())
    content["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(content))


DESIGNS: dict[str, Callable[[Material], Tokenizer]] = {
    "plain": with_rule(),
    "one_digit": with_rule("[0-9]"),  # a digit stands alone: the former default
    "two_digits": with_rule(f"{SPACE_MARK}?[0-9]{{1,2}}"),  # with nothing but the space before them
    "three_digits": with_rule(f"{SPACE_MARK}?[0-9]{{1,3}}"),
    "newline_alone": with_rule(r"\n+"),
    "newline_ends": with_rule(r"[^\n]*\n+"),
    "punctuation_alone": with_rule(rf"{SPACE_MARK}?\p{{L}}+", rf"{SPACE_MARK}?[0-9]{{1,3}}"),
    "digit_pairs": on_texts(TextSample.texts),
    "distinct_lines": on_texts(distinct_lines),
    "once_a_document": on_texts(once_a_document),
    "unigram": unigram,
    "no_superwords": superwords(0),
    "superwords_500": superwords(500),
    "superwords_1000": superwords(1_000),  # the default of 32,000
    "superwords_2000": superwords(2_000),
    "frequent_150": superwords(1_500, most_frequent(150)),
    "frequent_6000": superwords(4_000, most_frequent(6_000)),
}


def held_out_texts(inputs: list[str], fraction: float) -> tuple[TextSample, dict[str, list[str]]]:
    """Return the training sample and the held-out texts by source."""
    corpus, held_out = Corpus(CorpusConfig(inputs=inputs, validation_fraction=fraction)), defaultdict(list)

    def training() -> Iterator[Any]:
        for split, document in corpus.documents():
            if split == "train":
                yield document
            else:
                held_out[document.source].append(document.text)

    return sample_texts(training(), 1_000_000_000), dict(held_out)


def independent_texts(path: Path) -> list[str]:
    """Return one text per row of a parquet file: its text columns and lists of texts, joined by newlines."""
    import pyarrow.parquet

    def flat(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from flat(item)
        elif isinstance(value, str) and " " in value and not value.startswith('{"'):  # a record as JSON
            yield value

    return ["\n".join(flat(list(row.values()))) for row in pyarrow.parquet.read_table(path).to_pylist()]


def cut_places(texts: dict[str, list[str]], how_many: int = 4_000) -> list[tuple[str, str, bool]]:
    """Return (text before, text after, whether the next word is no function word) for places drawn from all sources."""
    draw, places = random.Random(0), []
    lines = [line for source in texts.values() for text in source[:200] for line in text.split("\n")[:50]]
    words_of = [line.split(" ") for line in lines if 8 <= len(line.split(" ")) <= 80]
    for words in draw.sample(words_of, min(how_many, len(words_of))):
        at = draw.randrange(3, len(words))
        bare = re.sub(r"\W", "", words[at])
        places.append((" ".join(words[:at]), " " + " ".join(words[at:]), bare not in FUNCTION_WORDS and bool(bare)))
    return places


def encode(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text."""
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def count_tokens(backend: Tokenizer, texts: list[str]) -> int:
    """Return the tokens of all texts."""
    return sum(map(len, encode(backend, texts)))


def wrong_cuts(backend: Tokenizer, places: list[tuple[str, str, bool]]) -> tuple[float, float]:
    """Return the share of wrong cuts over all places and before content words, in per cent."""
    before = encode(backend, [left for left, _, _ in places])
    whole = encode(backend, [left + right for left, right, _ in places])
    wrong = [ids[: len(start)] != start for start, ids in zip(before, whole, strict=True)]
    content = [bad for bad, (_, _, is_content) in zip(wrong, places, strict=True) if is_content]
    return 100 * sum(wrong) / max(1, len(wrong)), 100 * sum(content) / max(1, len(content))


def print_table(rows: dict[str, dict[str, Any]], words: dict[str, int]) -> None:
    """Print one line a text and one column a design."""
    names = list(rows)
    first = rows[names[0]]["tokens"]
    print("".ljust(24) + "words".rjust(9) + "".join(name[:17].rjust(19) for name in names))
    for text, count in words.items():
        cells = [f"{first[text] / count:.3f}"] + [
            f"{rows[name]['tokens'][text] / first[text]:.4f}" for name in names[1:]
        ]
        print(text[:23].ljust(24) + f"{count:,}".rjust(9) + "".join(cell.rjust(19) for cell in cells))
    totals = {
        "geometric mean": "mean_ratio",
        "worst": "worst_ratio",
        "cut %": "wrong_cuts_percent",
        "cut % before content": "wrong_cuts_before_content_percent",
        "seconds": "seconds",
    }
    for label, key in totals.items():
        print(label.ljust(33) + "".join(f"{rows[name][key]:.4f}".rjust(19) for name in names))


def main() -> None:
    """Train, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", nargs="+", required=True, help="corpus: files, folders or globs")
    parser.add_argument("--independent", nargs="*", default=[], type=Path, help="parquet files never trained on")
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--validation_fraction", type=float, default=0.03)
    parser.add_argument("--output", type=Path, default=Path("tokenizer_quality.json"))
    options = parser.parse_args()
    sample, texts = held_out_texts(options.inputs, options.validation_fraction)
    texts |= {path.name.split(".")[0]: independent_texts(path) for path in options.independent}
    words = {name: sum(len(text.split()) for text in source) for name, source in texts.items()}
    places = cut_places(texts)
    material = Material(sample, choose_alphabet(sample.texts()), options.vocab_size)
    rows: dict[str, dict[str, Any]] = {}
    for name in options.designs:
        start = time.perf_counter()
        backend = DESIGNS[name](material)
        seconds = time.perf_counter() - start
        tokens = {source: count_tokens(backend, documents) for source, documents in texts.items()}
        first = next(iter(rows.values()))["tokens"] if rows else tokens
        ratios = [tokens[source] / first[source] for source in tokens if first[source]]
        cuts, content_cuts = wrong_cuts(backend, places)
        rows[name] = {
            "tokens": tokens,
            "mean_ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
            "worst_ratio": max(ratios),
            "wrong_cuts_percent": cuts,
            "wrong_cuts_before_content_percent": content_cuts,
            "seconds": seconds,
        }
        print(f"{name}: mean {rows[name]['mean_ratio']:.4f}, worst {rows[name]['worst_ratio']:.4f}, "
              f"{seconds:.0f} s", flush=True)  # fmt: skip
        content = {"words": words, "vocab_size": options.vocab_size, "designs": rows}
        options.output.write_text(json.dumps(content, indent=1) + "\n")
    print_table(rows, words)


if __name__ == "__main__":
    main()
