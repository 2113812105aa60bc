"""Muon beside AdamW: the size and direction of updates, the groups, exact continuation, refusals, and a real run."""

import copy
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from test_pretrain import interrupted_run, losses, make_values, run
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from teenytinyllama.arguments import build, check_types
from teenytinyllama.checkpointing.checkpoints import read_marker
from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.distributed import before_ranks, deepspeed_settings
from teenytinyllama.launching import launch
from teenytinyllama.planning.memory import checkpoint_bytes, optimizer_bytes
from teenytinyllama.presets import count_parameters
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training import optimizer as optimizer_module
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.library import check_zero
from teenytinyllama.training.optimizer import MuonAdamW, describe_optimizer, orthogonalise, parameter_groups

MUON = {"kind": "muon", "lr": 0.01, "weight_decay": 0.1}
ADAMW = {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 40), (40, 8)])
def test_singular_values_become_one_and_the_directions_stay(rows: int, columns: int) -> None:
    found = torch.stack([matrix(rows, columns, seed).detach() for seed in range(3)])
    made = orthogonalise(found)
    assert made.shape == found.shape
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.85
    assert values.max() < 1.13
    u, _, vh = torch.linalg.svd(found, full_matrices=False)
    torch.testing.assert_close(made, u @ vh, atol=0.13, rtol=0)


@pytest.mark.parametrize("rank", [1, 2, 7, 40, 64])
def test_no_spectrum_grows_out_of_bounds_in_bf16(rank: int) -> None:
    """Rounding in bf16 must not carry a singular value over the bound of a step: the next ones would multiply it."""
    generator = torch.Generator().manual_seed(rank)
    left, _ = torch.linalg.qr(torch.randn(32, 64, 64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(32, 64, 64, generator=generator))
    equal = left[:, :, :rank] @ right[:, :, :rank].mT  # singular values 1 and 0
    spread = left[:, :, :rank] * torch.rand(32, 1, rank, generator=generator) @ right[:, :, :rank].mT
    for matrices in (equal, spread, torch.randn(32, 64, 64, generator=generator)):
        made = orthogonalise(matrices.to(torch.bfloat16)).float()
        assert torch.linalg.svdvals(made).max() < 1.16


@pytest.mark.parametrize("kind", ["muon", "normuon"])
def test_an_update_has_the_size_of_adamws_whatever_the_gradients(kind: str) -> None:
    for scale in (1e-4, 1.0, 1e4):
        weight = matrix(12, 30)
        before = weight.detach().clone()
        weight.grad = scale * matrix(12, 30, seed=1).detach()
        MuonAdamW([{"params": [weight], **MUON, "kind": kind}]).step()
        update = (before * (1 - 0.01 * 0.1) - weight.detach()) / 0.01
        # 12 singular values of about 1, times 0.2 sqrt(30), over 12 x 30 entries
        assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.13)
        if kind == "normuon":
            rows = update.norm(dim=1)
            assert rows.max() / rows.min() < 1.01  # the first step evens the rows out


def test_matrices_of_one_shape_do_not_touch_each_other() -> None:
    both, alone = [matrix(6, 9, seed) for seed in (0, 1)], [matrix(6, 9, seed) for seed in (0, 1)]
    together = MuonAdamW([{"params": both, **MUON}])
    apart = [MuonAdamW([{"params": [weight], **MUON}]) for weight in alone]
    for step in range(3):
        for weight, twin, seed in zip(both, alone, (7, 8), strict=True):
            weight.grad = matrix(6, 9, seed + 10 * step).detach()
            twin.grad = weight.grad.clone()
        together.step()
        for optimizer in apart:
            optimizer.step()
    for weight, twin in zip(both, alone, strict=True):
        torch.testing.assert_close(weight, twin)


def test_the_rest_is_torchs_adamw() -> None:
    ours, theirs = matrix(5, 7), matrix(5, 7)
    own = MuonAdamW([{"params": [ours], **ADAMW}])
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(4):
        ours.grad = matrix(5, 7, seed=step).detach()
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    assert torch.equal(ours, theirs)


def test_a_loaded_state_lies_where_its_parameters_do() -> None:
    weights = [torch.nn.Parameter(torch.empty(4, 4, device="meta")) for _ in range(2)]  # stands for a GPU
    optimizer = MuonAdamW([{"params": weights[:1], **MUON, "kind": "normuon"}, {"params": weights[1:], **ADAMW}])
    state = {
        0: {"momentum_buffer": torch.zeros(4, 4), "row_square": torch.zeros(4)},
        1: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4, 4), "exp_avg_sq": torch.zeros(4, 4)},
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    places = {tensor.device.type for weight in weights for tensor in optimizer.state[weight].values()}
    assert places == {"meta"}  # fused AdamW refuses a count of steps on the CPU beside weights on a GPU


