"""Checkpoints prove themselves: markers and hashes, what is skipped, leases, rotation, room on the disk, kills."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from safetensors import SafetensorError
from test_pretrain import interrupted_run, losses, make_values, run
from transformers import Trainer, TrainerControl, TrainerState

from teenytinyllama.arguments import build, check_types
from teenytinyllama.checkpointing import saving as saving_module
from teenytinyllama.checkpointing.checkpoints import (
    FileRecord,
    Marker,
    begin_saving,
    checkpoint_faults,
    complete_checkpoints,
    delete_checkpoint,
    explaining_disk_failures,
    hash_files,
    is_leased,
    lease,
    list_checkpoints,
    read_marker,
    write_marker,
)
from teenytinyllama.checkpointing.saving import CheckpointCallback, choose_checkpoint
from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.run import check_plain_weights
from teenytinyllama.training.run_plan import plan_run
from teenytinyllama.training.trainer import Clock

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run with checkpoints at 4 and 8; tests do not write into it."""
    values = make_values(tmp_path_factory.mktemp("finished"), packed_folder, tokenizer_folder)
    return run(values), values


@pytest.fixture
def unfinished(finished: tuple[Path, dict[str, Any]], values: dict[str, Any]) -> Path:
    """The folder of `values` as a kill after the save of step 8 leaves it."""
    folder = Path(shutil.copytree(finished[0], values["output_dir"]))
    (folder / "run.json").unlink()
    return folder


def chosen(values: dict[str, Any]) -> Path | None:
    """What a start with these values goes on from."""
    config = build(PretrainConfig, check_types(PretrainConfig, values))
    return choose_checkpoint(config, plan_run(config), 0)


