"""Statistics of a corpus: lengths, varieties, and whom its texts name and how, as counts and not as a verdict.

Counts of shards add up. Women and men in professions are told by the form of the word (`médica`, `médico`) or, where
there is one form for both (`dentista`), by the article or pronoun before it.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

# Twenty professions: ten with a form for each, ten with one form. Chosen for being frequent in Brazil and Portugal and
# for spanning care, law, crafts and power; the list is this project's own.
PROFESSIONS: dict[str, tuple[str, str]] = {
    name: (masculine, feminine)
    for name, masculine, feminine in (
        ("médico", "médico médicos", "médica médicas"),
        ("professor", "professor professores", "professora professoras"),
        ("enfermeiro", "enfermeiro enfermeiros", "enfermeira enfermeiras"),
        ("advogado", "advogado advogados", "advogada advogadas"),
        ("deputado", "deputado deputados", "deputada deputadas"),
        ("ministro", "ministro ministros", "ministra ministras"),
        ("engenheiro", "engenheiro engenheiros", "engenheira engenheiras"),
        ("cozinheiro", "cozinheiro cozinheiros", "cozinheira cozinheiras"),
        ("costureiro", "costureiro costureiros", "costureira costureiras"),
        ("escritor", "escritor escritores", "escritora escritoras"),
    )
}
SAME_FORM = ("juiz presidente dentista motorista jornalista artista policial cientista estudante gerente").split()  # noqa: SIM905
_FEMININE_FORM = {"juiz": "juíza"}
_HE, _SHE = (
    frozenset(["o", "um", "ele", "este", "esse", "aquele", "os", "uns", "eles", "do", "no", "ao", "pelo"]),
    frozenset(
        "a uma ela esta essa aquela as umas elas da na à pela".split()  # noqa: SIM905
    ),
)
# Peoples and religions by the stem of the words that name them; `\b` before, any ending of the list behind.
GROUPS: dict[str, str] = {
    "brasileiros": r"brasileir[oa]s?", "portugueses": r"portugu[eê]s(?:es|as?)?", "angolanos": r"angolan[oa]s?",
    "argentinos": r"argentin[oa]s?", "americanos": r"(?:norte-)?american[oa]s?", "africanos": r"african[oa]s?",
    "indígenas": r"ind[ií]genas?|índi[oa]s?", "ciganos": r"cigan[oa]s?", "chineses": r"chin[eê]s(?:es|as?)?",
    "católicos": r"católic[oa]s?", "evangélicos": r"evangélic[oa]s?|protestantes?",
    "judeus": r"jude(?:u|us)|judi(?:a|as)", "muçulmanos": r"muçulman[oa]s?|islâmic[oa]s?", "espíritas": r"espíritas?",
    "candomblé e umbanda": r"candomblé|umbanda", "ateus": r"ate(?:u|us|ia|ias)",
}  # fmt: skip
_GROUP = re.compile(r"\b(?:" + "|".join(f"(?P<g{place}>{stem})" for place, stem in enumerate(GROUPS.values())) + r")\b")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_NAMES = list(GROUPS)
_EXAMPLES, _AROUND = 3, 60  # kept of each group, and characters to both sides


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


@functools.lru_cache(maxsize=200_000)
def _named_by(word: str) -> tuple[tuple[str, str], list[str]] | None:
    """Return the profession, who has it, and the groups that a word in small letters names; None for most words."""
    groups = [_NAMES[int(str(match.lastgroup)[1:])] for match in _GROUP.finditer(word)]  # luso-brasileiro: one
    return (_FORMS.get(word, ("", "")), groups) if groups or word in _FORMS else None


def _articles_of(form: str, words: list[str]) -> Counter[str]:
    """Return how often the article or pronoun before a form that is both says men or women."""
    found: Counter[str] = Counter()
    place = -1
    while True:
        try:
            place = words.index(form, place + 1)
        except ValueError:
            return found
        before = words[place - 1] if place else ""
        found["men" if before in _HE else "women" if before in _SHE else "not said"] += 1


class TextStatistics:
    """Counts over the documents of one source or of a corpus; `add` takes one, `merge` those of another shard."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.documents = self.words = self.bytes = self.tokens = 0
        self.varieties: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()  # by the power of two below the number of words
        self.professions: dict[str, Counter[str]] = defaultdict(Counter)
        self.groups: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, document: dict[str, Any]) -> None:
        """Count a document with `text`, `variety`, `license` and `tokens`."""
        text = document["text"]
        words = _WORD.findall(text.lower())
        self.documents += 1
        self.words += len(words)
        self.bytes += len(text.encode())
        self.tokens += document["tokens"]
        self.varieties[document["variety"] or "not asked"] += 1
        self.licenses[document["license"]] += 1
        self.lengths[max(0, len(words).bit_length() - 1)] += 1
        groups: Counter[str] = Counter()
        for word, count in Counter(words).items():
            if named := _named_by(word):
                (name, who), found = named
                if who:
                    self.professions[name][who] += count
                elif name:
                    self.professions[name].update(_articles_of(word, words))
                for group in found:
                    groups[group] += count
        self.groups.update(groups)
        self._add_examples(text, groups)

    def _add_examples(self, text: str, found: Collection[str]) -> None:
        wanted = {group for group in found if len(self.examples[group]) < _EXAMPLES}
        lowered = text.lower()
        if not wanted or len(lowered) != len(text):
            return
        for match in _GROUP.finditer(lowered):
            group = _NAMES[int(str(match.lastgroup)[1:])]
            if group in wanted:
                around = text[max(0, match.start() - _AROUND) : match.end() + _AROUND]
                self.examples[group].append(" ".join(around.split()))
                if len(self.examples[group]) == _EXAMPLES:
                    wanted.remove(group)
                    if not wanted:
                        return

    def merge(self, other: "TextStatistics") -> None:
        """Add the counts of another shard; of examples the first ones stay."""
        for name in ("documents", "words", "bytes", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("varieties", "licenses", "lengths", "groups"):
            getattr(self, name).update(getattr(other, name))
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

    @property
    def median_words(self) -> int:
        """Return the power of two that half of the documents reach in words."""
        left = self.documents / 2
        for power in sorted(self.lengths):
            left -= self.lengths[power]
            if left <= 0:
                return int(2**power)
        return 0
