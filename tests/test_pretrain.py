import csv
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_rows import write_rows
from transformers import AutoConfig, LlamaModel, TrainerCallback, TrainerState, trainer_utils

from teenytinyllama.arguments import build, check_types
from teenytinyllama.checkpointing.checkpoints import checkpoint_faults, complete_checkpoints
from teenytinyllama.checks import InputError, RunFailedError, StoppedResumable
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.evaluation.scoring import score_signal
from teenytinyllama.launching.launch import resolve_training
from teenytinyllama.models import load_tokenizer
from teenytinyllama.planning.memory import batch_for, derive_batch, row_divisors
from teenytinyllama.presets import MFU_CONVENTIONS, count_parameters, flops_per_token, matrix_flops_per_token
from teenytinyllama.publishing.card import write_model_card
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training import metrics as metrics_module
from teenytinyllama.training import pretrain as pretrain_module
from teenytinyllama.training import run_plan as plan_module
from teenytinyllama.training import settings as settings_module
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.library import TRACKERS, check_trackers
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.pretrain import build_run, pretrain
from teenytinyllama.training.run_plan import pack_inputs, plan_run

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip


def make_values(folder: Path, packed: Path, tokenizer: Path) -> dict[str, Any]:
    """A config of a run of 8 steps of 8 rows of 32 tokens."""
    return {
        "preset": "tiny", "shape": SHAPE, "tokenizer": str(tokenizer), "packed": str(packed),
        "output_dir": str(folder / "run"), "tokens_per_step": 256, "max_tokens": 2048, "warmup_steps": 2,
        "logging_steps": 1, "eval_steps": 4, "save_steps": 4, "sample_new_tokens": 8, "sample_prompts": ["Era uma vez"],
        "learning_rate": 3e-3, "eval_max_tokens": 2000,
    }  # fmt: skip


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


def run(values: dict[str, Any]) -> Path:
    return pretrain(build(PretrainConfig, check_types(PretrainConfig, values)), values)


