"""Caps on energy, money and hours: when the decay begins, how exact the run stays, what is refused."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_pretrain import interrupted_run, losses, make_values, run

from teenytinyllama.arguments import build
from teenytinyllama.checkpointing.checkpoints import list_checkpoints
from teenytinyllama.checkpointing.saving import check_run_folder
from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.energy.emissions import GridSettings
from teenytinyllama.energy.ledger import read_ledger
from teenytinyllama.energy.recorder import StageMeter
from teenytinyllama.publishing.energy_report import write_energy_report
from teenytinyllama.stage_folder import lock_run_folder
from teenytinyllama.training import trainer
from teenytinyllama.training.caps import (
    CapCallback,
    Decision,
    Pauses,
    SpendingCallback,
    Spent,
    decay_steps,
    decide,
    hours_until_cap,
    stored_decision,
    usd,
)
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.speed import MeasuredSpeed, tokens_within
from teenytinyllama.training.trials import SPEED_TEST_FOLDER, settle_length, short_run_values

REPOSITORY = Path(__file__).resolve().parent.parent
NO_PAUSES = Pauses()
WSD = {"lr_scheduler_type": "warmup_stable_decay", "decay_fraction": 0.25}


def paid_hours(hours: float) -> Spent:
    """A kWh, 0.1 kg and one paid GPU an hour."""
    return Spent(hours, 0.1 * hours, hours, hours, 0.0, 1)


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return {**make_values(tmp_path, packed_folder, tokenizer_folder), **WSD, "max_tokens": 256 * 24, "save_steps": 3}


@pytest.fixture
def a_kwh_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step costs a kWh, 0.1 kg and an hour, and nothing else does: a meter that says so in place of the real one."""
    monkeypatch.setattr(trainer.EnergyCallback, "spent", lambda self: paid_hours(float(self._step)))
    monkeypatch.setattr("teenytinyllama.training.trainer.RunTrainer.pauses", lambda self: NO_PAUSES)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# The decision


def spending_at(step: int, kwh_per_step: float = 1.0, pauses: Pauses = NO_PAUSES, eval_steps: int = 500) -> SpendingCallback:  # fmt: skip
    """A callback that has measured the steps 1 and `step`."""
    at = SimpleNamespace(step=0)
    spending = SpendingCallback(
        lambda: replace(paid_hours(float(at.step)), kwh=at.step * kwh_per_step), 2.5, lambda: pauses
    )
    for at.step in (1, step):
        state = SimpleNamespace(global_step=at.step, max_steps=10**9, eval_steps=eval_steps, save_steps=500)
        arguments = SimpleNamespace(process_index=0, device=torch.device("cpu"))
        spending.on_step_end(arguments, state, SimpleNamespace(should_log=True))  # type: ignore[arg-type]
    return spending


def config_of(**values: Any) -> Any:
    usual = {"max_kwh": None, "max_cost": None, "max_hours": None, "price": None, "hard_stop": False, "max_steps": 1000,
             "logging_steps": 10, "lr_scheduler_kwargs": {"num_decay_steps": 250}, **WSD}  # fmt: skip
    return SimpleNamespace(**{**usual, **values})


def test_the_decay_begins_when_waiting_would_pass_the_cap() -> None:
    config = config_of(max_kwh=200)
    assert decay_steps(150, 0.25) == 50
    # At 130, a decay that began at 140 would end at 140 + 47 = 187; at 140, one from 150 on at exactly 200.
    assert decide(config, spending_at(130), 130, 20, False) is None
    assert decide(config, spending_at(140), 140, 20, False) is None
    decision = decide(config, spending_at(150), 150, 20, False)
    assert decision == Decision(150, 200, "max_kwh=200: 213 kWh would be reached by a decay that began 10 steps later")
    assert decide(config, spending_at(150), 150, 20, True) is None, "it was decided before"


@pytest.mark.parametrize(("cap", "reason"), [
    ({"max_hours": 200}, "max_hours=200: 213 hours"), ({"max_cost": 500, "price": 2.5}, "max_cost=500: 532.5 USD"),
    ({"max_kwh": 1000, "max_hours": 200}, "max_hours=200: 213 hours"),
])  # fmt: skip
def test_each_cap_counts(cap: dict[str, float], reason: str) -> None:
    decision = decide(config_of(**cap), spending_at(150), 150, 20, False)
    assert decision is not None
    assert decision.reason.startswith(reason)


