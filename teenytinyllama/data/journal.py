"""The unfinished part of a packed folder, and how far it has come: what lets packing go on after a kill."""

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sources import Document, source_statistics

DOCUMENT_DTYPE = np.dtype([("offset", "<i8"), ("num_tokens", "<i8"), ("num_bytes", "<i8"), ("source", "<i4")])


def is_journal(folder: Path) -> bool:
    """Return whether an unfinished folder was made here: the plan, a hash, is the first thing that is written."""
    plan = folder / "plan"
    if folder.is_symlink() or not plan.is_file():
        return False
    return bool(re.fullmatch("[0-9a-f]{64}", plan.read_text(encoding="utf-8", errors="replace")))


@dataclass
class Totals:
    """Counts over the documents packed so far; one is written per chunk, so that a kill loses one chunk."""

    chunks: int = 0
    documents: int = 0  # read, in order, of both splits: where to go on after a kill
    train_tokens: int = 0
    validation_tokens: int = 0
    tail: list[tuple[str, int, int]] = field(default_factory=list)  # last training documents: source, tokens, bytes
    sources: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {"train": {}, "validation": {}})

    def count(self, split: str, document: Document, num_bytes: int, num_tokens: int) -> None:
        """Add one document."""
        record = self.sources[split].setdefault(document.source, source_statistics())
        record["documents"] += 1
        record["bytes"] += num_bytes
        record["tokens"] += num_tokens
        if document.license and document.license not in record["licenses"]:
            record["licenses"].append(document.license)

    def without_tail(self, dropped_tokens: int) -> dict[str, dict[str, Any]]:
        """Return the records of the training sources without the last tokens, which make no whole row.

        A document that is dropped whole counts no longer; one that is cut keeps its bytes.

        Args:
            dropped_tokens: at the end; fewer than those of `tail`.
        """
        records = {name: dict(record) for name, record in self.sources["train"].items()}
        for source, num_tokens, num_bytes in reversed(self.tail):
            taken = min(num_tokens, dropped_tokens)
            dropped_tokens -= taken
            records[source]["tokens"] -= taken
            if taken == num_tokens:
                records[source]["documents"] -= 1
                records[source]["bytes"] -= num_bytes
            if not dropped_tokens:
                break
        return records


class Journal:
    """The unfinished folder `.partial`: token files that only grow, and one line per finished chunk.

    A line holds the totals, and the records of those sources alone that the chunk added to: there can be as many
    sources as documents.
    """

    def __init__(self, folder: Path, plan: str, dtype: Any, context: int) -> None:
        self.folder, self.dtype, self.context = folder, dtype, context
        self.totals = Totals()
        marks = folder / "journal.jsonl"
        if not (folder / "plan").exists() or (folder / "plan").read_text() != plan:
            if is_journal(folder):
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan").write_text(plan)
        lines = marks.read_text().split("\n") if marks.exists() else []
        whole = [line for line in lines[:-1] if line]  # a kill can leave a last line without its end
        for line in whole:
            mark = json.loads(line)
            for split, records in self.totals.sources.items():
                records.update(mark["sources"][split])
            self.totals = Totals(**{**mark, "sources": self.totals.sources})
        self.source_ids = {name: place for place, name in enumerate(self.totals.sources["validation"])}
        marks.write_text("".join(line + "\n" for line in whole))
        self.files = {name: self._open(name) for name in ("train", "validation", "documents")}
        self.marks = marks.open("a")

    def _open(self, name: str) -> Any:
        path = self.folder / f"{name}.bin"
        path.touch()
        length = {
            "train": self.totals.train_tokens * np.dtype(self.dtype).itemsize,
            "validation": self.totals.validation_tokens * np.dtype(self.dtype).itemsize,
            "documents": sum(r["documents"] for r in self.totals.sources["validation"].values())
            * DOCUMENT_DTYPE.itemsize,
        }[name]
        os.truncate(path, length)
        return path.open("ab")

    def append(self, chunk: list[tuple[str, Document]], encoded: list[NDArray[Any]]) -> None:
        """Add a chunk's documents to the token files and mark it done."""
        totals = self.totals
        touched: dict[str, dict[str, Any]] = {split: {} for split in totals.sources}
        for (split, document), ids in zip(chunk, encoded, strict=True):
            num_bytes = len(document.text.encode())
            totals.count(split, document, num_bytes, len(ids))
            touched[split][document.source] = totals.sources[split][document.source]
            self.files[split].write(ids.tobytes())
            if split == "train":
                totals.train_tokens += len(ids)
                totals.tail.append((document.source, len(ids), num_bytes))
                continue
            source_id = self.source_ids.setdefault(document.source, len(self.source_ids))
            row = (totals.validation_tokens, len(ids), num_bytes, source_id)
            self.files["documents"].write(np.array([row], dtype=DOCUMENT_DTYPE).tobytes())
            totals.validation_tokens += len(ids)
        totals.documents += len(chunk)
        totals.chunks += 1
        self._shorten_tail()
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.marks.write(json.dumps({**vars(totals), "sources": touched}) + "\n")
        self.marks.flush()

    def _shorten_tail(self) -> None:
        """Keep the last training documents that hold the tokens of a row: no more than these can be dropped."""
        tail, tokens, place = self.totals.tail, 0, 0
        for place in range(len(tail) - 1, -1, -1):
            tokens += tail[place][1]
            if tokens >= self.context:
                break
        del tail[:place]

    def close(self) -> None:
        """Close all files."""
        for file in [*self.files.values(), self.marks]:
            file.close()
