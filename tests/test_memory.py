import itertools
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from teenytinyllama import gpus
from teenytinyllama.gpus import free_memory_bytes
from teenytinyllama.planning import memory
from teenytinyllama.planning.memory import (
    Computation,
    LossKind,
    MemoryNeed,
    activation_bytes_per_row,
    choose_rows,
    layer_bytes_per_token,
    memory_need,
    model_state_bytes,
    optimizer_bytes,
)
from teenytinyllama.presets import PRESETS, layer_matrices
from teenytinyllama.training import optimizer as optimizer_module
from teenytinyllama.training.optimizer import MuonAdamW, parameter_groups
from teenytinyllama.training.speed import skip_mask

REPOSITORY = Path(__file__).resolve().parent.parent
TOKENS, ROWS = 96, 2
RATES = {"learning_rate": 1e-3, "embedding_learning_rate": None, "weight_decay": 0.1, "adam_beta1": 0.9,
         "adam_beta2": 0.95, "adam_epsilon": 1e-8}  # fmt: skip


def small_config(**changes: Any) -> LlamaConfig:
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1,
             "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip
    return LlamaConfig(**{**shape, **changes})


def saved_bytes_per_token(config: LlamaConfig, kind: str, compiled: bool = False) -> float:
    """Bytes of the tensors that autograd keeps, weights left out, in one forward pass."""
    model = LlamaForCausalLM(config).train()
    if compiled:
        skip_mask(model)
        for layer in model.model.layers:
            layer.compile(backend="aot_eager_decomp_partition")  # decides as inductor does what is computed again
    if kind == "16 bits":
        model = model.bfloat16()
    weights = {tuple(p.shape) for p in model.parameters()} | {tuple(p.t().shape) for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 64, (ROWS, TOKENS))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
    ):
        model(input_ids=ids, labels=ids, use_cache=False)
    kept = [tensor.untyped_storage().nbytes() for tensor in found.values() if tuple(tensor.shape) not in weights]
    return sum(kept) / ROWS / TOKENS


