"""Labelled rows: read from the Hub or from files, checked, split, and predictions of their labels scored.

Labels are numbers. Splits that are missing are cut from the training rows by a fixed rule, and the texts that splits
share are counted. Two answers need no language model and are scored on the same rows: the most frequent label, and
counts of words with logistic regression.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import InputError, ensure, hub_errors
from ..data.input_files import RECORD_SUFFIXES, TABLE_SUFFIXES, SourceFile, hash_files, resolve_files
from ..data.readers import read_records
from ..evaluation.marking import confusion_matrix, draw_confusions, macro_f1_of
from ..tokenizer.encode import compose
from .config import PARQUET_REVISION, SPLITS, ClassifyConfig, Task

_SPLIT_WORDS = {
    "train": "train", "training": "train", "treino": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "validacao": "validation", "test": "test", "teste": "test",
}  # fmt: skip
_MOST_LABELS = 1000
METRICS = {"accuracy": "accuracy", "f1_macro": "macro-F1"}  # their names in records, and as they are shown
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # inverse strengths of the penalty that are tried for counts of words


@dataclass(frozen=True)
class Example:
    """A text, its pair (empty for single texts) and the number of its label."""

    text: str
    pair: str
    label: int


@dataclass(frozen=True)
class Columns:
    """Which columns of a row are the text, the pair (empty: none) and the label."""

    text: tuple[str, ...]
    pair: str
    label: str

    def names(self) -> list[str]:
        """Return the names of all columns that are read."""
        return [*self.text, *([self.pair] if self.pair else []), self.label]


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a task as its files or its dataset hold them.

    Attributes:
        splits: what there is of train, validation and test.
        labels: names of the labels in the order of their numbers.
        dataset: the Hub's name, or that of the local files.
        revision: commit on the Hub; None for local files.
        hashes: sha256 of each file.
    """

    splits: dict[str, list[Example]]
    labels: tuple[str, ...]
    dataset: str
    revision: str | None
    hashes: dict[str, str]


def read_task(task: Task, config: ClassifyConfig) -> LabelledRows:
    """Return the checked rows of a task.

    Raises:
        InputError: files or a dataset that cannot be read, columns that do not fit, an empty split, rows without text,
            or a label outside the set.
    """
    columns = Columns(
        text=tuple(config.text_column or task.text_columns),
        pair=task.pair_column if config.pair_column is None else config.pair_column,
        label=config.label_column or task.label_column,
    )
    revision = None if config.is_local else _commit(task, config.dataset_revision)
    files = _local_files(config) if revision is None else _hub_files(task, revision)
    records = {split: _read_split(split, files[split], columns) for split in SPLITS if split in files}
    labels = task.labels or _labels_of(columns.label, records["train"])
    numbers = _label_numbers(labels)
    splits = {
        split: [_example(place, row, columns, labels, numbers) for place, row in rows]
        for split, rows in records.items()
    }
    dataset = task.dataset_id if revision else ", ".join(file.name for found in files.values() for file in found)
    hashes = hash_files([file for found in files.values() for file in found])
    return LabelledRows(splits, labels, dataset, revision, hashes)


def _local_files(config: ClassifyConfig) -> dict[str, list[SourceFile]]:
    """Return the local files of each split, given one by one or found in `data_dir` by the words in their names."""
    suffixes = (*RECORD_SUFFIXES, *TABLE_SUFFIXES)
    if config.data_dir is None:
        return {split: resolve_files(f"{split}_file", names, suffixes) for split, names in config.local_files.items()}
    folder = Path(config.data_dir)
    ensure(folder.is_dir(), f"data_dir={folder}: no such folder. Give the folder that holds the rows.")
    found: dict[str, list[SourceFile]] = {}
    files = resolve_files("data_dir", [str(folder)], suffixes)
    for file in files:
        words = re.split(r"[^a-z]+", file.path.relative_to(folder).as_posix().lower())
        for split in dict.fromkeys(_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS):
            found.setdefault(split, []).append(file)
    ensure(
        "train" in found,
        f"data_dir={folder}: no file there is named as training rows (train…). Found "
        f"{', '.join(file.name for file in files[:5])}. Name them, or give --train_file.",
    )
    return found


