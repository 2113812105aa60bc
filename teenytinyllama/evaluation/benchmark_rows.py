"""Rows of benchmarks: found in a local folder or on the Hub, checked column by column, and brought into one form.

`config.SOURCES` says for each benchmark where its rows are and which columns they have. `CANONICAL` says which function
makes the canonical row, which the task's YAML file reads. Such a function takes a row whose columns have been checked.
It returns None for a row that the benchmark leaves out, and raises `BadRowError` for one that no model could be asked
fairly. The right answer is found by the letter that the file gives, never by its place among the other options.
"""

import functools
import json
import math
import random
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, hub_errors
from ..data.input_files import RECORD_SUFFIXES
from ..data.readers import read_records
from .config import COLUMN_KINDS, LABEL, LETTERS, SENTIMENTS, SOURCES, TEXT, Column, DataSplit, Shots, Source

Row = dict[str, Any]
NO_OR_YES = ("Não", "Sim")  # the answers to labels 0 and 1
_ANSWER = re.compile(r"\(?\s*(\w)\s*[.):-]?")  # B, b, (b), b), B.
_EMPTY = ("", "nan", "<na>")  # how tables write a cell without text
_SHUFFLE_SEED = 0
_PARQUET_COPY = "refs/convert/parquet"  # https://huggingface.co/docs/dataset-viewer/parquet


class BadRowError(InputError):
    """A row that cannot be asked; whoever reads the file adds its name and the number of the row."""

    def __init__(self, column: str, value: Any, wanted: str) -> None:
        """Say which column holds what, and what it must hold."""
        super().__init__(f"{column} is {str(value)[:80]!r}, {wanted}. Correct the row, or take it out")


class MissingDataError(InputError):
    """The data of a benchmark is not there; the message says what was looked for."""


@dataclass(frozen=True)
class Origin:
    """Where the questions of a benchmark came from; the Hub's identifiers are None for local files."""

    split: str
    dataset_id: str | None = None
    revision: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class BenchmarkRows:
    """Questions and solved examples in canonical form, in a fixed order.

    Attributes:
        test: the questions.
        shots: the examples, or those from which the harness draws.
        origin: of the questions.
        left_out: rows of the file that are no questions, because they need a picture, or a text is not there.
    """

    test: list[Row]
    shots: list[Row]
    origin: Origin
    left_out: int = 0


@functools.lru_cache(maxsize=64)
def load_rows(name: str, data_dir: str | None, cloze_file: str | None = None, with_shots: bool = True) -> BenchmarkRows:
    """Return the rows of a benchmark.

    Args:
        name: in `config.SOURCES`.
        data_dir: folder of local files; None reads the Hub's dataset (or its cache).
        cloze_file: the rows of `cloze`, which are made from held-out text.
        with_shots: whether solved examples are needed as well; see `config.BenchmarkTask.shots`.

    Raises:
        MissingDataError: no file of the known names is in the folder, or the Hub cannot give the dataset.
        InputError: columns that do not fit, a label outside the set, a right answer that is no option, an empty split,
            or examples that are missing.
    """
    source = SOURCES[name]
    if name == CLOZE and cloze_file is None:
        raise MissingDataError("cloze is made from held-out text. Give held_out: a packed folder, or text files.")
    test, origin, place, left_out = _read_split(name, source.test, data_dir, cloze_file if name == CLOZE else None)
    if origin.split in source.shuffled_stems:
        random.Random(_SHUFFLE_SEED).shuffle(test)
    shots: list[Row] = []
    shots_place = ""
    if source.shots is not None and with_shots:
        pool, _, shots_place, _ = _read_split(name, source.shots.part, data_dir)
        shots = _choose_shots(source.shots, pool, shots_place)
        in_same_file = data_dir is not None and shots_place == place
        held_back = source.shots.held_back or (source.shots.ids if in_same_file else ())
        test = [row for row in test if source.shots.column is None or row[source.shots.column] not in held_back]
    questions = _converted(CANONICAL[name], test, place)
    ensure(questions, f"{place}: holds no question that can be used. Give a file with rows.")
    examples = _converted(CANONICAL[name], shots, shots_place)
    return BenchmarkRows(questions, examples, origin, left_out + len(test) - len(questions))


