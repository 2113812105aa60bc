"""What is to be published, as plain values: files, where each goes, and under which revision. Nothing is sent here."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class UploadFile:
    """One file of a repository.

    Attributes:
        path: in the repository, with forward slashes.
        source: the local file, or the bytes themselves for what is made on the way (a card, an index).
    """

    path: str
    source: Path | bytes

    @property
    def size_bytes(self) -> int:
        """Return how many bytes will be sent."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def sha256(self) -> str:
        """Return the hash of the content, read piece by piece."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with self.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def blob_id(self) -> str:
        """Return the id that git gives to the content, by which the Hub knows a file that is not in LFS."""
        digest = hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        if isinstance(self.source, bytes):
            digest.update(self.source)
            return digest.hexdigest()
        with self.source.open("rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True)
class Upload:
    """The whole content of one revision of a repository, sent as one commit.

    Attributes:
        repository: `owner/name`.
        repo_type: `model` or `dataset`.
        revision: `main`, or the branch of a checkpoint such as `step100000`.
        files: in the order in which they are listed to the user.
        message: of the commit.
        record: path of the one of these files that says what was put there, see `record_file`. The record that the
            revision holds already decides what may be replaced: nothing of another identity, and of the files that
            are no longer part of the upload only those that it lists. None: nothing is ever deleted.
        fixed: paths whose content never changes on this revision, such as the weights of a checkpoint.
        pickles: paths of optimizer state, which is pickled, that the user asked for.
    """

    repository: str
    repo_type: Literal["model", "dataset"]
    revision: str
    files: tuple[UploadFile, ...]
    message: str
    record: str | None = None
    fixed: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()


def record_file(path: str, identity: Any, names: Iterable[str], more: dict[str, Any]) -> UploadFile:
    """Return the record of an upload: what it belongs to, all its files by name, and what else is worth saying.

    Args:
        path: of the record in the repository.
        identity: any JSON value that tells runs (or datasets) apart and stays the same for one of them.
        names: paths of the other files that we have put there.
        more: further keys.
    """
    content = {"identity": identity, **more, "files": sorted({path, *names})}
    return UploadFile(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