@pytest.mark.parametrize("kind", ["fp32", "autocast", "16 bits"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_keeps_what_the_formula_says(kind: str, kv_heads: int, attention: str) -> None:
    how = Computation("fp32" if kind == "fp32" else "bf16", zero_stage=1 if kind == "16 bits" else None,
                      attention=attention)  # fmt: skip
    assert how.kind == kind
    kept = {}
    for layers in (1, 3):
        config = small_config(num_key_value_heads=kv_heads, num_hidden_layers=layers, attn_implementation=attention)
        kept[layers] = saved_bytes_per_token(config, kind)
    assert (kept[3] - kept[1]) / 2 == pytest.approx(layer_bytes_per_token(config, TOKENS, how), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "autocast", "16 bits"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_compiled_layer_keeps_less(kind: str, kv_heads: int) -> None:
    how = Computation("fp32" if kind == "fp32" else "bf16", 1 if kind == "16 bits" else None, compiled=True)
    kept = {}
    for layers in (1, 3):
        torch.compiler.reset()
        config = small_config(num_key_value_heads=kv_heads, num_hidden_layers=layers)
        kept[layers] = saved_bytes_per_token(config, kind, compiled=True)
    assert (kept[3] - kept[1]) / 2 == pytest.approx(layer_bytes_per_token(config, TOKENS, how), rel=1e-6)


@pytest.mark.parametrize(
    ("preset", "rows", "loss", "compiled", "peak_gb"),
    [
        ("160m", 8, "compiled", True, 10.54),
        ("160m", 16, "compiled", True, 18.10),
        ("160m", 32, "compiled", True, 33.19),
        ("160m", 64, "compiled", True, 62.74),
        ("460m", 8, "compiled", True, 26.66),
        ("460m", 16, "compiled", True, 44.82),
        ("460m", 32, "compiled", True, 81.20),
        ("160m", 32, "whole", True, 54.1),
        ("460m", 16, "whole", True, 55.2),
        ("160m", 32, "whole", False, 68.6),
    ],
)
def test_tensors_on_a_gpu_are_what_was_measured(
    preset: str, rows: int, loss: LossKind, compiled: bool, peak_gb: float
) -> None:
    """torch's peak of allocated memory on H100 and H200, bf16, rows of 2,048 tokens (docs/gpu.md)."""
    need = memory_need(PRESETS[preset], 2048, Computation("bf16", loss=loss, compiled=compiled, on_gpu=True))
    assert (need.state_bytes + rows * need.row_bytes) / 1e9 == pytest.approx(peak_gb, rel=0.01)


@pytest.mark.parametrize(
    ("preset", "rows", "zero_stage", "peak_gb", "predicted"),
    [
        ("160m", 32, None, 33.18, 1.015),
        ("160m", 32, 1, 30.92, 1.005),
        ("160m", 32, 2, 30.27, 1.08),  # its two buffers are not full when memory is at its peak
        ("160m", 32, 3, 61.30, 0.995),
        ("460m", 16, None, 46.70, 1.0),
        ("460m", 16, 1, 41.33, 1.0),
        ("460m", 16, 2, 39.83, 1.06),
    ],
)
def test_tensors_on_two_gpus_are_what_was_measured(
    preset: str, rows: int, zero_stage: int | None, peak_gb: float, predicted: float
) -> None:
    """The same of one of two H200."""
    whole = zero_stage == 3  # neither layers nor loss are compiled
    how = Computation("bf16", zero_stage, 2, loss="whole" if whole else "compiled", compiled=not whole, on_gpu=True)
    need = memory_need(PRESETS[preset], 2048, how)
    assert (need.state_bytes + rows * need.row_bytes) / 1e9 / peak_gb == pytest.approx(predicted, abs=0.005)


def test_what_a_row_needs_beyond_the_layers() -> None:
    config = small_config(vocab_size=32_000, num_hidden_layers=6)
    plain = activation_bytes_per_row(config, 100, Computation())
    layer = layer_bytes_per_token(config, 100, Computation())
    assert plain == 100 * (6 * layer + 12 * 64 + 12 * 32_000)
    in_chunks = activation_bytes_per_row(config, 100, Computation(loss="chunked"))
    assert in_chunks == 100 * (6 * layer + max(12 * 64 + 8 * 64, 8 * 160 + 16 * 64))
    compiled = activation_bytes_per_row(config, 100, Computation("bf16", loss="compiled", on_gpu=True))
    layer_16_bits = layer_bytes_per_token(config, 100, Computation("bf16"))
    assert compiled == 100 * (6 * layer_16_bits + 10 * 64 + 2 * 32_000)
    recomputed = activation_bytes_per_row(config, 100, Computation(loss="chunked", checkpointing=True))
    assert recomputed == in_chunks - 100 * 5 * layer + 100 * 6 * 4 * 64
    on_gpu = memory_need(config, 100, Computation(on_gpu=True))
    assert on_gpu.row_bytes == plain
    assert memory_need(config, 100, Computation()).row_bytes == int(1.3 * plain)
    assert on_gpu.total_bytes(3) == on_gpu.state_bytes + on_gpu.fixed_bytes + 3 * plain


@pytest.mark.parametrize(
    ("how", "bytes_per_parameter"),
    [
        (Computation(), 16),
        (Computation("bf16"), 18),
        (Computation(world_size=4), 20),
        (Computation("bf16", zero_stage=1, world_size=4), 2 + 2 + 4 + 12 / 4),
        (Computation("bf16", zero_stage=2, world_size=4), 2 + 2 + 16 / 4),
        (Computation("bf16", zero_stage=3, world_size=4), 20 / 4),
        (Computation("fp32", zero_stage=2, world_size=2), 4 + 4 + 16 / 2),
    ],
)
def test_weights_gradients_and_optimizer(how: Computation, bytes_per_parameter: float) -> None:
    assert model_state_bytes(1_000_000, how) == 1_000_000 * bytes_per_parameter


@pytest.mark.parametrize(
    ("precision", "buffers"),
    [("bf16", [0, 2_000_000_000, 0]), ("fp16", [4_000_000_000, 2_000_000_000, 0]), ("fp32", [4e9, 4e9, 0])],
)
def test_deepspeed_fills_buffers_on_a_gpu(precision: str, buffers: list[int]) -> None:
    how = {"precision": precision, "world_size": 2}
    added = [
        model_state_bytes(1000, Computation(**how, zero_stage=stage, on_gpu=True))  # type: ignore[arg-type]
        - model_state_bytes(1000, Computation(**how, zero_stage=stage))  # type: ignore[arg-type]
        for stage in (1, 2, 3)
    ]
    assert added == buffers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["adamw", "muon", "normuon"])
def test_what_an_optimizer_keeps_is_what_torch_allocates(name: Any, tied: bool) -> None:
    changes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 24, "tie_word_embeddings": tied}
    config = small_config(**changes)
    model = LlamaForCausalLM(config)
    optimizer = (
        torch.optim.AdamW(model.parameters(), fused=True)
        if name == "adamw"
        else MuonAdamW(parameter_groups(model, SimpleNamespace(optimizer=name, **RATES)))
    )
    ids = torch.randint(0, 64, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    kept = {key: tensor for state in optimizer.state.values() for key, tensor in state.items()}
    assert set(kept) == {"step", "exp_avg", "exp_avg_sq"} | {
        "adamw": set(), "muon": {"momentum_buffer"}, "normuon": {"momentum_buffer", "row_square"}
    }[name]  # fmt: skip
    found = sum(
        tensor.numel() * tensor.element_size()
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if key != "step"
    )
    assert optimizer_bytes(config, name) == found
    assert optimizer_bytes(config, name, shares=2) == found // 2
    need = memory_need(config, 8, Computation(optimizer=name))
    assert need.state_bytes == 8 * sum(parameter.numel() for parameter in model.parameters()) + found


def test_layers_matrices_are_those_of_the_model() -> None:
    config = small_config(num_hidden_layers=3, num_key_value_heads=2, head_dim=24)
    found = Counter(tuple(weight.shape) for name, weight in LlamaForCausalLM(config).named_parameters()
                    if weight.ndim == 2 and "layers" in name)  # fmt: skip
    assert layer_matrices(config) == found


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_step_of_muon_allocates_what_is_planned(
    name: Any, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, optimizer_module):  # a CPU's step in a GPU's precision allocates the same
        monkeypatch.setattr(module, "ORTHOGONALISED_ELEMENTS", 1 << 16)
    monkeypatch.setattr(optimizer_module, "_precision_on", lambda device: precision)
    config = small_config(hidden_size=128, intermediate_size=128, num_hidden_layers=2)
    model = LlamaForCausalLM(config)
    optimizer = MuonAdamW(parameter_groups(model, SimpleNamespace(optimizer=name, **RATES)))
    ids = torch.randint(0, 64, (1, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events))
    in_bf16 = precision == torch.bfloat16
    how = Computation("bf16" if in_bf16 else "fp32", optimizer=name, on_gpu=in_bf16)
    assert 0.75 < peak / memory_need(config, 8, how).step_bytes < 1.02


def test_only_muon_needs_memory_in_its_step_and_little_of_it() -> None:
    shape = PRESETS["1b1"]
    needs = {
        (name, stage): memory_need(shape, 2048, Computation("bf16", stage, 2, on_gpu=True, optimizer=name)).step_bytes
        for name in ("adamw", "muon")
        for stage in (None, 1)
    }
    assert needs["adamw", None] == needs["adamw", 1] == 0
    assert needs["muon", None] == 14 * (1 << 25)
    assert needs["muon", 1] == 14 * (1 << 25) + 6 * 968_884_224 // 2
    assert MemoryNeed(1, 10, 100, step_bytes=25).total_bytes(2) == 126
    assert MemoryNeed(1, 10, 100, step_bytes=25).total_bytes(3) == 131


def test_the_choice() -> None:
    divisors, need = [1, 2, 4, 8, 16], MemoryNeed(state_bytes=100, row_bytes=10, fixed_bytes=20)
    assert choose_rows(divisors, need, 350, 32, "cpu") == 16  # 280 of 280 usable
    assert choose_rows(divisors, need, 349, 32, "cpu") == 8
    assert choose_rows(divisors, need, 330, 32, "cuda") == 16  # 280 of 280.5
    assert choose_rows(divisors, need, 329, 32, "cuda") == 8
    assert choose_rows(divisors, need, 10**9, 1024, "cpu") == 4  # more tokens at once are no faster
    assert choose_rows(divisors, need, 10**9, 8192, "cuda") == 8
    assert choose_rows(divisors, need, 10, 32, "cpu") == 1
    assert choose_rows(divisors, need, 10**9, 8192, "cpu") == 1


def test_the_least_limit_of_a_cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert 10**7 < free_memory_bytes(cpu) < 10**14
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(gpus, "container_free_bytes", lambda *paths: iter([800, 900]))
    assert (free_memory_bytes(cpu), free_memory_bytes(cpu, ranks_here=2)) == (800, 400)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (500, 500))
    monkeypatch.setattr(gpus, "virtual_memory_bytes", lambda: 200)
    assert (free_memory_bytes(cpu), free_memory_bytes(cpu, ranks_here=4)) == (300, 200)  # the limit is this process's
    monkeypatch.setattr(gpus, "virtual_memory_bytes", lambda: 600)
    assert free_memory_bytes(cpu) == 0


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_limits_of_containers(tmp_path: Path) -> None:
    listing = tmp_path / "cgroup"
    listing.write_text("0::/a/b\n")
    write(tmp_path / "v2" / "a", memory__max="1000\n", memory__current="700\n",
          memory__stat="anon 5\ninactive_file 200\n")  # fmt: skip
    write(tmp_path / "v2" / "a" / "b", memory__max="max\n", memory__current="700\n")
    assert list(gpus.container_free_bytes(listing, tmp_path / "v2")) == [500]
    listing.write_text("4:memory:/host/path\n3:cpuset:/\n0::/\n")  # inside a container: the path is not there
    write(tmp_path / "v1" / "memory", memory__limit_in_bytes="1000", memory__usage_in_bytes="400")
    assert list(gpus.container_free_bytes(listing, tmp_path / "v1")) == [600]
    assert list(gpus.container_free_bytes(tmp_path / "nowhere", tmp_path)) == []


def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert free_memory_bytes(torch.device("cuda", 0), ranks_here=2) == 1200


@pytest.mark.slow
def test_the_prediction_is_near_the_measured_peak() -> None:
    command = [
        sys.executable,
        "benchmarks/micro_batch.py",
        "--child",
        "--preset",
        "tiny",
        "--rows",
        "64",
        "--steps",
        "1",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    from teenytinyllama.presets import preset_config

    predicted = memory_need(preset_config("tiny"), 256, Computation()).total_bytes(64)
    assert json.loads(done.stdout)["peak_bytes"] == pytest.approx(predicted, rel=0.25)
