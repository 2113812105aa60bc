"""Checks: refusals of bad input and their exit codes, bounds of keys, room on disks, and what the Hub takes and raises.

Bad input by a user raises `InputError`, whose one message names the field, the value and the fix; other exceptions are
failures of the program and keep their traceback. Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped and resumable.
"""

import difflib
import errno
import importlib.util
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 1, 2, 75
# The file of control groups (version 2) that limits processor time: `QUOTA PERIOD` in microseconds, or `max PERIOD`.
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class InputError(ValueError):
    """Bad input by the user: the message names the field, the value, what is allowed and the fix."""


class MissingFileError(InputError, FileNotFoundError):
    """A path given by the user does not exist."""


class MissingPackageError(InputError, ImportError):
    """An optional package is needed for what the user asked; the message has the pip line."""


class RunFailedError(RuntimeError):
    """The work failed for a known reason: the message explains it and is printed without a traceback. Exit code 1."""


class StoppedResumable(KeyboardInterrupt):
    """A signal stopped the work; the message says what is kept and what the same command does.

    Like `KeyboardInterrupt` it is not an `Exception`: a library's `except Exception` must not catch it, wherever the
    signal arrives.
    """


class DamagedRowsError(InputError):
    """Some rows of a file cannot be read; those of its other parts may be."""


