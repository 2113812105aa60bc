"""Licences of sources: those stated, those that the user adds, what the Hub calls them, and what they restrict."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...checks import ensure, near_name
from ...hub_client import hub_license
from ..escaping import one_line

LICENSE_NAME = "LICENSE.md"
UNKNOWN = "unknown"
_RESTRICTIONS = {
    "no_derivatives": re.compile(r"\bnd\b|no-?\s?deriv", re.IGNORECASE),
    "non_commercial": re.compile(r"\bnc\b|non-?\s?commercial", re.IGNORECASE),
    "share_alike": re.compile(r"\bsa\b|share-?\s?alike|\b[al]?gpl\b|\bgfdl\b|\bodbl\b", re.IGNORECASE),
}


@dataclass
class Licenses:
    """The licence of every document: its own, or what the user said for its source, or for all.

    Attributes:
        default: for documents that state none; empty when the user gave none.
        of_source: the same, by source.
        missing: documents without any licence, by source; counted while they are read.
        used: the sources of `of_source` that had documents without a licence of their own.
    """

    default: str = ""
    of_source: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def of(self, source: str, stated: str, rows: int = 1) -> str:
        """Return the licence of a row (or of several), or an empty string, which is counted."""
        if stated:
            return stated
        if source in self.of_source:
            self.used.add(source)
            return self.of_source[source]
        if not self.default:
            self.missing[source] = self.missing.get(source, 0) + rows
        return self.default

    def check(self, sources: Iterable[str]) -> None:
        """Refuse documents without a licence, and licences that no document needed.

        Raises:
            InputError: there are some.
        """
        worst = sorted(self.missing.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{one_line(name)} ({number:,})" for name, number in worst[:5])
        ensure(
            not worst,
            f"license: {sum(self.missing.values()):,} rows of {len(worst)} sources state no licence: {shown}. What has "
            "no licence may not be published by accident: give --license LICENCE for all of them, or "
            "--license SOURCE=LICENCE for each; --license unknown says openly that it is not known.",
        )
        for name in sorted(set(self.of_source) - self.used):
            ensure(
                name in set(sources),
                f"license={name}={self.of_source[name]}: no source is called {name}.{near_name(name, sources)}",
            )
            ensure(
                False,
                f"license={name}={self.of_source[name]}: every row of {name} states its licence already. Leave it out.",
            )


def parse_licenses(values: list[str]) -> Licenses:
    """Return the licences that a user gave as `LICENCE` (at most once) and `SOURCE=LICENCE`.

    Raises:
        InputError: an empty name, or two licences for the same rows.
    """
    licenses = Licenses()
    for value in values:
        source, equals, name = value.rpartition("=")
        source, name = source.strip(), name.strip()
        ensure(name and (source or not equals), f"license={value}: must be LICENCE or SOURCE=LICENCE.")
        known = licenses.of_source.get(source) if source else licenses.default
        ensure(not known, f"license={value}: a second licence for the same rows, after {known}. Keep one.")
        if source:
            licenses.of_source[source] = name
        else:
            licenses.default = name
    return licenses


def license_metadata(names: Iterable[str]) -> dict[str, Any]:
    """Return the keys about licences for a card's front matter: one licence, or `other` with a list of them."""
    found = sorted({one_line(name).strip() for name in names})
    identifiers = {hub_license(name) or name for name in found}
    if len(identifiers) == 1 and (identifier := hub_license(found[0])):
        return {"license": identifier}
    only = re.sub(r"[^a-z0-9.]+", "-", found[0].lower()).strip("-.") if len(identifiers) == 1 else ""
    return {
        "license": "other",
        "license_name": only or "per-source",
        "license_link": LICENSE_NAME,
        "license_details": ", ".join(found),
    }


def restrictions(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the licences that forbid changed copies or commercial use or bind what is made of them; and `unknown`."""
    found = sorted(set(names))
    kinds = {kind: [name for name in found if pattern.search(name)] for kind, pattern in _RESTRICTIONS.items()}
    return {**kinds, UNKNOWN: [name for name in found if name.lower() == UNKNOWN]}
