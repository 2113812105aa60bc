"""Expand sentence templates into Portuguese text whose determiners, adjectives and pronouns agree.

A template mixes text with three kinds of mark, which nest freely:

* `[a|b|c]` one of the alternatives, drawn evenly (`[|x]` is an optional part);
* `<rule>` one of the templates of that name in the rules;
* `{...}` a slot that inflects: `{um obj adj?}` a fresh noun of the class (`adj` always, `adj?` half of the time has an
  adjective), `{do thing}` a noun bound for the whole story, `{do h}` a character (`de Ana` or `da avó`), `{h o/a}` an
  ending that follows a character's gender, `{joy h}` an adjective of a group that agrees with a character, `{joy h f}`
  the same for two, `{s}` the hero as a subject (name, pronoun or `a menina`), `{= cheio}` an adjective that agrees with the noun phrase just written.

Determiners are written in the masculine (`o`, `do`, `um`, `seu`, `os`, `dois`, ...) and take the noun's gender; `*` asks for a
plural without one (`{* animal}`).
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from teenytinyllama.data.sample.lexicon import (
    ADJECTIVES,
    DETERMINERS,
    NOUNS,
    Name,
    Noun,
    adjectives_for,
    inflect_adjective,
)

Node = str | tuple[str, tuple]  # type: ignore[type-arg]
CHARACTERS = frozenset("hfej")
"""Slots of the persons of a story: hero, friend, relative, and somebody with a job."""
MAX_DRAWS = 20
"""Draws of a fresh noun that a story may not use (used before, or kept for the other split) before giving in."""


@dataclass
class Entity:
    """Something a story is about: a named person, or a noun with its adjective fixed for the whole story."""

    gender: str
    noun: Noun | None = None
    name: str = ""
    adjective: tuple[str, str, str, str] | None = None


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


@lru_cache(maxsize=None)
def parse_template(template: str) -> tuple[Node, ...]:
    """Return the nodes of a template (cached: every template is read once)."""
    alternatives, _ = _parse(template, 0, "")
    if len(alternatives) != 1:
        raise ValueError(f"template {template!r}: alternatives need square brackets around them")
    return tuple(alternatives[0])


@dataclass
class Narrator:
    """Expand templates for one story: holds its random numbers, its characters and the nouns used so far.

    Args:
        rng: source of all choices of the story.
        rules: rule name -> templates.
        bound: slot name (`h`, `f`, `thing`, ...) -> entity of the story.
        allowed: says whether a fresh noun may appear in this story.
    """

    rng: random.Random
    rules: Mapping[str, tuple[str, ...]]
    bound: dict[str, Entity]
    allowed: frozenset[str] | None = None
    used: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)
    last_form: int = 0

    def pick(self, options):  # type: ignore[no-untyped-def]
        """Return one of the options; one multiplication, the same on every Python version."""
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
        head = next(word for word in words if word in self.bound or word in NOUNS)
        before, after = words[: words.index(head)], words[words.index(head) + 1 :]
        entity = self.bound[head] if head in self.bound else self._fresh(head)
        if head in CHARACTERS:
            self.present.add(head)
        if entity.noun is None:
            kept = [DETERMINERS[word][2] if word in DETERMINERS else word for word in before]
            return " ".join([word for word in kept if word] + [entity.name])
        number = "p" if any(word in DETERMINERS and DETERMINERS[word][1] == "p" for word in before) else "s"
        place = self.last_form = form_index(entity.gender, number)
        out = []
        for word in before:
            if word in ADJECTIVES:
                out.append(self.pick(ADJECTIVES[word])[place])
            else:
                out.append(DETERMINERS[word][0][place] if word in DETERMINERS else word)
        out.append(entity.noun.plural if number == "p" else entity.noun.singular)
        if after and (not after[0].endswith("?") or self.rng.random() < 0.5):
            group = ADJECTIVES.get(after[0].rstrip("?"))
            adjective = self.pick(group) if group else entity.adjective or self.pick(adjectives_for(entity.noun.kind))
            out.append(adjective[place])
        return " ".join(filter(None, out))

    def _fresh(self, kind: str) -> Entity:
        """Return a noun of the class that the story has not used yet and may use."""
        noun = self.pick(NOUNS[kind])
        for _ in range(MAX_DRAWS):
            if noun.singular not in self.used and (self.allowed is None or noun.singular in self.allowed):
                break
            noun = self.pick(NOUNS[kind])
        self.used.add(noun.singular)
        return Entity(noun.gender, noun)


def character(who: Name | Noun) -> Entity:
    """Return the entity of a named person, or of someone known by a noun (`a avó`, `o padeiro`)."""
    if isinstance(who, Name):
        return Entity(who.gender, name=who.text)
    return Entity(who.gender, noun=who)


_SPACE_BEFORE_MARK = re.compile(r"\s+([,.!?;:])")
_SENTENCE_START = re.compile(r"(^|[.!?…]\s+|\n\s*|—\s|“)([a-zà-ú])")
_AFTER_SPEECH = re.compile(r"([!?…,.]) — ([A-ZÀ-Ú])")


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
