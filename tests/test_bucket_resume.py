"""A run whose machine is lost goes on from its bucket: sync it, give the same command, and nothing tells the two apart."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from made_runs import make_checkpoint
from test_checkpoints import chosen, flip_a_bit
from test_pretrain import interrupted_run, make_values, run
from test_publish_bucket import BUCKET, RECORDS, TO, files, index
from test_publish_follow import Followers, end, progress, steps, wait_for
from test_publish_hub import TOKEN, publish

from teenytinyllama.checkpointing.checkpoints import checkpoint_faults, refuse_strangers
from teenytinyllama.checkpointing.saving import check_run_folder
from teenytinyllama.checks import EXIT_DONE, EXIT_RESUMABLE, InputError
from teenytinyllama.energy.ledger import read_energy, read_starts
from teenytinyllama.publishing.card import render_model_card
from teenytinyllama.publishing.contents import run_records
from teenytinyllama.publishing.publish import PublishConfig
from teenytinyllama.publishing.publish import publish as publish_here
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training.metrics import read_jsonl

_SYNC = "import sys; from huggingface_hub import HfApi; HfApi().sync_bucket(f'hf://buckets/{sys.argv[1]}', sys.argv[2])"


def sync(server: HubServer, folder: Path) -> Path:
    """What `hf buckets sync` does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _SYNC, BUCKET, str(folder)], capture_output=True, text=True, check=False,
        env=server.environment(folder.parent / "sync-home", token=TOKEN),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub"), tokens={TOKEN: "ana"}, xet=True) as server:
        yield server


@dataclass(frozen=True)
class Lost:
    """A run that was stopped at step 5 and whose machine is gone.

    Attributes:
        values: of its config.
        folder: what a sync of its bucket brings.
        kwh: that it had spent.
        text: all that can be read in the bucket.
    """

    values: dict[str, Any]
    folder: Path
    kwh: float
    text: str


