"""Checkpoints: what makes a whole one, how it is proved, and how it is kept from being deleted while it is read.

A checkpoint is complete only when `complete.json`, its marker, lies in it. The marker is written after all other files
are on the disk, and it names each of them with its size and hash. `checkpoint_faults` compares the files with the
marker: a run calls it before it resumes from a checkpoint, and publishing before it sends one. A branch is a run that
began at a checkpoint of another one; its record says what it builds on.
"""

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from ..checks import InputError, RunFailedError, available_cores, ensure
from ..disk import replace_file, sync_to_disk
from ..stage_folder import (
    BEGUN_NAME,
    CHECKPOINTS_NAME,
    ENVIRONMENT_COPY_NAME,
    ENVIRONMENT_NAME,
    LEASES_FOLDER,
    MARKER_NAME,
    sha256_file,
    take_lock,
    utc_now,
    write_json,
)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
_NOT_HASHED = (MARKER_NAME, MARKER_NAME + ".partial", BEGUN_NAME)
# Threads can hash at the same time, because hashlib releases the interpreter's lock. More than these would be idle: a
# checkpoint has few large files.
_MOST_HASHING_THREADS = 8
_LEASE_SECONDS = 1.0  # how long a lease is waited for: `is_leased` holds its lock for a moment


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of a file of a checkpoint, taken when the checkpoint was complete."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Marker:
    """The content of `complete.json`; markers that earlier versions wrote lack the figures that may be None.

    Attributes:
        step: optimizer steps done.
        world_size: number of ranks that wrote the checkpoint.
        zero_stage: DeepSpeed's ZeRO stage, 0 without DeepSpeed.
        tokens: tokens trained on so far.
        kwh: energy of all starts of the run up to this checkpoint.
        kg_co2e: emissions of all starts of the run up to this checkpoint.
        bits_per_byte: on held-out documents; None unless the newest evaluation was of this step.
        created: time in UTC, such as 2026-01-31T12:00:00Z.
        files: every file but the marker, by its path inside the checkpoint with `/` as separator; None: hashes unknown.
    """

    step: int
    world_size: int
    zero_stage: int
    tokens: int | None = None
    kwh: float | None = None
    kg_co2e: float | None = None
    bits_per_byte: float | None = None
    created: str | None = None
    files: dict[str, FileRecord] | None = None


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step in a run's folder; the Trainer names them so."""
    return folder / f"checkpoint-{step}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of all checkpoints, complete or not, by step."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))]
    return sorted(found)


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the checkpoints with a completion marker, by step."""
    return [(step, path) for step, path in list_checkpoints(folder) if (path / MARKER_NAME).is_file()]


def is_ours(path: Path) -> bool:
    """Return whether this package wrote a folder that is named like a checkpoint, complete or not.

    A disk that was full, or a kill, at the first file of a save leaves a part of that file alone.
    """
    if path.is_symlink() or not path.is_dir():
        return False
    if any((path / name).is_file() for name in (MARKER_NAME, BEGUN_NAME)):
        return True
    return [entry.name for entry in path.iterdir()] == [f"{BEGUN_NAME}.partial"]


def begin_saving(path: Path) -> None:
    """Make the folder of a checkpoint and write `begun.json` first, which says that this package made the folder.

    With it goes a copy of the run's `environment.json`, without which nobody knows whose the checkpoints are.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / BEGUN_NAME, {"created": utc_now()})
    if (path.parent / ENVIRONMENT_NAME).is_file():
        shutil.copyfile(path.parent / ENVIRONMENT_NAME, path / ENVIRONMENT_COPY_NAME)


def refuse_strangers(folder: Path, max_step: int) -> None:
    """Refuse a folder in the way of a save: nothing that was not written here is ever replaced or deleted.

    Raises:
        InputError: there is one after the newest complete checkpoint.
    """
    newest = max((step for step, _ in complete_checkpoints(folder)), default=0)
    later = [path for step, path in list_checkpoints(folder) if newest < step <= max_step and not is_ours(path)]
    strangers = [path.name for path in later if path.is_symlink() or not path.is_dir() or any(path.iterdir())]
    ensure(
        not strangers,
        f"output_dir={folder}: {', '.join(strangers)} may lie where this run will save, and was not written by it (it "
        f"has no {MARKER_NAME} and no {BEGUN_NAME}). Move it away. If an earlier version of this package was killed "
        "while it saved there, or it came from a bucket without its optimizer state, delete it.",
    )


