"""What makes two starts the same run: all that decides the weights, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pretrain import make_values, plan, run

from teenytinyllama.checkpointing.saving import DECIDES_NOTHING, identity_defaults
from teenytinyllama.checks import InputError
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.metrics import read_jsonl


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> tuple[Path, dict[str, Any]]:
    values = make_values(tmp_path_factory.mktemp("identity"), packed_folder, tokenizer_folder)
    values |= {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4, "num_cycles": 0.5}}
    return run(values), values


def test_an_identity_tells_the_core_and_what_is_not_at_its_default(finished: tuple[Path, dict[str, Any]]) -> None:
    identity = json.loads((finished[0] / "environment.json").read_text())["identity"]
    plain = {name: value for name, value in finished[1].items() if name != "lr_scheduler_kwargs"}
    core = plan({**plain, "output_dir": "new", "lr_scheduler_type": "cosine"}).identity
    assert set(identity) - set(core) == {"lr_scheduler_kwargs"}
    assert {"preset", "seed", "learning_rate", "packed_sha256", "tokenizer_sha256"} <= set(core)
    names = " ".join(DECIDES_NOTHING.values()).split()
    assert len(names) == len(set(names))
    assert not {"optim_args", "label_smoothing_factor", "decay_fraction", "neftune_noise_alpha"} & set(names)


def test_defaults_of_tuning_decide_nothing_more() -> None:
    pytest.importorskip("trl")
    from teenytinyllama.tuning.config import DpoConfig, SftConfig

    assert {"label_smoothing_factor", "optim_args", "lora_r"} <= set(identity_defaults(SftConfig))
    assert {"beta", "loss_type", "label_smoothing"} <= set(identity_defaults(DpoConfig))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 2e-4, "num_cycles": 0.5}}, "lr_scheduler_kwargs"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor \(there 0.0, now 0.1\)"),
        ({"optim_args": "a=1"}, r"optim_args \(there None, now a=1\)"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        ({"data_seed": 7}, "data_seed"),
        ({"learning_rate": 1e-3}, r"learning_rate \(there 0.003, now 0.001\)"),
    ],
)
def test_what_decides_the_weights_is_refused_with_a_way_on(
    changed: dict[str, Any], told: str, finished: tuple[Path, dict[str, Any]]
) -> None:
    folder, values = finished
    with pytest.raises(InputError, match=f"holds another run; different: {told}") as refusal:
        plan({**values, **changed})
    assert f"--model_name_or_path {folder}/checkpoint-8 --output_dir NEW (in place of --preset" in str(refusal.value)


def test_the_way_on_works(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, values = finished
    kept = {name: value for name, value in values.items() if name not in ("preset", "shape")}
    start = {"model_name_or_path": str(folder / "checkpoint-8"), "output_dir": str(tmp_path / "new")}
    new = run({**kept, **start, "learning_rate": 1e-3})
    scores = [
        [record["bits_per_byte"] for record in read_jsonl(found / "metrics.jsonl") if "bits_per_byte" in record]
        for found in (folder, new)
    ]
    # The new run begins at the old one's last score.
    assert scores[1][0] == pytest.approx(scores[0][2], abs=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"lr_scheduler_kwargs": {"num_cycles": 0.5, "min_lr": 1e-4}},
        {"max_tokens": 4096},
        {"save_steps": 2, "eval_steps": 2, "logging_steps": 3, "dataloader_num_workers": 1, "price": 3.0},
        {"per_device_train_batch_size": 1, "license": "mit", "sample_prompts": ["x"]},
    ],
)
def test_what_decides_nothing_goes_on(changed: dict[str, Any], finished: tuple[Path, dict[str, Any]]) -> None:
    assert plan({**finished[1], **changed}).state == ("resume" if "max_tokens" in changed else "complete")


def test_runs_of_earlier_versions_go_on_by_what_their_config_says(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, values = finished
    there = tmp_path / "old"
    there.mkdir()
    environment = json.loads((folder / "environment.json").read_text())
    del environment["identity_version"], environment["identity"]["lr_scheduler_kwargs"]
    (there / "environment.json").write_text(json.dumps(environment))
    (there / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert plan({**values, "output_dir": str(there)}).state == "resume"
    with pytest.raises(InputError, match="different: lr_scheduler_kwargs"):
        plan({**values, "output_dir": str(there), "lr_scheduler_kwargs": {"min_lr": 2e-4}})
    with pytest.raises(InputError, match=r"different: label_smoothing_factor \(there 0.0, now 0.1\)"):
        plan({**values, "output_dir": str(there), "label_smoothing_factor": 0.1})
    assert "lr_scheduler_kwargs" in yaml.safe_load((there / "config.yaml").read_text())


def test_every_key_that_decides_nothing_exists() -> None:
    pytest.importorskip("trl")
    from dataclasses import fields

    from teenytinyllama.tuning.config import DpoConfig, SftConfig

    known = {item.name for config in (PretrainConfig, SftConfig, DpoConfig) for item in fields(config)}
    unknown = set(" ".join(DECIDES_NOTHING.values()).split()) - known
    assert not unknown
