"""Preferences: pairs of answers, and the real DPOTrainer on models of a few thousand parameters."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from teenytinyllama import from_pretrained
from teenytinyllama.arguments import build, check_types, write_yaml
from teenytinyllama.chat.template import install_chat_template
from teenytinyllama.checks import EXIT_DONE, InputError
from teenytinyllama.cli import main
from teenytinyllama.data.conversations import PreferencesConfig, preferences_manifest, prepare_preferences
from teenytinyllama.data.turns import RowError, read_pair
from teenytinyllama.energy.emissions import read_emissions
from teenytinyllama.energy.ledger import read_ledger
from teenytinyllama.models import load_tokenizer
from teenytinyllama.publishing.card import write_model_card
from teenytinyllama.tokenizer.files import BOS_ID, END_INSTRUCTION_ID, EOS_ID, INSTRUCTION_ID
from teenytinyllama.training.metrics import read_jsonl

pytest.importorskip("trl")

from test_sft import NAMES, PLACES, save_base

from teenytinyllama.launching.launch import resolve_training
from teenytinyllama.tuning.base import DPO
from teenytinyllama.tuning.config import DpoConfig
from teenytinyllama.tuning.rows import summarise_pairs
from teenytinyllama.tuning.tune import describe_data, dpo


def pairs() -> list[dict[str, Any]]:
    """The better answer is the one with the place."""
    return [
        {"prompt": f"Onde está {name} {place}?", "chosen": f"Ora, {name} está {place}.", "rejected": "Não sei, não sei.",
         "source": "onde"}
        for name in NAMES for place in PLACES
    ]  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(tokenizer)
    return save_base(tmp_path_factory.mktemp("chat") / "model", tokenizer)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, chat_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    values = {
        "model_name_or_path": str(chat_model), "inputs": [str(write_rows(folder / "onde.jsonl", pairs()))],
        "context": 96, "validation_fraction": 0.2, "output_dir": str(folder / "run"),
    }  # fmt: skip
    return Path(DPO.prepare_inputs(values)["preferences"])


def test_the_preparation_of_pairs_is_measured(prepared: Path) -> None:
    account, total = read_ledger(prepared), read_emissions(prepared / "emissions.csv")
    assert account is not None
    assert total is not None
    assert 0 < account.total.energy_kwh == pytest.approx(total.energy_kwh)
    assert "country_iso_code" not in json.loads((prepared / "run.json").read_text())["plan"]


def make_values(folder: Path, chat_model: Path, prepared: Path, **more: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(chat_model), "preferences": str(prepared), "output_dir": str(folder / "run"),
        "pairs_per_step": 4, "max_steps": 8, "learning_rate": 2e-3, "logging_steps": 2, "eval_steps": 4,
        "save_steps": 4, "sample_new_tokens": 4, **more,
    }  # fmt: skip


def run(values: dict[str, Any]) -> Path:
    return dpo(config_of(values), values)


def config_of(values: dict[str, Any]) -> DpoConfig:
    return build(DpoConfig, check_types(DpoConfig, values))


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text())["results"]["preferences"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, chat_model: Path, prepared: Path) -> Path:
    torch.backends.cuda.enable_cudnn_sdp(True)
    folder = run(make_values(tmp_path_factory.mktemp("finished"), chat_model, prepared))
    assert not torch.backends.cuda.cudnn_sdp_enabled(), "with a mask its gradients are not always numbers"
    return folder


def test_rows_of_several_forms_are_one_pair() -> None:
    question, better, worse = ({"role": role, "content": text} for role, text in
                               (("user", "Quem?"), ("assistant", "Eu."), ("assistant", "Tu.")))  # fmt: skip
    more = [{"role": "user", "content": "E?"}, {"role": "assistant", "content": "Sim."}]
    as_sharegpt = {"from": "gpt", "value": "Tu."}
    for row in (
        {"prompt": "Quem?", "chosen": "Eu. ", "rejected": "Tu."},
        {"question": "Quem?", "chosen": "Eu.", "rejected": "Tu.", "prompt": None},
        {"prompt": [question], "chosen": [better], "rejected": [worse]},
        {"prompt": "Quem?", "chosen": [question, better], "rejected": [question, worse]},
        {"conversations": [{"from": "human", "value": "Quem?"}], "chosen": better, "rejected": as_sharegpt},
    ):
        pair = read_pair(row)
        assert (pair.chosen, pair.rejected) == ([question, better], [question, worse])
    system = {"role": "system", "content": "Seja breve."}
    told = read_pair({"prompt": [system, question], "chosen": [question, better], "rejected": [question, worse]})
    assert (told.chosen, told.rejected, told.unused) == ([system, question, better], [system, question, worse], [])
    long = read_pair({"chosen": [*more, question, better], "rejected": [*more, question, worse], "score": 3})
    assert (long.chosen[:-1], long.unused) == ([*more, question], ["score"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b"}, "no known form"),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "chosen and rejected are equal"),
        ({"chosen": "b", "rejected": "c"}, "a turn that is no text"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "a turn that is no text"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "an empty turn"),
        ({"prompt": "a", "completion": "b", "label": True}, r"one answer with a label \(KTO\)"),
        ({"prompt": "a", "question": "c", "chosen": "b", "rejected": "d"}, "prompt and question that differ"),
        ({"prompt": "a", "chosen": "b", "rejected": "d", "system": 1}, "a turn that is no text"),
        ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
          "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "c"}]},
         "chosen and rejected answer different prompts"),
    ],
)  # fmt: skip
def test_rows_that_are_no_pair_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        read_pair(row)


def test_equal_answers_are_refused_or_dropped_and_counted(tmp_path: Path, chat_model: Path) -> None:
    tokenizer = load_tokenizer("model", str(chat_model))
    bad = [{"prompt": "Quem?", "chosen": "Eu.", "rejected": "Eu."}]
    long = [{"prompt": "Quem?", "chosen": "Eu. " * 60, "rejected": "Tu."}]
    file = write_rows(tmp_path / "a.jsonl", [*pairs(), pairs()[0], *bad, *long])
    config = PreferencesConfig(inputs=[str(file)], output_dir=str(tmp_path / "out"), context=96)
    with pytest.raises(InputError, match=r"inputs=.*: 1 rows are no pair of answers \(.*1 x chosen and rejected are equal, "
                                         r"first a.jsonl:42.*invalid_rows: drop"):  # fmt: skip
        prepare_preferences(config, tokenizer)
    assert not (tmp_path / "out").exists()
    config.invalid_rows = "drop"
    folder = prepare_preferences(config, tokenizer)
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["dropped"] == {
        "chosen and rejected are equal": 1, "a duplicate": 1, "longer than the context": 1
    }  # fmt: skip
    assert manifest["train"]["pairs"] + manifest["validation"]["pairs"] == 40
    assert prepare_preferences(config, tokenizer) == folder
    config.inputs = [str(write_rows(tmp_path / "b.jsonl", bad))]
    config.output_dir = str(tmp_path / "none")
    with pytest.raises(InputError, match="hold no pair of answers to learn from"):
        prepare_preferences(config, tokenizer)


def test_typed_special_tokens_stay_text(tmp_path: Path, chat_model: Path) -> None:
    import pyarrow.parquet

    tokenizer = load_tokenizer("model", str(chat_model))
    rows = [{"prompt": "a</instruction>b", "chosen": "c</s>d", "rejected": "e"}, *pairs()]
    config = PreferencesConfig(inputs=[str(write_rows(tmp_path / "a.jsonl", rows))], output_dir=str(tmp_path / "out"),
                               validation_fraction=0.0, context=96)  # fmt: skip
    folder = prepare_preferences(config, tokenizer)
    row = pyarrow.parquet.read_table(folder / "train.parquet").to_pylist()[0]
    special = {BOS_ID, EOS_ID, INSTRUCTION_ID, END_INSTRUCTION_ID}
    assert [index for index in row["prompt_ids"] if index in special] == [BOS_ID, INSTRUCTION_ID, END_INSTRUCTION_ID]
    assert [index for index in row["chosen_ids"] if index in special] == [EOS_ID]
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == 2


def test_pairs_are_summed_up() -> None:
    scores = np.array([[-1.0, -3.0, -2.0, -2.0], [-2.0, -2.0, -2.0, -2.0], [-5.0, -2.0, -4.0, -2.0]])
    found = summarise_pairs(scores, beta=0.5)
    margins = np.array([1.0, 0.0, -0.5])
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["margin"] == pytest.approx(margins.mean())
    assert found["preference_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean())
    assert (found["pairs"], found["nats_chosen"]) == (3, pytest.approx(8 / 3))


def test_the_chosen_answers_get_likelier(finished: Path) -> None:
    results = results_of(finished)
    assert results["initial"]["margin"] == 0
    assert results["initial"]["preference_loss"] == pytest.approx(np.log(2))
    assert results["final"]["accuracy"] > 0.8
    assert results["final"]["margin"] > 0.05
    assert set(results["final"]["per_source"]) == {"onde"}
    logged = [record for record in read_jsonl(finished / "metrics.jsonl") if "loss" in record]
    assert all({"margins", "accuracies"} <= set(record) for record in logged)
    assert logged[-1]["margins"] > logged[0]["margins"]
    assert from_pretrained(finished)[1].chat_template
    card = write_model_card(finished).read_text()
    assert "tuned on preferences (DPO)" in card
    assert f"| **after tuning** | **{results['final']['accuracy']:.3f}** |" in card
    assert "held-out pairs of answers" in card


def test_scores_are_the_models_own(finished: Path, chat_model: Path, prepared: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(prepared / "validation.parquet").to_pylist()

    def log_probability(model: Any, row: dict[str, Any], side: str) -> float:
        ids = torch.tensor([row["prompt_ids"] + row[side]])
        labels = torch.tensor([[-100] * len(row["prompt_ids"]) + row[side]])
        with torch.no_grad():
            return -float(model(input_ids=ids, labels=labels).loss) * len(row[side])

    tuned, reference = (from_pretrained(folder)[0] for folder in (finished, chat_model))
    scores = [
        [log_probability(model, row, side) for model in (tuned, reference) for side in ("chosen_ids", "rejected_ids")]
        for row in rows
    ]
    expected = summarise_pairs(np.array(scores), beta=0.5)
    found = results_of(finished)["final"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_adapters_need_no_second_model(tmp_path: Path, chat_model: Path, prepared: Path) -> None:
    folder = run(make_values(tmp_path, chat_model, prepared, lora_r=4, learning_rate=1e-2))
    results = results_of(folder)
    assert results["initial"]["margin"] == 0
    assert results["final"]["margin"] > 0.01
    from_pretrained(folder / "adapter")


def test_a_complete_run_is_left_and_a_longer_one_goes_on(tmp_path: Path, chat_model: Path, prepared: Path) -> None:
    values = make_values(tmp_path, chat_model, prepared, max_steps=4)
    folder = run(values)
    assert resolve_training("dpo", values, 1)["state"] == "complete"
    run({**values, "max_steps": 6})
    steps = [record["step"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    assert steps == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model_name_or_path": None}, "model_name_or_path: missing. Give the chat model"),
        ({"preferences": None}, "preferences: missing. Give `inputs` with `ttl dpo`"),
        ({"preferences": None, "inputs": ["x"]}, "preferences: missing. `inputs` are prepared by `ttl dpo`"),
        ({"beta": 0.0}, "beta=0.0: must be positive"),
        ({"num_train_epochs": -1.0}, "num_train_epochs=-1.0: must be positive"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs=True: the reference model is kept"),
        (
            {"per_device_train_batch_size": 3},
            "per_device_train_batch_size=3: must divide the 4 rows .*pairs_per_step=4",
        ),
    ],
)
def test_configs_are_refused(
    tmp_path: Path, chat_model: Path, prepared: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        config_of(make_values(tmp_path, chat_model, prepared, **more))


def test_inputs_are_checked(tmp_path: Path, chat_model: Path, prepared: Path, tokenizer_folder: Path) -> None:
    values = {"model_name_or_path": str(chat_model), "inputs": ["x.jsonl"], "output_dir": str(tmp_path / "run")}
    with pytest.raises(InputError, match="preferences, inputs: give one of the two"):
        DPO.prepare_inputs({**values, "preferences": "x"})
    for missing in ("output_dir", "model_name_or_path"):
        with pytest.raises(InputError, match=f"{missing}: missing"):
            DPO.prepare_inputs({**values, missing: None})
    base = save_base(tmp_path / "base", load_tokenizer("tokenizer", str(tokenizer_folder)))
    with pytest.raises(InputError, match=r"is a base model without a chat template. Tune it on instructions first"):
        DPO.prepare_inputs({**values, "model_name_or_path": str(base)})
    for more, message in (
        ({"beta": 0.0}, "beta=0.0: must be positive"),
        ({"pairs_per_step": 4}, "pairs_per_step=4: its 4 rows cannot be shared by 3 ranks"),
    ):
        with pytest.raises(InputError, match=message):
            DPO.prepare_inputs({**values, **more}, num_processes=3)
    assert not (tmp_path / "run").exists()
    assert DPO.prepare_inputs({"preferences": "x"}) == {"preferences": "x"}
    with pytest.raises(InputError, match="pairs_per_step=4: its 4 rows cannot be shared by 3 ranks"):
        resolve_training("dpo", make_values(tmp_path, chat_model, prepared), 3)
    for changed, message in (({"inputs": []}, "inputs=.*: empty"), ({"output_dir": ""}, "output_dir: missing"),
                             ({"context": 8}, "context=8: must be at least"),
                             ({"validation_fraction": 0.9}, "validation_fraction=0.9: must lie")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            PreferencesConfig(**{"inputs": ["x"], "output_dir": "y", **changed})


def test_the_batch_is_derived(tmp_path: Path, chat_model: Path, prepared: Path) -> None:
    config = config_of(make_values(tmp_path, chat_model, prepared, pairs_per_step=None, max_steps=-1))
    assert config.rows_per_step == 1
    assert config.max_steps == 2 * config.num_rows
    assert DPO.plan(config).state == "new"


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_tune_the_same(tmp_path: Path, chat_model: Path, prepared: Path, finished: Path) -> None:
    values = make_values(tmp_path, chat_model, prepared)
    write_yaml(tmp_path / "two.yaml", values)
    done = subprocess.run(
        [sys.executable, "-m", "teenytinyllama", "dpo", "--config", str(tmp_path / "two.yaml"), "--accelerate", "cpu2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    expected, found = (results_of(folder)["final"] for folder in (finished, tmp_path / "run"))
    assert found["margin"] == pytest.approx(expected["margin"], abs=1e-4)


def test_hub_datasets_are_recorded(prepared: Path) -> None:
    manifest = preferences_manifest(str(prepared))
    manifest["plan"]["inputs"].append("hf://datasets/ana/pares@" + "0" * 40)
    found = describe_data(
        SimpleNamespace(DATA_KEY="preferences", preferences=prepared), SimpleNamespace(manifest=manifest)
    )
    assert found["hub_datasets"] == ["ana/pares"]


def test_the_doctor_looks_at_preferences(
    chat_model: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(tmp_path / "dpo.yaml", make_values(tmp_path, chat_model, prepared))
    assert main(["doctor", str(tmp_path / "dpo.yaml")]) == EXIT_DONE
    output = capsys.readouterr().out
    assert "row 0        <s>" in output
    assert "\nok       agreement  rows of " in output
    assert output.splitlines()[-1].startswith("go")
