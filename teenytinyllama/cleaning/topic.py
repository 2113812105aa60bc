"""Topic of a document, one of the seven of SIB-200, or `unknown`.

    topic_of(text)     the topic, and its probability

A linear model on the first letters of words, weighed by TF-IDF, trained on the 701 Portuguese sentences of SIB-200
(Adelani et al. 2024, arXiv 2309.07445; data CC-BY-SA-4.0, sentences of Flores-200). They are sentences of
encyclopedias, guides and news; a law, a novel or a manual is none of these, so a document is read in pieces of a
sentence's length, and its topic is said only where their mean is sure. `topic.json` holds the weights, their source and
the accuracy on sentences held out; `benchmarks/topic_training.py` makes it again.
"""

import functools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOPIC_FILE = Path(__file__).parent / "topic.json"
UNKNOWN_TOPIC = "unknown"
STEM_LETTERS = 5  # of a word, without accents
SCALE = 100  # of the whole numbers in the file
_PIECE_CHARACTERS, _MOST_PIECES = 300, 24  # a longer document is read at equal distances
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Topic:
    """What a document is about.

    Attributes:
        name: of the topic, or `unknown`.
        probability: of the likeliest topic, said or not.
    """

    name: str
    probability: float


@functools.lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    letters = unicodedata.normalize("NFD", word.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))[:STEM_LETTERS]


def stems_of(text: str) -> list[str]:
    """Return the first letters of the words of a text, in order.

    >>> stems_of("A seleção venceu o jogo")
    ['selec', 'vence', 'jogo']
    """
    return [_stem(word) for word in _WORD.findall(text)]


@functools.cache
def _weights() -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    model = json.loads(TOPIC_FILE.read_text(encoding="utf-8"))
    return model, {stem: np.array(row) / SCALE for stem, row in model.pop("stems").items()}


def probabilities(stems: Sequence[str]) -> NDArray[np.float64]:
    """Return the probability of each topic of the model for one piece of text.

    Args:
        stems: of its words.

    Returns:
        (7,) probabilities; of a piece without a known word those of its constant.
    """
    model, rows = _weights()
    found = [(1 + math.log(number), rows[stem]) for stem, number in Counter(stems).items() if stem in rows]
    scores = np.array(model["bias"])
    if found:  # a row holds the inverse document frequency first, then a weight for each topic
        values = np.array([frequency * row[0] for frequency, row in found])
        scores = scores + values @ np.stack([row[1:] for _, row in found]) / np.linalg.norm(values)
    powers: NDArray[np.float64] = np.exp(scores - scores.max())
    return powers / powers.sum()


def topic_of(text: str) -> Topic:
    """Return the topic of a text; what no topic fits, or several, is unknown."""
    model, _ = _weights()
    pieces = max(1, len(text) // _PIECE_CHARACTERS)
    count = min(pieces, _MOST_PIECES)
    starts = [pieces * number // count * _PIECE_CHARACTERS for number in range(count)]
    mean = np.mean([probabilities(stems_of(text[start : start + _PIECE_CHARACTERS])) for start in starts], axis=0)
    best = int(mean.argmax())
    name = model["topics"][best] if mean[best] >= model["least_probability"] else UNKNOWN_TOPIC
    return Topic(name, float(mean[best]))
