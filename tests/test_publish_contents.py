"""What of a run is published, listed or written to a folder, and what never is. No server is needed."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_checkpoint

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, InputError
from teenytinyllama.cli import main
from teenytinyllama.publishing.publish import write_folder
from teenytinyllama.publishing.safety import (
    Upload,
    UploadFile,
    check_path,
    check_repository,
    check_revision,
    check_upload,
    one_clean_line,
)
from teenytinyllama.stage_folder import sha256_file

REPOSITORY = Path(__file__).resolve().parent.parent
TOKEN = "hf_" + "SegredoMarcado" * 3
MAIN_FILES = {
    "README.md", "checkpoints.json", "config.json", "config.yaml", "environment.json", "generation_config.json",
    "loss.png", "metrics.jsonl", "model.safetensors", "run.json", "samples.jsonl", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json",
}  # fmt: skip
BRANCH_FILES = {
    "config.json", "config.yaml", "emissions.json", "environment.json", "generation_config.json", "metrics.jsonl",
    "model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
}  # fmt: skip


def test_the_accounts_of_all_machines_are_published(run: Path, tmp_path: Path) -> None:
    columns = "run_id,energy_consumed,cpu_energy,gpu_energy,ram_energy,emissions,duration,country_iso_code"
    accounts = {"emissions.csv", "emissions-1.csv", "emissions.csv.bak", "ledger.jsonl", "ledger-1.jsonl"}
    for name in accounts:
        (run / name).write_text(f"{columns}\n{name},1,0,1,0,2,10,BRA\n" if name.startswith("em") else "")
    for other in ("ledger-old.jsonl", "emissions-a.csv", "emissions.csv.bak.gz"):
        (run / other).write_text("not an account")
    assert names(published(run, tmp_path, "--checkpoints", "false")) == MAIN_FILES | accounts


def published(run: Path, tmp_path: Path, *more: str) -> Path:
    """Return the folder that a run was published to."""
    folder = tmp_path / "out"
    assert main(["publish", str(run), "--to", f"folder:{folder}", *more]) == EXIT_DONE
    return folder


def refused(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Return the message of a refused publishing; nothing was written."""
    folder = run.parent / "refused"
    assert main(["publish", str(run), "--to", f"folder:{folder}", *more]) == EXIT_BAD_INPUT
    assert not folder.exists()
    return capsys.readouterr().err


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_exactly_what_is_allowed(run: Path, tmp_path: Path) -> None:
    for name in (".env", "id_rsa", "notes.txt", "pytorch_model.bin", "core.1234", "run.json.partial"):
        (run / name).write_text("x")
    for name in ("__pycache__", "conversations", ".publish"):
        (run / name).mkdir()
        (run / name / "a.json").write_text("{}")
    folder = published(run, tmp_path)
    branches = {f"revisions/step{step}/{name}" for step in (10, 20) for name in BRANCH_FILES}
    assert names(folder) == MAIN_FILES | branches
    index = json.loads((folder / "checkpoints.json").read_text())
    assert index["identity"] == json.loads((run / "environment.json").read_text())["identity"]
    assert set(index["files"]) == MAIN_FILES
    for entry, step in zip(index["checkpoints"], (10, 20), strict=True):
        weights = folder / "revisions" / f"step{step}" / "model.safetensors"
        assert entry == {
            "step": step, "branch": f"step{step}", "tokens": 64 * step, "loss": 5 - step / 10,
            "bits_per_byte": 2.0 - step / 100, "kwh": step / 1000, "kg_co2e": step / 10000,
            "sha256": {"model.safetensors": sha256_file(weights)},
        }  # fmt: skip
        lines = (weights.parent / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))
        assert json.loads((weights.parent / "emissions.json").read_text())["kwh"] == step / 1000
    assert not list(tmp_path.glob("*.partial"))


