"""Train the model that tells Brazilian from European Portuguese, and measure it on sources that it never saw.

    TTL_REAL_DATA=data python benchmarks/variety_training.py [--write]

The sources are public, see their names in `SOURCES`; the folder holds them as parquet files with `text`. Weights are
learnt by logistic regression without a constant, each weight on its side of zero (what is Portuguese by its kind cannot
speak for Brazil), each variety with half of the weight and each source with an equal part of it. European Portuguese
after the spelling agreement of 1990 is made from older text by leaving out the silent consonants.

The measure leaves out all sources of one register at a time, so that a register that both countries share is told
apart by a model that never saw it. `--write` stores the model in the package.
"""

import json
import os
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import parser

from teenytinyllama.cleaning.language import KINDS, MODEL_FILE, features_of
from teenytinyllama.cleaning.page_text import HtmlConfig, text_of_html

DATA = Path(os.environ.get("TTL_REAL_DATA", "data"))
LEAST_LOG_ODDS = 1.0
L2, STEPS, RATE = 2e-3, 4000, 0.3
CHARACTERS = 2000  # of a sample: short, as web pages are

# file: column, samples at most, variety, public name
SOURCES: dict[str, tuple[str, str, int, str, str]] = {
    "parliament": ("raw/parlamento", "text", 500, "pt", "transparenciahackday/datasets: sittings of the parliament"),
    "novels": ("corpus/romances", "text", 1000, "pt", "COST-ELTeC/ELTeC-por: Portuguese novels 1840-1920"),
    "news pt": ("corpus/noticias", "text", 400, "pt", "UD_Portuguese-Bosque: Público, by the places that it names"),
    "news br": ("corpus/noticias", "text", 400, "br", "UD_Portuguese-Bosque: Folha, by the places that it names"),
    "Machado": ("corpus/machado", "text", 1000, "br", "Henric234/MachadoScraper: Machado de Assis"),
    "federal laws": ("raw/leis_html", "html", 400, "br", "jonasabreu/leis-federais: Brazilian federal laws"),
    "courts": ("corpus/juridico", "text", 200, "br", "peluz/lener-br: Brazilian courts"),
    "Python": ("corpus/python_docs", "text", 400, "br", "python/python-docs-pt-br"),
    "PHP": ("corpus/php_manual", "text", 400, "br", "php/doc-pt_br"),
    "SQL": ("corpus/sql_docs", "text", 400, "br", "zelanko/sql-docs.pt-br"),
    "Graph": ("corpus/graph_docs", "text", 400, "br", "microsoftgraph/microsoft-graph-docs.pt-BR"),
}
# Never trained on. European Portuguese has no source to spare: there each register is left out in turn.
TESTS: dict[str, tuple[str, str, int, str, str]] = {
    "bar exams": ("eval/oab", "question", 300, "br", "legal-nlp/oab-exams: questions"),
    "tweets": ("eval/told_br", "text", 300, "br", "JAugusto97/ToLD-Br: tweets, fifteen a sample"),
    "comments": ("eval/hatebr", "text", 300, "br", "franciellevargas/HateBR: comments, fifteen a sample"),
    "ENEM": ("eval/enem_2022", "context", 179, "br", "piresramon/gpt-4-enem: contexts of questions"),
    "web": ("corpus/web", "text", 200, "br", "UD_Portuguese-GSD"),
    "SIB-200": ("eval/sib200_por_train", "text", 140, "br", "dadelani/sib-200, five sentences a sample"),
    "gazettes": ("corpus/diarios_oficiais", "text", 100, "br", "Polygl0t/llm-foundry: Brazilian gazettes"),
}
REGISTERS = {
    "fiction": ["novels", "Machado"],
    "news": ["news pt", "news pt, 1990", "news br"],
    "state": ["parliament", "parliament, 1990", "federal laws", "courts"],
    "documentation": ["Python", "PHP", "SQL", "Graph"],
}
JOINED = {"tweets": 15, "comments": 15, "bar exams": 4, "SIB-200": 5}

# The newspaper of an extract is known by what it speaks of; cues of the model are none of these.
PORTUGAL = re.compile(
    r"\b(?:Lisboa|Coimbra|Portugal|escudos|contos|Cavaco|Soares|Guterres|PSD|PCP|CDS|PÚBLICO|Benfica|Sporting|Algarve"
    r"|Braga|Setúbal|Alentejo|Macau|Angola|Cascais|Aveiro|Nogueira)\b"
)
BRAZIL = re.compile(
    r"\b(?:São Paulo|Rio de Janeiro|Brasil|Brasília|brasileir\w+|Folha|Lula|FHC|Fernando Henrique|Itamar|Collor|PMDB"
    r"|PFL|PSDB|Palmeiras|Corinthians|Flamengo|Romário|Minas|Bahia|Paraná|Maluf|Quércia|Ciro|Ricupero|Embratel)\b|C?R\$|US\$"
)
# The agreement of 1990, base IV, on the words that it changes most often.
AGREEMENT = [
    (re.compile(pattern), into)
    for pattern, into in (
        ("cç", "ç"), ("(?<=[ei])pç", "ç"), ("(?<=[oj]e)ct", "t"), (r"(?<=\ba)ct(?=[ioua])", "t"),
        ("(?<=re)ct(?=[oa])", "t"), ("(?<=ra)ct(?=[oi])", "t"), ("(?<=[lt]e)ct(?=[oaiu])", "t"), ("(?<=fe)ct", "t"),
        ("(?<=pe)ct(?=[oai])", "t"),
    )
]  # fmt: skip


