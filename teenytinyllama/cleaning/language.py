"""A text's normal form, its language, and its variety of Portuguese.

    normalise(text, config)                          the text, and how much of what was changed
    identify(text, "pt"), check_language(found, config)    the language and the score of Portuguese; why it is dropped
    variety_of(text), check_variety(found, config)   "br", "pt" or "unknown", with the log-odds; why it is dropped

Normal form: line ends, control characters, mojibake, spaces and Unicode's composed form, in this order. Mojibake is
text that was decoded in a wrong encoding ("InformaÃ§Ã£o"). ftfy (Speer, doi 10.5281/zenodo.2591652, Apache-2.0)
repairs it line by line. Only lines with a telling pair of characters are given to it, for it is slow, and it takes a
Portuguese word in capitals before a quotation mark ("IRMÃ”") for damage.

Language: py3langid (Lui and Baldwin 2012, "langid.py"; BSD-3-Clause) is a naive Bayes model on byte n-grams, whose
weights lie in its wheel. Of nine identifiers it let the least through of Galician, Spanish and Mirandese: none of 60
Galician sentences, where fastText's lid.176.ftz lets 17 through and lingua 21 (`benchmarks/corpus_quality.py`), at a
recall of Portuguese of 0.998 on sentences and 1.000 on documents. A document is judged by segments, so that its score
says how much of it is Portuguese: a page that is half in Spanish has a score near 0.5, where the score of the whole
page would be 0 or 1.

Variety: a linear model on how often cues of `KINDS` occur, all of them language and none of them topic: spelling
("econômico", "económico"; "acção"), verbs ("está fazendo", "está a fazer", "falámos"), prepositions ("até o", "até
ao"), and pairs of words for the same thing ("usuário", "utilizador"). Names are no cues, nor are places, money and
institutions. A text without cues has log-odds of 0: it is unknown. Character n-grams, tried first, learnt the register
of their sources instead: trained on news and texts of the state, they told the fiction of the two countries apart
worse than a coin (0.44). `variety.json` holds the weights, the sources that they were learnt from, and the measure on
sources left out; `benchmarks/variety_training.py` makes it again.
"""

import functools
import json
import math
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checks import ensure, ensure_packages
from . import Drop


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


MODEL_FILE = Path(__file__).parent / "variety.json"
_SEGMENT_CHARACTERS = 2000  # a long document is read in `MOST_SEGMENTS` segments of this length