def test_no_folder_of_this_machine_is_published(run: Path, tmp_path: Path) -> None:
    place = "/home/ana/teses/packed"
    for name in ("run.json", "environment.json"):
        content = json.loads((run / name).read_text())
        for part in ("config", "data", "identity"):
            if part in content:
                content[part]["packed"] = place
        if "command" in content:
            content["command"] = f"ttl pretrain --packed {place}"
        (run / name).write_text(json.dumps(content))
    (run / "config.yaml").write_text(f"packed: {place}\noutput_dir: {run}\n")
    folder = published(run, tmp_path)
    texts = {path: path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".yaml", ".md", ".jsonl")}
    assert [path.name for path, text in texts.items() if "/home/ana" in text or str(tmp_path) in text] == []
    assert "ttl pretrain --packed packed" in texts[folder / "README.md"]
    assert json.loads(texts[folder / "run.json"])["config"]["packed"] == "packed"


@pytest.mark.slow
def test_it_loads_without_our_package(run: Path, tmp_path: Path) -> None:
    folder = published(run, tmp_path)
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        "    model.generate(**tokenizer('Era uma vez', return_tensors='pt'), max_new_tokens=2, do_sample=False)\n"
    )
    folders = [str(folder), str(folder / "revisions" / "step10")]
    done = subprocess.run([sys.executable, "-I", "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dry_run_lists_every_file_and_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: sha256_file(run / name) for name in names(run)}
    assert main(["publish", str(run), "--to", "ana/modelo", "--dry-run"]) == EXIT_DONE
    text = capsys.readouterr().out
    assert f"ana/modelo (model repository), main: {len(MAIN_FILES)} files" in text
    for revision, listed in (("main", MAIN_FILES), ("step10", BRANCH_FILES), ("step20", BRANCH_FILES)):
        part = text.split(f"{revision}: {len(listed)} files")[1].split("\n\n")[0].splitlines()[1:]
        assert {line.split()[0] for line in part} == listed
    assert f"{(run / 'model.safetensors').stat().st_size:,} bytes" in text
    assert "README.md of main:\n\n---\n" in text
    assert "| `step10` | 640 | 4.0000 | 1.9000 |" in text
    assert "\nlanguage: pt\n" in text
    assert '"ana/modelo"' in text
    assert before == {name: sha256_file(run / name) for name in names(run)}


def test_without_checkpoints_only_main_is_written(run: Path, tmp_path: Path) -> None:
    assert names(published(run, tmp_path, "--checkpoints", "false")) == MAIN_FILES


def test_optimizer_state_only_on_request(run: Path, tmp_path: Path) -> None:
    added = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    added |= {"optimizer/00001.safetensors", "optimizer/state.json"}
    folder = published(run, tmp_path, "--optimizer_state")
    assert names(folder / "revisions" / "step10") == BRANCH_FILES | added


def test_publishing_is_deterministic(run: Path, tmp_path: Path) -> None:
    first = published(run, tmp_path)
    hashes = {name: sha256_file(first / name) for name in names(first)}
    shutil.rmtree(first)
    assert hashes == {name: sha256_file(path / name) for path in [published(run, tmp_path)] for name in names(path)}


@pytest.mark.parametrize("name", ["samples.jsonl", "checkpoint-10/model.safetensors", "config.json"])
def test_a_link_out_of_the_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    secret = run.parent / "secret"
    secret.write_text("{}")
    (run / name).unlink()
    (run / name).symlink_to(secret)
    if "/" in name:
        fix_marker(run / "checkpoint-10")
    assert f"{run / name}: leads out of {run}, to {secret}. Only files of the run are published" in refused(run, capsys)


def test_a_link_inside_the_run_is_followed(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-20" / "model.safetensors").unlink()
    (run / "checkpoint-20" / "model.safetensors").symlink_to(run / "model.safetensors")
    folder = published(run, tmp_path)
    assert not (folder / "revisions" / "step20" / "model.safetensors").is_symlink()


def test_a_dead_link_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "loss.png").unlink()
    (run / "loss.png").symlink_to("nowhere")
    assert f"{run / 'loss.png'}: cannot be read" in refused(run, capsys)


@pytest.mark.parametrize("name", ["config.yaml", "samples.jsonl", "checkpoint-10/tokenizer_config.json"])
@pytest.mark.parametrize("token", [TOKEN, "outro-segredo-da-maquina"])
def test_a_token_in_a_file_is_refused_and_never_shown(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "outro-segredo-da-maquina")
    content = json.loads((run / name).read_text()) if name.endswith("config.json") else None
    with (run / name).open("w") as file:
        row = {**(content or {}), "step": 1, "prompt": token, "text": token}
        file.write(json.dumps(row) + ("\n" if content is None else ""))
    if "/" in name:
        fix_marker(run / "checkpoint-10")
    message = refused(run, capsys)
    told = "README.md" if name == "samples.jsonl" else name.split("/")[-1]  # the card quotes the samples
    assert f"{told}: holds an access token of the Hub, so it is not published" in message
    assert token not in message


@pytest.mark.parametrize("words", [["--token", TOKEN], [f"--hub_token={TOKEN}"]])
def test_a_token_is_never_taken_on_the_command_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    message = refused(run, capsys, *words)
    assert (
        "token: tokens are never given on the command line or in a file, where others can read them. Use `hf auth login`"
        in message
    )
    assert TOKEN not in message


def test_a_token_as_a_repository_is_not_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(run), "--to", TOKEN]) == EXIT_BAD_INPUT
    assert TOKEN not in capsys.readouterr().err


