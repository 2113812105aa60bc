"""Stories: how good a generated story is, by its words, by what it copies, and by its grammar.

Three shares are measured: words that occur in the training texts, runs of words copied from them, and pairs of words
that agree. A share is None where there was nothing to measure, as with an untrained model that writes no noun at all.
Words are compared lower-cased and without punctuation.

Three kinds of pairs of words have to agree in Portuguese. All are decided with the word tables of the sample corpus and
never guessed:

* inside a noun phrase: determiner, contraction, possessive or numeral + noun; adjective + noun, noun + adjective;
* subject + predicate adjective (`Ana ficou contente`, `a avó e Rui voltaram felizes`, `— disse Ana, feliz.`);
* a person: `uma menina chamada Ana`, and `ele`/`ela` while only one person has been named.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ..data.sample.grammar import (
    DETERMINERS,
    NOUNS,
    Agreement,
    adjective_forms,
    determiner_forms,
    name_genders,
    noun_forms,
)
from ..progress import progress

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_TOKEN = re.compile(_WORD.pattern + r"|[^\w\s]|\n")
COPY_NGRAM_WORDS = 8  # the length of the runs of words that count as copied
_SENTENCE_END = frozenset(".!?…\n—:")
_PRONOUNS: dict[str, Agreement] = {
    "ele": frozenset({("m", "s")}), "ela": frozenset({("f", "s")}),
    "eles": frozenset({("m", "p")}), "elas": frozenset({("f", "p")}),
}  # fmt: skip
_SINGULAR_VERBS = "era estava ficou parecia continuava é está fica acordou levantou voltou dormiu adormeceu chegou saiu"
_PLURAL_VERBS = "eram estavam ficaram pareciam continuavam são estão ficam acordaram voltaram chegaram saíram foram"
_SPEECH_VERBS = frozenset(
    {"disse", "falou", "contou", "explicou", "comentou", "avisou", "afirmou", "sussurrou", "lembrou", "perguntou"}
    | {"saber", "indagou", "gritou", "exclamou", "festejou", "respondeu", "murmurou", "garantiu", "prometeu"}
)
_LINK_VERBS = dict.fromkeys(_SINGULAR_VERBS.split(), "s") | dict.fromkeys(_PLURAL_VERBS.split(), "p")
_DEGREE_WORDS = frozenset(["muito", "tão", "bem", "mais", "ainda", "sempre", "embora", "já", "bastante"])
_CLAUSE_STARTS = frozenset(["que", "quando", "mas", "porque", "enquanto", "onde", "então", "pois", "e", "se"])
# Masculine singular forms that are more often adverbs (`muito tarde`): not counted as determiners.
_ADVERB_OR_DETERMINER = frozenset({"muito", "pouco", "quanto", "mesmo", "primeiro", "certo", "todo"})
_MAX_DETERMINERS = 3


@dataclass(frozen=True)
class WordPair:
    """Two words that should agree, and whether they do."""

    first: str
    second: str
    agrees: bool


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: tokens `start` to `end` (exclusive), its noun's agreement, and whether a determiner opens it."""

    start: int
    end: int
    agreement: Agreement
    has_determiner: bool


@cache
def _person_nouns() -> frozenset[str]:
    """Return the singular nouns for people and animals: anything that could be a sentence's subject."""
    kinds = ("kin", "job", "kid", "animal", "wild")
    return frozenset(form for kind in kinds for noun in NOUNS[kind] for form in (noun.singular, noun.plural))


@cache
def _plain_determiners() -> frozenset[str]:
    """Return the determiners without a preposition inside: only these can open a subject."""
    plain = [forms for forms, _, before_name in DETERMINERS.values() if not before_name]
    return frozenset(form for forms in plain for form in forms if form)


