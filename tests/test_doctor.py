"""`ttl doctor`: what each check says where all is well and where it is not, and that it leaves nothing behind."""

import errno
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from teenytinyllama import doctor, gpus
from teenytinyllama.arguments import build, check_types
from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, InputError, StoppedResumable
from teenytinyllama.cli import main
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.data.packed import load_packed, look_at_rows
from teenytinyllama.doctor import (
    check_clock,
    check_rate,
    check_writing,
    judge_clock,
    judge_rate,
    judge_rows,
    judge_writing,
    preflight,
    run_checks,
    show_hours,
)
from teenytinyllama.doctor.preflight import (
    check_network,
    check_speed_of_run,
    judge_network,
    kind_of,
    machine_report,
    read_command,
    scrub,
)
from teenytinyllama.doctor.run_checks import Place, examine, judge_memory, judge_speed
from teenytinyllama.launching.launch import ForkServer, recipes_folder
from teenytinyllama.launching.ranks import RankPlan, plan_ranks
from teenytinyllama.models import load_tokenizer
from teenytinyllama.presets import flops_per_token
from teenytinyllama.training import run_plan, speed
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.run_plan import plan_run
from teenytinyllama.training.speed import MeasuredSpeed
from tests.test_pretrain import make_values

REPOSITORY = Path(__file__).resolve().parent.parent
ONE = Place(1, uses_gpu=False)


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


def states(seen: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["state"] for item in seen["found"]}


def said(seen: dict[str, Any], name: str) -> str:
    return next(f"{item['text']}. {item['fix']}" for item in seen["found"] if item["name"] == name)


