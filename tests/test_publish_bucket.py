"""Publishing to a bucket, the Hub's storage without history, with the real client in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from made_runs import make_checkpoint, make_run
from test_publish_contents import BRANCH_FILES, MAIN_FILES, fix_marker
from test_publish_follow import Followers, end, progress, steps, wait_for
from test_publish_hub import READ_TOKEN, REPOSITORY, TESTS, TOKEN, publish

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, InputError
from teenytinyllama.publishing.publish import PublishConfig, publish_export, publish_study
from teenytinyllama.stage_folder import sha256_file

BUCKET = "ana/treino"
TO = f"bucket:{BUCKET}"
OPTIMIZER_FILES = {
    "optimizer.pt", "optimizer/00001.safetensors", "optimizer/state.json", "rng_state.pth", "scheduler.pt",
    "trainer_state.json",
}  # fmt: skip
MODEL_FILES = {f"model/{name}" for name in MAIN_FILES - {"checkpoints.json"}}


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run", tokenizer_folder)


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_run, tmp_path / "run"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    tokens = {TOKEN: "ana", READ_TOKEN: "ana:read"}
    with HubServer(tmp_path / "hub", tokens=tokens, orgs={"grupo": {"ana"}}, xet=True) as server:
        yield server


@pytest.fixture
def follow(server: HubServer, tmp_path: Path) -> Iterator[Followers]:
    followers = Followers(server, tmp_path, TO)
    yield followers
    for process in followers.started:
        process.kill()
        process.wait()


def files(server: HubServer) -> dict[str, bytes]:
    return server.files(BUCKET, repo_type="bucket")


def index(server: HubServer) -> dict[str, Any]:
    return json.loads(files(server)["checkpoints.json"])


def of_steps(*numbers: int) -> set[str]:
    return {f"checkpoint-{number}/{name}" for number in numbers for name in BRANCH_FILES}


_READ_BACK = """
import sys
from huggingface_hub import HfApi
from transformers import AutoTokenizer, LlamaForCausalLM

api = HfApi()
found = [entry for entry in api.list_bucket_tree("ana/treino", recursive=True) if entry.type == "file"]
api.download_bucket_files("ana/treino", [(entry, f"{sys.argv[1]}/{entry.path}") for entry in found])
first = {}
for folder in ("model", "checkpoint-10", "checkpoint-20"):
    AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{folder}")
    first[folder] = float(next(LlamaForCausalLM.from_pretrained(f"{sys.argv[1]}/{folder}").parameters()).sum())
