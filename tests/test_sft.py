"""Instruction tuning with the real TRL, PEFT and Trainer on models of a few thousand parameters."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from teenytinyllama import checks, cli, from_pretrained
from teenytinyllama.arguments import build, check_types
from teenytinyllama.chat.terminal import check_chat_model
from teenytinyllama.checkpointing.checkpoints import checkpoint_faults, complete_checkpoints, read_marker
from teenytinyllama.checks import InputError, MissingPackageError, RunFailedError, StoppedResumable
from teenytinyllama.data.conversations import IGNORED, conversations_manifest
from teenytinyllama.models import load_tokenizer, merge_adapter
from teenytinyllama.training.metrics import read_jsonl

pytest.importorskip("trl")

from teenytinyllama.launching.launch import resolve_training
from teenytinyllama.publishing.card import render_model_card, write_model_card
from teenytinyllama.tuning import tune as tune_module
from teenytinyllama.tuning.base import SFT, build_model, load_base
from teenytinyllama.tuning.config import SftConfig
from teenytinyllama.tuning.rows import (
    FirstLossCallback,
    HeldOutAnswers,
    RowCollator,
    check_no_leaks,
    frequency_entropy,
    leak_between_texts,
    load_rows,
    order_rows,
)
from teenytinyllama.tuning.tune import describe_data, sample_questions, sft

NAMES = ["a menina", "o gato", "a lhama", "o menino", "a avó", "o cão", "o rei", "a fada"]
PLACES = ["na praia", "em casa", "no mato", "na escola", "no rio"]


def conversations() -> list[dict[str, Any]]:
    return [
        {"conversations": [
            {"role": "user", "content": f"Onde está {name} {place}?"},
            {"role": "assistant", "content": f"Ora, {name} está {place}."},
            *([{"role": "user", "content": "E depois?"}, {"role": "assistant", "content": "Depois volta."}]
              if index % 3 == 0 else []),
        ], "source": "onde" if index % 2 else "depois"}
        for index, (name, place) in enumerate((name, place) for name in NAMES for place in PLACES)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("instructions") / "onde.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in conversations()), encoding="utf-8")
    return path


def save_base(folder: Path, tokenizer: Any, context: int = 128, **more: Any) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, **more,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A base model that has learnt nothing."""
    return save_base(tmp_path_factory.mktemp("base") / "model", load_tokenizer("tokenizer", str(tokenizer_folder)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, base: Path, instructions: Path) -> Path:
    values = {
        "model_name_or_path": str(base), "inputs": [str(instructions)], "context": 96, "validation_fraction": 0.2,
        "output_dir": str(tmp_path_factory.mktemp("prepared")),
    }  # fmt: skip
    return Path(SFT.prepare_inputs(values)["conversations"])


def make_values(folder: Path, base: Path, prepared: Path, **more: Any) -> dict[str, Any]:
    """A tuning of 12 steps of 2 rows of 96 tokens."""
    return {
        "model_name_or_path": str(base), "conversations": str(prepared), "output_dir": str(folder / "run"),
        "tokens_per_step": 192, "max_steps": 12, "learning_rate": 1e-2, "logging_steps": 1, "eval_steps": 6,
        "save_steps": 6, "sample_new_tokens": 6, "final_answers": 4, "final_answer_tokens": 12,
        "check_first_loss": False, **more,
    }  # fmt: skip


@pytest.fixture
def values(tmp_path: Path, base: Path, prepared: Path) -> dict[str, Any]:
    return make_values(tmp_path, base, prepared)


def run(values: dict[str, Any]) -> Path:
    return sft(build(SftConfig, check_types(SftConfig, values)), values)


def config_of(values: dict[str, Any]) -> SftConfig:
    return build(SftConfig, check_types(SftConfig, values))


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path, prepared: Path) -> Path:
    """An uninterrupted tuning, to look at; tests do not write into it."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    folder = run(make_values(tmp_path_factory.mktemp("finished"), base, prepared))
    assert not torch.backends.cuda.cudnn_sdp_enabled(), "with a mask its gradients are not always numbers"
    return folder


# Rows


def test_packing_keeps_every_conversation_whole(prepared: Path) -> None:
    import pyarrow.parquet

    single = pyarrow.parquet.read_table(prepared / "train.parquet").to_pylist()
    rows = load_rows(prepared / "train.parquet", 96, True)
    found = []
    for row in rows:
        assert len(row["input_ids"]) <= 96
        ends = np.cumsum(row["seq_lengths"])
        assert ends[-1] == len(row["input_ids"])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            found.append((tuple(row["input_ids"][start:end]), tuple(row["labels"][start:end])))
    assert sorted(found) == sorted((tuple(row["input_ids"]), tuple(row["labels"])) for row in single)
    assert len(rows) < len(single) / 2


def test_a_batch_of_rows_has_positions_that_start_anew_and_learns_nothing_across_texts() -> None:
    rows = [
        {"input_ids": [1, 5, 6, 1, 7], "labels": [1, 5, 6, 1, 7], "seq_lengths": [3, 2]},
        {"input_ids": [1, 8], "labels": [1, 8]},
    ]
    batch = RowCollator(3)(rows)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 1, 7], [1, 8, 3, 3, 3]]
    assert batch["labels"].tolist() == [[IGNORED, 5, 6, IGNORED, 7], [IGNORED, 8, IGNORED, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    flat = RowCollator(3, flatten=True)(rows)
    assert flat["input_ids"].tolist() == [[1, 5, 6, 1, 7, 1, 8]]
    assert flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert flat["cu_seq_lens_q"].tolist() == [0, 3, 5, 7]
    assert (flat["max_length_q"], flat["cu_seq_lens_k"].dtype) == (3, torch.int32)


def test_each_epoch_has_an_order_of_its_own_and_each_row_once(prepared: Path) -> None:
    rows = load_rows(prepared / "train.parquet", 96, True)
    count = 2 * len(rows) + 1
    order = [tuple(row["input_ids"]) for row in order_rows(rows, count, seed=1)]
    first, second = order[: len(rows)], order[len(rows) : 2 * len(rows)]
    assert sorted(first) == sorted(second) == sorted(tuple(row) for row in rows["input_ids"])
    assert first != second
    assert order == [tuple(row["input_ids"]) for row in order_rows(rows, count, seed=1)]


# Leaks


def nats_of_each_text(model: Any, row: dict[str, Any], batch_rows: int = 1, **drop: Any) -> list[float]:
    batch = RowCollator(3)([row] * batch_rows)
    for name in drop:
        batch.pop(name)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
    nats = torch.nn.functional.cross_entropy(
        logits[-1, :-1], labels[-1, 1:], ignore_index=IGNORED, reduction="none"
    )  # fmt: skip
    ends = np.cumsum(row["seq_lengths"])
    return [float(nats[max(0, start - 1) : end - 1].sum()) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_rows", [1, 3])
def test_changing_one_conversation_moves_no_other(base: Path, prepared: Path, attention: str, batch_rows: int) -> None:
    model, _ = from_pretrained(base)
    model.set_attn_implementation(attention)
    row = next(row for row in load_rows(prepared / "train.parquet", 96, True) if len(row["seq_lengths"]) > 2)
    before = nats_of_each_text(model, row, batch_rows)
    changed = {**row, "input_ids": [9] * row["seq_lengths"][0] + row["input_ids"][row["seq_lengths"][0] :]}
    after = nats_of_each_text(model, changed, batch_rows)
    assert after[0] != pytest.approx(before[0], abs=1e-3)
    assert after[1:] == pytest.approx(before[1:], abs=1e-4)
    # and a text costs what it costs alone
    start, end = row["seq_lengths"][0], sum(row["seq_lengths"][:2])
    alone = {name: row[name][start:end] for name in ("input_ids", "labels")} | {"seq_lengths": [end - start]}
    assert nats_of_each_text(model, alone) == pytest.approx([before[1]], abs=1e-4)
    # without position ids they do see each other: this test would notice
    leaking = nats_of_each_text(model, changed, batch_rows, position_ids=None)
    assert leaking[1:] != pytest.approx(before[1:], abs=1e-3)


def test_a_model_that_ignores_positions_is_not_given_packed_rows(base: Path) -> None:
    model, _ = from_pretrained(base)
    assert leak_between_texts(model) < 1e-5
    check_no_leaks(model, "sdpa", flatten=False)
    inner: Any = model.base_model
    plain = inner.forward
    inner.forward = lambda *args, position_ids=None, **kwargs: plain(*args, **kwargs)
    with pytest.raises(
        InputError, match=r"packing=true: with attn_implementation=sdpa, this llama lets .*packing: false"
    ):
        check_no_leaks(model, "sdpa", flatten=False)


def test_packed_and_unpacked_rows_cost_the_same(base: Path, prepared: Path) -> None:
    model, _ = from_pretrained(base)
    packed = load_rows(prepared / "train.parquet", 96, True)
    single = load_rows(prepared / "train.parquet", 96, False)
    together = sum(sum(nats_of_each_text(model, row)) for row in packed)
    apart = sum(sum(nats_of_each_text(model, {**row, "seq_lengths": [len(row["input_ids"])]})) for row in single)
    assert together == pytest.approx(apart, rel=1e-6)


# A whole run


def test_the_run_folder_says_everything(finished: Path, base: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl",
        "chat_template.jinja", "samples.jsonl", "answers.jsonl", "loss.png", "emissions.csv", "environment.json",
        "run.json", "checkpoint-6", "checkpoint-12",
    } <= names  # fmt: skip
    for place in (finished, finished / "checkpoint-12"):
        assert json.loads((place / "config.json").read_text())["rope_theta"] == 500_000.0
        assert (place / "tokenizer.model").is_file()
        assert (place / "model.safetensors").stat().st_mode == (place / "config.json").stat().st_mode
    assert not {"training_args.bin", "README.md"} & names  # no pickle, and no card of TRL's
    manifest = manifest_of(finished)
    assert (manifest["stage"], manifest["training"]["steps"], manifest["training"]["tokens"]) == ("sft", 12, 2304)
    assert manifest["model"]["base_model"] == str(base)
    assert manifest["model"]["num_trained_parameters"] == manifest["model"]["num_parameters"]
    assert set(manifest["data"]["sources"]) == {"onde", "depois"}
    assert manifest["config"]["packing"] is True
    assert manifest["config"]["assistant_only_loss"] is True
    results = manifest["results"]
    assert results["final"]["nats_per_token"] < 0.8 * results["initial"]["nats_per_token"]
    assert set(results["final"]["per_source"]) <= {"onde", "depois"}
    assert results["answers"]["questions"] == 4
    answers = [
        json.loads(line) for line in (finished / "answers.jsonl").read_text().splitlines()
    ]  # fmt: skip
    assert [set(answer) for answer in answers] == [{"question", "reference", "answer", "ended", "tokens"}] * 4
    samples = [json.loads(line) for line in (finished / "samples.jsonl").read_text().splitlines()]
    assert all(sample["ended"] in (True, False) and "<instruction>" not in sample["text"] for sample in samples)


def test_the_tuned_model_is_a_chat_model_with_a_card(finished: Path, tmp_path: Path) -> None:
    model, tokenizer = from_pretrained(finished)
    assert [found.problem for found in check_chat_model(model, tokenizer)] == [""] * 7
    copy = shutil.copytree(finished, tmp_path / "copy")
    card = write_model_card(copy).read_text()
    assert "instruction-tuned" in card
    assert "| onde |" in card
    assert "held-out conversations, the answers and their end tokens alone" in card
    assert "% of 4 answers to held-out questions ended within 12 tokens." in card
    assert "Pergunta: Onde está" in card


def test_the_score_is_the_models_own(finished: Path, prepared: Path) -> None:
    model, _ = from_pretrained(finished)
    answers = HeldOutAnswers(prepared, assistant_only=True)
    nats = tokens = 0.0
    for place in range(len(answers)):
        ids, labels = (torch.from_numpy(answers[place][name])[None] for name in ("input_ids", "labels"))
        scored = int((labels[:, 1:] != IGNORED).sum())
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * scored
        tokens += scored
    final = manifest_of(finished)["results"]["final"]
    assert final["scored_tokens"] == tokens
    assert final["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    answer_bytes = sum(
        len(message["content"].encode()) for row in answers.rows for message in row["messages"]
        if message["role"] == "assistant"
    )  # fmt: skip
    assert final["bits_per_byte"] == pytest.approx(nats / math.log(2) / answer_bytes, rel=1e-5)


def test_a_stopped_run_goes_on_exactly(values: dict[str, Any], finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from transformers import TrainerCallback

    class Signal(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    plain = tune_module.build_sft_run

    def build_with_signal(*arguments: Any) -> Any:
        built = plain(*arguments)
        built.trainer.add_callback(Signal())
        return built

    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "build_sft_run", build_with_signal)
        with pytest.raises(StoppedResumable, match="checkpoint-5"):
            run(values)
    folder = run(values)
    assert [step for step, _ in complete_checkpoints(folder)] == [5, 6, 12]
    expected, _ = from_pretrained(finished)
    found, _ = from_pretrained(folder)
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    assert run(values) == folder  # complete: nothing is done


def test_nothing_is_sent_to_trl(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import base_trainer

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: pytest.fail("sent"))
    config = config_of({**values, "max_steps": 1})
    tune_module.build_sft_run(config, SFT.plan(config))


def test_unpacked_rows_train_as_well(values: dict[str, Any]) -> None:
    folder = run({**values, "packing": False, "max_steps": 2, "final_answers": 0})
    manifest = manifest_of(folder)
    assert manifest["config"]["packing"] is False
    assert manifest["training"]["tokens_per_step"] == pytest.approx(192, abs=30)
    assert manifest["results"]["answers"] is None


def test_batch_and_length_are_derived(values: dict[str, Any]) -> None:
    config = config_of({**values, "tokens_per_step": None, "max_steps": -1, "num_train_epochs": 2})
    assert (config.context, config.rows_per_step) == (96, 1)  # so few rows that each is a step
    assert config.max_steps == 2 * config.num_rows
    assert config_of({**values, "max_steps": -1, "num_train_epochs": 1}).max_steps == -(-config.num_rows // 2)


# Adapters


@pytest.mark.parametrize("more", [{}, {"use_dora": True}])
def test_an_adapter_is_merged_and_kept(tmp_path: Path, base: Path, prepared: Path, more: dict[str, Any]) -> None:
    folder = run(make_values(tmp_path, base, prepared, lora_r=4, **more))
    model, tokenizer = from_pretrained(folder)
    adapted, _ = from_pretrained(folder / "adapter")
    bare, _ = from_pretrained(base)
    ids = torch.tensor([tokenizer("Onde está o gato?").input_ids])
    with torch.no_grad():
        merged, again, before = (each(ids).logits for each in (model, adapted, bare))
    assert torch.allclose(merged, again, atol=1e-5)
    assert not torch.allclose(merged, before, atol=1e-2)
    manifest = manifest_of(folder)
    assert manifest["results"]["final"]["nats_per_token"] < manifest["results"]["initial"]["nats_per_token"]
    assert manifest["model"]["num_trained_parameters"] < manifest["model"]["num_parameters"] / 2
    assert adapted.generation_config.eos_token_id == 2
    for weights in (folder / "model.safetensors", folder / "adapter" / "adapter_model.safetensors"):
        assert weights.stat().st_mode == (folder / "run.json").stat().st_mode
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"] is bool(more)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path, prepared: Path) -> Path:
    """A run that saved its adapter alone."""
    values = make_values(tmp_path_factory.mktemp("adapter"), base, prepared, lora_r=2, merge=False, max_steps=2)
    return run(values)


def test_an_adapter_alone_loads_with_its_base(adapter: Path, base: Path, tmp_path: Path) -> None:
    assert not (adapter / "config.json").exists()
    assert not (adapter / "model.safetensors").exists()
    model, tokenizer = from_pretrained(adapter)
    assert tokenizer.chat_template
    moved = shutil.copytree(base, tmp_path / "moved")
    again, _ = from_pretrained(adapter, base_model=str(moved))
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    newest = complete_checkpoints(adapter)[-1][1]
    files = read_marker(newest).files
    assert files is not None
    assert "adapter_model.safetensors" in files
    assert "config.json" not in files
    assert checkpoint_faults(newest) == []
    checkpoint, _ = from_pretrained(newest)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, checkpoint.model.layers[0].mlp.up_proj.weight)


def test_the_card_of_an_adapter_runs_as_printed(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (example,) = re.findall(
        r"```python\n(.*?)\n```", render_model_card(copy, repository=str(copy), language="en"), flags=re.DOTALL
    )
    assert "AutoPeftModelForCausalLM" in example
    exec(compile(example, "card", "exec"), {})


def test_an_adapter_for_another_base_is_refused(adapter: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    wider = save_base(tmp_path / "wider", tokenizer, context=64)
    model = LlamaForCausalLM.from_pretrained(wider)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)  # as training would
    model.save_pretrained(wider)
    with pytest.raises(
        InputError, match=r"is an adapter of another base model than .*wider: it was trained on .*model"
    ):
        from_pretrained(adapter, base_model=str(wider))
    (adapter_copy := shutil.copytree(adapter, tmp_path / "copy"))
    (adapter_copy / "base_model.json").unlink()
    config = LlamaConfig(vocab_size=600, hidden_size=16, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    with pytest.raises(InputError, match=r"is an adapter of another base model than .*narrow \(.*size mismatch"):
        from_pretrained(adapter_copy, base_model=str(tmp_path / "narrow"))


def test_adapter_errors(adapter: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base_model=x: .* is a whole model, no adapter. Leave it out"):
        from_pretrained(base, base_model="x")
    with pytest.raises(InputError, match=r"base_model=/nowhere: .*no such folder.* Give its place with --base_model"):
        from_pretrained(adapter, base_model="/nowhere")
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "base_model.json").write_text("{")
    with pytest.raises(InputError, match=r"copy: base_model.json is no JSON"):
        from_pretrained(copy)
    shutil.copy(adapter / "base_model.json", copy)
    (copy / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(
        InputError,
        match=r"cannot read adapter_config.json or adapter_model.safetensors: .*Download or copy the model again",
    ):
        from_pretrained(copy)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"folder=.*file/merged: .*file is a file. Choose a folder"):
        merge_adapter(str(adapter), tmp_path / "file" / "merged")
    (copy / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no adapter_model.safetensors. Pickle files"):
        from_pretrained(copy)
    shutil.copy(adapter / "adapter_model.safetensors", copy)
    own = json.loads((copy / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(copy)}
    (copy / "adapter_config.json").write_text(json.dumps(own))
    with pytest.raises(
        InputError, match=r"copy: its base model is .*copy: .*copy is an adapter itself, and not a whole"
    ):
        from_pretrained(copy)
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config.json is damaged"):
        from_pretrained(copy)
    with pytest.raises(
        InputError, match=r"model_name_or_path=.*: is an adapter. Add it into its base model first: ttl merge"
    ):
        load_base(str(adapter))


def test_merge_and_chat_take_an_adapter(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    merged, _ = from_pretrained(tmp_path / "merged")
    direct, _ = from_pretrained(adapter)
    assert torch.equal(merged.model.layers[1].self_attn.q_proj.weight, direct.model.layers[1].self_attn.q_proj.weight)
    assert cli.main(["chat", str(adapter), "--check-template"]) == 0
    capsys.readouterr()
    assert cli.main(["merge", str(adapter), str(tmp_path / "merged")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path / "merged"), str(tmp_path / "again")]) == 2
    assert "is a whole model already" in capsys.readouterr().err
    assert cli.main(["merge", str(adapter)]) == 2
    assert "ttl merge: needs an adapter, and the folder for the whole model." in capsys.readouterr().err


# Foreign tokenizers


def foreign_tokenizer() -> PreTrainedTokenizerFast:
    """One without our special tokens, without padding and with an end token alone, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|fim|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    backend.train_from_iterator([str(row) for row in conversations()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|fim|>", bos_token="<|fim|>")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora_r", [None, 2])
def test_a_foreign_tokenizer_gets_its_tokens_once(
    tmp_path: Path, instructions: Path, tied: bool, lora_r: int | None
) -> None:
    tokenizer = foreign_tokenizer()
    folder = save_base(tmp_path / "foreign", tokenizer, tie_word_embeddings=tied)
    old, _ = from_pretrained(folder)
    rows = len(tokenizer)
    loaded = load_base(str(folder))
    assert len(loaded.tokenizer) == rows + 2
    assert loaded.new_tokens == [rows, rows + 1]
    model, _ = build_model(loaded, 0, "sdpa", torch.float32)
    embeddings: Any = model.get_input_embeddings()
    expected_rows = -(-(rows + 2) // 64) * 64 if rows % 64 == 0 else rows + 2
    assert embeddings.weight.shape[0] == expected_rows
    assert torch.equal(embeddings.weight[:rows], old.get_input_embeddings().weight)
    assert (model.get_output_embeddings().weight is embeddings.weight) is tied
    again, _ = build_model(loaded, 0, "sdpa", torch.float32)
    assert torch.equal(embeddings.weight, again.get_input_embeddings().weight)
    values = {
        "model_name_or_path": str(folder), "inputs": [str(instructions)], "output_dir": str(tmp_path / "run"),
        "max_steps": 3, "tokens_per_step": 256, "learning_rate": 1e-2, "lora_r": lora_r, "check_first_loss": False,
        "final_answers": 2, "final_answer_tokens": 8, "eval_steps": 3, "save_steps": 3, "sample_new_tokens": 4,
    }  # fmt: skip
    values = SFT.prepare_inputs({name: value for name, value in values.items() if value is not None})
    done = run(values)
    tuned, tuned_tokenizer = from_pretrained(done)
    assert tuned.get_input_embeddings().weight.shape[0] == expected_rows
    assert not torch.equal(tuned.get_input_embeddings().weight[rows : rows + 2], embeddings.weight[rows : rows + 2])
    if lora_r:  # with adapters, the embeddings of known tokens stay
        assert torch.equal(tuned.get_input_embeddings().weight[:rows], old.get_input_embeddings().weight)
        adapted, _ = from_pretrained(done / "adapter")
        ids = torch.tensor([[rows, 5, rows + 1]])
        with torch.no_grad():
            assert torch.allclose(adapted(ids).logits, tuned(ids).logits, atol=1e-5)
    assert [found.problem for found in check_chat_model(tuned, tuned_tokenizer)] == [""] * 7
    second = load_base(str(done))
    assert (second.new_tokens, len(second.tokenizer)) == ([], rows + 2)


# Sense


def test_frequencies_have_an_entropy() -> None:
    train = np.array([IGNORED, 0, 0, 0, 1])
    assert frequency_entropy(train, np.array([IGNORED, 0, 1]), 2) == pytest.approx(
        -(math.log(4 / 6) + math.log(2 / 6)) / 2
    )


def test_a_base_that_knows_nothing_is_refused_before_it_is_tuned(values: dict[str, Any]) -> None:
    with pytest.raises(
        RunFailedError, match=r"before tuning, held-out answers cost 6\.\d+ nats per token; .*check_first_loss"
    ):
        run({**values, "check_first_loss": True})


def test_sense_warns_of_what_it_does_not_stop(capsys: pytest.CaptureFixture[str]) -> None:
    class Evaluation:
        last: Any = None

    class State:
        global_step, is_world_process_zero = 0, True

    evaluation = Evaluation()
    first_loss = FirstLossCallback(evaluation, 5.0, refuse=False)
    arguments: Any = (None, State, None)
    first_loss.on_evaluate(*arguments)
    for nats, warned in ((6.0, "learnt next to nothing"), (5.5, ""), (6.1, "more than the 6.000 at first")):
        evaluation.last = {"nats_per_token": nats}
        first_loss.on_evaluate(*arguments)
        printed = capsys.readouterr().out
        assert (warned in printed) if warned else not printed
        State.global_step += 1


def test_sampled_questions_are_held_out_ones(prepared: Path) -> None:
    answers = HeldOutAnswers(prepared, assistant_only=True)
    questions = {row["messages"][0]["content"] for row in answers.rows}
    assert set(sample_questions(answers.rows)) <= questions
    assert sample_questions([]) == ["O que é a Amazônia?"]


def test_held_out_answers_can_be_fewer(prepared: Path) -> None:
    everything, few = HeldOutAnswers(prepared, True), HeldOutAnswers(prepared, True, max_tokens=60)
    assert 0 < len(few) < len(everything)
    assert sum(len(row["input_ids"]) for row in few.rows) <= 60
    assert len(HeldOutAnswers(prepared, True, max_tokens=1)) == 1


# Errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model_name_or_path": None}, "model_name_or_path: missing. Give the base model"),
        ({"conversations": None}, "conversations: missing. .*or `inputs` with `ttl sft`"),
        (
            {"conversations": None, "inputs": ["x.jsonl"]},
            "conversations: missing. .*prepared by `ttl sft` before the ranks",
        ),
        ({"conversations": "/nowhere"}, "conversations=/nowhere: no such folder. Make it with `ttl conversations`"),
        ({"num_train_epochs": 0.0}, "num_train_epochs=0.0: must be positive"),
        ({"final_answers": -1}, "final_answers=-1: must be 0"),
        ({"lora_r": 0}, "lora_r=0: must be 1 or more, or null"),
        ({"use_dora": True}, "use_dora=True: belongs to LoRA. Give lora_r"),
        ({"lora_alpha": 8.0}, "lora_alpha=8.0: belongs to LoRA"),
        ({"lora_targets": ["q_proj"]}, "lora_targets=.*: belongs to LoRA"),
        ({"lora_r": 2, "lora_dropout": 1.0}, "lora_dropout=1.0: must lie in"),
        ({"tokens_per_step": 100}, "tokens_per_step=100: must be a positive multiple of the row length 96"),
        ({"attn_implementation": "magic"}, "attn_implementation=magic: must be one of"),
        ({"trust_remote_code": True}, "trust_remote_code=True: code that comes with a model is never run"),
        ({"max_length": 8}, "max_length=8: is called context"),
        ({"padding_free": True}, "padding_free=True: set packing"),
        ({"chat_template_path": "x"}, "chat_template_path=x: the model's own chat template"),
    ],
)
def test_configs_are_refused(values: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of({**values, **more})


def test_conversations_of_another_model_are_refused(
    values: dict[str, Any], tmp_path: Path, base: Path, sample_texts: list[str]
) -> None:
    from teenytinyllama import train_tokenizer

    other = save_base(tmp_path / "other", train_tokenizer(sample_texts, vocab_size=500))
    with pytest.raises(InputError, match=r"conversations=.*: was made with another tokenizer than .*Prepare it again"):
        SFT.plan(config_of({**values, "model_name_or_path": str(other)}))
    changed = shutil.copytree(base, tmp_path / "changed")
    tokenizer = load_tokenizer("tokenizer", str(changed))
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    )
    tokenizer.save_pretrained(changed)
    with pytest.raises(
        InputError, match=r"conversations=.*: was made with another chat template than .*Prepare it again"
    ):
        SFT.plan(config_of({**values, "model_name_or_path": str(changed)}))
    short = save_base(tmp_path / "short", load_tokenizer("tokenizer", str(base)), context=64)
    with pytest.raises(InputError, match=r"context=96: longer than the context of .*short, which is 64"):
        SFT.plan(config_of({**values, "model_name_or_path": str(short)}))


