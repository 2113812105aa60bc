"""Does what a case of bad input says, and tells what was wrong with the answer: a crash, a hang, or a file written."""

import contextlib
import faulthandler
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from fuzz_cases import Case, command, input_names

SECONDS = int(
    os.environ.get("TTL_FUZZ_SECONDS", "120")
)  # the most that a case may take here, on a busy machine; most take a tenth of one
MOST_LINES = 25  # of a message; a list of findings may be so long
# What a verb may write beside its output, also where it refuses: nothing. Of inputs, these may be written into.
WRITES_INTO = {"card": "run", "emissions": "run", "evaluate": "run", "classify": "model", "publish": "run"}


class WorkBegins(BaseException):
    """The config was accepted, and what begins now could take long. No `except Exception` catches it."""


class TookTooLong(BaseException):
    """The alarm."""


class Fault(AssertionError):
    """What the answer to bad input must not be; `signature` is the same for faults of one cause.

    Attributes:
        signature: short, without paths and values.
    """

    def __init__(self, signature: str, text: str) -> None:
        super().__init__(f"{signature}\n{text}")
        self.signature = signature


def break_files(case: Case, folder: Path) -> None:
    """Damage copies of the inputs, as the case says."""
    names = [name for name in input_names(case.values()) if (folder / "in" / name).exists()]
    for which, file, what, place, value in case.damages:
        if not names:
            return
        top = folder / "in" / names[which % len(names)]
        files = (
            sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
            if top.is_dir()
            else [top]
        )
        if files:
            path = files[file % len(files)]
            if path.is_file():
                _break_file(path, what, place, value)


def _break_file(path: Path, what: str, place: int, value: Any) -> None:
    content = path.read_bytes()
    at = place * max(0, len(content) - 1) // 10_000
    replaced: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[:at],
        "flip": lambda: content[:at] + bytes([content[at] ^ (1 << place % 8)] if content else []) + content[at + 1 :],
        "empty": lambda: b"",
        "other": lambda: _dumped(value),
        "value": lambda: _changed(content, place, value, drop=False),
        "drop": lambda: _changed(content, place, value, drop=True),
        "bytes": lambda: content[:at] + b"\xff\xc0\x80" + content[at:],
        "nul": lambda: content[:at] + b"\0" + content[at:],
        "long": lambda: content[:at] + b"9" * 100_000 + content[at:],
        "twice": lambda: content + content,
    }
    if what in replaced:
        new = replaced[what]()  # before the file is opened: it may be a link
        path.write_bytes(new)
        return
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "pipe":
        os.mkfifo(path)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, skipkeys=True).encode()


