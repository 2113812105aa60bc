"""Muon beside AdamW: the size and direction of updates, the groups, exact continuation, refusals, and a real run."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrain import interrupted_run, losses, make_values, run
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from teenytinyllama.arguments import build, check_types
from teenytinyllama.checks import InputError
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.optimizer import MuonAdamW, orthogonalise, parameter_groups

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
        made = orthogonalise(matrices, torch.bfloat16)
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
        ({"embedding_learning_rate": 0.1}, "embedding_learning_rate=0.1: belongs to optimizer: muon or normuon"),
        ({"optimizer": "muon", "embedding_learning_rate": -1.0}, "embedding_learning_rate=-1.0: must be "),
        ({"optimizer": "moun"}, "optimizer='moun': no such choice. It must be one of adamw, muon, normuon"),
    ],
)
def test_bad_keys_are_refused(values: dict[str, Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(PretrainConfig, check_types(PretrainConfig, {**values, **keys}))


def test_zero_is_refused(values: dict[str, Any], under_zero: Callable[[type, int], None]) -> None:
    under_zero(TrainingArguments, 1)
    with pytest.raises(InputError, match="optimizer=muon: works on whole matrices.*Use `--accelerate ddp`"):
        build(PretrainConfig, {**values, "optimizer": "muon"})


def test_a_stopped_run_resumes_to_the_same_weights(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**values, "optimizer": "normuon", "learning_rate": 0.02, "sample_prompts": []}
    whole = run({**changed, "output_dir": str(tmp_path / "whole")})
    interrupted_run(changed, 5, monkeypatch)
    resumed = run(changed)
    assert losses(resumed) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]
    assert sha256_file(resumed / "model.safetensors") == sha256_file(whole / "model.safetensors")