def _commit(task: Task, revision: str | None) -> str:
    """Return the commit of the parquet copy of a task's dataset on the Hub."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(task.dataset_id, revision=revision or PARQUET_REVISION).sha
    except hub_errors() as error:
        raise InputError(
            f"task={task.name}: the dataset {task.dataset_id} could not be read from the Hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Offline, give the rows as files: --data_dir, or "
            "--train_file and --test_file."
        ) from error
    assert found is not None
    return found


def _hub_files(task: Task, commit: str) -> dict[str, list[SourceFile]]:
    """Return the parquet files of each split of a task's dataset at a commit."""
    place = f"hf://datasets/{task.dataset_id}@{commit}"
    config = task.dataset_config or "*"
    files = {split: resolve_files("task", [f"{place}/{config}/{split}/*"], (".parquet",)) for split in task.hub_splits}
    folders = {
        file.name.removeprefix(f"{task.dataset_id}/").split("/")[0] for found in files.values() for file in found
    }
    ensure(
        len(folders) == 1,
        f"task={task.name}: {task.dataset_id} at {commit} has several configurations ({', '.join(sorted(folders))}). "
        "Download the right one and give it with --data_dir.",
    )
    return files


def _read_split(split: str, files: list[SourceFile], columns: Columns) -> list[tuple[str, dict[str, Any]]]:
    """Return (place, row) of all rows of a split."""
    rows = []
    for file in files:
        for number, row in enumerate(read_records(f"{split}_file", file.path), start=1):
            missing = [name for name in columns.names() if name not in row]
            ensure(
                not missing,
                f"{', '.join(missing)}: no such column in row {number} of {file.name} ({split}). Expected "
                f"{', '.join(columns.names())}; found {', '.join(map(str, row))}. Name yours with --text_column, "
                "--pair_column and --label_column.",
            )
            rows.append((f"row {number} of {file.name}", row))
    ensure(rows, f"{split}: empty split; {', '.join(file.name for file in files)} holds no row.")
    return rows


