"""Metrics, how sure they are, and what an answer that needs no model scores.

The metrics are of the `evaluate` library, but defined here: `evaluate.load` fetches a script from the Hub and runs it,
which needs the network and trust in whatever the script is today.
"""

import math
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

METRICS = {"accuracy": "accuracy", "f1_macro": "macro-F1"}
_RESAMPLES = 1000


class _LabelMetric(evaluate.Metric):
    """A metric of predicted against true numbers of labels."""

    num_labels: int

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description="predictions, references: numbers of labels",
            features=datasets.Features({"predictions": number, "references": number}),
        )


class Accuracy(_LabelMetric):
    """The share of rows whose label is right."""

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_LabelMetric):
    """The mean over all labels of the task of F1; a label that is neither there nor predicted counts as 0."""

    def _compute(self, predictions: Any, references: Any, num_labels: int) -> dict[str, float]:
        labels = range(num_labels)
        return {"f1_macro": float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0))}


def score(predictions: Any, references: Any, num_labels: int) -> dict[str, float]:
    """Return accuracy and macro-F1 of numbers of labels, as fractions."""
    given = {"predictions": list(map(int, predictions)), "references": list(map(int, references))}
    accuracy = Accuracy(keep_in_memory=True).compute(**given)
    f1 = MacroF1(keep_in_memory=True).compute(**given, num_labels=num_labels)
    return {**accuracy, **f1}


@dataclass(frozen=True)
class Summary:
    """One metric over all seeds.

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
    truth, found = np.asarray(references), np.asarray(predictions)
    if metric == "accuracy":
        share = float((truth == found).mean())
        return math.sqrt(share * (1 - share) / len(truth))
    cells = truth * num_labels + found  # each row is one cell of the confusion matrix
    generator = np.random.default_rng(0)
    counts = np.bincount(cells, minlength=num_labels**2)
    drawn = generator.multinomial(len(truth), counts / len(truth), size=_RESAMPLES)
    return float(np.std(_macro_f1(drawn.reshape(-1, num_labels, num_labels))))


def _macro_f1(matrices: Any) -> Any:
    """Return the macro-F1 of (many, labels, labels) confusion matrices, true labels first."""
    right = np.diagonal(matrices, axis1=1, axis2=2)
    either = matrices.sum(axis=1) + matrices.sum(axis=2)
    return (2 * right / np.maximum(either, 1)).mean(axis=1)


def majority_scores(train: list[int], test: list[int], num_labels: int) -> dict[str, float]:
    """Return what the most frequent label of the training rows scores on the test rows."""
    most = int(np.bincount(train, minlength=num_labels).argmax())
    return score([most] * len(test), test, num_labels)