# Cues that one word holds: a regular expression for whole words in lower case. The same thing is said otherwise in the
# other variety; words that have other senses there are left out. Spelling: the agreements of 1945 (Portugal) and 1990,
# and the Brazilian form of 1943.
WORD_CUES: dict[str, str] = {
    "pt open vowel before a nasal": r"\w*[éó][mn][aeiouáíúâãõ]\w*",
    "br closed vowel before a nasal": r"(?!f[êé]me)\w*[êô][mn][aeiouáíúâãõ]\w*",
    "pt past in -ámos": r"\w\w+ámos",
    "pt silent consonant": (
        r"(?!\w*(?:tions?|ory|ors|ate[ds]?|ize[drs]*|ing|ed|ive|ty|ics?|conjec\w+)$)"  # English, and a word of both
        r"(?:(?:re|in)?ac(?:ção|ções|cion\w+|tiv\w+|tua[lr]\w*|tor|tores|to|tos|triz)|\w*jec[tç]\w+|(?:in)?direc[tç]\w+|(?:in)?correc[tç]\w+|(?:in)?efec[tç]\w+"
        r"|afec[tç]\w+|protec[tç]\w+|selec[tç]\w+|colec[tç]\w+|(?:in)?exact\w+|eléctr\w+|electr\w+|arquitec\w+|factur\w+"
        r"|óptim\w+|optim\w+|adop[tç]\w+|bapti[sz]\w+|excep[tç]\w+|reflect\w+|inspecç\w+|tectos?|lectiv\w+|nocturn\w+"
        r"|redac[tç]\w+|fracç\w+|atract\w+|tractor\w*|dialect\w+)"
    ),
    "pt spelling since 1990": (
        r"aspetos?|(?:per|retros)petiv\w+|respetiv\w+|(?:re|con|per)ce(?:ção|ções)|recetiv\w+|rececion\w+|percetív\w+"
        r"|excecion\w+|infe(?:ção|ções|cios\w+)|contrace\w+|espetador\w*|dete(?:ção|ções)"
    ),
    "br spelling until 2009": r"\w*(?:qü|gü)\w+|\w*éi[ao]s?|\w+[eo]ôs?|\w+ôos?",
    "br consonant left out": r"contat\w+|súditos?|anisti\w+|indeniz\w+|oni(?:pot|sci)\w+|suti(?:l\w*|s)|seç(?:ão|ões)",
    "pt consonant kept": r"factos?|contact\w+|súbdit\w+|amnisti\w+|indemniz\w+|omnip\w+|subti(?:l\w*|s)|secç(?:ão|ões)",
    "pt words": (
        r"autocarros?|comboios?|telemóve(?:l|is)|ecrãs?|ficheiros?|utilizador(?:es)?|equipas?|registos?|pequeno-almoço"
        r"|frigoríficos?|miúd[oa]s?|raparigas?|guarda-redes|golos?|relvados?|camião|camiões|chávenas?|planeament\w+"
        r"|planear\w*|connosco|quotidian\w+|dezasse\w+|dezanove|controlos?|aluguer(?:es)?|bebés?|cancros?|polac[oa]s?"
        r"|checos?|portagens|talhos?|concelhos?|bilião|biliões|acede[mur]?|acederam|invulgar\w*"
        r"|parvo\w*|gajos?|carrinhas?|paragens?|travões|travão|montras?|canalizador\w*|palavra-passe|betão"
    ),
    "br words": (
        r"dentre|ônibus|celular(?:es)?|usuári[oa]s?|equipes?|registros?|registrad[oa]s?|registrar\w*|esport\w+|banheiros?"
        r"|geladeiras?|goleiros?|gols?|gramados?|caminhão|caminhões|caminhoneir\w+|xícaras?|planej\w+|gerenci\w+|conosco"
        r"|cotidian\w+|quatorze|dezesse\w+|dezenove|bilh(?:ão|ões)|trilh(?:ão|ões)|controles?|alugue(?:l|is)|bebês?"
        r"|câncer(?:es)?|porcentag\w+|aposentad\w+|polonês|polonesa|poloneses|tchec[oa]s?|pedágios?|açougues?|prefeit\w+"
        r"|acessar\w*|acess(?:a|am|e|em|ou)|mídias?|deletar|mouse|moleques?|xing\w+|bacana|estadunidense\w*|pra|pras"
        r"|né|tá|cadê|times?|sobrenomes?|sucos?|calçadão|pedestres?|cardápios?|aeromoças?|maiô|vitrines?|baixar"
        r"|parabeniz\w+|torcedor\w*|escanteios?|zagueir\w+"
    ),
    "br você": r"vocês?",
    "pt adverbs": r"nomeadamente|designadamente|aquando|noutr[oa]s?|doutr[oa]s?",
}
# Cues of words in a row, on one letter a word as `_LETTERS` says: . is the end of a sentence.
ROW_CUES: dict[str, str] = {
    "pt estar a with infinitive": "EA?aI",
    "pt andar a, continuar a": "VaI",
    "br estar with gerund": "EA?G",
    "br fato": "RF|F[RQ]",
    "pt até ao": "KL",
    "br até o": "K[oa]",
    "br em um": "MU",
    "pt ter de": "TRI",
}
_LETTERS: list[tuple[str, str]] = [
    ("E", r"est(?:ou|á|ás|amos|ão|ava[sm]?|ávamos|ive|eve|ivemos|iveram|ari?am?|arão|ará|eja|ejam|ivesse|ivessem|ar)"),
    ("V", r"and(?:a|am|o|avam?|ou|aram|ei|ar)|continu(?:a|am|o|avam?|ou|aram|amos|ar|ará|arão)|fic(?:a|am|ou|aram)"
          r"|fic(?:avam?|ar|o)|v(?:em|êm|inha|inham|ai|ão)|iam?|venho"),
    ("T", r"t(?:em|êm|enho|emos|inha|inham|ínhamos|erá|erão|eria|eriam|ive|eve|iveram|enha|enham)"),
    ("a", "a"),
    ("o", "o|os|as"),
    ("K", "até"),
    ("L", "aos?|às?"),
    ("F", "fatos?"),
    ("M", "em"),
    ("R", "de"),
    ("Q", "que"),
    ("U", "uma?"),
    ("A", "já|ainda|agora|sempre|também|hoje|só|mesmo"),
    ("G", r"\w{2,}[aei]ndo"),
    ("I", r"\w+(?:ar|er|ir|pôr)(?:-\w+)?"),
]  # fmt: skip
KINDS = [*WORD_CUES, *ROW_CUES]
_WORDS = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*|[.!?…:]+|\n")
_WORD_CUE = {name: re.compile(pattern) for name, pattern in WORD_CUES.items()}
_ROW_CUE = {name: re.compile(pattern) for name, pattern in ROW_CUES.items()}
_LETTER = [(letter, re.compile(pattern)) for letter, pattern in _LETTERS]

