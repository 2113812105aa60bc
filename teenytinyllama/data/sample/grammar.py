"""The grammar of the embedded corpus: words with all their forms, and templates that become sentences that agree.

`words.yaml` lists the words. The generator of stories inflects with these tables and the check of agreement
(`evaluation.stories`) reads them backwards, so both follow the same grammar.

A template mixes text with three kinds of mark, which nest freely:

* `[a|b|c]` one of the alternatives, drawn evenly (`[|x]` is an optional part);
* `<rule>` one of the templates of that name in the rules (`templates.yaml`);
* `{...}` a slot that inflects: `{um obj adj?}` a fresh noun of the class (`adj` always, `adj?` half of the time has an
  adjective), `{do thing}` a noun bound for the whole story, `{do h}` a character (`de Ana` or `da avó`), `{h o/a}` an
  ending that follows a character's gender, `{joy h}` an adjective of a group that agrees with a character, `{joy h f}`
  the same for two, `{s}` the hero as a subject (name, pronoun or `a menina`), `{= cheio}` an adjective that agrees with
  the noun phrase just written.

Determiners are written in the masculine (`o`, `do`, `um`, `seu`, `os`, `dois`, ...) and take the noun's gender; `*`
asks for a plural without one (`{* animal}`).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

FourForms = tuple[str, str, str, str]
FORM_KEYS = (("m", "s"), ("f", "s"), ("m", "p"), ("f", "p"))
"""Order of the four forms everywhere: masculine singular, feminine singular, masculine plural, feminine plural."""


@dataclass(frozen=True)
class Noun:
    """A noun with its gender ("m" or "f") and the semantic class it was listed under."""

    singular: str
    plural: str
    gender: str
    kind: str


@dataclass(frozen=True)
class Name:
    """A first name with its gender ("m" or "f")."""

    text: str
    gender: str


def pluralise(singular: str) -> str:
    """Return the regular plural of a Portuguese noun or adjective.

    Words that end in `ão` take `ões`; other plurals of `ão`, and words in `s`, have to be listed explicitly.
    """
    if singular.endswith("ão"):
        return singular[:-2] + "ões"
    for ending, plural in (("al", "ais"), ("el", "éis"), ("ol", "óis"), ("ul", "uis"), ("il", "is"), ("m", "ns")):
        if singular.endswith(ending):
            return singular[: -len(ending)] + plural
    return singular + ("es" if singular[-1] in "rz" else "s")


def inflect_adjective(entry: str) -> FourForms:
    """Return (ms, fs, mp, fp) of an adjective entry.

    Example:
        >>> inflect_adjective("encantador")
        ('encantador', 'encantadora', 'encantadores', 'encantadoras')
    """
    if "/" in entry:
        masculine, feminine, plural_m, plural_f = entry.split("/")
        return masculine, feminine, plural_m, plural_f
    if entry.endswith("o"):
        return entry, entry[:-1] + "a", entry + "s", entry[:-1] + "as"
    if entry.endswith("or"):
        return entry, entry + "a", entry + "es", entry + "as"
    plural = entry[:-2] + "eis" if entry.endswith("vel") else pluralise(entry)
    return entry, entry, plural, plural


def read_texts(name: str) -> Any:
    """Return the content of a YAML file of this folder; the loader written in C takes a sixth of the time."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(Path(__file__).with_name(name).read_text(encoding="utf-8"), loader)


_WORDS = read_texts("words.yaml")


def _read_nouns(kind: str, words: dict[str, str]) -> tuple[Noun, ...]:
    entries = [(gender, *entry.partition("/")[::2]) for gender, text in words.items() for entry in text.split()]
    return tuple(Noun(singular, plural or pluralise(singular), gender, kind) for gender, singular, plural in entries)


NOUNS: dict[str, tuple[Noun, ...]] = {kind: _read_nouns(kind, words) for kind, words in _WORDS["nouns"].items()}
"""Semantic class -> its nouns. Classes made of several others come last; their nouns keep their own class."""
NOUNS |= {
    union: tuple(noun for kind in kinds.split() for noun in NOUNS[kind]) for union, kinds in _WORDS["unions"].items()
}
ADJECTIVES: dict[str, tuple[FourForms, ...]] = {
    group: tuple(inflect_adjective(entry) for entry in words.split()) for group, words in _WORDS["adjectives"].items()
}
NAMES: tuple[Name, ...] = tuple(
    Name(text, gender) for gender, words in _WORDS["names"].items() for text in words.split()
)


def _read_determiners() -> dict[str, tuple[FourForms, str, str]]:
    table: dict[str, tuple[FourForms, str, str]] = {"*": (("", "", "", ""), "p", "")}
    for forms, before_name in _WORDS["determiners"].items():
        masculine, feminine, plural_m, plural_f = (form.strip("-") for form in forms.split())
        four = (masculine, feminine, plural_m, plural_f)
        table |= {four[index]: (four, number, before_name) for index, number in ((0, "s"), (2, "p")) if four[index]}
    return table


DETERMINERS: dict[str, tuple[FourForms, str, str]] = _read_determiners()
"""Template key -> (four forms, number of the key, what is left before a first name); `*` is a plural without one."""