def test_evaluations_to_come_and_the_last_one_count() -> None:
    pauses = Pauses(evaluation_seconds=3600.0, ending_seconds=2 * 3600.0)
    # Steps 140 to 187 hold evaluations at 150 and 175, an hour each; the last one takes two.
    spending = spending_at(140, pauses=pauses, eval_steps=25)
    projected = spending.projected(47)
    assert projected is not None
    assert projected.hours == pytest.approx(140 + 47 + 2 + 2)
    assert projected.kwh == pytest.approx(projected.hours), "at the mean power so far"
    assert decide(config_of(max_kwh=195), spending, 140, 20, False) is not None
    assert decide(config_of(max_kwh=195), spending_at(140), 140, 20, False) is not None  # 150 + 50
    assert decide(config_of(max_kwh=202), spending_at(140), 140, 20, False) is None
    assert decide(config_of(max_kwh=202), spending, 140, 20, False) is not None


def test_a_hard_stop_stops_before_the_cap() -> None:
    config = config_of(max_kwh=155, hard_stop=True, lr_scheduler_type="cosine")
    assert decide(config, spending_at(140), 140, 20, False) is None
    assert decide(config, spending_at(150), 150, 20, False) == Decision(
        150, 150, "max_kwh=155: 160 kWh at the next logging step, with the final evaluation"
    )


def test_a_cap_that_is_reached_in_the_warmup_or_after_the_decay_began() -> None:
    assert decide(config_of(max_kwh=5), spending_at(10), 10, 20, False) == Decision(
        10, 10, "max_kwh=5: 10 kWh spent in the warm-up"
    )
    assert decide(config_of(max_kwh=800), spending_at(760), 760, 20, False) is None, "the planned decay has begun"
    assert decide(config_of(max_kwh=1), spending_at(1000), 1000, 20, False) is None, "nothing is left to do"


def test_the_log_line_projects_to_the_end_or_to_the_cap() -> None:
    spending = spending_at(100)
    record = spending.record(100)
    assert record == pytest.approx({"kwh": 100, "kg_co2e": 10, "usd": 250, "projected_kwh": 200,
                                    "projected_kg_co2e": 20, "projected_usd": 500})  # fmt: skip
    assert spending.seconds_left(100) == pytest.approx(100 * 3600)
    spending.hours_left = lambda spent: hours_until_cap(config_of(max_kwh=150), spent)
    assert spending.record(100)["projected_kwh"] == pytest.approx(150)
    assert SpendingCallback(Spent, None).record(100)["projected_kwh"] is None, "nothing is known yet"
    assert SpendingCallback(Spent, None).record(100)["usd"] is None


# Runs


@pytest.fixture
def capped(values: dict[str, Any], a_kwh_a_step: None) -> dict[str, Any]:
    """A cap of 12 kWh: 9 steps and a decay of 3."""
    return {**values, "max_kwh": 12}


