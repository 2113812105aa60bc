"""The passport of a corpus: where every byte came from, what is in it, what was dropped, and on which terms it stands.

`passport.json` has all numbers, `passport.md` the tables, `passport.html` both with plots and samples; the page needs
no network.

`render_training_summary` makes the EU's public summary of training content of it, as far as a passport knows it; the
rest is marked for its author. Structure: European Commission, "Explanatory Notice and Template for the Public Summary
of Training Content for general-purpose AI models required by Article 53 (1)(d) of Regulation (EU) 2024/1689", C(2025)
8311. What is written there is a draft of the text part of a model that is trained on the corpus, and no legal advice.
"""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..planning.table import markdown_table, short
from ..stage_folder import utc_now, write_json
from .config import BuildConfig
from .documents import Funnel
from .provenance import NOT_KNOWN, OF_ITS_OWN, PASSPORT_NAME, say_contamination, summarise_licences
from .text_statistics import PEOPLES, TextStatistics

_SAMPLES_SHOWN = 12
_MOST_LICENCE_NOTES = 20
_MOST_CONTAMINATED = 0.5  # share of a source's documents; of a source that only quotes an exam far fewer are dropped
# Colours of plots, told apart by people who are colour-blind too (Okabe and Ito 2008), and grey for what is not known.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#7a5195", "#444444")
_GREY = "#c8c8c8"
_UNSAID = ("unknown", "not asked", "not said", "")


def make_passport(
    config: BuildConfig,
    funnel: Funnel,
    statistics: dict[str, TextStatistics],
    figures: dict[str, Any],
    hashes: dict[str, str],
) -> dict[str, Any]:
    """Return all numbers of a passport.

    Args:
        config: of the corpus.
        funnel: of all steps.
        statistics: of the cleaned documents by source.
        figures: `shares`, `counted_by`, `tokens` of each split, `content_sha256` of each source, duplicates' counts.
        hashes: sha256 of each file of the corpus.
    """
    shares = {share["source"]: share for share in figures["shares"]}
    sources = {}
    registers = Counter[str]()
    for name, source in config.source_configs.items():
        own = statistics.get(name, TextStatistics())
        steps = {step: count.to_json() for step, count in funnel.counts.get(name, {}).items()}
        registers[source.register or "not said"] += own.tokens
        sources[name] = {
            "license": source.license, "url": source.url, "revision": source.revision, "register": source.register,
            "inputs": source.inputs, "steps": steps, "statistics": own.to_json(), "share": shares.get(name),
            "content_sha256": figures["content_sha256"].get(name, ""),
        }  # fmt: skip
    whole = TextStatistics()
    for own in statistics.values():
        whole.merge(own)
    for kind in whole.examples:  # of several sources rather than of the first one
        found = itertools.zip_longest(*(own.examples.get(kind, []) for own in statistics.values()))
        whole.examples[kind] = [example for row in found for example in row if example][: len(whole.examples[kind])]
    licence = asdict(summarise_licences(whole.licenses))
    licence["warnings"] += licence_notes(funnel)
    left_out = [name for name in ("toxicity", "decontamination") if getattr(config, name) is False]
    return {"created": utc_now(), "sources": sources, "whole": whole.to_json(), "registers": dict(registers),
            "figures": figures, "files": hashes, "licence": licence, "left_out": left_out,
            "contamination": _contamination(config, funnel), "warnings": _evaluation_warnings(funnel)}  # fmt: skip


def _contamination(config: BuildConfig, funnel: Funnel) -> dict[str, Any] | None:
    """Return how many `passages` of each evaluation set were cut or dropped, and `documents` that went as a whole.

    None where the step was left out: nobody looked.
    """
    if config.decontamination is False:
        return None
    counts = [steps["decontamination"] for steps in funnel.counts.values() if "decontamination" in steps]
    passages = {name: sum(count.changes.get(f"passages_of_{name}", 0) for count in counts)
                for name in map(str, config.decontamination["sets"])}  # fmt: skip
    return {"passages": passages, "documents": sum(sum(count.reasons.values()) for count in counts)}


