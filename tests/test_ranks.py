"""The same config on one process and on two ranks under DDP and ZeRO-1, 2 and 3, by the commands that users type."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from test_pretrain import losses, make_values

from teenytinyllama.checkpointing.checkpoints import checkpoint_faults, complete_checkpoints, read_marker
from teenytinyllama.energy.emissions import read_emissions
from teenytinyllama.energy.ledger import read_ledger
from teenytinyllama.planning.memory import optimizer_bytes
from teenytinyllama.publishing.energy_report import write_energy_report
from teenytinyllama.training.metrics import read_jsonl

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
TTL = [sys.executable, "-m", "teenytinyllama"]

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def start(folder: Path, packed: Path, tokenizer: Path, *more: str) -> tuple[list[str], Path]:
    """Return the arguments of `ttl pretrain` for a run in `folder`, and the run's folder."""
    folder.mkdir(exist_ok=True)
    values = make_values(folder, packed, tokenizer)
    (folder / "x.yaml").write_text(yaml.safe_dump(values))
    return ["--config", str(folder / "x.yaml"), *more], Path(values["output_dir"])


def ttl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TTL, "pretrain", *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path) -> Path:
    arguments, folder = start(tmp_path_factory.mktemp("one"), packed_folder, tokenizer_folder)
    done = ttl(*arguments)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("name", "kind", "stage"), [("cpu2", "MULTI_CPU", 0), ("ddp", "MULTI_CPU", 0),
                         ("zero1", "DEEPSPEED", 1), ("zero2", "DEEPSPEED", 2), ("zero3", "DEEPSPEED", 3)])  # fmt: skip
def test_two_ranks_train_as_one(
    name: str, kind: str, stage: int, one_process: Path, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder)
    done = ttl("--accelerate", name, "--num_processes", "2", *arguments)
    assert done.returncode == 0, done.stderr
    engine = "DeepSpeedEngine" if stage else "DistributedDataParallel"
    assert f"2 (backend gloo, {kind}, ZeRO stage {stage or 'none'}, {engine})" in done.stdout
    training = json.loads((folder / "run.json").read_text())["training"]
    assert (training["world_size"], training["backend"], training["zero_stage"]) == (2, "gloo", stage)
    assert losses(folder) == pytest.approx(losses(one_process), abs=2e-5)
    results = [json.loads((path / "run.json").read_text())["results"]["final"] for path in (folder, one_process)]
    assert results[0]["bits_per_byte"] == pytest.approx(results[1]["bits_per_byte"], rel=1e-4)
    assert results[0]["scored_tokens"] == results[1]["scored_tokens"]
    from transformers import AutoModelForCausalLM

    for name_of_place in (".", "checkpoint-4"):  # whole weights under every stage
        model, alone = (AutoModelForCausalLM.from_pretrained(path / name_of_place) for path in (folder, one_process))
        weights = dict(alone.named_parameters())
        assert sum(parameter.numel() for parameter in model.parameters()) == 59_040
        for weight_name, weight in model.named_parameters():
            torch.testing.assert_close(weight, weights[weight_name], atol=1e-4, rtol=1e-3)
    check_checkpoint(folder, one_process, stage)


