"""What needs no language model: counts of words and logistic regression, on the same rows."""

from typing import Any

from ..checks import ensure_packages
from .rows import Example
from .scoring import score

# Inverse strengths of the penalty that are tried; the validation rows choose.
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def score_word_counts(splits: dict[str, list[Example]], num_labels: int) -> dict[str, Any]:
    """Return the test scores of TF-IDF of words and pairs of words with logistic regression, and its predictions.

    A pair of texts is one text to it, so it cannot see how the two relate.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    ensure_packages("eval", "sklearn")
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