def written(folder: Path, values: dict[str, Any], name: str = "pretrain.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(values))
    return str(folder / name)


# The computer.


def test_the_report_of_the_computer_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joaninha")
    monkeypatch.setenv("USER", "joaninha")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(platform, "node", lambda: "maquina-7")
    text = "\n".join(machine_report())
    for word in ("teenytinyllama ", "python ", "torch 2", "transformers ", "deepspeed ", "datatrove ", "GPU ", "core",
                 "free for a process", "disk ", "Linux" if sys.platform == "linux" else "Darwin"):  # fmt: skip
        assert word in text, word
    for word in ("joaninha", "hf_secret", "maquina", "/home", str(Path.cwd())):
        assert word not in text, word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("output_dir=/home/joaninha/runs/a: full", "output_dir=~/runs/a: full"),
        ("/mnt/joaninha/x /home/joaninha-2", "/mnt/USER/x /home/joaninha-2"),
        ("rank on maquina-7.lan of joaninha", "rank on HOST.lan of USER"),
        ("no joaninhas here, nor a maquina-77", "no joaninhas here, nor a maquina-77"),
    ],
)
def test_names_are_left_out_of_whatever_is_printed(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/joaninha")
    monkeypatch.setenv("USER", "joaninha")
    monkeypatch.setattr(platform, "node", lambda: "maquina-7")
    assert scrub(text) == shown


def test_a_short_name_is_left_out_of_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ana")
    monkeypatch.setenv("USER", "ana")
    assert scrub("/mnt/ana/x of ana, /mnt/anais") == "/mnt/USER/x of ana, /mnt/anais"


# Rows.


def test_rows_are_shown_and_counted(packed_folder: Path, tokenizer_folder: Path) -> None:
    packed, tokenizer = load_packed(packed_folder), load_tokenizer("tokenizer", str(tokenizer_folder))
    look = look_at_rows(packed, tokenizer)
    assert [number for number, _ in look.shown] == [0, (len(packed.train) - 1) // 2, len(packed.train) - 1]
    assert all(text.isprintable() for _, text in look.shown)
    assert (look.rows, look.tokens) == (len(packed.train), packed.train.size)
    assert (look.unknown_share, look.documents) == (0, (packed.train == tokenizer.eos_token_id).sum())
    assert {item.name: item.state for item in judge_rows(look)} == {"tokens": "ok", "duplicates": "ok"}
    part = look_at_rows(packed, tokenizer, most_tokens=10 * 32)
    assert (part.rows, part.all_rows) == (10, len(packed.train))
    assert "of the first 10 of" in judge_rows(part)[1].text


def test_rows_that_teach_nothing_are_stopped(tmp_path: Path, tokenizer_folder: Path) -> None:
    """One word over and over: nearly all rows are equal, and there is no end of a document."""
    (tmp_path / "a.txt").write_text("gato " * 4000, encoding="utf-8")
    config = PackConfig(inputs=[str(tmp_path / "a.txt")], tokenizer=str(tokenizer_folder), context=32,
                        validation_fraction=0.0, output_dir=str(tmp_path / "packed"))  # fmt: skip
    look = look_at_rows(load_packed(pack(config)), load_tokenizer("tokenizer", str(tokenizer_folder)))
    found = {item.name: item for item in judge_rows(replace(look, documents=0))}
    assert found["duplicates"].state == "stop"
    assert "`ttl corpus` removes duplicates" in found["duplicates"].line
    assert found["documents"].state == "warning"


def test_tokens_that_a_tokenizer_does_not_know_are_stopped(tmp_path: Path, corpus_folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", "de", "a", "o", "que"]
    backend = Tokenizer(WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / "words")
    config = PackConfig(inputs=[str(corpus_folder)], tokenizer=str(tmp_path / "words"), context=32,
                        output_dir=str(tmp_path / "packed"))  # fmt: skip
    look = look_at_rows(load_packed(pack(config)), load_tokenizer("tokenizer", str(tmp_path / "words")))
    tokens = judge_rows(look)[0]
    assert (tokens.state, look.unknown_share > 0.5) == ("stop", True)
    assert "Use a tokenizer with byte_fallback" in tokens.line
    assert judge_rows(replace(look, unknown_share=0.002))[0].state == "warning"
    assert judge_rows(replace(look, unknown_share=0.0, byte_share=0.3))[0].state == "warning"


# Clock and disk.


def test_the_clock_and_the_speed_of_writing_are_those_of_the_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert check_clock(folder).state == "ok"
    found = check_writing(folder, 10_000_000, brief=True)
    assert (found.state, found.figure > 0) == ("ok", True), found.line
    assert "a checkpoint of 10.0 MB takes" in found.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("now", "skew", "state", "words"),
    [
        (1.8e9, 0.1, "ok", "differs by 0.1 s"), (1.8e9, -20.0, "warning", "by NTP"), (1.8e9, 7200.0, "stop", "by NTP"),
        (0.0, 0.0, "stop", "1970-01-01 00:00:00 UTC"), (9e9, 0.0, "stop", "timedatectl set-ntp true"),
    ],
)  # fmt: skip
def test_a_clock_that_is_wrong_is_told(now: float, skew: float, state: str, words: str) -> None:
    found = judge_clock(now, now + skew)
    assert (found.state, words in found.line) == (state, True), found.line


def test_a_disk_that_is_slow_or_broken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [judge_writing(speed, 0).state for speed in (1e9, 10e6, 0.5e6)] == ["ok", "warning", "stop"]
    assert "save less often (save_steps)" in judge_writing(10e6, 10**9).line

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(doctor.os, "fsync", full)
    found = check_writing(tmp_path / "run", 0)
    assert (found.state, "No space left on device. Free some space" in found.line) == ("stop", True)
    (tmp_path / "file").write_text("x")
    for check in (check_clock, lambda folder: check_writing(folder, 0)):
        assert check(tmp_path / "file" / "run").state == "stop"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The learning rate.


def config_of(values: dict[str, Any], **changes: Any) -> PretrainConfig:
    return build(PretrainConfig, check_types(PretrainConfig, {**values, **changes}))


def test_the_learning_rate_is_drawn_beside_the_run(values: dict[str, Any], tmp_path: Path) -> None:
    found = check_rate(config_of(values), None)
    picture = tmp_path / "run-learning-rate.png"
    assert (found.state, picture.read_bytes()[:4]) == ("ok", b"\x89PNG")
    assert "cosine: 0, 0.003 after 2 of 8 steps, 0 at the end" in found.text
    assert not (tmp_path / "run").exists()
    assert check_rate(config_of(values, lr_scheduler_type="constant"), None).state == "warning"  # its own is drawn over
    picture.write_bytes(b"mine")
    with pytest.raises(InputError, match="is there and was not drawn by this command. Give another name with --plot"):
        check_rate(config_of(values), None)
    with pytest.raises(InputError, match="is a folder. Give the name of a PNG file"):
        check_rate(config_of(values), str(tmp_path))
    assert check_rate(config_of(values), str(tmp_path / "named.png")).state == "ok"
    lost = check_rate(config_of(values), "/proc/x.png")
    assert (lost.state, "not drawn in /proc/x.png" in lost.line) == ("warning", True)
    assert picture.read_bytes() == b"mine"
    plateau = check_rate(config_of(values, lr_scheduler_type="reduce_lr_on_plateau"), None)
    assert "so no curve can be drawn" in plateau.text


def test_a_learning_rate_that_cannot_teach_is_stopped() -> None:
    assert judge_rate(10, 1000, 0.0, 1e-3) == ("ok", "")
    assert judge_rate(1000, 1000, 1.0, 1e-3)[0] == judge_rate(0, 10, 1.0, 0.0)[0] == "stop"
    assert "lower warmup_steps" in judge_rate(2000, 1000, 1.0, 1e-3)[1]
    assert judge_rate(500, 1000, 0.0, 1e-3)[0] == judge_rate(10, 1000, 1.0, 1e-3)[0] == "warning"


# A run.


def test_a_run_that_can_start(values: dict[str, Any], tmp_path: Path) -> None:
    seen = examine("pretrain", values, ONE)
    assert set(states(seen).values()) == {"ok"}
    assert set(states(seen)) == {"config", "agreement", "tokens", "duplicates", "folder", "disk", "memory", "rate",
                                 "clock", "writing"}  # fmt: skip
    assert len(seen["rows"]) == 3
    assert "8 steps of 256 tokens = 2,048 tokens, on 1 rank" in said(seen, "config")
    assert "600 tokens in 600 embeddings, rows of 32 tokens, bos 1, eos 2" in said(seen, "agreement")
    assert json.loads(json.dumps(seen)) == seen
    assert [path.name for path in tmp_path.iterdir()] == ["run-learning-rate.png"]
    assert seen["facts"]["tokens_left"] == 2048


def test_everything_that_is_wrong_is_told_at_once(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    monkeypatch.setattr(run_checks, "free_memory_bytes", lambda *_: 1_000_000)
    monkeypatch.setattr(run_checks, "free_disk_bytes", lambda *_: 1000)
    (tmp_path / "run-learning-rate.png").write_bytes(b"mine")
    seen = examine("pretrain", values, ONE)
    assert {name for name, state in states(seen).items() if state == "stop"} == {"folder", "memory", "rate"}
    assert "is not empty and holds no run of ours (mine.txt)" in said(seen, "folder")
    assert "Set activation_checkpointing: true" in said(seen, "memory")
    (tmp_path / "run" / "mine.txt").unlink()
    seen = examine("pretrain", values, ONE)
    assert states(seen)["disk"] == "stop"
    assert "lower save_total_limit" in said(seen, "disk")


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"packed": "nowhere"}, "config", "packed=nowhere: no such folder. Make it with `ttl pack`."),
        ({"tokens_per_step": 100}, "config", "must be a positive multiple of the row length 32"),
        ({"country_iso_code": "XXX"}, "config", "XXX"),
        ({"preset": None, "shape": None}, "config", "give exactly one of the two"),
        ({"shape": {"max_position_embeddings": 16}}, "agreement", "longer than the model's context of 16"),
    ],
)
def test_a_config_that_would_be_refused_is_a_stop(
    change: dict[str, Any], name: str, words: str, values: dict[str, Any]
) -> None:
    seen = examine("pretrain", {**values, **change}, ONE)
    assert states(seen)[name] == "stop"
    assert words in said(seen, name)
    assert states(seen)["clock"] == states(seen)["writing"] == "ok"  # what can be checked is