@pytest.fixture(scope="module")
def one_process_with_muon(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> Path:  # fmt: skip
    arguments, folder = start(tmp_path_factory.mktemp("muon"), packed_folder, tokenizer_folder, *MUON)
    done = ttl(*arguments)
    assert done.returncode == 0, done.stderr
    return folder


MUON = ["--optimizer", "normuon", "--learning_rate", "0.02", "--max_grad_norm", "0.5", "--sample_prompts", "[]"]


@pytest.mark.parametrize(
    ("name", "precision"), [("ddp", "fp32"), ("zero1", "fp32"), ("zero2", "fp32"), ("zero1", "bf16")]
)
def test_two_ranks_with_muon_train_as_one_and_resume_to_the_same(
    name: str, precision: str, one_process_with_muon: Path, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    """In bf16 ZeRO-1 has another optimizer of DeepSpeed's, which rounds the weights that the forward pass sees."""
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder, *MUON, "--accelerate", name)
    arguments += ["--num_processes", "2", "--per_device_train_batch_size", "1", "--bf16", str(precision == "bf16")]
    done = ttl(*arguments)
    assert done.returncode == 0, done.stderr
    assert "256 tokens a step = 1 rows x 4 accumulation x 2 ranks" in done.stdout
    found, expected = losses(folder), losses(one_process_with_muon)
    assert expected[0] - expected[-1] > 0.5
    records = [record for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    assert max(record["grad_norm"] for record in records) > 0.5, "nothing was clipped"
    assert found == pytest.approx(expected, abs=2e-5 if precision == "fp32" else 5e-3)
    check_state(folder, 0 if name == "ddp" else int(name[-1]), done.stdout)
    if (name, precision) == ("zero1", "fp32"):
        return  # saved as under ZeRO-2
    shutil.rmtree(folder / "checkpoint-8")  # as if it had been killed before
    (folder / "run.json").unlink()
    again = ttl(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"resumed from {folder}/checkpoint-4" in again.stdout
    assert losses(folder) == found


def check_state(folder: Path, stage: int, said: str) -> None:
    """Each rank keeps its half of the optimizer's state under ZeRO, as the banner says; a checkpoint has it whole."""
    from transformers import LlamaConfig

    shape = LlamaConfig.from_pretrained(folder)
    each = optimizer_bytes(shape, "normuon", shares=2 if stage else 1)
    assert f"and for norms; state of {each / 1000:.0f} kB on each of 2 ranks" in said
    assert read_marker(folder / "checkpoint-8").zero_stage == stage
    kept, (file,) = 0, (folder / "checkpoint-8" / "optimizer").glob("*.safetensors")
    with safe_open(file, framework="pt") as saved:
        for key in saved.keys():  # noqa: SIM118  (no mapping)
            kept += 0 if key.endswith("|weight") else 4 * saved.get_tensor(key).numel()
    assert kept == pytest.approx(optimizer_bytes(shape, "normuon"), rel=0.01)


ALONE, PAIR = ("--accelerate", "single"), ("--num_processes", "2")


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (ALONE, ("--accelerate", "zero2", *PAIR), ("--sample_prompts", "[]")),
        (("--accelerate", "zero2", *PAIR), ("--accelerate", "ddp", *PAIR), ("--sample_prompts", "[]")),
        (("--accelerate", "zero1", *PAIR, "--bf16", "true"), (*ALONE, "--bf16", "true"), MUON),
        (("--accelerate", "ddp", *PAIR), ("--accelerate", "zero2", "--num_processes", "4"), MUON),
    ],
    ids=["alone-zero2", "zero2-ddp", "bf16-zero1-alone", "ddp2-zero2x4"],
)
def test_a_run_goes_on_with_other_ranks(
    before: tuple[str, ...], after: tuple[str, ...], changed: tuple[str, ...], tmp_path: Path, packed_folder: Path,
    tokenizer_folder: Path,
) -> None:  # fmt: skip
    """The same rows in the same order, and the losses of the run that was not moved, up to rounding."""
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder, *changed)
    done = ttl(*arguments, *before)
    assert done.returncode == 0, done.stderr
    expected = losses(folder)
    shutil.rmtree(folder / "checkpoint-8")  # as if it had been killed before
    (folder / "run.json").unlink()
    again = ttl(*arguments, *after)
    assert again.returncode == 0, again.stderr
    assert f"resumed from {folder}/checkpoint-4" in again.stdout
    assert losses(folder)[:4] == expected[:4]
    # In bf16 ZeRO rounds the weights that the forward pass sees, autocast the products alone.
    assert losses(folder)[4:] == pytest.approx(expected[4:], abs=5e-3 if "--bf16" in before else 2e-5)
    checkpoint = folder / "checkpoint-8"
    assert not list(checkpoint.glob("global_step*")), "DeepSpeed's own files"
    assert not list(checkpoint.rglob("*.pickle"))
    assert checkpoint_faults(checkpoint) == []