@pytest.mark.parametrize("kind", ["muon", "normuon"])
def test_it_goes_on_from_its_saved_state(kind: str) -> None:
    def made() -> tuple[list[torch.nn.Parameter], MuonAdamW]:
        weights = [matrix(6, 4), matrix(5, 3)]
        return weights, MuonAdamW([{"params": weights[:1], **MUON, "kind": kind}, {"params": weights[1:], **ADAMW}])

    def step(weights: list[torch.nn.Parameter], optimizer: MuonAdamW, number: int) -> None:
        for weight in weights:
            weight.grad = matrix(*weight.shape, seed=number).detach()
        optimizer.step()

    weights, optimizer = made()
    for number in range(2):
        step(weights, optimizer, number)
    others, other = made()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, twin in zip(weights, others, strict=True):
        twin.data.copy_(weight.data)
    step(weights, optimizer, 2)
    step(others, other, 2)
    assert all(torch.equal(weight, twin) for weight, twin in zip(weights, others, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_a_llama(values: dict[str, Any], tied: bool) -> None:
    config = build(PretrainConfig, {**values, "optimizer": "muon", "embedding_learning_rate": 0.03})
    shape = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                        tie_word_embeddings=tied)  # fmt: skip
    model = LlamaForCausalLM(shape)
    matrices, tables, vectors = parameter_groups(model, config)
    assert len(matrices["params"]) == 2 * 7
    assert all(tuple(table.shape) == (50, 8) for table in tables["params"])
    assert len(tables["params"]) == (1 if tied else 2)
    assert len(vectors["params"]) == 2 * 2 + 1
    assert [group["weight_decay"] for group in (matrices, tables, vectors)] == [config.weight_decay, 0.0, 0.0]
    assert [group["lr"] for group in (matrices, tables, vectors)] == [config.learning_rate, 0.03, config.learning_rate]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "muon", "optim": "adafactor"}, "optim=adafactor, optimizer=muon: give one of the two"),
        ({"optimizer": "normuon", "optim_args": "a=1"}, "optim_args=a=1, optimizer=normuon: optim_args is of the Tr"),
        (
            {"optimizer": "muon", "optim_target_modules": "all-linear"},
            "optim_target_modules=.*all-linear.*, optimizer=mu",
        ),
        ({"embedding_learning_rate": 0.1}, "embedding_learning_rate=0.1: belongs to optimizer: muon or normuon"),
        ({"optimizer": "muon", "embedding_learning_rate": -1.0}, "embedding_learning_rate=-1.0: must be "),
        ({"optimizer": "moun"}, "optimizer='moun': no such choice. It must be one of adamw, muon, normuon"),
    ],
)
def test_bad_keys_are_refused(values: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(PretrainConfig, check_types(PretrainConfig, {**values, **keys}))


def test_zero_3_is_refused(values: dict[str, Any], under_zero: Callable[[type, int], None]) -> None:
    under_zero(TrainingArguments, 3)
    with pytest.raises(InputError, match="optimizer=muon: works on whole matrices, which ZeRO stage 3.*Use `--accel"):
        build(PretrainConfig, {**values, "optimizer": "muon"})
    under_zero(TrainingArguments, 1)
    assert build(PretrainConfig, {**values, "optimizer": "muon"}).optimizer == "muon"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "which ZeRO stage 3 does not give it. Use `--accelerate zero2`, `zero1`"),
        ({}, "ZeRO stage 0"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            "optimizer=normuon: not with zero_optimization.offload_optimizer in the DeepSpeed file.*Remove it, or use",
        ),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "not with .*round_robin_gradients"),
        ({"zero_optimization": {"stage": 2, "elastic_checkpoint": True}}, "not with .*elastic_checkpoint"),
        (
            {"zero_optimization": {"stage": 1}, "checkpoint": {"load_universal": True}},
            "optimizer=normuon: not with checkpoint.load_universal in the DeepSpeed file",
        ),
        ({"optimizer": {"type": "Muon"}}, "optimizer.type=Muon in the DeepSpeed file.*Remove that section"),
    ],
)
def test_settings_of_deepspeed_that_muon_cannot_have_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_zero("normuon", settings)


