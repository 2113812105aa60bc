"""The passport of a corpus: where every byte came from, what is in it, what was dropped, and on which terms it stands.

`passport.json` has all numbers, `passport.md` the tables, `passport.html` both with bars and samples; the page needs no
network.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..corpus.config import BuildConfig
from ..corpus.funnel import Funnel
from ..planning.table import short
from ..stage_folder import utc_now, write_json
from .text_statistics import TextStatistics

# What licences ask, by what their names hold. Source: the licences' own texts.
_TERMS = (
    ("non-commercial", ("-nc", "noncommercial")),
    ("no adaptations", ("-nd",)),
    ("share alike", ("-sa", "gpl", "odbl")),
    ("attribution", ("cc-by", "apache", "mit", "bsd", "odc-by", "gpl", "odbl", "psf")),
)
_NO_TERMS = ("public-domain", "cc0", "pddl", "unlicense")
_SAMPLES_SHOWN = 12


@dataclass(frozen=True)
class LicenceSummary:
    """On which terms the corpus as a whole may be used.

    Attributes:
        licence: the strictest of its documents' licences that covers the whole, or `other`.
        terms: what it asks.
        warnings: what somebody who publishes the corpus must know.
    """

    licence: str
    terms: list[str]
    warnings: list[str]


def terms_of(licence: str) -> list[str] | None:
    """Return what a licence asks, or None where that is not known."""
    name = licence.lower()
    if any(known in name for known in _NO_TERMS):
        return []
    found = [term for term, marks in _TERMS if any(mark in name for mark in marks)]
    return found or None


def summarise_licences(licences: Iterable[str]) -> LicenceSummary:
    """Return on which terms a collection of documents with these licences may be used as a whole."""
    names = sorted(set(licences))
    known = {name: terms_of(name) for name in names}
    terms = [term for term, _ in _TERMS if any(term in (found or []) for found in known.values())]
    warnings = [f"{name or 'no licence'}: its terms are not known here. Read them before you publish."
                for name, found in known.items() if found is None]  # fmt: skip
    for term in ("non-commercial", "no adaptations"):
        own = [name for name, found in known.items() if term in (found or [])]
        if own:
            warnings.append(
                f"{term}: {', '.join(own)}. The whole corpus, and by many readings its models, are bound by it."
            )
    alike = [name for name, found in known.items() if "share alike" in (found or [])]
    families = {
        name.replace("cc-by-nc-sa", "nc-sa").split("-")[0] if "gpl" in name else name.rsplit("-", 1)[0]
        for name in alike
    }
    if len(families) > 1:
        warnings.append(
            f"share alike: {', '.join(alike)} each ask for their own terms and cannot be merged into one work."
        )
    strict = [name for name in names if known[name] and terms and terms[0] in (known[name] or [])]
    licence = "other" if warnings and any("not known" in text or "cannot" in text for text in warnings) else (
        strict[-1] if strict else names[-1] if names else "other")  # fmt: skip
    return LicenceSummary(licence, terms, warnings)


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
        figures: `shares`, `counted_by`, duplicates' counts.
        hashes: sha256 of each file of the corpus.
    """
    shares = {share["source"]: share for share in figures["shares"]}
    licences = [licence for own in statistics.values() for licence in own.licenses]
    sources = {}
    for name, source in config.source_configs.items():
        own = statistics.get(name, TextStatistics())
        steps = {step: count.to_json() for step, count in funnel.counts.get(name, {}).items()}
        sources[name] = {
            "license": source.license, "url": source.url, "revision": source.revision, "register": source.register,
            "inputs": source.inputs, "steps": steps, "statistics": own.to_json(), "share": shares.get(name),
        }  # fmt: skip
    whole = TextStatistics()
    for own in statistics.values():
        whole.merge(own)
    left_out = [name for name in ("toxicity", "decontamination") if getattr(config, name) is False]
    return {"created": utc_now(), "sources": sources, "whole": whole.to_json(), "figures": figures, "files": hashes,
            "licence": asdict(summarise_licences(licences)), "left_out": left_out}  # fmt: skip


def write_passport(folder: Path, passport: dict[str, Any], funnel: Funnel) -> None:
    """Write `passport.json`, `passport.md` and `passport.html` into the folder of a corpus."""
    write_json(folder / "passport.json", passport)
    (folder / "passport.md").write_text(render_markdown(passport), encoding="utf-8")
    (folder / "passport.html").write_text(render_page(passport, funnel), encoding="utf-8")