def _evaluation_warnings(funnel: Funnel) -> list[str]:
    """Return a warning of each source that seems to be evaluation data itself, in a form that no hash recognises."""
    found = {name: (steps["decontamination"].reasons["contamination"], steps["decontamination"].documents_in)
             for name, steps in funnel.counts.items() if "decontamination" in steps}  # fmt: skip
    return [
        f"sources.{name}: {dropped:,} of the {came:,} documents that came to decontamination are little more than "
        "items of evaluation sets. If it is evaluation data, leave it out."
        for name, (dropped, came) in found.items()
        if dropped > _MOST_CONTAMINATED * came
    ]


def licence_notes(funnel: Funnel) -> list[str]:
    """Return what is to be said of documents whose metadata name another licence than their source, with counts."""
    found = Counter[tuple[str, str]]()
    for source, steps in funnel.counts.items():
        for note, number in steps["read"].changes.items():
            if note.startswith((NOT_KNOWN, OF_ITS_OWN)):
                found[source, note] += number
    notes = []
    for (source, note), number in found.most_common(_MOST_LICENCE_NOTES):
        if note.startswith(NOT_KNOWN):
            notes.append(f"{source}: {number:,} documents read name a licence that is not known here, "
                         f"“{note.removeprefix(NOT_KNOWN)}”. They go under the licence of the source.")  # fmt: skip
        else:
            notes.append(f"{source}: {number:,} documents read have a licence of their own, "
                         f"{note.removeprefix(OF_ITS_OWN)}, and keep it.")  # fmt: skip
    if len(found) > _MOST_LICENCE_NOTES:
        notes.append(f"{len(found) - _MOST_LICENCE_NOTES:,} more licences that documents name and sources do not.")
    return notes


def write_passport(folder: Path, passport: dict[str, Any], funnel: Funnel) -> None:
    """Write `passport.json`, `passport.md` and `passport.html` into the folder of a corpus."""
    write_json(folder / PASSPORT_NAME, passport)
    (folder / "passport.md").write_text(render_markdown(passport), encoding="utf-8")
    (folder / "passport.html").write_text(render_page(passport, funnel), encoding="utf-8")


_SOURCE_HEAD = ("source", "register", "licence", "documents read", "kept", "MB read", "MB kept", "words",
                "unique tokens", "epochs", "tokens", "BR / PT / unknown %")  # fmt: skip
_REASON_HEAD = ("source", "step", "reason", "documents", "of those that came")
_WHO = ("men", "women", "not said")