def plan(values: dict[str, Any]) -> Any:
    return plan_run(build(PretrainConfig, check_types(PretrainConfig, values)))


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run, to look at and to compare with; tests do not write into it."""
    values = make_values(tmp_path_factory.mktemp("finished"), packed_folder, tokenizer_folder)
    return run(values), values


def test_the_run_folder_says_everything(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, values = finished
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "metrics.jsonl", "samples.jsonl", "loss.png", "emissions.csv", "environment.json",
        "run.json", "checkpoint-4", "checkpoint-8",
    } <= names  # fmt: skip
    assert "training_args.bin" not in names
    for place in (folder, folder / "checkpoint-8"):  # what other programs read
        config = json.loads((place / "config.json").read_text())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        assert (place / "tokenizer.model").is_file()
        assert (place / "model.safetensors").stat().st_mode == (place / "config.json").stat().st_mode
    assert checkpoint_faults(folder / "checkpoint-8") == []
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["training"]["steps"] == 8
    assert manifest["training"]["tokens"] == 2048
    assert manifest["hashes"]["model.safetensors"] == sha256_file(folder / "model.safetensors")
    final, initial = manifest["results"]["final"], manifest["results"]["initial"]
    assert final["bits_per_byte"] < initial["bits_per_byte"]
    assert set(final["per_source"]) == {"contos", "curtas"}
    records = read_jsonl(folder / "metrics.jsonl")
    train = [record for record in records if "loss" in record]
    assert [record["step"] for record in train] == list(range(1, 9))
    assert all(record["tokens"] == 256 * record["step"] for record in records)
    assert all(
        record["tokens_per_second"] > 0 and 0 < record["mfu_matrix_products"] < record["mfu"] < 1 for record in train
    )
    config = AutoConfig.from_pretrained(folder)
    for figures in (train[0], manifest["training"]):  # one speed over one peak
        ratio = matrix_flops_per_token(config) / flops_per_token(config)
        assert figures["mfu_matrix_products"] == pytest.approx(ratio * figures["mfu"])
    assert [manifest["training"][f"{name}_convention"][:7] for name in MFU_CONVENTIONS] == ["6 N + 1", "matrix "]
    assert train[-1]["kwh"] > 0
    assert [r["step"] for r in records if "bits_per_byte" in r] == [0, 4, 8, 8]  # the last one is on all documents
    assert [row["step"] for row in read_jsonl(folder / "samples.jsonl")][:3] == [0, 4, 8]
    assert all(row["text"].startswith("Era uma vez") for row in read_jsonl(folder / "samples.jsonl"))
    with (folder / "emissions.csv").open() as file:
        assert len({row["run_id"] for row in csv.DictReader(file)}) == 1
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert str(values["tokenizer"]) in (folder / "config.yaml").read_text()


def test_last_words_and_questions_are_asked_without_changing_the_training(
    finished: tuple[Path, dict[str, Any]], values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    used: list[bool] = []

    def watched(*arguments: Any) -> dict[str, float]:
        used.append(torch.backends.cuda.cudnn_sdp_enabled())
        return score_signal(*arguments)

    forward = LlamaModel.forward
    modes: set[tuple[bool, bool]] = set()

    @functools.wraps(forward)  # the Trainer reads its arguments
    def watched_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        modes.add((self.training, torch.backends.cuda.cudnn_sdp_enabled()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", watched_forward)
    monkeypatch.setattr(pretrain_module, "score_signal", watched)
    torch.backends.cuda.enable_cudnn_sdp(True)
    folder = run({**values, "eval_max_tokens": 30_000, "cloze_items": 6, "signal_items": 4,
                  "signal_data_dir": str(write_rows(tmp_path / "data"))})  # fmt: skip
    assert used == [False] * 3, "cuDNN's attention makes a plan for each new length"
    assert modes == {(True, True), (False, False)}, "pretraining keeps it; held-out text and samples do without"
    assert losses(folder) == losses(finished[0])
    scored = [record for record in read_jsonl(folder / "metrics.jsonl") if "bits_per_byte" in record]
    names = {"cloze_acc", "hellaswag_acc_norm", "arc_acc_norm", "calame_acc", "lambada_acc"}
    names |= {f"{name}_bits_per_byte" for name in ("cloze", "hellaswag", "arc", "calame", "lambada")}
    assert all(names <= set(record) for record in scored)
    assert scored[-1]["cloze_bits_per_byte"] < scored[0]["cloze_bits_per_byte"]
    assert "cloze bits per byte" in capsys.readouterr().out
    assert "cloze_acc" not in json.loads((run({**values, "output_dir": str(tmp_path / "none"), "cloze_items": 0})
                                          / "run.json").read_text())["results"]["final"]  # fmt: skip
    with pytest.raises(InputError, match="cloze_items=-1: must be 0"):
        plan({**values, "cloze_items": -1})
    with pytest.raises(InputError, match="signal_data_dir=.*: holds no task of the suite signal"):
        plan({**values, "signal_data_dir": str(tmp_path / "none")})


def test_the_card_is_written_from_it(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    text = write_model_card(copy).read_text()
    final = json.loads((copy / "run.json").read_text())["results"]["final"]
    assert f"{final['bits_per_byte']:.4f}" in text
    assert "language: pt" in text


def test_it_loads_in_a_process_without_our_package(finished: tuple[Path, dict[str, Any]]) -> None:
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder); tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "    out = model.generate(**tokenizer('Era uma vez', return_tensors='pt'), max_new_tokens=5)\n"
        "    print(type(model).__name__, model.config.model_type, model.generation_config.eos_token_id, len(out[0]))\n"
        "assert 'teenytinyllama' not in sys.modules and not hasattr(model.config, 'auto_map')\n"
    )
    folders = [str(finished[0]), str(finished[0] / "checkpoint-4")]
    done = subprocess.run([sys.executable, "-I", "-c", code, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [["LlamaForCausalLM", "llama", "2"]] * 2


def test_norms_and_embeddings_are_not_decayed(values: dict[str, Any]) -> None:
    config = build(PretrainConfig, values)
    trainer = build_run(config, plan_run(config)).trainer
    optimizer = trainer.create_optimizer()
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    plain = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert plain == {name for name in names.values() if "norm" in name or "embed_tokens" in name}
    assert decayed == set(names.values()) - plain
    assert len(plain) == 2 * 2 + 2
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    assert config.max_grad_norm == 1.0


class SignalAt(TrainerCallback):
    """Send this process a signal in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


class SignalInEvaluation(TrainerCallback):
    """Send this process a signal in the middle of the evaluation after a step."""

    def __init__(self, step: int) -> None:
        self.step, self.batches = step, 0

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.batches += 1
            if self.batches == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            assert self.batches <= 2, "the evaluation went on"


def interrupted_run(
    values: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch, callback: type[TrainerCallback] = SignalAt
) -> None:
    def build_with_signal(*arguments: Any) -> Any:
        built = build_run(*arguments)
        built.trainer.add_callback(callback(step))
        return built

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "build_run", build_with_signal)
        with pytest.raises(StoppedResumable, match=f"saved .*/checkpoint-{step}; the same command goes on"):
            run(values)


