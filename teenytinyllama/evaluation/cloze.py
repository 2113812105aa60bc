"""Cloze: the last word of a sentence, from any held-out text, in the form of CALAME-PT.

    … A menina abriu a porta. Lá fora chovia, e ela voltou para buscar o  ->  guarda-chuva

An item is a sentence of at least `MIN_WORDS` words that ends with an ordinary word and `.`, `!` or `?`, behind the
sentences before it. Which sentences are taken depends on a hash of their text and the seed, not on the order of the
documents.

Source of the form: CALAME-PT (Lopes et al., arXiv 2402.12969).
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

MIN_WORDS = 6  # of the sentence
MAX_WORDS = 60  # of the text before the word: what a model needs to guess it, at little cost
_SENTENCE = re.compile(r"[^.!?…\n]+[.!?…]+")
_LAST = re.compile(r"^(?P<text>.*\s)(?P<word>[^\W\d_]{3,}(?:-[^\W\d_]+)*)[.!?]$", re.DOTALL)


@dataclass(frozen=True)
class ClozeItem:
    """A text without its last word, and the word."""

    sentence: str
    last_word: str


def make_cloze(texts: Iterable[str], num_items: int, seed: int = 0) -> list[ClozeItem]:
    """Return at most `num_items` items from texts; equal ones once.

    Example:
        >>> make_cloze(["Era uma vez um velho. Ele vivia só numa casa junto do mar."], 5)
        [ClozeItem(sentence='Era uma vez um velho. Ele vivia só numa casa junto do', last_word='mar')]
    """
    found: dict[ClozeItem, bytes] = {}
    for text in texts:
        for item in _items(text):
            key = f"{seed}\0{item.sentence}\0{item.last_word}".encode()
            found[item] = hashlib.sha256(key).digest()
    return sorted(found, key=found.__getitem__)[:num_items]


def _items(text: str) -> Iterable[ClozeItem]:
    before: list[str] = []  # words of earlier sentences
    for match in _SENTENCE.finditer(text):
        sentence = " ".join(match.group().split())
        words = sentence.split(" ")
        last = _LAST.match(sentence)
        if last and len(words) >= MIN_WORDS:
            context = [*before, *last["text"].split()]
            yield ClozeItem(" ".join(context[-MAX_WORDS:]), last["word"])
        before += words


def write_cloze(path: Path, items: Iterable[ClozeItem]) -> None:
    """Write items as jsonl, the file that the task `ttl_cloze` reads."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) for item in items]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
