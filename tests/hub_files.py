"""Files of the test Hub: which of them are Git LFS files, and how they are named."""

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LFS_SUFFIXES = {".safetensors", ".bin", ".parquet", ".arrow", ".gguf", ".pt", ".pth", ".npy", ".npz", ".zip", ".gz"}
# The Hub takes files above 10 MB through LFS, whatever they hold (huggingface.co/docs/hub/storage-limits).
LFS_BYTES = 10_000_000
SAMPLE_BYTES = 512


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit: git's id of it, its size and, for an LFS file, the sha256 of its content."""

    oid: str
    size: int
    sha256: str | None = None

    @classmethod
    def of_lfs(cls, sha256: str, size: int) -> "FileEntry":
        """Return the entry of an LFS file; git's id is that of the pointer."""
        return cls(git_oid(_pointer(sha256, size)), size, sha256)

    def as_json(self, name: str) -> dict[str, Any]:
        """Return the entry as in a listing of a tree."""
        shown: dict[str, Any] = {"type": "file", "path": name, "size": self.size, "oid": self.oid}
        if self.sha256:
            shown["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_bytes}
        return shown

    @property
    def pointer_bytes(self) -> int:
        """The size of the pointer that git keeps in place of an LFS file."""
        return len(_pointer(self.sha256 or "", self.size))


def git_oid(content: bytes) -> str:
    """Return the id that git gives to a blob of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(name: str, sample: bytes, size: int, lfs_bytes: int = LFS_BYTES) -> bool:
    """Return whether a file goes through LFS: a suffix of the list, not text, or large. Empty files never do."""
    if not size:
        return False
    return Path(name).suffix in LFS_SUFFIXES or size > lfs_bytes or not _is_text(sample)


def entry_of(path: Path) -> FileEntry:
    """Return the entry of a file that somebody put there by hand."""
    content = path.read_bytes()
    if is_lfs(path.name, content[:SAMPLE_BYTES], len(content)):
        return FileEntry.of_lfs(hashlib.sha256(content).hexdigest(), len(content))
    return FileEntry(git_oid(content), len(content))


def git_attributes() -> bytes:
    """Return the .gitattributes that a new repository starts with."""
    lines = [f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)]
    return "".join(lines).encode()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _is_text(sample: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8; it may end inside a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample
