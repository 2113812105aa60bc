"""Bars: on a terminal each long phase shows one with the time left and clears it; in a pipe there is none."""

import contextlib
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import torch
from test_chat import tiny_model

from teenytinyllama import progress as bars
from teenytinyllama.arguments import write_yaml
from teenytinyllama.models import load_tokenizer
from teenytinyllama.progress import progress, reading_bar, say
from teenytinyllama.stage_folder import sha256_file

# Every bar is drawn as soon as its work begins.
_RUN = "from teenytinyllama import progress, cli; progress.BAR_DELAY = 0; raise SystemExit(cli.main())"
_BAR = re.compile(r"([\w ]+?): +\d+%\|")
_LINES, _COLUMNS = 40, 100


def on_terminal(words: list[str], watch: Callable[[str, int], None] = lambda text, pid: None) -> tuple[int, str]:
    """Run a command on a terminal of 100 columns; return its exit code and all that was written.

    Args:
        words: of the command, behind Python's name.
        watch: called with what was written so far and the process's number.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("NO_COLOR", None)
        os.execv(sys.executable, [sys.executable, *words])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
    written, deadline = b"", time.monotonic() + 240
    with contextlib.suppress(OSError):  # the terminal of a process that has ended
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                part = os.read(terminal, 1 << 16)
                if not part:
                    break
                written += part
                watch(written.decode(errors="replace"), pid)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, written.decode(errors="replace")


def screen(written: str) -> list[str]:
    """The lines that a person sees in the end: a carriage return goes to the first column, `[K` clears, `[A` goes up."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[A":
            row = max(0, row - 1)
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif not part.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> list[str]:
    """Two base models with other weights."""
    top, words = tmp_path_factory.mktemp("models"), []
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    for factor in (5, 6):
        model = tiny_model(tokenizer, context=256)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(factor if weight.ndim == 2 else 1)
        model.save_pretrained(top / f"m{factor}")
        tokenizer.save_pretrained(top / f"m{factor}")
        words.append(f"m{factor}={top / f'm{factor}'}")
    return words


@pytest.fixture
def verbs(tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path, models: list[str]) -> dict[str, list[str]]:
    """A command of each verb."""
    out = ["--output_dir", str(tmp_path / "out")]
    write_yaml(tmp_path / "corpus.yaml", {
        "sources": {"tales": {"inputs": [str(corpus_folder)], "license": "CC0-1.0"}}, "toxicity": False,
        "decontamination": False, "quality": False, "language": False, "workers": 2})  # fmt: skip
    inputs = ["--inputs", str(corpus_folder)]
    return {
        "corpus": ["corpus", "--config", str(tmp_path / "corpus.yaml"), *out],
        "pack": ["pack", *inputs, "--tokenizer", str(tokenizer_folder), "--context", "32", "--num_workers", "2", *out],
        "tokenizer": ["tokenizer", *inputs, "--vocab_size", "600", *out],
        "compare": ["compare", *models, "--prompts", "base", "--n_prompts", "3", "--max_new_tokens", "4",
                    "--serve", "false", *out],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "bars"), [
    ("corpus", {"hashing inputs", "clean", "duplicates", "finish", "mix", "hashing the corpus"}),
    ("pack", {"hashing inputs", "checking documents", "packing", "shuffling"}),
    ("tokenizer", {"hashing inputs", "reading documents", "counting letters", "auditing"}),
    ("compare", {"m5 answers", "m6 answers"}),
])  # fmt: skip
def test_bars_are_on_a_terminal_alone(verb: str, bars: set[str], verbs: dict[str, list[str]], tmp_path: Path) -> None:
    if verb == "corpus":
        pytest.importorskip("datatrove")
    code, written = on_terminal(["-c", _RUN, *verbs[verb]])
    assert code == 0, written
    shown = {name.strip() for name in _BAR.findall(written)}
    assert bars <= shown
    assert re.search(r"\[\d\d:\d\d<(\d\d:\d\d|\?), ", written), "no time left"
    left = [line for line in screen(written) if any(line.startswith(f"{name}:") for name in shown)]
    assert not left, "a bar stays on the screen"
    (tmp_path / "out").rename(tmp_path / "before")
    piped = subprocess.run([sys.executable, "-c", _RUN, *verbs[verb]], capture_output=True, text=True, check=True)
    assert not _BAR.search(piped.stderr + piped.stdout)
    assert "\r" not in piped.stderr + piped.stdout
    assert "\x1b" not in piped.stderr + piped.stdout
    own = ("[00:", "energy ", "Open ")  # bars of the library tokenizers; what depends on the machine and the moment
    seen = [line for line in screen(written) if not line.startswith(own)]
    assert [line.rstrip() for line in piped.stdout.splitlines() if line.strip() and not line.startswith(own)] == seen