def test_other_settings_of_deepspeed_are_taken() -> None:
    allowed = {"stage": 2, "offload_optimizer": {"device": "none"}, "round_robin_gradients": False}
    for optimizer, settings in (("muon", None), ("muon", {"zero_optimization": allowed}),
                                ("adamw", {"zero_optimization": {"stage": 3, "round_robin_gradients": True}})):  # fmt: skip
        check_zero(optimizer, settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="optimizer.type=AdamW in the DeepSpeed file"):
        check_zero("adamw", {"optimizer": {"type": "AdamW"}})


@pytest.mark.parametrize("name", ["zero3", "offload"])
def test_what_deepspeed_would_do_is_refused_before_ranks_start(
    name: str, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "supervise", lambda *a, **k: pytest.fail("a rank was started"))
    if name == "offload":  # accelerate's own fields in place of a JSON file
        name = str(tmp_path / "offload.yaml")
        fields = {"zero_stage": 2, "offload_optimizer_device": "cpu", "gradient_accumulation_steps": "auto"}
        Path(name).write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": fields}))
    with pytest.raises(InputError, match="optimizer=muon: (works on whole matrices, which ZeRO st|not with .*offload)"):
        launch.start_training("pretrain", {**values, "optimizer": "muon"}, launch.RankOptions(name, 2))
    assert not Path(values["output_dir"]).exists()


def test_a_deepspeed_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("{stage: 1}")
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "zero.json")}
    with before_ranks(environment), pytest.raises(InputError, match="deepspeed_config_file=.*zero.json: is not JSON"):
        deepspeed_settings(None)
    assert deepspeed_settings(None) is None


