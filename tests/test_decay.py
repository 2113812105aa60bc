"""Branches of warmup_stable_decay, and a decay that begins early: equal to the planned run, and what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pretrain import interrupted_run, losses, make_values
from transformers import TrainerCallback, trainer_utils

from teenytinyllama.arguments import build, check_types
from teenytinyllama.checkpointing.checkpoints import complete_checkpoints, lease, recorded_branch
from teenytinyllama.checks import InputError, StoppedResumable
from teenytinyllama.publishing.card import render_model_card
from teenytinyllama.publishing.energy_report import write_energy_report
from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training import pretrain as pretrain_module
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.decay import decay_steps, planned_decay_steps, stable_checkpoints
from teenytinyllama.training.metrics import read_jsonl
from teenytinyllama.training.pretrain import build_run, pretrain
from teenytinyllama.training.run_plan import pack_inputs, plan_run

REPOSITORY = Path(__file__).resolve().parent.parent
STEP = 256  # tokens


def run(values: dict[str, Any]) -> Path:
    """Train as `ttl pretrain` does in its ranks."""
    values = pack_inputs(check_types(PretrainConfig, values))
    return pretrain(build(PretrainConfig, values), values)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as found:
        plan_run(build(PretrainConfig, pack_inputs(check_types(PretrainConfig, values))))
    return str(found.value)


def weights(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


def rates(folder: Path) -> list[float]:
    return [record["learning_rate"] for record in read_jsonl(folder / "metrics.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def planned(
    tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path
) -> Callable[..., dict[str, Any]]:
    def values(folder: Path, **changes: Any) -> dict[str, Any]:
        usual = make_values(folder, packed_folder, tokenizer_folder)
        return {**usual, "lr_scheduler_type": "warmup_stable_decay", "decay_fraction": 0.25, "warmup_steps": 0.1,
                "max_tokens": 24 * STEP, "save_steps": 4, "save_total_limit": None, "eval_steps": 12, "cloze_items": 0,
                **changes}  # fmt: skip

    return values


@pytest.fixture(scope="module")
def stem(tmp_path_factory: pytest.TempPathFactory, planned: Callable[..., dict[str, Any]]) -> Path:
    """A run of 24 steps: 3 of warm-up, the decay after step 18, a checkpoint every fourth. Tests only read it."""
    return run(planned(tmp_path_factory.mktemp("stem")))


def branch(source: Path, output: Path, steps: int, **changes: Any) -> dict[str, Any]:
    return {"decay_from": str(source), "max_tokens": steps * STEP, "output_dir": str(output), **changes}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.75, 0.9])
def test_a_decay_that_begins_anywhere_has_its_share_of_all_steps(share: float) -> None:
    for step in range(1, 3000, 7):
        steps = decay_steps(step, share)
        assert planned_decay_steps(step + steps, share) == steps


@pytest.mark.slow
def test_a_branch_is_the_planned_run(
    stem: Path, planned: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter, longer = (run(planned(tmp_path / f"{n}", max_tokens=n * STEP, warmup_steps=3)) for n in (12, 32))
    capsys.readouterr()
    for checkpoint, steps, other in ((8, 12, shorter), (8, 32, longer), (16, 32, longer)):
        folder = run(branch(stem / f"checkpoint-{checkpoint}", tmp_path / f"{checkpoint}-{steps}", steps))
        out = capsys.readouterr().out
        assert (
            f"it equals the run planned with max_tokens: {steps * STEP}, tokens_per_step: 256, warmup_steps: 3" in out
        )
        assert weights(folder) == weights(other)
        assert losses(folder) == losses(other)[checkpoint:]
        assert rates(folder) == rates(other)[checkpoint:]
        manifest, plain = (json.loads((place / "run.json").read_text()) for place in (folder, other))
        assert manifest["results"]["final"] == plain["results"]["final"]
        assert manifest["training"]["tokens"] == plain["training"]["tokens"]
    assert f"resumed from {stem}/checkpoint-16" in out
    assert weights(shorter) != weights(longer)


@pytest.mark.slow
def test_a_branch_of_a_running_stem_with_another_decay(
    planned: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = planned(tmp_path / "stem", max_tokens=1000 * STEP, warmup_steps=2)
    interrupted_run(values, 9, monkeypatch)
    source = Path(values["output_dir"]) / "checkpoint-8"
    other = {"decay_fraction": 0.5, "lr_scheduler_kwargs": {"decay_type": "1-sqrt"}}
    folder = run(branch(source, tmp_path / "branch", 18, **other))
    assert weights(folder) == weights(run(planned(tmp_path, max_tokens=18 * STEP, warmup_steps=2, **other)))
    falling = rates(folder)[1:]
    assert falling[0] > falling[1] > falling[-1] > 0


@pytest.mark.slow
def test_a_branch_resumes_without_its_run(
    stem: Path, planned: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(stem, tmp_path / "copy")
    values = branch(copy / "checkpoint-8", tmp_path / "branch", 16, warmup_steps=0.1)
    resolved = pack_inputs(check_types(PretrainConfig, values))
    assert resolved["warmup_steps"] == 3, "the steps of its run, not a tenth of 16"
    interrupted_run(resolved, 10, monkeypatch)
    before = recorded_branch(tmp_path / "branch")
    shutil.rmtree(copy)
    folder = run(values)
    assert weights(folder) == weights(run(planned(tmp_path / "plain", max_tokens=16 * STEP, warmup_steps=3)))
    assert recorded_branch(folder) == before == json.loads((folder / "run.json").read_text())["branch"]
    assert "checkpoint-8" in str(before)
    assert "is complete" not in refusal({**values, "learning_rate": 1.0})


def test_a_checkpoint_that_is_kept_under_another_name(
    stem: Path, planned: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    copy = shutil.copytree(stem, tmp_path / "copy")
    (copy / "checkpoint-8").rename(copy / "keep-8")
    folder = run(branch(copy / "keep-8", tmp_path / "branch", 12))
    assert weights(folder) == weights(run(branch(stem / "checkpoint-8", tmp_path / "other", 12)))


def test_what_a_branch_builds_on(stem: Path, tmp_path: Path) -> None:
    first = run(branch(stem / "checkpoint-8", tmp_path / "first", 24))
    second = run(branch(first / "checkpoint-12", tmp_path / "second", 16))
    marker = [json.loads((place / "complete.json").read_text())["kwh"]
              for place in (stem / "checkpoint-8", first / "checkpoint-12")]  # fmt: skip
    record = json.loads((second / "run.json").read_text())["branch"]
    assert record["kwh"] == pytest.approx(sum(marker))
    assert (record["step"], record["tokens"]) == (12, 12 * STEP)
    training = json.loads((second / "run.json").read_text())["training"]
    assert training["tokens"] == 16 * STEP
    assert training["tokens_per_second"] == pytest.approx(4 * STEP / training["seconds"]), "of its own steps"
    assert [step for step, _ in complete_checkpoints(second)] == [16]
    card, report = render_model_card(second), write_energy_report(second)
    assert "| Branch | from step 12 of another run; time and speed are those of the steps since |" in card
    assert re.search(r"\| Before the branch \| \S+ kWh, \S+ kg CO₂e, up to step 12 of the run that", card)
    assert re.search(r"\| Before the branch \| \S+ kWh, \S+ kg CO2e, up to step 12 of another run", report)
    grams = float(re.search(r"emissions: (\S+)", card)[1])  # type: ignore[index]
    own = json.loads((second / "emissions.json").read_text())["emissions_kg"]
    assert grams == pytest.approx(1000 * (own + record["kg_co2e"]), rel=1e-3), "the Hub's figure is of all steps"
    record["kwh"] = record["kg_co2e"] = None  # of a checkpoint that an early version saved
    manifest = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**manifest, "branch": record}))
    assert "not on record; the rows above are of the steps since the branch alone" in render_model_card(second)
    (second / "run.json").write_text(json.dumps({**manifest, "branch": {**record, "step": "x"}}))
    with pytest.raises(InputError, match=r"key branch\.step is 'x', but must be a finite int"):
        render_model_card(second)


@pytest.mark.parametrize(("checkpoint", "changes", "message"), [
    (20, {}, r"decay_from=\S+: is of step 20, and the rate of its run falls after step 18\. Give a checkpoint of that "
             r"step or before: \S+checkpoint-4, \S+checkpoint-8, \S+checkpoint-12, \S+checkpoint-16\."),
    (24, {}, r"is of step 24, and the rate of its run falls after step 18"),
    (16, {"max_tokens": 20 * STEP}, r"max_tokens=5120: the decay of a run of that length begins after step 15, before the "
                                    r"checkpoint of step 16\. Give at least 5,376 tokens, or an earlier checkpoint: "
                                    r"\S+checkpoint-4, \S+checkpoint-8, \S+checkpoint-12\."),
    (16, {"max_tokens": STEP}, r"begins after step 0, before the checkpoint of step 16\. .*: none is there\."),
    (8, {"learning_rate": 1e-4, "seed": 7}, r"decay_from=\S+: its run differs: learning_rate \(there 0\.003, now 0\.0001\)"
                                            r"; seed \(there 42, now 7\)\. A branch keeps what decided the weights so far"),
    (8, {"tokens_per_step": 512}, r"its run differs: tokens_per_step \(there 256, now 512\)"),
    (8, {"shape": {"hidden_size": 64}}, r"its run differs: shape \(there .*, now \{'hidden_size': 64\}\)"),
    (8, {"optimizer": "muon"}, r"its run differs: optimizer \(there adamw, now muon\)"),
    (8, {"warmup_steps": 5}, r"its run differs: warmup_steps \(there 3, now 5\)"),
    (8, {"warmup_steps": 0.2}, r"its run differs: warmup_steps \(there 3, now 4\)"),
    (8, {"lr_scheduler_kwargs": {"min_lr_ratio": 0.1}}, r"lr_scheduler_kwargs \(there \{\}, now \{'min_lr_ratio': 0\.1\}\)"),
    (8, {"lr_scheduler_type": "cosine"}, r"lr_scheduler_type=cosine: decay_from=\S+ needs warmup_stable_decay"),
    (8, {"max_tokens": None}, r"max_tokens: missing\. Give the tokens of the finished branch"),
    (8, {"output_dir": None}, r"output_dir: missing\. Give a new folder for the branch"),
])  # fmt: skip
def test_what_is_no_branch_is_refused(
    stem: Path, tmp_path: Path, checkpoint: int, changes: dict[str, Any], message: str
) -> None:
    values = branch(stem / f"checkpoint-{checkpoint}", tmp_path / "branch", 20, **changes)
    with pytest.raises(InputError, match=message):
        plan_run(build(PretrainConfig, pack_inputs(check_types(PretrainConfig, values))))
    assert not (tmp_path / "branch").exists()


def test_places_that_are_no_source_are_refused(
    stem: Path, planned: Callable[..., dict[str, Any]], tmp_path: Path, packed_folder: Path
) -> None:
    assert f"is a run. Give one of its checkpoints: {stem}/checkpoint-4, " in refusal(branch(stem, tmp_path / "x", 12))
    assert f"no such folder. Give a checkpoint in the folder of a run: {stem}/checkpoint-4, " in refusal(
        branch(stem / "checkpoint-5", tmp_path / "x", 12)
    )
    assert "is the folder of the run that decay_from" in refusal(branch(stem / "checkpoint-8", stem, 12))
    alone = shutil.copytree(stem / "checkpoint-8", tmp_path / "checkpoint-8")
    assert "has no config.yaml and environment.json of a run" in refusal(branch(alone, tmp_path / "x", 12))
    copy = shutil.copytree(stem, tmp_path / "copy")
    (copy / "checkpoint-8" / "complete.json").unlink()
    assert "has no complete.json" in refusal(branch(copy / "checkpoint-8", tmp_path / "x", 12))
    (copy / "checkpoint-4" / "trainer_state.json").write_text("{")
    assert "trainer_state.json: cannot be read" in refusal(branch(copy / "checkpoint-4", tmp_path / "x", 12))
    (copy / "checkpoint-12" / "optimizer" / "state.json").unlink()
    with pytest.raises(
        InputError, match=r"decay_from=\S+checkpoint-12: optimizer/state\.json is missing\. Give another"
    ):
        run(branch(copy / "checkpoint-12", tmp_path / "y", 16))
    cosine = run(planned(tmp_path / "cosine", lr_scheduler_type="cosine", max_tokens=4 * STEP))
    assert "its run has lr_scheduler_type=cosine, whose rate" in refusal(
        branch(cosine / "checkpoint-4", tmp_path / "x", 12)
    )
    assert "holds a run that is no branch" in refusal(branch(stem / "checkpoint-8", cosine, 12))
    other = shutil.copytree(packed_folder, tmp_path / "packed")
    manifest = json.loads((other / "run.json").read_text())
    manifest["hashes"]["train.npy"] = "0" * 64
    (other / "run.json").write_text(json.dumps(manifest))
    values = branch(stem / "checkpoint-8", tmp_path / "x", 12, packed=str(other))
    assert "its run differs: packed_sha256 (there" in refusal(values)


@pytest.mark.slow
def test_a_run_that_decayed_before_it_was_made_longer_has_no_branches_from_then_on(
    planned: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(planned(tmp_path, max_tokens=8 * STEP, warmup_steps=2))
    run(planned(tmp_path, max_tokens=20 * STEP, warmup_steps=2))
    assert (
        "branches   other lengths, checkpoint-4 from 1,280 tokens on: ttl" in capsys.readouterr().out.splitlines()[-1]
    )
    assert "is of step 12, and the rate of its run falls after step 6" in refusal(
        branch(folder / "checkpoint-12", tmp_path / "x", 40)
    )


@pytest.mark.slow
def test_a_branch_of_a_run_that_was_made_longer_has_the_warm_up_that_the_run_had(
    planned: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = planned(tmp_path / "stem", max_tokens=40 * STEP, save_steps=0.1)
    interrupted_run(values, 9, monkeypatch)
    longer = {**values, "max_tokens": 80 * STEP}
    interrupted_run(longer, 17, monkeypatch)
    source = Path(values["output_dir"]) / "checkpoint-16"
    said: list[str] = []
    monkeypatch.setattr(trainer_utils.logger, "warning_once", said.append)
    folder = run(branch(source, tmp_path / "branch", 24, warmup_steps=0.1))
    assert said == []
    assert weights(folder) == weights(run(planned(tmp_path / "planned", warmup_steps=4)))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["warmup_steps"], config["save_steps"], config["eval_steps"]) == (4, 8, 12)


def test_rows_that_are_given_as_texts_are_those_of_the_run(stem: Path, tmp_path: Path, corpus_folder: Path) -> None:
    packing = {"inputs": [str(corpus_folder)], "context": 32}
    values = branch(stem / "checkpoint-8", tmp_path / "branch", 12, validation_fraction=0.1, **packing)
    resolved = pack_inputs(check_types(PretrainConfig, values))
    assert resolved["packed"] == str(tmp_path / "branch" / "packed")
    assert plan_run(build(PretrainConfig, resolved)).state == "new"
    other = branch(stem / "checkpoint-8", tmp_path / "other", 12, validation_fraction=0.2, **packing)
    assert "its run differs: packed_sha256 (there" in refusal(other)


def test_the_checkpoint_is_kept_while_it_is_read(stem: Path, tmp_path: Path) -> None:
    values = branch(stem / "checkpoint-8", tmp_path / "branch", 12)
    with lease(stem / "checkpoint-8"), pytest.raises(InputError, match="another process holds this checkpoint"):
        run(values)
    run(values)
    with lease(stem / "checkpoint-8"):
        pass


@pytest.mark.slow
def test_a_run_says_which_lengths_can_be_branched_off(
    stem: Path, planned: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(planned(tmp_path, save_total_limit=2))
    out = capsys.readouterr().out
    limit = "save_total_limit=2 keeps the newest 2 checkpoints alone"
    assert (
        f"branches   of any length, off checkpoints up to step 18; {limit}: set null, or keep one under another name"
        in out
    )
    last = out.rstrip().splitlines()[-1]
    assert last == f"branches   none: no checkpoint of step 18 or before is left; {limit}"
    assert [step for step, _ in complete_checkpoints(folder)] == [20, 24]
    folder = run(branch(stem / "checkpoint-12", tmp_path / "all", 24))
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last == (
        f"branches   other lengths, checkpoint-16 from {21 * STEP:,} tokens on: ttl pretrain --decay_from "
        f"{folder}/checkpoint-16 --max_tokens N --output_dir NEW"
    )


def test_of_many_checkpoints_the_first_and_the_last_are_named(
    planned: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = run(planned(tmp_path, save_steps=2, eval_strategy="no"))
    assert [step for step, _ in stable_checkpoints(folder, 18)] == [2, 10, 12, 14, 16, 18]


def test_a_run_without_checkpoints_promises_no_branches(
    planned: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(planned(tmp_path, save_strategy="no"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("branches")]
    assert lines == ["branches   none: save_strategy=no leaves no checkpoints to branch off"] * 2


# A decay that begins early


class AskAt(TrainerCallback):
    """Make the file that asks for the decay in the middle of a step; then go on, or stop with a signal later."""

    def __init__(self, folder: Path, step: int, stop: int | None = None) -> None:
        self.folder, self.step, self.stop = folder, step, stop

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            (self.folder / "decay_now").touch()
        if state.global_step + 1 == self.stop:
            os.kill(os.getpid(), signal.SIGUSR1)


def run_asked(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], step: int, stop: int | None = None) -> Path:
    def built(*arguments: Any) -> Any:
        made = build_run(*arguments)
        made.trainer.add_callback(AskAt(Path(values["output_dir"]), step, stop))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "build_run", built)
        if stop is None:
            return run(values)
        with pytest.raises(StoppedResumable):
            run(values)
        return Path(values["output_dir"])


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory, planned: Callable[..., dict[str, Any]]) -> Path:
    """The planned run of 11 steps, whose decay begins after step 8."""
    return run(planned(tmp_path_factory.mktemp("eleven"), max_tokens=11 * STEP, warmup_steps=3))


@pytest.mark.slow
def test_a_decay_that_is_asked_for_is_the_planned_run_and_the_branch(
    planned: Callable[..., dict[str, Any]], stem: Path, eleven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    values = planned(tmp_path)
    folder = run_asked(monkeypatch, values, 8)
    out = capsys.readouterr().out
    assert f"decay now  `touch {folder}/decay_now` begins the decay at the next logging step" in out
    assert "decay      decay_now asked for the decay after step 8; from step 8 on: the rate falls until step 11" in out
    assert weights(folder) == weights(eleven) == weights(run(branch(stem / "checkpoint-8", tmp_path / "branch", 11)))
    assert losses(folder) == losses(eleven)
    assert "checkpoint-4 from 1,280 tokens on, checkpoint-8 from 2,816 tokens on: ttl" in out.splitlines()[-1]
    training = json.loads((folder / "run.json").read_text())["training"]
    assert (training["steps"], training["ended_as_asked"]) == (11, "decay_now asked for the decay after step 8")
    assert "ended_by_cap" not in training
    again = run(branch(folder / "checkpoint-8", tmp_path / "of-it", 11))
    assert weights(again) == weights(eleven), "its warm-up was a tenth of the planned 24 steps"
    capsys.readouterr()
    assert weights(run(values)) == weights(eleven), "the same command does not make it longer"
    assert "is complete; decay_now asked for the decay after step 8. To go on" in capsys.readouterr().out
    assert "is of step 11, and the rate of its run falls after step 8" in refusal(
        branch(folder / "checkpoint-11", tmp_path / "late", 40)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("save_steps", "stop", "resumed"), [(100, 10, 10), (4, 10, 8), (4, 10, 4)])
def test_a_decay_that_was_asked_for_survives_a_kill(
    planned: Callable[..., dict[str, Any]], eleven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], save_steps: int, stop: int, resumed: int,
) -> None:  # fmt: skip
    values = planned(tmp_path, save_steps=save_steps)
    folder = run_asked(monkeypatch, values, 8, stop)
    for step, path in complete_checkpoints(folder):  # what a kill leaves: nothing after its last checkpoint
        if step > resumed:
            shutil.rmtree(path)
    assert [step for step, _ in complete_checkpoints(folder)][-1:] == [resumed]
    capsys.readouterr()
    run(values)
    assert weights(folder) == weights(eleven)
    assert losses(folder) == losses(eleven)
    out = capsys.readouterr().out
    assert f"resumed from {folder}/checkpoint-{resumed}" in out
    assert "length     11 steps" in out
    assert json.loads((folder / "run.json").read_text())["training"]["ended_as_asked"]


@pytest.mark.slow
def test_a_decay_that_is_asked_for_too_early_or_too_late(
    planned: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = run_asked(monkeypatch, planned(tmp_path / "early", warmup_steps=3), 1)
    out = capsys.readouterr().out
    assert out.count("decay_now: it begins once the warm-up is over, after step 3") == 1
    assert "decay_now asked for the decay after step 3; from step 3 on: the rate falls until step 4" in out
    same = run(planned(tmp_path / "planned", max_tokens=4 * STEP, warmup_steps=3))
    assert weights(folder) == weights(same)
    values = planned(tmp_path / "late", max_tokens=8 * STEP, warmup_steps=3)
    assert json.loads((run_asked(monkeypatch, values, 7) / "run.json").read_text())["training"]["steps"] == 8
    assert capsys.readouterr().out.count("decay_now: the rate falls already, as planned since step 6") == 1


@pytest.mark.slow
def test_a_decay_of_given_steps_can_be_asked_for_and_a_cap_beside_it(
    planned: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"lr_scheduler_kwargs": {"num_decay_steps": 4}, "warmup_steps": 3}
    folder = run_asked(monkeypatch, planned(tmp_path / "asked", **steps), 8)
    assert weights(folder) == weights(run(planned(tmp_path / "planned", max_tokens=12 * STEP, **steps)))
    capped = run_asked(monkeypatch, planned(tmp_path / "capped", max_kwh=1e6, warmup_steps=3), 8)
    assert json.loads((capped / "run.json").read_text())["training"]["steps"] == 11


@pytest.mark.slow
def test_a_damaged_request_is_refused(planned: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: Any) -> None:
    values = planned(tmp_path)
    folder = run_asked(monkeypatch, values, 8, 9)
    shutil.rmtree(folder / "checkpoint-9")
    shutil.rmtree(folder / "checkpoint-8")
    (folder / "decay_now").write_text('{"step": 8}')
    with pytest.raises(InputError, match=r"decay_now: holds no decision \(.*\)\. Delete it, or empty it to ask"):
        run(values)
    (folder / "decay_now").unlink()
    assert json.loads((run(values) / "run.json").read_text())["training"]["steps"] == 24, "deleted: as planned"


def ttl(*words: str) -> str:
    """Run `ttl pretrain` on two ranks and return its output."""
    command = [sys.executable, "-m", "teenytinyllama", "pretrain", *words, "--accelerate", "cpu2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_branch_on_two_ranks(planned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(planned(tmp_path, warmup_steps=2, save_total_limit=5)))
    words = ["--config", str(tmp_path / "run.yaml")]
    ttl(*words)
    ttl(*words, "--max_tokens", str(12 * STEP), "--output_dir", str(tmp_path / "planned"))
    source = ["--decay_from", str(tmp_path / "run" / "checkpoint-8"), "--max_tokens", str(12 * STEP)]
    out = ttl(*source, "--output_dir", str(tmp_path / "branch"))
    assert "it equals the run planned with" in out
    assert weights(tmp_path / "branch") == weights(tmp_path / "planned")
    again = ttl(*source, "--output_dir", str(tmp_path / "branch"))
    assert "is complete" in again


@pytest.mark.slow
def test_two_ranks_begin_the_decay_at_the_same_step(planned: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    values = planned(
        tmp_path, max_tokens=600 * STEP, warmup_steps=2, save_steps=100, eval_steps=1000, sample_prompts=[]
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**values, "save_total_limit": 1}))
    folder, words = tmp_path / "run", ["--config", str(tmp_path / "run.yaml")]
    with ThreadPoolExecutor() as threads:
        running = threads.submit(ttl, *words)
        while not (folder / "metrics.jsonl").exists() and not running.done():
            time.sleep(0.1)
        (folder / "decay_now").touch()
        out = running.result()
    decision = json.loads((folder / "decay_now").read_text())
    assert f"decay_now asked for the decay after step {decision['step']};" in out
    ttl(*words, "--max_tokens", str(decision["end_step"] * STEP), "--output_dir", str(tmp_path / "planned"))
    assert weights(folder) == weights(tmp_path / "planned")
