"""The embedded corpus: deterministic, correct Portuguese by its own grammar, and a validation split train never saw."""

import hashlib
import json
import random
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.data.sample import (
    DEFAULT_NUM_DOCUMENTS,
    FACTS,
    MAX_WORDS,
    MIN_WORDS,
    PLOTS,
    PROMPTS,
    RULES,
    is_held_out_pair,
    sample_documents,
    sample_instructions,
    sample_questions,
    write_story,
)
from teenytinyllama.data.sample.grammar import (
    ADJECTIVES,
    NAMES,
    NOUNS,
    Narrator,
    adjectives_for,
    character,
    inflect_adjective,
    noun_forms,
    parse_template,
    pluralise,
    tidy,
)
from teenytinyllama.evaluation.stories import (
    agreement_pairs,
    check_agreement,
    story_report,
    story_words,
)

TRAIN_DIGEST = "a7e0fa58d4dd0281"
HELD_OUT_DIGEST = "7111e8e19a184557"  # of the first release: scores of all versions are of the same documents
NUM_TRAIN = 600
TRAIN = [write_story("train", index) for index in range(NUM_TRAIN)]
HELD_OUT = [write_story("validation", index) for index in range(DEFAULT_NUM_DOCUMENTS["validation"])]
SWAPS = {
    "o": "a", "a": "o", "um": "uma", "uma": "um", "do": "da", "da": "do", "no": "na", "na": "no", "ao": "à", "à": "ao",
    "os": "as", "as": "os", "dois": "duas", "duas": "dois",
}  # fmt: skip


def corrupt(text: str) -> str:
    """Swap the gender of every short determiner."""
    return re.sub(r"\w+", lambda found: SWAPS.get(found[0], found[0]), text)


# ---- the corpus


def test_documents_are_the_same_on_every_machine():
    texts = [document["text"] for document in sample_documents("train", 120)]
    digest = hashlib.sha256("\n\n".join(texts).encode()).hexdigest()
    again = [document["text"] for document in sample_documents("train", 120)]
    assert texts == again
    assert digest[:16] == TRAIN_DIGEST, "the corpus changed: say so in the changelog and update the digest"


def test_held_out_documents_stay_as_they_were_first():
    rows = [json.dumps(row, ensure_ascii=False, sort_keys=True) for row in sample_documents("validation")]
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16] == HELD_OUT_DIGEST


def test_documents_do_not_depend_on_how_many_are_asked_for_nor_on_hash_randomisation():
    script = (
        "from teenytinyllama.data.sample import sample_documents\n"
        "print([d['text'] for d in sample_documents('train', 60)][41])"
    )
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, encoding="utf-8",
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    expected = next(islice(sample_documents("train"), 41, None))["text"]
    assert result.stdout.strip() == expected


def test_another_seed_gives_other_stories():
    ours = {document["text"] for document in sample_documents("train", 30)}
    others = {document["text"] for document in sample_documents("train", 30, seed=1)}
    assert not ours & others


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_are_text_with_source_and_licence(split):
    rows = list(sample_documents(split, 250))
    assert {tuple(row) for row in rows} == {("text", "metadata")}
    assert {row["metadata"] for row in rows} == {
        "source: historias; license: Apache-2.0",
        "source: curiosidades; license: Apache-2.0",
    }


def test_default_sizes():
    assert sum(1 for _ in sample_documents("validation")) == DEFAULT_NUM_DOCUMENTS["validation"]
    assert DEFAULT_NUM_DOCUMENTS["train"] >= 8_000
    told = [row["text"] for row in sample_documents("train", 41 * 5) if "curiosidades" in row["metadata"]]
    assert told == FACTS["train"][:5]
    assert DEFAULT_NUM_DOCUMENTS["train"] >= 41 * len(FACTS["train"])