class _Reader:
    """The tokens of a text, and what the checks need to know about them: nouns, noun phrases, names and subjects."""

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text.replace("’", "'"))
        self.lower = [token.lower() for token in self.tokens]
        self.phrases = {phrase.end: phrase for phrase in self._phrases()}

    def word(self, place: int) -> str:
        """Return the lower-cased token at a place, or an empty string outside the text."""
        return self.lower[place] if 0 <= place < len(self.lower) else ""

    def name_gender(self, place: int) -> str:
        """Return the gender of the first name at a place, or an empty string."""
        return name_genders().get(self.tokens[place], "") if 0 <= place < len(self.tokens) else ""

    def is_noun(self, place: int) -> bool:
        """Return whether the token is a noun here (a word that is also an adjective is one unless a noun precedes)."""
        word = self.word(place)
        return word in noun_forms() and not (word in adjective_forms() and self.word(place - 1) in noun_forms())

    def _phrases(self) -> Iterator[Phrase]:
        for place in range(len(self.lower)):
            if not self.is_noun(place):
                continue
            start = place
            if self.word(start - 1) in adjective_forms() and self.word(start - 2) in determiner_forms():
                start -= 1
            first = start
            while start > first - _MAX_DETERMINERS and self._is_determiner(start - 1):
                start -= 1
            end = place + 1
            if self.word(end) in adjective_forms():
                end += 1
            elif self.word(end) in _DEGREE_WORDS and self.word(end + 1) in adjective_forms():
                end += 2
            yield Phrase(start, end, noun_forms()[self.word(place)], start < first)

    def _is_determiner(self, place: int) -> bool:
        return self.word(place) in determiner_forms() and self.word(place) not in _ADVERB_OR_DETERMINER

    def sentence_start(self, place: int) -> int:
        """Return where the sentence of a token starts."""
        while place > 0 and self.word(place - 1) not in _SENTENCE_END:
            place -= 1
        return place

    def subject(self, end: int) -> Agreement | None:
        """Return the agreement of the subject that ends right before a place, or None if that is not certain."""
        if self.word(end - 1) == "que" and self.word(end - 2) == ",":
            end -= 2  # "Ana, que era curiosa"
        single, start = self._single_subject(end)
        if single is None or self.word(start - 1) != "e":
            return single if single and self._opens_clause(start) else None
        other, other_start = self._single_subject(start - 1)
        if other is None or not self._opens_clause(other_start):
            return None
        genders = {gender for gender, _ in single | other}
        return frozenset({("f" if genders == {"f"} else "m", "p")})

    def _single_subject(self, end: int) -> tuple[Agreement | None, int]:
        """Return the agreement of one name, pronoun or noun phrase that ends before a place, and its start."""
        gender = self.name_gender(end - 1)
        if gender:
            return frozenset({(gender, "s")}), end - 1
        if self.word(end - 1) in _PRONOUNS:
            return _PRONOUNS[self.word(end - 1)], end - 1
        phrase = self.phrases.get(end)
        if phrase and self.word(phrase.start) in _plain_determiners():
            return phrase.agreement, phrase.start
        return None, end

    def _opens_clause(self, place: int) -> bool:
        before = self.word(place - 1)
        return not before or before in _CLAUSE_STARTS or not before[0].isalpha()


def _noun_phrase_pairs(reader: _Reader) -> Iterator[WordPair]:
    """Yield determiner + noun and adjective + noun pairs; a bare singular noun claims no adjective after it."""
    for phrase in reader.phrases.values():
        places = range(phrase.start, phrase.end)
        noun_place = next(place for place in places if reader.is_noun(place) and reader.word(place) in noun_forms())
        noun = reader.word(noun_place)
        claims_adjective = phrase.has_determiner or ("f", "p") in phrase.agreement or ("m", "p") in phrase.agreement
        for place in places:
            word = reader.word(place)
            if place < noun_place and word in determiner_forms():
                yield WordPair(word, noun, bool(determiner_forms()[word] & phrase.agreement))
            elif place != noun_place and word in adjective_forms() and claims_adjective:
                yield WordPair(noun, word, bool(adjective_forms()[word] & phrase.agreement))


def _elided_subject(reader: _Reader, verb: int) -> Agreement | None:
    """Return the agreement of the only person of the sentence so far, for `Ana viu tudo e ficou contente`."""
    if reader.word(verb - 1) not in ("e", ","):
        return None
    places = range(reader.sentence_start(verb), verb)
    names = [place for place in places if reader.name_gender(place)]
    others = any(reader.word(place) in _person_nouns() or reader.word(place) in ("que", *_PRONOUNS) for place in places)
    if len(names) != 1 or others or not reader._opens_clause(names[0]):
        return None
    return frozenset({(reader.name_gender(names[0]), "s")})


def _predicate_pairs(reader: _Reader) -> Iterator[WordPair]:
    """Yield subject + adjective pairs over a linking verb, and the adjective that closes a line of speech."""
    for verb, word in enumerate(reader.lower):
        if word in _LINK_VERBS:
            place = verb + 1
            while reader.word(place) in _DEGREE_WORDS:
                place += 1
            adjective = reader.word(place)
            if adjective not in adjective_forms() or reader.word(place + 1) in noun_forms():
                continue
            subject = reader.subject(verb) or _elided_subject(reader, verb)
            if subject:
                yield WordPair(reader.word(verb - 1), adjective, bool(adjective_forms()[adjective] & subject))
        elif word in _SPEECH_VERBS:
            yield from _speech_pair(reader, verb)