def _read_split(
    name: str, part: DataSplit, data_dir: str | None, file: str | None = None
) -> tuple[list[Row], Origin, str, int]:
    """Return checked rows, where they are from, their place for messages, and how many rows were left out."""
    if file is None and data_dir is None:
        return _read_hub(SOURCES[name], part)
    path = Path(file) if file else _find_file(str(data_dir), part)
    place = f"data_dir={path}"
    records = _numbered(read_records("data_dir", path))
    ensure(records, f"{place}: holds no row. Give a file with rows.")
    rows, columns = records, SOURCES[name].columns
    if name in _LAYOUTS:
        layout, convert = _LAYOUTS[name]
        is_hub_form = all(name in rows[0] for name, column in columns.items() if not column.optional)
        if set(layout) <= set(rows[0]) and not is_hub_form:
            _check_rows(place, rows, layout)
            rows = _converted(convert, rows, place)
    _check_rows(place, rows, columns)
    return rows, Origin(path.name.split(".")[0]), place, len(records) - len(rows)


def _converted(convert: Callable[[Row], Row | None], rows: list[Row], place: str) -> list[Row]:
    """Return rows in another form, without those that are no questions.

    Raises:
        InputError: a row that cannot be asked; the message names its file and number.
    """
    found = []
    for row in rows:
        try:
            converted = convert(row)
        except BadRowError as error:
            raise InputError(f"{place}: row {row['row'] + 1}: {error}.") from error
        if converted is not None:
            found.append(converted)
    return found


def _find_file(data_dir: str, part: DataSplit) -> Path:
    """Return the first local file of the names that a split may have."""
    for stem in part.stems:
        for suffix in RECORD_SUFFIXES:
            path = Path(data_dir) / f"{stem}{suffix}"
            if path.is_file():
                return path
    raise MissingDataError(f"{data_dir} holds no {' or '.join(part.stems)} ({', '.join(RECORD_SUFFIXES)})")


def _choose_shots(shots: Shots, pool: list[Row], place: str) -> list[Row]:
    """Return the examples in their order.

    Raises:
        InputError: one is missing, or two rows have its identifier.
    """
    if not shots.ids:
        return pool
    found: dict[Any, Row] = {}
    for number, row in enumerate(pool):
        identity = number if shots.column is None else row[shots.column]
        ensure(
            identity not in found or identity not in shots.ids,
            f"{place}: row {row['row'] + 1}: {shots.column} {identity!r} stands in an earlier row, too, so that it is "
            "not clear which of them the benchmark shows. Take one of them out.",
        )
        found[identity] = row
    missing = ", ".join([str(identity) for identity in shots.ids if identity not in found][:5])
    ensure(
        not missing,
        f"{place}: lacks rows that the benchmark shows as solved examples ({shots.column or 'row'}={missing}). Give "
        "the whole split.",
    )
    return [found[identity] for identity in shots.ids]


def _numbered(records: Iterable[Row]) -> list[Row]:
    """Return rows with their number from 0, and None in place of the `nan` that tables have for an empty cell."""
    return [
        {**{name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()},
         "row": number}
        for number, row in enumerate(records)
    ]  # fmt: skip


def _check_rows(place: str, rows: list[Row], columns: dict[str, Column]) -> None:
    """Refuse rows that lack a column or hold a value that the column may not have; say which, and what is allowed."""
    needed = sorted(name for name, column in columns.items() if not column.optional)
    for row in rows:
        number = row["row"] + 1
        missing = ", ".join(name for name in needed if name not in row)
        ensure(
            not missing,
            f"{place}: column {missing} is missing in row {number}. Expected are {', '.join(needed)}; found are "
            f"{', '.join(sorted(name for name in row if name != 'row'))}.",
        )
        for name, column in columns.items():
            value = row.get(name)
            if value is None and (column.optional or column.may_be_empty):
                continue
            ensure(
                column.fits(value),
                f"{place}: row {number}: {name} is {str(value)[:80]!r}, but must be {COLUMN_KINDS[column.kind]}. "
                "Correct the row, or take it out.",
            )
            label = letter_of(value) if column.kind == "letter" else value
            ensure(
                column.allowed is None or (isinstance(label, Hashable) and label in column.allowed),
                f"{place}: row {number}: {name} is {repr(value)[:80]}, outside the set "
                f"{', '.join(map(repr, column.allowed or ()))}. Correct the row, or take it out"
                + (": whether a number counts from 0 or from 1 is not guessed." if column.kind == "letter" else "."),
            )