def _labels_of(column: str, rows: Iterable[tuple[str, dict[str, Any]]]) -> tuple[str, ...]:
    """Return the names of the labels that occur, numbers in their order and texts by the alphabet."""
    values = [row[column] for _, row in rows]
    found = {_label_name(value) for value in values if value is not None}
    ensure(
        2 <= len(found) <= min(_MOST_LABELS, max(2, len(values) // 2)),
        f"label_column={column}: holds {len(found)} different labels in {len(values)} training rows. Name a column of "
        "classes, two at least and each in several rows.",
    )
    is_number = all(re.fullmatch(r"-?\d+", name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if is_number else 0, name)))


def _label_name(value: Any) -> str:
    """Return a label as a text: 1, 1.0 and True are all `1`."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():  # a column of integers with a gap, read by pandas
        return str(int(value))
    return str(value).strip()


def _label_numbers(labels: tuple[str, ...]) -> dict[str, int]:
    """Return the number of each value that a label can be written as: its name or its number."""
    by_number = {str(number): number for number in range(len(labels))}
    names = {name: number for number, name in enumerate(labels)}
    return {**({} if set(names) & set(by_number) else by_number), **names}


def _example(
    place: str, row: dict[str, Any], columns: Columns, labels: tuple[str, ...], numbers: dict[str, int]
) -> Example:
    """Return a row as texts and the number of its label; `place` names the row in messages."""
    texts = [row[name] for name in (*columns.text, *([columns.pair] if columns.pair else []))]
    for name, text in zip(columns.names(), texts, strict=False):
        ensure(
            isinstance(text, str),
            f"text_column={name}: {place} holds {type(text).__name__}, not text. Drop the row, or name another column.",
        )
    label = row[columns.label]
    ensure(
        label is not None and _label_name(label) in numbers,
        f"label_column={columns.label}: {place} holds {label!r}, which is none of the labels "
        f"{', '.join(f'{number} ({name})' for number, name in enumerate(labels))}. Correct or drop the row.",
    )
    texts = [*map(compose, texts)]
    pair = texts.pop() if columns.pair else ""
    return Example("\n\n".join(texts), pair, numbers[_label_name(label)])


def keys_of(examples: Iterable[Example]) -> Iterator[str]:
    """Yield a key for each row; rows that differ in case, spaces or punctuation alone have the same key."""
    for example in examples:
        parts = (example.text, example.pair)
        # A text of nothing but signs, such as emojis, stays itself.
        yield "\0".join(re.sub(r"\W+", " ", part.casefold()).strip() or part.strip() for part in parts)


TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.1
MOST_VALIDATION_ROWS = 2000  # more would only choose an epoch more slowly
CUT_RULE = (
    "rows in the order of a hash of their text, from each label the same share, rows of equal text on one side: a "
    f"fifth for test, a tenth of the rest for validation (at most {MOST_VALIDATION_ROWS})"
)


@dataclass(frozen=True)
class Splits:
    """The rows of all three splits of a task.

    Attributes:
        rows: by the name of the split.
        cut: which of them were cut from the training rows here.
        seen: share of the rows of validation and of test whose text stands among the training rows, too.
        left_out: training rows that `max_train_rows` leaves out.
    """

    rows: dict[str, list[Example]]
    cut: tuple[str, ...]
    seen: dict[str, float]
    left_out: int


def complete_splits(found: dict[str, list[Example]], max_train_rows: int | None) -> Splits:
    """Return train, validation and test; a split that is missing is cut from train by `CUT_RULE`.

    The cut depends on the rows alone, not on their order nor on any seed, so every model is scored on the same rows.

    Raises:
        InputError: too few rows to cut from, or a split in which a label of the training rows is all there is.
    """
    rows = dict(found)
    cut = []
    if "test" not in rows:
        rows["test"], rows["train"] = _take(rows["train"], TEST_FRACTION, "test")
        cut.append("test")
    if "validation" not in rows:
        share = min(VALIDATION_FRACTION, MOST_VALIDATION_ROWS / max(len(rows["train"]), 1))
        rows["validation"], rows["train"] = _take(rows["train"], share, "validation")
        cut.append("validation")
    before = len(rows["train"])
    if max_train_rows is not None and max_train_rows < before:
        rows["train"] = _take(rows["train"], max_train_rows / before, "train")[0][:max_train_rows]
    ensure(
        len({example.label for example in rows["train"]}) > 1,
        "train: all rows have one label, so there is nothing to learn. Give rows of every label.",
    )
    known = set(keys_of(rows["train"]))
    seen = {
        split: sum(key in known for key in keys_of(rows[split])) / len(rows[split]) for split in ("validation", "test")
    }
    return Splits(rows, tuple(cut), seen, before - len(rows["train"]))


def _take(rows: list[Example], fraction: float, purpose: str) -> tuple[list[Example], list[Example]]:
    """Return (taken, rest), the fraction of each label's texts; rows of equal text stay together.

    Of a label with a single text a cut takes none, so that it can be learnt.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys_of(rows)):
        groups.setdefault(key, []).append(index)
    by_label: dict[int, list[tuple[str, list[int]]]] = {}
    for key, members in groups.items():
        digest = hashlib.sha256(f"teenytinyllama {purpose}\0{key}".encode()).hexdigest()
        by_label.setdefault(rows[members[0]].label, []).append((digest, members))
    taken: set[int] = set()
    for label in sorted(by_label):
        ordered = sorted(by_label[label])
        most = len(ordered) if purpose == "train" else len(ordered) - 1
        for _, members in ordered[: min(most, max(1, round(fraction * len(ordered))))]:
            taken.update(members)
    ensure(
        taken,
        f"{purpose}: there is no such split, and {len(rows)} training rows with {len(by_label)} labels are too few to "
        "cut one from. Give it as a file.",
    )
    chosen = [row for index, row in enumerate(rows) if index in taken]
    return chosen, [row for index, row in enumerate(rows) if index not in taken]


