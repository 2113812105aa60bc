"""Stage folders: the names of the files in them, what made one, whether it is done, and which process works in it.

Every stage writes one folder. `run.json`, the manifest, is written last: a folder with a manifest is complete. A
training writes `environment.json` first, which tells which run an unfinished folder belongs to.

Nothing that this package did not make is deleted or overwritten. Locks are locks of the kernel, which end with the
process that holds them.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .checks import InputError, ensure, ensure_folder
from .disk import replace_file
from .progress import progress

if TYPE_CHECKING:
    from filelock import FileLock

__version__ = "0.1.0"

# The names of the files and folders that this package writes: every room that writes or reads one imports its name.
MANIFEST_NAME = "run.json"  # of every stage, written last: the folder is complete
CONFIG_NAME = "config.yaml"  # the settings of a run, as resolved
ENVIRONMENT_NAME, ENVIRONMENT_COPY_NAME = "environment.json", "run_environment.json"  # of a run; in its checkpoints
LOCK_NAME = ".lock"  # held by the process that works in the folder
EMISSIONS_NAME, LEDGER_NAME = "emissions.csv", "ledger.jsonl"  # energy: codecarbon's rows, and ours of every start
ENERGY_JSON_NAME, ENERGY_MARKDOWN_NAME, ENERGY_PLOT_NAME = "emissions.json", "emissions.md", "emissions.png"
METRICS_NAME, PLOT_NAME, REPORT_NAME = "metrics.jsonl", "loss.png", "report.html"  # of a training; `ttl report`
SAMPLES_NAME, ANSWERS_NAME = "samples.jsonl", "answers.jsonl"  # texts that a model wrote during and after its training
SPEED_TEST_NAME, BASE_RECORD_NAME, BAD_STEPS_NAME = "speed_test.json", "base_model.json", "bad_steps.jsonl"
DECAY_NOW_NAME, TRACKERS_NAME = "decay_now", "trackers.json"  # asks for a run's decay; what trackers have got of it
# The last and the first file of a checkpoint, and the folder of the locks of checkpoints that are being read.
MARKER_NAME, BEGUN_NAME, LEASES_FOLDER = "complete.json", "begun.json", ".leases"
AUDIT_NAME, JOURNAL_NAME, PEOPLE_NAME = "audit.json", "journal.jsonl", "people.json"  # the last: votes on a run
RESULTS_NAME, RESULTS_TABLE_NAME = "results.json", "results.md"  # of an evaluation
MEASURES_NAME, CLOZE_NAME, PARTS_FOLDER = "measures.json", "cloze.jsonl", "parts"
SCORES_PLOT_NAME, PROGRESS_PLOT_NAME, STORIES_NAME = "scores.png", "progress.png", "stories.json"
CLASSIFICATION_TABLE_NAME, BENCH_NAME, BENCH_TABLE_NAME = "classification.md", "bench.json", "bench.md"
# Of what is published: the card, the list of a run's checkpoints, what a dataset was made of.
RUNS_NAME, RUNS_FOLDER = "runs.jsonl", "runs"  # of a laboratory: a row a run; the folders of the runs
CARD_NAME, CHECKPOINTS_NAME, DATASET_RECORD_NAME = "README.md", "checkpoints.json", "dataset.json"
# What of a run has been published so far, and to which public bucket.
PROGRESS_FOLDER, PROGRESS_NAME, BUCKET_NAME = ".publish", "progress.json", "bucket.json"

_LARGE_FILE_BYTES = 10**9  # are hashed in seconds, on a slow disk in more than ten
_VERSIONED = ("torch", "transformers", "tokenizers", "accelerate", "deepspeed", "huggingface_hub", "numpy",
              "codecarbon")  # fmt: skip


def write_json(path: Path, content: Any, suffix: str = ".partial") -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part.

    Args:
        path: the file.
        content: anything that JSON can hold.
        suffix: of the file that becomes `path`; processes that may write at the same moment need their own.
    """
    replace_file(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n", suffix)


def parse_record(line: bytes) -> dict[str, Any]:
    """Return the JSON object that a line of a jsonl file, or a whole JSON file, holds.

    Raises:
        ValueError: it holds none, whatever its bytes are.
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

    Damaged lines are skipped, or refused where a `fix` is given. A damaged last line without a line break is always
    skipped: it is being written, or a kill has cut it off.

    Args:
        path: the file.
        check: is called with each record; raises ValueError, KeyError or TypeError for one that cannot be right.
        fix: refuse damaged lines, with this advice at the end of the message.
        is_ended: nothing is written to the file any more, so that a damaged last line is refused like any other.

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
    """Return the sha256 of a file in hex; `on_bytes` is called with the size of each part read.

    Without it, a large file has a bar of its own.
    """
    size = path.stat().st_size
    if on_bytes is None and size >= _LARGE_FILE_BYTES:
        with progress(None, f"hashing {path.name}", "B", total=size) as bar:
            return sha256_file(path, bar.update)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
            if on_bytes:
                on_bytes(len(part))
    return digest.hexdigest()


def sha256_content(content: bytes | str) -> str:
    """Return the sha256 in hex of bytes, or of a text in UTF-8: the same as `sha256_file` gives for a file of them."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_json(content: Any) -> str:
    """Return the sha256 of a JSON value in a canonical form (sorted keys, no spaces)."""
    return sha256_content(json.dumps(content, sort_keys=True, separators=(",", ":")))


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
    """Return this process's command as a user would type it; no key of the command line holds a secret."""
    program = Path(sys.argv[0]).name
    return shlex.join(["ttl" if program == "__main__.py" else program, *sys.argv[1:]])


def utc_now() -> str:
    """Return the time in UTC, such as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_manifest(field: str, folder: str | Path, stage: str, fix: str) -> dict[str, Any]:
    """Return the manifest of a complete folder that `stage` made.

    Raises:
        InputError: the folder is missing or not complete, its manifest is damaged, or another stage made it. The
            message names the config key `field` and ends with `fix`, the command that makes such a folder.
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
        found = parse_record(path.read_bytes()) if (path := folder / MANIFEST_NAME).is_file() else {}
    except (OSError, ValueError):
        return None
    return found if isinstance(found.get("stage"), str) else None


def without_place(text: str) -> str:
    """Return an absolute path cut to its last part; every other text as it is."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() and len(path.parts) > 2 and "\n" not in text:
            return path.name
    return text


def ensure_only(field: str, folder: Path, names: Iterable[str], fix: str, refusal: str = "is not empty") -> None:
    """Check that a folder holds nothing but files and folders of the given names; the folder need not exist.

    Raises:
        InputError: it holds something else, which this package must not touch; the message names it.
    """
    others = sorted({path.name for path in folder.iterdir()} - set(names)) if folder.is_dir() else []
    ensure(not others, f"{field}={folder}: {refusal} ({', '.join(others[:3])}). {fix}")


@dataclass(frozen=True)
class StageFolder:
    """The output folder of one stage: whether it is complete, can be gone on with, or belongs to something else.

    Attributes:
        path: the folder.
        stage: name of the stage in `run.json`, such as `pack`.
        holds: what the stage writes, for messages, such as `rows`.
        leftovers: names of what a killed start can leave; a lock and `NAME.partial` of each name may be there too.
    """

    path: Path
    stage: str
    holds: str
    leftovers: frozenset[str] = frozenset()

    @property
    def is_complete(self) -> bool:
        """Return whether the manifest is there, the last file that a stage writes."""
        return (self.path / MANIFEST_NAME).is_file()

    def is_done(self, plan_sha256: str) -> bool:
        """Return whether the folder already holds the result; if not, the stage may begin or go on in it.

        Args:
            plan_sha256: hash of all inputs and settings that decide the result.

        Raises:
            InputError: the folder holds the result of other inputs or of another stage, or files of somebody else.
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
        partial = {f"{name}.partial" for name in (*names, MANIFEST_NAME, ENVIRONMENT_NAME)}
        ensure_only("output_dir", self.path, names | partial, "Choose an empty or new folder.", refusal)

    def begun(self, fix: str = "Choose another folder.") -> dict[str, Any] | None:
        """Return what `environment.json` says of the run that the folder holds, or None if a new run may begin there.

        Raises:
            InputError: the record is damaged, with its `fix`, or the folder holds files that are not of a run.
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
            raise InputError(f"output_dir={self.path}: {path.name} is damaged ({error!r}). {fix}") from error

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
        refusal = f"holds another {self.holds}; different: {'; '.join(different)}. {fix}"
        ensure(not different, f"output_dir={self.path}: {refusal}")

    @contextmanager
    def held(self, work: str) -> Iterator[None]:
        """Make the folder and lock it while the block writes it; afterwards no lock file and no empty folder is left.

        Args:
            work: what a process does that holds the folder, for the refusal of a second one: `packing into it`.

        Raises:
            InputError: another process holds the folder, or has completed it since `is_done` looked.
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
        """Delete the manifest before more is written: until `finish` the folder is not complete any more."""
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)

    def begin(self, identity: dict[str, Any], content: dict[str, Any]) -> None:
        """Write `environment.json`: which run begins or goes on in the folder, and with which versions."""
        head = {"identity": identity, "versions": versions(), "commit": package_commit()}
        write_json(self.path / ENVIRONMENT_NAME, {**head, **content})

    def finish(self, content: dict[str, Any]) -> None:
        """Write `run.json`, the manifest: the given content, versions, command and commit. A stage's last write."""
        head = {
            "package_version": __version__,
            "stage": self.stage,
            "command": os.environ.get("TTL_COMMAND") or command_line(),
            "commit": package_commit(),
            "created": utc_now(),
        }
        write_json(self.path / MANIFEST_NAME, {**head, **content, "versions": versions()})


def take_lock(path: Path, refusal: str, seconds: float = 0) -> "FileLock":
    """Make a lock file, lock it for this process and return the lock, which the caller releases.

    Args:
        path: the lock file.
        refusal: the message when another process holds the lock.
        seconds: how long to wait for that process.

    Raises:
        InputError: another process holds the lock.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise InputError(refusal) from error
    return lock


def lock_run_folder(folder: Path, work: str = "training there") -> "FileLock":
    """Make the folder of a run and lock it for `work`, so that two starts cannot mix; release the lock after.

    Raises:
        InputError: another process holds it.
    """
    refusal = f"output_dir={folder}: another process is {work}. Wait for it or stop it."
    return take_lock(folder / LOCK_NAME, refusal)
