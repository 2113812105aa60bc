"""What the task files beside it (`tasks/*.yaml`) refer to by `!function`: loading rows, and marking answers.

The harness imports this module by its full name, from within `ttl evaluate` as well as from its own command.
"""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..tokenizer import compose
from . import bootstrap
from .answers import UNPARSABLE, find_choice, find_number, find_similar_label
from .local_data import load_rows
from .rows import Row

if TYPE_CHECKING:
    from datasets import DatasetDict

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