def _read_hub(source: Source, part: DataSplit) -> tuple[list[Row], Origin, str, int]:
    """Return what `_read_split` does, of a Hub dataset at a commit; without the network, of the Hub's cache.

    The parquet copy that the Hub keeps of every dataset is read, because some of them are made by a script otherwise,
    and a script is never run.
    """
    from huggingface_hub import snapshot_download

    pattern = source.files or f"{source.config or '*'}/{part.split}/*.parquet"
    revision = None if source.files else _PARQUET_COPY
    unreachable: tuple[type[Exception], ...] = (*hub_errors(), OSError)
    try:
        folder = Path(
            snapshot_download(str(source.dataset_id), repo_type="dataset", revision=revision, allow_patterns=[pattern])
        )
    except unreachable as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDataError(f"the dataset {source.dataset_id} cannot be had from the Hub: {reason}") from error
    files = sorted(folder.glob(pattern))
    place = f"dataset {source.dataset_id}, commit {folder.name}"
    if not files:
        raise MissingDataError(f"{place}: holds no file {pattern}")
    ensure(
        len({file.parent for file in files}) == 1,
        f"{place}: has several configurations ({', '.join(sorted({file.parts[-3] for file in files}))}). Download the "
        "right one and give it with data_dir.",
    )
    rows = _numbered([row for file in files for row in read_records("dataset", file)])
    place += f", split {part.split}"
    _check_rows(place, rows, source.columns)
    return rows, Origin(part.split, source.dataset_id, folder.name, source.config), place, 0


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
    """Return question, choices and the place of the right one; the prompt shows four letters and needs four texts."""
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
        "row": row["row"],
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
        "answer": NO_OR_YES[int(row["entailment_judgment"])],
        "similarity": float(row["relatedness_score"]),
        "similarity_text": f"{row['relatedness_score']:.1f}".replace(".", ","),
    }


def last_word(row: Row) -> Row | None:
    """Return a text without its last word, and the word; None where either is empty."""
    text, word = row["sentence"].rstrip(), row["last_word"].strip()
    if text.endswith(" " + word):  # some files keep the word in the text
        text = text[: -len(word)].rstrip()
    return {"sentence": text, "last_word": word} if text and word else None


CLOZE = "cloze"
CANONICAL: dict[str, Callable[[Row], Row | None]] = {
    "arc": arc, "hellaswag": hellaswag, "mmlu": mmlu, "truthfulqa": truthfulqa, "assin2": pair,
    "enem": exam, "bluex": exam, "oab": functools.partial(exam, letters="ABCD"),
    **dict.fromkeys(("hatebr", "hate_speech"),
                    lambda row: {"sentence": row["sentence"], "answer": NO_OR_YES[int(row["label"])]}),
    **dict.fromkeys(("calame", "lambada", CLOZE), last_word),
    "faquad_nli": lambda row: {"question": row["question"], "reply": row["answer"],
                               "answer": NO_OR_YES[int(row["label"])]},
    "tweetsentbr": lambda row: {"sentence": row["sentence"], "answer": SENTIMENTS[row["label"]]},
}  # fmt: skip
# Another form in which local files of a benchmark come: the columns by which it is known and which are checked, and a
# function that makes of a row one of the form of the Hub's dataset, or None to leave it out.
_LAYOUTS: dict[str, tuple[dict[str, Column], Callable[[Row], Row | None]]] = {
    "enem": (
        {"id": TEXT, "context": Column(optional=True), "question": Column(optional=True),
         "alternatives": Column("list"), "label": Column("letter", allowed=tuple(LETTERS))},
        enem_record,
    ),
    # As published by its authors: one file, sorted by label, without the benchmark's split.
    "hatebr": (
        {"text": TEXT, "label": LABEL},
        lambda row: {"idx": row["row"], "sentence": row["text"], "label": row["label"], "row": row["row"]},
    ),
}  # fmt: skip