def refuse_copy_without_state(folder: Path) -> None:
    """Refuse a folder that a bucket was copied into (`ttl publish --to bucket:…`) and that no training goes on from.

    Raises:
        InputError: it is one; the message says what is missing.
    """
    if (folder / ENVIRONMENT_NAME).is_file() or not (folder / CHECKPOINTS_NAME).is_file():
        return
    there = [path for _, path in list_checkpoints(folder)]
    refusal = f"output_dir={folder}: holds a bucket's copy without {ENVIRONMENT_NAME}, so no training goes on there. "
    ensure(
        not complete_checkpoints(folder),
        f"{refusal}It is not whole: copy it again, hf buckets sync hf://buckets/OWNER/NAME {folder}",
    )
    weights = there[-1] if there else folder / "model"
    raise InputError(
        f"{refusal}`ttl publish` sends what resuming needs only with --optimizer_state. A new run can begin with these "
        f"weights: --model_name_or_path {weights} --output_dir NEW (its optimizer and its schedule begin anew)."
    )


# What torch and safetensors say of a disk that fails; both hide the OSError in errors of their own.
_DISK_FAILURES = re.compile(r"os error|No space left|failed writing|quota exceeded", re.IGNORECASE)


@contextmanager
def explaining_disk_failures(folder: Path, step: int) -> Iterator[None]:
    """Say what to do where the disk fails while the block saves a checkpoint: it was full, or has filled meanwhile.

    Args:
        folder: of the run.
        step: that is saved.

    Raises:
        RunFailedError: the disk failed; the message says what the same command goes on from.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not (isinstance(error, OSError) or _DISK_FAILURES.search(str(error))):
            raise
        saved = [path.name for _, path in complete_checkpoints(folder)]
        go_on = f"goes on from {saved[-1]}" if saved else "starts again"
        raise RunFailedError(
            f"output_dir={folder}: step {step} could not be saved: {' '.join(str(error).split())[:200]}. See to the "
            f"disk; the same command then {go_on}."
        ) from error


def read_marker(path: Path) -> Marker:
    """Return the marker of a checkpoint.

    Raises:
        InputError: there is none, or it is damaged.
    """
    marker = path / MARKER_NAME
    ensure(marker.is_file(), f"{path}: has no {MARKER_NAME}: it was not saved to its end. Use another checkpoint.")
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        files = content.get("files")
        known = {item.name: content.get(item.name) for item in fields(Marker)}
        records = None if files is None else {_inside(name): _record(files[name]) for name in files}
        numbers = {name: int(content[name]) for name in ("step", "world_size", "zero_stage")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {MARKER_NAME} is damaged ({error!r}). Use another checkpoint.") from error
    return Marker(**{**known, **numbers, "files": records})


def _record(content: dict[str, Any]) -> FileRecord:
    return FileRecord(bytes=int(content["bytes"]), sha256=str(content["sha256"]))


def _inside(name: str) -> str:
    """Return the path of a file that a marker names, unchanged, unless it leads out of the checkpoint's folder.

    Raises:
        ValueError: it does; a marker may have been changed by somebody.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"the file {name!r} lies outside")
    return name


def branch_record(folder: Path, checkpoint: Path | None) -> dict[str, Any] | None:
    """Return what a branch builds on, for `environment.json`; None for a run that is no branch.

    Args:
        folder: of the run that starts.
        checkpoint: that it resumes from.

    Returns:
        The checkpoint with its step and tokens, and the energy (`kwh`, `kg_co2e`) of all runs up to it, None where it
        is not on record.
    """
    if checkpoint is None or checkpoint.parent == folder:
        return recorded_branch(folder)
    marker, before = read_marker(checkpoint), recorded_branch(checkpoint.parent) or {"kwh": 0.0, "kg_co2e": 0.0}
    spent = {"kwh": marker.kwh, "kg_co2e": marker.kg_co2e}
    sums = {name: None if None in (here, before[name]) else here + before[name] for name, here in spent.items()}
    return {"checkpoint": str(checkpoint), "step": marker.step, "tokens": marker.tokens, **sums}