LOGITS = """
import sys
sys.modules["deepspeed"] = None  # importing it raises
import numpy, torch
from transformers import AutoModelForCausalLM
models = [AutoModelForCausalLM.from_pretrained(folder) for folder in sys.argv[2:]]
with torch.no_grad():
    numpy.save(sys.argv[1], [model(torch.arange(32)[None] * 7 % 600).logits.numpy() for model in models])
"""


def check_checkpoint(folder: Path, one_process: Path, stage: int) -> None:
    """It holds every rank's files by their hashes, and the trained model for anyone without DeepSpeed."""
    checkpoint = folder / "checkpoint-8"
    marker = read_marker(checkpoint)
    assert (marker.world_size, marker.zero_stage, checkpoint_faults(checkpoint)) == (2, stage, [])
    assert marker.files is not None
    names = {Path(name).name for name in marker.files}
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "config.json"} <= names
    shards = {"00001.safetensors", "state.json"}
    if stage == 3:  # DeepSpeed's own, for as many ranks
        shards = {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)}
    assert shards <= names
    models = [str(path) for path in (checkpoint, folder, one_process)]
    command = [sys.executable, "-I", "-c", LOGITS, str(folder / "logits.npy"), *models]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved, final, alone = np.load(folder / "logits.npy")
    np.testing.assert_array_equal(saved, final)
    np.testing.assert_allclose(saved, alone, atol=2e-3)


