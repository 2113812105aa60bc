"""The ancestor's recipe: the files of `recipes/configs/ancestor` hold its paper's numbers, and train."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from teenytinyllama.arguments import build, check_types, load_yaml
from teenytinyllama.presets import PRESETS
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.pretrain import build_run, pretrain
from teenytinyllama.training.run_plan import plan_run

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "configs" / "ancestor"
# Table 3 of arXiv 2401.16640: steps, warm-up, peak rate; rows at once as in the repository's specs.yaml.
PUBLISHED = {"160m": (458_000, 5_000, 6e-4, 4), "460m": (1_200_000, 10_000, 3e-4, 2)}


@pytest.fixture
def folders(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, str]:
    return {"packed": str(packed_folder), "tokenizer": str(tokenizer_folder), "output_dir": str(tmp_path / "run")}


def values_of(size: str, **more: Any) -> dict[str, Any]:
    return {**load_yaml((FOLDER / f"{size}.yaml").read_text(encoding="utf-8"), size), **more}


def config_of(size: str, **more: Any) -> PretrainConfig:
    return build(PretrainConfig, check_types(PretrainConfig, values_of(size, **more)))


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_file_has_the_numbers_of_the_paper(size: str, folders: dict[str, str]) -> None:
    steps, warmup_steps, learning_rate, rows = PUBLISHED[size]
    assert {file.stem for file in FOLDER.iterdir()} == set(PUBLISHED)
    config = config_of(size, **folders)
    assert (config.max_steps, config.get_warmup_steps(config.max_steps)) == (steps, warmup_steps)
    assert (config.learning_rate, config.lr_scheduler_type) == (learning_rate, "cosine")
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon, config.weight_decay) == (0.9, 0.999, 1e-8, 0.01)
    assert (config.max_grad_norm, config.optimizer, config.optim, config.seed) == (0, "adamw", "adamw_torch", 42)
    assert (config.tokens_per_step, config.per_device_train_batch_size) == (8192, rows)
    assert config.tokens_per_step == 4 * PRESETS[size].max_position_embeddings
    assert (config.compile_layers, config.chunked_loss) == (False, False)


@pytest.mark.parametrize(("size", "warmup_steps"), [("160m", 168), ("460m", 129)])
def test_a_shorter_run_warms_up_for_the_same_share(size: str, warmup_steps: int, folders: dict[str, str]) -> None:
    config = config_of(size, **folders, max_tokens=126_000_000)
    assert config.max_steps == 15_381
    assert config.warmup_steps == warmup_steps
    published = PUBLISHED[size]
    assert warmup_steps / 15_381 == pytest.approx(published[1] / published[0], abs=1 / 15_381)


@pytest.mark.slow
def test_a_tiny_run_by_the_recipe_learns(folders: dict[str, str]) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2}  # fmt: skip
    values = values_of("160m", **folders, preset="tiny", shape=shape, max_tokens=16 * 256, tokens_per_step=256,
                       logging_steps=1, eval_steps=8, save_steps=8, cloze_items=0, sample_prompts=[])  # fmt: skip
    config = build(PretrainConfig, check_types(PretrainConfig, values))
    trainer = build_run(config, plan_run(config)).trainer
    groups = trainer.create_optimizer().param_groups
    assert [group["betas"] for group in groups] == [(0.9, 0.999)] * 2
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    folder = pretrain(build(PretrainConfig, check_types(PretrainConfig, values)), values)
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results["final"]["bits_per_byte"] < results["initial"]["bits_per_byte"]
    rates = [record["learning_rate"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    warm = 6e-4 * 0.5 * (1 + math.cos(math.pi * 14 / 15))  # the rate of the last of 16 steps, of which one warms up
    assert rates[-1] == pytest.approx(warm)
