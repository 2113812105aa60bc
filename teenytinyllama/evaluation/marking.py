"""Marking: from what a model answered to marks, and from the marks of all answers to a score with its error.

The task files (`tasks/*.yaml`) name functions of this module by `!function`. The harness imports it by its full name,
from within `ttl evaluate` as well as from its own command.

Answers in writing are read as the Open Portuguese LLM Leaderboard reads them: the rules are facts of the benchmark, and
another reading gives another score. Source: https://github.com/eduagarcia/lm-evaluation-harness-pt, its filters
`find_choices`, `find_similar_label` and `number_filter` and the chains of them that its tasks declare. The libraries
`textdistance` and `unidecode` are replaced by functions of this module that agree with them on Portuguese.

The standard error of a mean has a formula. Macro-F1 and Pearson's correlation are drawn again from the items (the
bootstrap), with a fixed seed.

Beside each score stands the best answer that needs no model, on the same questions: one answer to everything, a guess,
a choice by length.
"""

import hashlib
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..tokenizer.encode import compose
from .benchmark_rows import BenchmarkRows, Row, load_rows
from .config import TaskKind
from .results import TrivialKind

if TYPE_CHECKING:
    from datasets import DatasetDict

DATA_DIR_VARIABLE, CLOZE_FILE_VARIABLE = "TTL_EVALUATION_DATA", "TTL_CLOZE_FILE"
UNPARSABLE = "[invalid]"  # counts as an answer of its own: never right, and in macro-F1 a class without hits
UNREADABLE_SIMILARITY = 5.0  # the leaderboard takes an answer without a number for this one
RESAMPLES = 1000  # of the bootstrap
_SEED = 0
_CUTS = (".", ",", ";", ":", "(", ")", "[", "]", "\n")


def load_task(
    rows_of: str, data_dir: str | None = None, cloze_file: str | None = None, with_shots: bool = True, **other: Any
) -> "DatasetDict":
    """Return the rows of a task as the harness wants them.

    Args:
        rows_of: the source, given in the task's YAML.
        data_dir: folder of local files, from `--metadata data_dir=…` or the environment; None: the Hub.
        cloze_file: rows of `cloze`, from `--metadata cloze_file=…` or the environment.
        with_shots: whether the task shows solved examples, given in its YAML.
        **other: further metadata of the harness.

    Raises:
        InputError: see `load_rows`.
    """
    from datasets import Dataset, DatasetDict

    found = load_rows(
        rows_of,
        data_dir or os.environ.get(DATA_DIR_VARIABLE) or None,
        cloze_file or os.environ.get(CLOZE_FILE_VARIABLE) or None,
        with_shots,
    )
    splits = {"test": Dataset.from_list(found.test)}
    if found.shots:
        splits["shots"] = Dataset.from_list(found.shots)
    return DatasetDict(splits)


def remove_accents(text: str) -> str:
    """Return the text in ASCII: letters without their accents, other signs dropped."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def find_choice(text: str, letters: str, mark: str = ".") -> str:
    """Return the letter that an answer to a multiple-choice question names, or `UNPARSABLE`.

    Args:
        text: what the model wrote.
        letters: the letters there are, such as `ABCDE`.
        mark: the sign behind the letters in the question, which is looked for first.
    """
    text = remove_accents(re.sub(r"\s+", " ", text)).strip()
    if len(text) == 1 and text in letters:
        return text
    patterns = (
        rf"(?:[Ll]etra|[Aa]lternativa|[Rr]esposta(?: ?[Cc]orreta(?: e)?)?|[Oo]pcao):? ([{letters}])\b",
        rf"\b([{letters}]){re.escape(mark)}",
        rf"\b([{letters}]) ?[.):-]",
        rf"\b([{letters}])$",
        rf"\b([{letters}])\b",
    )
    for pattern in patterns:
        if match := re.search(pattern, text):
            return match.group(1)
    return UNPARSABLE


def edit_distance(first: str, second: str) -> int:
    """Return how many letters have to be added, dropped or replaced to turn one word into the other."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]