def _speech_pair(reader: _Reader, verb: int) -> Iterator[WordPair]:
    """Yield the pair of the two words `Ana` and `contente` in `— disse Ana, contente.`, if the verb is such a one."""
    for end in range(verb + 2, verb + 5):
        adjective = reader.word(end + 1)
        if reader.word(end) != "," or adjective not in adjective_forms() or reader.word(end + 2) not in _SENTENCE_END:
            continue
        speaker, start = reader._single_subject(end)
        if speaker and start == verb + 1:
            yield WordPair(reader.word(end - 1), adjective, bool(adjective_forms()[adjective] & speaker))


def _person_pairs(reader: _Reader) -> Iterator[WordPair]:
    """Yield kid noun + name (`um menino chamado Rui`) and sentence-opening pronoun + the only name so far."""
    kids = {noun.singular: noun.gender for noun in NOUNS["kid"]}
    named: dict[str, str] = {}
    for place, token in enumerate(reader.tokens):
        gender = reader.name_gender(place)
        if gender:
            named[token] = gender
            window = reader.lower[max(0, place - 5) : place]
            kid = next((word for word in reversed(window) if word in kids), "")
            if kid and window[-1] in ("chamava", "chamado", "chamada", "nome"):
                yield WordPair(kid, token, kids[kid] == gender)
        opens = place == 0 or reader.word(place - 1) in _SENTENCE_END
        if reader.lower[place] in ("ele", "ela") and opens and len(named) == 1:
            only = next(iter(named.values()))
            yield WordPair(next(iter(named)), token, (only == "f") == (reader.lower[place] == "ela"))


def agreement_pairs(text: str) -> list[WordPair]:
    """Return every pair of words that the grammar can judge, in three groups (noun phrases, predicates, persons)."""
    reader = _Reader(text)
    return [*_noun_phrase_pairs(reader), *_predicate_pairs(reader), *_person_pairs(reader)]


def story_words(text: str) -> list[str]:
    """Return the words of a text, lower-cased, hyphenated words whole, punctuation and digits dropped."""
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + COPY_NGRAM_WORDS]) for start in range(len(words) - COPY_NGRAM_WORDS + 1))


def check_agreement(text: str) -> tuple[int, int]:
    """Return (pairs that agree, pairs checked) of a Portuguese text.

    Only words of the sample corpus are known; what the grammar cannot decide is not counted.

    Example:
        >>> check_agreement("A menina viu um casa pequena.")
        (2, 3)
    """
    verdicts = [pair.agrees for pair in agreement_pairs(text)]
    return sum(verdicts), len(verdicts)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def story_report(samples: Sequence[str], train_texts: Iterable[str]) -> dict[str, float | int | None]:
    """Return the three shares of the samples (0 to 1, None where nothing could be checked) and their counts.

    Args:
        samples: generated texts, without special tokens.
        train_texts: the texts the model was trained on; read once.

    Returns:
        `lexicon_share`, `copied_share`, `agreement_share`, and `num_samples`, `num_words`, `num_ngrams`,
        `num_agreement_pairs`.
    """
    documents = [story_words(sample) for sample in samples]
    words = [word for document in documents for word in document]
    ngrams = [ngram for document in documents for ngram in _ngrams(document)]
    # One pass over train, of which only what the samples hold is kept in memory.
    wanted_words, wanted_ngrams = set(words), set(ngrams)
    known: set[str] = set()
    copied: set[tuple[str, ...]] = set()
    for text in progress(train_texts, "comparing with the texts trained on", "texts"):
        found = story_words(text)
        known |= wanted_words.intersection(found)
        copied |= wanted_ngrams.intersection(_ngrams(found))
    checks = [check_agreement(sample) for sample in samples]
    num_agree, num_pairs = sum(agree for agree, _ in checks), sum(pairs for _, pairs in checks)
    return {
        "lexicon_share": _share(sum(word in known for word in words), len(words)),
        "copied_share": _share(sum(ngram in copied for ngram in ngrams), len(ngrams)),
        "agreement_share": _share(num_agree, num_pairs),
        "num_samples": len(samples),
        "num_words": len(words),
        "num_ngrams": len(ngrams),
        "num_agreement_pairs": num_pairs,
    }