def test_a_tokenizer_of_other_rows_and_damaged_rows_are_stops(
    values: dict[str, Any], tmp_path: Path, packed_folder: Path, sample_texts: list[str]
) -> None:
    from teenytinyllama import train_tokenizer

    train_tokenizer(sample_texts, vocab_size=500).save_pretrained(tmp_path / "other")
    seen = examine("pretrain", {**values, "tokenizer": str(tmp_path / "other")}, ONE)
    assert "is not the one that packed=" in said(seen, "agreement")
    import shutil

    shutil.copytree(packed_folder, tmp_path / "damaged")
    content = bytearray((tmp_path / "damaged" / "train.npy").read_bytes())
    content[-3] ^= 1
    (tmp_path / "damaged" / "train.npy").write_bytes(content)
    seen = examine("pretrain", {**values, "packed": str(tmp_path / "damaged")}, ONE)
    assert "is not the file that `ttl pack` wrote" in said(seen, "rows")


def test_texts_that_are_not_packed_are_checked_as_far_as_they_can(
    values: dict[str, Any], corpus_folder: Path, tmp_path: Path
) -> None:
    seen = examine("pretrain", {**values, "packed": None, "inputs": [str(corpus_folder)], "context": 32}, ONE)
    assert {"config", "disk", "memory", "rate"} < set(states(seen))
    assert set(states(seen).values()) == {"ok"}
    assert set(seen["skipped"]) == {"rows", "agreement", "speed"}
    assert not (tmp_path / "run").exists()