@cache
def adjectives_for(kind: str) -> tuple[FourForms, ...]:
    """Return the adjectives that make sense with nouns of a class, in a fixed order."""
    return tuple(forms for group in _WORDS["adjectives_of_class"][kind].split() for forms in ADJECTIVES[group])


Agreement = frozenset[tuple[str, str]]
"""The (gender, number) pairs a word form can stand for, for example {("m", "s")}."""


def _index_forms(four_forms: tuple[tuple[str, ...], ...]) -> dict[str, Agreement]:
    table: dict[str, set[tuple[str, str]]] = {}
    for forms in four_forms:
        for form, key in zip(forms, FORM_KEYS, strict=True):
            if form:
                table.setdefault(form, set()).add(key)
    return {form: frozenset(keys) for form, keys in table.items()}


@cache
def determiner_forms() -> dict[str, Agreement]:
    """Return every determiner, contraction, possessive and numeral with what it agrees with."""
    return _index_forms(tuple(entry[0] for entry in DETERMINERS.values()))


@cache
def adjective_forms() -> dict[str, Agreement]:
    """Return every adjective form with what it agrees with."""
    return _index_forms(tuple(forms for group in ADJECTIVES.values() for forms in group))


@cache
def noun_forms() -> dict[str, Agreement]:
    """Return every noun form with its gender and number (two entries where singular and plural are alike)."""
    table: dict[str, set[tuple[str, str]]] = {}
    for nouns in NOUNS.values():
        for noun in nouns:
            table.setdefault(noun.singular, set()).add((noun.gender, "s"))
            table.setdefault(noun.plural, set()).add((noun.gender, "p"))
    return {form: frozenset(keys) for form, keys in table.items()}


@cache
def name_genders() -> dict[str, str]:
    """Return every first name with its gender."""
    return {name.text: name.gender for name in NAMES}


T = TypeVar("T")
Node = str | tuple[str, tuple[Any, ...]]
"""Plain text, or ("slot", words), ("rule", words), ("alt", alternatives), each alternative a tuple of nodes."""
CHARACTERS = frozenset("hfej")
"""Slots of the persons of a story: hero, friend, relative, and somebody with a job."""
MAX_DRAWS = 8
"""Draws of a noun that the story has used before giving in."""


@dataclass
class Entity:
    """Something a story is about: a named person, or a noun with its adjective fixed for the whole story.

    With `introduction`, the first mention of a person says who it is (`a amiga Rita`): the slot `bond` has to be bound.
    """

    gender: str
    noun: Noun | None = None
    name: str = ""
    adjective: FourForms | None = None
    introduction: bool = False


def form_index(gender: str, number: str) -> int:
    """Return the place of a gender and number among four forms (ms, fs, mp, fp)."""
    return (gender == "f") + 2 * (number == "p")


def _parse(text: str, position: int, closing: str) -> tuple[list[list[Node]], int]:
    """Parse alternatives separated by `|` up to one of `closing`; return them and the position after it."""
    alternatives: list[list[Node]] = [[]]
    while position < len(text):
        character = text[position]
        if character in closing:
            return alternatives, position + 1
        if character == "[":
            inner, position = _parse(text, position + 1, "]")
            alternatives[-1].append(("alt", tuple(tuple(nodes) for nodes in inner)))
        elif character == "|":
            alternatives.append([])
            position += 1
        elif character in "{<":
            end = text.index("}" if character == "{" else ">", position)
            kind = "slot" if character == "{" else "rule"
            alternatives[-1].append((kind, tuple(text[position + 1 : end].split())))
            position = end + 1
        else:
            end = position
            while end < len(text) and text[end] not in "[]|{<":
                end += 1
            alternatives[-1].append(text[position:end])
            position = end
    return alternatives, position


@cache
def parse_template(template: str) -> tuple[Node, ...]:
    """Return the nodes of a template (cached: every template is read once)."""
    alternatives, _ = _parse(template, 0, "")
    if len(alternatives) != 1:
        raise ValueError(f"template {template!r}: alternatives need square brackets around them")
    return tuple(alternatives[0])


@cache
def plan_phrase(words: tuple[str, ...]) -> tuple[str, tuple[FourForms, ...], str, str, str]:
    """Read the slot of a noun phrase once.

    Returns:
        Its slot or class name; the four forms of each word before; what stays before a first name (`do` -> `de `);
        "s" or "p"; and `adj`, `adj?`, a group of adjectives, or nothing.
    """
    head = next(word for word in words if word not in DETERMINERS)
    before, after = words[: words.index(head)], words[words.index(head) + 1 :]
    determiners = [DETERMINERS[word] for word in before]
    before_name = " ".join(left for _, _, left in determiners if left)
    return (
        head,
        tuple(forms for forms, _, _ in determiners if forms[0] or forms[2]),
        before_name + " " if before_name else "",
        "p" if any(number == "p" for _, number, _ in determiners) else "s",
        after[0] if after else "",
    )