def recorded_branch(folder: Path) -> dict[str, Any] | None:
    """Return what the branch in a folder builds on, see `branch_record`; None for another run, or none."""
    try:
        found = json.loads((folder / ENVIRONMENT_NAME).read_text(encoding="utf-8")).get("branch")
    except (OSError, ValueError, AttributeError):
        return None
    return dict(found) if isinstance(found, dict) else None


def recorded_left_out(folder: Path) -> list[dict[str, Any]]:
    """Return the rows that a run leaves out, as its folder has them on record; see `guards.StepGuard`."""
    path = folder / ENVIRONMENT_NAME
    return list(json.loads(path.read_text(encoding="utf-8")).get("left_out", [])) if path.is_file() else []


def record_left_out(folder: Path, left_out: list[dict[str, Any]]) -> None:
    """Put the rows that a run leaves out on record in its folder."""
    path = folder / ENVIRONMENT_NAME
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "left_out": left_out})


def ranges_of(left_out: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return all rows that are left out as (first, count), in their order."""
    return sorted((int(first), int(count)) for record in left_out for first, count in record["rows"])


def _record_copy(folder: Path) -> Path | None:
    """Return the newest copy of a run's `environment.json` in its checkpoints that is as it was saved, or None."""
    for _, path in reversed(complete_checkpoints(folder)):
        copy = path / ENVIRONMENT_COPY_NAME
        with contextlib.suppress(InputError, OSError):
            record = (read_marker(path).files or {}).get(copy.name)
            if record is not None and sha256_file(copy) == record.sha256:
                return copy
    return None


def how_to_restore(folder: Path) -> str:
    """Return what somebody can do whose run's `environment.json` is damaged."""
    copy = _record_copy(folder)
    if copy is None:
        return "Restore it from a copy, or choose another folder."
    return f"Restore it: {shlex.join(['cp', str(copy), str(folder / ENVIRONMENT_NAME)])}"


def ways_on(folder: Path, identity: dict[str, Any]) -> str:
    """Return what somebody can do whose settings are not those of the run in a folder, as its record has them."""
    copy = _record_copy(folder)
    if copy is not None and json.loads(copy.read_bytes()).get("identity") != identity:
        return f"{ENVIRONMENT_NAME} is not as it was at {copy.parent.name}; if it was damaged: {how_to_restore(folder)}"
    whole = [path for _, path in complete_checkpoints(folder) if (path / "config.json").is_file()]
    if not whole:
        return "Choose another folder."
    return (
        f"Choose another folder; a new run there can begin with these weights: --model_name_or_path {whole[-1]} "
        "--output_dir NEW (in place of --preset; its optimizer and its schedule begin anew)."
    )


def marker_text(marker: Marker) -> str:
    """Return the content of the file `complete.json` for a marker."""
    content = {name: value for name, value in asdict(marker).items() if value is not None}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def write_marker(path: Path, marker: Marker) -> None:
    """Write the marker of a checkpoint; all other files must be on the disk already (`sync_files`)."""
    replace_file(path / MARKER_NAME, marker_text(replace(marker, created=marker.created or utc_now())))
    sync_to_disk(path)
    sync_to_disk(path.parent)


def sync_files(path: Path) -> None:
    """Wait until the system has written a checkpoint's files and folders from its memory to the disk."""
    for entry in [*path.rglob("*"), path]:
        sync_to_disk(entry)


def hash_files(path: Path) -> dict[str, FileRecord]:
    """Return size and hash of every file of a checkpoint but its marker; several files are read at the same time."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name not in _NOT_HASHED]
    hashes = _hash_all(files)
    return {
        file.relative_to(path).as_posix(): FileRecord(file.stat().st_size, sha256)
        for file, sha256 in zip(files, hashes, strict=True)
    }


def _hash_all(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor(min(_MOST_HASHING_THREADS, available_cores())) as threads:
        return list(threads.map(sha256_file, files))


def checkpoint_faults(path: Path, hashes: bool = True) -> list[str]:
    """Return what is wrong with a checkpoint, a sentence for each fault; an empty list when it is whole.

    Args:
        path: the checkpoint.
        hashes: read all files and compare their hashes too, which takes about a second a gigabyte.
    """
    if not path.is_dir():
        return ["there is no such folder"]
    if not (path / MARKER_NAME).is_file():
        return [f"has no {MARKER_NAME}: it was not saved to its end"]
    try:
        marker = read_marker(path)
    except InputError as error:
        return [str(error).removeprefix(f"{path}: ")]
    faults = []
    match = _CHECKPOINT.match(path.name)
    if match and int(match[1]) != marker.step:
        faults.append(f"{MARKER_NAME} is of step {marker.step}")
    records = marker.files or {}
    if marker.files is not None:  # weights that the marker does not list cannot be verified
        weights = {file.relative_to(path).as_posix() for file in path.rglob("*.safetensors")}
        faults += [f"{name} is not listed in {MARKER_NAME}" for name in sorted(weights - set(records))]
        if not records:
            faults.append(f"{MARKER_NAME} lists no file")
    faults += [fault for name, record in records.items() if (fault := _size_fault(path, name, record))]
    return faults or (_hash_faults(path, records) if hashes else [])


def _size_fault(path: Path, name: str, record: FileRecord) -> str | None:
    if not (path / name).is_file():
        return f"{name} is missing"
    found_bytes = (path / name).stat().st_size
    return None if found_bytes == record.bytes else f"{name} has {found_bytes:,} bytes and not {record.bytes:,}"


def _hash_faults(path: Path, records: dict[str, FileRecord]) -> list[str]:
    try:
        found = _hash_all([path / name for name in records])
    except OSError as error:
        return [f"cannot be read ({error})"]
    return [
        f"{name} has other content of the same length (its sha256 is not the one recorded)"
        for (name, record), sha256 in zip(records.items(), found, strict=True)
        if sha256 != record.sha256
    ]


def _lease_path(path: Path) -> Path:
    return path.parent / LEASES_FOLDER / f"{path.name}.lock"


def _lease_lock(path: Path) -> FileLock:
    _lease_path(path).parent.mkdir(exist_ok=True)
    return FileLock(_lease_path(path))


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Keep a complete checkpoint from being deleted or replaced during the block.

    The lease is a lock of the kernel: it ends when the process that holds it ends, also when that is killed.

    Raises:
        InputError: another process holds it, or the checkpoint is not there (any more).
    """
    ensure(path.is_dir(), f"{path}: there is no such folder.")
    refusal = f"{path}: another process holds this checkpoint. Wait until it is done."
    lock = take_lock(_lease_path(path), refusal, _LEASE_SECONDS)
    try:
        # Looked for only now: before the lease another process could still delete it.
        ensure((path / MARKER_NAME).is_file(), f"{path}: has no {MARKER_NAME}: it was not saved to its end.")
        yield
    finally:
        lock.release()


def is_leased(path: Path) -> bool:
    """Return whether a process holds a lease of a checkpoint."""
    if not _lease_path(path).exists():
        return False
    try:
        with _lease_lock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True


def delete_checkpoint(path: Path) -> bool:
    """Delete a checkpoint that was written here, unless a process holds it; return whether it is gone.

    The marker goes first, so that a deletion that is killed leaves nothing that looks complete.
    """
    if not is_ours(path):
        return False
    lock = _lease_lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if (path / MARKER_NAME).is_file() and not (path / BEGUN_NAME).is_file():
            begin_saving(path)  # an earlier version saved it; a deletion that is killed can so be finished later
        (path / MARKER_NAME).unlink(missing_ok=True)
        shutil.rmtree(path)
        # A process that has opened this lock file and waits for it finds no checkpoint once it holds the lock.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()
    return True
