"""Hardware that people have: a fake Apple GPU that knows no CUDA, GPUs without bf16, cards of 8 GB.

The fake GPU is this computer's processor under the name `mps`: whatever asks for that device gets the processor, and any
call of `torch.cuda` that an Apple GPU could not answer fails.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_pretrain import losses, make_values, run
from torch.overrides import TorchFunctionMode

from teenytinyllama import gpus
from teenytinyllama.arguments import build, parse
from teenytinyllama.checks import InputError
from teenytinyllama.distributed import join_ranks
from teenytinyllama.gpus import answering_device, choose_precision, computes_bf16, count_usable_gpus, find_gpu
from teenytinyllama.launching.launch import recipes_folder
from teenytinyllama.models import place_for_answers
from teenytinyllama.planning.config import PlanConfig
from teenytinyllama.planning.plan import Plan, make_plan
from teenytinyllama.training import optimizer as optimizer_module
from teenytinyllama.training.config import PretrainConfig

# What libraries ask of torch.cuda on every computer, and what answers without a GPU.
ASKED_EVERYWHERE = {
    "is_available",
    "is_initialized",
    "device_count",
    "manual_seed_all",
    "manual_seed",
    "is_bf16_supported",
}


class OnProcessor(TorchFunctionMode):
    """Give whatever asks for the device `mps` the processor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def moved(value: Any) -> Any:
            is_device = isinstance(value, str | torch.device)
            return torch.device("cpu") if is_device and str(value).startswith("mps") else value

        if func is torch.device:  # the name is still a name
            return func(*args, **(kwargs or {}))
        return func(*map(moved, args), **{name: moved(value) for name, value in (kwargs or {}).items()})