def test_checkpoints_with_equal_weights_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run / "checkpoint-10" / "model.safetensors", run / "checkpoint-20")
    fix_marker(run / "checkpoint-20")
    digest = sha256_file(run / "checkpoint-10" / "model.safetensors")
    message = refused(run, capsys)
    assert f"checkpoints: steps 10 and 20 have the same weights (model.safetensors, sha256 {digest})" in message


def fix_marker(checkpoint: Path) -> None:
    """Make the marker of a changed checkpoint agree with it."""
    marker = json.loads((checkpoint / "complete.json").read_text())
    for name, record in marker["files"].items():
        record.update(bytes=(checkpoint / name).stat().st_size, sha256=sha256_file(checkpoint / name))
    (checkpoint / "complete.json").write_text(json.dumps(marker))


def test_a_damaged_checkpoint_is_refused_or_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "checkpoint-10" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    message = refused(run, capsys)
    assert f"{weights.parent}: is damaged: " in message
    assert "or leave it out: --skip_damaged" in message
    assert not (published(run, tmp_path, "--skip_damaged") / "revisions" / "step10").exists()


def test_changed_final_weights_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run / "checkpoint-10" / "model.safetensors", run)
    assert f"{run / 'model.safetensors'}: has changed since the run ended (sha256 " in refused(run, capsys)
    (run / "model.safetensors").unlink()
    assert "holds no weights in safetensors" in refused(run, capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tokenizer.json", "holds no tokenizer, so nobody could use the model"), ("config.json", "holds no config.json"),
     ("run.json", "the run is not complete"), ("environment.json", "is no run's folder, it has no environment.json")],
)  # fmt: skip
def test_what_is_missing_is_named(run: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    (run / name).unlink()
    assert message in refused(run, capsys)


def test_a_damaged_environment_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "environment.json").write_text("[]")
    assert "environment.json: is damaged (" in refused(run, capsys)


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "RUN=" in refused(tmp_path / "nada", capsys)
    assert main(["publish"]) == EXIT_BAD_INPUT
    assert "ttl publish: needs a run" in capsys.readouterr().err


