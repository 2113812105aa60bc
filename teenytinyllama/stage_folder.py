"""Stage folders: the names of the files in them, what made one, whether it is done, and which process works in it.

Every stage writes one folder. `run.json`, the manifest, is written last, so its presence means that the folder is
complete. A training also writes `environment.json` first, which says which run the unfinished folder belongs to.

Nothing is ever deleted or overwritten that this package did not make. Locks are locks of the kernel, which end with the
process that holds them. A scratch folder holds a mark that names the process that made it, so that a later process can
clear what a killed one left.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError, ensure, ensure_folder

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
# Of what is published: the card, the list of a run's checkpoints, what a dataset was made of.
CARD_NAME, CHECKPOINTS_NAME, DATASET_RECORD_NAME = "README.md", "checkpoints.json", "dataset.json"
PROGRESS_FOLDER, PROGRESS_NAME = ".publish", "progress.json"  # what of a run has been published so far

# Libraries that decide a result: their versions stand in every manifest.
_VERSIONED = ("torch", "transformers", "tokenizers", "accelerate", "deepspeed", "huggingface_hub", "numpy",
              "codecarbon")  # fmt: skip


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
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def versions(names: Iterable[str] = _VERSIONED) -> dict[str, str]:
    """Return the installed versions of the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def command_line() -> str:
    """Return this process's command as a user would type it (no key of ours holds a secret)."""
    program = Path(sys.argv[0]).name
    return shlex.join(["ttl" if program == "__main__.py" else program, *sys.argv[1:]])


