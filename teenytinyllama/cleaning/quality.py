"""Quality of a document by counting: the rules of Rae et al. (Gopher), C4 and FineWeb, with FineWeb-2's limits.

    check_quality(text, config)   the first rule that drops the document, or None
    check_all(text, config)       every rule that would drop it, to tune limits by eye

The limits shipped are FineWeb-2's for Portuguese (github.com/huggingface/fineweb-2, `configs/por_Latn.yml` at commit
d331bee and `fineweb-2-pipeline.py`, Apache-2.0), which were set on web pages. A rule whose limit is null is off. Rules
that FineWeb-2 leaves out (paragraph repetition, short lines, C4's) are here, and off. What a word and what a line is
follows datatrove 0.10.1, whose filters FineWeb-2 uses: see words.py. Sources:

* Gopher: Rae et al. 2021, arXiv 2112.11446, section A1.1, "Quality filtering" and "Repetition removal", table A1.
* C4: Raffel et al. 2020, arXiv 1910.10683, section 2.2; mC4: Xue et al. 2021, arXiv 2010.11934, section 3.1.
* FineWeb: Penedo et al. 2024, arXiv 2406.17557, section 3.6. FineWeb-2: Penedo et al. 2025, arXiv 2506.20920.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..checks import ensure
from . import Drop
from .measured_text import MeasuredText, duplicate_n_gram_share, top_n_gram_share

# The sixteen stop words of FineWeb-2 for Portuguese.
STOP_WORDS = ["de", "a", "e", "o", "em", "do", "da", "que", "um", "no", "uma", "com", "para", "na", "é", "foi"]
_FEWEST_N, _MOST_N = 2, 50  # words of an n-gram


def _limit(default: Any, rule: str) -> Any:
    return field(default=default, metadata={"help": rule})


@dataclass
class QualityConfig:
    """Limits of the quality rules; null switches a rule off. Shares are between 0 and 1."""

    max_duplicate_lines: float | None = _limit(0.287, "share of lines that occurred before (Gopher: 0.3)")
    max_duplicate_line_characters: float | None = _limit(
        0.1, "share of characters in lines that occurred before (FineWeb in English: 0.01, Gopher: 0.2)"
    )
    max_duplicate_paragraphs: float | None = _limit(None, "share of paragraphs that occurred before (Gopher: 0.3)")
    max_duplicate_paragraph_characters: float | None = _limit(
        None, "share of characters in paragraphs that occurred before (Gopher: 0.2)"
    )
    top_n_grams: dict[int, float] = field(
        default_factory=lambda: {2: 0.371, 3: 0.191, 4: 0.163},
        metadata={"help": "by number of words: share of characters in the most frequent n-gram; {}: off"},
    )
    duplicate_n_grams: dict[int, float] = field(
        default_factory=lambda: {5: 0.163, 6: 0.153, 7: 0.141, 8: 0.13, 9: 0.119, 10: 0.108},
        metadata={"help": "by number of words: share of characters in n-grams that occurred before; {}: off"},
    )
    min_punctuated_lines: float | None = _limit(0.077, "share of lines that end a sentence (FineWeb in English: 0.12)")
    max_short_lines: float | None = _limit(None, "share of lines of short_line_characters or fewer (FineWeb: 0.67)")
    short_line_characters: int = _limit(30, "length of a short line, in characters")
    max_lines_per_word: float | None = _limit(0.186, "line breaks per word: lists (FineWeb in English: 0.3)")
    min_words: int | None = _limit(50, "words of a document, those of symbols alone not counted (Gopher)")
    max_words: int | None = _limit(100_000, "words of a document, those of symbols alone not counted (Gopher)")
    min_word_characters: float | None = _limit(3.0, "average length of a word in characters (Gopher)")
    max_word_characters: float | None = _limit(13.0, "average length of a word in characters (Gopher: 10)")
    max_hashes_per_word: float | None = _limit(0.1, "signs # per word (Gopher)")
    max_ellipses_per_word: float | None = _limit(0.1, "ellipses per word (Gopher)")
    max_bullet_lines: float | None = _limit(0.9, "share of lines that begin with a bullet or a hyphen (Gopher)")
    max_ellipsis_lines: float | None = _limit(0.3, "share of lines that end in an ellipsis (Gopher)")
    min_alphabetic_words: float | None = _limit(
        0.814, "share of words with a letter (Gopher: 0.8; FineWeb-2 calls it max_non_alpha_words_ratio)"
    )
    min_stop_words: int | None = _limit(2, "different words of stop_words that a document must hold (Gopher)")
    stop_words: list[str] = field(
        default_factory=lambda: list(STOP_WORDS), metadata={"help": "the commonest words of the language (FineWeb-2)"}
    )
    max_curly_brackets: int | None = _limit(None, "curly brackets { in a document: code (C4: 0)")
    max_lorem_ipsum: int | None = _limit(None, "occurrences of `lorem ipsum` in a document (C4: 0)")
    min_sentences: int | None = _limit(None, "ends of sentences in a document (C4: 5)")
    min_long_paragraphs: int | None = _limit(None, "lines of 200 characters or more (mC4: 3)")

    def __post_init__(self) -> None:
        """Refuse limits that no document or every document would pass.

        Raises:
            InputError: a share outside 0 to 1, a negative number, an n-gram of no such length, or a window whose
                lower end lies above its upper one.
        """
        for name in _SHARES:
            _check_share(name, getattr(self, name))
        for name in _NUMBERS:
            value = getattr(self, name)
            fits = value is None or (math.isfinite(value) and value >= 0)
            ensure(fits, f"{name}={value}: must be 0 or more. null switches the rule off.")
        for name in ("top_n_grams", "duplicate_n_grams"):
            setattr(self, name, _checked_n_grams(name, getattr(self, name)))
        for low, high in (("min_words", "max_words"), ("min_word_characters", "max_word_characters")):
            lowest, highest = getattr(self, low), getattr(self, high)
            fits = lowest is None or highest is None or lowest <= highest
            ensure(fits, f"{low}={lowest}: must not lie above {high}={highest}, or no document is kept.")
        fits = self.min_stop_words is None or self.min_stop_words <= len(set(self.stop_words))
        ensure(
            fits,
            f"min_stop_words={self.min_stop_words}: stop_words holds only {len(set(self.stop_words))} different words. "
            "Ask for fewer, or add words.",
        )


_SHARES = (
    "max_duplicate_lines", "max_duplicate_line_characters", "max_duplicate_paragraphs",
    "max_duplicate_paragraph_characters", "min_punctuated_lines", "max_short_lines", "max_bullet_lines",
    "max_ellipsis_lines", "min_alphabetic_words",
)  # fmt: skip
_NUMBERS = (
    "short_line_characters", "max_lines_per_word", "min_words", "max_words", "min_word_characters",
    "max_word_characters", "max_hashes_per_word", "max_ellipses_per_word", "min_stop_words", "max_curly_brackets",
    "max_lorem_ipsum", "min_sentences", "min_long_paragraphs",
)  # fmt: skip


def _check_share(name: str, value: Any) -> None:
    fits = value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1)
    ensure(fits, f"{name}={value}: a share must lie between 0 and 1. null switches the rule off.")


def _checked_n_grams(name: str, limits: Any) -> dict[int, float]:
    ensure(isinstance(limits, dict), f"{name}={limits}: must be a mapping of words to shares, such as {{5: 0.163}}.")
    for size, share in limits.items():
        is_size = isinstance(size, int) and not isinstance(size, bool) and _FEWEST_N <= size <= _MOST_N
        ensure(is_size, f"{name}: {size} words: an n-gram has {_FEWEST_N} to {_MOST_N} words, as an integer.")
        ensure(share is not None, f"{name}: {size}: has no share. Leave the line out to switch the n-gram off.")
        _check_share(f"{name}: {size}", share)
    return dict(sorted(limits.items()))


def override(config: QualityConfig, changes: dict[str, Any]) -> QualityConfig:
    """Return the config of one source: the common one with some limits of its own.

    Args:
        config: the limits of all sources.
        changes: new limits by name, as in the YAML of a source.

    Raises:
        InputError: an unknown name (the nearest known one is named), or a limit of a wrong type or size.
    """
    from ..arguments import check_types

    return dataclasses.replace(config, **check_types(QualityConfig, changes))


def _over(reason: str, value: float, limit: float | None) -> Drop | None:
    return Drop(reason, value, limit) if limit is not None and value > limit else None


def _under(reason: str, value: float, limit: float | None) -> Drop | None:
    return Drop(reason, value, limit) if limit is not None and value < limit else None


def duplicate_paragraphs(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text whose paragraphs repeat one another, by number and by characters (Gopher, A1; FineWeb-2: off)."""
    limits = config.max_duplicate_paragraphs, config.max_duplicate_paragraph_characters
    if limits == (None, None):
        return None
    share, characters = text.duplicate_paragraphs
    by_number = _over("duplicate_paragraphs", share, limits[0])
    return by_number or _over("duplicate_paragraph_characters", characters, limits[1])