@pytest.mark.slow
def test_a_capped_run_is_the_run_of_so_many_steps(capped: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    folder = run(capped)
    out = capsys.readouterr().out
    assert "cap        max_kwh=12: 13 kWh would be reached by a decay that began 1 steps later; from step 9 on: the rate " \
           "falls until step 12" in out  # fmt: skip
    assert "of 12.0000 kWh" in out
    training = json.loads((folder / "run.json").read_text())["training"]
    assert training["steps"] == 12
    assert training["ended_by_cap"].startswith("max_kwh=12: 13 kWh")
    plain = {key: value for key, value in capped.items() if key != "max_kwh"}
    other = run({**plain, "max_tokens": 256 * 12, "output_dir": str(tmp_path / "plain")})
    assert losses(folder) == losses(other)
    rates = [[r["learning_rate"] for r in read_jsonl(f / "metrics.jsonl") if "loss" in r] for f in (folder, other)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    assert rates[0][-3] > rates[0][-2] > rates[0][-1] > 0
    for name, weight in weights(folder).items():
        assert torch.equal(weight, weights(other)[name]), name


@pytest.mark.slow
def test_a_resume_keeps_what_was_decided(
    capped: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run({**capped, "output_dir": str(tmp_path / "whole")})
    folder = Path(capped["output_dir"])
    interrupted_run(capped, 11, monkeypatch)
    assert stored_decision(folder / "checkpoint-11") == stored_decision(whole / "checkpoint-12")
    assert stored_decision(folder / "checkpoint-6") is None
    assert run(capped) == folder
    assert losses(folder) == losses(whole)
    for name, weight in weights(folder).items():
        assert torch.equal(weight, weights(whole)[name]), name
    assert json.loads((folder / "run.json").read_text())["training"]["ended_by_cap"]


def test_a_resume_from_before_the_decision_decides_anew(capped: dict[str, Any], monkeypatch: Any) -> None:
    folder = Path(capped["output_dir"])
    interrupted_run(capped, 8, monkeypatch)
    # Four steps more were paid for and lost.
    monkeypatch.setattr(trainer.EnergyCallback, "spent", lambda self: replace(paid_hours(self._step + 4.0), kg=1.0))
    run(capped)
    decision = stored_decision(folder / "checkpoint-12")
    assert decision is not None
    assert (decision.step, decision.end_step) == (9, 12), "the first logging step after the resume that knows the pace"


def test_a_finished_capped_run_is_complete(capped: dict[str, Any], capsys: Any) -> None:
    folder = run(capped)
    before = (folder / "run.json").read_text()
    run(capped)
    assert "is complete; a cap ended it (max_kwh=12" in capsys.readouterr().out
    assert (folder / "run.json").read_text() == before
    run({**yaml.safe_load((folder / "config.yaml").read_text())})  # with shares as they were given
    assert (folder / "run.json").read_text() == before


def test_a_busy_beginning_is_forgotten() -> None:
    """A hundred slow logging steps, then fast ones: the rest is projected by the latter."""
    at = SimpleNamespace(hours=0.0)
    spending = SpendingCallback(lambda: paid_hours(at.hours), None)
    for step in range(1, 201):
        at.hours += 10.0 if step <= 100 else 1.0
        state = SimpleNamespace(global_step=step, max_steps=10**9, eval_steps=500, save_steps=500)
        arguments = SimpleNamespace(process_index=0, device=torch.device("cpu"))
        spending.on_step_end(arguments, state, SimpleNamespace(should_log=True))  # type: ignore[arg-type]
    assert spending.seconds_left(50) == pytest.approx(50 * 3600)


def test_money_is_of_all_gpus_and_the_start_has_no_energy() -> None:
    spent = Spent(kwh=4.0, kg=0.4, hours=2.5, gpu_hours=20.0, starting_hours=0.5, num_gpus=8)
    later = spent.after(2.0)
    assert (later.kwh, later.hours, later.gpu_hours) == (8.0, 4.5, 36.0)
    assert usd(later, 2.5) == 90.0
    assert hours_until_cap(config_of(max_cost=70.0, price=2.5), spent) == pytest.approx(1.0)


def test_a_hard_stop_ends_any_schedule(values: dict[str, Any], a_kwh_a_step: None) -> None:
    folder = run({**values, "lr_scheduler_type": "cosine", "max_kwh": 7.5, "hard_stop": True})
    training = json.loads((folder / "run.json").read_text())["training"]
    assert training["steps"] == 7
    assert [step for step, _ in list_checkpoints(folder)][-1] == 7
    assert "at the next logging step" in training["ended_by_cap"]
    assert [r["step"] for r in read_jsonl(folder / "metrics.jsonl") if "bits_per_byte" in r][-1] == 7, "it is scored"


def test_the_spending_of_a_real_run_is_in_its_lines(values: dict[str, Any], capsys: Any) -> None:
    folder = run({**values, "price": 3600.0})
    record = [record for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record][-1]
    account = read_ledger(folder)
    assert account is not None
    assert 0 < record["kwh"] <= 1.001 * account.total.energy_kwh
    assert 0 < record["usd"] <= account.seconds + account.starting_seconds
    assert record["projected_kwh"] >= record["kwh"]
    assert " kWh  " in capsys.readouterr().out


# The length from a speed test

SPEED = MeasuredSpeed(1000.0, 500.0, "a machine", 1, 8, 256)


def test_the_tightest_cap_says_how_many_tokens(packed_folder: Path) -> None:
    values = {"packed": str(packed_folder), "eval_strategy": "no"}
    assert tokens_within({"max_hours": 2.0}, 0.0, SPEED, values) == (7_200_000, "max_hours")
    eight = replace(SPEED, num_gpus=8, spent_hours=0.5, starting_hours=0.5)
    assert tokens_within({"max_cost": 60.0}, 2.5, eight, values) == (7_200_000, "max_cost")
    assert tokens_within({"max_hours": 2.0, "max_kwh": 0.5}, 0.0, SPEED, values) == (3_600_000, "max_kwh")
    assert tokens_within({"max_hours": 2.0, "max_cost": 1.25}, 2.5, SPEED, values) == (1_800_000, "max_cost")
    assert tokens_within({"max_kwh": 0.5}, 0.0, replace(SPEED, watts=0.0), values)[0] == float("inf")
    scored = tokens_within({"max_hours": 2.0}, 0.0, SPEED, {"packed": str(packed_folder)})[0]
    tested = replace(SPEED, spent_hours=0.5, spent_kwh=0.1)  # is paid for by the caps
    assert tokens_within({"max_hours": 2.0}, 0.0, tested, values) == (5_400_000, "max_hours")
    assert tokens_within({"max_kwh": 0.5}, 0.0, tested, values) == (2_880_000, "max_kwh")
    assert tokens_within({"max_cost": 2.5}, 2.5, tested, values) == (1_800_000, "max_cost")
    assert 6_800_000 < scored < 7_000_000, "evaluations cost a few per cent"


def settle(values: dict[str, Any], test: Callable[..., int] | None = None) -> dict[str, Any]:
    return settle_length(values, 1, lambda values, ranks: "new", test or (lambda values, log: pytest.fail("tested")))


def test_a_length_that_is_there_is_kept(values: dict[str, Any]) -> None:
    assert settle(values) is values
    given = {**values, "max_kwh": 1.0}
    assert settle(given) is given
    assert settle({**given, "max_tokens": None, "max_steps": 5})["max_steps"] == 5


def test_the_length_follows_from_the_record_of_a_test(values: dict[str, Any]) -> None:
    folder = Path(values["output_dir"])
    folder.mkdir()
    (folder / "speed_test.json").write_text(json.dumps(SPEED.__dict__))
    open_length = {**values, "max_tokens": None, "max_hours": 1.0, "eval_strategy": "no"}
    assert settle(open_length)["max_tokens"] == 1.25 * 3_600_000
    cosine = {**open_length, "lr_scheduler_type": "cosine", "hard_stop": True}
    assert settle(cosine)["max_tokens"] == 3_600_000
    with pytest.raises(InputError, match=r"max_hours=0.001: pays for 3,600 tokens at 1,000 tokens/s and 500 W, and 20 "
                                         r"steps are 5,120\. Raise it, or lower tokens_per_step"):  # fmt: skip
        settle({**open_length, "max_hours": 0.001})
    (folder / "speed_test.json").write_text("{}")
    with pytest.raises(InputError, match=r"speed_test\.json: is damaged .* Delete it to test the speed again"):
        settle(open_length)


def fail_measured(place: Path, log: Path, words: str) -> int:
    """What a speed test leaves that dies: its words, and what it consumed."""
    log.write_text(words)
    place.mkdir()
    with StageMeter(place, GridSettings()):
        time.sleep(0.1)
    return 1


def test_a_test_that_fails_shows_its_last_lines(values: dict[str, Any]) -> None:
    def fails(values: dict[str, Any], log: Path) -> int:
        return fail_measured(Path(values["output_dir"]), log, "one\nno room\n")

    with pytest.raises(RunFailedError, match="the speed test ended with exit code 1; its last lines:\none\nno room"):
        settle({**values, "max_tokens": None, "max_hours": 1.0}, fails)
    folder = Path(values["output_dir"])
    assert {path.name for path in folder.iterdir()} == {".lock", "speed-test.log", "emissions.csv", "ledger.jsonl"}
    assert check_run_folder(folder, {}) == "new"  # the same command tries again
    account = read_ledger(folder)
    assert account is not None
    assert account.speed_test_kwh == account.total.energy_kwh > 0
    (folder / "emissions.csv.bak").write_bytes((folder / "emissions.csv").read_bytes())
    assert check_run_folder(folder, {}) == "new"
    (folder / "ledger.jsonl").unlink()  # of other work then, as codecarbon's own default name is
    with pytest.raises(InputError, match=r"is not empty and holds no run of ours \(emissions.csv, emissions.csv.bak\)"):
        check_run_folder(folder, {})


def test_what_a_test_died_of_is_told_also_when_its_account_cannot_be_kept(values: dict[str, Any]) -> None:
    """A full disk ends the test and refuses the account's rows as well."""

    def fails(values: dict[str, Any], log: Path) -> int:
        place = Path(values["output_dir"])
        (place.parent / "ledger.jsonl").symlink_to("/dev/full")
        return fail_measured(place, log, "No space left on device\n")

    with pytest.raises(RunFailedError, match="No space left on device"):
        settle({**values, "max_tokens": None, "max_hours": 1.0}, fails)
    assert not (Path(values["output_dir"]) / SPEED_TEST_FOLDER).exists()


def test_a_folder_that_is_training_is_not_tested(values: dict[str, Any]) -> None:
    folder = Path(values["output_dir"])
    lock = lock_run_folder(folder)
    with pytest.raises(InputError, match="another process is training there. Wait for it or stop it"):
        settle({**values, "max_tokens": None, "max_hours": 1.0})
    lock.release()


def test_the_test_is_the_run_made_short(values: dict[str, Any]) -> None:
    test = short_run_values({**values, "tokens_per_step": 32 * 96, "max_hours": 1.0}, 2, Path("x"))
    assert (test["tokens_per_step"], test["max_steps"], test["output_dir"]) == (32 * 2 * 16, 8, "x")
    assert not {"max_hours", "hard_stop"} & set(test)
    assert short_run_values({**values, "max_hours": 1.0}, 1, Path("x"))["tokens_per_step"] == 256


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [[], ["--accelerate", "zero2", "--num_processes", "2"]])
def test_a_run_by_the_clock(values: dict[str, Any], tmp_path: Path, ranks: list[str]) -> None:
    """From the command line, with the real meter: `max_hours` alone, once on one rank and once under ZeRO-2.

    Two ranks go by the record of a test of a far faster machine, so that the cap ends them and not the planned length,
    however busy this machine is; one rank is tested here, and either may end it.
    """
    capped = {
        **values,
        "max_tokens": None,
        "max_hours": 0.012,
        "logging_steps": 5,
        "eval_steps": 0.2,
        "save_steps": 0.2,
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({key: v for key, v in capped.items() if v is not None}))
    if ranks:
        Path(values["output_dir"]).mkdir()
        record = json.dumps(replace(SPEED, tokens_per_second=1e6).__dict__)
        (Path(values["output_dir"]) / "speed_test.json").write_text(record)
    command = [sys.executable, "-m", "teenytinyllama", "pretrain", "--config", str(tmp_path / "x.yaml"), *ranks]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(values["output_dir"])
    assert done.stdout.count("speed test") == (1 if ranks else 2)
    assert not list(folder.glob("speed-test*"))
    account = read_ledger(folder)
    assert account is not None
    assert ("speed test" in account.phases_kwh) == (not ranks)
    if not ranks:
        record = json.loads((folder / "speed_test.json").read_text())
        assert account.speed_test_kwh == pytest.approx(record["spent_kwh"], rel=1e-6) != 0
        assert account.repeated_kwh == 0
        assert len(account.starts) == 2
        assert "in 1 start" in write_energy_report(folder)
        assert read_jsonl(folder / "metrics.jsonl")[0]["kwh"] >= record["spent_kwh"]
    training = json.loads((folder / "run.json").read_text())["training"]
    decision = stored_decision(list_checkpoints(folder)[-1][1])
    if decision is None:
        assert not ranks
        assert training["tokens"] == pytest.approx(
            yaml.safe_load((folder / "config.yaml").read_text())["max_tokens"], abs=256
        )
    else:
        assert decision.end_step == training["steps"] > decision.step
    assert training["world_size"] == (2 if ranks else 1)
    rates = [r["learning_rate"] for r in read_jsonl(folder / "metrics.jsonl") if "loss" in r]
    assert rates[-1] < 0.5 * max(rates)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, "is complete" in again.stdout) == (0, True), again.stderr
    assert ("a cap ended it" in again.stdout) == (decision is not None)


# Refusals


@pytest.mark.parametrize(("changes", "message"), [
    ({"max_kwh": 0}, r"max_kwh=0: must be positive, in kWh"),
    ({"max_hours": -1}, r"max_hours=-1: must be positive, in hours"),
    ({"max_cost": 5}, r"max_cost=5, price=None: needs a price above 0, the USD for an hour of one GPU"),
    ({"price": -1}, r"price=-1: must be 0 or more, in USD for an hour of one GPU"),
    ({"hard_stop": True}, r"hard_stop=true: ends a run at a cap, and there is none. Give one of max_kwh, max_cost"),
    ({"max_kwh": 5, "lr_scheduler_type": "cosine"}, r"lr_scheduler_type=cosine: a cap would cut it off while .* Set "
     r"lr_scheduler_type: warmup_stable_decay, whose decay begins in time, or hard_stop: true"),
    ({"max_kwh": 5, "lr_scheduler_kwargs": {"num_decay_steps": 3}}, r"num_decay_steps cannot be given with a cap"),
    ({"max_kwh": 5, "max_tokens": None}, r"max_tokens: missing.* Only `ttl pretrain` finds it from a cap"),
])  # fmt: skip
def test_what_cannot_hold_is_refused(values: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(PretrainConfig, {**values, **changes})


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match=r"trainer_state\.json: cannot be read .* Delete that checkpoint"):
        stored_decision(tmp_path)
    assert stored_decision(None) is None
    assert CapCallback.__name__ == "CapCallback", "the name in the checkpoints"
