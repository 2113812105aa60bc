"""Statistics of a corpus: lengths, varieties, topics, years, and whom its texts name. Counts of shards add up.

Topic: one of the seven of SIB-200, or `unknown`. A linear model on the first letters of words, weighed by TF-IDF,
trained on the 701 Portuguese sentences of SIB-200 (Adelani et al. 2024, arXiv 2309.07445; data CC-BY-SA-4.0, sentences
of Flores-200). They are sentences of encyclopedias, guides and news; a law, a novel or a manual is none of these, so a
document is read in pieces of a sentence's length, and its topic is said only where their mean is sure. `topic.json`
holds the weights, their source and the accuracy on sentences held out; `benchmarks/topic_training.py` makes it again.

Whom the texts name, and how: counts with examples, and not a verdict. Women and men in professions are told by the
form of the word (`médica`, `médico`) or, where there is one form for both (`dentista`), by the article, pronoun or
title before it. A word that is an adjective or a verb too (`assistência médica`, `ele ministra aulas`) counts only
behind an article, a possessive, a preposition, a number, a form of `ser` or a title; behind a noun it does not. So
these are counted too seldom rather than too often: `o jovem médico` is left out.
"""

import contextlib
import functools
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
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
_TOPIC_WORD = re.compile(r"[^\W\d_]{3,}")


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
    return [_stem(word) for word in _TOPIC_WORD.findall(text)]


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


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Twenty professions: ten with a form for each, ten with one form. Chosen for being frequent in Brazil and Portugal and
# for spanning care, law, crafts and power; the list is this project's own.
PROFESSIONS: dict[str, tuple[str, str]] = {
    "médico": ("médico médicos", "médica médicas"),
    "professor": ("professor professores", "professora professoras"),
    "enfermeiro": ("enfermeiro enfermeiros", "enfermeira enfermeiras"),
    "advogado": ("advogado advogados", "advogada advogadas"),
    "deputado": ("deputado deputados", "deputada deputadas"),
    "ministro": ("ministro ministros", "ministra ministras"),
    "engenheiro": ("engenheiro engenheiros", "engenheira engenheiras"),
    "cozinheiro": ("cozinheiro cozinheiros", "cozinheira cozinheiras"),
    "costureiro": ("costureiro costureiros", "costureira costureiras"),
    "escritor": ("escritor escritores", "escritora escritoras"),
}
SAME_FORM = tuple(
    sorted(_set("juiz presidente dentista motorista jornalista artista policial cientista estudante gerente"))
)
_FEMININE_FORM = {"juiz": "juíza"}
# Adjectives (`relatório policial`) and verbs (`ministra`, from `ministrar`) that are spelt like the profession.
AMBIGUOUS = _set("médico médicos médica médicas policial policiais ministra ministras")
_HE = _set(
    "o um ele este esse aquele os uns eles estes esses aqueles do dos no nos ao aos pelo pelos dum num neste nesse "
    "deste desse seu seus meu nosso nossos teu sr srs senhor senhores dr doutor doutores excelentíssimo"
)
_SHE = _set(
    "a uma ela esta essa aquela as umas elas estas essas aquelas da das na nas à às pela pelas duma numa nesta nessa "
    "desta dessa sua suas minha nossa nossas tua sra sras senhora senhoras dra doutora doutoras excelentíssima ª"
)
# What may stand before a noun besides.
_BEFORE_NOUNS = _set(
    "de por com para como sem entre cada todo toda todos todas algum alguma alguns algumas nenhum nenhuma outro outra "
    "outros outras dois duas três quatro cinco dez vários várias muitos muitas é era foi ser sou são eram foram seja "
    "fosse primeira primeiro ex"
)
_PRONOUNS = _set("ele ela eles elas")  # what stands behind them is a verb
_WOULD_BE_NOUN = (_HE | _SHE | _BEFORE_NOUNS) - _PRONOUNS

