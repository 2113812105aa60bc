"""Trackers: real ones get our figures, a resumed run goes on in one line, no key leaves, and a failure ends nothing."""

import json
import socket
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_pretrain import make_values
from transformers import TrainerCallback

from teenytinyllama.arguments import build, check_types
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain
from teenytinyllama.training.trainer import StopCallback
from teenytinyllama.watching.trackers import TrackersCallback, figures_of

SECRETS = {"HF_TOKEN": "hf_" + "s" * 34, "WANDB_API_KEY": "k" * 40, "HUGGING_FACE_HUB_TOKEN": "hf_" + "t" * 34}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No name is looked up and nobody but this machine is called; keys stand in the environment."""
    connect = socket.socket.connect

    def only_here(own: Any, address: Any) -> Any:
        assert not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1", "localhost"), address
        return connect(own, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def run(values: dict[str, Any]) -> Path:
    return pretrain(build(PretrainConfig, check_types(PretrainConfig, values)), values)


def run_in_two_starts(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is stopped after step 6, with its last checkpoint at step 4, and goes on: steps 5 and 6 are repeated."""

    class KilledError(Exception):
        pass

    def kill(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(StopCallback, "on_step_end", kill)
        with pytest.raises(KilledError):
            run(values)
    return run(values)


def assert_no_key_is_in(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    leaked = {path.name for path in files for key in SECRETS.values() if key.encode() in path.read_bytes()}
    assert leaked == set()


@pytest.mark.slow
def test_tensorboard_gets_our_figures_in_one_line(
    offline: None, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    values = make_values(tmp_path, packed_folder, tokenizer_folder)
    folder = run_in_two_starts({**values, "report_to": "tensorboard"}, monkeypatch)
    assert not (folder / "runs").exists()
    assert len(list((folder / "tensorboard").iterdir())) >= 2  # of two starts, which TensorBoard reads as one run
    read = accumulators.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    steps = {tag: [event.step for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    for name in ("loss", "train_bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second", "kwh", "tokens"):
        assert steps[f"train/{name}"] == list(range(1, 9)), name
    assert steps["eval/bits_per_byte"] == [0, 4, 8]
    assert steps["eval/final_bits_per_byte"] == [8]
    assert steps["eval/bits_per_byte_of_contos"] == [0, 4, 8]
    assert_no_key_is_in(tmp_path)


@pytest.mark.slow
def test_trackio_gets_our_figures_in_one_line(
    offline: None, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage):  # it read the folder when it was imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    values = make_values(tmp_path, packed_folder, tokenizer_folder)
    folder = run_in_two_starts({**values, "report_to": "trackio"}, monkeypatch)
    sent = json.loads((folder / "trackers.json").read_text())
    assert (sent["step"], sent["scored"]) == (8, 8)
    database = tmp_path / "trackio" / "teenytinyllama.db"
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _ in rows} == {f"run-{sent['id']}"}
    figures = [json.loads(metrics) for _, metrics in rows]
    train = [each for each in figures if "train/tokens_per_second" in each]
    assert [each["train/global_step"] for each in train] == list(range(1, 9))
    assert all(each["train/kwh"] >= 0 and each["train/train_bits_per_byte"] > 0 for each in train)
    assert [each["train/global_step"] for each in figures if "eval/bits_per_byte" in each] == [0, 4, 8]
    assert_no_key_is_in(tmp_path)


class Failing(TrainerCallback):
    calls = 0

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        Failing.calls += 1
        raise ConnectionError("no network\nhere")


def test_a_tracker_that_fails_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = SimpleNamespace(record={"step": 1, "tokens": 1, "loss": 1.0})
    callback = TrackersCallback(tmp_path, [Failing()], records)
    args = SimpleNamespace(run_name=None, project="huggingface")
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=0)
    callback.on_train_begin(args, state, None)
    for step in range(1, 6):
        state.global_step = step
        callback.on_log(args, state, None, logs={"loss": 1.0})
    callback.close()
    assert Failing.calls == 3
    said = capsys.readouterr().out
    assert said.count("warning    the tracker Failing failed: ConnectionError: no network here. The run goes on") == 3
    assert "the tracker Failing has failed 3 times and gets nothing more." in said
    assert args.run_name is None


def test_what_names_a_run_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, a project and an id that the user gives stay; ours leave the environment with the run."""
    import os

    seen: list[tuple[str, str, str | None]] = []

    class Seeing(TrainerCallback):
        def on_train_begin(self, args: Any, *rest: Any, **kwargs: Any) -> None:
            seen.append((args.run_name, args.project, os.environ.get("WANDB_RUN_ID")))

    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=0)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    for _ in range(2):
        callback = TrackersCallback(tmp_path, [Seeing()], SimpleNamespace(record=None))
        callback.on_train_begin(SimpleNamespace(run_name=None, project="huggingface"), state, None)
        callback.close()
        assert "WANDB_RUN_ID" not in os.environ
    assert seen[0] == seen[1]
    assert seen[0][1:] == ("teenytinyllama", json.loads((tmp_path / "trackers.json").read_text())["id"])
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    callback = TrackersCallback(tmp_path, [Seeing()], SimpleNamespace(record=None))
    callback.on_train_begin(SimpleNamespace(run_name="a", project="b"), state, None)
    callback.close()
    assert seen[2] == ("a", "b", "mine")
    assert os.environ["WANDB_RUN_ID"] == "mine"
    (tmp_path / "trackers.json").write_text("{")  # a damaged record begins a new line
    callback = TrackersCallback(tmp_path, [Seeing()], SimpleNamespace(record=None))
    callback.on_train_begin(SimpleNamespace(run_name=None, project="huggingface"), state, None)
    assert seen[3][0] != seen[0][0]


def test_figures_are_numbers_alone() -> None:
    record = {
        "step": 1,
        "tokens": 2,
        "usd": None,
        "name": "x",
        "is": True,
        "per_source": {"a": {"bits_per_byte": 1.5, "documents": 3}},
    }
    assert figures_of(record, "eval_") == {"eval_tokens": 2, "eval_bits_per_byte_of_a": 1.5}
