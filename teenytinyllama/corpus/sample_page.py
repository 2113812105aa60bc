"""The page of `ttl corpus --sample`: kept and dropped documents of each source side by side, to tune limits by eye.

The tasks of the corpus stage note what each step did with the documents of a sample (`Tracer`): dropped by which rule,
how near to which limit, what was cut out. Documents are data: the template escapes all of them. The page loads nothing
from a network.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cleaning import Drop
from ..cleaning.page_text import BoilerplateConfig, find_boilerplate
from ..cleaning.personal_data import PersonalDataConfig, find_personal_data
from ..cleaning.quality import RuleValue, check_all, closeness, measure_all
from ..stage_folder import utc_now
from .chain import duplicates_config, evaluation_index, load_phrases
from .config import BuildConfig
from .decontamination import EvaluationIndex, cut_ranges
from .documents import Funnel, read_documents
from .duplicates import preference_order
from .shards import WorkShard

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


PAGE_NAME = "sample.html"
_NEAR = 0.9  # of the limit from which a kept document is near it
_FAR = 2.0  # times the limit: the right end of a strip
_STRIP_WIDTH, _STRIP_HEIGHT = 200, 16  # pixels
_MEASURES_SHOWN = 3
_OPEN = 8  # dropped documents of a rule that are shown without a click


def read_sample(config: BuildConfig, places: dict[str, Path], shards: Sequence[WorkShard]) -> list[Look]:
    """Return the documents of a sample with what all phases did with them.

    Args:
        config: of the corpus.
        places: folders of the phases.
        shards: of the sample.
    """
    index = evaluation_index(config)
    if index is not None:
        index.ignore_phrases(load_phrases(places["phrases"]))
    tables = _duplicates_of(config, places, shards)
    looks = [read_looks(places["clean"] / f"{shard.number:05d}.looks") for shard in shards]
    survivors = [[look for look in found if not look.step] for found in looks]
    for shard, own, table in zip(shards, survivors, tables, strict=True):
        for row, look in enumerate(own):
            if table is not None and not table["keep"][row]:
                _note_duplicate(config, look, table[row], survivors, shards)
        _note_finish(places["finish"], shard, [look for look in own if not look.step], index)
    return [look for found in looks for look in found]


def _duplicates_of(config: BuildConfig, places: dict[str, Path], shards: Sequence[WorkShard]) -> list[Any]:
    if config.duplicates is False:
        return [None] * len(shards)
    return [np.load(places["duplicates"] / f"{shard.number:05d}.npy") for shard in shards]


def _note_duplicate(
    config: BuildConfig, look: Look, row: Any, survivors: list[list[Look]], shards: Sequence[WorkShard]
) -> None:
    settings, preferred = duplicates_config(config)
    look.step, look.reason = "duplicates", "exact" if row["exact"] else "near"
    look.value, look.limit = float(row["similarity"]), settings.threshold
    keeper = int(row["keeper"])
    for number in preference_order([shard.source for shard in shards], preferred):
        if keeper < len(survivors[number]):
            look.note = f"repeats {survivors[number][keeper].source} {survivors[number][keeper].place}"
            return
        keeper -= len(survivors[number])


def _note_finish(finish: Path, shard: WorkShard, looks: list[Look], index: EvaluationIndex | None) -> None:
    """Note what toxicity and decontamination did with the documents that came to them."""
    kept = {row["place"]: row for row in read_documents(finish / f"{shard.number:05d}.parquet", ["place", "text"])}
    funnel = Funnel.read(finish / f"{shard.number:05d}.json")
    dropped = {
        sample["place"]: (step, reason, sample)
        for step in ("toxicity", "decontamination")
        for reason in funnel.counts[shard.source][step].reasons
        for sample in funnel.samples(shard.source, step, reason)
    }
    for look in looks:
        if look.place in dropped:
            look.step, look.reason, sample = dropped[look.place]
            look.value, look.limit = float(sample["value"]), float(sample["limit"])
        if index is not None and look.step != "toxicity" and kept.get(look.place, {}).get("text") != look.text:
            look.marks = _with_contamination(look, index)


def _with_contamination(look: Look, index: EvaluationIndex) -> list[Mark]:
    """Return the marks of a document with what was cut out as evaluation items; marks inside those are left out."""
    passages = index.find_passages(look.text)
    cut = cut_ranges(look.text, passages, index.config.margin)
    found = []
    for start, end in cut:
        names = ", ".join(sorted({passage.set for passage in passages if start <= passage.start < end}))
        found.append(Mark(start, end, f"contamination: {names}", ""))
    others = [mark for mark in look.marks if not any(start <= mark.start <= end for start, end in cut)]
    return sorted([*found, *others], key=lambda mark: mark.start)


def rule_rows(looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Return for each rule of a source what it dropped and how near the documents come to its limit.

    Args:
        looks: the documents of one source.

    Returns:
        rows with `step`, `rule`, `limit`, `dropped` (by it as the first), `failed` (with those that another rule
        dropped before), `near` (kept documents within a tenth of the limit), `values` (at a tenth, half and nine tenths
        of the documents that were measured) and `ticks` of a strip (place in pixels, whether the document is kept).
    """
    dropped = Counter((look.step, look.reason) for look in looks if look.step)
    measures: dict[str, list[tuple[RuleValue, Look]]] = {}
    for look in looks:
        for measure in look.measures:
            measures.setdefault(measure.reason, []).append((measure, look))
    rows = []
    for reason, own in measures.items():
        step = "language" if reason == "language score" else "quality"
        near = sum(not look.step and measure.closeness >= _NEAR for measure, look in own)
        failed = sum(measure.closeness > 1 for measure, _ in own)
        if not (near or failed):
            continue
        values = np.quantile([measure.value for measure, _ in own], [0.1, 0.5, 0.9])
        ticks = [(round(_STRIP_WIDTH * min(measure.closeness, _FAR) / _FAR, 1), not look.step) for measure, look in own]
        rows.append({"step": step, "rule": reason, "limit": own[0][0].limit, "dropped": dropped.pop((step, reason), 0),
                     "failed": failed, "near": near, "values": [float(value) for value in values],
                     "ticks": sorted(set(ticks))})  # fmt: skip
    others = [{"step": step, "rule": reason, "limit": next(look.limit for look in looks if look.reason == reason),
               "dropped": number, "failed": number, "near": None, "values": None, "ticks": None}
              for (step, reason), number in dropped.items()]  # fmt: skip
    return sorted([*rows, *others], key=lambda row: (-row["dropped"], -row["failed"], row["rule"]))


