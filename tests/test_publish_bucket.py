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
import yaml
from hub_server import HubServer
from made_runs import end_run, make_checkpoint
from test_publish_contents import BRANCH_FILES, MAIN_FILES, fix_marker
from test_publish_follow import Followers, end, progress, steps, wait_for
from test_publish_hub import READ_TOKEN, REPOSITORY, TESTS, TOKEN, publish

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, InputError
from teenytinyllama.publishing.card import render_model_card
from teenytinyllama.publishing.publish import PublishConfig, publish_export, publish_study
from teenytinyllama.publishing.publish_dataset import PublishDatasetConfig
from teenytinyllama.stage_folder import sha256_file

BUCKET = "ana/treino"
TO = f"bucket:{BUCKET}"
OPTIMIZER_FILES = {
    "begun.json", "complete.json", "optimizer.pt", "optimizer/00001.safetensors", "optimizer/state.json",
    "rng_state.pth", "scheduler.pt", "trainer_state.json",
}  # fmt: skip
RECORDS = {"config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl"}
MODEL_FILES = {f"model/{name}" for name in MAIN_FILES - {"checkpoints.json"}}


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
    assert "a part of it was not done: checkpoint-10/config.json: No such file" in done.stderr
    assert steps(index(server)) == [20, 30]
    state = {f"checkpoint-20/{name}" for name in OPTIMIZER_FILES}  # sent before, and still that of this checkpoint
    there = {"checkpoints.json", "checkpoint-10/notes.md"} | of_steps(20, 30) | MODEL_FILES | state | RECORDS
    assert set(files(server)) == there
    # The same run in a new folder that has not got so far yet: what a lost machine had sent stays.
    shutil.rmtree(run / "checkpoint-20")
    shutil.rmtree(run / "checkpoint-30")
    make_checkpoint(run, tokenizer_folder, 25)
    assert publish(server, run, to=TO).returncode == EXIT_DONE
    assert steps(index(server)) == [25, 30]
    assert not RECORDS & set(files(server))  # with the last checkpoint that a training could go on from
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


def test_a_bucket_follows_a_run(server: HubServer, run: Path, follow: Followers, tokenizer_folder: Path) -> None:
    """Killed in the middle of an upload, it goes on; what the rotation deleted meanwhile goes, and its parts too."""
    (run / "run.json").unlink()
    shutil.rmtree(run / "checkpoint-20")
    process = follow(run)
    wait_for(lambda: steps(progress(run)) == [10])
    assert set(files(server)) == {"checkpoints.json"} | of_steps(10)
    stall = server.fail(r"POST .*/batch", how="stall", nth=2, seconds=30)
    make_checkpoint(run, tokenizer_folder, 20)
    wait_for(lambda: stall.fired)
    assert steps(index(server)) == [10]
    assert of_steps(20) <= set(index(server)["files"])
    process.kill()
    process.wait()
    server.forget()
    server.write(BUCKET, {"checkpoint-20/config.json": b"{}"}, repo_type="bucket")
    shutil.rmtree(run / "checkpoint-20")
    make_checkpoint(run, tokenizer_folder, 30)
    process = follow(run)
    wait_for(lambda: steps(progress(run)) == [10, 30])
    assert set(files(server)) == {"checkpoints.json"} | of_steps(10, 30)
    shutil.rmtree(run / "checkpoint-10")  # as rotation does
    wait_for(lambda: steps(progress(run)) == [30])
    assert set(files(server)) == {"checkpoints.json"} | of_steps(30)
    (damaged := make_checkpoint(run, tokenizer_folder, 40) / "model.safetensors").write_bytes(b"x")
    end_run(run, tokenizer_folder, 30)
    output = end(process, EXIT_DONE)
    assert output.count(f"{damaged.parent.name} is damaged and left out") == 1
    assert output.splitlines()[-1] == f"model      published, hashes compared: {server.url}/buckets/{BUCKET}"
    assert set(files(server)) == {"checkpoints.json"} | of_steps(30) | MODEL_FILES
    assert progress(run)["main"] is True
    server.forget()
    end(follow(run), EXIT_DONE)
    assert server.writes() == []


def test_two_runs_at_once(server: HubServer, run: Path) -> None:
    """Another run takes the bucket between our look and our first batch: its record is not the one that we sent."""
    theirs = json.dumps({"identity": {"seed": "7"}, "files": ["checkpoints.json"]}).encode()
    server.before(r"GET .*/tree", lambda: server.write(BUCKET, {"checkpoints.json": theirs}, repo_type="bucket"), nth=3)
    done = publish(server, run, "--checkpoints", "false", to=TO)
    assert done.returncode == EXIT_FAILED
    assert (
        "ana/treino: model: the bucket does not hold what was sent: checkpoints.json has another hash there. Does "
        "somebody else write to it? Run the same command again; if it stays so, look at" in done.stderr
    )
    assert "the bucket holds another run" in publish(server, run, "--checkpoints", "false", to=TO).stderr


@pytest.mark.parametrize(
    ("match", "how", "message"),
    [
        (r"POST /api/buckets/ana/treino ", "402", "the Hub has no room for it (HTTP 402)"),
        (r"POST .*/batch", "403", "the Hub has no room for it (HTTP 403): Forbidden: your storage quota is used up."),
        (r"GET .*/xet-write-token", "402", "the Hub has no room for it (HTTP 402)"),
        (r"POST .*/batch", "lost", "the Hub refuses it (HTTP 422): checkpoints.json: No file of this"),
    ],
)  # fmt: skip
def test_refusals_half_way(server: HubServer, run: Path, match: str, how: str, message: str) -> None:
    if how == "lost":  # what was uploaded is not there any more
        uploads = server.store.folder / "buckets" / BUCKET / ".hub" / "xet"
        server.before(match, lambda: shutil.rmtree(uploads))
    else:
        server.fail(match.removesuffix(" ") + "$" if match.endswith(" ") else match, how=how, times=1000)
    done = publish(server, run, to=TO)
    assert done.returncode == EXIT_BAD_INPUT, done.stderr
    assert message in done.stderr
    server.clear_faults()
    command = done.stderr.split("this goes on from here: ")[1].split()
    assert command == ["ttl", "publish", str(run), "--to", TO]
    assert publish(server, run, to=TO).returncode == EXIT_DONE
    assert set(files(server)) == {"checkpoints.json"} | of_steps(10, 20) | MODEL_FILES