def reformed(text: str) -> str:
    """Return European Portuguese in the spelling of 1990."""
    for pattern, into in AGREEMENT:
        text = pattern.sub(into, text)
    return text


def named_places(name: str, text: str) -> bool:
    """Return whether a news extract is of the newspaper that `name` stands for."""
    counts = len(PORTUGAL.findall(text)), len(BRAZIL.findall(text))
    home, other = counts if name == "news pt" else counts[::-1]
    return home >= 2 and other == 0


def samples(name: str, source: tuple[str, str, int, str, str]) -> list[str]:
    """Return samples of a source, each of at most `CHARACTERS` from the middle of a document."""
    file, column, most, _, _ = source
    texts: list[str] = pq.read_table(DATA / f"{file}.parquet")[column].to_pylist()
    random.Random(4).shuffle(texts)
    if name.startswith("news"):
        texts = [text for text in texts if named_places(name, text)]
    if count := JOINED.get(name):
        texts = [" ".join(texts[start : start + count]) for start in range(0, min(len(texts), count * most), count)]
    found = []
    for text in texts:
        if column == "html":
            text = text_of_html(text, HtmlConfig())[0][400:]
        start = max(0, len(text) - CHARACTERS) // 2
        if len(text) > 150:
            found.append(text[start : start + CHARACTERS])
        if len(found) == most:
            break
    return found


def fit(features: dict[str, Any], varieties: dict[str, str], names: Iterable[str]) -> Any:
    """Return the weights (kinds,) that the samples of some sources teach, by projected gradient descent."""
    names = list(names)
    sides = np.array([1.0 if kind.startswith("pt") else -1.0 for kind in KINDS])
    x = np.concatenate([features[name] for name in names])
    y = np.concatenate([np.full(len(features[name]), float(varieties[name] == "pt")) for name in names])
    sources = {variety: sum(varieties[name] == variety for name in names) for variety in ("pt", "br")}
    share = np.concatenate(
        [np.full(len(features[name]), 0.5 / sources[varieties[name]] / len(features[name])) for name in names]
    )
    weights = 0.1 * sides
    for _ in range(STEPS):
        gradient = x.T @ (share * (1 / (1 + np.exp(-(x @ weights))) - y)) + L2 * weights
        weights = weights - RATE * gradient
        weights = np.where(weights * sides > 0, weights, 0)
    return weights


def measure(weights: Any, features: Any, variety: str) -> dict[str, float]:
    """Return how many samples are decided, and how many of these rightly."""
    log_odds = features @ weights * (1 if variety == "pt" else -1)
    decided = np.abs(log_odds) >= LEAST_LOG_ODDS
    right = float((log_odds[decided] > 0).mean()) if decided.any() else float("nan")
    return {"samples": len(log_odds), "decided": round(float(decided.mean()), 3), "right of decided": round(right, 3)}


def balanced(rows: dict[str, dict[str, float]], varieties: dict[str, str]) -> float:
    """Return the accuracy on what was decided: the mean of the two varieties' means over sources."""
    means = [
        np.nanmean([row["right of decided"] for name, row in rows.items() if varieties[name] == variety])
        for variety in ("pt", "br")
        if any(varieties[name] == variety for name in rows)
    ]
    return round(float(np.mean(means)), 3)


def main() -> None:
    """Train, measure on the sources left out, print, and write what was asked for."""
    arguments = parser(__doc__)
    arguments.add_argument("--write", action="store_true", help="store the model in the package")
    given = arguments.parse_args()
    texts = {name: samples(name, source) for name, source in (SOURCES | TESTS).items()}
    varieties = {name: source[3] for name, source in (SOURCES | TESTS).items()}
    for name in ("parliament", "news pt"):
        texts[f"{name}, 1990"], varieties[f"{name}, 1990"] = [reformed(text) for text in texts[name]], "pt"
    features = {name: np.array([features_of(text) for text in found]) for name, found in texts.items()}
    learnt_from = [name for name in features if name not in TESTS]
    left_out: dict[str, dict[str, float]] = {}
    accuracies = {}
    for register, names in REGISTERS.items():
        weights = fit(features, varieties, [name for name in learnt_from if name not in names])
        rows = {name: measure(weights, features[name], varieties[name]) for name in names}
        left_out |= rows
        if len({varieties[name] for name in names}) == 2:
            accuracies[register] = balanced(rows, varieties)
    weights = fit(features, varieties, learnt_from)
    left_out |= {name: measure(weights, features[name], varieties[name]) for name in TESTS}
    for name, row in left_out.items():
        print(f"{varieties[name]}  {name:18s} {row}")
    accuracies["all sources"] = balanced(left_out, varieties)
    print("balanced accuracy of what is decided, by the register left out:", accuracies)
    model = {
        "made_by": "benchmarks/variety_training.py --write",
        "license": "Apache-2.0; it holds weights of cues and no text",
        "sources": {name: f"{source[3]}: {source[4]}" for name, source in SOURCES.items()},
        "bias": 0.0,
        "least_log_odds": LEAST_LOG_ODDS,
        "weights": {kind: round(float(weight), 4) for kind, weight in zip(KINDS, weights, strict=True)},
        "sources_left_out": left_out,
        "balanced_accuracy_of_decided": accuracies,
    }
    for path in [given.json, MODEL_FILE if given.write else None]:
        if path:
            path.write_text(json.dumps(model, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