def test_a_length_that_caps_decide_is_left_to_the_speed_test(values: dict[str, Any]) -> None:
    capped = {**values, "max_tokens": None, "max_hours": 1.0, "lr_scheduler_type": "warmup_stable_decay"}
    seen = examine("pretrain", capped, ONE)
    assert set(states(seen).values()) == {"ok"}
    assert seen["skipped"] == {"rate": "the length of the run follows from its caps"}
    assert seen["facts"]["tokens_left"] == 0


def test_what_memory_means() -> None:
    assert judge_memory(1, 70, 100, 0.8)[0] == "ok"
    assert judge_memory(1, 90, 100, 0.8)[0] == "warning"
    assert judge_memory(101, 101, 100, 0.8)[0] == "stop"


def test_ranks_on_gpus_are_held_against_the_fullest_one(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the driver would say is made up; everything that is made of it is real."""
    free = {0: 80e9, 1: 1e6}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpus, "choose_precision", lambda: ("bf16", "computes bf16"))
    monkeypatch.setattr(run_checks, "free_memory_bytes",
                        lambda device, *_: int(free[device.index]) if device.type == "cuda" else 4_000_000_000)  # fmt: skip
    seen = examine("pretrain", values, Place(2, uses_gpu=True))
    assert (states(seen)["memory"], states(seen)["host RAM"]) == ("stop", "warning")
    assert "1.00 MB are free on each GPU" in said(seen, "memory")
    assert "the ranks take about 6.00 GB of the computer's memory, 4.00 GB are free" in said(seen, "host RAM")
    free[1] = 70e9
    assert states(examine("pretrain", values, Place(2, uses_gpu=True)))["memory"] == "ok"
    assert states(examine("pretrain", values, Place(1, uses_gpu=True)))["host RAM"] == "ok"


def test_gpus_and_their_driver_are_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70_000_000_000, 80_000_000_000 + index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(preflight, "load_nvml", lambda: SimpleNamespace(nvmlSystemGetDriverVersion=lambda: b"570.86"))
    lines = machine_report()
    assert "GPU 1      NVIDIA H100 80GB HBM3, 80.0 GB, 70.0 GB of them free" in lines
    assert "driver     570.86" in lines
    assert any(line.startswith("processor  ") and "core" in line and "H100" not in line for line in lines)


# The network.


def stub_ranks(monkeypatch: pytest.MonkeyPatch, program: str) -> RankPlan:
    monkeypatch.setattr(preflight, "network_command", lambda path, device: [sys.executable, "-c", program, str(path)])
    return RankPlan((dict(os.environ), dict(os.environ)), uses_gpu=False, accelerate_file=None)


def test_ranks_that_do_not_come_together_are_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = stub_ranks(monkeypatch, "print('connect: no route to host'); raise SystemExit(1)")
    found = check_network(ranks, tmp_path, 0)
    assert (found.state, "2 ranks could not add up numbers within 60 s: connect: no route" in found.line) == (
        "stop",
        True,
    )
    assert "GLOO_SOCKET_IFNAME" in found.fix


def test_a_signal_ends_the_command_and_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedResumable, match="the same command begins again"):
        check_network(stub_ranks(monkeypatch, "raise SystemExit(75)"), tmp_path, 0)


def test_the_bandwidth_between_ranks_is_judged() -> None:
    fast = {"backend": "gloo", "bytes": 16_000_000, "seconds": 0.016, "latency_seconds": 0.0002}
    found = judge_network(fast, 2, 4_000_000, "")
    assert found.line == ("ok       network    2 ranks over gloo: 1.00 GB/s, 0.20 ms at least; the gradients of a step, "
                          "4.00 MB, take 0.004 s")  # fmt: skip
    slow = judge_network({**fast, "seconds": 1.6}, 4, 0, "")
    assert (slow.state, "24.0 MB/s" in slow.text) == ("warning", False) or "15.0 MB/s" in slow.text


# The speed test.

SPEED = MeasuredSpeed(1000.0, 500.0, "cpu", 1, 20, 256, spent_kwh=0.001, spent_hours=0.01, starting_hours=0.005)


def facts(packed_folder: Path, **changes: Any) -> dict[str, Any]:
    test = {"packed": str(packed_folder), "tokens_per_step": 256}
    usual = {"test": test, "tokens_left": 36_000_000, "saves_left": 10, "checkpoint_bytes": 360 * 10**6,
             "grid": ["BRA", None], "price": 2.0, "warmup_steps": 2}  # fmt: skip
    return usual | changes


def test_the_speed_test_tells_hours_energy_and_money(packed_folder: Path, values: dict[str, Any]) -> None:
    silent = {**values, "eval_strategy": "no"}
    found = judge_speed(SPEED, silent, facts(packed_folder), 1e6)
    assert found.figure == pytest.approx(10 + 0.005 + 1)  # steps, start, ten checkpoints at 1 MB/s
    assert found.state == "ok"
    assert "36.00M tokens take 11.0 hours, 5.5 kWh, 0.541 kg CO2e, 22.01 USD" in found.text
    assert "no price is given" in judge_speed(SPEED, silent, facts(packed_folder, price=None), 0).text
    assert judge_speed(SPEED, values, facts(packed_folder), 0).figure > 10.3  # with evaluations
    blind = judge_speed(replace(SPEED, watts=0.0), silent, facts(packed_folder), 0)
    assert (blind.state, "energy not measured" in blind.text) == ("warning", True)
    capped = judge_speed(SPEED, {**silent, "max_hours": 1.0}, facts(packed_folder), 0)
    assert (capped.state, "max_hours ends the run after 3.55M tokens" in capped.fix) == ("warning", True)
    found = judge_speed(SPEED, {**silent, "max_hours": 1.0}, facts(packed_folder, tokens_left=0), 0)
    assert (found.state, "3.55M tokens take" in found.text) == ("ok", True)
    poor = judge_speed(SPEED, {**silent, "max_kwh": 0.0011}, facts(packed_folder), 0)
    assert (poor.state, "max_kwh=0.0011 pays for 720 tokens, less than 20 steps" in poor.text) == ("stop", True)
    assert [show_hours(hours) for hours in (0.5, 3, 72)] == ["30.0 minutes", "3.0 hours", "3.0 days"]


def test_a_run_of_months_is_told() -> None:
    usual = {"test": {"tokens_per_step": 256, "packed": "p"}, "saves_left": 0, "grid": ["BRA", None], "price": None}
    silent = {"eval_strategy": "no"}
    long = judge_speed(SPEED, silent, usual | {"tokens_left": 3600 * 1000 * 24 * 31}, 0)
    assert (long.state, long.fix) == (
        "warning",
        "That is over a month: take faster GPUs, fewer tokens or a smaller size",
    )
    assert judge_speed(SPEED, silent, usual | {"tokens_left": 3600 * 1000 * 24 * 29}, 0).state == "ok"


def test_without_a_gpu_the_speed_test_is_short_or_left_out(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A computer that is a thousand times, a million times, a billion times too slow for the run."""

    def looked(flops: float, **changes: Any) -> Any:
        monkeypatch.setattr(speed, "expected_seconds", lambda needed, ranks: needed / flops)
        return examine("pretrain", values | {"tokens_per_step": 1024} | changes, ONE)

    assert looked(1e11)["facts"]["test"]["tokens_per_step"] == 1024
    shape = run_plan.open_parts(build(PretrainConfig, check_types(PretrainConfig, values)))[2]
    row_flops = 32 * flops_per_token(shape, 32)
    enough = 20 * row_flops / 180  # for one row in the time that a test may take
    short = looked(3.5 * enough)["facts"]
    assert short["test"]["tokens_per_step"] == 3 * 32
    assert short["test_seconds"] == pytest.approx(180 * 3 / 3.5)
    assert looked(3.5 * enough, per_device_train_batch_size=2)["facts"]["test"]["tokens_per_step"] == 2 * 32
    slow = looked(0.5 * enough)
    assert "test" not in slow["facts"]
    (found,) = [item for item in slow["found"] if item["name"] == "speed"]
    assert found["state"] == "warning"
    assert found["text"].startswith(
        "not tested: without a GPU 20 steps would take about 6.0 minutes, and the whole run"
    )
    assert found["fix"] == "Rent a GPU (`ttl plan` says what it costs), or train a smaller size"
    monkeypatch.setattr(speed, "expected_seconds", lambda needed, ranks: needed / (1e-6 * enough))
    assert main(["doctor", written(tmp_path, values)]) == EXIT_BAD_INPUT
    assert capsys.readouterr().out.splitlines()[-1] == "stop: speed"


def test_a_speed_test_that_fails_is_a_stop(
    packed_folder: Path, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(script: Path, words: list[str], accelerate: Any, ranks: Any, log: Path, forks: bool) -> int:
        resolved = json.loads(Path(words[1]).read_text())["config"]["values"]
        assert (resolved["max_steps"], resolved["warmup_steps"]) == (20, 20)
        log.write_text("the loss is not a number\n")
        return 1

    monkeypatch.setattr(preflight, "launch", fails)
    seen = examine("pretrain", values, ONE)
    ranks = plan_ranks(recipes_folder() / "pretrain.py", [])
    found = check_speed_of_run(
        values, seen["facts"], preflight.DoctorOptions(), ranks, ForkServer(False, []), tmp_path, 0.0
    )
    assert (found.state, found.text.endswith("its last lines: the loss is not a number")) == ("stop", True)


# The command.


def test_go_and_stop(values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, values)
    assert main(["doctor", path, "--speed_test", "false", "--plot", str(tmp_path / "rate.png")]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0][:7], lines[-1]) == ("version", "go")
    assert "skipped  speed: speed_test is false" in lines
    assert main(["doctor", "--config", path, "--tokens_per_step", "100"]) == EXIT_BAD_INPUT
    output = capsys.readouterr().out
    assert "\nstop     config     tokens_per_step=100: must be" in output
    assert output.splitlines()[-2:] == ["skipped  speed: of the stop above", "stop: config"]
    assert {path.name for path in tmp_path.iterdir()} == {"pretrain.yaml", "rate.png"}
    assert main(["doctor"]) == EXIT_DONE
    assert "row 0" not in capsys.readouterr().out


def test_several_machines_are_looked_at_one_by_one(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "10.0.0.1"]
    assert main(["doctor", written(tmp_path, values), *words]) == EXIT_BAD_INPUT
    assert "num_machines=2: `ttl doctor` works on one machine. Run it on each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("sft.yaml", {}, "sft"), ("x.yaml", {"preset": "tiny"}, "pretrain"), ("x.yaml", {"beta": 0.1}, "dpo"),
        ("x.yaml", {"conversations": "a"}, "sft"),
    ],
)  # fmt: skip
def test_a_yaml_tells_its_verb(name: str, content: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert kind_of(written(tmp_path, content, name)) == kind


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("x.yaml", {"sources": []}, [], r"is for `ttl corpus`, which checks its config by itself"),
        ("x.yaml", {"arms": {}, "packed": "p"}, [], r"is for `ttl lab`"),
        ("evaluate.yaml", {}, [], r"is for `ttl evaluate`.*checks trainings: pretrain, sft, dpo"),
        ("x.yaml", {"seed": 1}, [], r"does not tell which verb it is for. Give --verb pretrain, sft, dpo"),
        ("x.yaml", {"seed": 1}, ["--verb", "pack"], r"verb=pack: must be one of pretrain, sft, dpo"),
        ("x.yaml", {"seed": 1}, ["--config", "y.yaml"], "give the YAML once"),
        ("pretrain.yaml", {"presett": "tiny"}, [], r"presett: unknown key. Did you mean 'preset'"),
        ("pretrain.yaml", {"preset": "tiny"}, ["--max_token", "4"], r"max_token: unknown key"),
        (None, {}, ["--max_tokens", "4"], r"max_tokens: a key of a run, and no run is given"),
        (None, {}, ["nowhere.yaml"], r"config=nowhere.yaml: no such file or folder"),
        (None, {}, ["/"], r"config=/: is no file. Give the YAML of a run"),
    ],
)
def test_what_is_no_training_is_refused(
    name: str | None, content: dict[str, Any], words: list[str], message: str, tmp_path: Path
) -> None:
    argv = [written(tmp_path, content, name), *words] if name else words
    with pytest.raises(InputError, match=message):
        read_command(argv)