@pytest.mark.parametrize(
    ("to", "token", "message"),
    [
        (TO, READ_TOKEN, "ana/treino: making it: you may not write to ana/treino as ana (HTTP 403)"),
        ("bucket:rui/t", TOKEN, "to=bucket:rui/t: rui is somebody else. This token is of ana and may write for: ana, grupo."),
        (TO, None, "token: there is none on this machine."),
    ],
)  # fmt: skip
def test_a_bucket_of_others(server: HubServer, run: Path, to: str, token: str | None, message: str) -> None:
    before = server.state()
    done = publish(server, run, to=to, token=token)
    assert done.returncode == EXIT_BAD_INPUT
    assert message in done.stderr
    assert server.state() == before


def test_a_private_bucket_stays_private(server: HubServer, run: Path) -> None:
    """And no card names it; a card names the public bucket that holds the run's checkpoints."""
    assert publish(server, run, "--checkpoints", "false", to=TO).returncode == EXIT_DONE
    stays = publish(server, run, "--checkpoints", "false", "--public", to=TO)
    assert stays.stderr == "bucket:ana/treino is private and stays so: it is made public in its settings\n"
    assert "buckets" not in metadata(run)
    assert publish(server, run, "--checkpoints", "false", "--public", to="bucket:ana/aberto").returncode == EXIT_DONE
    assert metadata(run)["buckets"] == ["ana/aberto"]
    server.forget()
    assert publish(server, run, "--checkpoints", "false", "--public", to="bucket:ana/aberto").returncode == EXIT_DONE
    assert server.writes() == []
    (run / ".publish" / "bucket.json").write_text('["../x", 3, "ana/b"]')
    assert metadata(run)["buckets"] == ["ana/b"]
    for damaged in ("{", "[[[", "3", "null"):
        (run / ".publish" / "bucket.json").write_text(damaged)
        assert "buckets" not in metadata(run)


def metadata(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(render_model_card(run).split("---\n")[1]))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["503", "reset", "lost_answer"])
def test_each_request_may_fail_once(run: Path, tmp_path: Path, how: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, str(TESTS / "publish_client.py"), str(run), str(tmp_path / "client"), "bucket", how],
        env={**kept, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [], done.stderr


def test_a_dry_run_lists_the_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from teenytinyllama.publishing.publish import publish as publish_here

    publish_here(run, PublishConfig(to=TO, dry_run=True))
    output = capsys.readouterr().out
    assert "bucket:ana/treino, checkpoint-10: 10 files, " in output
    assert "  checkpoint-20/model.safetensors " in output
    assert "bucket:ana/treino, model: 13 files, " in output
    assert "model/README.md of model:\n\n---\n" in output
    assert 'ana/treino"' not in output  # nothing is loaded by the name of a bucket


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"to": "bucket:treino"}, "to=bucket:treino: is no bucket of the Hub. Give bucket:owner/name, each of letters"),
        ({"to": "bucket:"}, "to=bucket:: is no bucket of the Hub."),
        ({"to": f"bucket:ana/{TOKEN}--x"}, "to=bucket:ana/<token>--x: is no bucket of the Hub."),
        ({"to": TO, "replace": True}, "replace, to=bucket:ana/treino: a bucket keeps no old files, so no other run's are"),
        ({"to": TO, "revision": "gguf"}, "revision, to=bucket:ana/treino: a bucket has folders, no branches. Leave it out."),
        ({"to": TO, "base_model": "bucket:ana/m"}, "base_model=bucket:ana/m: is no repository of the Hub. Give owner/name"),
    ],
)  # fmt: skip
def test_keys_that_make_no_sense_for_a_bucket(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        PublishConfig(**values)
    assert str(refused.value).startswith(message)
    assert TOKEN not in str(refused.value)


def test_an_old_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import hf_xet
    import huggingface_hub

    message = (
        f"to=bucket:ana/treino: huggingface_hub {huggingface_hub.__version__} knows no buckets, or hf_xet is missing"
    )
    with monkeypatch.context() as patch:
        patch.delattr(huggingface_hub.HfApi, "batch_bucket_files")
        with pytest.raises(InputError, match=message):
            PublishConfig(to=TO)
    with monkeypatch.context() as patch:
        patch.delattr(hf_xet, "hash_files")
        with pytest.raises(InputError, match=message):
            PublishConfig(to=TO)
    assert PublishConfig(to=TO).repository == BUCKET


def test_only_runs_go_to_a_bucket(tmp_path: Path) -> None:
    config = PublishConfig(to=TO)
    with pytest.raises(
        InputError, match="to=bucket:ana/treino: a bucket takes runs, and .* is an export. Give a repository"
    ):
        publish_export(tmp_path, config)
    with pytest.raises(InputError, match="to=bucket:ana/treino: a bucket takes runs, and .* is a comparison."):
        publish_study(tmp_path, config)
    with pytest.raises(InputError, match="to=bucket:ana/treino: a bucket takes runs, and this is a dataset."):
        PublishDatasetConfig(to=TO)