def mark(path: Path, **more: Any) -> Path:
    """Make a small complete checkpoint."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(b"weights")
    write_marker(path, Marker(int(path.name.split("-")[1]), 1, 0, files=hash_files(path), **more))
    return path


# What a marker says


def test_a_marker_says_what_the_checkpoint_is_and_holds(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    path = folder / "checkpoint-4"
    marker = read_marker(path)
    assert (marker.step, marker.world_size, marker.zero_stage, marker.tokens) == (4, 1, 0, 1024)
    assert marker.files is not None
    on_disk = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert set(marker.files) == on_disk - {"complete.json", "begun.json"}
    assert {
        "model.safetensors",
        "optimizer/00001.safetensors",
        "optimizer/state.json",
        "scheduler.pt",
        "rng_state.pth",
        "config.json",
    } <= set(marker.files)
    weights = path / "model.safetensors"
    assert marker.files["model.safetensors"] == FileRecord(weights.stat().st_size, sha256_file(weights))
    scored = [row for row in read_jsonl(folder / "metrics.jsonl") if row["step"] == 4 and "bits_per_byte" in row]
    assert marker.bits_per_byte == scored[0]["bits_per_byte"]
    assert marker.created is not None
    assert abs(time.mktime(time.strptime(marker.created, "%Y-%m-%dT%H:%M:%SZ")) - time.mktime(time.gmtime())) < 3600
    later = read_marker(folder / "checkpoint-8")
    assert marker.kwh is not None
    assert later.kwh is not None
    assert later.kg_co2e is not None
    assert 0 < marker.kwh < later.kwh
    assert later.kg_co2e > 0
    assert checkpoint_faults(path) == checkpoint_faults(folder / "checkpoint-8") == []


def test_a_marker_without_an_evaluation_of_its_step_has_no_score(values: dict[str, Any]) -> None:
    folder = run({**values, "max_tokens": 512, "save_steps": 1, "eval_steps": 2})
    assert read_marker(folder / "checkpoint-1").bits_per_byte is None
    assert read_marker(folder / "checkpoint-2").bits_per_byte is not None


def test_energy_in_markers_goes_on_over_starts(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_run({**values, "max_tokens": 1024}, 2, monkeypatch)
    before = read_marker(Path(values["output_dir"]) / "checkpoint-2").kwh
    after = read_marker(run({**values, "max_tokens": 1024}) / "checkpoint-4").kwh
    assert before is not None
    assert after is not None
    assert after > before > 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "complete.json is damaged"),
        ("[]", "complete.json is damaged"),
        ('{"step": 4, "world_size": 1}', "damaged .KeyError.'zero_stage'"),
        ('{"step": 4, "world_size": 1, "zero_stage": 0, "files": {"a": {"bytes": 1}}}', "damaged .KeyError.'sha256'"),
        (
            '{"step": 4, "world_size": 1, "zero_stage": 0, "files": {"../a": {"bytes": 1, "sha256": ""}}}',
            "the file '../a' lies outside",
        ),
        (
            '{"step": 4, "world_size": 1, "zero_stage": 0, "files": {"/a": {"bytes": 1, "sha256": ""}}}',
            "the file '/a' lies outside",
        ),
    ],
)
def test_a_damaged_marker_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = mark(tmp_path / "checkpoint-4")
    (path / "complete.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_marker(path)
    (fault,) = checkpoint_faults(path)
    assert fault.startswith("complete.json is damaged")


def test_a_checkpoint_without_marker_is_refused(tmp_path: Path) -> None:
    path = mark(tmp_path / "checkpoint-4")
    (path / "complete.json").unlink()
    with pytest.raises(InputError, match=r"has no complete.json: it was not saved to its end. Use another checkpoint"):
        read_marker(path)
    assert checkpoint_faults(path) == ["has no complete.json: it was not saved to its end"]
    assert checkpoint_faults(tmp_path / "checkpoint-5") == ["there is no such folder"]


def test_faults_name_each_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-4"
    (path / "global_step4").mkdir(parents=True)
    for name in ("a.pt", "b.pt", "global_step4/c.pt"):
        (path / name).write_bytes(b"0123456789")
    mark(path)
    (path / "later.txt").write_text("a file that came afterwards is no fault")
    assert checkpoint_faults(path) == []
    (path / "b.pt").write_bytes(b"0123456788")
    assert checkpoint_faults(path, hashes=False) == []
    assert checkpoint_faults(path) == ["b.pt has other content of the same length (its sha256 is not the one recorded)"]
    (path / "a.pt").write_bytes(b"0")
    (path / "global_step4" / "c.pt").unlink()
    assert checkpoint_faults(path) == ["a.pt has 1 bytes and not 10", "global_step4/c.pt is missing"]


# Which checkpoint a run goes on from


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def other_model(file: Path) -> None:
    """Replace the checkpoint by a whole one of another model."""
    config = file.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    mark(file.parent)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", flip_a_bit, "model.safetensors has other content of the same length"),
        ("optimizer/00001.safetensors", flip_a_bit, "optimizer/00001.safetensors has other content"),
        ("model.safetensors", truncate, "model.safetensors has .* bytes and not "),
        ("optimizer/00001.safetensors", Path.unlink, "optimizer/00001.safetensors is missing"),
        ("complete.json", Path.unlink, "has no complete.json: it was not saved to its end"),
        ("complete.json", truncate, ""),
        ("model.safetensors", other_model, "is of another model: num_hidden_layers is 3 there and 2 now"),
    ],
)
def test_what_does_not_hold_is_skipped_with_its_reason(
    unfinished: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str, damage: Any, reason: str
) -> None:
    assert chosen(values) == unfinished / "checkpoint-8"
    assert "checked    checkpoint-8: " in capsys.readouterr().out
    damage(unfinished / "checkpoint-8" / name)
    if not reason:  # only the line's end is gone: still whole
        assert chosen(values) == unfinished / "checkpoint-8"
        return
    assert chosen(values) == unfinished / "checkpoint-4"
    assert re.search(f"skipped    checkpoint-8: {reason}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda text: text[: len(text) // 2],
            r"environment.json is damaged \(JSONDecodeError.*\). Restore it: (cp .*)",
        ),
        (
            lambda text: text.replace('"packed_sha256": "', '"packed_sha256": "0'),
            r"holds another run; different: packed_sha256.*environment.json is not as it was at checkpoint-8; if it was "
            "damaged: Restore it: (cp .*)",
        ),
    ],
)
def test_a_damaged_record_of_the_run_is_restored_from_a_checkpoint(
    unfinished: Path, values: dict[str, Any], damage: Any, reason: str
) -> None:
    record = unfinished / "environment.json"
    whole = record.read_text()
    record.write_text(damage(whole))
    with pytest.raises(InputError, match=reason) as refused:
        chosen(values)
    command = re.search(reason, str(refused.value))
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)
    assert json.loads(record.read_text())["identity"] == json.loads(whole)["identity"]
    assert chosen(values) == unfinished / "checkpoint-8"
    record.write_text(damage(whole))
    (unfinished / "checkpoint-8" / "run_environment.json").write_text("{")  # a damaged copy is none
    with pytest.raises(InputError, match="checkpoint-4"):
        chosen(values)


def test_a_renamed_checkpoint_is_skipped(unfinished: Path, values: dict[str, Any]) -> None:
    shutil.rmtree(unfinished / "checkpoint-8")
    (unfinished / "checkpoint-4").rename(unfinished / "checkpoint-6")
    with pytest.raises(InputError, match=r"checkpoint-6 .complete.json is of step 4"):
        chosen(values)


def test_no_checkpoint_that_holds_is_no_start_from_zero(unfinished: Path, values: dict[str, Any]) -> None:
    flip_a_bit(unfinished / "checkpoint-8" / "model.safetensors")
    for name in ("scheduler.pt", "rng_state.pth", "trainer_state.json", "optimizer/state.json"):
        (unfinished / "checkpoint-4" / name).unlink()
    with pytest.raises(
        InputError,
        match=r"cannot go on from any of its checkpoints: checkpoint-4 \(.* is missing; and 1 more\), checkpoint-8 "
        r"\(model.safetensors has other content.*Restore one from a copy, delete them to start from the beginning, or "
        "choose another folder",
    ):
        chosen(values)
    with pytest.raises(InputError, match="cannot go on from any"):
        run(values)


def test_checkpoints_after_the_end_do_not_count(unfinished: Path, values: dict[str, Any]) -> None:
    assert chosen({**values, "max_tokens": 256 * 6}) == unfinished / "checkpoint-4"
    with pytest.raises(InputError, match=r"checkpoint-4 \(is of a step after the 2 asked for\)"):
        chosen({**values, "max_tokens": 256 * 2})


def test_half_written_checkpoints_alone_are_no_run_to_go_on_from(
    unfinished: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for _, path in list_checkpoints(unfinished):
        (path / "complete.json").unlink()
    assert chosen(values) is None
    assert capsys.readouterr().out.count("it was not saved to its end") == 2


def test_markers_of_earlier_versions_are_believed(
    unfinished: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    marker = unfinished / "checkpoint-8" / "complete.json"
    marker.write_text(json.dumps({"step": 8, "world_size": 1, "zero_stage": 0}))
    assert chosen(values) == marker.parent
    assert "saved by an earlier version, without hashes; taken as it is" in capsys.readouterr().out
    (marker.parent / "config.json").write_text("{")
    assert chosen(values) == unfinished / "checkpoint-4"
    assert "skipped    checkpoint-8: config.json cannot be read" in capsys.readouterr().out


def test_a_machine_that_does_not_see_the_checkpoint_is_refused(
    unfinished: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving_module, "least_over_ranks", lambda value, device: 0)  # one rank does not see it
    with pytest.raises(InputError, match="not every machine sees checkpoint-8 there"):
        chosen(values)


def test_a_refusal_of_rank_0_is_raised_on_every_rank(
    unfinished: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving_module, "from_first", lambda make: (None, "rank 0 said no"))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InputError, match="rank 0 said no"):
        chosen(values)


def test_a_run_goes_on_from_the_last_that_holds(
    unfinished: Path, values: dict[str, Any], finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    flip_a_bit(unfinished / "checkpoint-8" / "optimizer" / "00001.safetensors")
    run(values)
    out = capsys.readouterr().out
    assert f"resumed from {unfinished}/checkpoint-4" in out
    assert losses(unfinished) == losses(finished[0])
    assert checkpoint_faults(unfinished / "checkpoint-8") == []  # replaced when its step came again
    assert sha256_file(unfinished / "model.safetensors") == sha256_file(finished[0] / "model.safetensors")


def test_zero_3_without_whole_weights_is_refused() -> None:
    def config(stage: int, **zero: Any) -> Any:
        found = {"zero_optimization": {"stage": stage, **zero}}
        return SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage, deepspeed_config=found))

    with pytest.raises(InputError, match="on_model_save=None: checkpoints would hold no weights that load without"):
        check_plain_weights(config(3))
    check_plain_weights(config(3, stage3_gather_16bit_weights_on_model_save=True))
    check_plain_weights(config(2))
    check_plain_weights(SimpleNamespace(deepspeed_plugin=None))


# Leases and rotation


def test_a_leased_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    path = mark(tmp_path / "checkpoint-4")
    assert not is_leased(path)
    with lease(path):
        assert is_leased(path)
        assert not delete_checkpoint(path)
        with pytest.raises(InputError, match="checkpoint-4: another process holds this checkpoint. Wait"), lease(path):
            pass
    assert not is_leased(path)
    assert checkpoint_faults(path) == []
    assert delete_checkpoint(path)
    assert not path.exists()
    assert list((tmp_path / ".leases").iterdir()) == []
    with pytest.raises(InputError, match="checkpoint-4: there is no such folder"), lease(path):
        pass
    path.mkdir()
    with pytest.raises(InputError, match="checkpoint-4: has no complete.json"), lease(path):
        pass
    assert not is_leased(path)


def test_a_lease_ends_with_a_killed_holder(tmp_path: Path) -> None:
    path = mark(tmp_path / "checkpoint-4")
    code = (
        "import sys, time; from pathlib import Path; from teenytinyllama.checkpointing.checkpoints import lease\n"
        "with lease(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=REPOSITORY) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_leased(path)
        assert not delete_checkpoint(path)
        holder.kill()
    assert not is_leased(path)
    assert delete_checkpoint(path)


def a_callback(folder: Path, keep: int | None, needed_bytes: int = 100) -> CheckpointCallback:
    return CheckpointCallback(folder, keep, 0, needed_bytes, 1000, lambda step: {"tokens": step}, Clock())


def arguments(folder: Path) -> Any:
    return SimpleNamespace(output_dir=str(folder), world_size=1, local_process_index=0, process_index=0, device="cpu")


def save(callback: CheckpointCallback, step: int) -> None:
    """Let a callback believe that the Trainer has saved."""
    path = callback.folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "trainer_state.json").write_text("{}")
    callback.on_save(arguments(callback.folder), TrainerState(global_step=step), TrainerControl())


def steps(folder: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(folder)]


def test_rotation_counts_complete_checkpoints_alone(tmp_path: Path) -> None:
    callback = a_callback(tmp_path, 2)
    for step in (1, 2, 3):
        mark(tmp_path / f"checkpoint-{step}")
    for step in (4, 9):  # half-written, one of them ahead
        begin_saving(tmp_path / f"checkpoint-{step}")
    mark(tmp_path / "checkpoint-8")  # of an earlier start, which went further
    with lease(tmp_path / "checkpoint-1"):
        save(callback, 5)
        assert steps(tmp_path) == [1, 3, 5, 8, 9]
    save(callback, 6)
    assert steps(tmp_path) == [5, 6, 8, 9]
    assert all(checkpoint_faults(path) == [] for _, path in complete_checkpoints(tmp_path))


@pytest.mark.parametrize(("keep", "expected"), [(1, [4]), (None, [1, 2, 3, 4])])
def test_rotation_keeps_what_was_asked_for(tmp_path: Path, keep: int | None, expected: list[int]) -> None:
    callback = a_callback(tmp_path, keep)
    for step in (1, 2, 3, 4):
        save(callback, step)
    assert steps(tmp_path) == expected


def test_fewer_than_one_checkpoint_cannot_be_kept(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="save_total_limit=0: the newest complete checkpoint always stays. Use 1 or"):
        build(PretrainConfig, {**values, "save_total_limit": 0})
    with pytest.raises(InputError, match="license=apache2.1: .* names of licences only. Did you mean 'apache-2.0'"):
        build(PretrainConfig, {**values, "license": "apache2.1"})
    assert build(PretrainConfig, {**values, "license": "Apache 2.0"}).license == "apache-2.0"


def test_machines_with_disks_of_their_own_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving_module, "least_over_ranks", lambda value, device: 0)
    callback = a_callback(tmp_path, 2)
    for step in (1, 2):
        save(callback, step)
    assert capsys.readouterr().out.count("not every machine sees output_dir=") == 1


# Room on the disk


def withdraws(callback: CheckpointCallback, step: int, max_steps: int = 100) -> bool:
    control = TrainerControl(should_save=True, should_training_stop=step >= max_steps)
    callback.on_step_end(arguments(callback.folder), TrainerState(global_step=step, max_steps=max_steps), control)
    return not control.should_save


def test_a_save_without_room_is_withdrawn_and_said_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = a_callback(tmp_path, 2, needed_bytes=2_000_000_000)
    free_bytes = 3_000_000_000
    monkeypatch.setattr(saving_module, "free_disk_bytes", lambda folder: free_bytes)
    assert not withdraws(callback, 1)
    save(callback, 1)
    callback._saved_bytes = 0  # so that arithmetic counts
    free_bytes = 2_000_000_000
    assert [withdraws(callback, step) for step in range(2, 11)] == [True] * 9
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"not saved  step {step}" for step in (2, 3, 5, 9)]
    assert lines[0] == (
        f"not saved  step 2: the save needs about 2.10 GB on the disk of {tmp_path} and 2.00 GB are free: free some "
        "space there or lower save_total_limit. Training goes on without it; the newest complete one is checkpoint-1 "
        "(saves left out so far: 1)"
    )
    free_bytes = 2_200_000_000
    assert not withdraws(callback, 11)
    save(callback, 11)
    assert not withdraws(callback, 12)  # its own size counts now
    free_bytes = 0
    assert withdraws(callback, 12)
    assert "(saves left out so far: 1)" in capsys.readouterr().out
    control = TrainerControl()  # nothing is asked where nothing is saved
    callback.on_step_end(arguments(tmp_path), TrainerState(global_step=13, max_steps=13), control)


def test_room_is_made_by_what_may_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = a_callback(tmp_path, 2)
    for step in (1, 2):
        save(callback, step)
    begin_saving(tmp_path / "checkpoint-0")
    free = lambda folder: 200 if len(steps(folder)) < 2 else 0  # noqa: E731
    monkeypatch.setattr(saving_module, "free_disk_bytes", free)
    assert not withdraws(callback, 3)
    assert steps(tmp_path) == [2]
    monkeypatch.setattr(saving_module, "free_disk_bytes", lambda folder: 0)
    assert withdraws(callback, 3)
    assert steps(tmp_path) == [2]  # the newest complete one stays


def test_the_last_save_without_room_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = a_callback(tmp_path, 2)
    monkeypatch.setattr(saving_module, "free_disk_bytes", lambda folder: 1000)  # the final model does not fit beside
    assert not withdraws(callback, 9)
    with pytest.raises(
        RunFailedError, match="the last save, of step 100, needs about .* The same command starts again"
    ):
        withdraws(callback, 100)
    save(callback, 9)
    with pytest.raises(RunFailedError, match=r"and was not begun. The same command goes on from checkpoint-9\."):
        withdraws(callback, 100)


def test_a_checkpoint_of_the_same_step_makes_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = a_callback(tmp_path, 2)
    path = mark(tmp_path / "checkpoint-3")
    with lease(path):
        assert withdraws(callback, 3)
    assert (
        "the save would replace checkpoint-3, which another process reads or which is not this run's: move"
        in capsys.readouterr().out
    )
    assert not withdraws(callback, 3)
    assert not path.exists()


def test_a_run_without_room_trains_on_and_can_be_taken_up(
    values: dict[str, Any],
    finished: tuple[Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(values["output_dir"])
    with monkeypatch.context() as patch:
        patch.setattr(saving_module, "free_disk_bytes", lambda folder: 0 if steps(folder) else 10**12)
        with pytest.raises(RunFailedError, match="the last save, of step 8, needs about .*goes on from checkpoint-2"):
            run({**values, "save_steps": 2})
    assert losses(folder) == losses(finished[0])[:7]
    assert "not saved  step 4: the save needs about" in capsys.readouterr().out
    assert steps(folder) == [2]
    run(values)
    assert losses(folder) == losses(finished[0])
    assert sha256_file(folder / "model.safetensors") == sha256_file(finished[0] / "model.safetensors")


def test_the_size_of_a_checkpoint_is_known_before(finished: tuple[Path, dict[str, Any]]) -> None:
    from teenytinyllama.planning.memory import checkpoint_bytes

    parameters = json.loads((finished[0] / "run.json").read_text())["model"]["num_parameters"]
    files = read_marker(finished[0] / "checkpoint-8").files
    assert files is not None
    found = files["model.safetensors"].bytes + files["optimizer/00001.safetensors"].bytes
    assert checkpoint_bytes(parameters, "fp32", 0) == pytest.approx(found, rel=0.05)
    # Measured on two ranks, in bytes a parameter (docs/lab-log.md).
    assert [checkpoint_bytes(1, "fp32", stage) for stage in range(4)] == [12, 16, 16, 16]
    assert [checkpoint_bytes(1, "bf16", stage) for stage in range(4)] == [12, 14, 14, 14]


def test_hashing_is_no_training_time(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path) -> dict[str, FileRecord]:
        time.sleep(2)
        return hash_files(path)

    monkeypatch.setattr(saving_module, "hash_files", slow)
    folder = run({**values, "max_tokens": 768, "save_steps": 1})
    records = {record["step"]: record for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record}
    assert 256 / records[3]["tokens_per_second"] < 2
    parts = json.loads((folder / "run.json").read_text())["training"]["seconds_by_part_of_last_start"]
    assert parts["hashing"] > 6
    assert parts["marking"] < 5


# Kills


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_agree_on_a_save_that_does_not_fit(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**values, "save_steps": 2}, sort_keys=False))
    script = REPOSITORY / "tests" / "ranks" / "full_disk.py"
    code = (
        "import sys, pathlib; from teenytinyllama.launching.launch import launch\n"
        f"sys.exit(launch(pathlib.Path({str(script)!r}), ['--config', {str(tmp_path / 'x.yaml')!r}], "
        f"{str(REPOSITORY / 'recipes' / 'accelerate' / 'cpu2.yaml')!r}, 2))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    folder = Path(values["output_dir"])
    assert done.returncode == 1, done.stderr
    assert "not saved  step 4: the save needs about" in done.stdout
    assert "failed: output_dir=" in done.stderr
    assert "the last save, of step 8, needs about" in done.stderr
    assert "goes on from checkpoint-2." in done.stderr
    assert "Traceback" not in done.stderr
    assert steps(folder) == [2]
    assert len(losses(folder)) == 7


def test_the_order_of_keys_makes_no_other_run() -> None:
    from teenytinyllama.checkpointing.saving import run_identity

    one, other = {"hidden_size": 8, "num_hidden_layers": 2}, {"num_hidden_layers": 2, "hidden_size": 8}

    @dataclasses.dataclass
    class Config:
        shape: dict[str, int] | None = None
        seed: int = 1
        given_shares: ClassVar[dict[str, Any]] = {}

    def identity(shape: dict[str, int]) -> dict[str, Any]:
        return run_identity(Config(shape), ["shape", "seed"], {"data": "ab"})

    assert identity(one) == identity(other)
    assert identity(one) != identity({**one, "hidden_size": 16})


@pytest.mark.parametrize("made", [
    lambda: SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    lambda: OSError(28, "No space left on device"),
    lambda: RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
])  # fmt: skip
def test_a_disk_that_fails_in_a_save_is_named(
    made: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second save fails; the first stays, and the same command goes on from it."""
    real, saves = Trainer._save_checkpoint, []

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        saves.append(1)
        if len(saves) == 2:
            raise made()
        real(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_save_checkpoint", fail)
    folder = Path(values["output_dir"])
    wanted = (
        r"step 4 could not be saved: .*(os error 28|No space left|failed writing).* then goes on from checkpoint-2\."
    )
    with pytest.raises(RunFailedError, match=wanted):
        run({**values, "max_tokens": 256 * 6, "save_steps": 2})
    monkeypatch.undo()
    run({**values, "max_tokens": 256 * 6, "save_steps": 2})
    assert (folder / "run.json").is_file()


def test_other_faults_of_a_save_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explaining_disk_failures(tmp_path, 3):
        raise RuntimeError("shapes do not match")
    with (
        pytest.raises(
            RunFailedError, match="step 3 could not be saved: full. See to the disk; the same command then st"
        ),
        explaining_disk_failures(tmp_path, 3),
    ):
        raise OSError("full")
