"""The same config on one process and on two ranks under DDP and ZeRO-1, 2 and 3, through the commands that users type."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from test_pretrain import losses, make_values

from teenytinyllama.checkpoints import complete_checkpoints

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
