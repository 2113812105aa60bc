import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_pretrain import interrupted_run, losses, make_values, run

from teenytinyllama.arguments import build
from teenytinyllama.checks import InputError, RunFailedError
from teenytinyllama.gpus import describe_out_of_memory, is_out_of_memory, virtual_memory_bytes
from teenytinyllama.launching.launch import resolve_training
from teenytinyllama.planning.memory import MemoryNeed
from teenytinyllama.training import trials
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import HeldOutEvaluation
from teenytinyllama.training.run import out_of_memory_failure
from teenytinyllama.training.run_plan import plan_run
from teenytinyllama.training.speed import SpeedPlan
from teenytinyllama.training.trainer import Pretrainer
from teenytinyllama.training.trials import settle_micro_batch, try_rows

REPOSITORY = Path(__file__).resolve().parent.parent
Finished = tuple[Path, dict[str, Any]]


@pytest.fixture
def values(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return make_values(tmp_path, packed_folder, tokenizer_folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, packed_folder: Path, tokenizer_folder: Path) -> Finished:
    """A run whose micro-batch is whole steps of 8 rows."""
    values = make_values(tmp_path_factory.mktemp("finished"), packed_folder, tokenizer_folder)
    return run(values), values


def settled(values: dict[str, Any]) -> PretrainConfig:
    config = build(PretrainConfig, values)
    settle_micro_batch(config, plan_run(config))
    return config


def batch(folder: Path) -> tuple[int, str]:
    training = json.loads((folder / "run.json").read_text())["training"]
    return training["per_device_train_batch_size"], training["micro_batch_reason"]


def set_memory(monkeypatch: pytest.MonkeyPatch, free_bytes: int, row_bytes: int) -> None:
    """Make a rank see that much free memory and need that much a row."""
    monkeypatch.setattr(trials, "free_memory_bytes", lambda *arguments: free_bytes)
    monkeypatch.setattr(trials, "memory_need", lambda *arguments: MemoryNeed(0, row_bytes, 0))


def test_the_automatic_micro_batch_optimises_the_same(
    values: dict[str, Any], finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    rows, reason = batch(finished[0])
    assert rows == 8
    assert reason.startswith("chosen: about 0.")
    set_memory(monkeypatch, 1000, 300)
    folder = run(values)
    assert batch(folder) == (2, "chosen: about 0.00 of 0.0 GB free")
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=1e-5)
    assert "256 tokens a step = 2 rows x 4 accumulation x 1 ranks x 32 tokens (chosen: about" in capsys.readouterr().out


def test_a_trial_changes_no_number(
    values: dict[str, Any], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    tried = []

    def counted(*arguments: Any) -> str:
        tried.append(arguments[-1])
        return try_rows(*arguments)

    monkeypatch.setattr(trials, "try_rows", counted)
    monkeypatch.setattr(trials, "SURE_SHARE", 0.0)
    before = torch.get_rng_state()
    settled(values)
    assert torch.equal(torch.get_rng_state(), before)
    folder = run(values)
    assert tried == [8, 8]
    assert losses(folder) == losses(finished[0])


def test_a_trial_compiles_each_size_once_and_leaves_nothing(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second shape would make torch compile for all shapes: its rows, and then those of the training."""
    compiled = []

    def compile_graph(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(trials, "compiles_trial", lambda speed, device: speed.compile_layers)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compile_graph))
    config = build(PretrainConfig, {**values, "compile_layers": True})
    plan, need = plan_run(config), MemoryNeed(0, 0, 0)
    config.micro_batch_free_bytes = 10**10
    torch.compiler.reset()  # of what other tests compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert [try_rows(config, plan, need, rows) for rows in (8, 4)] == ["", ""]
    assert len(compiled) == 2, "a layer for each size"
    config = build(PretrainConfig, {**values, "compile_layers": False})
    assert try_rows(config, plan, need, 8) == ""
    assert len(compiled) == 2


def test_a_trial_on_a_cpu_compiles_nothing() -> None:
    compiled, plain = SpeedPlan("compiled", True, {}), SpeedPlan("whole", False, {})
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [trials.compiles_trial(*case) for case in ((compiled, gpu), (compiled, cpu), (plain, gpu))] == [
        True, False, False
    ]  # fmt: skip


def test_a_given_one_that_does_not_fit_gets_smaller(
    values: dict[str, Any], finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(trials, "SURE_SHARE", 0.0)
    monkeypatch.setattr(trials, "try_rows", lambda *a: "no room for 3 GiB" if a[-1] > 2 else "")
    folder = run({**values, "per_device_train_batch_size": 8})
    said = capsys.readouterr().out
    assert (
        "micro-batch 8 does not fit (no room for 3 GiB): 4\nmicro-batch 4 does not fit (no room for 3 GiB): 2" in said
    )
    assert batch(folder) == (2, "4 did not fit")
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=1e-5)


def test_one_row_that_does_not_fit_is_refused(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "SURE_SHARE", 0.0)
    monkeypatch.setattr(trials, "try_rows", lambda *arguments: "no room for 3 GiB")
    with pytest.raises(
        InputError,
        match="context=32: not even one row of so many tokens fits into memory .no room for 3 GiB; .*activation_checkpointing: true",
    ):
        settled(values)
    assert not Path(values["output_dir"]).exists()


def test_a_small_need_is_not_tried_and_zero_3_never(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "try_rows", lambda *arguments: pytest.fail("tried"))
    config = settled({**values, "per_device_train_batch_size": 4})
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (4, 2)
    assert config.micro_batch_reason == "as configured"
    monkeypatch.setattr(trials, "SURE_SHARE", 0.0)
    monkeypatch.setattr(trials, "zero_stage_of", lambda config: 3)
    assert settled(values).per_device_train_batch_size == 8


def test_the_launcher_does_not_choose(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "free_memory_bytes", lambda *arguments: pytest.fail("looked at"))
    assert resolve_training("pretrain", values, 2)["state"] == "new"


def test_a_resumed_run_keeps_its_micro_batch(
    values: dict[str, Any], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    interrupted_run(values, 5, monkeypatch)
    set_memory(monkeypatch, 1000, 110)  # a fresh choice would be 4
    folder = run(values)
    assert batch(folder) == (8, "as before")
    assert losses(folder) == losses(finished[0])


def test_a_resumed_run_may_change_its_micro_batch(
    values: dict[str, Any], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    interrupted_run(values, 5, monkeypatch)
    set_memory(monkeypatch, 1000, 300)
    folder = run(values)
    assert batch(folder)[0] == 2
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=1e-5)


@pytest.mark.parametrize("given", [None, 8])
def test_out_of_memory_in_training_is_remembered(
    values: dict[str, Any], finished: Finished, monkeypatch: pytest.MonkeyPatch, given: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    step = Pretrainer.training_step

    def failing(self: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        if self.state.global_step == 5 and self.args.per_device_train_batch_size == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
        return step(self, *arguments, **named)

    monkeypatch.setattr(Pretrainer, "training_step", failing)
    if given:
        values["per_device_train_batch_size"] = given
    with pytest.raises(
        RunFailedError,
        match="out of memory in training with micro-batches of 8 rows .no room for 2.00 GiB.. The same command goes on "
        "from checkpoint-4 with 4; tokens a step stay the same",
    ):
        run(values)
    folder = run(values)
    assert batch(folder)[0] == 4
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=1e-5)
    assert ("micro-batch 8 ran out of memory before (" in capsys.readouterr().out) == (given is not None)
    record = json.loads((folder / "environment.json").read_text())["micro_batch"]
    assert (record["rows"], record["failed_rows"]) == (4, 8)
    config = build(PretrainConfig, values)
    assert trials.earlier_choice(folder, config, record["free_bytes"] * 2)["failed_rows"] is None
    monkeypatch.setattr(trials, "device_name", lambda: "another")
    assert trials.earlier_choice(folder, config, record["free_bytes"]) == {}


@pytest.mark.slow
def test_ranks_that_run_out_in_the_same_moment_all_remember_it(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({"micro_batch": {"rows": 8}}))
    script = (
        "import pathlib, sys\n"
        "from teenytinyllama.training.run import remember_failed_rows\n"
        f"for _ in range(200): remember_failed_rows(pathlib.Path({str(path)!r}), 8)\n"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert json.loads(path.read_text()) == {"micro_batch": {"rows": 8, "failed_rows": 8}}
    assert [file.name for file in tmp_path.iterdir()] == ["environment.json"]


def test_out_of_memory_elsewhere_says_what_to_lower(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("MPS backend out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(HeldOutEvaluation, "__call__", failing)
        with pytest.raises(
            RunFailedError,
            match=r"in an evaluation .*Lower per_device_eval_batch_size .now 8.; the same command starts",
        ):
            run(values)
    environment = json.loads((Path(values["output_dir"]) / "environment.json").read_text())
    assert environment["micro_batch"]["failed_rows"] is None
    monkeypatch.setattr(Pretrainer, "training_step", failing)
    with pytest.raises(RunFailedError, match="with micro-batches of one row .*Set activation_checkpointing: true"):
        run({**values, "per_device_train_batch_size": 1})


def test_another_rank_than_the_first_says_it_itself(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:  # fmt: skip
    config = build(PretrainConfig, {**values, "per_device_train_batch_size": 1})
    for rank, said in (("0", ""), ("1", "failed: out of memory in training with micro-batches of one row")):
        monkeypatch.setenv("RANK", rank)
        out_of_memory_failure(MemoryError("x"), config, tmp_path)
        assert capsys.readouterr().err[: len(said) or None] == said


def test_what_running_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 60)
    assert is_out_of_memory(failure.value)
    assert describe_out_of_memory(failure.value).startswith("no room for 4611686018427387904 bytes")
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert describe_out_of_memory(MemoryError("std::bad_alloc")) == "MemoryError: std::bad_alloc"


def test_another_error_in_a_trial_is_not_hidden(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(trials, "SURE_SHARE", 0.0)
    monkeypatch.setattr(trials, "apply_speed", failing)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        settled(values)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_trial_keeps_to_the_free_memory(values: dict[str, Any]) -> None:
    shape = {**values["shape"], "intermediate_size": 4096}
    values |= {"shape": shape, "tokens_per_step": 32 * 1024, "max_tokens": 32 * 1024}
    config = build(PretrainConfig, values)
    plan, need = plan_run(config), MemoryNeed(0, 0, 0)
    config.micro_batch_free_bytes = 10**9
    limits, before = resource.getrlimit(resource.RLIMIT_AS), virtual_memory_bytes()
    assert try_rows(config, plan, need, 1024).startswith("no room for 536870912 bytes")  # 32768 x 4096 x 4
    assert try_rows(config, plan, need, 128) == ""
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert virtual_memory_bytes() - before < 5e8


def child(folder: Path, values: dict[str, Any], *arguments: str, ranks: str = "") -> subprocess.CompletedProcess[str]:
    """Run `tests/ranks/out_of_memory.py`, on two ranks if an accelerate file is named."""
    folder.mkdir(exist_ok=True)
    (folder / "x.yaml").write_text(yaml.safe_dump(values))
    script, options = REPOSITORY / "tests" / "ranks" / "out_of_memory.py", [*arguments, "--config", f"{folder}/x.yaml"]
    file = f"{REPOSITORY}/recipes/accelerate/{ranks}.yaml" if ranks else None
    code = (
        "import sys, pathlib; from teenytinyllama.launching.launch import launch\n"
        f"sys.exit(launch(pathlib.Path({str(script)!r}), {options!r}, {file!r}, {2 if ranks else None}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_real_lack_of_memory(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> None:
    given = make_values(tmp_path, packed_folder, tokenizer_folder)
    given |= {"shape": {**given["shape"], "intermediate_size": 2048}, "tokens_per_step": 32 * 1024, "max_steps": 1,
              "eval_strategy": "no", "sample_prompts": []}  # fmt: skip
    del given["max_tokens"]
    done = child(tmp_path, {**given, "per_device_train_batch_size": 1024}, "space", "2200")
    assert done.returncode == 0, done.stderr
    assert "micro-batch 1024 does not fit (no room for 268435456 bytes): 512\n" in done.stdout
    rows, reason = batch(tmp_path / "run")
    assert reason == f"{2 * rows} did not fit"
    assert rows in (256, 512)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks", ["cpu2", "zero1", "zero2"])
def test_all_ranks_follow_the_one_that_runs_out(ranks: str, values: dict[str, Any], finished: Finished) -> None:
    folder = Path(values["output_dir"])
    done = child(folder.parent, values, "rank", "2", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "micro-batch 4 does not fit (on another rank): 2\n" in done.stdout
    assert batch(folder) == (2, "4 did not fit")
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=2e-5)


@pytest.mark.slow
@pytest.mark.ranks
def test_one_rank_runs_out_in_training_and_the_same_command_goes_on(values: dict[str, Any], finished: Finished) -> None:
    folder = Path(values["output_dir"])
    done = child(folder.parent, values, "training", "6", ranks="zero2")
    assert done.returncode == 1
    assert "failed: out of memory in training with micro-batches of 4 rows (no room for 2.00 GiB). The same command " \
        "goes on from checkpoint-4 with 2" in done.stderr  # fmt: skip
    again = child(folder.parent, values, "rank", "8", ranks="zero2")
    assert again.returncode == 0, again.stderr
    assert f"resumed from {folder}/checkpoint-4" in again.stdout
    assert batch(folder)[0] == 2
    assert losses(folder) == pytest.approx(losses(finished[0]), abs=2e-5)
