"""The EU's public summary of training content, as far as a passport knows it; the rest is marked for its author.

Structure: European Commission, "Explanatory Notice and Template for the Public Summary of Training Content for
general-purpose AI models required by Article 53 (1)(d) of Regulation (EU) 2024/1689", C(2025) 8311. What is written
here is a draft of the text part of a model that is trained on the corpus, and no legal advice.
"""

from pathlib import Path
from typing import Any

from ..planning.table import short
from .provenance import say_contamination

SUMMARY_NAME = "training-summary.md"
AUTHOR = "**[to be written by the provider]**"
# The ranges of the template for text, with the tokens at which the next one begins.
_RANGES = ((1e9, "Less than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens"),
           (float("inf"), "More than 10 trillion tokens"))  # fmt: skip


def render_training_summary(passport: dict[str, Any]) -> str:
    """Return the Markdown of the summary: fields that the passport knows filled, the others marked.

    Args:
        passport: as `make_passport` gives it.
    """
    from jinja2 import Environment

    whole, figures = passport["whole"], passport["figures"]
    tokens = figures["tokens"]["train"]
    sources = [_source(name, source) for name, source in passport["sources"].items()
               if source["statistics"]["documents"]]  # fmt: skip
    template = Path(__file__).with_name("training_summary.md.jinja").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    text: str = environment.from_string(template).render(
        AUTHOR=AUTHOR,
        passport=passport,
        ranges=[(name, name == next(said for most, said in _RANGES if tokens < most)) for _, name in _RANGES],
        tokens=short(tokens),
        unique=short(whole["tokens"]),
        registers=_shares(passport["registers"]),
        varieties=_shares(whole["varieties"]),
        years=", ".join(f"{decade}s: {number:,}" for decade, number in sorted(whole["years"].items())),
        public=[source for source in sources if source["is_on_hub"]],
        others=[source for source in sources if not source["is_on_hub"]],
        masked=_changes(passport, "personal_data"),
        toxic=sum(_step(source, "toxicity").get("reasons", {}).get("toxic", 0)
                  for source in passport["sources"].values()),
        contamination=say_contamination(passport["contamination"]),
    )  # fmt: skip
    return text


def _source(name: str, source: dict[str, Any]) -> dict[str, Any]:
    """Return what the summary says of a source; of files on this machine no more than their names."""
    inputs = [text if "://" in text else Path(text).name for text in source["inputs"]]
    own = source["statistics"]
    shown = {"name": name, "from": source["url"] or ", ".join(inputs), "revision": source["revision"] or "not stated",
             "documents": f"{own['documents']:,}", "tokens": short((source["share"] or {}).get("tokens", 0)),
             "register": source["register"] or "not stated",
             "licence": ", ".join(own["licenses"]) or source["license"]}  # fmt: skip
    cells = {key: value.replace("|", "\\|").replace("\n", " ") for key, value in shown.items()}
    return {**cells, "is_on_hub": all(text.startswith("hf://") for text in source["inputs"])}


def _step(source: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = source["steps"].get(name, {})
    return found


def _changes(passport: dict[str, Any], step: str) -> str:
    """Return what a step changed in all sources, with counts."""
    total: dict[str, int] = {}
    for source in passport["sources"].values():
        for kind, number in _step(source, step).get("changes", {}).items():
            total[kind] = total.get(kind, 0) + number
    return ", ".join(f"{kind} {number:,}" for kind, number in sorted(total.items(), key=lambda item: -item[1]))


def _shares(counts: dict[str, int]) -> str:
    total = max(1, sum(counts.values()))
    return ", ".join(f"{name} {100 * number / total:.1f} %" for name, number in
                     sorted(counts.items(), key=lambda item: -item[1]))  # fmt: skip
