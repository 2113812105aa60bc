"""The embedded corpus (`inputs: sample`): short Portuguese stories and facts, instructions and questions.

All of it is our own writing. It needs no download and no folder, and is the same on every machine. The stories come
from a small grammar (`grammar`, `storyteller`), so that agreement and copying can be measured on what a model trained
on them writes (`teenytinyllama.evaluation.stories`). The texts themselves lie in the YAML files of this folder.
"""

from collections.abc import Iterator
from typing import Any, Literal

from ...checks import ensure
from .grammar import read_texts
from .storyteller import write_story

__all__ = [
    "DEFAULT_NUM_DOCUMENTS",
    "FACTS",
    "PROMPTS",
    "sample_conversations",
    "sample_documents",
    "sample_instructions",
    "sample_questions",
]

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
