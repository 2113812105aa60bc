"""Variety of Portuguese, by document: Brazilian, European, or not to be told.

    variety_of(text)               "br", "pt" or "unknown", with the log-odds
    check_variety(found, config)   why it is dropped, or None

A linear model on how often cues of `KINDS` occur, all of them language and none of them topic: spelling ("econômico",
"económico"; "acção"), verbs ("está fazendo", "está a fazer", "falámos"), prepositions ("até o", "até ao"), and pairs of
words for the same thing ("usuário", "utilizador"). Names are no cues, nor are places, money and institutions. A text
without cues has log-odds of 0: it is unknown.

Character n-grams, tried first, learnt the register of their sources instead: trained on news and texts of the state,
they told the fiction of the two countries apart worse than a coin (0.44). `variety.json` holds the weights, the sources
that they were learnt from, and the measure on sources left out; `benchmarks/variety_training.py` makes it again.
"""

import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checks import ensure
from . import Drop
from .language import segments

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