def duplicate_lines(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text with too many lines that occurred before (Gopher, table A1)."""
    if config.max_duplicate_lines is None:
        return None
    return _over("duplicate_lines", text.duplicate_lines, config.max_duplicate_lines)


def top_n_grams(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of whose characters too many stand in its most frequent n-gram (Gopher, table A1)."""
    for size, limit in config.top_n_grams.items():
        if (share := top_n_gram_share(text, size, limit)) > limit:
            return Drop(f"top_{size}_grams", share, limit)
    return None


def duplicate_n_grams(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of whose characters too many stand in n-grams that occurred before (Gopher, table A1)."""
    for size, limit in config.duplicate_n_grams.items():
        if (share := duplicate_n_gram_share(text, size, limit)) > limit:
            return Drop(f"duplicate_{size}_grams", share, limit)
    return None


def punctuated_lines(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of whose lines too few end a sentence: menus, tables, lists (FineWeb, section 3.6)."""
    return _under("punctuated_lines", text.punctuated_lines, config.min_punctuated_lines)


def short_lines(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of too many short lines (FineWeb, section 3.6; FineWeb-2 leaves it out)."""
    if config.max_short_lines is None:
        return None
    lines = text.written_lines
    short = sum(len(line) <= config.short_line_characters for line in lines)
    return _over("short_lines", short / max(1, len(lines)), config.max_short_lines)


def duplicate_line_characters(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of whose characters too many stand in lines that occurred before (Gopher, table A1; FineWeb, 3.6)."""
    return _over("duplicate_line_characters", text.duplicate_line_characters, config.max_duplicate_line_characters)


def lines_per_word(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text with a line break every few words: a list (FineWeb's code, `list_ratio`)."""
    value = text.text.count("\n") / max(1, text.num_words)
    return _over("lines_per_word", value, config.max_lines_per_word)


def number_of_words(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text that is too short or too long (Gopher: 50 to 100,000 words)."""
    few = _under("few_words", text.num_real_words, config.min_words)
    return few or _over("many_words", text.num_real_words, config.max_words)


def word_length(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text whose words are too short or too long on average (Gopher: 3 to 10 characters)."""
    if not text.num_real_words:
        return None
    short = _under("short_words", text.word_characters, config.min_word_characters)
    return short or _over("long_words", text.word_characters, config.max_word_characters)


def symbols(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text with too many signs # or ellipses per word (Gopher: 0.1 of each)."""
    words = max(1, text.num_words)
    hashes = _over("hashes", text.text.count("#") / words, config.max_hashes_per_word)
    ellipses = text.text.count("...") + text.text.count("…")
    return hashes or _over("ellipses", ellipses / words, config.max_ellipses_per_word)


def line_ends(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of bullet points, or of lines cut off by an ellipsis (Gopher: 0.9 and 0.3 of the lines)."""
    bullets, ellipses = text.bullet_lines, text.ellipsis_lines
    return _over("bullet_lines", bullets, config.max_bullet_lines) or _over(
        "ellipsis_lines", ellipses, config.max_ellipsis_lines
    )


def alphabetic_words(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text of whose words too few hold a letter: numbers, symbols (Gopher: 0.8)."""
    if not text.num_words:
        return None
    return _under("alphabetic_words", text.alphabetic_words, config.min_alphabetic_words)


def stop_words(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a text without the commonest words of the language: lists of names, other languages (Gopher: 2)."""
    if not config.min_stop_words:
        return None
    return _under(
        "stop_words", text.different_words_of(tuple(config.stop_words), config.min_stop_words), config.min_stop_words
    )


def c4_pages(text: MeasuredText, config: QualityConfig) -> Drop | None:
    """Drop a page of code, of filler text, of few sentences (C4, section 2.2) or few long lines (mC4; all off)."""
    brackets = config.max_curly_brackets
    if brackets is not None and (drop := _over("curly_brackets", text.text.count("{"), brackets)):
        return drop
    filler = config.max_lorem_ipsum
    if filler is not None and (drop := _over("lorem_ipsum", text.text.lower().count("lorem ipsum"), filler)):
        return drop
    if config.min_sentences and (drop := _under("few_sentences", text.num_sentences, config.min_sentences)):
        return drop
    if config.min_long_paragraphs:
        long_lines = sum(len(line) >= 200 for line in text.text.split("\n"))
        return _under("long_paragraphs", long_lines, config.min_long_paragraphs)
    return None


Rule = Callable[[MeasuredText, QualityConfig], Drop | None]
# In the order of FineWeb-2's pipeline: Gopher's repetition, FineWeb's, Gopher's quality; then C4's.
RULES: tuple[Rule, ...] = (
    duplicate_paragraphs, duplicate_lines, top_n_grams, duplicate_n_grams,
    punctuated_lines, short_lines, duplicate_line_characters, lines_per_word,
    number_of_words, word_length, symbols, line_ends, alphabetic_words, stop_words,
    c4_pages,
)  # fmt: skip


@functools.cache
def _default() -> QualityConfig:
    return QualityConfig()


def check_quality(text: str, config: QualityConfig | None = None) -> Drop | None:
    """Return the first rule that drops a text, or None for one that is kept.

    Args:
        text: of one document.
        config: the limits; FineWeb-2's for Portuguese by default.
    """
    if not text.strip():
        return Drop("empty", 0, 1)
    config = config or _default()
    measured = MeasuredText(text)
    return next((drop for rule in RULES if (drop := rule(measured, config))), None)


def check_all(text: str, config: QualityConfig | None = None) -> list[Drop]:
    """Return what every rule says that would drop a text, in the order in which they are asked.

    Args:
        text: of one document.
        config: the limits; FineWeb-2's for Portuguese by default.
    """
    if not text.strip():
        return [Drop("empty", 0, 1)]
    config = config or _default()
    measured = MeasuredText(text)
    return [drop for rule in RULES if (drop := rule(measured, config))]


@dataclass(frozen=True)
class RuleValue:
    """What a rule measures of a text, beside its limit.

    Attributes:
        reason: the rule's name, as its `Drop` calls it.
        value: measured.
        limit: of the config.
        closeness: 0 for a text far from the limit, 1 at it, more beyond it, where the rule drops. For an upper limit
            the value by the limit; for a lower one the limit by the value, and for a least share what the text lacks of
            1 by what it may lack.
    """

    reason: str
    value: float
    limit: float
    closeness: float


# The limits that are upper or lower bounds, each with its rule and the name under which that drops.
_BOUNDS: dict[str, tuple[Rule, str]] = {
    "max_duplicate_lines": (duplicate_lines, "duplicate_lines"),
    "max_duplicate_line_characters": (duplicate_line_characters, "duplicate_line_characters"),
    "max_duplicate_paragraphs": (duplicate_paragraphs, "duplicate_paragraphs"),
    "max_duplicate_paragraph_characters": (duplicate_paragraphs, "duplicate_paragraph_characters"),
    "min_punctuated_lines": (punctuated_lines, "punctuated_lines"),
    "max_short_lines": (short_lines, "short_lines"),
    "max_lines_per_word": (lines_per_word, "lines_per_word"),
    "min_words": (number_of_words, "few_words"),
    "max_words": (number_of_words, "many_words"),
    "min_word_characters": (word_length, "short_words"),
    "max_word_characters": (word_length, "long_words"),
    "max_hashes_per_word": (symbols, "hashes"),
    "max_ellipses_per_word": (symbols, "ellipses"),
    "max_bullet_lines": (line_ends, "bullet_lines"),
    "max_ellipsis_lines": (line_ends, "ellipsis_lines"),
    "min_alphabetic_words": (alphabetic_words, "alphabetic_words"),
    "min_stop_words": (stop_words, "stop_words"),
    "max_curly_brackets": (c4_pages, "curly_brackets"),
    "max_lorem_ipsum": (c4_pages, "lorem_ipsum"),
    "min_sentences": (c4_pages, "few_sentences"),
    "min_long_paragraphs": (c4_pages, "long_paragraphs"),
}
_OFF: dict[str, Any] = {**dict.fromkeys(_BOUNDS), "top_n_grams": {}, "duplicate_n_grams": {}}


def _strictest(name: str, config: QualityConfig) -> float:
    if name.startswith("max_"):
        return 0
    return 1 if name in _SHARES else len(set(config.stop_words)) if name == "min_stop_words" else 10**9


def closeness(value: float, limit: float, kind: str) -> float:
    """Return how close a value comes to its limit: see `RuleValue`.

    Args:
        value: measured.
        limit: of the config.
        kind: `upper`, `lower`, or `least share` for a lower limit of a share.
    """
    if kind == "least share":
        value, limit = 1 - value, 1 - limit
    elif kind == "lower":
        value, limit = limit, value
    return value / limit if limit else (math.inf if value else 0.0)


def measure_all(text: str, config: QualityConfig | None = None) -> list[RuleValue]:
    """Return what every rule that is on measures of a text, those that come closest to their limits first.

    Each rule is asked with the strictest limit there is, so that it says its value.

    Args:
        text: of one document that is not empty.
        config: the limits; FineWeb-2's for Portuguese by default.
    """
    config, measured, found = config or _default(), MeasuredText(text), []
    for name, (rule, reason) in _BOUNDS.items():
        if (limit := getattr(config, name)) is not None:
            strictest = _strictest(name, config)
            drop = rule(measured, dataclasses.replace(config, **(_OFF | {name: strictest})))
            kind = "upper" if name.startswith("max_") else "least share" if name in _SHARES else "lower"
            value = drop.value if drop else float(strictest)
            found.append(RuleValue(reason, value, limit, closeness(value, limit, kind)))
    for field_name, rule in (("top_n_grams", top_n_grams), ("duplicate_n_grams", duplicate_n_grams)):
        for size, limit in getattr(config, field_name).items():
            drop = rule(measured, dataclasses.replace(config, **(_OFF | {field_name: {size: 0.0}})))
            value = drop.value if drop else 0.0
            found.append(
                RuleValue(
                    f"{field_name.removesuffix('n_grams')}{size}_grams", value, limit, closeness(value, limit, "upper")
                )
            )
    return sorted(found, key=lambda measure: -measure.closeness)
