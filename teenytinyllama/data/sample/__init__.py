"""The embedded corpus (`inputs: sample`): short Portuguese stories and facts, instructions and questions.

All of it is our own writing. It needs no download and no folder, and is the same on every machine. The stories come
from a small grammar (`grammar`), so that agreement and copying can be measured on what a model trained
on them writes (`teenytinyllama.evaluation.stories`). The texts themselves lie in the YAML files of this folder.

Validation never shares a plot with train, nor a pair (hero, object): one pair in `HELD_OUT_EVERY` belongs to
validation, and no object of a story may form a pair of the other split with its hero.
The held-out documents are the same in every version: train may grow, they may not change.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from ...checks import ensure
from .grammar import NAMES, NOUNS, Entity, Name, Narrator, Noun, adjectives_for, character, read_texts, tidy

__all__ = [
    "DEFAULT_NUM_DOCUMENTS",
    "FACTS",
    "PROMPTS",
    "sample_conversations",
    "sample_documents",
    "sample_instructions",
    "sample_questions",
]

Split = Literal["train", "validation"]

MIN_WORDS, MAX_WORDS = 60, 140
HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Plot:
    """A story line: noun classes of its main object (`thing`), of who helps and of where it happens, and its stages.

    With `friend_known`, the first mention of the friend says who that is (`a amiga Rita`).
    """

    stages: tuple[tuple[str, ...], ...]
    thing: str = "obj"
    helper: str = "job"
    where: str = "square"
    friend_known: bool = True


def _read_plots(plots: dict[str, dict[str, Any]]) -> dict[str, Plot]:
    """Return the plots of a split; a stage that is shared by plots stands there by its name."""
    shared = _PLOTS["shared_stages"]
    return {
        name: Plot(**{**plot, "stages": tuple(tuple(shared[s] if isinstance(s, str) else s) for s in plot["stages"])})
        for name, plot in plots.items()
    }


_PLOTS = read_texts("plots.yaml")
PLOTS: dict[str, dict[str, Plot]] = {split: _read_plots(_PLOTS[split]) for split in ("train", "validation")}
RULES: dict[str, list[str]] = read_texts("templates.yaml")
"""Rule name -> its templates."""
_KIDS, _BONDS = (
    {gender: tuple(noun for noun in NOUNS[kind] if noun.gender == gender) for gender in "fm"}
    for kind in ("kid", "bond")
)
_BOUND_CLASSES = {"e": "kin", "room": "chamber", "treat": "recipe", "crop": "veg", "pet": "pet"}


@dataclass(frozen=True)
class Story:
    """A story with what it was made from: plot name, hero and main object."""

    text: str
    plot: str
    hero: str
    thing: str


def is_held_out_pair(hero: str, thing: str) -> bool:
    """Return whether a hero and an object may meet only in the validation split.

    The rule reads letters, not list positions, so that a longer word list moves no pair between the splits.
    """
    letters = hero + thing
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(letters)) % HELD_OUT_EVERY == 0


@cache
def _nouns_beside(hero: str, split: Split) -> frozenset[str]:
    """Return the nouns that may stand in a story about the hero: all but the objects kept for the other split."""
    kept_away = {
        noun.singular for noun in NOUNS["obj"] if is_held_out_pair(hero, noun.singular) != (split == "validation")
    }
    return frozenset(noun.singular for nouns in NOUNS.values() for noun in nouns) - kept_away


@cache
def _candidates(hero: str, split: Split, kind: str) -> tuple[Noun, ...]:
    """Return the nouns of a class that may stand beside the hero; where all are kept away, any object that may."""
    allowed = _nouns_beside(hero, split)
    return tuple(noun for noun in NOUNS[kind] if noun.singular in allowed) or _candidates(hero, split, "obj")


@cache
def _heroes(split: Split, kind: str) -> tuple[Name, ...]:
    """Return the names that may meet at least one main object of the class."""
    return tuple(
        name for name in NAMES if any(noun.singular in _nouns_beside(name.text, split) for noun in NOUNS[kind])
    )


def _bind(rng: random.Random, plot: Plot, split: Split) -> tuple[Name, Narrator]:
    """Draw the characters, places and main object of a story."""
    narrator = Narrator(rng, RULES, {})
    hero = friend = narrator.pick(_heroes(split, plot.thing))
    while friend == hero:
        friend = narrator.pick(NAMES)
    narrator.nouns = partial(_candidates, hero.text, split)
    narrator.bound |= {
        "h": character(hero),
        "f": character(friend),
        "kid": character(narrator.pick(_KIDS[hero.gender])),
    }
    narrator.bound["f"].introduction = plot.friend_known
    narrator.bound["bond"] = character(narrator.pick(_BONDS[friend.gender]))
    for slot, kind in (*_BOUND_CLASSES.items(), ("j", plot.helper), ("where", plot.where), ("thing", plot.thing)):
        noun = narrator.pick(narrator.nouns(kind))
        narrator.bound[slot] = Entity(noun.gender, noun, adjective=narrator.pick(adjectives_for(noun.kind)))
        narrator.used.add(noun.singular)
    return hero, narrator


def _join(parts: list[str]) -> str:
    """Return the parts as paragraphs: a part that starts with a dash (speech) is a paragraph of its own."""
    text, after_speech = "", False
    for part in filter(None, parts):
        speech = part.startswith("—")
        text += ("\n" if text and (speech or after_speech) else " ") + part
        after_speech = speech
    return tidy(text)


def write_story(split: Split, index: int, seed: int = 0) -> Story:
    """Return story number `index` of a split, 60 to 140 words long.

    All randomness comes from (seed, split, index); stories do not depend on one another.
    """
    plots = PLOTS[split]
    rng = random.Random((seed * 1_000_003 + index) * 2 + (split == "validation"))
    while True:
        name = list(plots)[int(rng.random() * len(plots))]
        hero, narrator = _bind(rng, plots[name], split)
        text = _join([narrator.expand(narrator.pick(stage)) for stage in plots[name].stages])
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            thing = narrator.bound["thing"].noun
            return Story(text, name, hero.text, thing.singular if thing else "")


_TEXTS = read_texts("texts.yaml")
PROMPTS: tuple[str, ...] = tuple(_TEXTS["prompts"])
"""Openings from which the demo lets a model write on."""
FACTS: dict[str, list[str]] = _TEXTS["facts"]
"""Split -> its factual documents."""
DEFAULT_NUM_DOCUMENTS = {"train": 8_000, "validation": 200}
STORY_METADATA = "source: historias; license: Apache-2.0"
FACT_METADATA = "source: curiosidades; license: Apache-2.0"
NUM_TOLD_STORIES = {"train": 1_500, "validation": 60}
STORIES_PER_FACT = {"train": 40, "validation": 20}
"""One fact follows each so many stories, until all facts have been told once."""


def sample_documents(
    split: Literal["train", "validation"], num_documents: int | None = None, seed: int = 0
) -> Iterator[dict[str, str]]:
    """Yield the documents of a split: stories, with a fact (`curiosidades`) now and then.

    Document i does not depend on how many are asked for. The validation stories use plots, and pairs of hero and
    object, that train never has; the validation facts are not in train either.

    Args:
        split: "train" or "validation".
        num_documents: how many to yield; None for `DEFAULT_NUM_DOCUMENTS` (about 0.7 million words of train).
        seed: another seed gives other stories (the facts stay).

    Yields:
        `{"text": ..., "metadata": "source: ...; license: Apache-2.0"}`

    Raises:
        InputError: the split is unknown or `num_documents` is negative.
    """
    ensure(split in DEFAULT_NUM_DOCUMENTS, f"split={split!r}: must be 'train' or 'validation'. Use one of the two.")
    wanted = DEFAULT_NUM_DOCUMENTS[split] if num_documents is None else num_documents
    ensure(
        wanted >= 0,
        f"num_documents={num_documents}: must be 0 or more. Leave it out for {DEFAULT_NUM_DOCUMENTS[split]}.",
    )
    return _generate(split, wanted, seed)


def _generate(split: Literal["train", "validation"], num_documents: int, seed: int) -> Iterator[dict[str, str]]:
    facts = FACTS[split]
    period = STORIES_PER_FACT[split] + 1
    for index in range(num_documents):
        place = index // period
        if index % period == period - 1 and place < len(facts):
            yield {"text": facts[place], "metadata": FACT_METADATA}
        else:
            yield {"text": write_story(split, index, seed).text, "metadata": STORY_METADATA}


def sample_conversations(split: Literal["train", "validation"]) -> Iterator[dict[str, Any]]:
    """Yield the conversations of a split: stories told from their first sentence on and, in train, the instructions.

    The stories are those of `sample_documents`, so a model pretrained on the sample knows how to tell them.

    Yields:
        `{"messages": [...], "source": "historias" | "perguntas"}`
    """
    for row in sample_documents(split, NUM_TOLD_STORIES[split]):
        first, _, rest = row["text"].partition("\n")
        begin, stop, more = first.partition(". ")
        if row["metadata"] == STORY_METADATA and more:
            question = f"Conte uma história que comece assim: {begin}{stop.strip()}"
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{more}\n{rest}".strip()}]
            yield {"messages": turns, "source": "historias"}
    if split == "train":
        yield from ({**row, "source": "perguntas"} for row in sample_instructions())


def sample_instructions() -> list[dict[str, list[dict[str, str]]]]:
    """Return conversations of one turn: `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`."""
    roles = (("user", "question"), ("assistant", "answer"))
    return [
        {"messages": [{"role": role, "content": row[key]} for role, key in roles]} for row in _TEXTS["instructions"]
    ]


def sample_questions() -> list[dict[str, str | list[str] | int]]:
    """Return multiple-choice questions: `question`, four `choices` and `answer`, the index of the right one."""
    return [dict(row) for row in _TEXTS["questions"]]
