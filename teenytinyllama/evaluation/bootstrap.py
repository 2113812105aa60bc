"""Scores over all answers at once, and the standard error of every score.

Means have a formula; macro-F1 and Pearson's correlation are drawn again from the items (bootstrap), with a fixed seed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 0


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


def _confusion(pairs: Sequence[tuple[Any, Any]]) -> NDArray[np.float64]:
    """Return (labels, labels): how often a label (row) was answered by another (column), over all that occur."""
    labels = sorted({str(label) for pair in pairs for label in pair})
    places = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)))
    for gold, answer in pairs:
        counts[places[str(gold)], places[str(answer)]] += 1
    return counts


def _macro_f1(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the macro-F1 of (…, labels, labels) confusions; a label that occurs nowhere is left out."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(-1) + confusion.sum(-2)
    scores = np.divide(2 * right, either, out=np.zeros_like(either), where=either > 0)
    return np.asarray(scores.sum(-1) / np.maximum((either > 0).sum(-1), 1))


def macro_f1(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the mean over labels of their F1, of (right label, answer) pairs.

    An answer that is no label, such as an unreadable one, counts as a further class with an F1 of nought, as
    scikit-learn's `f1_score(average="macro")` has it.
    """
    return float(_macro_f1(_confusion(pairs)))


def macro_f1_stderr(pairs: Sequence[tuple[Any, Any]]) -> float | None:
    """Return the bootstrap's standard error of the macro-F1, or None for a single pair."""
    if len(pairs) < 2:
        return None
    confusion = _confusion(pairs)
    draws = np.random.default_rng(_SEED).multinomial(len(pairs), confusion.ravel() / len(pairs), size=RESAMPLES)
    return float(_macro_f1(draws.reshape(RESAMPLES, *confusion.shape).astype(np.float64)).std(ddof=1))


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation along the last axis; nought where either side is constant."""
    first = first - first.mean(-1, keepdims=True)
    second = second - second.mean(-1, keepdims=True)
    scale = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return np.divide((first * second).sum(-1), scale, out=np.zeros_like(scale), where=scale > 1e-12)


def pearson(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Pearson's correlation of (right value, answer) pairs; nought when all answers are the same."""
    values = np.asarray(pairs, dtype=np.float64)
    return float(_pearson(values[:, 0], values[:, 1]))


def pearson_stderr(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the bootstrap's standard error of the correlation, or None for a single pair."""
    if len(pairs) < 2:
        return None
    values = np.asarray(pairs, dtype=np.float64)
    drawn = values[np.random.default_rng(_SEED).integers(len(values), size=(RESAMPLES, len(values)))]
    return float(_pearson(drawn[..., 0], drawn[..., 1]).std(ddof=1))
