"""`run.json`: what made a folder. It is written last, so its presence means that the folder is complete.

What belongs to one process: locks of the kernel, which end with it, and scratch folders, which a later one clears.

Nothing is ever deleted that this package did not make. A scratch folder says so itself: it holds a mark that names the
process that made it.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError, ensure

if TYPE_CHECKING:
    from filelock import FileLock


__version__ = "0.1.0"

# The names of the files and folders that this package writes: every room that writes or reads one imports its name.
MANIFEST_NAME = "run.json"  # of every stage, written last: the folder is complete
CONFIG_NAME = "config.yaml"  # the settings of a run, as resolved
ENVIRONMENT_NAME = "environment.json"  # versions, machine and identity of a run that has begun
LOCK_NAME = ".lock"  # held by the process that works in the folder
EMISSIONS_NAME, LEDGER_NAME = "emissions.csv", "ledger.jsonl"  # energy: codecarbon's rows, and ours of every start
ENERGY_JSON_NAME, ENERGY_MARKDOWN_NAME, ENERGY_PLOT_NAME = "emissions.json", "emissions.md", "emissions.png"
METRICS_NAME, PLOT_NAME = "metrics.jsonl", "loss.png"  # of a training: a record a logging step
SAMPLES_NAME, ANSWERS_NAME = "samples.jsonl", "answers.jsonl"  # texts that a model wrote during and after its training
SPEED_TEST_NAME, BASE_RECORD_NAME = "speed_test.json", "base_model.json"
MARKER_NAME, BEGUN_NAME = "complete.json", "begun.json"  # the last and the first file of a checkpoint
LEASES_FOLDER = ".leases"  # locks of checkpoints that are being read
AUDIT_NAME = "audit.json"  # of a tokenizer
JOURNAL_NAME = "journal.jsonl"  # of a packing that has begun: what was encoded
RESULTS_NAME, RESULTS_TABLE_NAME = "results.json", "results.md"  # of an evaluation
MEASURES_NAME, CLOZE_NAME, PARTS_FOLDER = "measures.json", "cloze.jsonl", "parts"
SCORES_PLOT_NAME, PROGRESS_PLOT_NAME = "scores.png", "progress.png"
CLASSIFICATION_TABLE_NAME, STORIES_NAME = "classification.md", "stories.json"
CARD_NAME, CHECKPOINTS_NAME, DATASET_RECORD_NAME = (
    "README.md",
    "checkpoints.json",
    "dataset.json",
)  # of what is published
PROGRESS_FOLDER, PROGRESS_NAME = ".publish", "progress.json"  # what of a run has been published so far

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


def numbered_jsonl_records(
    path: Path,
    check: Callable[[dict[str, Any]], object] | None = None,
    fix: str | None = None,
    is_ended: bool = False,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each record of a jsonl file with the number of its line; nothing without a file.

    Damaged lines are skipped, or refused where a `fix` is given. A last line that has no line break at its end and
    cannot be read is one that is being written or that a kill has cut off: it is skipped.

    Args:
        path: the file, such as metrics.jsonl, samples.jsonl or ledger.jsonl.
        check: is called with each record; raises ValueError, KeyError or TypeError for one that cannot be right.
        fix: refuse damaged lines, with this advice at the end of the message.
        is_ended: nothing is written to the file any more, so that its last line is as good as the others or damaged.

    Raises:
        InputError: a line is damaged and `fix` is given; the message names file and line.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_record(line)
            if check is not None:
                check(record)
        except (ValueError, KeyError, TypeError) as error:
            if fix is None or (number == len(lines) and not is_ended):
                continue
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"{path}: line {number} is damaged ({reason}). {fix}") from error
        yield number, record


def read_jsonl_records(
    path: Path,
    check: Callable[[dict[str, Any]], object] | None = None,
    fix: str | None = None,
    is_ended: bool = False,
) -> list[dict[str, Any]]:
    """Return the records of a jsonl file without the numbers of their lines; see `numbered_jsonl_records`."""
    return [record for _, record in numbered_jsonl_records(path, check, fix, is_ended)]


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


_SCRATCH_PREFIX = "ttl-"
_MARK_NAME = "made-by-teenytinyllama.json"


def take_lock(path: Path, refusal: str, seconds: float = 0) -> "FileLock":
    """Take the lock of a file, which is made with its folder; release it after.

    Args:
        path: of the lock.
        refusal: the message when another process holds it.
        seconds: how long to wait for that one.

    Raises:
        InputError: another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise InputError(refusal) from error
    return lock


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give the block an empty folder of its own, and delete it after.

    What a process that was killed has left in `parent` is deleted first: only folders with our mark in them, made by
    this user on this machine, by a process that lives no longer.

    Args:
        parent: exists; the system's folder for temporary files by default.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_dead(place)
    # A name that nobody can foresee: what lies under it was made by this process.
    top = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=place))
    try:
        (top / _MARK_NAME).write_text(json.dumps(_this_process()) + "\n", encoding="utf-8")
        content = top / "content"
        content.mkdir()
        yield content
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _clear_dead(place: Path) -> None:
    for folder in place.glob(f"{_SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # no mark of ours: not our folder
            mark = folder / _MARK_NAME
            if folder.is_symlink() or mark.is_symlink() or {folder.stat().st_uid, mark.stat().st_uid} != {_user()}:
                continue
            if _is_dead(json.loads(mark.read_text(encoding="utf-8"))):
                shutil.rmtree(folder, ignore_errors=True)


def _user() -> int:
    return int(getattr(os, "getuid", lambda: 0)())  # Windows has none, and gives every file to user 0


def _this_process() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Return what tells this machine, since it was booted, and its numbers of processes from others."""
    names = [platform.node()]
    with contextlib.suppress(OSError):  # Linux alone has both; a container counts processes by itself
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _started(pid: int) -> float | None:
    """Return when a process began, which tells it from a later one of the same number; None: there is none."""
    import psutil  # comes with codecarbon

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # somebody else's, so it lives
        return float("nan")


def _is_dead(mark: dict[str, Any]) -> bool:
    if mark["machine"] != _machine():
        return False
    started = _started(int(mark["pid"]))
    return started is None or abs(started - float(mark["started"])) > 1
