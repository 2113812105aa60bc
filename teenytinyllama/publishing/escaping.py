"""Text of unknown origin made safe inside a card: Markdown prose, inline code, fenced blocks, YAML scalars.

A run folder holds text that nobody chose: what a model generated, names and licences out of a data set. On the Hub a
card is Markdown with HTML, so such text could otherwise draw links and pictures, break a table or end a code block.
"""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

# Line breaks and other control characters, and the marks that reorder text on the screen without being seen.
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_INVISIBLE_IN_BLOCK = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# An address that can be the target of a link: no spaces, quotes, brackets or marks of HTML.
_ADDRESS = re.compile(r"https://[\w.~:/?#@!$&*+,;=%-]+", re.ASCII)
_MARKDOWN = re.compile(r"[\\`*_\[\]|~!#$&<>]")


class Markdown(str):
    """Text that is Markdown already and goes into a template as it is."""

    __slots__ = ()


def one_line(value: object) -> str:
    """Return the value's text with line breaks, control and reordering characters replaced by a space."""
    return _INVISIBLE.sub(" ", str(value))


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


def card_environment() -> Environment:
    """Return the Jinja environment of the cards: a missing variable is an error, and every value is escaped.

    Filters: `code` and `fenced` for code; `link(address)`; `count` (1,234) and `fixed(digits)` for numbers.
    """
    environment = Environment(
        loader=PackageLoader("teenytinyllama.publishing"),
        undefined=StrictUndefined,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML escaping alone would leave Markdown's marks active; `finalize` covers both
    )
    environment.filters.update(
        code=inline_code,
        fenced=fenced_block,
        link=link,
        count=lambda number: f"{int(number):,}",  # int() makes a missing variable an UndefinedError
        fixed=lambda number, digits: "not measured" if number is None else f"{number:,.{digits}f}",
    )
    return environment
