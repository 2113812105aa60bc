"""Rows of benchmarks in one form each, whatever file they come from: checked, cleaned, with the right answer.

Each function takes a row whose columns have been checked and returns the row that a task's YAML reads, or None for a
row that the benchmark leaves out. What no model could be asked fairly raises `BadRowError`: the right answer is found
by the letter that the file gives, never by its place among the options that are left.

What answers without a model score on the same questions: one answer to everything, a guess, a choice by length.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..checks import InputError
from .config import TaskKind
from .results import TrivialKind
from .scoring import macro_f1, pearson

Row = dict[str, Any]
LETTERS = "ABCDE"
_ANSWER = re.compile(r"\(?\s*(\w)\s*[.):-]?")  # B, b, (b), b), B.
_EMPTY = ("", "nan", "<na>")  # how tables write a cell without text
_QUESTION_COLUMNS = ("question", "sentence", "premise", "hypothesis", "reply", "choices")


class BadRowError(InputError):
    """A row that cannot be asked; `local_data` adds the file and the number of the row."""

    def __init__(self, column: str, value: Any, wanted: str) -> None:
        """Say which column holds what, and what it must hold."""
        super().__init__(f"{column} is {str(value)[:80]!r}, {wanted}. Correct the row, or take it out")


def is_empty(text: Any) -> bool:
    """Return whether an option is none: null, no text, white space, or the `nan` of a table."""
    return text is None or (isinstance(text, str) and text.strip().lower() in _EMPTY) or text != text


def letter_of(answer: Any) -> str:
    """Return the letter or digit of an answer such as `B`, `b)`, `(b)` or `3`; the text as it is for anything else."""
    match = _ANSWER.fullmatch(str(answer).strip())
    return match[1].upper() if match else str(answer)


def clean(text: str) -> str:
    """Return a text as the harness's translated ARC, HellaSwag and TruthfulQA show it: WikiHow's mark-up is removed.

    Source: lm-evaluation-harness 0.4.13, lm_eval/tasks/okapi.
    """
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _choose(options: dict[str, Any], right: str, column: str, shown: Any) -> tuple[list[str], int]:
    """Return the options that have a text, in their order, and the place of the right one among them.

    Args:
        options: texts by their letters or places.
        right: the letter or place of the right one.
        column: of the right answer, for messages.
        shown: the right answer as the file has it.

    Raises:
        BadRowError: the right answer is no option, or an empty one, or there are fewer than two.
    """
    filled = [name for name, text in options.items() if not is_empty(text)]
    if right not in filled:
        what = "whose text is empty" if right in options else "which is none of the options"
        raise BadRowError(column, shown, f"{what} (those with a text are {', '.join(filled)})")
    if len(filled) < 2:
        raise BadRowError(column, shown, f"but {filled[0]} is the only option with a text, and a choice needs two")
    return [options[name] for name in filled], filled.index(right)


def _lettered(row: Row, letters: str) -> dict[str, Any]:
    return {letter: row.get(f"option_{letter.lower()}") for letter in letters}


def arc(row: Row) -> Row:
    """Return question, choices and the place of the right one; options without a text are left out."""
    options = {letter: None if is_empty(text) else clean(text) for letter, text in _lettered(row, LETTERS).items()}
    choices, gold = _choose(options, letter_of(row["answer"]), "answer", row["answer"])
    return {"question": clean(row["instruction"]), "choices": choices, "gold": gold}


def mmlu(row: Row) -> Row:
    """Return question, choices and the place of the right one; the prompt shows four letters, so it needs four texts.

    Raises:
        BadRowError: an option is empty.
    """
    options = _lettered(row, "ABCD")
    for letter, text in options.items():
        if is_empty(text):
            raise BadRowError(f"option_{letter.lower()}", text, "but the prompt of MMLU shows four options with a text")
    choices, gold = _choose(options, letter_of(row["answer"]), "answer", row["answer"])
    return {"question": row["instruction"], "choices": choices, "gold": gold}


def hellaswag(row: Row) -> Row:
    """Return the beginning of a text, its continuations and the place of the right one; empty ones are left out."""
    context = f"{row['activity_label']}: {row['ctx_a']} {(row.get('ctx_b') or '').capitalize()}"
    options = {str(place): None if is_empty(text) else clean(text) for place, text in enumerate(row["endings"])}
    choices, gold = _choose(options, str(int(row["label"])), "label", row["label"])
    return {"question": clean(context), "choices": choices, "gold": gold}


def truthfulqa(row: Row) -> Row:
    """Return question, answers, and for each whether it is true; answers without a text are left out.

    Raises:
        BadRowError: labels that are not 0 or 1 or not one for each answer, or answers that are all true or all false.
    """
    texts, labels = row["mc2_targets_choices"], row["mc2_targets_labels"]
    column = "mc2_targets_labels"
    if len(texts) != len(labels):
        raise BadRowError(column, labels, f"but must hold one label for each of the {len(texts)} answers")
    if any(str(label) not in ("0", "1", "0.0", "1.0", "True", "False") for label in labels):
        raise BadRowError(column, labels, "but must hold 0 (false) or 1 (true) for each answer")
    numbers = [int(str(label) in ("1", "1.0", "True")) for label in labels]
    kept = [(text, number) for text, number in zip(texts, numbers, strict=True) if not is_empty(text)]
    if len({number for _, number in kept}) < 2:
        raise BadRowError(column, labels, "but needs a true and a false answer: otherwise every model has one score")
    return {
        "question": clean(row["question"]),
        "choices": [text for text, _ in kept],
        "labels": [number for _, number in kept],
    }


def exam(row: Row, letters: str = LETTERS) -> Row:
    """Return an exam's question: letters, texts and the right letter.

    Options that are numbered from 1 get the letters that the prompt shows.

    Raises:
        BadRowError: an option without a text, labels that are not one letter each, or an answer that is no option.
    """
    shown, answer = row["choices"]["label"], row["answerKey"]
    labels, right = [letter_of(label) for label in shown], letter_of(answer)
    if labels == [str(number) for number in range(1, len(labels) + 1)]:
        right = letters[int(right) - 1] if right in labels and int(right) <= len(letters) else str(answer)
        labels = list(letters[: len(labels)])
    if len(labels) != len(shown) or len(set(labels)) != len(labels) or not set(labels) <= set(letters):
        raise BadRowError("choices.label", shown, f"but must name each option once by {', '.join(letters)}")
    texts = row["choices"]["text"]
    for label, text in zip(labels, texts, strict=True):
        if not isinstance(text, str) or is_empty(text):
            raise BadRowError("choices.text", texts, f"but the prompt shows option {label}, which needs a text")
    if right not in labels:
        raise BadRowError("answerKey", answer, f"outside the set {', '.join(map(repr, labels))}")
    _choose(dict(zip(labels, texts, strict=True)), right, "answerKey", answer)
    return {
        "id": row["id"],
        "question": row["question"],
        "letters": labels,
        "choices": [text if place else text.rstrip() for place, text in enumerate(reversed(texts))][::-1],
        "answer": right,
    }


def enem_record(row: Row) -> Row | None:
    """Return an ENEM question of the form of https://github.com/piresramon/gpt-4-enem in that of the leaderboard.

    Questions with pictures are left out, as there. The texts are not the leaderboard's letter by letter, so a score on
    them is not its score.
    """
    try:
        raw = json.loads(row["raw"]) if isinstance(row.get("raw"), str) else row.get("raw") or {}
    except ValueError as error:
        raise BadRowError("raw", row["raw"], f"but must be a JSON object ({error})") from error
    if not isinstance(raw, dict):
        raise BadRowError("raw", raw, "but must be a JSON object")
    if raw.get("has_associated_images"):
        return None
    texts = raw.get("options")
    if not texts:
        texts = [" ".join(str(text).split())[1:].strip() for text in row["alternatives"]]
    if not isinstance(texts, list) or len(texts) != len(LETTERS) or any(map(is_empty, texts)):
        return None
    question = " ".join(part for part in (row.get("context"), row.get("question")) if part)
    if not question.strip():
        raise BadRowError("question", question, "but must be a text, as context or question")
    return {
        "id": row["id"].removeprefix("ENEM_"),
        "question": question,
        "choices": {"text": texts, "label": list(LETTERS)},
        "answerKey": letter_of(row["label"]),
    }


def pair(row: Row) -> Row:
    """Return premise, hypothesis, whether one follows from the other, and how alike they are."""
    if not 1 <= row["relatedness_score"] <= 5:
        raise BadRowError("relatedness_score", row["relatedness_score"], "but must lie between 1 and 5")
    return {
        "premise": row["premise"],
        "hypothesis": row["hypothesis"],
        "answer": ("Não", "Sim")[int(row["entailment_judgment"])],
        "similarity": float(row["relatedness_score"]),
        "similarity_text": f"{row['relatedness_score']:.1f}".replace(".", ","),
    }


def answered_question(row: Row) -> Row:
    """Return question, answer, and whether the answer is one."""
    return {"question": row["question"], "reply": row["answer"], "answer": ("Não", "Sim")[int(row["label"])]}


def yes_or_no(row: Row) -> Row:
    """Return a text and whether it is what the task asks for."""
    return {"sentence": row["sentence"], "answer": ("Não", "Sim")[int(row["label"])]}


SENTIMENTS = {"Positive": "Positivo", "Neutral": "Neutro", "Negative": "Negativo"}


def sentiment(row: Row) -> Row:
    """Return a text and its sentiment in Portuguese."""
    return {"sentence": row["sentence"], "answer": SENTIMENTS[row["label"]]}


def last_word(row: Row) -> Row | None:
    """Return a text without its last word, and the word; None where either is empty."""
    text, word = row["sentence"].rstrip(), row["last_word"].strip()
    if text.endswith(" " + word):  # some files keep the word in the text
        text = text[: -len(word)].rstrip()
    return {"sentence": text, "last_word": word} if text and word else None


def question_key(row: Row) -> str:
    """Return what two questions share if they are the same: texts and options, composed, whatever the white space."""
    parts: list[str] = []
    for column in _QUESTION_COLUMNS:
        value = row.get(column, "")
        parts += [value] if isinstance(value, str) else sorted(value)
    return "\0".join(" ".join(unicodedata.normalize("NFC", part).split()) for part in parts)


def questions_sha256(rows: Sequence[Row]) -> str:
    """Return a hash that two sets of questions share if they hold the same ones, in whatever order."""
    return hashlib.sha256("\n".join(sorted(map(question_key, rows))).encode("utf-8", "replace")).hexdigest()


def has_twin(row: Row) -> bool:
    """Return whether the text of a right answer is also that of a wrong one, so that no model can tell them apart."""
    choices = [" ".join(choice.split()) for choice in row.get("choices", ())]
    if "labels" in row:
        pairs = set(zip(choices, row["labels"], strict=True))
        return len(pairs) > len(set(choices))
    place = row["letters"].index(row["answer"]) if "letters" in row else row.get("gold")
    return place is not None and choices.count(choices[place]) > 1


def count_repeats(rows: Sequence[Row]) -> int:
    """Return how many rows ask what an earlier one asked."""
    return sum(number - 1 for number in Counter(map(question_key, rows)).values())


Line = tuple[TrivialKind, float]


def trivial_lines(kind: TaskKind, metric: str, rows: Sequence[Row]) -> dict[str, Line]:
    """Return the score of each trivial way to answer, by what it does.

    A guess among labels is not counted: a label task is a matter of telling classes apart, and what is compared with
    is the constant answer, which models of no use fall into.

    Args:
        kind: of the task.
        metric: the task's.
        rows: the questions that were asked, in canonical form.
    """
    if kind == "choices":
        return _of_choices([len(row["choices"]) for row in rows], [row["gold"] for row in rows], rows)
    if kind == "exam":
        golds = [row["letters"].index(row["answer"]) for row in rows]
        return _of_choices([len(row["choices"]) for row in rows], golds, rows)
    if kind == "truth":
        return _of_truth(rows)
    if kind == "word":
        word, times = Counter(row["last_word"] for row in rows).most_common(1)[0]
        return {f"always {word!r}": ("majority", times / len(rows))}
    if kind == "similarity":
        return _of_similarity(rows)
    return _of_labels(metric, [row["answer"] for row in rows])


def best_line(lines: dict[str, Line]) -> Line:
    """Return the highest of the lines; the first of several."""
    return max(lines.values(), key=lambda line: line[1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lengths(row: Row) -> list[int]:
    return [len(choice) for choice in row["choices"]]


def _of_choices(counts: Sequence[int], golds: Sequence[int], rows: Sequence[Row]) -> dict[str, Line]:
    most = Counter(golds).most_common(1)[0][0]
    lines: dict[str, Line] = {"a guess": ("chance", _mean([1 / count for count in counts]))}
    for place in range(max(counts)):
        share = _mean([float(gold == place) for gold in golds])
        lines[f"always choice {place + 1}"] = ("majority" if place == most else "constant", share)
    for name, choose in (("the longest choice", max), ("the shortest choice", min)):
        hits = [
            float(_lengths(row).index(choose(_lengths(row))) == gold) for row, gold in zip(rows, golds, strict=True)
        ]
        lines[name] = ("length", _mean(hits))
    return lines


def _of_truth(rows: Sequence[Row]) -> dict[str, Line]:
    lines: dict[str, Line] = {
        "the same probability for each": ("chance", _mean([sum(row["labels"]) / len(row["labels"]) for row in rows]))
    }
    for name, choose in (("the longest answer", max), ("the shortest answer", min)):
        true = [float(row["labels"][_lengths(row).index(choose(_lengths(row)))]) for row in rows]
        lines[name] = ("length", _mean(true))
    return lines


def _of_labels(metric: str, answers: Sequence[str]) -> dict[str, Line]:
    counts = Counter(answers)
    most = counts.most_common(1)[0][0]
    lines: dict[str, Line] = {}
    for label in sorted(counts):
        pairs = [(answer, label) for answer in answers]
        value = macro_f1(pairs) if metric == "f1_macro" else counts[label] / len(answers)
        lines[f"always {label!r}"] = ("majority" if label == most else "constant", value)
    return lines


def _of_similarity(rows: Sequence[Row]) -> dict[str, Line]:
    lengths = [(len(row["premise"]), len(row["hypothesis"])) for row in rows]
    likeness = [min(pair) / max(pair) for pair in lengths]
    return {
        "always the same number": ("constant", 0.0),
        "likeness of the lengths": (
            "length",
            pearson([(row["similarity"], value) for row, value in zip(rows, likeness, strict=True)]),
        ),
    }