def test_unknown_split_and_negative_number_are_refused():
    with pytest.raises(InputError, match="split='test'.*'train' or 'validation'"):
        sample_documents("test")
    with pytest.raises(InputError, match="num_documents=-1: must be 0 or more"):
        sample_documents("train", -1)


def test_stories_have_60_to_140_words_and_few_paragraphs():
    for story in TRAIN + HELD_OUT:
        assert MIN_WORDS <= len(story.text.split()) <= MAX_WORDS
        assert story.text.count("\n") <= 10


def test_stories_are_well_formed():
    for story in TRAIN + HELD_OUT:
        assert not re.search(r"[\[\]{}<>|*~=/_]", story.text), story.text
        assert not re.search(r"  |\n\n| [,.!?]|,[.,]|\.\.| $", story.text), story.text
        for line in story.text.split("\n"):
            assert line[-1] in ".!?", line
            assert line.removeprefix("— ")[0].isupper(), line


def test_contractions_are_always_made():
    unmade = re.compile(
        r"\b(de|em|por) (o|a|os|as)\b|\b(de|em) (este|esta|esse|essa|aquele|aquela)s?\b|\ba (o|a|os|as)\b"
    )
    for story in TRAIN + HELD_OUT:
        assert not unmade.search(story.text), story.text


# ---- the splits


def test_held_out_plots_and_pairs_are_disjoint_from_train():
    assert not set(PLOTS["train"]) & set(PLOTS["validation"])
    assert len(PLOTS["train"]) >= 12
    assert len(PLOTS["validation"]) == 3
    assert {story.plot for story in TRAIN} == set(PLOTS["train"])
    assert {story.plot for story in HELD_OUT} == set(PLOTS["validation"])
    train_pairs = {(story.hero, story.thing) for story in TRAIN}
    assert not train_pairs & {(story.hero, story.thing) for story in HELD_OUT}


def test_no_object_of_a_story_pairs_with_the_hero_of_the_other_split():
    literal = {word for template in _all_templates() for word in story_words(template)}
    kinds = {noun.kind for noun in NOUNS["obj"]}
    others = {form for nouns in NOUNS.values() for noun in nouns if noun.kind not in kinds for form in _forms(noun)}
    objects = {form: noun.singular for noun in NOUNS["obj"] for form in _forms(noun) if form not in literal | others}
    for split, stories in (("train", TRAIN), ("validation", HELD_OUT)):
        for story in stories:
            present = {objects[word] for word in story_words(story.text) if word in objects}
            assert all(is_held_out_pair(story.hero, thing) == (split == "validation") for thing in present), story


def _forms(noun):
    return noun.singular, noun.plural


def _all_templates():
    plots = (PLOTS["train"] | PLOTS["validation"]).values()
    return [
        *(template for plot in plots for stage in plot.stages for template in stage),
        *(template for rule in RULES.values() for template in rule),
    ]


def test_no_validation_document_is_in_train():
    train = {story.text for story in TRAIN} | set(FACTS["train"])
    validation = {document["text"] for document in sample_documents("validation")}
    assert not train & validation
    assert len(validation) == DEFAULT_NUM_DOCUMENTS["validation"]


@pytest.mark.slow
def test_train_covers_the_words_of_held_out_stories_and_does_not_tell_them():
    report = story_report([story.text for story in HELD_OUT], (row["text"] for row in sample_documents("train")))
    assert report["lexicon_share"] > 0.99
    assert report["copied_share"] < 0.02, "of eight words in a row"


# ---- facts, instructions, questions, prompts


def test_facts_are_short_and_some_are_held_out():
    assert len(FACTS["train"]) + len(FACTS["validation"]) >= 60
    assert not set(FACTS["train"]) & set(FACTS["validation"])
    for fact in FACTS["train"] + FACTS["validation"]:
        assert 2 <= len(re.findall(r"[.!?](?: |$)", fact)) <= 4, fact


def test_instructions_are_one_turn_each():
    rows = sample_instructions()
    assert len(rows) >= 24
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(message["content"].strip() for message in row["messages"])


