"""The page of `ttl corpus --sample`: kept and dropped documents of each source side by side, to tune limits by eye.

Documents are data: the template escapes all of them. The page loads nothing from a network.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cleaning.quality import RuleValue
from ..corpus.config import BuildConfig
from ..corpus.decontamination import EvaluationIndex, cut_ranges
from ..corpus.duplicates import preference_order
from ..corpus.funnel import Funnel
from ..corpus.phases import duplicates_config, evaluation_index, load_phrases, read_documents
from ..corpus.shards import WorkShard
from ..stage_folder import utc_now
from .looks import Look, Mark, excerpt, read_looks

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