def _changed(content: bytes, place: int, value: Any, drop: bool) -> bytes:
    """Change or drop one value of a JSON file, or of a line of one; of other files cut a part out."""
    try:
        lines = [json.loads(content)]
    except (ValueError, RecursionError):
        try:
            lines = [json.loads(line) for line in content.splitlines()]
        except (ValueError, RecursionError):
            return content[: len(content) // 3] + content[len(content) // 2 :]
    places: list[tuple[Any, Any]] = []

    def visit(part: Any) -> None:
        for key in list(part) if isinstance(part, dict) else range(min(len(part), 20)):
            places.append((part, key))
            if isinstance(part[key], dict | list) and len(places) < 4000:
                visit(part[key])

    visit(lines)
    if not places:
        return content
    holder, key = places[place % len(places)]
    if drop:
        del holder[key]
    else:
        holder[key] = value
    return "".join(json.dumps(line, skipkeys=True) + "\n" for line in lines).encode()


def prepare(case: Case, world: Path, folder: Path) -> list[str]:
    """Make the folder of a case, with copies of the inputs that it names, and return the words after `ttl`."""
    words, text = command(case)
    inputs = folder / "in"
    inputs.mkdir(parents=True)
    typed_in = input_names([*case.words, *words]) + input_names(case.values())
    if any(
        word in ("in", "in/", ".") or word.startswith(("in/*", "in/[", "in/..", "./in"))
        for word in _texts(case.values())
    ):
        typed_in += ["texts", "instructions.jsonl"]
    if case.verb == "merge" or "adapter" in typed_in:
        typed_in.append("chat")
    if "odd" in typed_in:  # of the odd files, those that are named
        named = {Path(word).name for word in _texts(case.values()) if word.startswith("in/odd/")}
        for path in (world / "odd").iterdir():
            if not named or path.name in named:
                _copy(path, inputs / "odd" / path.name)
    for name in dict.fromkeys(typed_in):
        if name != "odd" and (world / name).exists():
            _copy(world / name, inputs / name)
    break_files(case, folder)
    (folder / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return words


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return _texts([*value, *value.values()])
    return (
        [text for part in value for text in _texts(part)]
        if isinstance(value, list | tuple)
        else [value]
        if isinstance(value, str)
        else []
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of every file and link below a folder, and its folders with zeros."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        is_folder = stat.S_ISDIR(state.st_mode)
        found[str(path.relative_to(folder))] = (0, 0) if is_folder else (state.st_size, state.st_mtime_ns)
    return found


def _begin_work(*_: Any, **__: Any) -> NoReturn:
    raise WorkBegins


_LONG = ("launching.launch.supervise", "classification.classify.finetune", "lab.runs.train_runs", "training.trials._speed_of",
         "publishing.follow.start_follower", "publishing.follow.follow", "chat.space.build_page",
         "export.bench._measure", "export.serve._serve", "people.voting.serve_votes")  # fmt: skip


@contextlib.contextmanager
def _without_long_work(verb: str) -> Iterator[None]:
    """Let what could take long, or start other processes, raise `WorkBegins` instead."""
    import importlib
    from unittest import mock

    places = [*_LONG, "tokenizer.train.build_tokenizer"] if verb == "demo" else list(_LONG)
    with contextlib.ExitStack() as stack:
        for place in places:
            module, _, name = place.rpartition(".")
            loaded = importlib.import_module(f"teenytinyllama.{module}")
            if hasattr(loaded, name):
                stack.enter_context(mock.patch.object(loaded, name, _begin_work))
        yield


def _alarm(*_: Any) -> NoReturn:
    raise TookTooLong


@contextlib.contextmanager
def _as_process(folder: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Be, for the block, a process in this folder: its environment, streams, scratch folder and time are its own."""
    before, place, scratch, keyboard = dict(os.environ), os.getcwd(), tempfile.tempdir, sys.stdin
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGALRM)
    }
    output, errors = io.StringIO(), io.StringIO()
    (folder / "tmp").mkdir()
    os.chdir(folder)
    tempfile.tempdir, sys.stdin = str(folder / "tmp"), io.StringIO("Olá\n\n/reset\nE depois?\n")
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(SECONDS + 60, exit=True, file=sys.__stderr__)  # where no handler runs any more
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield output, errors
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.stdin, tempfile.tempdir = keyboard, scratch
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)


def _place_of(error: BaseException) -> str:
    """Return the last line of our package that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/teenytinyllama/" in frame.filename]
    last = frames[-1] if frames else None
    return f"{last.filename.split('/teenytinyllama/')[-1]}:{last.name}" if last else "outside"


def run_in_process(case: Case, world: Path, folder: Path) -> str:
    """Run a case here and return how it ended: an exit code, or `begins`.

    Raises:
        Fault: see `judge`; or an exception came out, or the alarm went off.
    """
    from teenytinyllama.cli import main

    words = prepare(case, world, folder)
    before = snapshot(folder)
    with _as_process(folder) as (output, errors), _without_long_work(case.verb):
        try:
            code = main(words)
        except WorkBegins:
            return "begins"
        except TookTooLong as error:
            raise Fault(f"hang in {_place_of(error)}", _shown(error)) from None
        except SystemExit as error:
            raise Fault(f"SystemExit in {_place_of(error)}", _shown(error)) from None
        except BaseException as error:
            if isinstance(error, MemoryError | KeyboardInterrupt):
                raise
            raise Fault(f"{type(error).__name__} in {_place_of(error)}", _shown(error)) from None
    judge(case, code, output.getvalue(), errors.getvalue(), before, snapshot(folder))
    return str(code)


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-4000:]


def run_as_process(case: Case, world: Path, folder: Path) -> str:
    """Run a case as a user does, and return its exit code.

    Raises:
        Fault: see `judge`; or it did not end.
    """
    words = [word.replace("\0", "") for word in prepare(case, world, folder)]
    before = snapshot(folder)
    environment = {**os.environ, "TMPDIR": str(folder.parent), "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "teenytinyllama", *words], cwd=folder, env=environment, text=True, errors="replace",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate("Olá\n", timeout=2 * SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Fault(f"process hang of {case.verb}", " ".join(words)) from None
    judge(case, process.returncode, output, errors, before, snapshot(folder))
    return str(process.returncode)


def judge(case: Case, code: int, output: str, errors: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise a `Fault` unless the answer is one that may be given.

    Raises:
        Fault: an exit code other than 0 and 2 (and 1 with a reason), no clear message, a traceback, or a file that was
            written although the input was refused.
    """
    said = f"exit code {code}\n{errors[-3000:]}\n{output[-500:]}"
    if "Traceback (most recent" in errors + output:
        raise Fault(f"traceback printed by {case.verb}", said)
    if code not in (0, 1, 2):
        raise Fault(f"code {code} of {case.verb}", said)
    changed = {name for name in set(before) | set(after) if before.get(name) != after.get(name)}
    new = sorted(name for name in changed if name != "tmp" and not name.startswith("tmp/teenytinyllama-meters"))
    if code == 0:
        writable = WRITES_INTO.get(case.verb, "nothing")
        inside = [
            name for name in new if name.startswith("in/") and name in before and not name.startswith(f"in/{writable}")
        ]
        if inside:
            raise Fault(f"{case.verb} changed its input", f"{inside[:10]}\n{said}")
        return
    beginning = "error: " if code == 2 else "failed: "
    message = errors[errors.rfind(beginning) :] if beginning in errors else ""
    findings = case.verb == "chat" and code == 2 and "check_template" in str(case.values())
    if not message and not findings:
        raise Fault(f"code {code} of {case.verb} without a message", said)
    if code == 1:
        raise Fault(f"failed {case.verb}: {re.sub(r'[^a-zA-Z ]+', '_', message[8:])[:60]}", said)
    if message.count("\n") > MOST_LINES or len(message) > 6000:
        raise Fault(f"long message of {case.verb}", said)
    if "transformers cannot read" not in message and re.search(r"0x[0-9a-f]{8}|<class |object at ", message):
        raise Fault(f"message of {case.verb} shows Python", said)
    if case.verb == "corpus":  # documented: what was cleaned before a damaged file was met is kept
        new = [name for name in new if not re.match(r"[^/]+($|/work|/\.lock)", name)]
    if new:
        raise Fault(f"{case.verb} refused and wrote {re.sub(r'[0-9]+', 'N', new[0])}", f"{new[:10]}\n{said}")