Variety = Literal["br", "pt", "both"]


@dataclass
class VarietyConfig:
    """Which variety of Portuguese is kept."""

    variety: Variety = field(
        default="both", metadata={"help": "br: Brazilian, pt: European Portuguese, both: every document"}
    )
    keep_unknown: bool = field(
        default=False, metadata={"help": "with br or pt: keep documents whose variety cannot be told"}
    )

    def __post_init__(self) -> None:
        """Check the choice.

        Raises:
            InputError: variety is no choice.
        """
        ensure(self.variety in ("br", "pt", "both"), f"variety={self.variety}: must be br, pt or both.")


@dataclass(frozen=True)
class VarietyFound:
    """What variety a document is in.

    Attributes:
        variety: "br", "pt" or "unknown".
        log_odds: of European against Brazilian Portuguese; 0 without any cue.
    """

    variety: str
    log_odds: float


@functools.lru_cache(maxsize=200_000)
def _look_at(word: str) -> tuple[str, tuple[int, ...]]:
    """Return the letter of a word for rows, and the numbers of the cues that it holds by itself."""
    letter = next((letter for letter, pattern in _LETTER if pattern.fullmatch(word)), "-")
    return letter, tuple(number for number, name in enumerate(WORD_CUES) if _WORD_CUE[name].fullmatch(word))


def count_cues(text: str) -> list[int]:
    """Return how often each of `KINDS` occurs in a text, and, last, the number of its words."""
    counts = [0] * len(KINDS)
    letters: list[str] = []
    num_words = 0
    for word in _WORDS.findall(text):
        if not word[0].isalpha():
            letters.append(".")
            continue
        num_words += 1
        letter, cues = _look_at(word.lower())
        letters.append(letter)
        if cues and word.islower():  # names and headings say little
            for number in cues:
                counts[number] += 1
    row = "".join(letters)
    for number, name in enumerate(ROW_CUES, start=len(WORD_CUES)):
        counts[number] = len(_ROW_CUE[name].findall(row))
    return [*counts, num_words]


def features_of(text: str) -> list[float]:
    """Return the features of the linear model: for each kind, log(1 + its number in 1,000 words), damped if few."""
    counts = count_cues("\n".join(segments(text, _SEGMENT_CHARACTERS)))
    num_words = max(counts[-1], 100)
    return [math.log1p(1000 * count / num_words) for count in counts[:-1]]


@functools.cache
def _model() -> dict[str, Any]:
    model: dict[str, Any] = json.loads(MODEL_FILE.read_text(encoding="utf-8"))
    return model


def variety_of(text: str) -> VarietyFound:
    """Return the variety of a text in Portuguese; what is too short or shows too little is unknown."""
    model = _model()
    weights: dict[str, float] = model["weights"]
    log_odds = model["bias"] + sum(
        weights[name] * feature for name, feature in zip(KINDS, features_of(text), strict=True)
    )
    if abs(log_odds) < model["least_log_odds"]:
        return VarietyFound("unknown", log_odds)
    return VarietyFound("pt" if log_odds > 0 else "br", log_odds)


def check_variety(found: VarietyFound, config: VarietyConfig) -> Drop | None:
    """Return why a document is dropped: it is in the other variety, or in none that can be told."""
    if config.variety in ("both", found.variety) or (found.variety == "unknown" and config.keep_unknown):
        return None
    return Drop(f"variety is {found.variety}", found.log_odds, _model()["least_log_odds"])
