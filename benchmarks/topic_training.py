"""Train the model that tells topics of documents, and measure it on sentences and registers that it never saw.

    TTL_REAL_DATA=data python benchmarks/topic_training.py [--write]

Trained on the Portuguese sentences of SIB-200 (dadelani/sib-200, CC-BY-SA-4.0), part `train`, by scikit-learn's
logistic regression on TF-IDF; strength and length of stems were chosen on `dev`, the accuracy is that of `test`. A
document's topic is said from `LEAST_PROBABILITY` on, which keeps laws and manuals out of the topics they are not about:
the shares by source are printed and stored. `--write` stores the model in the package.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import parser
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from teenytinyllama.corpus import text_statistics
from teenytinyllama.corpus.text_statistics import SCALE, TOPIC_FILE, UNKNOWN_TOPIC, probabilities, stems_of, topic_of

DATA = Path(os.environ.get("TTL_REAL_DATA", "data"))
LEAST_PROBABILITY = 0.45
INVERSE_STRENGTH = 10.0  # of the regularisation
DOCUMENTS = 300  # of a source
SOURCES = ("corpus/leis", "corpus/juridico", "corpus/diarios_oficiais", "raw/parlamento", "corpus/romances",
           "corpus/machado", "corpus/noticias", "corpus/web", "corpus/wiki_trechos", "corpus/sql_docs",
           "corpus/python_docs", "corpus/php_manual")  # fmt: skip


def fit(texts: list[str], topics: list[str]) -> dict[str, Any]:
    """Return the model: names of topics, constants, and for each stem its inverse frequency and weights."""
    vectors = TfidfVectorizer(analyzer=stems_of, sublinear_tf=True)
    features = vectors.fit_transform(texts)
    learner = LogisticRegression(C=INVERSE_STRENGTH, max_iter=1000, class_weight="balanced").fit(features, topics)
    rows = np.column_stack([vectors.idf_, learner.coef_.T])
    stems = {stem: [round(SCALE * float(value)) for value in rows[place]]
             for stem, place in sorted(vectors.vocabulary_.items())}  # fmt: skip
    return {"topics": list(map(str, learner.classes_)), "bias": [round(float(x), 3) for x in learner.intercept_],
            "least_probability": LEAST_PROBABILITY, "stems": stems}  # fmt: skip


def use(model: dict[str, Any]) -> None:
    """Have `topic_of` use a model."""
    rows = {stem: np.array(row) / SCALE for stem, row in model["stems"].items()}
    text_statistics._weights = lambda: (model, rows)  # type: ignore[assignment]


def measure(model: dict[str, Any], texts: list[str], topics: list[str]) -> dict[str, float]:
    """Return the accuracy of single sentences, the share that is decided, and the accuracy of those."""
    found = np.array([probabilities(stems_of(text)) for text in texts])
    right = np.array(model["topics"])[found.argmax(1)] == np.array(topics)
    sure = found.max(1) >= LEAST_PROBABILITY
    return {"accuracy": round(float(right.mean()), 3), "decided": round(float(sure.mean()), 3),
            "accuracy_of_decided": round(float(right[sure].mean()), 3)}  # fmt: skip


def main() -> None:
    """Train, measure, print, and write what was asked for."""
    arguments = parser(__doc__)
    arguments.add_argument("--write", action="store_true", help="store the model in the package")
    given = arguments.parse_args()
    parts = {name: pq.read_table(DATA / f"eval/sib200_por_{name}.parquet").to_pydict()
             for name in ("train", "dev", "test")}  # fmt: skip
    model = fit(parts["train"]["text"], parts["train"]["category"])
    use(model)
    held_out = {name: measure(model, parts[name]["text"], parts[name]["category"]) for name in ("dev", "test")}
    print(held_out)
    shares = {}
    for source in SOURCES:
        texts = pq.read_table(DATA / f"{source}.parquet", columns=["text"])["text"].to_pylist()
        found = Counter(topic_of(text).name for text in texts[:: max(1, len(texts) // DOCUMENTS)])
        shares[source.split("/")[1]] = {name: round(number / found.total(), 3) for name, number in found.most_common()}
        print(f"{source:24s} unknown {shares[source.split('/')[1]].get(UNKNOWN_TOPIC, 0):.3f} {dict(found)}")
    stored = {
        "made_by": "benchmarks/topic_training.py --write",
        "license": "CC-BY-SA-4.0, as the sentences that the weights were learnt from; it holds beginnings of words and "
        "no sentence",
        "sources": {"SIB-200, por_Latn, train": "dadelani/sib-200 (arXiv 2309.07445), CC-BY-SA-4.0"},
        "sentences_held_out": held_out,
        "topics_by_source": shares,
        **model,
    }
    text = json.dumps(stored, ensure_ascii=False, separators=(",", ":")).replace('"sources"', '\n"sources"')
    for path in [given.json, TOPIC_FILE if given.write else None]:
        if path:
            path.write_text(text.replace('],"', '],\n"').replace('},"', '},\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