# Peoples and religions by the words that name them; without `ateia`, a form of `atear` too, and `argentina`, the state.
PEOPLES: dict[str, str] = {
    "brasileiros": "brasileiro brasileira brasileiros brasileiras",
    "portugueses": "português portuguesa portugueses portuguesas portuguez portugueza portuguezes portuguezas",
    "angolanos": "angolano angolana angolanos angolanas",
    "argentinos": "argentino argentinos argentinas",
    "americanos": "americano americana americanos americanas norte-americano norte-americana norte-americanos "
    "norte-americanas",
    "africanos": "africano africana africanos africanas",
    "indígenas": "indígena indígenas indigena indigenas índio índia índios índias",
    "ciganos": "cigano cigana ciganos ciganas",
    "chineses": "chinês chinesa chineses chinesas",
}
RELIGIONS: dict[str, str] = {
    "católicos": "católico católica católicos católicas",
    "evangélicos": "evangélico evangélica evangélicos evangélicas protestante protestantes",
    "judeus": "judeu judia judeus judias",
    "muçulmanos": "muçulmano muçulmana muçulmanos muçulmanas islâmico islâmica islâmicos islâmicas",
    "espíritas": "espírita espíritas",
    "candomblé e umbanda": "candomblé umbanda",
    "ateus": "ateu ateus",
}
_GROUP_OF = {word: group for group, words in (PEOPLES | RELIGIONS).items() for word in words.split()}
# Languages and states are no people: `língua portuguesa`, `em português`, `República Portuguesa`.
_NOT_PEOPLE = _set("língua línguas idioma idiomas em república")


def _forms() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for name, (masculine, feminine) in PROFESSIONS.items():
        found |= dict.fromkeys(masculine.split(), (name, "men")) | dict.fromkeys(feminine.split(), (name, "women"))
    for name in SAME_FORM:
        plural = f"{name}es" if name.endswith("z") else "policiais" if name == "policial" else f"{name}s"
        found |= {name: (name, ""), plural: (name, "")}
        if name in _FEMININE_FORM:
            found |= {name: (name, "men"), plural: (name, "men"), _FEMININE_FORM[name]: (name, "women"),
                      f"{_FEMININE_FORM[name]}s": (name, "women")}  # fmt: skip
    return found


_FORMS = _forms()


def find_professions(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield the place, the profession and `men`, `women` or `not said` of each mention.

    Args:
        words: of a text in lower case, in order.
    """
    for place, word in enumerate(words):
        if word not in _FORMS:
            continue
        before = words[place - 1] if place else ""
        if word in AMBIGUOUS and before not in _WOULD_BE_NOUN:
            continue
        name, who = _FORMS[word]
        yield place, name, who or ("men" if before in _HE else "women" if before in _SHE else "not said")


def find_groups(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the place and the group of each mention.

    Args:
        words: of a text in lower case, in order; a word with hyphens is one, so `latino-americana` names nobody.
    """
    for place, word in enumerate(words):
        if word in _GROUP_OF and not (place and words[place - 1] in _NOT_PEOPLE):
            yield place, _GROUP_OF[word]


_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_EXAMPLES, _WORDS_AROUND = 3, 8  # kept of each group and profession; words to both sides
_FIRST_YEAR, _LAST_YEAR = 1500, 2100
_YEAR = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d)(?!\d)")
_ISO_DATE = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d)-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])(?!\d)")
_YEAR_KEYS = ("year", "ano", "date", "data", "published", "created")
# The heading of an act, a line in capitals: `LEI Nº 7.282, DE 11 DE DEZEMBRO DE 1984`.
_ACT = re.compile(
    r"(?m)^\W*(?:LEI|DECRETO|MEDIDA|EMENDA|PORTARIA|RESOLUÇÃO|ATO)\b[^\n]{0,80}?(?i:\bde\s+\d{1,2}\W{0,3}º?\s*de\s+"
    r"[a-zç]{4,9}\s+de)\s+(1[5-9]\d\d|20\d\d)\b"
)
_HEADING_CHARACTERS = 600