def test_questions_have_four_choices_and_no_favourite_place():
    rows = sample_questions()
    assert len(rows) >= 16
    assert all(len(set(row["choices"])) == 4 for row in rows)
    answers = [row["answer"] for row in rows]
    assert all(answers.count(place) == len(rows) // 4 for place in range(4))


def test_prompts_open_stories_that_train_does_not_have():
    assert len(PROMPTS) == 8
    assert not any(story.text.startswith(prompt) for story in TRAIN for prompt in PROMPTS if len(prompt.split()) > 5)


# ---- lexicon and grammar


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("botão", "botões"), ("anel", "anéis"), ("lençol", "lençóis"), ("quintal", "quintais"), ("jardim", "jardins"),
     ("colher", "colheres"), ("giz", "gizes"), ("avó", "avós"), ("funil", "funis"), ("azul", "azuis")],
)  # fmt: skip
def test_plurals(singular, plural):
    assert pluralise(singular) == plural


def test_adjective_forms_and_explicit_plurals():
    assert inflect_adjective("agradável") == ("agradável", "agradável", "agradáveis", "agradáveis")
    assert inflect_adjective("feliz")[2:] == ("felizes", "felizes")
    plurals = {noun.singular: noun.plural for nouns in NOUNS.values() for noun in nouns}
    assert (plurals["pão"], plurals["irmão"], plurals["lápis"]) == ("pães", "irmãos", "lápis")


def test_no_noun_has_two_genders():
    for form, readings in noun_forms().items():
        assert len({gender for gender, _ in readings}) == 1, form


def test_every_noun_class_has_adjectives_and_every_template_parses():
    for nouns in NOUNS.values():
        for noun in nouns:
            assert adjectives_for(noun.kind)
    for template in _all_templates():
        parse_template(template)


def test_template_with_loose_alternatives_is_refused():
    with pytest.raises(ValueError, match="square brackets"):
        parse_template("um|dois")


def test_slots_inflect():
    ana = next(name for name in NAMES if name.text == "Ana")
    grandmother = next(noun for noun in NOUNS["kin"] if noun.singular == "avó")
    narrator = Narrator(random.Random(0), RULES, {"h": character(ana), "e": character(grandmother)})
    assert (
        narrator.expand("{do h} {ao h} {o h} {do e} {ao e} {seu e} {os e}")
        == "de Ana a Ana Ana da avó à avó sua avó as avós"
    )
    assert narrator.expand("obrigad{h o/a}") == "obrigada"
    assert narrator.expand("{joy h}") in [forms[1] for forms in ADJECTIVES["joy"]]
    assert narrator.expand("{joy h e}") in [forms[3] for forms in ADJECTIVES["joy"]]
    determiner, noun = narrator.expand("{dois toy}").split()
    assert check_agreement(f"{determiner} {noun}") == (1, 1)


def test_pronoun_only_where_nobody_else_could_be_meant():
    ana, rita = (next(name for name in NAMES if name.text == text) for text in ("Ana", "Rita"))
    kids = [noun for noun in NOUNS["kid"] if noun.gender == "f"]
    bound = {"h": character(ana), "f": character(rita), "kid": character(kids[0])}
    alone = Narrator(random.Random(1), RULES, bound)
    alone.expand("{h}")
    assert {alone.expand("{s}") for _ in range(60)} == {"ela", "Ana", "a menina"}
    together = Narrator(random.Random(1), RULES, bound)
    together.expand("{h} e {f}")
    assert {together.expand("{s}") for _ in range(60)} == {"Ana"}


def test_tidy_capitalises_after_ends_and_dashes_only():
    assert tidy("ana riu. — que bom! ~ disse  ana , feliz.") == "Ana riu. — Que bom! — disse  ana, feliz.".replace(
        "  ", " "
    )


# ---- the checker