def find_similar_label(text: str, labels: Sequence[str]) -> str:
    """Return the label that an answer names or resembles, or `UNPARSABLE`.

    An answer that holds exactly one of the labels names it. Otherwise the beginning of the answer is compared with
    every label, letter by letter, and at least half of the letters have to agree.
    """
    plain = [remove_accents(label.strip().lower()) for label in labels]
    answer = remove_accents(text.strip().lower())
    if answer in plain:
        return labels[plain.index(answer)]
    if not answer:
        return UNPARSABLE
    named = [label for label, name in zip(labels, plain, strict=True) if name in answer]
    if len(named) == 1:
        return named[0]
    for sign in _CUTS:
        answer = answer.split(sign, 1)[0]
    answer = answer[: max(map(len, plain))]
    similarities = [1 - edit_distance(answer, name) / max(len(answer), len(name)) for name in plain]
    best = max(similarities)
    return labels[similarities.index(best)] if best >= 0.5 else UNPARSABLE


def find_number(text: str, lowest: float, highest: float) -> float | None:
    """Return the number that an answer gives, clipped to a range, or None.

    All digits of the answer are read as one number, with a decimal point or comma between the first two digits that
    have one between them.
    """
    digits = re.sub(r"[^0-9.]", "", text.replace(",", "."))
    match = re.search(r"[0-9]\.[0-9]", digits)
    if match:
        whole, fraction = digits[: match.start() + 1], digits[match.start() + 2 :]
        digits = whole.replace(".", "") + "." + fraction.replace(".", "")
    else:
        digits = digits.replace(".", "")
    return min(max(float(digits), lowest), highest) if digits else None


def _bits(nats: float, text: str) -> tuple[float, int]:
    """Return what the harness's `bits_per_byte` adds up: log-likelihood in nats, and bytes of the scored text."""
    return nats, len(compose(text).encode())


