"""Provenance of a corpus: the licences of its documents and of the whole, and which corpora files belong to.

A collection leaves every document its own licence. Whoever passes it on as one work, changed and joined, needs terms
that meet those of all documents: `summarise_licences` names them with the reason, or says that there are none. This is
a reading of the licences' texts and no legal advice.

Who packs, evaluates or publishes finds the corpus that files belong to by the passport that lies beside them:
`corpora_of`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import InputError, hub_license
from ..stage_folder import find_manifest, parse_record, sha256_file

PUBLIC_DOMAIN = "public-domain"
# Notes on the licences of documents, which the funnel counts.
NOT_KNOWN, OF_ITS_OWN = "licence not known: ", "licence of its own: "
_NOTE_CHARACTERS = 120
_REMARK = re.compile(r"\s*\([^()]*\)$")  # behind a name: `CC-BY-SA-4.0 (by its editors)`
_TERMS = (
    ("non-commercial", ("-nc", "noncommercial")),
    ("no adaptations", ("-nd",)),
    ("share alike", ("-sa", "gpl", "odbl", "gfdl")),
    ("attribution", ("cc-by", "apache", "mit", "bsd", "odc-by", "gpl", "odbl", "psf", "gfdl", "isc", "etalab", "zlib")),
)
_NO_TERMS = ("public-domain", "cc0-1.0", "pddl", "unlicense", "wtfpl", "0bsd")
# Texts that say of a document that nobody's permission is needed; the source's licence holds what else there is to it.
_PUBLIC = re.compile(
    r"(?i)(?:public|official) ?-?(?:domain|acts?|records?)\b.*|dom[íi]nio p[úu]blico\b.*|atos oficiais\b.*"
)
# Share-alike licences whose works may be passed on under another one. Sources: CC BY-SA 3.0, 4 (b) (later versions);
# creativecommons.org/compatiblelicenses (GPL 3.0, from CC BY-SA 4.0); GPL 3.0 and AGPL 3.0, 13; LGPL 3.0, 2.
_PASSES_INTO = {
    "cc-by-sa-2.0": {"cc-by-sa-3.0"}, "cc-by-sa-2.5": {"cc-by-sa-3.0"}, "cc-by-sa-3.0": {"cc-by-sa-4.0"},
    "cc-by-sa-4.0": {"gpl-3.0"}, "cc-by-nc-sa-2.0": {"cc-by-nc-sa-3.0"}, "cc-by-nc-sa-3.0": {"cc-by-nc-sa-4.0"},
    "lgpl-3.0": {"gpl-3.0"}, "gpl-3.0": {"agpl-3.0"},
}  # fmt: skip
# Of licences that ask for attribution alone, the one that is given first meets the others with their notices.
_ATTRIBUTION_ORDER = ("cc-by-4.0", "cc-by-3.0", "cc-by-2.5", "cc-by-2.0", "odc-by", "apache-2.0", "bsd-3-clause", "mit")


@dataclass(frozen=True)
class LicenceSummary:
    """On which terms a corpus as a whole may be used.

    Attributes:
        licence: that the whole can be given under: a name of the Hub, `public-domain`, or `other` where there is none.
        reason: why.
        terms: what the documents' licences ask.
        warnings: what somebody who publishes the corpus must know.
        documents: number by licence.
    """

    licence: str
    reason: str
    terms: list[str]
    warnings: list[str]
    documents: dict[str, int] = field(default_factory=dict)


def document_licence(named: str, of_source: str) -> tuple[str, str]:
    """Return the licence of a document, and what is to be noted of it.

    Args:
        named: in the document's own metadata; empty if none is.
        of_source: the licence of the source.

    Returns:
        the licence, and a note to be counted: `licence of its own: …` where it is not the source's, `licence not known:
        …` where what the document names is none known here, so that the source's is taken, else an empty text.
    """
    named = named.strip()
    if not named or _PUBLIC.fullmatch(named):
        return of_source, ""
    known = hub_license(named) or hub_license(_REMARK.sub("", named))
    if known is None or known in ("other", "unknown"):
        return of_source, f"{NOT_KNOWN}{named[:_NOTE_CHARACTERS]}"
    return known, "" if known == of_source else f"{OF_ITS_OWN}{known}"


def terms_of(licence: str) -> list[str] | None:
    """Return what a licence asks, or None where that is not known.

    >>> terms_of("cc-by-nc-sa-4.0"), terms_of("cc0-1.0"), terms_of("my own")
    (['non-commercial', 'share alike', 'attribution'], [], None)
    """
    name = licence.lower()
    if name in _NO_TERMS:
        return []
    found = [term for term, marks in _TERMS if any(mark in name for mark in marks)]
    return found or None


def _reach(licence: str) -> set[str]:
    """Return the share-alike licences under which a work of this one may be passed on, itself included."""
    found, new = {licence}, [licence]
    while new:
        for other in _PASSES_INTO.get(new.pop(), set()) - found:
            found.add(other)
            new.append(other)
    return found


def summarise_licences(licences: Mapping[str, int] | Iterable[str]) -> LicenceSummary:
    """Return on which terms documents with these licences may be used as a whole.

    Args:
        licences: documents by licence, or the names alone.
    """
    documents = dict(licences) if isinstance(licences, Mapping) else dict.fromkeys(licences, 0)
    names = sorted(documents)
    terms_by_name = {name: terms_of(name) for name in names}

    def asking(term: str) -> list[str]:
        return [name for name, terms in terms_by_name.items() if term in (terms or [])]

    unknown = [name for name, terms in terms_by_name.items() if terms is None]
    no_sale, fixed, alike = asking("non-commercial"), asking("no adaptations"), asking("share alike")
    warnings = [
        f"{_named(name, documents)}: its terms are not known here. Read them before you publish." for name in unknown
    ]
    if no_sale:
        warnings.append(
            f"NON-COMMERCIAL: {_all(no_sale, documents)}. The whole corpus, and by many readings the models trained on "
            "it, may not be used commercially. Leave these documents out if that is too much."
        )
    if fixed:
        warnings.append(
            f"NO ADAPTATIONS: {_all(fixed, documents)}. Texts that were cleaned, cut or joined may not be passed on "
            "under it."
        )
    into = set.intersection(*(_reach(name) for name in alike)) if alike else set()
    clash = ""
    if alike and not into:
        clash = f"{', '.join(alike)} each want the whole under themselves, and none lets works pass into another"
    elif (
        alike
        and (barred := [name for name in no_sale if name not in alike])
        and not any("-nc" in name for name in into)
    ):
        clash = f"{', '.join(alike)} allow no further terms, and {', '.join(barred)} forbid commercial use"
    if clash:
        warnings.append(f"INCOMPATIBLE: {clash}. As one work this corpus cannot be passed on; as a collection every "
                        "document keeps its own licence.")  # fmt: skip
    terms = [term for term, _ in _TERMS if asking(term)]
    licence, reason = _result(names, unknown, fixed, clash, sorted(into, key=lambda name: (name not in alike, name)),
                              no_sale)  # fmt: skip
    return LicenceSummary(licence, reason, terms, warnings, documents)


def _result(
    names: list[str], unknown: list[str], fixed: list[str], clash: str, into: list[str], no_sale: list[str]
) -> tuple[str, str]:
    """Return the licence of the whole, and why it is that one."""
    if not names:
        return "other", "there is no document"
    if unknown:
        return "other", f"the terms of {', '.join(unknown)} are not known here"
    if fixed:
        return "other", f"{', '.join(fixed)} forbid adaptations"
    if clash:
        return "other", clash
    others = "the other licences ask for less: credit to their authors, and their notices, which the sources name"
    if into:
        return into[0], f"documents under share-alike terms oblige the whole to {into[0]}; {others}"
    if no_sale:
        return no_sale[-1], f"{no_sale[-1]} forbids commercial use of its documents, and so of the whole; {others}"
    credited = [name for name in names if terms_of(name)]
    if not credited:
        return PUBLIC_DOMAIN, "no document has terms"
    best = next((name for name in _ATTRIBUTION_ORDER if name in credited), credited[-1])
    return best, f"the documents' licences ask for credit to their authors, and {best} passes that on; {others}"


def _named(name: str, documents: Mapping[str, int]) -> str:
    number = documents[name]
    return f"{name or 'no licence'} ({number:,} documents)" if number else name or "no licence"


def _all(names: Iterable[str], documents: Mapping[str, int]) -> str:
    return ", ".join(_named(name, documents) for name in names)


PASSPORT_NAME = "passport.json"


def read_passport(folder: Path) -> dict[str, Any] | None:
    """Return the passport of a folder of `ttl corpus`, or None where it is no such folder."""
    path = folder / PASSPORT_NAME
    if not path.is_file() or (find_manifest(folder) or {}).get("stage") != "corpus":
        return None
    try:
        return parse_record(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}). `ttl corpus` writes it again.") from error


def describe_corpus(folder: Path, passport: dict[str, Any]) -> dict[str, Any]:
    """Return what those who use a corpus keep of its passport: its hash, the licence as a whole, and its sources."""
    kept = ("license", "url", "revision", "register")
    return {
        "name": folder.resolve().name,
        "passport_sha256": sha256_file(folder / PASSPORT_NAME),
        "created": passport["created"],
        "documents": passport["whole"]["documents"],
        "licence": passport["licence"]["licence"],
        "reason": passport["licence"]["reason"],
        "warnings": passport["licence"]["warnings"],
        **({"contamination": passport["contamination"]} if "contamination" in passport else {}),
        "sources": {
            name: {key: source[key] for key in kept}
            for name, source in passport["sources"].items()
            if source["statistics"]["documents"]
        },
    }


def say_contamination(contamination: dict[str, Any] | None) -> str:
    """Return what a passport says of evaluation sets, as a sentence."""
    if contamination is None:
        return "Nobody looked for evaluation sets in it: no set was named under decontamination."
    found = ", ".join(f"{name} {number:,}" for name, number in contamination["passages"].items())
    return (f"Passages of evaluation sets that were removed: {found}. Documents that went as a whole for one: "
            f"{contamination['documents']:,}.")  # fmt: skip


def contamination_of(model: Path) -> list[dict[str, Any]]:
    """Return what is known of evaluation sets in the text that a model was trained on.

    Args:
        model: folder of a run, or of a checkpoint in one.

    Returns:
        `corpus` and `contamination`, as passports say it (None: nobody looked), of each corpus that says it.
    """
    manifest = find_manifest(model) or find_manifest(model.parent) or {}
    data = manifest.get("data")
    corpora = data.get("corpora") if isinstance(data, dict) else None
    return [{"corpus": corpus["name"], "contamination": corpus["contamination"]}
            for corpus in corpora or [] if isinstance(corpus, dict) and "contamination" in corpus]  # fmt: skip


def corpora_of(files: Iterable[Path], hashes: Collection[str]) -> list[dict[str, Any]]:
    """Return the corpora that some files belong to, each once.

    A file belongs to a corpus whose passport names it with the hash that it has now; one that was changed does not.

    Args:
        files: that are read, such as `corpus/train/00000.parquet`.
        hashes: sha256 of all of them.
    """
    found: dict[Path, dict[str, Any]] = {}
    passports: dict[Path, dict[str, Any] | None] = {}
    for file in files:
        folder = file.resolve().parent.parent
        if folder not in passports:
            passports[folder] = read_passport(folder)
        passport = passports[folder]
        if passport is not None and passport["files"].get(str(file.resolve().relative_to(folder))) in hashes:
            found.setdefault(folder, describe_corpus(folder, passport))
    return list(found.values())
