"""What is to be published, as plain values: files, where each goes, and under which revision. Nothing is sent here."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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


@dataclass(frozen=True)
class Upload:
    """The whole content of one revision of a repository, sent as one commit.

    Attributes:
        repository: `owner/name`.
        repo_type: `model` or `dataset`.
        revision: `main`, or the branch of a checkpoint such as `step100000`.
        files: in the order in which they are listed to the user.
        message: of the commit.
    """

    repository: str
    repo_type: Literal["model", "dataset"]
    revision: str
    files: tuple[UploadFile, ...]
    message: str
