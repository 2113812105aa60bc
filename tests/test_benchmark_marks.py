"""Reading answers, scores over all answers with their errors, trivial answers, cloze items, reference scores."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_rows import all_rows, write_rows

from teenytinyllama.checks import InputError
from teenytinyllama.evaluation import benchmark_rows as rows
from teenytinyllama.evaluation.benchmark_rows import load_rows
from teenytinyllama.evaluation.config import SOURCES, SUITES, TASKS, choose_tasks
from teenytinyllama.evaluation.marking import (
    UNPARSABLE,
    bar_exam_results,
    best_line,
    choice_results,
    edit_distance,
    find_choice,
    find_number,
    find_similar_label,
    macro_f1,
    macro_f1_stderr,
    mean_stderr,
    odd_questions,
    pearson,
    pearson_stderr,
    ratio_stderr,
    similarity_results,
    trivial_lines,
    truth_results,
    yes_no_results,
)
from teenytinyllama.evaluation.results import read_references, why_not_comparable
from teenytinyllama.evaluation.scoring import make_cloze


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B", "B"),
        ("A resposta: C. Porque sim", "C"),
        ("Alternativa D", "D"),
        ("Resposta Correta: E", "E"),
        ("Opção: A", "A"),  # without its accents
        ("é a letra\n B, creio", "B"),
        ("não é C. mas (D)", "C"),
        ("BDA", UNPARSABLE),
        ("não sei", UNPARSABLE),
        ("", UNPARSABLE),
    ],
)
def test_a_letter_is_read_as_the_leaderboard_reads_it(text: str, letter: str) -> None:
    assert find_choice(text, "ABCDE") == letter


def test_the_sign_of_the_question_is_looked_for_before_a_full_stop() -> None:
    assert find_choice("Art. A. 5 e B) certo", "ABCD", ")") == "B"
    assert find_choice("Art. A. 5 e B) certo", "ABCD", ".") == "A"
    assert find_choice("E", "ABCD") == UNPARSABLE


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" Sim", "Sim"),
        ("NAO", "Não"),
        ("não, de modo nenhum", "Não"),
        ("Si", "Sim"),  # two letters of three
        ("Sim ou não", "Sim"),  # both occur: the beginning decides
        ("talvez", UNPARSABLE),
        ("", UNPARSABLE),
        ("\n\n", UNPARSABLE),
    ],
)
def test_a_label_is_found_by_name_or_likeness(text: str, label: str) -> None:
    assert find_similar_label(text, ("Sim", "Não")) == label


def test_edit_distance() -> None:
    assert [edit_distance("sim", other) for other in ("sim", "si", "nao", "")] == [0, 1, 3, 3]


@pytest.mark.parametrize(
    ("text", "number"),
    [(" 3,5", 3.5), ("4.0 pontos", 4.0), ("10", 5.0), ("0,2", 1.0), ("nota 2,7 de 5", 2.75), ("nenhuma", None),
     (".4.", 4.0)],
)  # fmt: skip
def test_a_number_is_read_and_clipped(text: str, number: float | None) -> None:
    assert find_number(text, 1.0, 5.0) == number


def test_marks_of_answers() -> None:
    doc = {"choices": ["aa", "a" * 10], "gold": 1}
    marks = choice_results(doc, [(-4.0, False), (-10.0, False)])
    assert (marks["acc"], marks["acc_norm"]) == (0.0, 1.0)
    assert marks["answer_bits_per_byte"] == (-10.0, 11)
    truth = truth_results(
        {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}, [(math.log(p), False) for p in (0.2, 0.1, 0.3)]
    )
    assert truth["mc2"] == pytest.approx(0.5)
    assert yes_no_results({"answer": "Não"}, ["claro"]) == {
        "acc": 0.0,
        "f1_macro": ("Não", UNPARSABLE),
        "unparsable": 1.0,
    }
    assert bar_exam_results({"answer": "B"}, ["B)"]) == {"acc": 1.0, "unparsable": 0.0}
    assert similarity_results({"similarity": 2.0}, ["sei lá"]) == {"pearson": (2.0, 5.0), "unparsable": 1.0}


def test_macro_f1_and_pearson_equal_the_libraries() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = random.Random(1)
    pairs = [(draw.choice("abc"), draw.choice(["a", "b", "c", UNPARSABLE])) for _ in range(200)]
    golds, answers = zip(*pairs, strict=True)
    assert macro_f1(pairs) == pytest.approx(metrics.f1_score(golds, answers, average="macro"))
    numbers = [(draw.random(), draw.random()) for _ in range(50)]
    assert pearson(numbers) == pytest.approx(np.corrcoef(np.array(numbers).T)[0, 1])
    assert pearson([(1.0, 5.0), (2.0, 5.0), (4.0, 5.0)]) == 0.0


def test_standard_errors() -> None:
    draw = random.Random(2)
    marks = [float(draw.random() < 0.3) for _ in range(1000)]
    share = sum(marks) / 1000
    assert mean_stderr(marks) == pytest.approx(math.sqrt(share * (1 - share) / 1000), rel=1e-2)
    # A ratio of sums with equal wholes is a mean.
    assert ratio_stderr(marks, [1.0] * 1000) == pytest.approx(mean_stderr(marks))
    pairs = [(gold, gold if draw.random() < 0.7 else 1 - gold) for gold in [0, 1] * 500]
    # Accuracy and macro-F1 are about the same on balanced classes, so their errors are too.
    assert macro_f1_stderr(pairs) == pytest.approx(math.sqrt(0.7 * 0.3 / 1000), rel=0.15)
    assert macro_f1_stderr(pairs) == macro_f1_stderr(pairs)
    normal = np.random.default_rng(0).normal(size=(800, 2))
    assert pearson_stderr(normal.tolist()) == pytest.approx(1 / math.sqrt(800), rel=0.15)
    assert [error([(1, 1)]) for error in (macro_f1_stderr, pearson_stderr)] == [None, None]
    assert mean_stderr([1.0]) is None
    assert ratio_stderr([1.0], [1.0]) is None


@pytest.mark.parametrize(
    ("share", "constant"),
    # Published scores of models that give one answer to everything, and the shares they imply.
    [(0.785, 0.4397), (0.5, 0.3333), (0.2985, 0.2299)],
)
def test_the_constant_answers_of_published_tables(share: float, constant: float) -> None:
    count = 10_000
    rows = [{"answer": "Não" if number < share * count else "Sim"} for number in range(count)]
    assert trivial_lines("labels", "f1_macro", rows)["always 'Não'"][1] == pytest.approx(constant, abs=2e-4)


def test_trivial_lines_by_hand() -> None:
    rows = [
        {"choices": ["a", "bbb", "cc"], "gold": 1},
        {"choices": ["a", "bb", "cccc"], "gold": 1},
        {"choices": ["aaaaa", "b"], "gold": 0},
    ]
    lines = trivial_lines("choices", "acc_norm", rows)
    assert lines["a guess"] == ("chance", pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3))
    assert lines["always choice 2"] == ("majority", pytest.approx(2 / 3))
    assert lines["always choice 1"] == ("constant", pytest.approx(1 / 3))
    assert lines["the longest choice"] == ("length", pytest.approx(2 / 3))
    assert lines["the shortest choice"] == ("length", 0.0)
    assert best_line(lines)[1] == pytest.approx(2 / 3)
    truth = trivial_lines("truth", "mc2", [{"choices": ["aa", "b", "cccc"], "labels": [1, 0, 1]}])
    assert truth["the same probability for each"] == ("chance", pytest.approx(2 / 3))
    assert (truth["the longest answer"][1], truth["the shortest answer"][1]) == (1.0, 0.0)
    words = trivial_lines("word", "acc", [{"last_word": word} for word in ("mar", "rio", "mar")])
    assert words == {"always 'mar'": ("majority", pytest.approx(2 / 3))}
    pairs = [{"premise": "a" * 4, "hypothesis": "b" * size, "similarity": float(size)} for size in (1, 2, 3, 4)]
    similar = trivial_lines("similarity", "pearson", pairs)
    assert similar["always the same number"] == ("constant", 0.0)
    assert similar["likeness of the lengths"] == ("length", pytest.approx(1.0))


def test_cloze_items_are_last_words_and_do_not_depend_on_the_order() -> None:
    texts = [
        "A menina abriu a porta. Lá fora chovia, e ela voltou para buscar o guarda-chuva. Fim.",
        "O barco saiu do porto de manhã cedo com três homens. Voltou à noite, sem peixe e sem as redes!",
        "A reunião foi marcada para o dia 12 de maio de 1999.",  # no word at the end
        "Curta demais aqui.",
    ]
    items = make_cloze(texts, 10)
    assert {item.last_word for item in items} == {"guarda-chuva", "homens", "redes"}
    first = next(item for item in items if item.last_word == "guarda-chuva")
    assert first.sentence == "A menina abriu a porta. Lá fora chovia, e ela voltou para buscar o"
    assert make_cloze(reversed(texts), 10) == items == make_cloze([*texts, *texts], 10)
    assert make_cloze(texts, 2) == items[:2]
    assert any(make_cloze(texts, 10, seed) != items for seed in range(1, 6))
    assert all(len(item.sentence.split()) <= 60 for item in make_cloze(["uma palavra " * 50 + "e depois o fim."], 5))


def test_suites_name_known_tasks_and_tasks_known_sources() -> None:
    assert {task for names in SUITES.values() for task in names} == set(TASKS)
    assert {task.source for task in TASKS.values()} == set(SOURCES)
    assert [task.name for _, task in choose_tasks("paper", None)] == [
        "ttl_arc",
        "ttl_hellaswag",
        "ttl_mmlu",
        "ttl_truthfulqa",
    ]
    assert len(choose_tasks("all", None)) == 18
    assert [(suite, task.name) for suite, task in choose_tasks(None, ["ttl_oab", "cloze"])] == [
        ("leaderboard", "ttl_oab"), ("signal", "ttl_cloze")]  # fmt: skip
    assert choose_tasks("lm", None) == []


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"tasks=hatebrr: unknown task\. Did you mean 'hatebr'\? There are arc, arc_zero"
    ):
        choose_tasks(None, ["hatebrr"])


def test_reference_scores_have_sources_and_are_those_of_known_tasks() -> None:
    models = read_references()
    assert {"TeenyTinyLlama-160m", "TeenyTinyLlama-460m", "Tucano-2b4"} <= set(models)
    scores = [score for found in models.values() for score in found]
    assert len(scores) > 120
    assert all(score.source and 0 <= score.value <= 1 and score.task in SUITES[score.suite] for score in scores)
    ancestor = {score.task: score.value for score in models["TeenyTinyLlama-160m"]}
    assert ancestor["ttl_arc"] == pytest.approx(0.2615)
    assert ancestor["ttl_calame"] == pytest.approx(0.4672)


def test_rows_for_tests_cover_every_source() -> None:
    stems = set(all_rows())
    for name, source in SOURCES.items():
        assert name == "cloze" or set(source.test.stems) & stems


def _options(answer: object, *texts: object) -> dict[str, object]:
    return {
        "instruction": "O quê?",
        **dict(zip((f"option_{x}" for x in "abcde"), texts, strict=False)),
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("answer", "texts", "right"),
    [
        ("C", ("a", "", "c", "d"), "c"),  # was d: the place among the options that are left
        ("d", ("a", None, " ", "d"), "d"),
        ("(B)", ("", "b", "c"), "b"),
        ("C.", ("a", "nan", "c"), "c"),
        ("A", ("a", "b", "c", float("nan")), "a"),
    ],
)
def test_the_right_answer_is_found_by_its_letter(answer: str, texts: tuple, right: str) -> None:
    row = rows.arc(_options(answer, *texts))
    assert row["choices"][row["gold"]] == right


EXAM = {"id": "1", "question": "O quê?"}


@pytest.mark.parametrize(
    ("make", "row", "message"),
    [
        (rows.arc, _options("B", "a", " ", "c"), r"answer is 'B', whose text is empty \(those with a text are A, C\)"),
        (rows.arc, _options("D", "a", "b", "c"), r"answer is 'D', whose text is empty"),
        (rows.arc, _options("A", "a", "", None), r"A is the only option with a text"),
        (rows.mmlu, _options("A", "a", "", "c", "d"), r"option_b is '', but the prompt of MMLU shows four"),
        (rows.exam, {**EXAM, "choices": {"text": ["a", "b"], "label": ["A", "A"]}, "answerKey": "A"}, r"name each option once"),
        (rows.exam, {**EXAM, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"},
         r"answerKey is 'E', outside the set 'A', 'B'"),
        (rows.exam, {**EXAM, "choices": {"text": ["a", None], "label": ["A", "B"]}, "answerKey": "A"}, r"option B, which needs"),
        (rows.hellaswag, {"activity_label": "a", "ctx_a": "b", "endings": ["c", "d"], "label": 3}, r"label is '3', which is none"),
        (rows.truthfulqa, {"question": "a", "mc2_targets_choices": ["a", "b"], "mc2_targets_labels": [0, 0]}, r"a true and a false"),
        (rows.truthfulqa, {"question": "a", "mc2_targets_choices": ["a", "b"], "mc2_targets_labels": [1]}, r"one label for each"),
        (rows.pair, {"relatedness_score": 7, "entailment_judgment": 1}, r"between 1 and 5"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_asked_are_refused(make: object, row: dict, message: str) -> None:
    with pytest.raises(rows.BadRowError, match=message):
        make(row)


def test_options_numbered_from_one_get_the_letters_of_the_prompt() -> None:
    row = rows.exam({**EXAM, "choices": {"text": list("abcd"), "label": list("1234")}, "answerKey": "3"}, "ABCD")
    assert (row["letters"], row["answer"]) == (list("ABCD"), "C")


def test_a_refusal_names_file_and_row_and_zero_shots_need_no_examples(tmp_path: Path) -> None:
    questions = all_rows()["arc_pt_test"]
    questions[4] = {**questions[4], f"option_{questions[4]['answer'].lower()}": ""}
    folder = write_rows(tmp_path, arc_pt_test=questions, arc_pt_train=None)
    with pytest.raises(InputError, match=r"arc_pt_test\.jsonl: row 5: answer is '.', whose text is empty"):
        load_rows("arc", str(folder), None, False)
    questions[4] = questions[3]
    other = write_rows(tmp_path / "other", arc_pt_test=questions, arc_pt_train=None)
    found = load_rows("arc", str(other), None, False)
    assert found.shots == []
    assert odd_questions(found)["repeated_questions"] >= 1


def test_published_scores_are_of_the_same_questions() -> None:
    reference = next(score for score in read_references()["TeenyTinyLlama-160m"] if score.task == "ttl_arc")
    same = replace(reference, total_items=1170)
    assert why_not_comparable(same, reference) is None
    limited = why_not_comparable(replace(same, num_items=100), reference)
    assert limited == "only the first 100 of 1,170 questions were asked"
    fewer = why_not_comparable(replace(same, num_items=147, total_items=147), reference)
    assert fewer == "147 questions were asked, and the published scores are of 1,170"
    assert "but others" in str(why_not_comparable(replace(same, questions_sha256="0"), reference))