def test_a_stop_leaves_the_terminal_clean(tmp_path: Path) -> None:
    code = (
        "import threading, time; from teenytinyllama import progress as h\n"
        "h.BAR_DELAY = 0\n"
        "try:\n"
        "    for _ in h.progress(range(10**6), 'waiting', 'steps'): time.sleep(0.01)\n"
        "except KeyboardInterrupt: print('stopped, threads:', threading.active_count())"
    )
    stopped: list[int] = []

    def stop(text: str, pid: int) -> None:
        if text.count("waiting:") > 2 and not stopped:  # it is at work, after a second
            stopped.append(pid)
            os.kill(pid, signal.SIGINT)

    assert screen(on_terminal(["-c", code], stop)[1]) == ["stopped, threads: 1"]  # one can be forked


class Terminal:
    """A standard error that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)  # not in a fixture: pytest sets its own before the test begins
    return found


def test_short_work_other_ranks_and_other_threads_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    for _ in progress(range(3), "short", "steps"):
        say("a line")  # draws no bar before its time either
    monkeypatch.setattr(bars, "BAR_DELAY", 0)
    thread = threading.Thread(target=lambda: list(progress(range(3), "thread", "steps")))
    thread.start()
    thread.join()
    monkeypatch.setenv("RANK", "1")
    assert list(progress(range(3), "rank", "steps")) == [0, 1, 2]
    assert not terminal.text.strip()
    monkeypatch.setenv("RANK", "0")
    assert list(progress(range(3), "shown", "steps")) == [0, 1, 2]
    assert "shown:   0%|" in terminal.text


def test_a_reading_bar_counts_the_bytes_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    import pyarrow
    import pyarrow.parquet

    from teenytinyllama.data.readers import read_rows

    monkeypatch.setattr(bars, "BAR_DELAY", 0)
    terminal = terminal_of(monkeypatch)
    texts = [f"Texto {number}. " * 50 for number in range(500)]
    plain, packed, table = (tmp_path / name for name in ("a.txt", "b.txt.gz", "c.parquet"))
    plain.write_text("\n".join(texts), encoding="utf-8")
    packed.write_bytes(gzip.compress("\n".join(texts).encode()))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), table, row_group_size=100)
    for path in (plain, packed, table):
        told: list[float] = []
        with reading_bar([path], f"reading {path.name}"), bars.told_of_reads(told.append):
            rows: list[Any] = list(read_rows("inputs", path, "text", "metadata", "line", None))
        assert len(rows) == 500
        assert sum(told) == pytest.approx(path.stat().st_size)
        assert f"reading {path.name}:   0%|" in terminal.text


def test_a_large_file_that_is_hashed_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    (tmp_path / "large").write_bytes(b"abc")
    plain = sha256_file(tmp_path / "large")
    monkeypatch.setattr(bars, "BAR_DELAY", 0)
    assert not terminal.text
    monkeypatch.setattr("teenytinyllama.stage_folder._LARGE_FILE_BYTES", 3)
    assert sha256_file(tmp_path / "large") == plain
    assert "hashing large:" in terminal.text