def ensure(condition: object, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds.

    Raises:
        InputError: the condition is false.
    """
    if not condition:
        raise InputError(message)


# Keys that give a number of processes to start, which the number of the machine's cores bounds.
_PROCESS_KEYS = frozenset({"num_workers", "dataloader_num_workers", "num_processes"})
_LEAST_PROCESSES, _PROCESSES_PER_CORE = 64, 4  # a machine with few cores may still try the ranks of a larger one

# The smallest and the largest value of keys, in every config that has them. The largest values are far beyond any use,
# and smaller than those that would end in an endless loop, in an allocation of all memory or in an overflow. None: the
# stage itself checks the smallest value and says what is usual.
_BOUNDS: dict[str, tuple[float | None, float]] = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),  # numpy's bounds; torch takes more
    **dict.fromkeys(("max_steps", "eval_max_tokens", "held_out_max_tokens"), (None, 10**12)),
    "tokens_per_step": (None, 10**9),  # sixteen times the largest batches that were ever published
    **dict.fromkeys(("pairs_per_step", "per_device_train_batch_size", "per_device_eval_batch_size", "batch_size",
                     "gradient_accumulation_steps", "eval_accumulation_steps", "torch_empty_cache_steps",
                     "dataloader_prefetch_factor", "save_total_limit"), (None, 10**6)),
    **dict.fromkeys(("context", "max_length", "stride", "vocab_size", "num_superwords"), (None, 2**24)),
    **dict.fromkeys(("max_new_tokens", "sample_new_tokens", "final_answer_tokens", "final_answers", "cloze_items",
                     "signal_items", "seeds", "top_k", "bias_texts"), (None, 10**6)),
    **dict.fromkeys(("num_train_epochs", "lora_r"), (None, 10**5)),
    "learning_rate": (None, 1000),
    **dict.fromkeys(("weight_decay", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha", "eval_delay"), (0, 10**9)),
    **dict.fromkeys(("warmup_steps", "logging_steps", "eval_steps", "save_steps"), (0, 10**12)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, math.nextafter(1, 0))),
    **dict.fromkeys(("label_smoothing_factor", "decay_fraction", "lora_dropout"), (0, 1)),
    **dict.fromkeys(("ddp_timeout", "ddp_bucket_cap_mb"), (1, 10**9)),
    "shard_megabytes": (None, 10**6),
    "shard_rows_megabytes": (1, 10**6),
    "workers": (1, 10**6),
    "max_broken_share": (0, 1),
    "pue": (None, 1000),
}  # fmt: skip


def check_bounds(key: str, value: object) -> None:
    """Check the numbers and texts of a value, also those in lists and mappings, against the bounds of its key.

    Raises:
        InputError: a number outside the key's bounds, infinite or beyond 64 bits; or a text with the character NUL or
            with half a surrogate pair, which no file and no tokenizer takes.
    """
    if isinstance(value, list | tuple):
        for item in value:
            check_bounds(key, item)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_bounds(key, name)
            check_bounds(key, item)
    elif isinstance(value, str):
        _check_text(key, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(key, value)


def _check_text(key: str, text: str) -> None:
    ensure("\0" not in text, f"{key}: holds the character NUL (U+0000), which no name and no text can have.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{key}: is not valid UTF-8 at character {error.start + 1}. Write it in UTF-8.") from error


def _check_number(key: str, value: float) -> None:
    if isinstance(value, int) and abs(value) >= 2**63:  # which may be too large to be written, even as a float
        shown = f"{value:.3g}" if abs(value) < 10**300 else f"{'-' * (value < 0)}1e300 or beyond"
        raise InputError(f"{key}={shown}: must fit into 64 bits (below 9.2e18).")
    ensure(math.isfinite(value), f"{key}={value}: must be a finite number.")
    if key in _PROCESS_KEYS:
        most = most_processes()
        ensure(
            value <= most,
            f"{key}={value}: starts so many processes, and {counted(available_cores(), 'core')} can be used here. Give "
            f"{most} or fewer.",
        )
        ensure(value >= 0, f"{key}={value}: must be 0 or more.")
    least, most_value = _BOUNDS.get(key, (None, math.inf))
    ensure(value <= most_value, f"{key}={value:g}: must be at most {_written(most_value)}.")
    ensure(least is None or value >= least, f"{key}={value:g}: must be at least {_written(least or 0)}.")


def _written(bound: float) -> str:
    """Return a bound as a reader would write it: 1,000,000 and not 1e+06."""
    return f"{bound:,}" if isinstance(bound, int) else "just below 1"


def most_processes() -> int:
    """Return the most processes of one kind that may be started on this machine."""
    return max(_LEAST_PROCESSES, _PROCESSES_PER_CORE * available_cores())


def near_name(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name nearest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def near_folder(path: str | Path) -> str:
    """Return ` Did you mean 'x'?` for the folder beside `path` with the most similar name, or an empty string."""
    path = Path(path).expanduser()
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:  # the parent is no folder that can be listed
        return ""
    matches = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    return f" Did you mean {str(path.parent / matches[0])!r}?" if matches else ""


def ensure_packages(extra: str, *names: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Raises:
        MissingPackageError: one is not; the message has the pip line.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"{', '.join(missing)}: not installed. Install what this needs: pip install 'teenytinyllama[{extra}]'"
        )


def ensure_file(field: str, path: str | Path, fix: str) -> Path:
    """Return `path` as a Path after checking that it exists.

    Raises:
        MissingFileError: nothing is there; the message ends with `fix`, which says what makes the file.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{field}={path}: no such file or folder. {fix}")
    return path


def read_utf8(path: Path) -> str:
    """Return the text of a file that a stage or a user wrote.

    Raises:
        InputError: it is not UTF-8, which is how damage shows.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}, so it is damaged. Copy it again.") from error


def free_disk_bytes(folder: str | Path) -> int:
    """Return the free bytes of the disk that holds `folder`, or would hold it."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: str | Path) -> Path:
    """Return the folder itself, or the nearest folder above it that exists."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def ensure_folder(field: str, folder: str | Path) -> None:
    """Check that `folder` is a folder that this process may write to, or could be made.

    Raises:
        InputError: it is a file, would lie below a file, or may not be written to.
    """
    existing = nearest_existing(folder)
    what = "" if existing == Path(folder).absolute() else f"{existing} "
    ensure(existing.is_dir(), f"{field}={folder}: {what}is a file. Choose a folder.")
    ensure(
        os.access(existing, os.W_OK | os.X_OK) and shutil.disk_usage(existing).total > 0,  # /proc is no disk
        f"{field}={folder}: {what}cannot be written to. Choose another folder, or change its permissions.",
    )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural must end in s: `1 start`, `2,000 starts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_bytes(count: int) -> str:
    """Return a number of bytes in a readable unit, by powers of ten: `312 bytes`, `4.2 MB`, `1,250 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:.{1 if value >= 9.995 else 2}f} {unit}"
    return "1 byte" if count == 1 else f"{count} bytes"


def ensure_disk_space(field: str, folder: str | Path, needed_bytes: int, fix: str) -> None:
    """Check that the disk that will hold `folder` has `needed_bytes` free, plus five per cent.

    Raises:
        InputError: the disk is too full, or `folder` cannot be made or written to.
    """
    ensure_folder(field, folder)
    needed_bytes = math.ceil(needed_bytes * 1.05)
    free_bytes = free_disk_bytes(folder)
    ensure(
        free_bytes >= needed_bytes,
        f"{field}={folder}: about {format_bytes(needed_bytes)} are needed there and {format_bytes(free_bytes)} are "
        f"free. {fix}",
    )


def available_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota
        return cores


def ensure_platform() -> None:
    """Check that the operating system has the signals, limits and sessions of processes that the stages need.

    Raises:
        InputError: it is Windows without WSL.
    """
    ensure(
        sys.platform != "win32",
        "Windows: teenytinyllama runs on Linux and macOS. On Windows use WSL 2 (`wsl --install`) and install it there.",
    )


def is_main_process() -> bool:
    """Return whether this process is rank 0 or the only process, by the environment variable RANK."""
    return int(os.environ.get("RANK", "0")) == 0


# Errors of the system for a path that a user gave, and errors of a disk that is full or broken.
_PATH_FAULTS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# Paths that Python refuses by itself: words of its error, and the message for the user.
_NO_PATHS = {
    "embedded null": "a path holds the character NUL, which no path can. Write it without",
    "home directory": "a path begins with ~ and a user who is not known here. Write the whole path",
}


def _explain_fault(error: OSError | ValueError | RuntimeError) -> InputError | RunFailedError | None:
    """Return an error with a message for users if a path or a disk is the cause; None for a failure of the program."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in _DISK_FAULTS:
            return RunFailedError(f"{where}{error.strerror}. Free some space, or mend the disk; then run it again.")
        if error.errno in _PATH_FAULTS and where:
            return InputError(f"{where}{error.strerror}. Give another path, or change its permissions.")
        return None
    return next((InputError(text + ".") for words, text in _NO_PATHS.items() if words in str(error)), None)


@contextmanager
def beside_the_model(what: str, on_failure: Callable[[str], None] | None = None) -> Iterator[None]:
    """Turn an exception of the block into a warning: the block makes something beside the model, such as a plot.

    This is the only place that goes on after any exception. The block calls other libraries, drivers and disks, which
    can fail in any way, and none of their failures may end days of training. Signals still end the run. The block must
    not wait for other ranks, because they would wait forever for a rank whose block has failed.

    Args:
        what: name of what the block makes, for the warning.
        on_failure: called with the reason after the warning.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        reason = text if isinstance(error, InputError | RunFailedError) else f"{type(error).__name__}: {text}"
        print(f"warning    {what} failed: {reason}. The run goes on without it.", flush=True)
        if on_failure is not None:
            on_failure(reason)


def run_main(main: Callable[[], int | None]) -> int:
    """Run a program's main function and return its exit code; a known cause of a failure is printed as one message.

    All ranks of a distributed run meet the same bad input, so only rank 0 prints the message.
    """
    for name in ("torchao", "torch.utils._pytree"):  # at its import torchao warns of kernels that nothing here needs
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        ensure_platform()
        try:
            return main() or EXIT_DONE
        except (InputError, RunFailedError, BrokenPipeError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            explained = _explain_fault(error)
            if explained is None:
                raise
            raise explained from error
    except BrokenPipeError:  # the reader of the output has ended, as in `ttl VERB --help | head`
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else the interpreter's last flush fails as well
        return EXIT_FAILED
    except InputError as error:
        if is_main_process():
            print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stop:
        if is_main_process():
            text = stop if isinstance(stop, StoppedResumable) else "SIGINT; the same command starts again or goes on"
            print(f"stopped: {text}", file=sys.stderr)
        return EXIT_RESUMABLE
    except RunFailedError as failure:
        if is_main_process():
            print(f"failed: {failure}", file=sys.stderr)
        return EXIT_FAILED


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a read from the Hub can raise: HTTP errors, errors of the network, a missing file.

    Errors of the network are those of httpx for huggingface_hub 1, and those of httpx2 for huggingface_hub 2.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return (HfHubHTTPError, LocalEntryNotFoundError, transport_module().HTTPError, ConnectionError)


def transport_module() -> Any:
    """Return the HTTP library of the installed Hub client."""
    return import_module("httpx2" if find_spec("httpx2") else "httpx")


# Source: the table in docs/hub/repositories-licenses.md of huggingface/hub-docs (commit 008d54d), without `other`, for
# which a name and a text are needed as well; and Llama 3 and EUPL 1.2, which the Hub has accepted since then.
_HUB_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3
llama3.1 llama3.2 llama3.3 gemma unknown
"""
_HUB_LICENSES = frozenset(_HUB_NAMES.split())
# Words of full names that are in no identifier; and other spellings of licences whose identifier has no number, or only
# one.
_FILLING = re.compile(r"\b(the|license|licence|licen[cç]a|version|vers[aã]o|international|universal|only|or-later)\b")
_SHORT_NAMES = {
    "apache": "apache-2.0", "apache-2": "apache-2.0", "cc0": "cc0-1.0", "cc-zero": "cc0-1.0", "cc-0": "cc0-1.0",
    "odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "odc-odbl": "odbl", "pddl-1.0": "pddl", "gfdl-1.3": "gfdl",
    "gnu-gpl": "gpl", "zlib-libpng": "zlib",
}  # fmt: skip


def hub_license(name: str) -> str | None:
    """Return the Hub's identifier of a licence, or None when it has none.

    >>> [hub_license(name) for name in ("CC BY-SA 4.0", "Apache License, Version 2.0", "GPLv3", "my own")]
    ['cc-by-sa-4.0', 'apache-2.0', 'gpl-3.0', None]
    """
    plain = re.sub(r"[\s_-]+", "-", name.strip().lower())
    if plain in _HUB_LICENSES:
        return plain
    words = _FILLING.sub(" ", plain.replace("or-later", " ").replace(",", " "))
    words = re.sub(r"(?<=[a-z])-?v?(?=\d(\.\d)?$)", "-", re.sub(r"[\s_-]+", "-", words).strip("-"))
    words = re.sub(r"-v(?=\d)", "-", words).replace("--", "-")
    candidates = (words, words + ".0", _SHORT_NAMES.get(words, ""), words.replace("-", ""))  # "Llama 3.1"
    return next((found for found in candidates if found in _HUB_LICENSES), None)


def model_license(field: str, name: str) -> str:
    """Return the Hub's identifier of a model's licence.

    Raises:
        InputError: it has none, so that the Hub would refuse the card.
    """
    found = hub_license(name)
    if found is None:
        raise InputError(
            f"{field}={name}: the Hub takes its own names of licences only.{near_name(name.lower(), _HUB_LICENSES)} "
            "Write one of them, such as apache-2.0, mit or cc-by-4.0; the list is at "
            "https://huggingface.co/docs/hub/repositories-licenses. For terms of your own write `unknown`, and set "
            "license: other, license_name and license_link in the published card."
        )
    return found
