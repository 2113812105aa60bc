"""Normalised text: line ends, control characters, mojibake, spaces and Unicode's composed form, in this order.

    normalise(text, config)   -> the text, and how much of what was changed

Mojibake is text that was decoded in a wrong encoding ("InformaÃ§Ã£o"). ftfy (Speer, doi 10.5281/zenodo.2591652,
Apache-2.0) repairs it line by line. Only lines with a telling pair of characters are given to it, for it is slow, and
it takes a Portuguese word in capitals before a quotation mark ("IRMÃ”") for damage.
"""

import re
import unicodedata
from dataclasses import dataclass, field

from ..checks import ensure_packages


@dataclass
class NormaliseConfig:
    """What is normalised in every text."""

    compose: bool = field(default=True, metadata={"help": "compose accents: Unicode's form NFC"})
    repair_mojibake: bool = field(
        default=True, metadata={"help": "repair text that was decoded in a wrong encoding, with ftfy"}
    )
    remove_control_characters: bool = field(
        default=True, metadata={"help": "remove control, zero-width, direction and private-use characters"}
    )
    collapse_blank_lines: bool = field(
        default=True, metadata={"help": "at most one blank line in a row, and no blanks at the ends of lines"}
    )


_LINE_END_SIGNS = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")
_OTHER_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# C1 controls are here too: those that stand for a sign in Windows-1252 have become it before. Kept: tab, new
# line, and the joiners U+200C and U+200D, which emoji and other scripts need.
_REMOVED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ud800-\udfff\ue000-\uf8ff\ufeff\ufff9-\ufffb]"
)
_OTHER_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LIGATURES = re.compile("[\ufb00-\ufb06]")  # ﬁ, ﬂ and the like, from typeset pages
_BLANK_ENDS = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")

# What UTF-8 looks like when it was read as Windows-1252 or ISO-8859-1: the first byte of a letter with an accent is Ã
# or Â, of a sign of punctuation â and €, of an emoji ð and Ÿ. After a capital letter Ã and Â can be Portuguese.
_CONTINUED = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MOJIBAKE = re.compile(
    f"(?<![A-ZÀ-ÖØ-Þ])[ÃÂ][{_CONTINUED}]"
    "|[ÃÂ][\x80-\x9f€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ¡-§©¬®-¯±-¶¸¹¼-¿]"
    f"|â[€\x80][{_CONTINUED}]|ðŸ|ï»¿"
)
_MOJIBAKE_BEGINS = re.compile("[ÃÂâðï]")  # looked for first: it is 20 times faster
_C1_CONTROL = re.compile("[\x80-\x9f]")


def ensure_normaliser(config: NormaliseConfig) -> None:
    """Check that the library which repairs mojibake is installed, if it is wanted.

    Raises:
        MissingPackageError: it is not; the message has the pip line.
    """
    if config.repair_mojibake:
        ensure_packages("corpus", "ftfy")


def normalise(text: str, config: NormaliseConfig) -> tuple[str, dict[str, int]]:
    """Return the text in its normal form, and counts of what changed.

    Other line ends become new lines, and other spaces a space, in any case. A second call changes nothing in real text.

    Returns:
        The text, and counts: `mojibake_lines_repaired`, `windows_1252_signs_repaired` (quotation marks and dashes that
        were read as ISO-8859-1), `control_characters_removed`.
    """
    counts: dict[str, int] = {}
    if config.repair_mojibake and not text.isascii():
        text = _repair_mojibake(text, counts)
    if _LINE_END_SIGNS.search(text):
        text = _OTHER_LINE_ENDS.sub("\n", text)
    if config.remove_control_characters:
        text, num_removed = _REMOVED.subn("", text)
        if num_removed:
            counts["control_characters_removed"] = num_removed
    if not text.isascii():
        text = _LIGATURES.sub(lambda match: unicodedata.normalize("NFKC", match.group()), _OTHER_SPACES.sub(" ", text))
        if config.compose and not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    if config.collapse_blank_lines:
        if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
            text = _BLANK_ENDS.sub("", text)
        text = (_BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text).strip("\n")
    return text, counts


def _repair_mojibake(text: str, counts: dict[str, int]) -> str:
    if _MOJIBAKE_BEGINS.search(text) and _MOJIBAKE.search(text):
        from ftfy import fix_encoding

        lines = text.split("\n")
        for number, line in enumerate(lines):
            if _MOJIBAKE.search(line) and (repaired := fix_encoding(line)) != line:
                lines[number] = repaired
                counts["mojibake_lines_repaired"] = counts.get("mojibake_lines_repaired", 0) + 1
        text = "\n".join(lines)
    num_controls = len(_C1_CONTROL.findall(text))
    if num_controls:
        # Not by fix_encoding: it takes "á" before a closing quotation mark of Windows-1252 for a letter in UTF-8.
        from ftfy.fixes import fix_c1_controls

        text = fix_c1_controls(text)
        counts["windows_1252_signs_repaired"] = num_controls - len(_C1_CONTROL.findall(text))
    return text
