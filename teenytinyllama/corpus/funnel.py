"""The funnel of a corpus: how many documents and bytes each step let through, what it dropped and why, with samples.

Every task writes a funnel of its own; all of them added up are that of the corpus, whatever the number of processes.
"""

import heapq
import json
import os
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..stage_folder import parse_record, write_json
from .documents import reading
from .shards import BrokenRow

_SAMPLES = 20  # kept of each reason, and of what is kept
_SAMPLE_CHARACTERS = 1500

NO_DOCUMENT = "the source itself, which has no document"


@dataclass
class StepCount:
    """What one step did with the documents of one source.

    Attributes:
        documents_in: that came to it.
        documents_out: that it let through.
        bytes_in: of their texts in UTF-8.
        bytes_out: of what it let through.
        reasons: dropped documents by reason.
        changes: what it changed in texts, by kind: masked telephones, repaired characters.
    """

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {**vars(self), "reasons": dict(self.reasons), "changes": dict(self.changes)}


class Funnel:
    """Counts of all steps by source, and samples of what was dropped and kept, those with the lowest hashes."""

    def __init__(self, most_samples: int | None = None) -> None:
        """Start with nothing; `most_samples` of each reason are kept, by default a few."""
        self._most = most_samples or _SAMPLES
        self.counts: dict[str, dict[str, StepCount]] = defaultdict(lambda: defaultdict(StepCount))
        self._samples: dict[str, list[tuple[int, str]]] = defaultdict(list)  # heaps of (-hash, JSON)

    def passed(
        self, source: str, step: str, bytes_in: int, bytes_out: int, changes: dict[str, int] | None = None
    ) -> None:
        """Count a document that a step let through."""
        count = self.counts[source][step]
        count.documents_in += 1
        count.documents_out += 1
        count.bytes_in += bytes_in
        count.bytes_out += bytes_out
        count.changes.update(changes or {})

    def dropped(self, source: str, step: str, bytes_in: int, reason: str, sample: dict[str, Any], order: int) -> None:
        """Count a document that a step dropped.

        Args:
            source: of the document.
            step: that dropped it.
            bytes_in: of its text.
            reason: of the step.
            sample: `text`, `place`, and what was measured.
            order: hash of the document, by which samples are chosen.
        """
        count = self.counts[source][step]
        count.documents_in += 1
        count.bytes_in += bytes_in
        count.reasons[reason] += 1
        self._sample(f"{source}/{step}/{reason}", sample, order)

    def kept(self, source: str, sample: dict[str, Any], order: int) -> None:
        """Offer a document that passed all steps as a sample."""
        self._sample(f"{source}//", sample, order)

    def _sample(self, place: str, sample: dict[str, Any], order: int) -> None:
        heap = self._samples[place]
        if len(heap) >= self._most and -heap[0][0] <= order:
            return
        text = json.dumps({**sample, "text": sample["text"][:_SAMPLE_CHARACTERS]}, ensure_ascii=False, sort_keys=True)
        (heapq.heappush if len(heap) < self._most else heapq.heappushpop)(heap, (-order, text))

    def samples(self, source: str, step: str = "", reason: str = "") -> list[dict[str, Any]]:
        """Return the samples of a reason, or of what is kept, in the order of their hashes."""
        return [
            json.loads(text) for _, text in sorted(self._samples.get(f"{source}/{step}/{reason}", []), reverse=True)
        ]

    def add(self, other: "Funnel") -> None:
        """Add the counts and samples of another funnel."""
        for source, steps in other.counts.items():
            for step, count in steps.items():
                mine = self.counts[source][step]
                for name in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
                    setattr(mine, name, getattr(mine, name) + getattr(count, name))
                mine.reasons.update(count.reasons)
                mine.changes.update(count.changes)
        for place, heap in other._samples.items():
            for order, text in heap:
                self._sample(place, json.loads(text), -order)

    def write(self, path: Path) -> None:
        """Write the funnel as JSON."""
        counts = {source: {step: count.to_json() for step, count in steps.items()} for source, steps in
                  self.counts.items()}  # fmt: skip
        samples = {place: [[-order, text] for order, text in sorted(heap, reverse=True)] for place, heap in
                   self._samples.items()}  # fmt: skip
        write_json(path, {"counts": counts, "samples": samples}, f".{os.getpid()}.partial")

    @classmethod
    def read(cls, path: Path) -> "Funnel":
        """Return the funnel that `write` wrote.

        Raises:
            RunFailedError: the file is damaged.
        """
        funnel = cls(most_samples=2**31)
        with reading(path):
            found = parse_record(path.read_bytes())
            for source, steps in found["counts"].items():
                for step, values in steps.items():
                    values |= {"reasons": Counter(values["reasons"]), "changes": Counter(values["changes"])}
                    funnel.counts[source][step] = StepCount(**values)
            for place, samples in found["samples"].items():
                for order, text in samples:
                    funnel._sample(place, json.loads(text), order)
        return funnel

    def left_of(self, source: str) -> int:
        """Return how many documents of a source are left after the last step that had any."""
        counts = [count for count in self.counts.get(source, {}).values() if count.documents_in]
        return counts[-1].documents_out if counts else 0

    def emptied_by(self, source: str) -> str:
        """Return the step that dropped the last document of a source, with its most frequent reason."""
        for step, count in self.counts.get(source, {}).items():
            if count.documents_in and not count.documents_out:
                reason, number = count.reasons.most_common(1)[0]
                return f"{step} ({reason}: {number:,} of {count.documents_in:,} documents)"
        return NO_DOCUMENT


def keep_aside(path: Path, rows: list[BrokenRow]) -> None:
    """Write the rows of a shard that cannot be read, one JSON object a line; no file where there are none."""
    if rows:
        lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
