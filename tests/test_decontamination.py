"""Decontamination: items of evaluation sets are found in texts, whole, in part and changed, and cut out."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.corpus.decontamination import (
    DecontaminationConfig,
    EvaluationIndex,
    Passage,
    cut_passages,
    decontaminate,
    item_texts,
)

WORDS = [
    "".join(parts)
    for parts in itertools.product(("ca", "me", "ri", "so", "tu"), ("la", "ne", "ri", "to"), ("l", "s", "do", "ção"))
]
OTHERS = [
    "".join(parts)
    for parts in itertools.product(("bu", "fe", "go", "pi", "za"), ("lhe", "nha", "va"), ("r", "m", "gem"))
]


def made(rng: random.Random, length: int, words: Sequence[str] = WORDS) -> str:
    return " ".join(rng.choices(words, k=length))


def changed(text: str, rng: random.Random, every: int = 10) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, round(len(words) / every))):
        words[place] = rng.choice(OTHERS)
    return " ".join(words)


def index_of(*items: str | Sequence[str], **config: object) -> EvaluationIndex:
    made_items = [[item] if isinstance(item, str) else item for item in items]
    return EvaluationIndex.from_sets({"prova": made_items}, DecontaminationConfig(**config))  # type: ignore[arg-type]


def planted(text: str, rng: random.Random) -> tuple[str, int, int]:
    before = made(rng, 200, OTHERS) + ".\n"
    return f"{before}{text}\n{made(rng, 200, OTHERS)}", len(before), len(before) + len(text)


def test_whole_items_of_any_length_are_found_whatever_their_case_accents_and_punctuation() -> None:
    rng = random.Random(0)
    items = [made(rng, length) for length in (5, 6, 7, 8, 12, 13, 25, 79, 80, 81, 400)]
    index = index_of(*items)
    for place, item in enumerate(items):
        for form in (
            item,
            item.upper(),
            item.title(),
            item.replace("ção", "cao"),
            item.replace(" ", ",\n—"),
            f"«{item}»",
        ):
            text, start, end = planted(form, rng)
            assert [(found.set, found.item) for found in index.find_passages(text)] == [("prova", place)]
            [found] = index.find_passages(text)
            assert text[found.start : found.end].strip("«»") == text[start:end].strip("«»")


def test_items_with_one_word_in_ten_changed_are_found() -> None:
    rng = random.Random(1)
    items = [made(rng, length) for length in [25] * 60 + [50] * 60 + [150] * 60]
    index = index_of(*items)
    found = [{passage.item for passage in index.find_passages(planted(changed(item, rng), rng)[0])} for item in items]
    for first in (0, 60, 120):
        assert sum(found[place] == {place} for place in range(first, first + 60)) >= 0.95 * 60
    # The passages reach from the first to the last word that was not changed.
    text, start, end = planted(changed(items[-1], rng), rng)
    [passage] = index.find_passages(text)
    assert start <= passage.start < start + 40
    assert end - 40 < passage.end <= end


def test_a_word_more_or_less_does_not_hide_an_item() -> None:
    rng = random.Random(2)
    item = made(rng, 40)
    index = index_of(item)
    words = item.split()
    for place in (10, 20, 30):
        for form in ([*words[:place], "zás", *words[place:]], words[:place] + words[place + 1 :]):
            text, start, end = planted(" ".join(form), rng)
            [passage] = index.find_passages(text)
            assert (passage.start, passage.end) == (start, end)


def test_a_short_item_needs_eight_words_in_a_row_and_a_long_one_thirteen() -> None:
    rng = random.Random(3)
    short, long = made(rng, 79), made(rng, 80)
    index = index_of(short, long)
    part = lambda item, length: planted(" ".join(item.split()[30 : 30 + length]), rng)[0]  # noqa: E731
    assert index.find_passages(part(short, 7)) == []
    assert [found.item for found in index.find_passages(part(short, 8))] == [0]
    assert index.find_passages(part(long, 12)) == []
    assert [found.item for found in index.find_passages(part(long, 13))] == [1]


def test_other_texts_that_share_short_phrases_are_left_alone() -> None:
    rng = random.Random(4)
    phrases = [made(rng, length) for length in (4, 5, 6, 7) for _ in range(5)]
    items = [
        " ".join(piece for phrase in rng.sample(phrases, 6) for piece in (phrase, made(rng, 4))) for _ in range(40)
    ]
    index = index_of(*items)
    text = " ".join(piece for _ in range(300) for piece in (rng.choice(phrases), made(rng, 5, OTHERS)))
    assert index.find_passages(text) == []


def test_items_of_fewer_than_five_words_are_left_out_and_counted() -> None:
    index = EvaluationIndex.from_sets(
        {"a": [["um dois três quatro"], ["um dois", "três quatro cinco"]], "b": [["sim"]]}
    )
    assert index.sizes == {"a": 2, "b": 1}
    assert index.left_out == {"a": 1, "b": 1}
    assert index.find_passages("um dois três quatro cinco") == [Passage(0, 25, "a", 1)]
    assert EvaluationIndex.from_sets({"b": [["sim"]]}).find_passages("sim não sim não sim não") == []
    assert index.find_passages("") == []


def test_the_question_of_a_long_item_is_found_without_its_passage() -> None:
    rng = random.Random(5)
    passage, question = made(rng, 120), made(rng, 10)
    text = planted(question, rng)[0]
    assert len(index_of([passage, question]).find_passages(text)) == 1
    assert index_of(f"{passage} {question}").find_passages(text) == []


def test_a_phrase_that_many_documents_hold_does_not_count() -> None:
    rng = random.Random(6)
    phrase = made(rng, 12)
    item = f"{made(rng, 20)} {phrase} {made(rng, 20)}"
    laws = [planted(phrase, rng)[0] for _ in range(12)]
    popular = [planted(item, rng)[0] for _ in range(12)]
    index = index_of(item)
    assert all(index.find_passages(law) for law in laws)
    halves = index.count_phrases(laws[:6]) + index.count_phrases([*laws[6:], *popular])
    assert np.array_equal(halves, index.count_phrases([*laws, *popular]))
    assert index.ignore_phrases(halves) == 12
    assert not any(index.find_passages(law) for law in laws)
    for text in popular:  # the rest of the item still counts, and what is found reaches over the phrase
        [found] = index.find_passages(text)
        assert len(text[found.start : found.end].split()) == 52
    assert index_of(item, most_documents=12).ignore_phrases(halves) == 0
    assert index_of(item, most_documents=None).ignore_phrases(halves) == 0


def test_a_saying_that_is_an_item_may_be_a_phrase_too() -> None:
    rng = random.Random(7)
    index = index_of("Quem não deve não teme")
    texts = [planted("quem não deve, não teme!", rng)[0] for _ in range(11)]
    assert index.ignore_phrases(index.count_phrases(texts[:10])) == 0
    assert index.ignore_phrases(index.count_phrases(texts)) == 5
    assert index.find_passages(texts[0]) == []


def test_an_item_that_many_others_repeat_is_still_found() -> None:
    rng = random.Random(8)
    context = made(rng, 60)
    index = index_of(*[f"{context} {made(rng, 15)}" for _ in range(40)])
    text, start, end = planted(context, rng)
    found = index.find_passages(text)
    assert {(passage.start, passage.end) for passage in found} == {(start, end)}


def test_many_candidates_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(10)
    items = [made(rng, 40) for _ in range(20)]
    index = index_of(*items, "ha " * 30)
    text = " ".join([*rng.sample(items, 20), "ha " * 200, made(rng, 50, OTHERS), changed(items[3], rng)])
    expected = index.find_passages(text)
    assert len(expected) == 22
    monkeypatch.setattr("teenytinyllama.corpus.decontamination._CHUNK_WORDS", 50)
    assert index.find_passages(text) == expected


def test_passages_are_cut_with_their_margin_at_white_space() -> None:
    text = " ".join(f"w{number:03}" for number in range(100))  # a word begins every five characters
    passage = Passage(text.index("w050"), text.index("w060"), "prova", 0)
    left = cut_passages(text, [passage], margin=22)
    assert left == " ".join(f"w{n:03}" for n in range(45)) + "\n\n" + " ".join(f"w{n:03}" for n in range(65, 100))
    assert cut_passages(text, [passage, Passage(passage.end + 20, passage.end + 40, "prova", 1)], 22).startswith(
        left[:224]
    )
    assert cut_passages(text, [], 22) == text
    assert cut_passages(text, [Passage(0, 4, "prova", 0)], 0) == text[5:]
    assert cut_passages(text, [Passage(100, 400, "prova", 0)], 200) == ""
    assert cut_passages("x" * 1000, [Passage(400, 500, "prova", 0)], 10) == "x" * 390 + "\n\n" + "x" * 490


def test_a_text_is_cleaned_or_dropped() -> None:
    rng = random.Random(9)
    items = [made(rng, 30), made(rng, 30)]
    before, after = made(rng, 400, OTHERS), made(rng, 400, OTHERS)
    text = f"{before} {items[0]} {items[1]} {items[0]} {after}"
    left, drop, counts = decontaminate(text, index_of(*items))
    assert drop is None
    assert counts == {"prova": 3}
    assert before.startswith(left.split("\n\n")[0])
    assert after.endswith(left.split("\n\n")[1])
    assert len(text) - len(left) > len(" ".join(items)) + 400
    left, drop, counts = decontaminate(text, index_of(*items, remove="document"))
    assert (left, counts) == ("", {"prova": 3})
    assert drop is not None
    assert (drop.reason, drop.value, drop.limit) == ("contamination", 3, 0)
    left, drop, _ = decontaminate(f"um {items[0]} dois", index_of(*items))
    assert left == ""
    assert drop is not None
    assert decontaminate(before, index_of(*items)) == (before, None, {})


def test_texts_of_rows_with_lists_and_mappings() -> None:
    row = {"id": 3, "question": "Qual?", "choices": {"label": ["A", "B"], "text": ["um", "dois"]}, "context": None}
    assert item_texts(row, ["question", "choices"]) == ["Qual?", "A\nB\num\ndois"]
    assert item_texts(row, ["context", "question"]) == ["", "Qual?"]
    with pytest.raises(
        InputError, match=r"columns=choice: no such column. Did you mean 'choices'\? Columns: id, question"
    ):
        item_texts(row, ["choice"])


def test_a_set_without_items_is_refused() -> None:
    with pytest.raises(InputError, match="evaluation set prova: has no items"):
        EvaluationIndex.from_sets({"prova": []})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"remove": "all"}, "remove=all: must be passage or document"),
        ({"margin": -1}, "margin=-1: must be from 0"),
        ({"ngram": 4}, "ngram=4: must be from 5 to 1000 words"),
        ({"least_words": 0}, "least_words=0: must be from 5"),
        ({"short_ngram": 14}, "short_ngram=14: must be at most ngram=13"),
        ({"short_item": -1}, "short_item=-1: must be 0 or more"),
        ({"most_documents": -1}, "most_documents=-1: must be 0 or more, or null"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        index_of("um dois três quatro cinco", **config)