_SOURCE_HEAD = ("source", "register", "licence", "documents read", "kept", "MB", "unique tokens", "epochs", "tokens",
                "BR / PT / unknown %")  # fmt: skip
_REASON_HEAD = ("source", "step", "reason", "documents", "of those that came")
_WHO = ("men", "women", "not said")


def _source_rows(passport: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, source in passport["sources"].items():
        read, own, share = source["steps"].get("read", {}), source["statistics"], source["share"] or {}
        varieties = [100 * own["varieties"].get(key, 0) / max(1, own["documents"]) for key in ("br", "pt", "unknown")]
        rows.append([
            name, source["register"], source["license"], f"{read.get('documents_in', 0):,}", f"{own['documents']:,}",
            f"{own['bytes'] / 1e6:,.1f}", short(own["tokens"]), f"{share.get('epochs', 0):.2f}",
            short(share.get("tokens", 0)), " / ".join(f"{value:.0f}" for value in varieties),
        ])  # fmt: skip
    return rows


def _reason_rows(passport: dict[str, Any]) -> list[list[str]]:
    return [
        [name, step, reason, f"{number:,}", f"{100 * number / max(1, count['documents_in']):.1f} %"]
        for name, source in passport["sources"].items()
        for step, count in source["steps"].items()
        for reason, number in sorted(count["reasons"].items(), key=lambda item: -item[1])
    ]


def _tables(passport: dict[str, Any]) -> dict[str, Any]:
    """Return what the page and the Markdown show alike."""
    whole, licence = passport["whole"], passport["licence"]
    groups = sorted(whole["groups"].items(), key=lambda item: -item[1])
    return {
        "summary": f"{whole['documents']:,} documents, {whole['words']:,} words, {short(whole['tokens'])} tokens "
                   f"({passport['figures']['counted_by']}). Made {passport['created']}.",
        "warnings": [*licence["warnings"], *(f"Step left out: {name}." for name in passport["left_out"])],
        "source_head": _SOURCE_HEAD, "source_rows": _source_rows(passport),
        "reason_head": _REASON_HEAD, "reason_rows": _reason_rows(passport),
        "profession_head": ("profession", *_WHO),
        "profession_rows": [[name, *(f"{counts.get(who, 0):,}" for who in _WHO)]
                            for name, counts in whole["professions"].items()],
        "group_head": ("group", "mentions", "examples"),
        "group_rows": [[group, f"{number:,}", " … ".join(whole["examples"].get(group, []))]
                       for group, number in groups],
    }  # fmt: skip


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def render_markdown(passport: dict[str, Any]) -> str:
    """Return the tables of a passport."""
    licence, shown = passport["licence"], _tables(passport)
    terms = ", ".join(licence["terms"]) or "no terms"
    lines = ["# Passport of a corpus", "", shown["summary"], "",
             f"Licence as a whole: **{licence['licence']}** ({terms}).", "",
             *(f"- **{warning}**" for warning in shown["warnings"])]  # fmt: skip
    for title, name in (("Sources", "source"), ("What was dropped", "reason"), ("Whom the texts name", "profession"),
                        ("Groups", "group")):  # fmt: skip
        lines += ["", f"## {title}", "", *_markdown_table(shown[f"{name}_head"], shown[f"{name}_rows"])]
    return "\n".join(lines) + "\n"


def render_page(passport: dict[str, Any], funnel: Funnel) -> str:
    """Return the page of a passport: tables, bars, and samples of what was kept and dropped."""
    from jinja2 import Environment

    template = Path(__file__).with_name("passport.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(template).render(
        passport=passport, funnel=funnel, samples_shown=_SAMPLES_SHOWN, **_tables(passport)
    )
    return page


def read_statistics(folder: Path) -> dict[str, TextStatistics]:
    """Return the statistics of all shards of a phase, by source."""
    found: dict[str, TextStatistics] = {}
    for path in sorted(folder.glob("[0-9]*.statistics")):
        for name, values in json.loads(path.read_text(encoding="utf-8")).items():
            found.setdefault(name, TextStatistics()).merge(TextStatistics.from_json(values))
    return found