def test_a_missing_shard_is_noticed_by_both_ranks(
    one_process: Path, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder, "--accelerate", "zero2")
    assert ttl(*arguments).returncode == 0
    (folder / "run.json").unlink()
    (folder / "checkpoint-8" / "optimizer" / "00001.safetensors").unlink()
    again = ttl(*arguments)
    assert again.returncode == 0, again.stderr
    assert "skipped    checkpoint-8: optimizer/00001.safetensors is missing" in again.stdout
    assert f"resumed from {folder}/checkpoint-4" in again.stdout
    assert losses(folder) == pytest.approx(losses(one_process), abs=2e-5)
    for step in (4, 8):
        (folder / f"checkpoint-{step}" / "model.safetensors").unlink()
    (folder / "run.json").unlink()
    refused = ttl(*arguments)
    assert refused.returncode == 2
    assert "cannot go on from any of its checkpoints" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_recipe_under_accelerate_launch(
    one_process: Path, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/zero2.yaml"]
    done = subprocess.run([*command, "recipes/pretrain.py", *arguments], env=ENVIRONMENT, cwd=REPOSITORY,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 (backend gloo, DEEPSPEED, ZeRO stage 2, DeepSpeedEngine)" in done.stdout
    assert losses(folder) == pytest.approx(losses(one_process), abs=2e-5)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if process.poll() is not None or (
            (folder / "metrics.jsonl").exists() and f'"step": {step},' in (folder / "metrics.jsonl").read_text()
        ):
            return
        time.sleep(0.05)


def test_a_signal_to_ttl_saves_on_both_ranks_and_the_same_command_resumes(
    tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    long = ["--accelerate", "zero2", "--max_tokens", str(256 * 60), "--save_steps", "1000", "--eval_strategy", "no"]
    arguments, folder = start(tmp_path / "a", packed_folder, tokenizer_folder, *long)
    whole_arguments, whole = start(tmp_path / "b", packed_folder, tokenizer_folder, *long)
    assert ttl(*whole_arguments).returncode == 0
    process = subprocess.Popen([*TTL, "pretrain", *arguments], env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)  # fmt: skip
    wait_for_step(folder, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "the same command goes on from there" in output
    saved = [step for step, _ in complete_checkpoints(folder)]
    assert len(saved) == 1
    assert saved[0] < 60
    done = ttl(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"resumed from {folder}/checkpoint-{saved[0]}" in done.stdout
    assert losses(folder) == pytest.approx(losses(whole), abs=1e-7)


def test_inputs_are_packed_before_the_ranks_start(tmp_path: Path, corpus_folder: Path, tokenizer_folder: Path) -> None:
    arguments, folder = start(tmp_path, Path("unused"), tokenizer_folder)
    values = yaml.safe_load((tmp_path / "x.yaml").read_text())
    del values["packed"]
    values |= {"inputs": [str(corpus_folder)], "context": 32, "validation_fraction": 0.1, "max_tokens": 512}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(values))
    done = ttl("--accelerate", "cpu2", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("rows of 32 tokens") < done.stdout.index("2 (backend gloo")
    assert json.loads((folder / "packed" / "run.json").read_text())["stage"] == "pack"
    assert json.loads((folder / "run.json").read_text())["training"]["world_size"] == 2
    again = ttl("--accelerate", "cpu2", *arguments)
    assert "already holds these rows" in again.stdout
    assert "is complete" in again.stdout
    direct = subprocess.run([sys.executable, "recipes/pretrain.py", *arguments], env=ENVIRONMENT, cwd=REPOSITORY,
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert direct.returncode == 2
    assert "`inputs` are packed by `ttl pretrain` before the ranks start" in direct.stderr


def test_bad_input_is_refused_before_a_rank_starts(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> None:
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder, "--learnig_rate", "1e-3")
    done = ttl("--accelerate", "zero1", *arguments)
    assert done.returncode == 2
    assert "learnig_rate: unknown key. Did you mean 'learning_rate'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not folder.exists()


def energy_of(folder: Path) -> tuple[set[str], list[tuple[int, int]], list[str]]:
    """Return the energy files of a run, (machine, first step) of its starts, and codecarbon's names of them."""
    files = {path.name for path in folder.iterdir() if path.name.startswith(("ledger", "emissions"))}
    account, total = read_ledger(folder), read_emissions(folder / "emissions.csv")
    assert account is not None
    assert total is not None
    assert account.total.energy_kwh == pytest.approx(total.energy_kwh, rel=1e-3)
    assert total.energy_kwh > 0
    return files, [(start.machine, start.first_step) for start in account.starts], list(total.run_kwh)


def test_two_ranks_on_one_machine_are_measured_once(
    tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder)
    done = ttl("--accelerate", "cpu2", *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 (backend gloo" in done.stdout
    files, starts, runs = energy_of(folder)
    assert files == {"ledger.jsonl", "emissions.csv"}
    assert starts == [(0, 0)]
    assert len(runs) == 1


def test_two_machines_are_added(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> None:
    """Two ranks as a launcher would start them on two machines that share a folder."""
    arguments, folder = start(tmp_path, packed_folder, tokenizer_folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        processes.append(
            subprocess.Popen([sys.executable, "recipes/pretrain.py", *arguments, "--use_cpu"], cwd=REPOSITORY, text=True,
                             env={**ENVIRONMENT, **place}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )  # fmt: skip
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    files, starts, runs = energy_of(folder)
    assert files == {"ledger.jsonl", "ledger-1.jsonl", "emissions.csv", "emissions-1.csv"}
    assert sorted(starts) == [(0, 0), (1, 0)]
    assert len(runs) == 2
    account = read_ledger(folder)
    assert account is not None
    each = [part.total.energy_kwh for part in account.starts]
    assert all(kwh > 0 for kwh in each)
    assert account.total.energy_kwh == pytest.approx(sum(each))
    total = read_emissions(folder / "emissions.csv")
    assert total is not None
    assert (total.num_starts, total.num_machines) == (1, 2)
    assert total.duration_seconds == pytest.approx(account.seconds, rel=0.01)
    assert "in 1 start on 2 machines" in write_energy_report(folder)
    assert account.seconds < sum(part.total.seconds for part in account.starts)  # time by the clock of one
