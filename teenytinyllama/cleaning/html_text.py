"""Text out of HTML pages: bytes to characters, struck-out text, and the page's text with its paragraphs.

    decode_page(data)             bytes of a page -> its characters, and the name of the encoding
    text_of_html(page, config)    bytes or characters of a page -> its text, and counts

Resiliparse (Apache-2.0, a parser in C and Rust without Python dependencies of weight) reads the pages. On 300 pages of
Brazilian federal law it keeps all of the norm's text, as plain parsing does, with the paragraphs whole; trafilatura
keeps 97.8 % and is 20 times slower (`benchmarks/corpus_quality.py`).
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from ..checks import ensure, ensure_packages

StruckText = Literal["keep", "remove", "remove_in_part"]

# A page of which more than this share of characters is struck out is repealed as a whole. Of the federal laws half
# have no struck text, a third have 0.7 or more of it, and 3 % lie between 0.2 and 0.7.
WHOLLY_STRUCK = 0.6

_STRUCK_SELECTORS = ["strike", "s", "del", '[style*="line-through"]']
_STRUCK_HINT = re.compile(r"<(?:strike|s|del)[\s>]|line-through", re.IGNORECASE)
# Old pages of the law write the sign of an ordinal number, º, as a struck sign or as a raised letter by itself.
_STRUCK_ORDINAL = re.compile(r"<(strike|s|del)>\s*([ºª°])\s*</\1>", re.IGNORECASE)
_TAGS = r"(?:\s|<[^>]{1,200}>){0,6}"
_RAISED_ORDINAL = re.compile(rf"<sup\b[^>]{{0,200}}>({_TAGS})([oa])({_TAGS})</sup>", re.IGNORECASE)
_HARD_SPACES = re.compile(r"(?m)^[ \t]*\xa0[ \t\xa0]*|[ \xa0]*\xa0[ \xa0]*$")
_INNER_HARD_SPACES = re.compile(r" *\xa0[ \xa0]*")

_EMPTY_CELLS = re.compile(r"(?m)^(?:\t+| (?=\S))|\t+$")  # of a table, and a space that a tag left

# The search for the main content takes time that grows with the square of the depth of nested <div>.
_DEEPEST_DIV = 500
_DIV = re.compile(r"<(/?)div\b", re.IGNORECASE)

_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_DECLARED = re.compile(rb"""charset\s*=\s*["']?\s*([a-zA-Z0-9_:.-]+)""", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 1024  # where the HTML standard looks for it (13.2.3.2, "prescan a byte stream")
# A page is UTF-8 with slips when at most one character in so many beyond ASCII is damaged.
_DAMAGED_ONE_IN = 20


@dataclass
class HtmlConfig:
    """How text is taken out of HTML pages."""

    main_content: bool = field(
        default=True, metadata={"help": "leave out menus, headers, footers, cookie notices and comments of a page"}
    )
    struck_text: StruckText = field(
        default="remove_in_part",
        metadata={"help": "struck-out text, such as repealed law. remove_in_part: it is removed where it stands "
                          "beside the text in force, and kept where nearly the whole page is struck out"},
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check the choice.

        Raises:
            InputError: struck_text is no choice.
        """
        choices = ("keep", "remove", "remove_in_part")
        ensure(self.struck_text in choices, f"struck_text={self.struck_text}: must be one of {', '.join(choices)}.")


def ensure_html_reader() -> None:
    """Check that the library which reads HTML is installed.

    Raises:
        MissingPackageError: it is not; the message has the pip line.
    """
    ensure_packages("corpus", "resiliparse")


def decode_page(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """Return the characters of a page and the encoding that they were read in.

    UTF-8 that decodes whole is UTF-8, whatever the page declares: text of another encoding hardly ever does. Otherwise
    the declared encoding counts, then what the bytes look like (uchardet). ISO-8859-1 is read as Windows-1252, as the
    Encoding Standard of the WHATWG wants. Nothing fails: bytes that mean nothing become U+FFFD.

    Args:
        data: bytes of the page.
        declared: encoding that the server's Content-Type named, if known.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace"), encoding
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    if _is_damaged_utf8(data):
        return data.decode("utf-8", errors="replace"), "utf-8"
    encoding = _name_of_encoding(data, declared)
    return data.decode(encoding, errors="replace"), encoding


def _is_damaged_utf8(data: bytes) -> bool:
    text = data.decode("utf-8", errors="replace")
    beyond_ascii = sum(map(len, re.findall(r"[^\x00-\x7f]+", text)))
    return text.count("\ufffd") * _DAMAGED_ONE_IN <= beyond_ascii


def _name_of_encoding(data: bytes, declared: str | None) -> str:
    """Return the Python name of the encoding of bytes that are not UTF-8."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    found = _DECLARED.search(data[:_DECLARED_WITHIN_BYTES])
    labels = [declared, found.group(1).decode("ascii") if found else None]
    for label in labels:
        name = map_encoding_to_html5(label, fallback_utf8=False) if label else None
        if name and name not in ("utf-8", "utf-16-le", "utf-16-be", "x-user-defined", "replacement"):
            return str(name)
    name = detect_encoding(data, from_html_meta=False)
    return "cp1252" if name in (None, "utf-8", "ascii") else str(name)


def text_of_html(page: str | bytes, config: HtmlConfig, declared: str | None = None) -> tuple[str, dict[str, int]]:
    """Return the text of an HTML page, a paragraph a block, and what was done.

    Broken mark-up is read as a browser reads it. Text of a page without any text is empty.

    Args:
        page: the page, as bytes or as characters.
        config: what is left out.
        declared: with bytes, the encoding that the server named.

    Returns:
        The text, and counts: `struck_characters_removed`, `struck_characters_kept`, `pages_wholly_struck`,
        `pages_in_<encoding>` for bytes. What did not occur is absent.
    """
    counts: dict[str, int] = {}
    if isinstance(page, bytes):
        page, encoding = decode_page(page, declared)
        counts[f"pages_in_{encoding}"] = 1
    page = _RAISED_ORDINAL.sub(_ordinal_sign, _STRUCK_ORDINAL.sub(r"\2", page))
    text = _plain_text(page, config.main_content)
    if _STRUCK_HINT.search(page):
        text = _decide_struck(page, text, config, counts)
    return text, counts


def _ordinal_sign(match: re.Match[str]) -> str:
    return match[1].lstrip() + ("º" if match[2] in "oO" else "ª") + match[3]


def _decide_struck(page: str, text: str, config: HtmlConfig, counts: dict[str, int]) -> str:
    """Return the text with or without what is struck out, and count its characters."""
    in_force = _plain_text(page, config.main_content, skip=_STRUCK_SELECTORS)
    num_struck = len(text) - len(in_force)
    if num_struck <= 0:
        return text
    is_whole = num_struck > WHOLLY_STRUCK * len(text)
    if is_whole:
        counts["pages_wholly_struck"] = 1
    if config.struck_text == "keep" or (config.struck_text == "remove_in_part" and is_whole):
        counts["struck_characters_kept"] = num_struck
        return text
    counts["struck_characters_removed"] = num_struck
    return in_force


def _plain_text(page: str, main_content: bool, skip: list[str] | None = None) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    if main_content and _div_depth(page) > _DEEPEST_DIV:
        main_content = False
    try:
        text: str = extract_plain_text(page, main_content=main_content, alt_texts=False, skip_elements=skip)
    except TypeError:  # half of a pair of UTF-16 codes, which UTF-8 cannot hold
        page = page.encode("utf-8", errors="replace").decode("utf-8")
        text = extract_plain_text(page, main_content=main_content, alt_texts=False, skip_elements=skip)
    if "\xa0" in text:  # browsers widen gaps and indent paragraphs with these
        text = _INNER_HARD_SPACES.sub(" ", _HARD_SPACES.sub("", text))
    return _EMPTY_CELLS.sub("", text).strip()


def _div_depth(page: str) -> int:
    """Return how deep <div> is nested; pages with few of them are not looked at."""
    if page.count("<div") + page.count("<DIV") <= _DEEPEST_DIV:
        return 0
    depth = deepest = 0
    for match in _DIV.finditer(page):
        depth = max(depth - 1, 0) if match.group(1) else depth + 1
        deepest = max(deepest, depth)
    return deepest