def test_checkpoints_of_an_adapter_need_little_room(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = sum(
        weight.numel() for weight in LlamaForCausalLM.from_pretrained(values["model_name_or_path"]).parameters()
    )
    usage = shutil._ntuple_diskusage(10**12, 0, 10 * parameters)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"2 checkpoints of .* still to come: lower save_total_limit"):
        SFT.plan(config_of(values))
    SFT.plan(config_of({**values, "lora_r": 2}))


def test_inputs_are_checked_before_anything_is_written(tmp_path: Path, base: Path, instructions: Path) -> None:
    values = {"model_name_or_path": str(base), "inputs": [str(instructions)], "output_dir": str(tmp_path / "run")}
    with pytest.raises(InputError, match="conversations, inputs: give one of the two"):
        SFT.prepare_inputs({**values, "conversations": "x"})
    for missing in ("output_dir", "model_name_or_path"):
        with pytest.raises(InputError, match=f"{missing}: missing"):
            SFT.prepare_inputs({**values, missing: None})
    with pytest.raises(InputError, match="context=500: longer than the context"):
        SFT.prepare_inputs({**values, "context": 500})
    for more, message in (
        ({"attn_implementation": "x"}, "attn_implementation=x"),
        ({"num_train_epochs": -1.0}, "num_train_epochs=-1.0: must be positive"),
        ({"tokens_per_step": 192}, "tokens_per_step=192: its 2 rows cannot be shared by 3 ranks"),
        ({"country_iso_code": "XXX"}, "country_iso_code=XXX: unknown country"),
    ):
        with pytest.raises(InputError, match=message):
            SFT.prepare_inputs({**values, "context": 96, **more}, num_processes=3)
    assert not (tmp_path / "run").exists()
    unmarked = shutil.copytree(base, tmp_path / "unmarked")
    tokenizer = load_tokenizer("tokenizer", str(unmarked))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(unmarked)
    with pytest.raises(
        InputError, match=r"assistant_only_loss=True: the chat template has no \{% generation %\} marks"
    ):
        SFT.prepare_inputs({**values, "model_name_or_path": str(unmarked)})
    assert SFT.prepare_inputs({"conversations": "x"}) == {"conversations": "x"}


