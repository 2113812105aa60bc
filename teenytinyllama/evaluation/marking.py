"""What the task files beside it (`tasks/*.yaml`) refer to by `!function`: loading rows, and marking answers.

The harness imports this module by its full name, from within `ttl evaluate` as well as from its own command.

Reading the answer out of what a model wrote, as the Open Portuguese LLM Leaderboard reads it.

The rules are facts of the benchmark: another reading gives another score.

Source: https://github.com/eduagarcia/lm-evaluation-harness-pt, its filters `find_choices`, `find_similar_label` and
`number_filter` and the chains of them that its tasks declare. `textdistance` and `unidecode` are replaced by functions
below that agree with them on Portuguese.
"""

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation import scoring as bootstrap
from ..tokenizer.encode import compose
from .benchmark_rows import Row
from .local_data import load_rows

if TYPE_CHECKING:
    from datasets import DatasetDict


UNPARSABLE = "[invalid]"  # counts as an answer of its own: never right, and in macro-F1 a class without hits
_CUTS = (".", ",", ";", ":", "(", ")", "[", "]", "\n")


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


DATA_DIR_VARIABLE, CLOZE_FILE_VARIABLE = "TTL_EVALUATION_DATA", "TTL_CLOZE_FILE"
UNREADABLE_SIMILARITY = 5.0  # what the leaderboard takes an answer without a number for

macro_f1, pearson = bootstrap.macro_f1, bootstrap.pearson


def load_task(
    rows_of: str,
    data_dir: str | None = None,
    cloze_file: str | None = None,
    with_shots: bool = True,
    **other: Any,
) -> "DatasetDict":
    """Return the rows of a task as the harness wants them.

    Args:
        rows_of: the source, given in the task's YAML.
        data_dir: folder of local files, from `--metadata data_dir=…` or the environment; None: the Hub.
        cloze_file: rows of `cloze`, from `--metadata cloze_file=…` or the environment.
        with_shots: whether the task shows solved examples, given in its YAML.
        **other: further metadata of the harness.

    Raises:
        InputError: see `local_data.load_rows`.
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
    return {
        "acc": float(answer == right),
        "f1_macro": (right, answer),
        "unparsable": float(answer == UNPARSABLE),
    }


def _without(marks: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in marks.items() if key != name}


def yes_no_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer that is to be `Sim` or `Não`."""
    return _marks(doc["answer"], find_similar_label(results[0], ("Sim", "Não")))


def sentiment_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer that is to name a sentiment."""
    return _marks(doc["answer"], find_similar_label(results[0], ("Positivo", "Neutro", "Negativo")))


def exam_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer to a question with choices `A.` to `E.`."""
    return _without(_marks(doc["answer"], find_choice(results[0], "ABCDE")), "f1_macro")


def bar_exam_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer to a question with choices `A)` to `D)`."""
    return _without(_marks(doc["answer"], find_choice(results[0], "ABCD", ")")), "f1_macro")


def similarity_results(doc: Row, results: Sequence[str]) -> dict[str, Any]:
    """Return the marks of an answer that is to be a number of 1 to 5."""
    number = find_number(results[0], 1.0, 5.0)
    answer = UNREADABLE_SIMILARITY if number is None else number
    return {"pearson": (doc["similarity"], answer), "unparsable": float(number is None)}