def score(predictions: Any, references: Any, num_labels: int) -> dict[str, float]:
    """Return accuracy and macro-F1 of numbers of labels, as fractions.

    Macro-F1 is the mean over all labels of the task; a label that is neither there nor predicted counts as 0.
    """
    from sklearn.metrics import accuracy_score, f1_score

    labels = range(num_labels)
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1_macro": float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0)),
    }


@dataclass(frozen=True)
class Summary:
    """The scores of all seeds in one metric.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation over the seeds; None with one seed.
        seed_error: standard error of the mean by the seeds; None with one seed.
        item_error: standard error by the choice of the test rows, which all seeds share.
        stderr: both together.
        trivial: what the most frequent training label scores.
    """

    mean: float
    deviation: float | None
    seed_error: float | None
    item_error: float
    stderr: float
    trivial: float

    @property
    def is_trivial(self) -> bool:
        """Return whether the mean is no more than two standard errors above the trivial answer."""
        return self.mean <= self.trivial + 2 * self.stderr

    @property
    def normalised(self) -> float:
        """Return 0 at the trivial answer and 1 at a perfect score."""
        return (self.mean - self.trivial) / (1 - self.trivial) if self.trivial < 1 else 0.0


def summarise(values: list[float], item_errors: list[float], trivial: float) -> Summary:
    """Return the summary of one metric of several seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    seed_error = None if deviation is None else deviation / math.sqrt(len(values))
    item_error = float(np.mean(item_errors))
    return Summary(
        mean=float(np.mean(values)),
        deviation=deviation,
        seed_error=seed_error,
        item_error=item_error,
        stderr=math.hypot(item_error, seed_error or 0.0),
        trivial=trivial,
    )


def item_error(metric: str, predictions: list[int], references: list[int], num_labels: int) -> float:
    """Return the standard error of a score by the choice of its rows.

    Of the accuracy it is the binomial one; of macro-F1 the deviation over 1,000 drawings of the rows with replacement,
    always the same ones.
    """
    if metric == "accuracy":
        share = float(np.mean(np.equal(predictions, references)))
        return math.sqrt(share * (1 - share) / len(references))
    confusion = confusion_matrix(list(zip(references, predictions, strict=True)), range(num_labels))
    return float(macro_f1_of(draw_confusions(confusion), every_label=True).std())


def majority_scores(train: list[int], test: list[int], num_labels: int) -> dict[str, float]:
    """Return what the most frequent label of the training rows scores on the test rows."""
    most = int(np.bincount(train, minlength=num_labels).argmax())
    return score([most] * len(test), test, num_labels)


def score_word_counts(splits: dict[str, list[Example]], num_labels: int) -> dict[str, Any]:
    """Return the test scores of TF-IDF of words and pairs of words with logistic regression, and its predictions.

    A pair of texts is one text to it, so it cannot see how the two relate.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = {split: [f"{row.text}\n{row.pair}".strip() for row in rows] for split, rows in splits.items()}
    labels = {split: [row.label for row in rows] for split, rows in splits.items()}
    # Words of one letter count in Portuguese ("é", "e", "a"), which the default pattern leaves out.
    counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+")
    train = counts.fit_transform(texts["train"])
    validation, test = counts.transform(texts["validation"]), counts.transform(texts["test"])
    best: tuple[float, Any, float] | None = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=2000, random_state=0).fit(train, labels["train"])
        right = score(model.predict(validation), labels["validation"], num_labels)["accuracy"]
        if best is None or right > best[0]:
            best = (right, model, strength)
    assert best is not None
    predictions = [int(label) for label in best[1].predict(test)]
    return {
        "scores": score(predictions, labels["test"], num_labels),
        "strength": best[2],
        "features": len(counts.vocabulary_),
        "predictions": predictions,
    }
