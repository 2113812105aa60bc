"""What each step did with the documents of a sample: dropped by which rule, how near to which limit, what was cut out.

The tasks of the corpus stage note it for `ttl corpus --sample`; sample_page.py shows it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..cleaning import Drop
from ..cleaning.page_text import BoilerplateConfig, find_boilerplate
from ..cleaning.personal_data import PersonalDataConfig, find_personal_data
from ..cleaning.quality import RuleValue, check_all, closeness, measure_all

_HEAD_CHARACTERS, _AROUND, _MOST_MARKS, _ORIGINAL_CHARACTERS = 800, 80, 6, 300
_GAP = "gap"  # kind of the part that stands for what is not shown


@dataclass(frozen=True)
class Mark:
    """A place of a text where a step cut something out.

    Attributes:
        start: of what stands there now, such as a placeholder.
        end: of it; the same as `start` where nothing stands.
        kind: what it was: `boilerplate: menus`, `personal data: cpf`, `contamination: enem`.
        original: what stood there; empty if it is still there.
    """

    start: int
    end: int
    kind: str
    original: str


@dataclass
class Look:
    """A document of a sample, and what became of it.

    Attributes:
        source: of the corpus.
        place: `file:row`.
        url: of the document, if known.
        text: as the last step that it reached left it.
        step: that dropped it; empty for a document that is kept.
        reason: the rule.
        value: that the rule measured.
        limit: of the rule; None where it has none.
        also: other rules of quality that would drop it.
        measures: of the rules of quality and of the language, closest to their limits first.
        marks: what was cut out.
        changes: counts of what steps changed, by step.
        note: more on the drop, such as which document it repeats.
    """

    source: str
    place: str
    url: str
    text: str = ""
    step: str = ""
    reason: str = ""
    value: float = 0.0
    limit: float | None = None
    also: list[str] = field(default_factory=list)
    measures: list[RuleValue] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    changes: dict[str, dict[str, int]] = field(default_factory=dict)
    note: str = ""

    def drop(self, step: str, drop: Drop) -> None:
        """Note by which rule the document is dropped."""
        self.step, self.reason, self.value, self.limit = step, drop.reason, float(drop.value), float(drop.limit)

    @property
    def closeness(self) -> float:
        """Return how close the document comes to a limit: of a dropped one, how far it lies beyond that of its rule."""
        own = [measure.closeness for measure in self.measures if not self.step or measure.reason == self.reason]
        return max(own, default=0.0)


class Tracer:
    """Notes what the steps of a chain do with one document after the other."""

    def __init__(self) -> None:
        """Start with no document."""
        self.looks: list[Look] = []

    def begin(self, source: str, place: str, url: str, text: str = "") -> Look:
        """Start the next document."""
        self.looks.append(Look(source, place, url, text))
        return self.looks[-1]

    def note(self, step: Any, before: str, draft: Any, drop: Drop | None, changes: dict[str, int]) -> None:
        """Note what a step did with the document.

        Args:
            step: of the chain, with `name` and `config`.
            before: the text that came to it.
            draft: the document after it.
            drop: why the step drops it, or None.
            changes: the step's counts.
        """
        look = self.looks[-1]
        look.text = draft.text or before
        if changes:
            look.changes[step.name] = dict(changes)
        if step.name == "boilerplate":
            look.marks = boilerplate_marks(before, draft.text, step.config)
        elif step.name == "personal_data":
            look.marks = personal_data_marks(before, look.marks, step.config)
        elif step.name == "language":
            score, limit = draft.notes["language_score"], step.config.min_score
            look.measures.append(RuleValue("language score", score, limit, closeness(score, limit, "least share")))
        elif step.name == "quality" and draft.text.strip():
            look.measures += measure_all(draft.text, step.config)
            look.measures.sort(key=lambda measure: -measure.closeness)
            look.also = [other.reason for other in check_all(draft.text, step.config) if other != drop]
        if drop is not None:
            look.drop(step.name, drop)

    def write(self, path: Path) -> None:
        """Write the documents as JSON."""
        path.write_text(json.dumps([asdict(look) for look in self.looks], ensure_ascii=False), encoding="utf-8")


def read_looks(path: Path) -> list[Look]:
    """Return the documents that a tracer wrote."""
    looks = [Look(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
    for look in looks:
        look.measures = [RuleValue(**values) for values in look.measures]  # type: ignore[arg-type]
        look.marks = [Mark(**values) for values in look.marks]  # type: ignore[arg-type]
    return looks


def boilerplate_marks(before: str, after: str, config: BoilerplateConfig) -> list[Mark]:
    """Return where lines were removed as boilerplate, in the text after it; neighbours of one kind are one mark."""
    lines, kinds, _ = find_boilerplate(before, config)
    if not after.strip():
        return [Mark(0, len(before), "boilerplate: all of it", "")]
    marks: list[Mark] = []
    place = 0
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped:
            continue
        if number not in kinds:
            place = max(place, after.find(stripped, place) + len(stripped))
            continue
        kind, last = f"boilerplate: {kinds[number]}", marks[-1] if marks else None
        if last and last.start == place and last.kind == kind:
            marks[-1] = Mark(place, place, kind, f"{last.original}\n{stripped}")
        else:
            marks.append(Mark(place, place, kind, stripped))
    return marks


def personal_data_marks(before: str, marks: Sequence[Mark], config: PersonalDataConfig) -> list[Mark]:
    """Return the marks of a text whose personal data is masked now: the old ones at their new places, and the masks."""
    old, found, moved = sorted(marks, key=lambda mark: mark.start), [], 0
    for start, end, kind in find_personal_data(before, config):
        while old and old[0].start <= start:
            mark = old.pop(0)
            found.append(Mark(mark.start + moved, mark.end + moved, mark.kind, mark.original))
        placeholder = getattr(config, kind)
        found.append(Mark(start + moved, start + moved + len(placeholder), f"personal data: {kind}", before[start:end]))
        moved += len(placeholder) - (end - start)
    return found + [Mark(mark.start + moved, mark.end + moved, mark.kind, mark.original) for mark in old]


def excerpt(text: str, marks: Sequence[Mark]) -> list[tuple[str, str, str]]:
    """Return what is shown of a text: its head and what stands around the first marks.

    Args:
        text: of a document.
        marks: in it, none over another.

    Returns:
        parts (kind, text, original): kind is empty for plain text, `gap` where something is left out, else a mark's.
    """
    windows = [(0, _HEAD_CHARACTERS)]
    for mark in sorted(marks, key=lambda mark: mark.start)[:_MOST_MARKS]:
        start, end = max(0, mark.start - _AROUND), mark.end + _AROUND
        if start <= windows[-1][1]:
            windows[-1] = (windows[-1][0], max(end, windows[-1][1]))
        else:
            windows.append((start, end))
    parts: list[tuple[str, str, str]] = []
    for start, end in windows:
        if start:
            parts.append((_GAP, "", ""))
        place = start
        for mark in (mark for mark in marks if start <= mark.start <= end):
            parts += [
                ("", text[place : mark.start], ""),
                (mark.kind, text[mark.start : mark.end], _lined(mark, _short(mark.original))),
            ]
            place = max(place, mark.end)
        parts.append(("", text[place:end], ""))
    if windows[-1][1] < len(text):
        parts.append((_GAP, "", ""))
    return [part for part in parts if part != ("", "", "")]


def _lined(mark: Mark, original: str) -> str:
    """Return what a mark shows of what was cut out: lines that went stand in lines of their own."""
    if not original or not mark.kind.startswith("boilerplate"):
        return original
    return f"\n{original}" if mark.start else f"{original}\n"


def _short(text: str) -> str:
    return text if len(text) <= _ORIGINAL_CHARACTERS else f"{text[:_ORIGINAL_CHARACTERS]}…"
