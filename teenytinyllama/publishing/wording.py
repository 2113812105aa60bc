"""A card's sentences by language, its number forms, and the Jinja environment that joins them to figures."""

import functools
import textwrap
from importlib import resources
from typing import Any, Literal

import yaml
from jinja2 import Environment

from ..checks import ensure
from .escaping import Markdown, card_environment, escape_markdown

Language = Literal["en", "pt"]
LANGUAGES: tuple[Language, ...] = ("en", "pt")
# English first, because the Hub is searched and the ancestor's cards are written in it; then Portuguese, because that
# is what those who use a Portuguese model read.
CARD_LANGUAGES: dict[str, tuple[Language, ...]] = {"both": ("en", "pt"), "en": ("en",), "pt": ("pt",)}
DEFAULT_CARD_LANGUAGE = "both"
_LINE = 100  # characters of a line of a sample; a page scrolls longer ones out of sight
_WRAP: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}


def card_languages(name: str | None) -> tuple[Language, ...]:
    """Return the languages of a card, in their order; None is the usual choice.

    Raises:
        InputError: no such choice.
    """
    name = name or DEFAULT_CARD_LANGUAGE
    ensure(name in CARD_LANGUAGES, f"language={name}: must be one of {', '.join(CARD_LANGUAGES)}.")
    return CARD_LANGUAGES[name]


@functools.cache
def texts(language: Language) -> dict[str, str]:
    """Return the sentences of a language by their keys."""
    content = (resources.files(__package__) / "texts" / f"{language}.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.safe_load(content)
    return found


def say(language: Language, key: str, **values: object) -> Markdown:
    """Return a sentence with its values, which are escaped.

    Raises:
        TypeError: a bare number: it must be given in a form (`count`, `fixed`) that fits the language.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{key}: {name}={value!r} must be text; numbers go through a filter first")
    return Markdown(texts(language)[key].format(**{name: escape_markdown(value) for name, value in values.items()}))


def localise(number: str, language: Language) -> Markdown:
    """Return a number in English form (1,234.5) in the form of a language (1.234,5 in Portuguese)."""
    return Markdown(number if language == "en" else number.translate(str.maketrans(",.", ".,")))


def sentence_environment(language: Language, unknown_key: str) -> Environment:
    """Return the Jinja environment of one language.

    In it, `say(key, **values)` gives a sentence and `say_count(key, number, **values)` its singular or plural. Filters
    for numbers: `count` (1,234), `fixed(digits)`, `amount` (two decimals, or four digits below 1) and `percent` (of a
    fraction, two decimals). `wrapped` breaks long lines.

    Args:
        language: of sentences and numbers.
        unknown_key: the sentence that stands for a number that is None.
    """

    def fixed(number: Any, digits: int) -> Markdown:
        if number is None:
            return say(language, unknown_key)
        return localise(f"{float(number):,.{digits}f}", language)  # float() makes a missing variable an UndefinedError

    def amount(number: Any) -> Markdown:
        return localise(f"{number:.4g}", language) if number is not None and number < 1 else fixed(number, 2)

    def say_count(key: str, number: int, **values: object) -> Markdown:
        return say(language, key + ("_one" if number == 1 else "_many"), number=fixed(number, 0), **values)

    environment = card_environment()
    environment.globals.update(say=functools.partial(say, language), say_count=say_count)
    environment.filters.update(
        count=lambda number: fixed(number, 0),
        fixed=fixed,
        amount=amount,
        percent=lambda fraction: fixed(None if fraction is None else 100 * fraction, 2),
        wrapped=lambda text: "\n".join(textwrap.fill(line, _LINE, **_WRAP) for line in text.split("\n")),
    )
    return environment
