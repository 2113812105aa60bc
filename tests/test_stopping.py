"""Signals, paths and disks that end a stage: one line, the right exit code, no traceback."""

import errno
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama import cli
from teenytinyllama.arguments import parse
from teenytinyllama.checks import InputError, ensure_folder, run_main
from teenytinyllama.data.pack import PackConfig
from teenytinyllama.launching.processes import STOP_SIGNALS


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("pack", "what is packed is kept; the same command goes on"),
        ("tokenizer", "the same command starts again"),
        ("emissions", "the same command starts again"),
        ("publish", "what is published stays; the same command goes on"),
    ],
)
def test_a_signal_ends_a_verb_with_one_line(
    verb: str, line: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*arguments: object) -> None:
        try:
            signal.raise_signal(number)
        except Exception:  # as libraries do
            raise AssertionError("a signal is no failure that a library may handle") from None

    before = [signal.getsignal(known) for known in STOP_SIGNALS]
    monkeypatch.setitem(
        cli.VERBS, verb, replace(cli.VERBS[verb], run=work, config="demo:InitConfig", data_config="", words=())
    )
    assert cli.main([verb, "--folder", "x"]) == 75
    assert capsys.readouterr().err == f"stopped: {number.name}; {line}\n"
    assert [signal.getsignal(known) for known in STOP_SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["app", "chat"])
def test_a_signal_is_the_usual_end_of_what_lasts(
    verb: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.VERBS, verb, replace(cli.VERBS[verb], run=lambda *_: signal.raise_signal(number)))
    assert cli.main([verb, "model"]) == 0
    assert capsys.readouterr().err == ""


def test_a_signal_outside_of_any_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda: signal.raise_signal(signal.SIGINT)) == 75
    assert capsys.readouterr().err == "stopped: SIGINT; the same command starts again or goes on\n"


@pytest.mark.parametrize(
    ("work", "code", "line"),
    [
        (lambda tmp: (tmp / ("x" * 300)).mkdir(), 2, r"error: .*xxx: File name too long\. Give another path"),
        (lambda tmp: (tmp / "a\0b").mkdir(), 2, "error: a path holds the character NUL"),
        (lambda tmp: Path("~nobody-of-this-name").expanduser(), 2, "error: a path begins with ~ and a user who"),
        (lambda tmp: (tmp / "file" / "x").mkdir(), 2, r"error: .*/file/x: Not a directory"),
        (lambda tmp: (tmp / "loop" / "x").mkdir(), 2, r"error: .*/loop/x: Too many levels of symbolic links"),
        (lambda tmp: (tmp / "dir").read_text(), 2, r"error: .*/dir: Is a directory"),
        (lambda tmp: _fail(OSError(errno.EROFS, "Read-only file system", "/x")), 2, "error: /x: Read-only file system"),
        (
            lambda tmp: _fail(PermissionError(errno.EACCES, "Permission denied", "/x")),
            2,
            "error: /x: Permission denied",
        ),
        (
            lambda tmp: _fail(OSError(errno.ENOSPC, "No space left on device")),
            1,
            "failed: No space left on device. Free",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line(
    work: Any, code: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert run_main(lambda: work(tmp_path)) == code
    err = capsys.readouterr().err
    assert re.match(line, err)
    assert err.count("\n") == 1


def _fail(error: OSError) -> None:
    raise error


@pytest.mark.parametrize("error", [OSError("no errno"), FileNotFoundError(2, "gone", "/x"), ValueError("x")])
def test_a_failure_of_the_program_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_main(lambda: _fail(error))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["tokenizer", "--inputs", "sample", "--output_dir", "a\0b"], "holds the character NUL"),
        (["tokenizer", "--inputs", "sample", "--output_dir", "x" * 300], "File name too long"),
        (["tokenizer", "--inputs", "sample", "--output_dir", "/proc/x"], "output_dir=/proc/x: /proc cannot be written"),
        (["publish", "run", "--to", "folder:" + "x" * 300], "no such folder"),
    ],
)
def test_paths_that_cannot_be_are_refused_with_one_line(
    argv: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        InputError, match="output_dir=.*/new: .* cannot be written to. Choose another folder, or change"
    ):
        ensure_folder("output_dir", tmp_path / "new")


def test_a_yaml_with_a_nul_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text('output_dir: "a\\0b"\n')
    with pytest.raises(InputError, match="output_dir='a.x00b': holds the character NUL"):
        parse(PackConfig, ["--config", str(config)])