@pytest.fixture(scope="module")
def lost(
    server: HubServer, tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> Lost:
    place = tmp_path_factory.mktemp("lost")
    values = make_values(place, packed_folder, tokenizer_folder)
    folder = Path(values["output_dir"])
    with pytest.MonkeyPatch.context() as patch:
        interrupted_run(values, 5, patch)
    (kwh,) = (start.total.energy_kwh for start in read_starts(folder / "ledger.jsonl"))
    with (folder / "metrics.jsonl").open("a") as file:  # what it may have logged after its checkpoint
        file.write('{"step": 6, "tokens": 1536, "loss": 99.0}\n{"step": 7, "tok')
    follower = Followers(server, place, TO)(folder, "--optimizer_state")
    wait_for(lambda: steps(progress(folder)) == [4, 5])
    follower.terminate()
    end(follower, EXIT_RESUMABLE)
    shutil.rmtree(folder)
    text = "".join(content.decode(errors="replace") for content in files(server).values())
    return Lost(values, sync(server, place / "copy"), kwh, text)


@pytest.fixture
def values(lost: Lost, tmp_path: Path) -> dict[str, Any]:
    """The same command, with the copy of the bucket in an empty folder of a new machine."""
    return {**lost.values, "output_dir": str(shutil.copytree(lost.folder, tmp_path / "run"))}


@pytest.mark.slow
def test_the_same_command_goes_on_from_the_bucket(
    server: HubServer, lost: Lost, values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(values["output_dir"])
    there = {path.name for path in folder.iterdir()}
    assert there == {"checkpoint-4", "checkpoint-5", "checkpoints.json", "emissions.csv", "ledger.jsonl"} | RECORDS
    assert not list(folder.rglob("training_args.bin"))
    for private in (platform.node(), str(Path.home()), str(Path(lost.values["output_dir"]).parent), TOKEN):
        assert f"{private}/" not in lost.text
        assert f'"{private}"' not in lost.text
    run(values)
    assert f"resumed from {folder}/checkpoint-5" in capsys.readouterr().out
    assert "checkpoints.json" not in render_model_card(folder)  # a bucket's list, which names no branches
    twin = run({**values, "output_dir": str(tmp_path / "twin")})
    assert sha256_file(folder / "model.safetensors") == sha256_file(twin / "model.safetensors")
    for name in ("metrics.jsonl", "samples.jsonl"):
        kept, whole = (read_jsonl(place / name) for place in (folder, twin))
        assert [(row["step"], row.get("loss"), row.get("text"), row.get("bits_per_byte")) for row in kept] == [
            (row["step"], row.get("loss"), row.get("text"), row.get("bits_per_byte")) for row in whole
        ]
    emissions, account = read_energy(folder)
    assert account is not None
    assert emissions is not None
    assert [start.first_step for start in account.starts] == [0, 5]
    assert account.starts[0].total.energy_kwh == lost.kwh
    assert account.total.energy_kwh == pytest.approx(lost.kwh + account.starts[1].total.energy_kwh)
    assert emissions.energy_kwh == pytest.approx(account.total.energy_kwh)
    assert account.repeated_kwh == pytest.approx(0, abs=1e-12)
    logged = [row["kwh"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    assert logged == sorted(logged)  # the sums go on from those of the lost machine
    # The run goes on being published to its bucket: nothing is sent that is there.
    server.forget()
    done = publish(server, folder, "--optimizer_state", to=TO)
    assert done.returncode == EXIT_DONE, done.stderr
    assert steps(index(server)) == [4, 5, 8]
    assert [line.split(",")[0] for line in done.stdout.splitlines()][-1] == "model      published"
    again = publish(server, folder, "--optimizer_state", to=TO)
    assert again.stdout.count("is there already, hashes compared") == 4
    assert checkpoint_faults(sync(server, tmp_path / "again") / "checkpoint-8") == []
    finished = {**values, "output_dir": str(tmp_path / "again")}  # with model/, which is in nobody's way
    run(finished)
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(twin / "model.safetensors")


@pytest.mark.slow
def test_what_was_damaged_on_the_way_is_refused(values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(values["output_dir"])
    assert chosen(values) == folder / "checkpoint-5"
    flip_a_bit(folder / "checkpoint-5" / "optimizer" / "00001.safetensors")
    assert chosen(values) == folder / "checkpoint-4"
    assert "skipped    checkpoint-5: optimizer/00001.safetensors has other content" in capsys.readouterr().out
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(InputError, match=r"cannot go on from any .*checkpoint-4 \(trainer_state.json is missing\)"):
        chosen(values)
    (folder / "environment.json").unlink()
    with pytest.raises(InputError, match=r"a bucket's copy without environment.json.* not whole: copy it again, hf"):
        chosen(values)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub", tokens={TOKEN: "ana"}, xet=True) as server:
        yield server


@pytest.mark.slow
def test_without_optimizer_state_the_refusal_says_so(hub: HubServer, run: Path, tmp_path: Path) -> None:
    assert publish(hub, run, to=TO).returncode == EXIT_DONE
    folder = sync(hub, tmp_path / "back")
    with pytest.raises(InputError) as refused:
        check_run_folder(folder, {"seed": "42"})
    assert str(refused.value) == (
        f"output_dir={folder}: holds a bucket's copy without environment.json, so no training goes on there. `ttl "
        "publish` sends what resuming needs only with --optimizer_state. A new run can begin with these weights: "
        f"--model_name_or_path {folder}/checkpoint-20 --output_dir NEW (its optimizer and its schedule begin anew)."
    )


@pytest.mark.slow
def test_markers_go_last_and_stay_true(hub: HubServer, run: Path, tmp_path: Path) -> None:
    """A machine that is lost in an upload leaves a part that the run knows as its own, and records that are new."""
    seen: list[set[str]] = []
    hub.before(r"POST .*/batch", lambda: seen.append(set(files(hub))), nth=3)
    assert publish(hub, run, "--optimizer_state", to=TO).returncode == EXIT_DONE
    there = {"checkpoint-10/begun.json", "checkpoint-10/model.safetensors", "checkpoint-10/scheduler.pt"} | RECORDS
    assert there <= seen[0]
    assert "checkpoint-10/complete.json" not in seen[0]
    for path in seen[0]:  # as a sync brings it
        (tmp_path / "part" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "part" / path).write_bytes(files(hub)[path])
    refuse_strangers(tmp_path / "part", 100)
    # Sent again without the option, after a file beside the weights has changed: the marker is of what is there.
    (run / "config.yaml").write_text("preset: tiny\nmax_steps: 40\n")
    assert publish(hub, run, to=TO).returncode == EXIT_DONE
    folder = sync(hub, tmp_path / "back")
    assert [checkpoint_faults(folder / f"checkpoint-{step}") for step in (10, 20)] == [[], []]
    before, now = (json.loads((place / "checkpoint-20" / "complete.json").read_text()) for place in (run, folder))
    sent = {path.removeprefix("checkpoint-20/") for path in files(hub) if path.startswith("checkpoint-20/")}
    assert set(now.pop("files")) == sent - {"complete.json", "begun.json"}
    assert before.pop("files")
    assert now == before
    assert b"max_steps: 40" in files(hub)["config.yaml"]


@pytest.mark.slow
def test_records_are_of_the_newest_checkpoint_in_the_bucket(hub: HubServer, run: Path, tokenizer_folder: Path) -> None:
    """A start in a new folder that has not got as far as the lost machine does not replace that one's records."""
    make_checkpoint(run, tokenizer_folder, 30)
    assert publish(hub, run, "--optimizer_state", to=TO).returncode == EXIT_DONE
    before = files(hub)
    shutil.rmtree(run / "checkpoint-30")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:22]))
    assert publish(hub, run, "--optimizer_state", to=TO).returncode == EXIT_DONE
    assert steps(index(hub)) == [10, 20, 30]
    assert files(hub)["metrics.jsonl"] == before["metrics.jsonl"] != files(hub)["model/metrics.jsonl"]
    make_checkpoint(run, tokenizer_folder, 40)
    assert publish(hub, run, "--optimizer_state", to=TO).returncode == EXIT_DONE
    assert files(hub)["metrics.jsonl"] == files(hub)["model/metrics.jsonl"]


def test_a_dry_run_lists_markers_and_records(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_here(made_run, PublishConfig(to=TO, dry_run=True, optimizer_state=True))
    output = capsys.readouterr().out
    assert f"{TO}, records: {len(RECORDS)} files" in output
    assert "  checkpoint-20/complete.json " in output


def test_records_are_whole_and_say_nothing_of_the_machine(tmp_path: Path) -> None:
    contents = {
        "config.yaml": "packed: /home/ana/dados/packed\n", "environment.json": '{"identity": {"seed": "/home/ana/m"}}',
        "metrics.jsonl": '{"step": 1}\n{"ste', "ledger-1.jsonl": "{}\n{", "emissions.csv": "run_id\na\nb",
        "trackers.json": "{}", "speed_test.json": "{}", "decay_now": "", "samples.jsonl": "", "bad_steps.jsonl": "{}\n",
        "run.json": "{}", "publish.log": "x", "loss.png": "x", "report.html": "x",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    found = {file.path: file.source for file in run_records(tmp_path)}
    assert all(isinstance(content, bytes) for content in found.values())
    assert found.pop("environment.json") == b'{\n "identity": {\n  "seed": "m"\n }\n}\n'
    assert found == {
        "config.yaml": b"packed: packed\n", "metrics.jsonl": b'{"step": 1}\n', "ledger-1.jsonl": b"{}\n",
        "emissions.csv": b"run_id\na\n", "trackers.json": b"{}", "speed_test.json": b"{}", "decay_now": b"\n",
    }  # fmt: skip
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match=r"metrics.jsonl: leads out of .* Only files of the run are published"):
        run_records(tmp_path)


def test_a_record_whose_places_were_cut_is_of_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"identity": {"model_name_or_path": "base", "seed": "42"}}))
    assert check_run_folder(tmp_path, {"model_name_or_path": "/data/ana/base", "seed": "42"}) == "resume"
    for other in ("/data/ana/base-2", "base/x", "/data/base/x"):
        with pytest.raises(InputError, match=f"different: model_name_or_path .there base, now {other}."):
            check_run_folder(tmp_path, {"model_name_or_path": other, "seed": "42"})
