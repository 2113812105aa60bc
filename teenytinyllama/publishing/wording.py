"""Texts of cards: sentences by language, forms of numbers, and foreign text made safe in Markdown, code and YAML.

A run folder holds text that nobody chose: what a model generated, names and licences out of a data set. On the Hub a
card is Markdown with HTML, so such text could otherwise draw links and pictures, break a table or end a code block.
It also holds folders of this machine, which are nobody's business: only their last part is published.
"""

import functools
import json
import re
import textwrap
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..checks import InputError, ensure, read_utf8
from ..stage_folder import BUCKET_NAME, PROGRESS_FOLDER, without_place

# Line breaks and other control characters, and the marks that reorder text on the screen without being seen.
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_INVISIBLE_IN_BLOCK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# An address that can be the target of a link: no spaces, quotes, brackets or marks of HTML.
_ADDRESS = re.compile(r"https://[\w.~:/?#@!$&*+,;=%-]+", re.ASCII)
_MARKDOWN = re.compile(r"[\\`*_\[\]|~!#$&<>]")
_SPACE_IN_LINE = re.compile(r"[^\S\n]+")
_MAX_WIDGET_CHARACTERS = 300
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Markdown(str):
    """Text that is Markdown already and goes into a template as it is."""

    __slots__ = ()


def one_line(value: object) -> str:
    """Return the value's text with line breaks, control and reordering characters replaced by a space."""
    return _INVISIBLE.sub(" ", str(value))


def widget_text(prompt: str) -> str:
    """Return a prompt for the model's page: its lines without invisible characters, not endless."""
    lines = (_SPACE_IN_LINE.sub(" ", one_line(line)) for line in prompt.split("\n"))
    return "\n".join(lines).strip()[:_MAX_WIDGET_CHARACTERS]


def escape_markdown(value: object) -> Markdown:
    r"""Return the text on one line with everything that Markdown or HTML would read as a mark made literal.

    >>> escape_markdown("a|b <i>c</i>")
    'a\\|b &lt;i&gt;c&lt;/i&gt;'
    """
    if isinstance(value, Markdown):
        return value
    return Markdown(_MARKDOWN.sub(lambda mark: _ENTITIES.get(mark[0], "\\" + mark[0]), one_line(value)))


def inline_code(value: object) -> Markdown:
    """Return the text on one line as inline code; the backticks around it outnumber those inside.

    A bar is escaped even here, since a table row is cut at bars before code is read; outside a table the backslash
    would show.
    """
    text = one_line(value).replace("|", r"\|")
    ticks = "`" * (_longest_run_of_backticks(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{ticks}{space}{text}{space}{ticks}")


def link(text: object, address: object) -> Markdown:
    """Return the text as a link to an https address; where the address is none, the text alone."""
    shown, target = escape_markdown(text), one_line(address)
    return Markdown(f"[{shown}]({target})") if _ADDRESS.fullmatch(target) else shown


def fenced_block(value: object, language: str = "text") -> Markdown:
    """Return the text as a fenced code block; its fence is longer than any run of backticks inside."""
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    text = _INVISIBLE_IN_BLOCK.sub(" ", text).rstrip("\n")
    fence = "`" * max(3, _longest_run_of_backticks(text) + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def _longest_run_of_backticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


Language = Literal["en", "pt"]
LANGUAGES: tuple[Language, ...] = ("en", "pt")
# English first, because the Hub is searched and the ancestor's cards are written in it; then Portuguese, because that
# is what those who use a Portuguese model read.
CARD_LANGUAGES: dict[str, tuple[Language, ...]] = {"both": ("en", "pt"), "en": ("en",), "pt": ("pt",)}
DEFAULT_CARD_LANGUAGE = "both"
# The Hub's key for a variety of the language, on every card: the library is made for Brazilian Portuguese.
LANGUAGE_DETAILS = "pt-BR"
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


@functools.cache  # a card takes a tenth of a second, nearly all of it the compilation of its templates
def markdown_environment(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """Return where the templates of Markdown are found; a missing variable is an error.

    Args:
        finalize: makes what a template prints harmless; None: it prints figures of our own alone.
    """
    return Environment(
        loader=PackageLoader("teenytinyllama.publishing"),
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML escaping alone would leave Markdown's marks active; `finalize` covers both
    )


def card_environment(language: Language, unknown_key: str = "not_measured") -> Environment:
    """Return the Jinja environment of cards in a language: a missing variable is an error, every value is escaped.

    In it, `say(key, **values)` gives a sentence and `say_count(key, number, **values)` its singular or plural. Filters
    for text: `code`, `fenced`, `link(address)`, and `wrapped`, which breaks long lines. For numbers: `count` (1,234),
    `fixed(digits)`, `amount` (two decimals, or four digits below 1) and `percent` (of a fraction, two decimals); of
    numbers by name `named_counts`.

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

    environment = markdown_environment(escape_markdown)
    environment.globals.update(say=functools.partial(say, language), say_count=say_count)
    environment.filters.update(
        code=inline_code,
        named_counts=lambda counts: ", ".join(f"{name} {fixed(number, 0)}" for name, number in counts.items()),
        fenced=fenced_block,
        link=link,
        count=lambda number: fixed(number, 0),
        fixed=fixed,
        amount=amount,
        percent=lambda fraction: fixed(None if fraction is None else 100 * fraction, 2),
        wrapped=lambda text: "\n".join(textwrap.fill(line, _LINE, **_WRAP) for line in text.split("\n")),
    )
    return environment


# An absolute path of two parts or more in a command, in quotes where it holds a space; no part of a URL, a relative
# path or a repository's name.
_QUOTED = re.compile(r"'(?:/[^'\n]*/|[A-Za-z]:\\[^'\n]*\\)([^'/\\\n]+)'")
_PLAIN = re.compile(r"(?<![\w.~:/\\-])(?:/(?:[^\s'\";/]+/)+|[A-Za-z]:\\(?:[^\s'\";\\]+\\)+)(?=[^\s'\";/\\])")

_TEXTS = {"sample_prompts"}  # keys whose values are texts, whatever they look like


def command_without_places(command: str) -> str:
    """Return a command, or several with `;` between them, with its absolute paths cut to their last parts."""
    return _PLAIN.sub("", _QUOTED.sub(r"'\1'", command))


def record_without_places(path: Path) -> bytes:
    """Return the content of a JSON or YAML record with its absolute paths cut to their last parts.

    Raises:
        InputError: it is damaged.
    """
    text = read_utf8(path)
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is damaged ({' '.join(str(error).split())}).") from error
    cut = without_places(content)
    if cut == content:
        return text.encode()
    if path.suffix == ".json":
        return (json.dumps(cut, ensure_ascii=False, indent=1) + "\n").encode()
    return yaml.safe_dump(cut, sort_keys=False, allow_unicode=True, width=120).encode()


def without_places(value: Any, key: str = "") -> Any:
    """Return what JSON holds, its absolute paths cut to their last parts; `key` is where it stands."""
    if isinstance(value, dict):
        return {name: item if name in _TEXTS else without_places(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return command_without_places(value) if key == "command" else without_place(value)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a repository on the Hub."""
    return bool(_HUB_ID.fullmatch(name))


def public_buckets(run: Path) -> list[str]:
    """Return the public bucket that a run was sent to, as publishing noted it; none if nobody can read the note."""
    try:
        names = json.loads((run / PROGRESS_FOLDER / BUCKET_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str) and is_hub_id(name)] if isinstance(names, list) else []