@dataclass
class Narrator:
    """Expand templates for one story: holds its random numbers, its characters and the nouns used so far.

    Args:
        rng: source of all choices of the story.
        rules: rule name -> templates.
        bound: slot name (`h`, `f`, `thing`, ...) -> entity of the story.
        nouns: noun class -> the nouns of it that may appear in this story.
    """

    rng: random.Random
    rules: Mapping[str, Sequence[str]]
    bound: dict[str, Entity]
    nouns: Callable[[str], tuple[Noun, ...]] = NOUNS.__getitem__
    used: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    last_form: int = 0

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options, drawn with one multiplication, which is the same on every Python version."""
        return options[int(self.rng.random() * len(options))]

    def expand(self, template: str) -> str:
        """Return the text of a template, spaces as written."""
        return self._nodes(parse_template(template))

    def _nodes(self, nodes: tuple[Node, ...]) -> str:
        parts = []
        for node in nodes:
            if isinstance(node, str):
                parts.append(node)
            elif node[0] == "alt":
                parts.append(self._nodes(self.pick(node[1])))
            elif node[0] == "rule":
                parts.append(self.expand(self._draw(node[1][0])))
            else:
                parts.append(self._slot(node[1]))
        return "".join(parts)

    def _draw(self, rule: str) -> str:
        """Return a template of the rule, if possible one that the story has not used."""
        for _ in range(3):
            template = self.pick(self.rules[rule])
            if (rule, template) not in self.told:
                break
        self.told.add((rule, template))
        return template

    def _slot(self, words: tuple[str, ...]) -> str:
        first, last = words[0], words[-1]
        if first == "s":
            return self._hero_again()
        if "/" in last:
            return last.split("/")[self.bound[first].gender == "f"]
        if first == "=":
            return inflect_adjective(last)[self.last_form]
        if first in ADJECTIVES:
            return self._predicate(first, words[1:])
        return self._noun_phrase(words)

    def _hero_again(self) -> str:
        """Return the hero as a subject: the name, or where nobody else could be meant, a pronoun or `a menina`."""
        hero, chance = self.bound["h"], self.rng.random()
        rivals = {slot for slot in self.present if slot != "h" and self.bound[slot].gender == hero.gender}
        if chance < 0.3 and "h" in self.present and not rivals:
            return "ela" if hero.gender == "f" else "ele"
        if chance < 0.55 and "h" in self.present and "f" not in rivals:
            return self._noun_phrase(("o", "kid"))
        return self._noun_phrase(("h",))

    def _predicate(self, group: str, owners: tuple[str, ...]) -> str:
        """Return an adjective of the group in the gender and number of one or more characters."""
        gender = "f" if all(self.bound[owner].gender == "f" for owner in owners) else "m"
        forms = self.pick(ADJECTIVES[group])
        return forms[form_index(gender, "p" if len(owners) > 1 else "s")]

    def _noun_phrase(self, words: tuple[str, ...]) -> str:
        """Return determiner + (adjective) + noun + (adjective) with everything agreeing."""
        head, before, before_name, number, after = plan_phrase(words)
        entity = self.bound.get(head) or self._fresh(head)
        if head in CHARACTERS and head not in self.present:
            self.present.add(head)
            if entity.introduction:
                return f"{self._noun_phrase((*(words[: words.index(head)] or ('o',)), 'bond'))} {entity.name}"
        if entity.noun is None:
            return before_name + entity.name
        place = self.last_form = form_index(entity.gender, number)
        parts = [forms[place] for forms in before]
        parts.append(entity.noun.plural if number == "p" else entity.noun.singular)
        if after and (not after.endswith("?") or self.rng.random() < 0.5):
            group = ADJECTIVES.get(after.rstrip("?"))
            adjective = self.pick(group) if group else entity.adjective or self.pick(adjectives_for(entity.noun.kind))
            parts.append(adjective[place])
        return " ".join(parts)

    def _fresh(self, kind: str) -> Entity:
        """Return a noun of the class that the story may use, if possible one it has not used yet."""
        options = self.nouns(kind)
        for _ in range(MAX_DRAWS):
            noun = self.pick(options)
            if noun.singular not in self.used:
                break
        self.used.add(noun.singular)
        return Entity(noun.gender, noun)


def character(who: Name | Noun) -> Entity:
    """Return the entity of a named person, or of someone known by a noun (`a avó`, `o padeiro`)."""
    if isinstance(who, Name):
        return Entity(who.gender, name=who.text)
    return Entity(who.gender, noun=who)


_SPACE_BEFORE_MARK = re.compile(r"\s+([,.!?;:])")
_SENTENCE_START = re.compile(r"(^|[.!?…]\s+|\n\s*|—\s|“)([a-zà-ú])")


def tidy(text: str) -> str:
    """Return a story with single spaces, capitals at sentence starts and no space before punctuation.

    A dash that closes a line of dialogue is followed by a small letter (`— Vamos! — disse Ana.`), which the
    templates mark by writing it as `~`.
    """
    text = re.sub(r"[ ]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    text = _SPACE_BEFORE_MARK.sub(r"\1", text)
    text = _SENTENCE_START.sub(lambda found: found[1] + found[2].upper(), text.strip())
    return text.replace("~", "—")