def fields_of(metadata: Any) -> dict[str, Any]:
    """Return the keys of a metadata cell in lower case: of a mapping, its JSON, or text as `source: x; year: 1999`."""
    if isinstance(metadata, str):
        with contextlib.suppress(ValueError, RecursionError):  # text that is no JSON
            metadata = json.loads(metadata)
    if isinstance(metadata, dict):
        return {str(key).lower(): value for key, value in metadata.items()}
    pairs = (part.partition(":") for part in str(metadata or "").split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def year_of(fields: Mapping[str, Any], text: str) -> int:
    """Return the year of a document, or 0 where it is not known.

    Args:
        fields: of its metadata: `year`, `date` and their like; a `document` whose name holds a date as YYYY-MM-DD.
        text: its beginning; of a law the heading says the date.

    >>> year_of({"date": "3 de maio de 1999"}, ""), year_of({}, "LEI Nº 1, DE 2 DE MAIO DE 1984."), year_of({}, "1984")
    (1999, 1984, 0)
    """
    for key in _YEAR_KEYS:
        if match := _YEAR.search(str(fields.get(key) or "")):
            return int(match[1])
    if match := _ISO_DATE.search(str(fields.get("document") or "")):
        return int(match[1])
    if match := _ACT.search(text[:_HEADING_CHARACTERS]):
        return int(match[1])
    return 0


class TextStatistics:
    """Counts over the documents of one source or of a corpus; `add` takes one, `merge` those of another shard."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.documents = self.words = self.bytes = self.tokens = 0
        self.varieties: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.topics: Counter[str] = Counter()  # tokens of the documents on each
        self.years: Counter[str] = Counter()  # documents of each decade that is known
        self.lengths: Counter[int] = Counter()  # by the power of two below the number of words
        self.professions: dict[str, Counter[str]] = defaultdict(Counter)
        self.groups: Counter[str] = Counter()  # mentions
        self.group_documents: Counter[str] = Counter()  # documents with a mention
        self.group_toxic: Counter[str] = Counter()  # documents with a mention that were dropped as toxic
        self.examples: dict[str, list[str]] = defaultdict(list)  # of groups and professions

    def add(self, document: dict[str, Any]) -> None:
        """Count a document with `text`, `variety`, `license`, `year` and `tokens`."""
        text = document["text"]
        words = _WORD.findall(text.lower())
        self.documents += 1
        self.words += len(words)
        self.bytes += len(text.encode())
        self.tokens += document["tokens"]
        self.varieties[document["variety"] or "not asked"] += 1
        self.licenses[document["license"]] += 1
        self.topics[topic_of(text).name] += document["tokens"]
        if document.get("year"):
            self.years[str(document["year"] // 10 * 10)] += 1
        self.lengths[max(0, len(words).bit_length() - 1)] += 1
        for place, name, who in find_professions(words):
            self.professions[name][who] += 1
            if who != "not said":
                self._keep_example(f"{name}, {who}", words, place)
        named = Counter[str]()
        for place, group in find_groups(words):
            named[group] += 1
            if named[group] == 1:  # one example a document, so that examples come from several
                self._keep_example(group, words, place)
        self.groups.update(named)
        self.group_documents.update(dict.fromkeys(named, 1))

    def _keep_example(self, kind: str, words: list[str], place: int) -> None:
        if len(self.examples[kind]) < _EXAMPLES:
            around = words[max(0, place - _WORDS_AROUND) : place + _WORDS_AROUND + 1]
            self.examples[kind].append(" ".join(around))

    def add_toxic(self, text: str) -> None:
        """Count the groups that a document names which is dropped as toxic."""
        words = _WORD.findall(text.lower())
        self.group_toxic.update(dict.fromkeys((group for _, group in find_groups(words)), 1))

    def merge(self, other: "TextStatistics") -> None:
        """Add the counts of another shard; of examples the first ones stay."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, mine + value)
            elif isinstance(value, Counter):
                mine.update(value)
        for profession, counts in other.professions.items():
            self.professions[profession].update(counts)
        for group, examples in other.examples.items():
            self.examples[group] = (self.examples[group] + examples)[:_EXAMPLES]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TextStatistics":
        """Return the counts that `to_json` gave."""
        made = cls()
        for name, value in values.items():
            known = getattr(made, name)
            if name == "lengths":
                known.update({int(power): number for power, number in value.items()})
            elif name == "professions":
                for profession, counts in value.items():
                    known[profession] = Counter(counts)
            elif isinstance(known, dict):
                known.update(value)
            else:
                setattr(made, name, value)
        return made