def _source_rows(passport: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, source in passport["sources"].items():
        read, own, share = source["steps"].get("read", {}), source["statistics"], source["share"] or {}
        varieties = [100 * own["varieties"].get(key, 0) / max(1, own["documents"]) for key in ("br", "pt", "unknown")]
        rows.append([
            name, source["register"], source["license"], f"{read.get('documents_in', 0):,}", f"{own['documents']:,}",
            f"{read.get('bytes_in', 0) / 1e6:,.1f}", f"{own['bytes'] / 1e6:,.1f}", short(own["words"]),
            short(own["tokens"]), f"{share.get('epochs', 0):.2f}", short(share.get("tokens", 0)),
            " / ".join(f"{value:.0f}" for value in varieties),
        ])  # fmt: skip
    return rows


def _origin_rows(passport: dict[str, Any]) -> list[list[str]]:
    return [
        [name, source["url"] or "not said", source["revision"] or "not said", ", ".join(source["inputs"]),
         source["content_sha256"]]
        for name, source in passport["sources"].items()
    ]  # fmt: skip


def _token_summary(passport: dict[str, Any]) -> str:
    """Return how many tokens there are once, and how many with repetition, and how they were counted."""
    figures, unique = passport["figures"], passport["whole"]["tokens"]
    held_out = figures["tokens"]["validation"]
    split = f", {short(held_out)} more are held out" if held_out else ""
    return (f"{short(unique)} unique tokens; {short(figures['tokens']['train'])} tokens to train on, repetition "
            f"included{split} ({figures['counted_by']})")  # fmt: skip


def _reason_rows(passport: dict[str, Any]) -> list[list[str]]:
    return [
        [name, step, reason, f"{number:,}", f"{100 * number / max(1, count['documents_in']):.1f} %"]
        for name, source in passport["sources"].items()
        for step, count in source["steps"].items()
        for reason, number in sorted(count["reasons"].items(), key=lambda item: -item[1])
    ]


def _change_rows(passport: dict[str, Any]) -> list[list[str]]:
    """Return what steps changed in texts that stayed: masked numbers, removed lines, passages of evaluation sets."""
    return [
        [name, step, kind, f"{number:,}"]
        for name, source in passport["sources"].items()
        for step, count in source["steps"].items()
        for kind, number in sorted(count["changes"].items(), key=lambda item: -item[1])
        if step not in ("read", "variety")
    ]


def _group_rows(passport: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    whole, asked = passport["whole"], "toxicity" not in passport["left_out"]
    head = ["group", "kind", "mentions", "documents", *(["dropped as toxic, of those that came"] if asked else []),
            "examples"]  # fmt: skip
    rows = []
    for group, number in sorted(whole["groups"].items(), key=lambda item: -item[1]):
        kept, toxic = whole["group_documents"].get(group, 0), whole["group_toxic"].get(group, 0)
        share = [f"{toxic:,} ({100 * toxic / max(1, kept + toxic):.2f} %)"] if asked else []
        rows.append([group, "people" if group in PEOPLES else "religion", f"{number:,}", f"{kept:,}", *share,
                     " … ".join(whole["examples"].get(group, []))])  # fmt: skip
    return head, rows


def _profession_rows(whole: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, counts in sorted(whole["professions"].items(), key=lambda item: -sum(item[1].values())):
        said = counts.get("men", 0) + counts.get("women", 0)
        share = f"{100 * counts.get('women', 0) / said:.1f} %" if said else "—"
        examples = [example for who in ("women", "men") for example in whole["examples"].get(f"{name}, {who}", [])[:1]]
        rows.append([name, *(f"{counts.get(who, 0):,}" for who in _WHO), share, " … ".join(examples)])
    return rows


def _year_rows(whole: dict[str, Any]) -> list[list[str]]:
    return [[f"{decade}s", f"{number:,}"] for decade, number in sorted(whole["years"].items())]


def _balance_rows(passport: dict[str, Any]) -> list[list[str]]:
    """Return registers and topics with their tokens and shares of the whole."""
    total = max(1, passport["whole"]["tokens"])
    return [
        [kind, name, short(tokens), f"{100 * tokens / total:.1f} %"]
        for kind, counts in (("register", passport["registers"]), ("topic", passport["whole"]["topics"]))
        for name, tokens in sorted(counts.items(), key=lambda item: -item[1])
    ]


def _tables(passport: dict[str, Any]) -> dict[str, Any]:
    """Return what the page and the Markdown show alike."""
    whole, licence = passport["whole"], passport["licence"]
    group_head, group_rows = _group_rows(passport)
    dated = sum(whole["years"].values())
    return {
        "summary": f"{whole['documents']:,} documents, {whole['words']:,} words, {_token_summary(passport)}. Made "
                   f"{passport['created']}.",
        "warnings": [*licence["warnings"], *passport.get("warnings", ()),
                     *(f"Step left out: {name}." for name in passport["left_out"])],
        "contamination": say_contamination(passport["contamination"]) if "contamination" in passport else "",
        "dated": f"The year of {dated:,} of {whole['documents']:,} documents is known, from their metadata or the "
                 "heading of an act.",
        "source_head": _SOURCE_HEAD, "source_rows": _source_rows(passport),
        "origin_head": ("source", "from", "revision", "read", "sha256 of its texts"),
        "origin_rows": _origin_rows(passport),
        "balance_head": ("", "of", "tokens", "share"), "balance_rows": _balance_rows(passport),
        "year_head": ("years", "documents"), "year_rows": _year_rows(whole),
        "reason_head": _REASON_HEAD, "reason_rows": _reason_rows(passport),
        "change_head": ("source", "step", "what", "number"), "change_rows": _change_rows(passport),
        "profession_head": ("profession", *_WHO, "women, of those said", "examples"),
        "profession_rows": _profession_rows(whole),
        "group_head": group_head, "group_rows": group_rows,
    }  # fmt: skip


_TOPIC_NOTE = ("Topics are those of SIB-200, by a linear model trained on its sentences (CC-BY-SA-4.0), which is right "
               "for 90 of 100 sentences on which it speaks; most documents are about none of the seven, or about "
               "several: unknown. Tokens are of the documents that are kept, each once.")  # fmt: skip
_PEOPLE_NOTE = ("Counts of words, not a verdict: forms of words, and articles, pronouns and titles before them, in the "
                "documents that are kept.")  # fmt: skip
_MARKDOWN = (
    ("Sources", "source", ""), ("Where they are from", "origin", ""), ("Domain balance", "balance", _TOPIC_NOTE),
    ("Years", "year", "dated"),
    ("What was dropped", "reason", ""), ("What was changed", "change", ""),
    ("Whom the texts name", "profession", _PEOPLE_NOTE), ("Groups", "group", ""),
)  # fmt: skip


def render_markdown(passport: dict[str, Any]) -> str:
    """Return the tables of a passport."""
    licence, shown = passport["licence"], _tables(passport)
    terms = ", ".join(licence["terms"]) or "no terms"
    lines = ["# Passport of a corpus", "", shown["summary"], "",
             f"Licence as a whole: **{licence['licence']}** ({terms}), for {licence['reason']}.", "",
             shown["contamination"], "",
             *(f"- **{warning}**" for warning in shown["warnings"])]  # fmt: skip
    for title, name, note in _MARKDOWN:
        lines += ["", f"## {title}", ""] + ([shown.get(note, note), ""] if note else [])
        lines += markdown_table(shown[f"{name}_head"], shown[f"{name}_rows"]) if shown[f"{name}_rows"] else ["None."]
    return "\n".join(lines) + "\n"


def _stacks(rows: Mapping[str, Mapping[str, float]], order: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a plot of stacked bars shows: names with colours, and for each row the shares of its sum."""
    names = [*order, *sorted({name for row in rows.values() for name in row} - set(order))]
    names = sorted(names, key=lambda name: name in _UNSAID)  # what is not known stands at the end
    colours = {name: _GREY if name in _UNSAID else _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    bars = []
    for label, row in rows.items():
        total, at, parts = sum(row.values()), 0.0, []
        for name in names:
            share = 100 * row.get(name, 0) / total if total else 0.0
            if share:
                parts.append({"name": name, "at": round(at, 2), "share": round(share, 2), "colour": colours[name]})
            at += share
        bars.append({"label": label, "parts": parts})
    return {"colours": colours, "bars": bars}


def _columns(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    most = max(counts.values(), default=0)
    return [{"label": label, "number": number, "share": 100 * number / most} for label, number in counts.items()]


def _plots(passport: dict[str, Any]) -> dict[str, Any]:
    sources = {name: source["statistics"] for name, source in passport["sources"].items()}
    sources = {name: own for name, own in sources.items() if own["documents"]}
    whole = passport["whole"]
    decades = {int(decade): number for decade, number in whole["years"].items()}
    span = range(min(decades, default=0), max(decades, default=-10) + 10, 10)
    return {
        "varieties": _stacks({name: own["varieties"] for name, own in sources.items()}, ("br", "pt")),
        "topics": _stacks({"all": whole["topics"], **{name: own["topics"] for name, own in sources.items()}}),
        "balance": _stacks({"tokens by register": passport["registers"]}),
        "lengths": _columns({f"{2 ** int(power):,}": whole["lengths"].get(power, 0)
                             for power in sorted(whole["lengths"], key=int)}),
        "years": _columns({f"{decade}s": decades.get(decade, 0) for decade in span}),
    }  # fmt: skip


def render_page(passport: dict[str, Any], funnel: Funnel) -> str:
    """Return the page of a passport: tables, plots, and samples of what was kept and dropped."""
    from jinja2 import Environment

    template = Path(__file__).with_name("passport.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(template).render(
        passport=passport, funnel=funnel, samples_shown=_SAMPLES_SHOWN, plots=_plots(passport), topic_note=_TOPIC_NOTE,
        people_note=_PEOPLE_NOTE, **_tables(passport),
    )  # fmt: skip
    return page


def read_statistics(folder: Path) -> dict[str, TextStatistics]:
    """Return the statistics of all shards of a phase, by source."""
    found: dict[str, TextStatistics] = {}
    for path in sorted(folder.glob("[0-9]*.statistics")):
        for name, values in json.loads(path.read_text(encoding="utf-8")).items():
            found.setdefault(name, TextStatistics()).merge(TextStatistics.from_json(values))
    return found


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