def test_a_full_folder_is_left_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cheia").mkdir()
    (tmp_path / "cheia" / "a").write_text("meu")
    assert main(["publish", str(run), "--to", f"folder:{tmp_path / 'cheia'}"]) == EXIT_BAD_INPUT
    assert "cheia: is not empty. Give a new folder." in capsys.readouterr().err
    assert names(tmp_path / "cheia") == {"a"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "modelo"], "to=modelo: is no repository of the Hub. Give owner/name"),
        (["--to", "ana/mo--delo"], "is no repository of the Hub"),
        (["--to", "ana/../modelo"], "is no repository of the Hub"),
        (["--to", "folder:"], "to=folder:: names no folder"),
        (["--to", "folder:x", "--follow"], "following needs a repository"),
        (["--to", "ana/m", "--follow", "--dry-run"], "follow, dry_run: exclude each other"),
        (["--to", "ana/m", "--follow", "--checkpoints", "false"], "checkpoints=false: with follow"),
        (["--to", "ana/m", "--poll_seconds", "0"], "poll_seconds=0.0: must be positive"),
        (["--to", "ana/m", "--base_model", "base"], "base_model=base: is no repository of the Hub"),
        (["--to", "ana/m", "--privat"], "privat: unknown key"),
        (["--to", "ana/m", "--language", "de"], "language=de: must be one of"),
        (["--to", "ana/m"], "HF_HUB_OFFLINE: is set, so nothing can be sent. Unset it, or write to a folder"),
        ([], "to: missing"),
    ],
)  # fmt: skip
def test_bad_settings(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["publish", str(run), *words]) == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err


@pytest.fixture
def adapter_run(run: Path) -> Path:
    """A run whose model and checkpoints are adapters of a base model in a folder."""
    for folder in (run, run / "checkpoint-10", run / "checkpoint-20"):
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        for name in ("config.json", "generation_config.json"):
            (folder / name).unlink()
        (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "outputs/tiny/base", "r": 4})
        )
        (folder / "base_model.json").write_text(json.dumps({"base_model": "outputs/tiny/base", "fingerprint": "f"}))
    manifest = json.loads((run / "run.json").read_text())
    manifest["hashes"] = {"adapter_model.safetensors": sha256_file(run / "adapter_model.safetensors")}
    (run / "run.json").write_text(json.dumps(manifest))
    for step in (10, 20):
        folder = run / f"checkpoint-{step}"
        marker = json.loads((folder / "complete.json").read_text())
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        marker["files"] = {name: {} for name in files if name != "complete.json"}
        (folder / "complete.json").write_text(json.dumps(marker))
        fix_marker(folder)
    return run