# Before a training.


def test_a_run_of_hours_is_looked_at_before_it_starts(
    values: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan_run(config_of(values))
    assert capsys.readouterr().out == ""
    plan_run(config_of(values, preflight=True))
    output = capsys.readouterr().out
    assert output.startswith("before the run of about ")
    assert [line[:8].strip() for line in output.splitlines()[4:]] == ["ok"] * 4
    monkeypatch.setattr(run_plan, "_NO_HOUR_FLOPS", 0)
    plan_run(config_of(values))
    assert capsys.readouterr().out == ""  # seconds by the speed of this computer
    monkeypatch.setattr(run_plan, "expected_seconds", lambda flops, ranks: 7200.0)
    plan_run(config_of(values))
    assert "before the run of about 2.0 hours (`ttl doctor RUN.yaml` looks at more" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "REPEATED_SHARES", (0.0, 0.0))
    with pytest.raises(InputError, match=r"^duplicates: .* With preflight: false the run starts all the same\.$"):
        plan_run(config_of(values))
    plan_run(config_of(values, preflight=False))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[], ["--accelerate", "zero2", "--num_processes", "2"]])
def test_the_real_command_with_its_speed_test(ranks: list[str], values: dict[str, Any], tmp_path: Path) -> None:
    """From the command line, on the embedded corpus: rows, network and speed, by real ranks."""
    for words in (["tokenizer", "--inputs", "sample", "--vocab_size", "512", "--output_dir", str(tmp_path / "t")],
                  ["pack", "--inputs", "sample", "--tokenizer", str(tmp_path / "t"), "--output_dir",
                   str(tmp_path / "p"), "--context", "64"]):  # fmt: skip
        assert main(words) == EXIT_DONE
    run = {**values, "tokenizer": str(tmp_path / "t"), "packed": str(tmp_path / "p"), "tokens_per_step": 1024,
           "max_tokens": 1_024_000, "price": 1.0}  # fmt: skip
    command = [sys.executable, "-m", "teenytinyllama", "doctor", written(tmp_path, run), *ranks]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    before = {path.name for path in tmp_path.iterdir()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_DONE, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("go")
    speed = next(line for line in lines if line.split()[:2] == ["ok", "speed"])
    assert "tokens/s at" in speed
    assert "1.02M tokens take" in speed
    assert "USD (this test: " in speed
    assert any(line.startswith("ok       network    2 ranks over gloo: ") for line in lines) == bool(ranks)
    assert {path.name for path in tmp_path.iterdir()} - before == {"run-learning-rate.png"}
