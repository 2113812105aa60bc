"""Faults that must not lose a run: fixed points, two random kills, and a damaged file of each kind.

`make torture N=200` tries many more at random; docs/reliability.md holds what came of them.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from strikes import CHECKPOINT_FILES, INPUT_FILES, RUN_FILES, damage, flip_a_bit, truncate
from test_pretrain import losses, make_values, run
from torture import FIXED, RANDOM, Fault, can_mount, on_small_disk, run_case, table
from works import REPOSITORY, Bench, Work

from teenytinyllama.checks import run_main
from teenytinyllama.stage_folder import sha256_file

# Handed on alike, as tests/test_launcher.py holds; `make torture` tries them too.
AS_TERM = {"INT", "USR1"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("faults") / "bench")
    made.prepare()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("number", "fault"), enumerate(FIXED), ids=[fault.name for fault in FIXED])
def test_a_fault_at_a_fixed_point_loses_nothing_that_was_saved(
    number: int, fault: Fault, bench: Bench, tmp_path: Path
) -> None:
    if fault.name in AS_TERM:
        pytest.skip("as TERM")
    if fault.work == "corpus":
        pytest.importorskip("datatrove")
    if fault.small_disk and not can_mount():
        pytest.skip("no file system may be mounted here")
    if fault.small_disk:
        record = on_small_disk(bench, f"fixed{number}", fault, number, tmp_path / "disk")
    else:
        record = run_case(bench, fault, number, tmp_path / "case")
    assert not record["wrong"], record


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_kill_at_a_random_moment_loses_nothing_that_was_saved(seed: int, bench: Bench, tmp_path: Path) -> None:
    record = run_case(bench, RANDOM[seed], seed, tmp_path / "case")
    assert not record["wrong"], record


# Damage, in this process: a start takes a second and not ten.


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> tuple[Path, str, list[float]]:
    """A run with checkpoints at 4 and 8 of 10 steps, as a kill leaves it; the sha256 of its weights, its losses."""
    place = tmp_path_factory.mktemp("killed")
    shutil.copytree(packed_folder, place / "packed")
    shutil.copytree(tokenizer_folder, place / "tokenizer")
    folder = run(values_of(place))
    found = sha256_file(folder / "model.safetensors"), losses(folder)
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "checkpoint-10")
    return place, *found


def values_of(place: Path) -> dict[str, Any]:
    values = make_values(place, place / "packed", place / "tokenizer")
    return values | {"max_tokens": 2560, "eval_max_tokens": 200, "sample_prompts": []}


@pytest.mark.slow
@pytest.mark.parametrize("how", [flip_a_bit, truncate])
@pytest.mark.parametrize("name", [*CHECKPOINT_FILES, *RUN_FILES, *INPUT_FILES])
def test_a_damaged_file_is_named_or_changes_no_weight(
    name: str, how: Any, killed: tuple[Path, str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("TTL_CHECKED_ROWS", raising=False)
    place = Path(shutil.copytree(killed[0], tmp_path / "place"))
    work = Work("pretrain", [], place, place / "run", dict)
    struck = damage(work, name, how, Random(f"{how.__name__} {name}"))
    code = run_main(lambda: run(values_of(place)) and None)
    said = capsys.readouterr()
    file = name.rpartition("/")[2]
    if name in CHECKPOINT_FILES:
        # Of a damaged marker any file may seem to be another.
        assert f"skipped    checkpoint-8: {'' if name == 'complete.json' else name}" in said.out
        assert f"resumed from {place}/run/checkpoint-4" in said.out
    if name in INPUT_FILES and how is truncate:
        assert code == 2
    if code == 2:  # nothing is trained, and with the file from a copy the same command goes on
        assert file in said.err or f"tokenizer={place}/tokenizer" in said.err
        assert losses(place / "run") == killed[2]
        struck.mend()
        code = run_main(lambda: run(values_of(place)) and None)
    assert code == 0
    assert sha256_file(place / "run" / "model.safetensors") == killed[1]
    if file != "metrics.jsonl":
        assert losses(place / "run") == killed[2]


@pytest.mark.slow
@pytest.mark.parametrize("how", [flip_a_bit, truncate])
def test_a_damaged_manifest_of_a_complete_run_is_named(
    how: Any, killed: tuple[Path, str, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(killed[0], tmp_path / "place"))
    run(values_of(place))
    manifest = place / "run" / "run.json"
    if how is flip_a_bit:  # of the line that says how long the run was
        manifest.write_text(manifest.read_text().replace('"steps": 10', '"rteps": 10'))
    else:
        how(manifest, Random(0))
    assert run_main(lambda: run(values_of(place)) and None) == 2
    assert re.search(
        "run.json is damaged .*; or delete it, and the same command ends the run again", capsys.readouterr().err
    )
    manifest.unlink()
    run(values_of(place))
    assert sha256_file(place / "run" / "model.safetensors") == killed[1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:63200: Connection reset by peer."),
            True,
        ),
        (RuntimeError("[gloo/transport/tcp/pair.cc:554] Connection closed by peer [127.0.0.1]:9"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_a_lost_rank_is_no_traceback(
    error: Exception, expected: bool, monkeypatch: pytest.MonkeyPatch, packed_folder: Path, tokenizer_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    from teenytinyllama.checks import RunFailedError
    from teenytinyllama.training.trainer import Pretrainer

    def failing(*arguments: Any, **keys: Any) -> None:
        raise error

    monkeypatch.setattr(Pretrainer, "training_step", failing)
    values = make_values(tmp_path, packed_folder, tokenizer_folder) | {"sample_prompts": [], "eval_strategy": "no"}
    with pytest.raises(RunFailedError if expected else type(error), match="another rank has" if expected else None):
        run(values)


# The driver itself


def test_torture_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torture

    ran: list[int] = []

    def made_up(bench: Bench, index: str, seed: int, place: Path) -> dict[str, Any]:
        ran.append(seed)
        if len(ran) == 3:
            raise KeyboardInterrupt
        wrong = ["lost"] if seed == 4 else []
        return {"fault": f"of {index}", "seed": seed, "where": "here", "lost_steps": seed, "same": not wrong,
                "told": ["a | b", "c"], "wrong": wrong}  # fmt: skip

    monkeypatch.setattr(torture, "one", made_up)
    monkeypatch.setattr(torture, "can_mount", lambda: True)
    monkeypatch.setattr(Bench, "prepare", lambda self: None)
    monkeypatch.setattr(sys, "argv", ["torture.py", "5", "--folder", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        torture.main()
    assert torture.main() == 1
    assert ran == [0, 1, 2, 2, 3, 4]
    out = capsys.readouterr().out
    assert "| of random3 | 1 | 3 | 1 of 1 | a \\| b ⏎ c |" in out
    assert "5 cases, 1 of them wrong: random4" in out
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 5
    assert table([]).count("\n") == 1


def test_a_process_without_a_fault_is_left_alone(tmp_path: Path) -> None:
    import subprocess

    code = "import sys, json; print(json.dumps([type(finder).__name__ for finder in sys.meta_path]))"
    for fault, expected in (("", False), (json.dumps({"place": "json:dumps"}), True)):
        environment = {**os.environ, "TTL_FAULT": fault, "PYTHONPATH": str(REPOSITORY / "tests" / "faults")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ("Finder" in json.loads(done.stdout)) is expected