def _shown(look: Look) -> dict[str, Any]:
    """Return what the page shows of a document; parts of the text are marked by the first word of their kind."""
    nearest = [replace(measure) for measure in look.measures[:_MEASURES_SHOWN] if measure.closeness > 0]
    changes = [f"{step}: {name} {number:,}" for step, found in look.changes.items() for name, number in found.items()
               if step != "variety"]  # fmt: skip
    variety = next(iter(look.changes.get("variety", {})), "").removeprefix("documents_in_")
    return {"look": look, "parts": excerpt(look.text, look.marks), "nearest": nearest, "changes": changes,
            "variety": variety}  # fmt: skip


def render_sample(config: BuildConfig, looks: Sequence[Look]) -> str:
    """Return the page of a sample.

    Args:
        config: of the corpus.
        looks: the documents of all sources.
    """
    from jinja2 import Environment

    sources = []
    for name, source in config.source_configs.items():
        own = [look for look in looks if look.source == name]
        rules = rule_rows(own)
        rank = {(row["step"], row["rule"]): place for place, row in enumerate(rules)}
        kept = sorted((look for look in own if not look.step), key=lambda look: -look.closeness)
        dropped = sorted((look for look in own if look.step),
                         key=lambda look: (rank[look.step, look.reason], look.closeness))  # fmt: skip
        groups = [(key, list(map(_shown, found)))
                  for key, found in itertools.groupby(dropped, lambda look: (look.step, look.reason))]  # fmt: skip
        sources.append({"name": name, "license": source.license, "rules": rules, "kept": list(map(_shown, kept)),
                        "dropped": len(dropped), "groups": groups, "documents": len(own)})  # fmt: skip
    template = Path(__file__).with_name("sample.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(template).render(
        sources=sources, created=utc_now(), sample=config.sample, strip=(_STRIP_WIDTH, _STRIP_HEIGHT), open=_OPEN
    )
    return page


def write_sample(config: BuildConfig, places: dict[str, Path], shards: Sequence[WorkShard], folder: Path) -> Path:
    """Write the page of a sample into the folder of the corpus, and return its path."""
    path = folder / PAGE_NAME
    path.write_text(render_sample(config, read_sample(config, places, shards)), encoding="utf-8")
    return path