def test_an_adapter_names_its_base_on_the_hub(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(adapter_run, capsys)
    assert "is an adapter of outputs/tiny/base, a folder of this machine that nobody else can load" in message
    folder = published(adapter_run, tmp_path, "--base_model", "ana/base")
    for place in (folder, folder / "revisions" / "step10"):
        assert json.loads((place / "adapter_config.json").read_text()) == {
            "base_model_name_or_path": "ana/base",
            "r": 4,
        }
        assert json.loads((place / "base_model.json").read_text()) == {"base_model": "ana/base", "fingerprint": "f"}
        assert (place / "adapter_model.safetensors").is_file()


def test_a_folder_whose_name_looks_like_a_repository_is_no_base_on_the_hub(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever owns that name there would give everybody the base weights."""
    for folder in (adapter_run, adapter_run / "checkpoint-10", adapter_run / "checkpoint-20"):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "outputs/base", "r": 4}))
        record = {"base_model": "outputs/base", "base_is_local": True, "fingerprint": "f"}
        (folder / "base_model.json").write_text(json.dumps(record))
        if folder != adapter_run:
            fix_marker(folder)
    assert "is an adapter of outputs/base, a folder of this machine" in refused(adapter_run, capsys)
    folder = published(adapter_run, tmp_path, "--base_model", "ana/base")
    assert json.loads((folder / "base_model.json").read_text())["base_is_local"] is False


def upload(*paths: str, **more: Any) -> Upload:
    return Upload("ana/m", "model", "main", tuple(UploadFile(path, b"x") for path in paths), "m", **more)


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a/../b", "a//b", "a\\b", "a\nb", "", ".", ".git/config", ".cache/x", "x/__pycache__/y",
             ".env", ".env.local", "prod.env", "id_rsa", "id_ed25519.pub", "a/server.pem", "token", "credentials.json",
             "secrets.yaml", ".netrc"],
)  # fmt: skip
def test_paths_that_never_leave(path: str) -> None:
    with pytest.raises(InputError, match=r"^path="):
        check_path(path)
    with pytest.raises(InputError):
        check_upload(upload(path))


@pytest.mark.parametrize("path", ["a.pt", "pytorch_model.bin", "x/y.PKL", "model.ckpt"])
def test_pickles_never_leave_unasked(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a pickle, and reading one can run code"):
        check_upload(upload(path))
    with pytest.raises(InputError, match="is a pickle"):
        write_folder([upload(path)], tmp_path / "x")
    check_upload(upload(path, pickles=(path,)))


def test_uploads_are_checked(tmp_path: Path) -> None:
    check_upload(upload("tokenizer.json", "a/b.txt", ".gitattributes", "environment.json"))
    with pytest.raises(InputError, match=r"a\.txt would be uploaded twice"):
        check_upload(upload("a.txt", "a.txt"))
    with pytest.raises(InputError, match="is no file any more"):
        check_upload(Upload("ana/m", "model", "main", (UploadFile("a", tmp_path / "a"),), "m"))
    large = tmp_path / "large.txt"  # a token across two parts of reading
    large.write_bytes(b" " * ((1 << 24) - 10) + TOKEN.encode())
    with pytest.raises(InputError, match="holds an access token"):
        check_upload(Upload("ana/m", "model", "main", (UploadFile("large.txt", large),), "m"))


@pytest.mark.parametrize("revision", ["step10", "main", "v1.0_a"])
def test_good_revisions(revision: str) -> None:
    check_revision(revision)


@pytest.mark.parametrize("revision", ["", "a/b", "refs/pr/1", "a..b", "-a", "a b", "a.lock", "a.", "a~1", "ação"])
def test_bad_revisions(revision: str) -> None:
    with pytest.raises(InputError, match="is no plain branch name"):
        check_revision(revision)


def test_good_repositories() -> None:
    check_repository("ana/meu_Modelo-1.0")


def test_what_others_say_is_one_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "segredo-da-maquina")
    text = f"erro\n\x1b[31m {TOKEN} segredo-da-maquina https://s3.example/x?X-Signature=abc&y=1 " + "a" * 999
    line = one_clean_line(text)
    assert line.startswith("erro [31m <token> <token> https://s3.example/x aaa")
    assert len(line) == 300


def test_nothing_is_unpickled(run: Path, tmp_path: Path) -> None:
    """The state of the optimizer is copied, never read as what it is."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "boom"),)

    (run / "checkpoint-10" / "optimizer.pt").write_bytes(pickle.dumps(Bomb()))
    fix_marker(run / "checkpoint-10")
    published(run, tmp_path, "--optimizer_state")
    assert not (tmp_path / "boom").exists()


def test_publishing_loads_nothing_heavy(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from teenytinyllama.cli import main; assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    words = ["publish", str(run), "--to", f"folder:{tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_of_an_older_version(run: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    """Its marker has neither hashes nor figures; those come from metrics.jsonl."""
    for step in (10, 20):
        (run / f"checkpoint-{step}" / "complete.json").write_text(
            json.dumps({"step": step, "world_size": 1, "zero_stage": 0})
        )
    entry = json.loads((published(run, tmp_path) / "checkpoints.json").read_text())["checkpoints"][0]
    assert (entry["step"], entry["tokens"], entry["loss"], entry["kwh"]) == (10, 640, 4.0, None)


def test_the_recipe_does_the_same(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "recipes" / "publish.py")]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}

    def start(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment)

    assert start(str(run), "--to", f"folder:{tmp_path / 'out'}").returncode == EXIT_DONE
    assert names(tmp_path / "out") >= MAIN_FILES
    shown = start("--help")
    assert shown.returncode == EXIT_DONE
    assert "--optimizer_state" in shown.stdout
    for words, message in ((["--to", "ana/m"], "needs a run"), ([str(run), "--oops", "1"], "oops: unknown key")):
        refused_start = start(*words)
        assert (refused_start.returncode, message in refused_start.stderr) == (EXIT_BAD_INPUT, True)


def test_a_new_checkpoint_is_added(run: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    make_checkpoint(run, tokenizer_folder, 30)
    folder = published(run, tmp_path)
    assert [entry["step"] for entry in json.loads((folder / "checkpoints.json").read_text())["checkpoints"]] == [
        10,
        20,
        30,
    ]