@pytest.fixture
def apple_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A computer with an Apple GPU; yields the names of what torch.mps was asked for."""
    if torch.cuda.is_available():
        pytest.skip("a real GPU is here")

    def failing(name: str) -> Callable[..., Any]:
        def fail(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"torch.cuda.{name} was called on a computer without CUDA")

        return fail

    for name in dir(torch.cuda):
        found = getattr(torch.cuda, name)
        if (
            not name.startswith("_")
            and callable(found)
            and not isinstance(found, type)
            and name not in ASKED_EVERYWHERE
        ):
            monkeypatch.setattr(torch.cuda, name, failing(name))
    asked: list[str] = []

    def answering(name: str, answer: Any = None) -> Callable[..., Any]:
        return lambda *args, **kwargs: (asked.append(name), answer)[1]

    for name, answer in (("empty_cache", None), ("synchronize", None), ("recommended_max_memory", 10**10),
                         ("driver_allocated_memory", 10**9), ("manual_seed", None), ("is_available", True)):  # fmt: skip
        monkeypatch.setattr(torch.mps, name, answering(name, answer), raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # accelerate sets it
    monkeypatch.setattr("transformers.training_args.is_torch_mps_available", lambda: True)  # remembers what it found
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *a, **k: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "synchronize", answering("synchronize"))
    # A random generator is no function of tensors, which are all that changes its device here.
    monkeypatch.setattr("teenytinyllama.gpus._measured_peak_flops", lambda *a: (1e11, "made up"))
    with OnProcessor():
        yield asked


def test_an_apple_gpu_is_found_and_counts_for_one_process(
    apple_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_precision()[0] == "fp32"
    assert "mixed precision is not tested on mps" in choose_precision()[1]
    assert count_usable_gpus() == 0
    assert not computes_bf16(torch.device("mps"))
    assert answering_device().type == join_ranks().type == "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert answering_device().type == "cpu"  # it has no collectives


def test_an_apple_gpu_shares_the_memory_of_the_computer(apple_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("mps")
    for available, free in ((10**11, 9 * 10**9), (4 * 10**9, 4 * 10**9)):
        monkeypatch.setattr("psutil.virtual_memory", lambda seen=available: SimpleNamespace(available=seen))
        assert gpus.free_memory_bytes(device) == free


def test_a_model_answers_on_an_apple_gpu_or_says_why_not(apple_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []

    class Model(torch.nn.Linear):
        def to(self, device: Any) -> Any:
            moved.append(str(device))
            if str(device) == "mps" and len(moved) > 1:
                raise RuntimeError("MPS backend out of memory (MPS allocated: 0 bytes)")
            return self

    model: Any = Model(2, 2)
    assert place_for_answers(model) == (model, None)
    assert "MPS backend out of memory" in str(place_for_answers(model)[1])
    assert moved == ["mps", "mps", "cpu"]


@pytest.mark.slow
def test_a_training_on_an_apple_gpu_asks_nothing_of_cuda(
    apple_gpu: list[str], tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    values = make_values(tmp_path, packed_folder, tokenizer_folder)
    config = build(PretrainConfig, values)
    assert (config.device.type, config.precision, config.dataloader_pin_memory) == ("mps", "fp32", False)
    folder = run({**values, "optimizer": "normuon"})
    found = losses(folder)
    assert found[-1] < found[0]
    training = json.loads((folder / "run.json").read_text())["training"]
    assert training["peak_gpu_memory_gb"] is None
    assert "empty_cache" in apple_gpu or "synchronize" in apple_gpu


def test_muon_does_not_compute_in_bf16_where_that_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    for capability, precision in (((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a, found=capability: found)
        assert optimizer_module._precision_on(device) == precision
    assert optimizer_module._precision_on(torch.device("cpu")) == torch.float32


def planned(*argv: str) -> Plan:
    return make_plan(parse(PlanConfig, list(argv)), recipes_folder())


@pytest.mark.parametrize(("gpu", "rows"), [("rtx4060", 2), ("rtx3060", 4), ("t4", 8), ("v100-16gb", 8)])
def test_160m_fits_small_cards_as_its_recipe_stands(gpu: str, rows: int) -> None:
    plan = planned("--preset", "160m", "--hours", "100", "--gpu", gpu)
    assert plan.needs.stages[0].rows == rows
    assert plan.machine.precision == ("bf16" if gpu.startswith("rtx") else "fp16")


def test_a_t4_is_planned_with_less_than_other_gpus() -> None:
    plan = planned("--preset", "160m", "--hours", "5.5", "--gpu", "t4")
    assert 13_000 < plan.choice.tokens_per_second < 14_000
    reason = next(item.reason for item in plan.machine.assumptions if item.name == "MFU")
    assert "16.8M parameters reached 20k tokens/s, 3.5 %" in reason


def test_a_published_run_on_an_rtx_3060_is_above_what_is_planned() -> None:
    """maracatu-llm's 80M: 12 layers x 768, rows of 1,024, 20,200 tokens/s, by 6 N + 12 L h T."""
    reached = 20_200 * (6 * 87.8e6 + 12 * 12 * 768 * 1024)
    machine = planned("--preset", "160m", "--hours", "10", "--gpu", "rtx3060").machine
    assert 1 < reached / machine.flops_per_second < 1.4


def test_a_card_of_ones_own_has_no_price() -> None:
    with pytest.raises(InputError, match="budget=9.0: an hour of gpu=rtx3060 has no price. Give --price"):
        planned("--preset", "160m", "--budget", "9", "--gpu", "rtx3060")
    assert planned("--preset", "160m", "--budget", "9", "--gpu", "rtx3060", "--price", "0.1").choice.cost_usd <= 9


def test_cards_without_bf16_have_no_such_peak() -> None:
    for name in ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB", "Tesla T4"):
        found = find_gpu(name)
        assert found is not None
        assert not found[1].has_bf16
    assert find_gpu("Tesla V100-PCIE-16GB") is None
    assert find_gpu("NVIDIA GeForce RTX 4060 Ti") is None