def utc_now() -> str:
    """Return the time in UTC, such as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
        content = parse_record(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{field}={folder}: {MANIFEST_NAME} is damaged ({error}). {fix}") from error
    found = content.get("stage")
    ensure(found == stage, f"{field}={folder}: was made by {found!r}, not by {stage!r}. {fix}")
    return content


def find_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, whatever stage made it; None without one that names its stage."""
    try:
        found = parse_record((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found.get("stage"), str) else None


def ensure_only(field: str, folder: Path, names: Iterable[str], fix: str, refusal: str = "is not empty") -> None:
    """Check that a folder holds nothing but files and folders of the given names; it need not exist.

    Raises:
        InputError: it holds something else, which nobody here may touch; the message names it.
    """
    others = sorted({path.name for path in folder.iterdir()} - set(names)) if folder.is_dir() else []
    ensure(not others, f"{field}={folder}: {refusal} ({', '.join(others[:3])}). {fix}")


@dataclass(frozen=True)
class StageFolder:
    """The output folder of one stage: whether it is done, may be gone on with, or belongs to something else.

    Attributes:
        path: the folder.
        stage: its name in `run.json`, such as `pack`.
        holds: what the stage writes, for messages, such as `rows`.
        leftovers: names that a start which was killed can leave; a lock, and `NAME.partial` of each, may be there too.
    """

    path: Path
    stage: str
    holds: str
    leftovers: frozenset[str] = frozenset()

    @property
    def is_complete(self) -> bool:
        """Return whether the stage has ended: its manifest is there."""
        return (self.path / MANIFEST_NAME).is_file()

    def is_done(self, plan_sha256: str) -> bool:
        """Return whether the folder already holds what a plan makes; if not, the stage may begin or go on in it.

        Args:
            plan_sha256: hash of the inputs and settings that decide what the stage writes.

        Raises:
            InputError: the folder holds what another plan or another stage made, or somebody's files.
        """
        if self.is_complete:
            found = read_manifest("output_dir", self.path, self.stage, "Choose another folder.")
            ensure(
                found.get("plan_sha256") == plan_sha256,
                f"output_dir={self.path}: holds {self.holds} of other inputs or settings. Choose another folder, or "
                "delete it.",
            )
            return True
        ensure_folder("output_dir", self.path)
        self.ensure_ours()
        return False

    def ensure_ours(self, refusal: str = "is not empty") -> None:
        """Check that the folder holds nothing but what an unfinished start of this stage leaves.

        Raises:
            InputError: it holds something else.
        """
        names = {*self.leftovers, LOCK_NAME}
        partial = {f"{name}.partial" for name in (*names, MANIFEST_NAME)}
        ensure_only("output_dir", self.path, names | partial, "Choose an empty or new folder.", refusal)

    def begun(self) -> dict[str, Any] | None:
        """Return what `environment.json` says of the run that the folder holds, or None if a new run may begin there.

        Raises:
            InputError: the record is damaged, or the folder holds files that are not of a run.
        """
        ensure_folder("output_dir", self.path)
        path = self.path / ENVIRONMENT_NAME
        if not path.is_file():
            self.ensure_ours(f"is not empty and holds no {self.holds} of ours")
            return None
        try:
            environment = parse_record(path.read_bytes())
            return {**environment, "identity": dict(environment["identity"])}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"output_dir={self.path}: {path.name} is damaged. Choose another folder.") from error

    def ensure_same(self, before: dict[str, Any], now: dict[str, Any], fix: str = "Choose another folder.") -> None:
        """Check that the run in the folder is the one that is asked for.

        Args:
            before: what decides the result of the run that began there.
            now: what decides the result of the run that is to go on.
            fix: what a user can do who wants other settings.

        Raises:
            InputError: they differ; the message names each difference.
        """
        different = [f"{name} (there {before.get(name)}, now {value})" for name, value in now.items()
                     if before.get(name) != value]  # fmt: skip
        ensure(
            not different,
            f"output_dir={self.path}: holds another {self.holds}; different: {'; '.join(different)}. {fix}",
        )

    @contextmanager
    def held(self, work: str) -> Iterator[None]:
        """Make the folder and hold it for this process while the block writes it.

        The lock file is taken away after the block, and so are folders made for it that the block left empty.

        Args:
            work: what another process does that holds it, for the refusal: `packing into it`.

        Raises:
            InputError: another process holds it, or has completed it since this one looked.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        where = f"output_dir={self.path}: another process"
        lock = take_lock(self.path / LOCK_NAME, f"{where} is {work}. Wait for it, or choose another folder.")
        try:
            ensure(not self.is_complete, f"{where} has completed it meanwhile. The same command says what it holds.")
            yield
        finally:
            lock.release()
            with contextlib.suppress(OSError):
                (self.path / LOCK_NAME).unlink()
                for folder in made:
                    folder.rmdir()  # fails, as it should, on a folder that holds something

    def reopen(self) -> None:
        """Take the manifest away before more is written: the folder is not complete any more."""
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)

    def begin(self, identity: dict[str, Any], content: dict[str, Any]) -> None:
        """Write `environment.json`: which run begins or goes on here, with which versions."""
        head = {"identity": identity, "versions": versions(), "commit": package_commit()}
        write_json(self.path / ENVIRONMENT_NAME, {**head, **content})

    def finish(self, content: dict[str, Any]) -> None:
        """Write `run.json`: the stage's content, versions, command and commit. The last write of every stage."""
        head = {
            "package_version": __version__,
            "stage": self.stage,
            "command": os.environ.get("TTL_COMMAND") or command_line(),
            "commit": package_commit(),
            "created": utc_now(),
        }
        write_json(self.path / MANIFEST_NAME, {**head, **content, "versions": versions()})


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


def lock_run_folder(folder: Path) -> "FileLock":
    """Make the folder of a run and lock it, so that two starts of one command cannot mix; release the lock after.

    Raises:
        InputError: another process holds it.
    """
    refusal = f"output_dir={folder}: another process is training there. Wait for it or stop it."
    return take_lock(folder / LOCK_NAME, refusal)


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
        process = {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        (top / _MARK_NAME).write_text(json.dumps(process) + "\n", encoding="utf-8")
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
    """Return whether the process of a mark is known to have ended; of another machine's processes nothing is known."""
    started = _started(int(mark["pid"])) if mark["machine"] == _machine() else float("nan")
    return started is None or abs(started - float(mark["started"])) > 1