def choice_results(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return the marks of a question whose answers were scored by likelihood.

    `acc` takes the likeliest answer, `acc_norm` the likeliest per letter. The bits per byte of the right answer move
    smoothly while accuracy is still noise.
    """
    nats = [float(result[0]) for result in results]
    per_letter = [value / max(len(choice), 1) for value, choice in zip(nats, doc["choices"], strict=True)]
    gold = int(doc["gold"])
    return {
        "acc": float(nats.index(max(nats)) == gold),
        "acc_norm": float(per_letter.index(max(per_letter)) == gold),
        "answer_bits_per_byte": _bits(nats[gold], " " + doc["choices"][gold]),
    }


def truth_results(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return the share of probability that falls on true answers (mc2)."""
    nats = [float(result[0]) for result in results]
    highest = max(nats)
    weights = [math.exp(value - highest) for value in nats]
    true = [index for index, label in enumerate(doc["labels"]) if label == 1]
    right = " ".join(doc["choices"][index] for index in true)
    return {
        "mc2": sum(weights[index] for index in true) / sum(weights),
        "answer_bits_per_byte": _bits(sum(nats[index] for index in true), " " + right),
    }


def word_results(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return whether greedy decoding writes the word, and the bits per byte of the word."""
    nats, is_greedy = results[0]
    return {"acc": float(is_greedy), "answer_bits_per_byte": _bits(float(nats), " " + doc["last_word"])}


def _marks(right: str, answer: str) -> dict[str, Any]:
    """Return whether an answer is right and whether it could be read."""
    return {"acc": float(answer == right), "unparsable": float(answer == UNPARSABLE)}


def _label_marks(right: str, answer: str) -> dict[str, Any]:
    """Return the marks of a label: those of `_marks`, and what macro-F1 is counted from."""
    return {**_marks(right, answer), "f1_macro": (right, answer)}


def yes_no_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer that is to be `Sim` or `Não`."""
    return _label_marks(doc["answer"], find_similar_label(results[0], ("Sim", "Não")))


def sentiment_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer that is to name a sentiment."""
    return _label_marks(doc["answer"], find_similar_label(results[0], ("Positivo", "Neutro", "Negativo")))


def exam_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer to a question with choices `A.` to `E.`."""
    return _marks(doc["answer"], find_choice(results[0], "ABCDE"))


def bar_exam_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer to a question with choices `A)` to `D)`."""
    return _marks(doc["answer"], find_choice(results[0], "ABCD", ")"))


def similarity_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer that is to be a number of 1 to 5."""
    number = find_number(results[0], 1.0, 5.0)
    answer = UNREADABLE_SIMILARITY if number is None else number
    return {"pearson": (doc["similarity"], answer), "unparsable": float(number is None)}


def mean_stderr(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean, or None for a single value."""
    if len(values) < 2:
        return None
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) / math.sqrt(len(values))


def ratio_stderr(parts: Sequence[float], wholes: Sequence[float]) -> float | None:
    """Return the standard error of sum(parts) / sum(wholes) over independent items, or None for a single item.

    Source: the ratio estimator's linearised variance (W. G. Cochran, Sampling Techniques, 3rd ed., section 6.4).
    """
    if len(parts) < 2:
        return None
    numerator, denominator = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    residuals = numerator - numerator.sum() / denominator.sum() * denominator
    items = len(residuals)
    return float(math.sqrt(items / (items - 1) * (residuals**2).sum()) / denominator.sum())


def confusion_matrix(pairs: Sequence[tuple[Any, Any]], labels: Sequence[Any] | None = None) -> NDArray[np.int64]:
    """Return (labels, labels): how often a label (row) was answered by another (column).

    Args:
        pairs: of the right label and the answer.
        labels: all that there are, in their order; default those that occur.
    """
    if labels is None:
        labels = sorted({label for pair in pairs for label in pair}, key=str)
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for right, answer in pairs:
        counts[places[right], places[answer]] += 1
    return counts


def macro_f1_of(confusion: NDArray[np.int64], every_label: bool = False) -> NDArray[np.float64]:
    """Return the macro-F1 of confusion matrices of shape (…, labels, labels), of shape (…).

    Args:
        confusion: see `confusion_matrix`.
        every_label: whether a label that occurs nowhere counts with an F1 of nought; otherwise it is left out.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(-1) + confusion.sum(-2)
    scores = 2 * right / np.maximum(either, 1)
    counted = either.shape[-1] if every_label else np.maximum((either > 0).sum(-1), 1)
    return np.asarray(scores.sum(-1) / counted)


def draw_confusions(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (`RESAMPLES`, labels, labels) confusion matrices: the items drawn with replacement, by a fixed seed."""
    items = int(confusion.sum())
    draws = np.random.default_rng(_SEED).multinomial(items, confusion.ravel() / items, size=RESAMPLES)
    return draws.reshape(RESAMPLES, *confusion.shape)


def macro_f1(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the mean over labels of their F1, of (right label, answer) pairs.

    An answer that is no label, such as an unreadable one, counts as a further class with an F1 of nought, as
    scikit-learn's `f1_score(average="macro")` has it.
    """
    return float(macro_f1_of(confusion_matrix(pairs)))


def macro_f1_stderr(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Return the bootstrap's standard error of the macro-F1, or None for a single pair."""
    if len(pairs) < 2:
        return None
    return float(macro_f1_of(draw_confusions(confusion_matrix(pairs))).std(ddof=1))


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation along the last axis; nought where either side is constant."""
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.divide((first * second).sum(-1), scale, out=np.zeros_like(scale), where=scale > 1e-12)


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's correlation of (right value, answer) pairs; nought when all answers are the same."""
    return float(_pearson(*np.asarray(pairs, dtype=np.float64).T))


def pearson_stderr(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the bootstrap's standard error of the correlation, or None for a single pair."""
    if len(pairs) < 2:
        return None
    values = np.asarray(pairs, dtype=np.float64)
    drawn = values[np.random.default_rng(_SEED).integers(len(values), size=(RESAMPLES, len(values)))]
    return float(_pearson(drawn[..., 0], drawn[..., 1]).std(ddof=1))


TrivialLine = tuple[TrivialKind, float]  # of an answer that needs no model: which it is, and its score


def trivial_lines(kind: TaskKind, metric: str, rows: Sequence[Row]) -> dict[str, TrivialLine]:
    """Return the score of each answer that needs no model, by what it does.

    A guess among labels is not counted: a label task is a matter of telling classes apart, and a score is compared with
    the constant answer, which is what a model that has learnt nothing gives.

    Args:
        kind: of the task.
        metric: the task's.
        rows: the questions that were asked, in canonical form.
    """
    if kind == "choices":
        return _of_choices([row["gold"] for row in rows], rows)
    if kind == "exam":
        return _of_choices([row["letters"].index(row["answer"]) for row in rows], rows)
    if kind == "truth":
        share = _mean([sum(row["labels"]) / len(row["labels"]) for row in rows])
        return {"the same probability for each": ("chance", share),
                **_by_length("answer", [row["labels"] for row in rows], rows)}  # fmt: skip
    if kind == "word":
        word, times = Counter(row["last_word"] for row in rows).most_common(1)[0]
        return {f"always {word!r}": ("majority", times / len(rows))}
    if kind == "similarity":
        lengths = [(len(row["premise"]), len(row["hypothesis"])) for row in rows]
        likeness = [min(pair) / max(pair) for pair in lengths]
        correlation = pearson([(row["similarity"], value) for row, value in zip(rows, likeness, strict=True)])
        return {"always the same number": ("constant", 0.0), "likeness of the lengths": ("length", correlation)}
    answers = [row["answer"] for row in rows]
    counts = Counter(answers)
    most = counts.most_common(1)[0][0]
    return {
        f"always {label!r}": (
            "majority" if label == most else "constant",
            macro_f1([(answer, label) for answer in answers]) if metric == "f1_macro" else counts[label] / len(answers),
        )
        for label in sorted(counts)
    }


def best_line(lines: dict[str, TrivialLine]) -> TrivialLine:
    """Return the line with the highest score, the first one of equals."""
    return max(lines.values(), key=lambda line: line[1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _of_choices(golds: Sequence[int], rows: Sequence[Row]) -> dict[str, TrivialLine]:
    """Return a guess, each place, and the longest and shortest choice; `golds` are the places of the right ones."""
    counts = [len(row["choices"]) for row in rows]
    most = Counter(golds).most_common(1)[0][0]
    lines: dict[str, TrivialLine] = {"a guess": ("chance", _mean([1 / count for count in counts]))}
    for place in range(max(counts)):
        share = _mean([float(gold == place) for gold in golds])
        lines[f"always choice {place + 1}"] = ("majority" if place == most else "constant", share)
    marks = [[float(gold == place) for place in range(count)] for gold, count in zip(golds, counts, strict=True)]
    return {**lines, **_by_length("choice", marks, rows)}


def _by_length(noun: str, marks: Sequence[Sequence[float]], rows: Sequence[Row]) -> dict[str, TrivialLine]:
    """Return what the longest and the shortest choices score; `marks` are those of each choice of each row."""
    lines: dict[str, TrivialLine] = {}
    for which, choose in (("longest", max), ("shortest", min)):
        chosen = []
        for mark, row in zip(marks, rows, strict=True):
            lengths = [len(choice) for choice in row["choices"]]
            chosen.append(float(mark[lengths.index(choose(lengths))]))
        lines[f"the {which} {noun}"] = ("length", _mean(chosen))
    return lines


_QUESTION_COLUMNS = ("question", "sentence", "premise", "hypothesis", "reply", "choices")


def _question_key(row: Row) -> str:
    """Return the texts and options of a question, composed and without extra white space: equal for equal questions."""
    parts: list[str] = []
    for column in _QUESTION_COLUMNS:
        value = row.get(column, "")
        parts += [value] if isinstance(value, str) else sorted(value)
    return "\0".join(" ".join(compose(part).split()) for part in parts)


def questions_sha256(rows: Sequence[Row]) -> str:
    """Return a hash that two sets of questions share if they hold the same ones, in whatever order."""
    return hashlib.sha256("\n".join(sorted(map(_question_key, rows))).encode("utf-8", "replace")).hexdigest()


def odd_questions(rows: BenchmarkRows, limit: int | None = None) -> dict[str, Any]:
    """Return the counts of odd questions that `results.Score` has, by their names there; None where there is none."""
    asked, shown = rows.test[:limit], list(map(_question_key, rows.shots))
    keys, shots = list(map(_question_key, asked)), set(shown)
    found = {
        "repeated_questions": len(keys) - len(set(keys)),
        "repeated_shots": len(shown) - len(set(shown)),
        "questions_among_shots": sum(key in shots for key in keys),
        "questions_with_twins": sum(map(_has_twin, asked)),
        "left_out_rows": rows.left_out,
    }
    return {name: number or None for name, number in found.items()}


def _has_twin(row: Row) -> bool:
    """Return whether the text of a right answer is also that of a wrong one, so that no model can tell them apart."""
    choices = [" ".join(choice.split()) for choice in row.get("choices", ())]
    if "labels" in row:
        pairs = set(zip(choices, row["labels"], strict=True))
        return len(pairs) > len(set(choices))
    place = row["letters"].index(row["answer"]) if "letters" in row else row.get("gold")
    return place is not None and choices.count(choices[place]) > 1
