"""Publishing while a run trains: in a process of its own, which may be killed, and which training never waits for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import HubServer
from made_runs import begin_run, end_run, make_checkpoint
from test_publish_contents import MAIN_FILES

from teenytinyllama.checkpointing.checkpoints import is_leased
from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, InputError
from teenytinyllama.publishing.follow import check_follower
from teenytinyllama.training.config import PretrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
TOKEN = "hf_" + "SegredoMarcado" * 3
TO = "ana/modelo"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", tokens={TOKEN: "ana", "hf_rui": "rui"}, xet=True) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun."""
    begin_run(tmp_path / "run")
    return tmp_path / "run"


class Followers:
    """Starts `ttl publish --follow` and kills what is left at the end."""

    def __init__(self, server: HubServer, folder: Path, to: str = TO) -> None:
        self.server, self.folder, self.to, self.started = server, folder, to, []

    def __call__(self, run: Path, *words: str, token: str = TOKEN, **more: str) -> "subprocess.Popen[str]":
        home = self.folder / f"home{len(self.started)}"
        environment = {**self.server.environment(home, token=token, **more), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "teenytinyllama", "publish", str(run), "--to", self.to, "--follow"]
        process = subprocess.Popen(
            [*command, "--poll_seconds", "0.2", *words], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process


@pytest.fixture
def follow(server: HubServer, tmp_path: Path) -> Iterator[Followers]:
    followers = Followers(server, tmp_path)
    yield followers
    for process in followers.started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "never came"
        time.sleep(0.05)


def branches(server: HubServer) -> set[str]:
    return set(server.refs(TO)["branches"]) if server.exists(TO) else set()


def progress(run: Path) -> dict[str, Any]:
    path = run / ".publish" / "progress.json"
    return json.loads(path.read_text()) if path.exists() else {"checkpoints": [], "main": False}


def steps(content: dict[str, Any]) -> list[int]:
    return [entry["step"] for entry in content["checkpoints"]]


def end(process: "subprocess.Popen[str]", code: int) -> str:
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert TOKEN not in output
    return output


@pytest.mark.slow
def test_each_checkpoint_is_published_when_it_is_complete(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    process = follow(run)
    make_checkpoint(run, tokenizer_folder, 10)
    (make_checkpoint(run, tokenizer_folder, 20) / "complete.json").rename(run / "later.json")
    wait_for(lambda: steps(progress(run)) == [10])
    assert branches(server) == {"main", "step10"}
    assert set(server.files(TO, "main")) - {".gitattributes"} == {"checkpoints.json"}
    (run / "later.json").rename(run / "checkpoint-20" / "complete.json")
    wait_for(lambda: steps(progress(run)) == [10, 20])
    shutil.rmtree(run / "checkpoint-10")  # as rotation does
    end_run(run, tokenizer_folder, 20)
    output = end(process, EXIT_DONE)
    assert output.splitlines()[-1].startswith("main       published, hashes compared: ")
    assert set(server.files(TO, "main")) - {".gitattributes"} == MAIN_FILES
    assert steps(json.loads(server.files(TO, "main")["checkpoints.json"])) == [10, 20]
    assert progress(run)["main"] is True
    for name in ("loss.png", "step10"):
        assert name == "step10" or name in server.files(TO, "main")
    # The same run made longer: main stays as it was until the end, its list grows.
    (run / "run.json").unlink()
    process = follow(run)
    make_checkpoint(run, tokenizer_folder, 30)
    wait_for(lambda: steps(progress(run)) == [10, 20, 30])
    assert set(server.files(TO, "main")) - {".gitattributes"} == MAIN_FILES
    assert steps(json.loads(server.files(TO, "main")["checkpoints.json"])) == [10, 20, 30]
    process.send_signal(signal.SIGTERM)
    output = end(process, EXIT_RESUMABLE)
    assert (
        f"stopped: SIGTERM; what is published is recorded, this goes on: ttl publish {run} --to ana/modelo --follow"
        in output
    )


def test_a_run_made_longer_is_published_when_it_ends_again(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    """The manifest that is there when `ttl` starts both is that of the shorter run; the training takes it away later."""
    for step in (10, 20):
        make_checkpoint(run, tokenizer_folder, step)
    end_run(run, tokenizer_folder, 20)
    process = follow(run, TTL_SUPERVISOR_PID=str(os.getpid()))
    wait_for(lambda: steps(progress(run)) == [10, 20])
    time.sleep(1)
    assert process.poll() is None, "it took the shorter run for the end"
    (run / "run.json").unlink()
    make_checkpoint(run, tokenizer_folder, 30)
    end_run(run, tokenizer_folder, 30)
    assert end(process, EXIT_DONE).splitlines()[-1].startswith("main       published, hashes compared: ")
    assert json.loads(server.files(TO, "main")["run.json"])["training"]["steps"] == 30


@pytest.mark.slow
def test_a_killed_follower_goes_on(server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path) -> None:
    make_checkpoint(run, tokenizer_folder, 10)
    make_checkpoint(run, tokenizer_folder, 20)
    stall = server.fail(r"POST /api/models/.*/commit/step20", how="stall", seconds=2)
    process = follow(run)
    wait_for(lambda: stall.fired)
    assert is_leased(run / "checkpoint-20")
    assert not is_leased(run / "checkpoint-10")
    process.kill()
    process.wait()
    assert not is_leased(run / "checkpoint-20")
    assert steps(progress(run)) == [10]
    server.forget()
    process = follow(run)
    end_run(run, tokenizer_folder, 20)
    end(process, EXIT_DONE)
    assert not [request for request in server.requests if "step10" in request.path and request.write]
    assert [len(server.history(TO, f"step{step}")) for step in (10, 20)] == [2, 2]
    assert steps(json.loads(server.files(TO, "main")["checkpoints.json"])) == [10, 20]


def test_an_upload_that_hangs_does_not_keep_a_signal_waiting(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    """Xet waits in native code, in which no signal is handled."""
    make_checkpoint(run, tokenizer_folder, 10)
    stall = server.fail(r"xet-write-token/step10", how="stall", seconds=60)
    process = follow(run)
    wait_for(lambda: stall.fired)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    end(process, EXIT_RESUMABLE)
    assert time.monotonic() - begin < 30
    assert steps(progress(run)) == []


@pytest.mark.slow
def test_a_hub_that_comes_back_is_waited_for(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    make_checkpoint(run, tokenizer_folder, 10)
    server.fail(r"whoami", how="503", times=3, seconds=0)
    process = follow(run, "--give_up_seconds", "0.5")
    wait_for(lambda: steps(progress(run)) == [10])
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = end(process, EXIT_RESUMABLE)
    assert output.count(" no connection: the token: ") == 3


def test_a_refusal_ends_it_with_one_message(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    make_checkpoint(run, tokenizer_folder, 10)
    output = end(follow(run, token="hf_rui"), EXIT_BAD_INPUT)
    assert output.startswith("error: to=ana/modelo: ana is somebody else.")
    assert f"this goes on from here: ttl publish {run} --to ana/modelo --follow" in output
    assert len(output.splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    weights = make_checkpoint(run, tokenizer_folder, 10) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    make_checkpoint(run, tokenizer_folder, 20)
    process = follow(run)
    wait_for(lambda: steps(progress(run)) == [20])
    time.sleep(1)
    end_run(run, tokenizer_folder, 20)
    output = end(process, EXIT_DONE)
    assert output.count("checkpoint-10 is damaged and left out: model.safetensors has ") == 1
    assert branches(server) == {"main", "step20"}


def test_one_process_a_run(server: HubServer, run: Path, follow: Followers) -> None:
    first = follow(run)
    wait_for(lambda: (run / ".publish" / ".lock").exists())
    assert "another process publishes it already. Wait for it or stop it." in end(follow(run), EXIT_BAD_INPUT)
    assert first.poll() is None


@pytest.mark.slow
def test_a_training_that_ended_is_not_waited_for(
    server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path
) -> None:
    """`ttl` has ended (this process is not its parent): what is complete is published, then it is over."""
    make_checkpoint(run, tokenizer_folder, 10)
    output = end(follow(run, TTL_SUPERVISOR_PID="1"), EXIT_RESUMABLE)
    assert f"stopped: the training has stopped; later: ttl publish {run} --to ana/modelo --follow" in output
    assert branches(server) == {"main", "step10"}
    server.fail(r".", how="503", times=1000, seconds=0)
    make_checkpoint(run, tokenizer_folder, 20)
    output = end(follow(run, "--give_up_seconds", "0.1", TTL_SUPERVISOR_PID="1"), EXIT_FAILED)
    assert "failed: the token: " in output
    assert f"this goes on from here: ttl publish {run} --to ana/modelo --follow" in output
    assert "RUN=" in end(follow(run.parent / "nada", TTL_SUPERVISOR_PID="1"), EXIT_BAD_INPUT)


def test_the_config_is_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_follower({}) is None
    with pytest.raises(InputError, match="hub_model_id=modelo: is no repository of the Hub"):
        check_follower({"hub_model_id": "modelo"})
    with pytest.raises(InputError, match="HF_HUB_OFFLINE: is set"):
        check_follower({"hub_model_id": TO})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="token: there is none on this machine"):
        check_follower({"hub_model_id": TO})
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    config = check_follower({"hub_model_id": TO})
    assert config is not None
    assert (config.to, config.follow, config.public) == (TO, True, False)
    public = check_follower({"hub_model_id": TO, "hub_private_repo": False})
    assert public is not None
    assert public.public


def test_the_trainers_own_push_is_refused() -> None:
    from teenytinyllama.arguments import check_types

    with pytest.raises(InputError, match="push_to_hub=True: would push from inside the training, .* Set hub_model_id"):
        check_types(PretrainConfig, {"push_to_hub": True})
    with pytest.raises(InputError, match="^hub_token: secrets never stand in a config") as refused:
        check_types(PretrainConfig, {"hub_token": TOKEN})
    assert TOKEN not in str(refused.value)


def pretrain(server: HubServer, folder: Path, values: dict[str, Any], **more: str) -> "subprocess.Popen[str]":
    """Start `ttl pretrain` with these values."""
    config = folder / "pretrain.yaml"
    config.write_text(yaml.safe_dump(values))
    environment = {**server.environment(folder / "home", token=TOKEN, **more), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "teenytinyllama", "pretrain", "--config", str(config)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return {
        "preset": "tiny", "shape": {"num_hidden_layers": 1}, "tokenizer": str(tokenizer_folder), "packed": str(packed_folder),
        "output_dir": str(tmp_path / "run"), "tokens_per_step": 128, "max_steps": 12, "save_steps": 4, "eval_strategy": "no",
        "save_total_limit": 1, "sample_prompts": [], "hub_model_id": TO,
    }  # fmt: skip


@pytest.mark.slow
def test_pretraining_publishes_itself(server: HubServer, tmp_path: Path, values: dict[str, Any]) -> None:
    output = end(pretrain(server, tmp_path, values), EXIT_DONE)
    run = tmp_path / "run"
    assert "publishing to ana/modelo in a process of its own (" in output
    assert "published  ana/modelo; main       published, hashes compared: " in output
    assert "step12" in branches(server)
    assert "model.safetensors" in server.files(TO, "main")
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    # It went through every step although only one checkpoint is kept.
    index = json.loads(server.files(TO, "main")["checkpoints.json"])
    assert steps(index)[-1] == 12
    assert json.loads((run / "run.json").read_text())["training"]["steps"] == 12
    assert "is complete" in end(pretrain(server, tmp_path, values), EXIT_DONE)


@pytest.mark.slow
def test_a_dead_hub_neither_stops_nor_changes_training(
    server: HubServer, tmp_path: Path, values: dict[str, Any]
) -> None:
    """The follower is killed in one run, finds nobody in another: the weights are those of a run without one."""
    assert len({str(outcome(server, tmp_path, values, name)) for name in ("plain", "dead", "killed")}) == 1


def outcome(server: HubServer, folder: Path, values: dict[str, Any], name: str) -> dict[str, str]:
    """Return the hashes of the weights of a run whose follower does not get on."""
    run, own = folder / name, folder / f"config-{name}"
    own.mkdir()
    chosen = {**values, "output_dir": str(run), "hub_model_id": None if name == "plain" else TO}
    process = pretrain(server, own, chosen, **({"HF_ENDPOINT": "http://127.0.0.1:9"} if name == "dead" else {}))
    assert process.stdout is not None
    for line in process.stdout:
        if name == "killed" and line.startswith("publishing to"):
            os.kill(int(line.split("(")[1].split(")")[0]), signal.SIGKILL)
        if name == "dead" and line.startswith("waiting up to 60 s for the last upload"):
            process.send_signal(signal.SIGINT)
            break
    last = process.communicate(timeout=120)[0].splitlines()[-1:]
    assert process.returncode == EXIT_DONE
    if name == "dead":
        assert last
        assert last[0].startswith("publishing goes on by itself in process ")
        assert f"If this machine ends first: ttl publish {run} --to ana/modelo --follow" in last[0]
        os.kill(int(last[0].split(" in process ")[1].split(" ")[0]), signal.SIGKILL)  # it would ask for days
    return dict(json.loads((run / "run.json").read_text())["hashes"])
