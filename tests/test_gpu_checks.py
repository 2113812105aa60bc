"""The checks for a machine with a GPU, as far as they go without one: comparisons, tables, skipping, failing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_gpu_counter import KWH, FakeNvml, write_gpu_run

from teenytinyllama.energy.emissions import GridSettings
from teenytinyllama.energy.ledger import LedgerWriter
from teenytinyllama.energy.meter import EnergyMeter

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "benchmarks" / "gpu" / "checks.py"
if not SCRIPT.is_file():
    pytest.skip("the source distribution has no benchmarks", allow_module_level=True)
sys.path.insert(0, str(SCRIPT.parent))

import checks  # noqa: E402  (a script, found by the line above)
import run_differences  # noqa: E402


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def save_run(folder: Path, weights: dict[str, torch.Tensor], losses: dict[int, float]) -> Path:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    records = [{"step": step, "loss": loss, "grad_norm": loss / 2} for step, loss in losses.items()]
    lines = [*records, {"step": 2, "bits_per_byte": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def random_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(3, 4), "b": torch.randn(5), "scalar": torch.tensor(1.0)}


def test_equal_runs_are_equal(tmp_path: Path) -> None:
    one, other = (save_run(tmp_path / name, random_weights(), {1: 5.0, 2: 4.0}) for name in "ab")
    found = run_differences.compare_runs(one, other, 1)
    assert found["weights"] == {
        "equal": True, "num_tensors": 3, "num_different": 0, "first_different": None, "largest_difference": 0,
        "largest_relative_difference": 0,
    }  # fmt: skip
    assert found["loss"] == {"equal": True, "first_step_apart": None, "largest_difference": 0, "num_steps": 1}


def test_a_planted_difference_is_found(tmp_path: Path) -> None:
    whole = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([1.0])}
    changed = {"a": torch.tensor([1.5, -4.0]), "b": torch.tensor([1.0])}
    one = save_run(tmp_path / "a", whole, {1: 5.0, 2: 4.0, 3: 3.0})
    other = save_run(tmp_path / "b", changed, {1: 9.0, 2: 4.0, 3: 3.25})
    found = run_differences.compare_runs(one, other, 1)
    assert found["weights"] == {
        "equal": False, "num_tensors": 2, "num_different": 1, "first_different": "a", "largest_difference": 0.5,
        "largest_relative_difference": 0.125,
    }  # fmt: skip
    assert found["loss"] == {"equal": False, "first_step_apart": 3, "largest_difference": 0.25, "num_steps": 2}
    assert found["grad_norm"]["largest_difference"] == 0.125


def test_weights_are_compared_by_their_bits(tmp_path: Path) -> None:
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a": torch.tensor([0.0], dtype=torch.bfloat16)}, one)
    save_file({"a": torch.tensor([-0.0], dtype=torch.bfloat16)}, other)
    found = run_differences.compare_weights(one, other)
    assert (found["equal"], found["largest_difference"]) == (False, 0)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one, names, shapes = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file({"a": torch.zeros(2)}, one)
    save_file({"b": torch.zeros(2)}, names)
    save_file({"a": torch.zeros(3)}, shapes)
    with pytest.raises(ValueError, match="different names"):
        run_differences.compare_weights(one, names)
    with pytest.raises(ValueError, match=r"a: torch.Size\(\[2\]\)"):
        run_differences.compare_weights(one, shapes)
    with pytest.raises(ValueError, match=r"steps \[1\] of one run and \[2\]"):
        run_differences.compare_logged({1: {"loss": 1.0}}, {2: {"loss": 1.0}}, "loss")
    with pytest.raises(ValueError, match="cannot be compared"):  # nothing was logged after the stop
        run_differences.compare_logged({}, {}, "loss")


def test_the_table_of_resume_says_whether_runs_repeat_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = save_run(tmp_path / "a", random_weights(), {1: 5.0})
    other = save_run(tmp_path / "b", {**random_weights(), "b": torch.zeros(5)}, {1: 5.0})
    same, apart = run_differences.compare_runs(one, one, 0), run_differences.compare_runs(one, other, 0)
    figures = {"steps": 4, "checkpoint": 2, "resumed": same, "repeated": same}
    run_differences.show_resume(figures)
    printed = capsys.readouterr().out
    assert "| resumed after step 2 of 4, against going on | yes           | 0 of 3" in printed
    assert "twice" not in printed
    run_differences.show_resume({**figures, "resumed": apart, "repeated": apart})
    printed = capsys.readouterr().out
    assert "| no            | 1 of 3" in printed
    assert "The same steps twice are not the same to the bit here" in printed


def test_a_run_is_taken_back_to_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("checkpoint-4/model.safetensors", "checkpoint-8/complete.json", "model.safetensors", "run.json",
                 "metrics.jsonl"):  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    checks.restore(run, tmp_path / "again", 4)
    found = {
        path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*") if path.is_file()
    }
    assert found == {"checkpoint-4/model.safetensors", "metrics.jsonl"}


def test_energy_is_compared_with_the_counter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gpu_run(tmp_path / "a", [{"gpu_counter_kwh": 1.0}], 1.04, {"counter_reason": ""})
    found = checks.energy_figures(tmp_path / "a")
    assert (found["codecarbon_gpu_kwh"], found["counter_gpu_kwh"], found["status"]) == (1.04, 1.0, "agrees")
    assert found["difference_percent"] == pytest.approx(4)
    assert found["watts"] == {"GPU": pytest.approx(1040), "CPU": 0, "RAM": 0}
    checks.show_energy(found)
    assert "difference +4.00 %" in capsys.readouterr().out
    write_gpu_run(tmp_path / "b", [{}], 1.0, {"counter_reason": "a counter cannot be read (x)"})
    found = checks.energy_figures(tmp_path / "b")
    assert (found["codecarbon_gpu_kwh"], found["counter_gpu_kwh"], found["difference_percent"]) == (1.0, None, None)
    checks.show_energy(found)
    assert "a counter cannot be read (x)" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="codecarbon would count the GPU")
@pytest.mark.parametrize("with_counter", [True, False])
def test_no_gpu_is_missing_and_not_zero(with_counter: bool, tmp_path: Path) -> None:
    nvml = FakeNvml(0) if with_counter else None
    meter = EnergyMeter(tmp_path, GridSettings(), nvml=nvml)
    meter.start()
    ledger = LedgerWriter(tmp_path, 0, 0, meter.about())
    if nvml is not None:
        nvml.millijoules = [KWH]
    meter.stop()
    ledger.write(1, meter.reading(), last=True, counter_reason=meter.counter_reason)
    found = checks.energy_figures(tmp_path)
    assert found["watts"]["GPU"] is None
    assert found["watts"]["RAM"] > 0
    if with_counter:  # a GPU that codecarbon did not see
        assert (found["codecarbon_gpu_kwh"], found["counter_gpu_kwh"], found["status"]) == (0, 1, "differs")
    else:
        assert (found["codecarbon_gpu_kwh"], found["counter_gpu_kwh"], found["status"]) == (None, None, "no GPU")
        assert found["reason"] == "no NVIDIA GPU"


def test_the_difference_of_steps_stands_beside_that_of_like_runs() -> None:
    found = checks.difference([2.0, 2.0, 2.02], [2.01, 2.02, 2.05])
    assert found["difference_percent"] == pytest.approx(1)
    assert found["spread_percent"] == pytest.approx(2)
    assert checks.difference([2.0], [2.0])["spread_percent"] is None


def test_the_table_of_callbacks_gives_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    callback = {"seconds_a_step": 0.001, "seconds_an_evaluation": 0.1, "percent_of_a_step": 0.6}
    figures = {"callbacks": {"EnergyCallback": callback}, "percent_of_a_step": 0.6, "step_seconds": 1 / 6,
               "percent_between_evaluations": 0.2, "steps_a_run": 45, "goal_percent": 0.5, **checks.difference([1.0], [1.001])}  # fmt: skip
    checks.show_callbacks(figures)
    printed = capsys.readouterr().out
    assert "| EnergyCallback | 1         | 0.6         | 100" in printed
    assert "threads not timed): 0.200 % of a step of 0.1667 s; under 0.5 %: reached" in printed
    assert "two checkpoints in 45 steps: 0.600 % of a step of 0.1667 s; under 0.5 %: missed" in printed
    assert "+0.100 %; one run of each kind" in printed


class Steps:
    """Parts that say what they did, on a clock that they move themselves."""

    def __init__(self) -> None:
        self.now, self.shown, self.saved = 100.0, [], []

    def part(self, seconds: float, error: Exception | None = None) -> checks.Part:
        def measure() -> dict[str, Any]:
            self.now += seconds
            if error is not None:
                raise error
            return {"figure": seconds}

        return checks.Part(measure, lambda figures: self.shown.append(figures["figure"]))

    def run(self, parts: dict[str, checks.Part], minutes: float) -> dict[str, Any]:
        found = checks.run_parts(parts, minutes, lambda known: self.saved.append(json.dumps(known)), lambda: self.now)
        return dict(found)


def test_what_would_begin_after_the_budget_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    found = steps.run({"a": steps.part(59), "b": steps.part(100), "c": steps.part(1), "d": steps.part(1)}, 1)
    assert list(found["parts"]) == ["a", "b"]  # b begins in time and may end later
    assert found["skipped"] == ["c", "d"]
    assert steps.shown == [59, 100]
    assert "## c\nskipped: 1 minutes are over" in capsys.readouterr().out
    assert json.loads(steps.saved[0])["parts"] == {"a": {"figure": 59, "part_seconds": 59}}
    assert json.loads(steps.saved[-1]) == found


def test_a_part_that_fails_does_not_lose_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    no_table = checks.Part(steps.part(3).measure, lambda figures: print(figures["missing"]))
    found = steps.run({"a": steps.part(1), "b": steps.part(2, OSError("gone\nlog")), "c": no_table, "d": steps.part(4)},
                      1)  # fmt: skip
    assert steps.shown == [1, 4]
    assert found["parts"]["b"] == {"error": "OSError: gone\nlog", "part_seconds": 2}
    assert found["parts"]["c"] == {"figure": 3, "error": "KeyError: 'missing'", "part_seconds": 3}
    assert found["parts"]["d"] == {"figure": 4, "part_seconds": 4}
    assert "| b      | OSError: gone |" in capsys.readouterr().out
    assert len(steps.saved) == 4


def test_generation_writes_all_its_tokens(tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = checks.Inputs(checks.TINY, str(tokenizer_folder), "", 1)
    cases = checks._time_generation(inputs, "tiny", ("plain", "static cache"))
    assert [(case["way"], case["batch"], case["new_tokens"]) for case in cases] == [
        ("plain", 1, 8), ("plain", 2, 16), ("static cache", 1, 8), ("static cache", 2, 16)
    ]  # fmt: skip
    assert all(case["tokens_per_second"] == pytest.approx(case["new_tokens"] / case["seconds"][0]) for case in cases)
    if not torch.cuda.is_available():
        assert all(case["peak_gpu_gb"] is None for case in cases)
    checks.show_generation({"cases": cases})
    assert capsys.readouterr().out.count("| tiny ") == 4


@pytest.mark.slow
def test_the_script_runs_on_a_cpu_and_keeps_what_it_has(tmp_path: Path, tokenizer_folder: Path) -> None:
    written = tmp_path / "checks.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--repeats", "1", "--parts", "generation", "energy"]
    command += ["--tokenizer", str(tokenizer_folder), "--packed", str(tmp_path / "nothing"), "--json", str(written)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = json.loads(written.read_text())
    assert done.returncode == 1, done.stderr
    assert list(found["parts"]) == ["energy", "generation"]  # by importance
    assert found["parts"]["energy"]["error"].startswith("RuntimeError: ttl pretrain ended with 2:")
    assert "packed" in found["parts"]["energy"]["error"]  # why
    assert [case["way"] for case in found["parts"]["generation"]["cases"]] == ["plain", "plain", "ttl chat"]
    assert "| tiny   | ttl chat | 1     |" in done.stdout
    assert "failed: energy; skipped: none" in done.stdout
