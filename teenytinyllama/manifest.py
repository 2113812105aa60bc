"""`run.json`: what made a folder. It is written last, so its presence means that the folder is complete."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import __version__
from .checks import InputError, ensure

MANIFEST_NAME = "run.json"
_VERSIONED = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "huggingface_hub",
    "numpy",
    "codecarbon",
)


def write_json(path: Path, content: Any, suffix: str = ".partial") -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part.

    Args:
        path: the file.
        content: anything that JSON can hold.
        suffix: of the file that becomes `path`; processes that may write at the same moment need their own.
    """
    partial = path.with_name(path.name + suffix)
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def parse_record(line: bytes) -> dict[str, Any]:
    """Return a line of a jsonl file, an object.

    Raises:
        ValueError: it is none, whatever its bytes are.
    """
    try:
        found = json.loads(line.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def sha256_file(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Return the sha256 of a file in hex; `on_bytes` is called with the size of each part read (for a bar)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
            if on_bytes:
                on_bytes(len(part))
    return digest.hexdigest()


def sha256_json(content: Any) -> str:
    """Return the sha256 of a JSON value in a canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def package_commit() -> str | None:
    """Return the git commit of the checkout this package is imported from, or None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def versions(names: Iterable[str] = _VERSIONED) -> dict[str, str]:
    """Return the installed versions of the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """Return this process's command as a user would type it (no key of ours holds a secret)."""
    program = Path(sys.argv[0]).name
    return shlex.join(["ttl" if program == "__main__.py" else program, *sys.argv[1:]])


def write_manifest(folder: Path, stage: str, content: dict[str, Any]) -> None:
    """Write `run.json` with the stage's content, versions, command and commit. The last write of a stage."""
    head = {
        "package_version": __version__,
        "stage": stage,
        "command": os.environ.get("TTL_COMMAND") or command_line(),
        "commit": package_commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(folder / MANIFEST_NAME, {**head, **content, "versions": versions()})


def read_manifest(field: str, folder: str | Path, stage: str, fix: str) -> dict[str, Any]:
    """Return the manifest of a complete folder made by `stage`.

    Raises:
        InputError: the folder is missing, not complete, not JSON, or of another stage; `fix` says which command
            makes it.
    """
    path = Path(folder) / MANIFEST_NAME
    ensure(Path(folder).is_dir(), f"{field}={folder}: no such folder. {fix}")
    ensure(path.is_file(), f"{field}={folder}: has no {MANIFEST_NAME}, so it is not a complete folder of ours. {fix}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{field}={folder}: {MANIFEST_NAME} is damaged ({error}). {fix}") from error
    found = content.get("stage") if isinstance(content, dict) else None
    ensure(found == stage, f"{field}={folder}: was made by {found!r}, not by {stage!r}. {fix}")
    return dict(content)
