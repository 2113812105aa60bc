"""Language of a document, with py3langid: does it speak Portuguese, and what else does it speak?

    identify(text, "pt")           the language that it is most likely in, and the score of Portuguese
    check_language(found, config)  why it is dropped, or None

py3langid (Lui and Baldwin 2012, "langid.py"; BSD-3-Clause) is a naive Bayes model on byte n-grams, whose weights lie
in its wheel. Of nine identifiers it let the least through of Galician, Spanish and Mirandese: none of 60 Galician
sentences, where fastText's lid.176.ftz lets 17 through and lingua 21 (`benchmarks/corpus_quality.py`), at a recall of
Portuguese of 0.998 on sentences and 1.000 on documents.

A document is judged by segments, so that its score says how much of it is Portuguese: a page that is half in Spanish
has a score near 0.5, where the score of the whole page would be 0 or 1.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

from ..checks import ensure, ensure_packages
from . import Drop

SEGMENT_CHARACTERS = 500
MOST_SEGMENTS = 4  # spread over the document; six let as much through and take a third more time


@dataclass
class LanguageConfig:
    """Which language the documents of the corpus are in."""

    language: str = field(default="pt", metadata={"help": "code of the language that is kept (ISO 639)"})
    # FineWeb-2 asks 0.799 of GlotLID for Portuguese, from the median and deviation of that score on its web pages.
    # Here: the highest tenth that keeps 0.99 of the Portuguese sentences and of the Portuguese documents of
    # benchmarks/corpus_quality.py (0.997, 0.993). Of 4,989 texts in other languages it lets four through, all
    # Sardinian. Most Portuguese documents below it are tables of names and numbers.
    min_score: float = field(
        default=0.4, metadata={"help": "score of the language, from 0 to 1: about the share of the text that is in it"}
    )

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            InputError: min_score is no share.
        """
        ensure(0 <= self.min_score <= 1, f"min_score={self.min_score}: must be between 0 and 1.")


@dataclass(frozen=True)
class Language:
    """What language a document is in.

    Attributes:
        language: code of the most likely language (ISO 639); "und" for a text without letters.
        score: of the wanted language, from 0 to 1: the mean over the segments of its probability, where it is the most
            likely one, else 0.
    """

    language: str
    score: float


def ensure_identifier(config: LanguageConfig) -> None:
    """Check that the identifier is installed and knows the language.

    Raises:
        MissingPackageError: it is not; the message has the pip line.
        InputError: it does not know the language.
    """
    ensure_packages("corpus", "py3langid")
    known = _identifier().labels
    ensure(
        config.language in known,
        f"language={config.language}: is not known to py3langid. Use one of {', '.join(sorted(known))}.",
    )


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.nb_ptc = identifier.nb_ptc.astype("float32")  # 57 MB instead of 28, and a quarter less time
    return identifier


def segments(text: str, characters: int = SEGMENT_CHARACTERS) -> list[str]:
    """Return segments of a text: all of it if it is short, else `MOST_SEGMENTS` that lie at equal distances."""
    if len(text) > MOST_SEGMENTS * characters:
        step = (len(text) - characters) / (MOST_SEGMENTS - 1)
        starts = [round(number * step) for number in range(MOST_SEGMENTS)]
        return [text[start : start + characters] for start in starts]
    count = -(-len(text) // characters)
    size = -(-len(text) // max(count, 1))
    return [text[start : start + size] for start in range(0, len(text), max(size, 1))]


def identify(text: str, language: str = "pt") -> Language:
    """Return the most likely language of a text and the score of a language that is wanted."""
    found: dict[str, float] = {}
    parts = [part for part in segments(text) if any(map(str.isalpha, part))]
    for part in parts:
        label, probability = _identifier().classify(part)
        found[label] = found.get(label, 0.0) + probability / len(parts)
    if not found:
        return Language("und", 0.0)
    return Language(max(found, key=lambda label: found[label]), min(found.get(language, 0.0), 1.0))


def check_language(found: Language, config: LanguageConfig) -> Drop | None:
    """Return why a document is dropped: it is in another language, or too little of it is in the wanted one."""
    if found.language != config.language:
        return Drop(f"language is {found.language}", found.score, config.min_score)
    if found.score < config.min_score:
        return Drop("language score", found.score, config.min_score)
    return None
