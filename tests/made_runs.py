"""Finished runs for the tests of publishing, made in a second: real models, tokenizers and manifests, no training."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from card_runs import RUN, SAMPLES

IDENTITY = {"preset": "tiny", "seed": "42", "packed_sha256": "c" * 64}


def make_model(folder: Path, tokenizer_folder: Path, seed: int) -> None:
    """Save a tiny Llama with random weights, and a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=600, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in tokenizer_folder.glob("tokenizer*"):
        shutil.copy(path, folder)


def make_checkpoint(run: Path, tokenizer_folder: Path, step: int) -> Path:
    """Write a complete checkpoint as the training does, optimizer state and pickles included."""
    from teenytinyllama.stage_folder import sha256_file

    folder = run / f"checkpoint-{step}"
    make_model(folder, tokenizer_folder, seed=step)
    (folder / "optimizer").mkdir()
    state = ("optimizer/00001.safetensors", "optimizer/state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    for name in (*state, "training_args.bin", "trainer_state.json"):
        (folder / name).write_bytes(f"{name} {step}".encode())
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    marker = {
        "step": step, "world_size": 1, "zero_stage": 0, "tokens": step * 64, "bits_per_byte": 2.0 - step / 100,
        "kwh": step / 1000, "kg_co2e": step / 10000, "files": files,
    }  # fmt: skip
    (folder / "complete.json").write_text(json.dumps(marker))
    return folder


def make_run(
    folder: Path, tokenizer_folder: Path, steps: tuple[int, ...] = (10, 20), identity: dict[str, Any] = IDENTITY
) -> Path:
    """Write the folder of a finished run with checkpoints at these steps; the final model is that of the last step."""
    begin_run(folder, identity)
    for step in steps:
        make_checkpoint(folder, tokenizer_folder, step)
    end_run(folder, tokenizer_folder, steps[-1] if steps else 1)
    return folder


def begin_run(folder: Path, identity: dict[str, Any] = IDENTITY) -> None:
    """Write what a run has before its first step."""
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"identity": identity}))
    (folder / "config.yaml").write_text("preset: tiny\n")
    (folder / ".lock").touch()
    lines = [{"step": step, "tokens": 64 * step, "loss": 5 - step / 10} for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')


def end_run(folder: Path, tokenizer_folder: Path, seed: int) -> None:
    """Write what a run has after its last step, the manifest last."""
    from teenytinyllama.stage_folder import sha256_file

    make_model(folder, tokenizer_folder, seed)
    metrics = folder / "metrics.jsonl"  # the line that was being written is whole by now
    metrics.write_text(metrics.read_text().removesuffix('{"step": 3'))
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in SAMPLES))
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n")
    run = copy.deepcopy(RUN)
    run["hashes"] = {"model.safetensors": sha256_file(folder / "model.safetensors")}
    run["training"]["steps"] = seed
    (folder / "run.json").write_text(json.dumps(run))