def test_a_stopped_run_resumes_to_the_same_losses_and_weights(
    values: dict[str, Any], finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(values["output_dir"])
    interrupted_run(values, 5, monkeypatch)
    assert not (folder / "run.json").exists()
    assert [step for step, _ in complete_checkpoints(folder)] == [4, 5]
    shutil.copytree(folder / "checkpoint-5", folder / "checkpoint-6")  # a newer one, but left without its marker
    (folder / "checkpoint-6" / "complete.json").unlink()
    (folder / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    with (folder / "metrics.jsonl").open("a") as file:  # what a killed run may have logged after its checkpoint
        file.write('{"step": 6, "tokens": 1536, "loss": 99.0}\n{"step": 7, "tok')
    run(values)
    assert losses(folder) == losses(finished[0])
    assert sha256_file(folder / "model.safetensors") == sha256_file(finished[0] / "model.safetensors")
    with (folder / "emissions.csv").open() as file:  # energy is never rewound
        assert len({row["run_id"] for row in csv.DictReader(file)}) == 2


def test_a_resume_with_shares_of_the_steps_finds_those_of_the_first_start(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trainer_utils.logger, "warning_once", said.append)
    values |= {"eval_steps": 0.3, "save_steps": 0.3, "logging_steps": 0.1, "warmup_steps": 0.2}
    interrupted_run(values, 5, monkeypatch)
    folder = run(values)
    assert said == []
    records = read_jsonl(folder / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 9))
    assert {3, 6} <= {record["step"] for record in records if "bits_per_byte" in record}
    assert json.loads((folder / "run.json").read_text())["config"]["save_steps"] == 0.3
    assert "eval_steps: 0.3\n" in (folder / "config.yaml").read_text()


def test_a_signal_ends_an_evaluation_too(
    values: dict[str, Any], finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_run(values, 4, monkeypatch, SignalInEvaluation)
    run(values)
    assert losses(Path(values["output_dir"])) == losses(finished[0])


def test_a_complete_run_is_left_alone_and_can_be_made_longer(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    values |= {"lr_scheduler_type": "warmup_stable_decay", "decay_fraction": 0.5, "save_total_limit": 1}
    folder = run(values)
    rates = [record["learning_rate"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]
    assert rates[2] == rates[3] == pytest.approx(3e-3)
    assert rates[4] > rates[5] > rates[6] > rates[7] >= 0
    assert [step for step, _ in complete_checkpoints(folder)] == [8]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    run(values)
    out = capsys.readouterr().out
    assert (
        "is complete; a longer run would go on from it, after its decay; --decay_from a checkpoint from before" in out
    )
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    run({**values, "max_tokens": 256 * 10})
    assert json.loads((folder / "run.json").read_text())["training"]["steps"] == 10
    assert [record["step"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record] == list(range(1, 11))


def test_accumulation_does_not_change_the_losses(values: dict[str, Any], finished: tuple[Path, dict[str, Any]]) -> None:
    folder = run({**values, "per_device_train_batch_size": 1})
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=1e-5)


def test_continued_pretraining_starts_from_the_model(
    values: dict[str, Any], finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    base = finished[0]
    more = {key: value for key, value in values.items() if key not in ("preset", "shape")}
    del more["tokenizer"]  # the model's own
    folder = run({**more, "model_name_or_path": str(base), "max_tokens": 512, "learning_rate": 1e-9})
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["model"]["base_model"] == str(base)
    before = json.loads((base / "run.json").read_text())["results"]["final"]["bits_per_byte"]
    assert manifest["results"]["final"]["bits_per_byte"] == pytest.approx(before, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(values: dict[str, Any]) -> None:
    with pytest.raises(RunFailedError, match="loss=(nan|inf) at step .*: training has diverged"):
        run({**values, "learning_rate": 1000.0, "weight_decay": 1e9, "max_grad_norm": 0.0})


def test_without_held_out_documents_there_is_no_evaluation(values: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "livro.txt"
    text.write_text(" ".join(f"palavra {n}" for n in range(3000)), encoding="utf-8")
    packing = {**values, "packed": None, "inputs": [str(text)], "context": 32, "max_tokens": 512}
    packing["validation_fraction"] = 0.0
    packed = pack_inputs({key: value for key, value in packing.items() if value is not None})
    assert packed["packed"] == str(tmp_path / "run" / "packed")
    assert not {"inputs", "context", "validation_fraction"} & set(packed)
    folder = run(packed)
    assert json.loads((folder / "run.json").read_text())["results"]["final"]["bits_per_byte"] is None
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["data"]["same_document"] is False
    assert write_model_card(folder).exists()
    manifest["data"] |= {"same_document": True, "validation_documents": 1}
    (folder / "run.json").write_text(json.dumps(manifest))
    assert "there was a single document, and its end was held out (1 part)" in write_model_card(folder).read_text()


def test_rows_that_changed_after_packing_are_refused_before_a_start_and_a_resume(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TTL_CHECKED_ROWS", raising=False)
    rows = Path(shutil.copytree(values["packed"], tmp_path / "rows")) / "train.npy"
    changed = {**values, "packed": str(rows.parent)}
    assert resolve_training("pretrain", changed, 1)["state"] == "new"
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(content)
    monkeypatch.setattr(plan_module, "check_run_folder", lambda *given: "resume")
    for start in (
        lambda: resolve_training("pretrain", changed, 1),
        lambda: pretrain(build(PretrainConfig, changed), changed),
    ):
        with pytest.raises(InputError, match="packed=.*rows: train.npy is not the file that `ttl pack` wrote"):
            start()
    assert not Path(values["output_dir"]).exists()


def test_of_one_book_the_end_is_held_out_and_a_flipped_bit_is_found(values: dict[str, Any], tmp_path: Path) -> None:
    text = tmp_path / "livro.txt"
    text.write_text(" ".join(f"palavra {n}" for n in range(3000)), encoding="utf-8")
    packing = {**values, "packed": None, "inputs": [str(text)], "context": 32, "max_tokens": 512}
    packed = pack_inputs({key: value for key, value in packing.items() if value is not None})
    manifest = json.loads((Path(packed["packed"]) / "run.json").read_text())
    assert manifest["same_document"]
    assert 0 < manifest["validation_tokens"] < manifest["train_tokens"]
    plan(packed)
    rows = Path(packed["packed"]) / "train.npy"
    content = bytearray(rows.read_bytes())
    content[-3] ^= 1
    rows.write_bytes(content)
    with pytest.raises(InputError, match=r"packed=.*: train.npy is not the file that `ttl pack` wrote: its sha256"):
        plan(packed)


def test_precision_is_chosen_from_the_hardware(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = build(PretrainConfig, values)
    assert (chosen.precision, chosen.use_cpu) == ("fp32", True)
    assert "bf16 is emulated" in chosen.precision_reason
    asked = build(PretrainConfig, {**values, "bf16": True})
    assert (asked.precision, asked.precision_reason) == ("bf16", "as configured")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "NVIDIA Made Up")
    for capability, precision in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a, found=capability: found)
        assert settings_module.choose_precision()[0] == precision


def test_batch_arithmetic() -> None:
    assert derive_batch(524_288, 2048, 8, 4) == (256, 8, 8)
    assert derive_batch(524_288, 2048, None, 1) == (256, 8, 32)
    assert derive_batch(7 * 2048, 2048, None, 1) == (7, 7, 1)
    with pytest.raises(InputError, match="tokens_per_step=1000: must be a positive multiple .* 2048. Use 2048"):
        derive_batch(1000, 2048, None, 1)
    with pytest.raises(InputError, match="its 3 rows cannot be shared by 2 ranks. Use 4096 or 8192"):
        derive_batch(3 * 2048, 2048, None, 2)
    with pytest.raises(
        InputError, match="per_device_train_batch_size=3: must divide the 8 rows .* Use one of 1, 2, 4, 8"
    ):
        derive_batch(8 * 2048, 2048, 3, 1)


@pytest.mark.parametrize("context", [256, 512, 1024, 2048])
@pytest.mark.parametrize("micro_batch", [None, 1, 3, 8])
def test_any_number_of_ranks_shares_a_batch_that_nobody_gave(context: int, micro_batch: int | None) -> None:
    for tokens in (None, 1, 1_228_800, 42_000_000, 3_276_800_000, 9_830_400_000, 22_020_096_000):
        usual = batch_for(tokens, context)
        for ranks in range(1, 17):
            chosen = batch_for(tokens, context, ranks, micro_batch)
            derive_batch(chosen, context, micro_batch, ranks)
            unit = context * ranks * (micro_batch or 1)
            assert chosen == unit or abs(chosen - usual) <= unit / 2


def test_a_batch_that_nobody_gave_is_shared_and_kept(values: dict[str, Any]) -> None:
    from teenytinyllama.training.config import open_batch
    from teenytinyllama.training.run_plan import with_batch

    context = 32
    asked = {**values, "max_tokens": 42_000_000}
    del asked["tokens_per_step"]
    assert with_batch(asked, 3)["tokens_per_step"] == 1023 * context  # 32,768 tokens are 1,024 rows
    for ranks in (1, 3, 6, 7):
        found = resolve_training("pretrain", asked, ranks)
        assert found["state"] == "new"
        assert found["config"]["values"]["tokens_per_step"] == with_batch(asked, ranks)["tokens_per_step"]
    assert "the nearest that 3 ranks can share" in open_batch(asked["output_dir"], 42_000_000, context, 3, None)[1]
    folder = Path(asked["output_dir"])
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"identity": {"tokens_per_step": str(8 * context)}}))
    assert with_batch(asked, 4)["tokens_per_step"] == 8 * context, "as the run began"
    with pytest.raises(InputError, match="began with 256 tokens a step, and 3 ranks cannot share its 8 rows. Go on"):
        with_batch(asked, 3)


def test_a_step_faster_than_the_measured_peak_has_no_mfu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_module, "flops_per_token", lambda shape: 10)
    monkeypatch.setattr(metrics_module, "matrix_flops_per_token", lambda shape: 8)
    monkeypatch.setattr(metrics_module, "peak_flops", lambda device: (500.0, "made up"))
    metrics = metrics_module.MetricsCallback(tmp_path, 256, None, None)  # type: ignore[arg-type]
    ranks, model = SimpleNamespace(world_size=2), SimpleNamespace(config=SimpleNamespace(max_position_embeddings=32))
    metrics.on_train_begin(ranks, TrainerState(max_steps=1), None, model=model)  # type: ignore[arg-type]
    unknown = {"mfu": None, "mfu_matrix_products": None}
    assert metrics.mfu(50.0) == {"mfu": 0.5, "mfu_matrix_products": 0.4}
    assert metrics.mfu(120.0) == unknown
    assert metrics.mfu(50.0) == unknown, "the peak was wrong for this one too"
    assert capsys.readouterr().out == (
        "MFU        n/a from here on: a step reached 120 % of the measured peak, which was therefore taken beside other "
        "work\n"
    )


def test_banner_and_lines_name_both_conventions_of_mfu(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = AutoConfig.from_pretrained(run({**values, "max_tokens": 256}))
    out = capsys.readouterr().out
    products = 4 * 32 * 32 + 3 * 32 * 64  # of a layer
    flops = 6 * (2 * products + config.vocab_size * 32) + 12 * 2 * 32 * 32
    assert re.search(
        r"^MFU +by 6 N \+ 12 L h T FLOPs a token .*, " + f"{flops_per_token(config) / 1e9:.4g} GFLOP; and by matrix "
        r"products alone \(as nanochat counts: .*\), " + f"{flops / 1e9:.4g} GFLOP; peak", out, re.M
    )  # fmt: skip
    assert re.search(r"^step .* MFU [0-9.]+ % of 6N\+12LhT, [0-9.]+ % of matrix products  ", out, re.M)


def test_the_speed_of_a_run_is_its_mean() -> None:
    from teenytinyllama.planning.memory import mean_step_speed

    records = [{"tokens": 900, "loss": 1.0, "tokens_per_second": 9.0}, {"tokens": 900, "bits_per_byte": 2.0},
               {"tokens": 1800, "loss": 1.0, "tokens_per_second": 1.0}]  # fmt: skip
    assert mean_step_speed(records) == pytest.approx(1800 / 1000)
    assert mean_step_speed([]) is None


@pytest.mark.parametrize(("key", "value", "message"), [
    ("context", 512, "context=512: packed=.* has rows of 32 tokens. Leave context out, or pack again with"),
    ("validation_fraction", 0.2, "validation_fraction=0.2: says how to pack, and packed=.* is packed already"),
    ("text_column", "texto", "text_column=texto: says how to pack"),
])  # fmt: skip
def test_keys_of_packing_beside_packed_rows_are_refused(
    values: dict[str, Any], key: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(PretrainConfig, {**values, key: value})
    assert build(PretrainConfig, {**values, "context": 32}).context == 32


def test_max_steps_of_the_user_is_kept(values: dict[str, Any]) -> None:
    del values["max_tokens"]
    assert build(PretrainConfig, {**values, "max_steps": 3}).max_steps == 3


def test_trackers_that_cannot_ask_for_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(InputError, match="report_to=wandb: nobody is logged in here.* set WANDB_MODE=offline"):
        check_trackers(["tensorboard", "wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers("wandb")
    check_trackers("none")
    check_trackers(None)


def test_every_tracker_of_transformers_is_known() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(INTEGRATION_TO_CALLBACK) - {"codecarbon", "kubeflow"} == set(TRACKERS)


def test_rows_that_a_rank_can_compute_are_found_fast() -> None:
    assert row_divisors(12) == [1, 2, 3, 4, 6, 12]
    assert row_divisors(1) == [1]
    assert len(row_divisors(10**9)) == 100


@pytest.mark.parametrize(("run_tokens", "eval_tokens"), [(2**18, 20_000), (2**22, 41_943), (2**30, 200_000)])
def test_evaluations_of_short_runs_are_short(values: dict[str, Any], run_tokens: int, eval_tokens: int) -> None:
    del values["eval_max_tokens"]
    config = build(PretrainConfig, {**values, "max_tokens": run_tokens})
    assert config.eval_max_tokens == eval_tokens
    assert "eval_max_tokens" not in config.to_yaml_values(values)
    assert build(PretrainConfig, {**values, "eval_max_tokens": 7}).eval_max_tokens == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "tinny"}, "preset=tinny: must be one of .* Did you mean 'tiny'"),
        ({"preset": None}, "preset=None, model_name_or_path=None: give exactly one"),
        ({"model_name_or_path": "x/y"}, "give exactly one of the two"),
        ({"shape": {"hiden_size": 3}}, "LlamaConfig has no such field. Did you mean 'hidden_size'"),
        ({"shape": {"hidden_size": 0}}, "must be an integer from 1 to 1,000,000"),
        ({"shape": {"num_hidden_layers": True}}, "must be an integer from 1 to 1,000,000"),
        ({"shape": {"vocab_size": 100}}, "shape={vocab_size: 100}: the tokenizer decides it"),
        ({"shape": {"num_hidden_layers": 2000}}, "num_hidden_layers must be at most 1000"),
        ({"shape": {"tie_word_embeddings": 1}}, "shape={tie_word_embeddings: 1}: is no size. A shape sets hidden_size"),
        ({"shape": {"head_dim": 7}}, "heads of 7 cannot be turned in pairs"),
        ({"shape": {"num_attention_heads": 5}}, "5 heads must divide hidden_size=128"),
        ({"tokenizer": None}, "tokenizer: missing"),
        ({"tokenizer": "nowhere"}, "tokenizer=nowhere: no such folder"),
        ({"packed": None}, "packed: missing. Give the folder that `ttl pack` wrote, or `inputs`"),
        ({"packed": None, "inputs": ["a"]}, "`inputs` are packed by `ttl pretrain` before the ranks start, never by"),
        ({"packed": "nowhere"}, "packed=nowhere: no such folder. Make it with `ttl pack`"),
        ({"output_dir": None}, "output_dir: missing"),
        ({"max_tokens": None}, "max_tokens: missing"),
        ({"max_tokens": -5}, "max_tokens=-5: must be positive"),
        ({"save_strategy": "best"}, "save_strategy=best: checkpoints are kept by their age. Use steps or no"),
        ({"max_steps": 3}, "max_steps=3, max_tokens=2048: disagree .8 steps."),
        ({"report_to": "all"}, "report_to=all: would start a second energy tracker"),
        ({"report_to": ["tensorboard", "codecarbon"]}, "second energy tracker"),
        ({"report_to": "wandb"}, "report_to=wandb: its package is not installed. Run: pip install wandb"),
        ({"report_to": ["none", "wandb"]}, "report_to=none, wandb: none stands alone"),
        ({"report_to": "wandbb"}, "report_to=wandbb: must be none or some of azure_ml, .* Did you mean 'wandb'"),
        ({"optim": "adamw_bnb_8bit"}, "optim=adamw_bnb_8bit: transformers refuses it: .*bitsandbytes"),
        ({"optim": "lomo"}, "optim=lomo: transformers refuses it: .*lomo"),
        ({"optim_args": "x"}, "optim_args=x: transformers refuses it"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: transformers refuses it: Invalid learning rate"),
        ({"lr_scheduler_kwargs": {"no_such": 1}}, "lr_scheduler_kwargs=.*no_such.*: transformers refuses it"),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"min_lr": 1}},
            "lr_scheduler_kwargs=.*min_lr",
        ),
        ({"accelerator_config": "nowhere.json"}, "accelerator_config=nowhere.json: transformers refuses it"),
        ({"torch_compile_backend": "inductor"}, "torch_compile_backend=inductor: turns torch_compile on"),
        ({"country_iso_code": "Brasil"}, "country_iso_code=Brasil: must be three capital letters"),
        ({"country_iso_code": "BRX"}, "country_iso_code=BRX: unknown country"),
        ({"decay_fraction": 0.0}, "decay_fraction=0.0: must lie in"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type='cosin': no such choice. .* Did you mean 'cosine'"),
        (
            {"eval_strategy": "step"},
            "eval_strategy='step': no such choice. It must be one of no, steps, epoch. Did you mean 'steps'",
        ),
    ],
)
def test_bad_configs_write_nothing(values: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    values |= changes
    with pytest.raises(InputError, match=message):
        plan({key: value for key, value in values.items() if value is not None})
    assert not Path(str(values["output_dir"])).exists()


@pytest.mark.parametrize(
    "key",
    [
        "gradient_accumulation_steps",
        "deepspeed",
        "push_to_hub",
        "hub_token",
        "num_train_epochs",
        "dataloader_drop_last",
        "average_tokens_across_devices",
        "save_only_model",
    ],
)
def test_refused_keys_say_why(values: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"{key}(=1)?: {re.escape(PretrainConfig.REFUSED_KEYS[key][:30])}"):
        plan({**values, key: 1})


def test_rows_tokenizer_and_model_must_agree(
    values: dict[str, Any], sample_texts: list[str], tmp_path: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    from teenytinyllama import train_tokenizer

    other = tmp_path / "other"
    train_tokenizer(sample_texts[:100], vocab_size=500).save_pretrained(other)
    with pytest.raises(InputError, match="tokenizer=.*other: is not the one that packed=.* was made with"):
        plan({**values, "tokenizer": str(other)})
    with pytest.raises(InputError, match="its rows of 32 tokens are longer than the model's context of 16"):
        plan({**values, "shape": {**SHAPE, "max_position_embeddings": 16}})
    assert plan(values).model_config.max_position_embeddings == 32
    base = shutil.copytree(finished[0], tmp_path / "base")
    more = {key: value for key, value in values.items() if key not in ("preset", "shape")}
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(InputError, match="has 100 embeddings for 600 tokens"):
        plan({**more, "model_name_or_path": str(base)})
    (base / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json"):
        plan({**more, "model_name_or_path": str(base)})
    code = {"model_type": "capivara", "auto_map": {"AutoConfig": "own.Config"}}
    (base / "config.json").write_text(json.dumps(code))
    with pytest.raises(InputError, match=r"model_type=capivara .* is never run"):
        plan({**more, "model_name_or_path": str(base)})
    (base / "config.json").write_text(json.dumps(config))
    load_tokenizer("x", str(other)).save_pretrained(base)
    with pytest.raises(InputError, match="differs from the tokenizer of model_name_or_path="):
        plan({**more, "model_name_or_path": str(base)})


def test_folders_of_others_are_refused(
    values: dict[str, Any], finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds another run; different: learning_rate .there 0.003, now 0.1."):
        plan({**values, "output_dir": str(finished[0]), "learning_rate": 0.1})
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no run of ours .thesis.txt"):
        plan({**values, "output_dir": str(mine)})
    with pytest.raises(InputError, match="output_dir=.*thesis.txt: is a file"):
        plan({**values, "output_dir": str(mine / "thesis.txt")})
    damaged = shutil.copytree(finished[0], tmp_path / "damaged")
    (damaged / "environment.json").write_text("{}")
    with pytest.raises(InputError, match="environment.json is damaged"):
        plan({**values, "output_dir": str(damaged)})


def test_two_processes_cannot_train_in_one_folder(values: dict[str, Any]) -> None:
    from filelock import FileLock

    folder = Path(values["output_dir"])
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(InputError, match="another process is training there"):
        run(values)


def test_checkpoints_that_these_ranks_cannot_load_are_refused(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from teenytinyllama.checkpointing.saving import _check_ranks

    interrupted_run(values, 2, monkeypatch)
    checkpoint = Path(values["output_dir"]) / "checkpoint-2"
    for stage in (0, 1, 2):
        _check_ranks(checkpoint, 4, stage)  # the optimizer's state by name
    with pytest.raises(InputError, match=r"saved by 1 rank under ZeRO stage 0, and this start has 1 under stage 3"):
        _check_ranks(checkpoint, 1, 3)
    (checkpoint / "complete.json").write_text(json.dumps({"step": 2, "world_size": 2, "zero_stage": 3}))
    shutil.rmtree(checkpoint / "optimizer")
    _check_ranks(checkpoint, 2, 3)
    refusal = "checkpoint-2 was saved by 2 ranks under ZeRO stage 3, and this start has 1.*--model_name_or_path .*ckpt"
    with pytest.raises(InputError, match=refusal.replace("ckpt", "checkpoint-2 --output_dir NEW")):
        run(values)


def free_disk(monkeypatch: pytest.MonkeyPatch, free_bytes: float) -> None:
    usage = shutil._ntuple_diskusage(int(1e12), 0, int(free_bytes))  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_full_disk_is_refused(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, 1)
    with pytest.raises(
        InputError, match="output_dir=.*2 checkpoints of .* still to come: lower save_total_limit, free"
    ):
        plan(values)
    with pytest.raises(InputError, match="1 checkpoint of .* are still to come: free some space"):
        plan({**values, "save_strategy": "no"})


@pytest.mark.parametrize(
    ("changes", "there", "new"),
    [
        ({"save_steps": 1}, [], 4),  # three are kept, and one is being written
        ({"save_steps": 1, "save_total_limit": 1}, [], 2),
        ({"save_steps": 1, "save_total_limit": None}, [], 8),  # all of the run
        ({"save_steps": 1, "save_total_limit": None}, [1, 2, 3], 5),
        ({"save_steps": 1}, [1, 2, 3], 1),
        ({"save_steps": 1}, [1], 3),
        ({"save_steps": 3}, [], 3),
        ({"save_steps": 3}, [3, 5], 2),  # of 6 and 8; a signal saved 5
        ({"save_steps": 4, "save_total_limit": 9, "max_tokens": 4096}, [1, 2, 3, 4, 5, 6, 7, 8], 2),  # a longer run
        ({"save_steps": 0.5}, [], 2),
        ({"save_steps": 0}, [], 1),  # the last
        ({"save_strategy": "no"}, [], 1),  # a signal's
    ],
)
def test_the_disk_needs_room_for_what_is_to_come(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], there: list[int], new: int
) -> None:
    for step in there:
        folder = Path(values["output_dir"]) / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "complete.json").write_text("{}")
    monkeypatch.setattr(plan_module, "check_run_folder", lambda *given: "resume" if there else "new")
    parameters = count_parameters(plan(values | changes).model_config)
    needed = parameters * (new * 12 + 4) * 1.05
    free_disk(monkeypatch, needed + 1)
    plan(values | changes)
    free_disk(monkeypatch, needed - 1)
    with pytest.raises(InputError, match="B are needed there"):
        plan(values | changes)


def test_a_complete_run_needs_no_room(finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    free_disk(monkeypatch, 1)
    assert plan(finished[1]).state == "complete"


@pytest.mark.parametrize(("first", "then"), [({"save_steps": 0.25}, {"save_steps": 0.25}), ({}, {"save_steps": 6})])
def test_a_longer_run_takes_its_own_intervals(
    values: dict[str, Any], first: dict[str, Any], then: dict[str, Any]
) -> None:
    """Those of the start that wrote the checkpoint are in its state, which the Trainer goes on with."""
    values |= {"save_total_limit": None, "eval_steps": 6, "logging_steps": 3}
    folder = run(values | first)
    run(values | {"max_tokens": 24 * 256} | then)
    old = [2, 4, 6, 8] if first else [4, 8]
    assert [step for step, _ in complete_checkpoints(folder)] == [*old, 12, 18, 24]
    records = read_jsonl(folder / "metrics.jsonl")
    scored = {record["step"] for record in records if "bits_per_byte" in record}
    assert {step for step in scored if step > 8} == {12, 18, 24}


def test_what_is_resolved_before_the_ranks_start_knows_their_number(values: dict[str, Any]) -> None:
    assert resolve_training("pretrain", values, 2)["state"] == "new"
    with pytest.raises(InputError, match="its 8 rows cannot be shared by 3 ranks"):
        resolve_training("pretrain", values, 3)
    with pytest.raises(InputError, match="packed, inputs: give one of the two"):
        pack_inputs({**values, "inputs": ["a"]})
    with pytest.raises(InputError, match="context: missing"):
        pack_inputs({"inputs": ["a"], "output_dir": "x", "model_name_or_path": "y"})
    with pytest.raises(InputError, match="output_dir: missing"):
        pack_inputs({"inputs": ["a"]})
    packing = {name: value for name, value in values.items() if name != "packed"} | {"inputs": ["a"], "context": 32}
    for more, message in (
        ({"cloze_items": -1}, "cloze_items=-1: must be 0"),
        ({"shape": {"hidden": 8}}, "LlamaConfig has no such field"),
        (
            {"context": 4096, "tokens_per_step": 12288},
            "context=4096: rows of that many tokens are longer than the model's context",
        ),
        ({"tokens_per_step": 256}, "its 8 rows cannot be shared by 3 ranks"),
        ({"lr_scheduler_type": "warmup_stable_decay", "max_tokens": None, "max_hours": -1.0}, "max_hours=-1.0"),
        ({}, "inputs=a: no such file"),  # all else was fine
    ):
        with pytest.raises(InputError, match=message):
            pack_inputs({**packing, **more}, num_processes=3 if "tokens_per_step" in more else 2)
    assert not (Path(values["output_dir"]) / "packed").exists()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_TP"])
def test_distributions_of_the_launcher_that_are_not_supported(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(InputError, match=f"{variable}=true: not supported"):
        build(PretrainConfig, values)
    monkeypatch.setenv(variable, "false")
    build(PretrainConfig, values)
    with pytest.raises(InputError, match="fsdp_config=.*: not supported; use `--accelerate zero1`"):
        check_types(PretrainConfig, {"fsdp_config": {"min_num_params": 1}})


def test_several_gpus_in_one_process_are_refused(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(InputError, match="2 GPUs and one process"):
        build(PretrainConfig, values)


def test_rows_are_the_same_on_any_number_of_ranks(values: dict[str, Any]) -> None:
    """What accelerate's sharding hands to each of 1, 2 and 4 ranks, put together, is the same for every step."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    from teenytinyllama.training.pretrain import CausalCollator, TrainingRows

    rows = TrainingRows(np.arange(64 * 4, dtype=np.uint16).reshape(64, 4), 64, 0)
    steps: list[list[set[int]]] = []
    for world, micro in ((1, 8), (1, 2), (2, 2), (4, 2)):
        found: list[set[int]] = [set() for _ in range(8)]
        for rank in range(world):
            loader = DataLoader(rows, batch_size=micro, collate_fn=CausalCollator(0))  # type: ignore[arg-type]
            batches = list(prepare_data_loader(loader, num_processes=world, process_index=rank, put_on_device=False))
            for place, batch in enumerate(batches):
                found[place * micro * world // 8] |= set(batch["input_ids"][:, 0].tolist())
        steps.append(found)
    assert all(found == steps[0] for found in steps)
    assert [len(rows) for rows in steps[0]] == [8] * 8


def test_a_short_run_has_small_steps(packed_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    def tokens_per_step(**length: int) -> int | None:
        values = {"preset": "tiny", "tokenizer": str(tokenizer_folder), "packed": str(packed_folder),
                  "output_dir": str(tmp_path / "run"), **length}  # fmt: skip
        return build(PretrainConfig, check_types(PretrainConfig, values)).tokens_per_step

    assert [batch_for(tokens, 2048) for tokens in (1, 42_000_000, 105_000_000, 3_276_800_000, 22_020_096_000)] == [
        2048, 32_768, 65_536, 262_144, 524_288]  # fmt: skip
    assert batch_for(None, 2048) == 262_144
    assert tokens_per_step(max_tokens=42_000_000) == 32_768
    assert tokens_per_step(max_steps=3) == 262_144, "a length in steps says nothing about tokens"
    assert tokens_per_step(max_tokens=42_000_000, tokens_per_step=8192) == 8192


@pytest.mark.slow
def test_a_run_that_reads_its_rows_too_often_says_so(
    values: dict[str, Any], corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path, sample_texts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "one.txt").write_text(" ".join(sample_texts)[:1500])
    config = PackConfig(inputs=[str(tmp_path / "one.txt")], validation_inputs=[str(corpus_folder)], context=32,
                        tokenizer=str(tokenizer_folder), output_dir=str(tmp_path / "packed"))  # fmt: skip
    long = {**values, "packed": str(pack(config)), "shape": {**SHAPE, "hidden_size": 128, "intermediate_size": 256},
            "max_tokens": 256 * 60, "learning_rate": 1e-2, "eval_steps": 10, "save_steps": 10, "save_total_limit": 9,
            "logging_steps": 20, "cloze_items": 0}  # fmt: skip
    folder = run(long)
    out = capsys.readouterr().out
    assert re.search(r"^repeats +each row is read [0-9.]+ times; after 4 new text teaches more", out, re.M)
    lowest = json.loads((folder / "run.json").read_text())["training"]["lowest_held_out"]
    assert 0 < lowest["step"] < 60
    assert lowest["tokens"] == 256 * lowest["step"]
    said = re.search(r"^held out +best at step (\d+) of 60 \((.+) bits per byte; .+ at the end\): the rows", out, re.M)
    assert said is not None
    assert (int(said[1]), said[2]) == (lowest["step"], f"{lowest['bits_per_byte']:.4f}")
    assert f"checkpoint-{lowest['step']} has {lowest['bits_per_byte']:.4f}." in out
    run({**values, "output_dir": str(tmp_path / "short")})
    out = capsys.readouterr().out
    assert "best at step" not in out
    assert "repeats" not in out