@pytest.mark.parametrize("stories", [TRAIN, HELD_OUT], ids=["train", "held-out"])
def test_own_stories_agree(stories):
    wrong = [pair for story in stories for pair in agreement_pairs(story.text) if not pair.agrees]
    assert not wrong
    checked = sum(check_agreement(story.text)[1] for story in stories)
    assert checked > 15 * len(stories)


def test_corrupted_stories_score_clearly_lower():
    corrupted = [corrupt(story.text) for story in HELD_OUT]
    agree, checked = (sum(column) for column in zip(*map(check_agreement, corrupted), strict=True))
    assert agree / checked < 0.6


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("A menina riu.", "O menina riu."),
        ("Viu uma casa pequena.", "Viu uma casa pequeno."),
        ("Pegou os dois livros.", "Pegou as dois livros."),
        ("Foi pela ponte antiga.", "Foi pelo ponte antiga."),
        (
            "Ana ficou muito contente e cansada. Ana ficou cansada.",
            "Ana ficou muito contente e cansada. Ana ficou cansado.",
        ),
        ("Ana e Pedro estavam nervosos.", "Ana e Pedro estavam nervosas."),
        ("Ana e Rita estavam nervosas.", "Ana e Rita estavam nervosos."),
        ("A avó estava cansada.", "A avó estava cansado."),
        ("Ana, que era curiosa, saiu.", "Ana, que era curioso, saiu."),
        ("Ana viu tudo e ficou assustada.", "Ana viu tudo e ficou assustado."),
        ("— Viva! — disse Pedro, encantado.", "— Viva! — disse Pedro, encantada."),
        ("Era uma vez uma menina chamada Ana.", "Era uma vez uma menina chamada Pedro."),
        ("Pedro saiu. Ele riu.", "Pedro saiu. Ela riu."),
        ("As crianças viram as flores secas.", "As crianças viram as flores seca."),
        ("Os meninos eram curiosos.", "Os meninos eram curioso."),
    ],
)
def test_checker_tells_right_from_wrong(right, wrong):
    agree, checked = check_agreement(right)
    assert agree == checked > 0
    agree, checked = check_agreement(wrong)
    assert agree < checked


@pytest.mark.parametrize(
    "text",
    ["Era muito tarde.", "Começou a chover.", "Pedro voltou para casa cansado.", "O pai de Ana ficou contente.",
     "Ana e o pai saíram. Ela riu com Rita.", "Falou com Ana. Ana saiu, e o gato ficou deitado.", "zxcv qwerty"],
)  # fmt: skip
def test_checker_does_not_judge_what_it_cannot_decide(text):
    assert all(pair.agrees for pair in agreement_pairs(text))


# ---- shares


def test_copied_runs_of_eight_words_are_counted():
    train = ["um dois três quatro cinco seis sete oito nove"]
    report = story_report(["Um, dois; três quatro cinco! Seis sete oito dez."], train)
    assert (report["copied_share"], report["num_ngrams"]) == (0.5, 2)
    assert story_report(["um dois"], train)["copied_share"] is None


def test_the_share_of_known_words_ignores_case_and_punctuation():
    assert story_report(["Casa! GATO xyz."], ["a casa do gato"])["lexicon_share"] == pytest.approx(2 / 3)
    assert story_report(["123 !"], ["casa"])["lexicon_share"] is None
    assert story_words("Bem-te-vi, 3 caixas-d'água!") == ["bem-te-vi", "caixas-d'água"]


def test_report_of_own_and_of_meaningless_texts():
    train = (story.text for story in TRAIN)
    report = story_report([story.text for story in TRAIN[:20]], train)
    assert report["lexicon_share"] == report["copied_share"] == report["agreement_share"] == 1.0
    assert report["num_samples"] == 20
    assert report["num_words"] > 1_000
    empty = story_report(["zxcv qwerty"], (story.text for story in TRAIN))
    assert empty["agreement_share"] is None
    assert empty["copied_share"] is None
    assert empty["lexicon_share"] == 0.0
