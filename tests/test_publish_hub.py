"""Publishing to a Hub over HTTP, with the real client in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer
from made_runs import make_checkpoint
from test_publish_contents import BRANCH_FILES, MAIN_FILES, fix_marker

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED
from teenytinyllama.stage_folder import sha256_file

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent
TOKEN = "hf_" + "SegredoMarcado" * 3
READ_TOKEN = "hf_" + "SoLeitura" * 4
TO = "ana/modelo"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    tokens = {TOKEN: "ana", READ_TOKEN: "ana:read", "hf_rui": "rui"}
    gated = {"ana/restrito": {"rui"}}
    with HubServer(tmp_path / "hub", tokens=tokens, orgs={"grupo": {"ana"}}, gated=gated, xet=True) as server:
        yield server


def environment(server: HubServer, home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
    kept = server.environment(home, token=token, **more)
    return {**kept, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{TESTS}"}


def publish(
    server: HubServer, run: Path, *words: str, to: str = TO, token: str | None = TOKEN, **more: str
) -> "subprocess.CompletedProcess[str]":
    """Run `ttl publish` in a process of its own, with a home that nothing was cached in."""
    home = run.parent / f"home{time.monotonic_ns()}"
    done = subprocess.run(
        [sys.executable, "-m", "teenytinyllama", "publish", str(run), "--to", to, *words],
        env=environment(server, home, token, **more), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def remote_names(server: HubServer, revision: str, repository: str = TO) -> set[str]:
    return set(server.files(repository, revision)) - {".gitattributes"}


def test_a_run_and_its_checkpoints_are_published(server: HubServer, run: Path, tmp_path: Path) -> None:
    done = publish(server, run)
    assert done.returncode == EXIT_DONE, done.stderr
    assert f"main       published, hashes compared: {server.url}/ana/modelo/tree/main" in done.stdout
    assert set(server.refs(TO)["branches"]) == {"main", "step10", "step20"}
    assert server.info(TO)["private"] is True
    assert remote_names(server, "main") == MAIN_FILES
    index = json.loads(server.files(TO, "main")["checkpoints.json"])
    for entry in index["checkpoints"]:
        branch = entry["branch"]
        assert remote_names(server, branch) == BRANCH_FILES
        (tmp_path / "weights").write_bytes(server.files(TO, branch)["model.safetensors"])
        assert entry["sha256"] == {"model.safetensors": sha256_file(tmp_path / "weights")}
        assert len(server.history(TO, branch)) == 2
    assert len(server.history(TO, "main")) == 2
    assert server.files(TO, "main")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert not (run / ".publish").exists()

    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "first = {}\n"
        "for revision in ('main', 'step10', 'step20'):\n"
        "    model = AutoModelForCausalLM.from_pretrained('ana/modelo', revision=revision)\n"
        "    AutoTokenizer.from_pretrained('ana/modelo', revision=revision)\n"
        "    first[revision] = float(next(model.parameters()).sum())\n"
        "assert first['step10'] != first['step20'] == first['main'], first\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-I", "-c", code], env=server.environment(tmp_path / "fresh", token=TOKEN),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fresh.returncode == 0, fresh.stderr


def test_publishing_again_makes_no_commit(server: HubServer, run: Path, tokenizer_folder: Path) -> None:
    assert publish(server, run).returncode == EXIT_DONE
    before = server.state()
    server.forget()
    again = publish(server, run)
    assert again.returncode == EXIT_DONE
    assert "main       is there already, hashes compared" in again.stdout
    assert server.state() == before
    assert server.writes() == []
    # One checkpoint more and one deleted here: the others stay listed, their branches untouched.
    shutil.rmtree(run / "checkpoint-10")
    make_checkpoint(run, tokenizer_folder, 30)
    assert publish(server, run).returncode == EXIT_DONE
    index = json.loads(server.files(TO, "main")["checkpoints.json"])
    assert [entry["step"] for entry in index["checkpoints"]] == [10, 20, 30]
    assert len(server.history(TO, "step10")) == 2
    assert len(server.history(TO, "main")) == 3
    assert remote_names(server, "step30") == BRANCH_FILES  # nothing of main, which was full when the branch was made


def test_public_only_when_said(server: HubServer, run: Path) -> None:
    done = publish(server, run, "--public", "--checkpoints", "false", to="grupo/aberto")
    assert done.returncode == EXIT_DONE, done.stderr
    assert server.info("grupo/aberto")["private"] is False
    refused = publish(server, run, to="grupo/aberto")
    assert refused.returncode == EXIT_BAD_INPUT
    assert "to=grupo/aberto: is public, so everybody would see this at once. Say so with --public" in refused.stderr
    assert publish(server, run, "--checkpoints", "false").returncode == EXIT_DONE
    stays = publish(server, run, "--public", "--checkpoints", "false")
    assert stays.stderr == "ana/modelo is private and stays so: it is made public in its settings\n"
    assert server.info(TO)["private"] is True


def test_another_run_is_refused_unless_told_so(server: HubServer, run: Path) -> None:
    assert publish(server, run).returncode == EXIT_DONE
    server.write(TO, {"extra.gguf": b"de outra pessoa"})
    before = server.state()
    environment_file = json.loads((run / "environment.json").read_text())
    environment_file["identity"]["seed"] = "7"
    (run / "environment.json").write_text(json.dumps(environment_file))
    (run / "loss.png").unlink()
    refused = publish(server, run)
    assert refused.returncode == EXIT_BAD_INPUT
    assert (
        "its main holds another run; different: seed (there 42, here 7). Choose another repository, or say --replace"
        in refused.stderr
    )
    assert server.state() == before
    done = publish(server, run, "--replace", "--checkpoints", "false")
    assert done.returncode == EXIT_DONE, done.stderr
    # What we had put there and the new run lacks is gone; what others put there stays.
    assert remote_names(server, "main") == (MAIN_FILES - {"loss.png"}) | {"extra.gguf"}


def test_files_of_others_are_refused(server: HubServer, run: Path) -> None:
    server.write(TO, {"README.md": b"# oi", "pytorch_model.bin": b"x"})
    before = server.state()
    refused = publish(server, run, "--public")
    assert refused.returncode == EXIT_BAD_INPUT
    assert "holds files that were not published from here (pytorch_model.bin)" in refused.stderr
    assert server.state() == before
    server.write(TO, {"checkpoints.json": b"{}"})
    assert "checkpoints.json on main is not one that we wrote" in publish(server, run, "--public").stderr
    server.write(TO, {"checkpoints.json": b"{"})
    assert "is no JSON, so it is not ours" in publish(server, run, "--public").stderr


def test_a_branch_with_other_weights_is_refused(server: HubServer, run: Path) -> None:
    """Pythia once served the same weights on two branches."""
    assert publish(server, run).returncode == EXIT_DONE
    shutil.copy(run / "checkpoint-10" / "model.safetensors", run / "checkpoint-20" / "model.safetensors")
    shutil.rmtree(run / "checkpoint-10")
    fix_marker(run / "checkpoint-20")
    before = server.state()
    refused = publish(server, run)
    assert refused.returncode == EXIT_BAD_INPUT
    assert "checkpoints: steps 10 and 20 have the same weights" in refused.stderr
    # Weights of neither step: the branch holds others.
    shutil.copytree(run / "checkpoint-20", run / "checkpoint-10")
    weights = bytearray((run / "checkpoint-10" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "checkpoint-10" / "model.safetensors").write_bytes(weights)
    shutil.rmtree(run / "checkpoint-20")
    marker = json.loads((run / "checkpoint-10" / "complete.json").read_text())
    (run / "checkpoint-10" / "complete.json").write_text(json.dumps({**marker, "step": 10}))
    fix_marker(run / "checkpoint-10")
    refused = publish(server, run)
    there = json.loads(server.files(TO, "main")["checkpoints.json"])["checkpoints"][0]["sha256"]["model.safetensors"]
    here = sha256_file(run / "checkpoint-10" / "model.safetensors")
    assert refused.returncode == EXIT_BAD_INPUT
    assert (
        f"branch step10 holds other weights: model.safetensors has sha256 {there} there and {here} here"
        in refused.stderr
    )
    assert "hf repos branch delete ana/modelo step10" in refused.stderr
    assert server.state() == before


def test_a_branch_with_stray_weights_is_refused(server: HubServer, run: Path) -> None:
    assert publish(server, run).returncode == EXIT_DONE
    server.write(TO, {"model-00001-of-00002.safetensors": b"x"}, revision="step20")
    refused = publish(server, run)
    assert refused.returncode == EXIT_BAD_INPUT
    assert (
        "branch step20 holds weights that are not of this checkpoint (model-00001-of-00002.safetensors)"
        in refused.stderr
    )


@pytest.mark.parametrize(
    ("to", "token", "message"),
    [
        (TO, None, "token: there is none on this machine. Log in with `hf auth login`"),
        (TO, "hf_" + "errado" * 7, "the token: the Hub does not accept the token (HTTP 401). It may be mistyped or expired."),
        (TO, READ_TOKEN, "ana/modelo: making it: you may not write to ana/modelo as ana (HTTP 403)"),
        ("rui/modelo", TOKEN, "to=rui/modelo: rui is somebody else. This token is of ana and may write for: ana, grupo."),
    ],
)  # fmt: skip
def test_what_retrying_cannot_mend(server: HubServer, run: Path, to: str, token: str | None, message: str) -> None:
    before = server.state()
    done = publish(server, run, to=to, token=token)
    assert done.returncode == EXIT_BAD_INPUT
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.state() == before
    assert "Segredo" not in done.stderr
    if token is not None:
        assert (
            f"The run's folder still holds everything; this goes on from here: ttl publish {run} --to {to}"
            in done.stderr
        )
        assert token not in done.stderr


def test_a_gated_repository(server: HubServer, run: Path) -> None:
    server.write("ana/restrito", {"checkpoints.json": b"{}"})
    done = publish(server, run, "--public", to="ana/restrito")
    assert done.returncode == EXIT_BAD_INPUT
    assert f"access to ana/restrito has to be granted. Ask for it at {server.url}/ana/restrito." in done.stderr


@pytest.mark.parametrize(
    ("match", "how", "message", "lfs"),
    [
        (r"POST /api/models/.*/commit/", "403", "(HTTP 403)", False),
        (r"POST /api/models/.*/commit/", "402", "the Hub has no room for it (HTTP 402)", False),
        (r"/storage|PUT ", "413", "the Hub has no room for it (HTTP 413)", True),
        (r"GET .*/xet-write-token/", "402", "the Hub has no room for it (HTTP 402)", False),
        (r"POST /api/validate-yaml", "400", "the Hub refuses it: Invalid metadata in README.md.", False),
    ],
)
def test_refusals_half_way(server: HubServer, run: Path, match: str, how: str, message: str, lfs: bool) -> None:
    fault = server.fail(match=match, how=how, times=1000)
    done = publish(server, run, **({"HF_HUB_DISABLE_XET": "1"} if lfs else {}))
    assert done.returncode == EXIT_BAD_INPUT, done.stderr
    assert message in done.stderr
    assert fault.fired == 1 or how == "413"
    server.clear_faults()
    command = done.stderr.split("this goes on from here: ")[1].split()
    assert command[:2] == ["ttl", "publish"]
    assert publish(server, run, *command[5:]).returncode == EXIT_DONE
    assert remote_names(server, "main") == MAIN_FILES


def test_a_hung_server_is_left_in_bounded_time(server: HubServer, run: Path) -> None:
    server.fail(match=r"POST /api/models/.*/commit/", how="stall", times=1000, seconds=30)
    begin = time.monotonic()
    done = publish(server, run, "--answer_seconds", "0.5", "--give_up_seconds", "2")
    assert time.monotonic() - begin < 25
    assert done.returncode == EXIT_FAILED
    assert "gives no good answer (ReadTimeout: " in done.stderr
    assert "trying again in 1 s" in done.stderr
    assert f"this goes on from here: ttl publish {run} --to ana/modelo --answer_seconds 0.5" in done.stderr


def test_a_dead_server_is_left_in_bounded_time(server: HubServer, run: Path) -> None:
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = publish(server, run, "--give_up_seconds", "0.5", **dead)
    assert done.returncode == EXIT_FAILED
    assert "the token: http://127.0.0.1:9 gives no good answer (ConnectError: " in done.stderr


def test_the_hub_may_ask_to_wait(server: HubServer, run: Path) -> None:
    server.fail(match=r"/commit/", how="429", seconds=2)
    begin = time.monotonic()
    assert publish(server, run).returncode == EXIT_DONE
    assert time.monotonic() - begin > 2
    server.fail(match=r"whoami", how="429", seconds=3600)
    done = publish(server, run)
    assert done.returncode == EXIT_FAILED
    assert "HTTP 429, and asks to wait 3600 s" in done.stderr


def test_a_lost_answer_makes_no_second_commit(server: HubServer, run: Path) -> None:
    server.fail(match=r"POST /api/models/.*/commit/", how="lost_answer", times=1)
    done = publish(server, run)
    assert done.returncode == EXIT_DONE
    assert [len(server.history(TO, branch)) for branch in ("main", "step10", "step20")] == [2, 2, 2]
    assert "step10     published" in done.stdout


def test_two_writers(server: HubServer, run: Path, tokenizer_folder: Path) -> None:
    """A commit of somebody else between our look and our commit: what they did stays, and ours comes on top."""
    assert publish(server, run).returncode == EXIT_DONE
    make_checkpoint(run, tokenizer_folder, 30)
    server.before(r"POST /api/models/.*/commit/main", lambda: server.write(TO, {"notes.md": b"de outra pessoa"}))
    done = publish(server, run)
    assert done.returncode == EXIT_DONE, done.stderr
    assert "main: the commit: another commit came first; trying again in 1 s" in done.stderr
    assert 412 in {request.status for request in server.requests}
    assert remote_names(server, "main") == MAIN_FILES | {"notes.md"}
    assert b'"step": 30' in server.files(TO, "main")["checkpoints.json"]


def test_two_runs_at_once(server: HubServer, run: Path) -> None:
    """Another run takes the repository between our look and our commit: refused, theirs stays."""
    index = json.dumps({"identity": {"seed": "7"}, "files": ["checkpoints.json"]}).encode()
    server.before(r"POST /api/models/.*/commit/main", lambda: server.write(TO, {"checkpoints.json": index}))
    done = publish(server, run)
    assert done.returncode == EXIT_BAD_INPUT
    assert "its main holds another run" in done.stderr
    assert remote_names(server, "main") == {"checkpoints.json"}


def test_other_bytes_on_the_hub_are_noticed(server: HubServer, run: Path) -> None:
    """The third look at the branches is the one after the commit."""
    wrong = {"model.safetensors": b"outra coisa"}
    server.before(r"GET /api/models/ana/modelo/refs", lambda: server.write(TO, wrong), nth=3)
    done = publish(server, run, "--checkpoints", "false")
    assert done.returncode == EXIT_FAILED
    here = sha256_file(run / "model.safetensors")
    assert f"does not hold what was sent: model.safetensors has sha256 {here} here and " in done.stderr


def test_no_token_is_left_anywhere(server: HubServer, run: Path, tmp_path: Path) -> None:
    """Also in the log of the client at its most talkative, on the server, and in the process list meanwhile."""
    server.fail(match=r"/commit/main", how="stall", seconds=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "teenytinyllama", "publish", str(run), "--to", TO],
        env=environment(server, tmp_path / "home", TOKEN, HF_DEBUG="1", HF_HUB_VERBOSITY="debug"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seen = b""
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen += path.read_bytes()
            except OSError:
                continue
        time.sleep(0.2)
    output = process.communicate()[0]
    assert process.returncode == EXIT_DONE, output
    assert b"publish" in seen
    assert TOKEN.encode() not in seen
    assert TOKEN not in output
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    for branch in server.refs(TO)["branches"]:
        assert not [name for name, content in server.files(TO, branch).items() if TOKEN.encode() in content]


def test_large_files_go_through_xet_alone(server: HubServer, run: Path) -> None:
    """Also when a token for the upload is lost, refused for a while, or the answer to the commit never comes."""
    server.fail(match=r"xet-write-token/step10", how="reset")
    server.fail(match=r"xet-write-token/step20", how="503", seconds=0)
    server.fail(match=r"/commit/main", how="lost_answer")
    done = publish(server, run)
    assert done.returncode == EXIT_DONE, done.stderr
    assert not [write for write in server.writes() if write.startswith("lfs")]
    assert server.files(TO, "main")["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert [len(server.history(TO, branch)) for branch in ("main", "step10", "step20")] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["xet", "lfs"])
@pytest.mark.parametrize("how", ["503", "reset", "lost_answer"])
def test_each_request_may_fail_once(run: Path, tmp_path: Path, how: str, transport: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, str(TESTS / "publish_client.py"), str(run), str(tmp_path / "client"), transport, how],
        env={**kept, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [], done.stderr


@pytest.mark.slow
def test_an_adapter_is_loaded_from_the_hub(
    server: HubServer, run: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    """Base model and adapter in two repositories; whoever loads the adapter gets both."""
    assert publish(server, run, "--checkpoints", "false", to="ana/base").returncode == EXIT_DONE
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM; from peft import LoraConfig, get_peft_model\n"
        "torch.manual_seed(0)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "config = LoraConfig(task_type='CAUSAL_LM', r=2, target_modules='all-linear', init_lora_weights=False)\n"
        "get_peft_model(model, config).save_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True)
    for name in ("model.safetensors", "config.json"):
        (run / name).unlink()
    manifest = json.loads((run / "run.json").read_text())
    manifest["hashes"] = {"adapter_model.safetensors": sha256_file(run / "adapter_model.safetensors")}
    (run / "run.json").write_text(json.dumps(manifest))
    done = publish(server, run, "--checkpoints", "false", "--base_model", "ana/base", to="ana/adaptador")
    assert done.returncode == EXIT_DONE, done.stderr
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained('ana/adaptador')\n"
        "assert any('lora_A' in name for name, _ in model.named_parameters())\n"
        "ids = AutoTokenizer.from_pretrained('ana/adaptador')('Era uma vez', return_tensors='pt').input_ids\n"
        "base = AutoModelForCausalLM.from_pretrained('ana/base')\n"
        "assert not model(ids).logits.allclose(base(ids).logits)\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-I", "-c", code], env=server.environment(tmp_path / "fresh", token=TOKEN),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fresh.returncode == 0, fresh.stderr


_LEFT_EMPTY = """
from huggingface_hub import HfApi
api = HfApi()
first = api.list_repo_commits("ana/modelo")[-1].commit_id
api.create_branch("ana/modelo", branch="step20", revision=first)
api.create_branch("ana/modelo", branch="de-outro", revision=first)
"""


def test_an_empty_branch_that_a_killed_publication_left_is_used_again(server: HubServer, run: Path) -> None:
    assert publish(server, run, "--checkpoints", "false").returncode == EXIT_DONE
    left = subprocess.run(
        [sys.executable, "-c", _LEFT_EMPTY], env=environment(server, run.parent / "home"), check=False
    )
    assert left.returncode == 0
    assert publish(server, run).returncode == EXIT_DONE
    assert remote_names(server, "step20") == BRANCH_FILES
    assert len(server.history(TO, "step20")) == 2
    assert remote_names(server, "de-outro") == set()  # and none is deleted