class Ranks:
    """Ranks that are threads of this process, with the collectives that the optimizer calls."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.place, self.table = count, threading.local(), dict[int, Any]()
        self.barrier = threading.Barrier(count, timeout=10)
        monkeypatch.setattr(optimizer_module, "num_ranks", lambda: count)
        monkeypatch.setattr(optimizer_module, "own_rank", lambda: self.place.rank)
        monkeypatch.setattr(optimizer_module, "distributed", self)

    def exchange(self, given: Any) -> list[Any]:
        self.table[self.place.rank] = given
        self.barrier.wait()
        found = [self.table[rank] for rank in range(self.count)]
        self.barrier.wait()
        return found

    def all_to_all_single(self, received: torch.Tensor, given: torch.Tensor, gets: list[int], gives: list[int]) -> None:
        pieces = [every[self.place.rank] for every in self.exchange(given.split(gives))]
        assert [len(piece) for piece in pieces] == gets
        received.copy_(torch.cat(pieces))

    def all_gather_single(self, every: torch.Tensor, own: torch.Tensor) -> None:
        every.copy_(torch.cat(self.exchange(own)))

    def call(self, work: Callable[[int], Any]) -> list[Any]:
        def as_rank(rank: int) -> Any:
            self.place.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(as_rank, range(self.count)))


SHAPES = [(6, 4), (3, 5), (6, 4), (2, 7), (6, 4), (5, 3), (6, 4), (6, 4)]
ELEMENTS = sum(rows * columns for rows, columns in SHAPES)


def stepped(kind: str, change: Callable[[MuonAdamW, list[torch.nn.Parameter]], Callable[[int], None]]) -> Any:
    """Return the weights after three steps; `change` returns what hands out the gradients of a step and steps."""
    weights = [matrix(*shape, seed) for seed, shape in enumerate(SHAPES)]
    step = change(MuonAdamW([{"params": weights, **MUON, "kind": kind}]), weights)
    for number in range(3):
        step(number)
    return [weight.detach().clone() for weight in weights]


def whole_step(optimizer: MuonAdamW, weights: list[torch.nn.Parameter]) -> Callable[[int], None]:
    def step(number: int) -> None:
        for seed, weight in enumerate(weights):
            weight.grad = matrix(*weight.shape, seed=100 * number + seed).detach()
        optimizer.step()

    return step


@pytest.mark.parametrize("kind", ["muon", "normuon"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_ranks_that_share_the_orthogonalisation_step_as_one(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = stepped(kind, whole_step)
    monkeypatch.setattr(optimizer_module, "ORTHOGONALISED_ELEMENTS", 24)  # one matrix of a rank at once
    for weights in Ranks(count, monkeypatch).call(lambda rank: stepped(kind, whole_step)):
        torch.testing.assert_close(weights, alone)


@pytest.mark.parametrize("kind", ["muon", "normuon"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])  # with 7 and 16 some matrices reach over three parts
def test_flat_parts_step_as_whole_matrices(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = stepped(kind, whole_step)
    ranks = Ranks(count, monkeypatch)
    bytes_by_rank = {}

    def step_of(optimizer: MuonAdamW, weights: list[torch.nn.Parameter]) -> Callable[[int], None]:
        """Do as DeepSpeed does: `stage_1_and_2.py`, `__init__` and `step`."""
        row = torch.cat([*(weight.detach().flatten() for weight in weights), torch.zeros(-ELEMENTS % (2 * count))])
        size, rank, start = len(row) // count, ranks.place.rank, 0
        for weight in weights:
            weight.data = row[start : start + weight.numel()].view(weight.shape)
            start += weight.numel()
        part = row[rank * size : (rank + 1) * size].clone()
        optimizer.param_groups[0]["params"] = [part]

        def step(number: int) -> None:
            gradients = [matrix(*shape, seed=100 * number + seed).detach() for seed, shape in enumerate(SHAPES)]
            every = torch.cat([*(gradient.flatten() for gradient in gradients), torch.zeros(len(row) - ELEMENTS)])
            part.grad = every[rank * size : (rank + 1) * size]
            optimizer.step()
            row.copy_(torch.cat(ranks.exchange(part)))
            state = optimizer.state[part]
            assert state["momentum_buffer"].shape == part.shape
            bytes_by_rank[rank] = sum(len(value) for name, value in state.items() if name == "row_square")

        return step

    for weights in ranks.call(lambda rank: stepped(kind, step_of)):
        torch.testing.assert_close(weights, alone)
    if kind == "normuon":
        assert sum(bytes_by_rank.values()) >= sum(rows for rows, _ in SHAPES)
        assert max(bytes_by_rank.values()) <= 40 // count + 12


def test_weights_that_deepspeed_lays_out_otherwise_are_refused() -> None:
    weights = [matrix(3, 4), matrix(3, 4, seed=1)]
    optimizer = MuonAdamW([{"params": weights, **MUON}])
    part = torch.cat([weight.detach().flatten() for weight in reversed(weights)])
    part.grad = torch.ones_like(part)
    optimizer.param_groups[0]["params"] = [part]
    with pytest.raises(RunFailedError, match="DeepSpeed lays the weights out otherwise than Muon expects"):
        optimizer.step()


def test_a_stopped_run_resumes_to_the_same_weights(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {**values, "optimizer": "normuon", "learning_rate": 0.02, "sample_prompts": []}
    whole = run({**changed, "output_dir": str(tmp_path / "whole")})
    shape = LlamaConfig.from_pretrained(whole)
    kept = optimizer_bytes(shape, "normuon")
    said = capsys.readouterr().out
    assert f"; AdamW for embeddings and head (peak 0.02) and for norms; state of {kept / 1000:.0f} kB\n" in said
    interrupted_run(changed, 5, monkeypatch)
    resumed = run(changed)
    assert losses(resumed) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]
    assert sha256_file(resumed / "model.safetensors") == sha256_file(whole / "model.safetensors")
    files = read_marker(whole / "checkpoint-8").files
    assert files is not None
    found = files["model.safetensors"].bytes + files["optimizer/00001.safetensors"].bytes
    assert checkpoint_bytes(count_parameters(shape), "fp32", 0, kept) == pytest.approx(found, rel=0.05)


def test_the_state_of_an_optimizer_of_transformers_is_not_guessed() -> None:
    shape = LlamaConfig(vocab_size=1000, hidden_size=100, intermediate_size=200, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    config = SimpleNamespace(optimizer="adamw", optim="adamw_torch_fused", world_size=2)
    assert describe_optimizer(config, shape, 0) == "adamw_torch_fused; state of 2.40 MB on each of 2 ranks"
    assert describe_optimizer(config, shape, 1) == "adamw_torch_fused; state of 1.20 MB on each of 2 ranks"
    config.optim = "adafactor"
    assert describe_optimizer(config, shape, 0) == "adafactor"


def test_the_benchmark_prints_what_each_optimizer_takes_of_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import optimizer_step

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    argv = ["--preset", "tiny", "--shape", json.dumps({**shape, "num_hidden_layers": 1}), "--context", "8"]
    argv += ["--rows", "2", "--tokens_per_step", "64", "--repeats", "1", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["optimizer_step.py", *argv])
    optimizer_step.main()
    assert "64 tokens a step = 4 micro-batches of 2 rows of 8 on each of 1 cpu" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 < found["share_of_step"]["muon"] < 1
    kept = found["state_bytes"]
    assert kept["adamw"] > kept["normuon"] > kept["muon"] > 0