assert first["checkpoint-10"] != first["checkpoint-20"] == first["model"], first
"""


def test_a_run_goes_to_a_bucket_and_comes_back(server: HubServer, run: Path, tmp_path: Path) -> None:
    done = publish(server, run, to=TO)
    assert done.returncode == EXIT_DONE, done.stderr
    page = f"{server.url}/buckets/{BUCKET}"
    assert done.stdout.splitlines() == [
        f"checkpoint-10 published, hashes compared: {page}",
        f"checkpoint-20 published, hashes compared: {page}",
        f"model      published, hashes compared: {page}",
    ]
    assert server.info(BUCKET, "bucket")["private"] is True
    assert set(files(server)) == {"checkpoints.json"} | of_steps(10, 20) | MODEL_FILES
    for entry in index(server)["checkpoints"]:
        weights = run / entry["folder"] / "model.safetensors"
        assert entry["sha256"] == {"model.safetensors": sha256_file(weights)}
        assert "branch" not in entry
    assert set(index(server)["files"]) == set(files(server))
    assert not (run / ".publish").exists()
    # A second call sends nothing.
    before = server.state()
    server.forget()
    again = publish(server, run, to=TO)
    assert again.stdout.count("is there already, hashes compared") == 3
    assert server.writes() == []
    assert server.state() == before
    fresh = subprocess.run(
        [sys.executable, "-I", "-c", _READ_BACK, str(tmp_path / "back")],
        env=server.environment(tmp_path / "fresh", token=TOKEN), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fresh.returncode == 0, fresh.stderr
    assert (tmp_path / "back" / "model" / "README.md").read_bytes() == files(server)["model/README.md"]


def test_a_bucket_holds_what_the_run_keeps(server: HubServer, run: Path, tokenizer_folder: Path) -> None:
    assert publish(server, run, "--optimizer_state", to=TO).returncode == EXIT_DONE
    assert "checkpoint-20/optimizer/00001.safetensors" in files(server)
    server.write(BUCKET, {"checkpoint-10/notes.md": b"de outra pessoa"}, repo_type="bucket")
    shutil.rmtree(run / "checkpoint-10")
    make_checkpoint(run, tokenizer_folder, 30)
    # Somebody else deletes a file at the same moment: the batch is done in part, and done again.
    gone = {"checkpoint-10/config.json": None}
    server.before(r"POST .*/batch", lambda: server.write(BUCKET, gone, repo_type="bucket"), nth=2)
    done = publish(server, run, to=TO)
    assert done.returncode == EXIT_DONE, done.stderr
    assert "of a batch, {'path': 'checkpoint-10/config.json', 'error': " in done.stderr
    assert steps(index(server)) == [20, 30]
    state = {f"checkpoint-20/{name}" for name in OPTIMIZER_FILES}  # sent before, and still that of this checkpoint
    there = {"checkpoints.json", "checkpoint-10/notes.md"} | of_steps(20, 30) | MODEL_FILES | state
    assert set(files(server)) == there
    # The same run in a new folder that has not got so far yet: what a lost machine had sent stays.
    shutil.rmtree(run / "checkpoint-20")
    shutil.rmtree(run / "checkpoint-30")
    make_checkpoint(run, tokenizer_folder, 25)
    assert publish(server, run, to=TO).returncode == EXIT_DONE
    assert steps(index(server)) == [25, 30]
    assert publish(server, run, "--checkpoints", "false", to=TO).returncode == EXIT_DONE
    assert steps(index(server)) == [25, 30]


def test_a_checkpoint_that_was_trained_anew_takes_its_place(server: HubServer, run: Path) -> None:
    """While it is sent, the list does not name it: what it names is whole at every moment."""
    assert publish(server, run, to=TO).returncode == EXIT_DONE
    weights = run / "checkpoint-20" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    fix_marker(run / "checkpoint-20")
    seen = []
    server.before(r"POST .*/batch", lambda: seen.append(index(server)), nth=2)
    assert publish(server, run, to=TO).returncode == EXIT_DONE
    assert [steps(content) for content in seen] == [[10]]
    assert steps(index(server)) == [10, 20]
    assert files(server)["checkpoint-20/model.safetensors"] == bytes(content)


def test_another_run_and_files_of_others_are_refused(server: HubServer, run: Path) -> None:
    server.write(BUCKET, {"pesos.bin": b"x"}, repo_type="bucket")
    assert "to=bucket:ana/treino: is public, so everybody would see this at once" in publish(server, run, to=TO).stderr
    refused = publish(server, run, "--public", to=TO)
    assert refused.returncode == EXIT_BAD_INPUT
    assert "the bucket holds files that were not published from here (pesos.bin). Choose another" in refused.stderr
    server.write(BUCKET, {"pesos.bin": None}, repo_type="bucket")
    assert publish(server, run, "--public", "--checkpoints", "false", to=TO).returncode == EXIT_DONE
    before = server.state()
    content = json.loads((run / "environment.json").read_text())
    content["identity"]["seed"] = "7"
    (run / "environment.json").write_text(json.dumps(content))
    refused = publish(server, run, "--public", to=TO)
    assert refused.returncode == EXIT_BAD_INPUT
    assert (
        "to=bucket:ana/treino: the bucket holds another run; different: seed (there 42, here 7). Choose another bucket, "
        "or delete this one first if nobody needs it: hf buckets delete ana/treino" in refused.stderr
    )
    assert server.state() == before
    server.write(BUCKET, {"checkpoints.json": b"{}"}, repo_type="bucket")
    assert "checkpoints.json of the bucket is not one that we wrote" in publish(server, run, "--public", to=TO).stderr
    server.write(BUCKET, {"checkpoints.json": b"{"}, repo_type="bucket")
    assert "of the bucket is no JSON, so it is not ours" in publish(server, run, "--public", to=TO).stderr