def test_a_folder_of_another_run_or_a_full_disk_is_refused_before_inputs_are_prepared(
    finished: Path, tmp_path: Path, base: Path, instructions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in finished.iterdir())
    values = {"model_name_or_path": str(base), "inputs": [str(instructions)], "context": 96, "max_steps": 12}
    with pytest.raises(InputError, match=r"holds another run; different: .*learning_rate \(there 0.01, now 0.0003\)"):
        SFT.prepare_inputs({**values, "output_dir": str(finished)})
    assert sorted(path.name for path in finished.iterdir()) == before
    usage = shutil._ntuple_diskusage(10**12, 0, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="still to come"):
        SFT.prepare_inputs({**values, "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_weightless_answers_have_no_bytes_to_be_scored_by(tmp_path: Path, base: Path) -> None:
    turns = [{"role": "user", "content": "Oi?"}, {"role": "assistant", "content": "Olá, menina.", "weight": 0},
             {"role": "user", "content": "E?"}, {"role": "assistant", "content": "É."}]  # fmt: skip
    for name, row in (("a", {"prompt": "Onde?", "completion": "Aqui."}), ("b", {"messages": turns})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    values = {"model_name_or_path": str(base), "inputs": [str(tmp_path / "a.jsonl")], "output_dir": str(tmp_path / "run"),
              "validation_inputs": [str(tmp_path / "b.jsonl")]}  # fmt: skip
    folder = Path(SFT.prepare_inputs(values)["conversations"])
    assert HeldOutAnswers(folder, assistant_only=True).num_bytes == [len("É.".encode())]


def test_a_batch_that_nobody_gave_stays_the_same_on_other_ranks(values: dict[str, Any]) -> None:
    values = {name: value for name, value in values.items() if name != "tokens_per_step"}
    folder, rows = Path(values["output_dir"]), config_of(values).rows_per_step
    folder.mkdir(parents=True)
    told = SFT.plan(config_of(values)).identity
    for rows_there, refused in ((rows, False), (None, False), (rows + 1, True)):
        there = {**told, "rows_per_step": str(rows_there)}
        there = there if rows_there else {name: value for name, value in told.items() if name != "rows_per_step"}
        (folder / "environment.json").write_text(json.dumps({"identity": there, "identity_version": 2}))
        if refused:
            with pytest.raises(InputError, match=rf"rows_per_step \(there {rows + 1}, now {rows}\)"):
                SFT.plan(config_of(values))
        else:
            assert SFT.plan(config_of(values)).state in ("resume", "new")


def test_the_parent_checks_for_the_ranks_it_will_start(values: dict[str, Any]) -> None:
    assert resolve_training("sft", values, 2)["state"] == "new"
    with pytest.raises(InputError, match="tokens_per_step=192: its 2 rows cannot be shared by 3 ranks"):
        resolve_training("sft", values, 3)
    assert resolve_training("sft", {**values, "tokens_per_step": None}, 3)["state"] == "new"


def test_zero_3_is_refused(values: dict[str, Any], under_zero: Callable[[type, int], None]) -> None:
    under_zero(SFTConfig, 3)
    with pytest.raises(InputError, match=r"accelerate=zero3: tuning is not done under ZeRO-3.*Use zero1, zero2 or ddp"):
        config_of(values)


def test_a_base_without_a_llamas_shape_is_refused(tmp_path: Path, base: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    load_tokenizer("tokenizer", str(base)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"is a gpt2 whose config lacks intermediate_size, .*Llama, Mistral, Qwen"):
        load_base(str(tmp_path / "gpt2"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None if name == "trl" else object())
    with pytest.raises(MissingPackageError, match=r"trl: not installed. .*pip install 'teenytinyllama\[sft\]'"):
        checks.ensure_packages("sft", "trl", "peft")
    monkeypatch.setitem(sys.modules, "trl", None)  # importing it raises
    for name in [name for name in sys.modules if name.startswith("teenytinyllama.tuning")]:
        monkeypatch.delitem(sys.modules, name)  # as in a new process, where the verb imports them
    assert cli.main(["sft", "--output_dir", "x"]) == 2
    assert "pip install 'teenytinyllama[sft]'" in capsys.readouterr().err


# Ranks


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(("accelerate", "more"), [("zero2", []), ("ddp", ["--lora_r", "4"])])
def test_two_ranks_tune_the_same(
    values: dict[str, Any], tmp_path: Path, base: Path, prepared: Path, accelerate: str, more: list[str]
) -> None:
    from teenytinyllama.arguments import write_yaml

    lora = {"lora_r": 4} if more else {}
    one = run({**values, **lora, "max_steps": 4})
    write_yaml(tmp_path / "two.yaml", {**values, "max_steps": 4, "output_dir": str(tmp_path / "two")})
    done = subprocess.run(
        [sys.executable, "-m", "teenytinyllama", "sft", "--config", str(tmp_path / "two.yaml"), "--accelerate",
         accelerate, "--num_processes", "2", *more], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [record["loss"] for record in read_jsonl(one / "metrics.jsonl") if "loss" in record]
    found = [record["loss"] for record in read_jsonl(tmp_path / "two" / "metrics.jsonl") if "loss" in record]
    assert found == pytest.approx(expected, abs=2e-5)
    final, other = (manifest_of(folder)["results"]["final"] for folder in (tmp_path / "two", one))
    assert final["nats_per_token"] == pytest.approx(other["nats_per_token"], abs=2e-5)
    assert manifest_of(tmp_path / "two")["training"]["world_size"] == 2


def test_hub_datasets_are_recorded(prepared: Path) -> None:
    manifest = conversations_manifest(str(prepared))
    manifest["plan"]["inputs"].append("hf://datasets/ana/conversas@" + "0" * 40)
    found = describe_data(
        SimpleNamespace(DATA_KEY="conversations", conversations=prepared), SimpleNamespace(manifest=manifest)
    )
    assert found["hub_datasets"] == ["ana/conversas"]


def test_the_doctor_looks_at_a_tuning(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], instructions: Path
) -> None:
    (tmp_path / "x.yaml").write_text(json.dumps(values))
    assert cli.main(["doctor", str(tmp_path / "x.yaml")]) == checks.EXIT_DONE
    output = capsys.readouterr().out
    assert "12 steps of 192 tokens = 2,304 tokens, on 1 rank" in output
    assert "row 0        <s>" in output
    for name in ("config", "agreement", "folder", "disk", "memory", "clock", "writing"):
        assert re.search(rf"^ok       {name} ", output, re.MULTILINE), output
    assert "skipped  speed: the speed of pretraining alone is tested" in output
    assert {path.name for path in tmp_path.iterdir()} == {"x.yaml", "run-learning-rate.png"}
    assert cli.main(["doctor", str(tmp_path / "x.yaml"), "--context", "4096"]) == checks.EXIT_BAD_INPUT
    assert "\nstop: config" in capsys.readouterr().out
    unprepared = ["--conversations", "null", "--inputs", str(instructions)]
    assert cli.main(["doctor", str(tmp_path / "x.yaml"), *unprepared]) == checks.EXIT_DONE
    assert (
        "skipped  config, agreement, memory, rate: `ttl sft` prepares inputs when it starts" in capsys.readouterr().out
    )
