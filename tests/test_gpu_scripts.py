"""The scripts for a machine with a GPU: their arithmetic, their tables, and what they do when a case fails."""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from teenytinyllama.checks import InputError, RunFailedError

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "benchmarks" / "gpu"
if not SCRIPTS.is_dir():
    pytest.skip("the source distribution has no benchmarks", allow_module_level=True)
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

import bare_loop  # noqa: E402  (scripts, found by the line above)
import carry  # noqa: E402
import real_run  # noqa: E402
import speed  # noqa: E402

# The curve of a run.


def record(step: int, **more: float) -> dict[str, Any]:
    return {"step": step, "tokens": 1000 * step, **more}


def make_run(folder: Path, scores: list[float], tokens_per_second: float = 500.0) -> Path:
    """A run folder as `ttl pretrain` leaves it, with ten steps of 1,000 tokens between evaluations."""
    folder.mkdir()
    lines = [record(0, bits_per_byte=3.0, kwh=0.0)]
    for number, score in enumerate(scores, 1):
        lines.append(record(10 * number, loss=2.0, tokens_per_second=tokens_per_second))
        lines.append(record(10 * number, bits_per_byte=score, kwh=number * 1e-3))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {"tokens": 10_000 * len(scores), "tokens_per_second": tokens_per_second, "mfu": 0.5, "seconds": 99.0,
                "peak_gpu_memory_gb": None, "per_device_train_batch_size": 4, "speed": "fast", "hardware": "a GPU"}  # fmt: skip
    final = {"bits_per_byte": scores[-1], "perplexity": 9.0}
    (folder / "run.json").write_text(json.dumps({"training": training, "results": {"final": final}}))
    return folder


def test_a_curve_has_seconds_and_joules(tmp_path: Path) -> None:
    curve = real_run.read_curve(make_run(tmp_path / "run", [2.0, 1.5]))
    assert [point["seconds"] for point in curve] == [0, 20, 40]
    assert [point["joules"] for point in curve] == pytest.approx([0, 3600, 7200])
    assert [point["bits_per_byte"] for point in curve] == [3.0, 2.0, 1.5]


def test_the_last_score_of_a_step_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(10, bits_per_byte=1.9, kwh=0.002)) + "\n")
    assert [point["bits_per_byte"] for point in real_run.read_curve(folder)] == [3.0, 1.9]


def test_a_score_is_reached_on_the_line_between_two_evaluations(tmp_path: Path) -> None:
    curve = real_run.read_curve(make_run(tmp_path / "run", [2.0, 1.5]))
    assert real_run.reach(curve, 1.75, "seconds") == pytest.approx(30)
    assert real_run.reach(curve, 1.75, "tokens") == pytest.approx(15_000)
    assert real_run.reach(curve, 1.0, "seconds") is None


def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path / "ours", [2.0, 1.0]), make_run(tmp_path / "ancestor", [2.5, 1.5], 250.0)]
    figures = real_run.report(folders, tmp_path / "plot.png")
    out = capsys.readouterr().out
    assert "ours is at ancestor's last score (1.5000) after 75.0% of its tokens" in out
    assert "ours is at ancestor's last score (1.5000) after 37.5% of its seconds" in out
    assert figures["ancestor"]["training_seconds"] == 80
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_recipes_are_the_shipped_one_and_the_paper_s() -> None:
    arguments = argparse.Namespace(tokenizer="t", packed="p", output_dir="o", tokens=105e6)
    ours, ancestor = (real_run.values_of(name, arguments) for name in ("ours", "ancestor"))
    assert (ours["learning_rate"], ours["tokens_per_step"], ours["lr_scheduler_type"]) == (
        2.0e-3, 262_144, "warmup_stable_decay")  # fmt: skip
    assert ours["warmup_steps"] == pytest.approx(500 / 12_500)
    assert (ancestor["tokens_per_step"], ancestor["per_device_train_batch_size"]) == (8192, 4)
    assert ours["max_tokens"] == ancestor["max_tokens"] == 105_000_000
    assert ours["eval_max_tokens"] == ancestor["eval_max_tokens"]


# Speed.


def test_mfu_is_that_computed_by_hand() -> None:
    # 6 x 162,417,408 + 12 x 12 x 768 x 2,048 FLOPs a token.
    found = speed.with_mfu({"tokens_per_second": 427_754.0}, "160m", 2048, 989.4e12)
    assert found["mfu"] == pytest.approx(427_754 * 1_200_996_864 / 989.4e12)
    assert round(100 * found["mfu"], 1) == 51.9


@pytest.mark.parametrize(
    ("tokens_per_second", "verdict"), [(427_754.0, "goal reached"), (350_000.0, "floor reached"), (1e5, "missed")]
)
def test_goals_are_judged(tokens_per_second: float, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"tokens_per_second": tokens_per_second, "rows": 32, "mfu": 0.5, "peak_memory_gb": 33.0}
    speed.show({"ours": case, "liger": {"error": "out of memory"}, "bare": {**case, "tokens_per_second": 4e5}}, "160m")
    out = capsys.readouterr().out
    assert out.strip().endswith(verdict)
    assert "out of memory" in out
    assert f"{tokens_per_second / 4e5:.4g}" in out


def test_a_case_that_fails_leaves_the_others(
    tmp_path: Path, packed_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ours(arguments: Any, name: str) -> dict[str, Any]:
        if name == "eager":
            raise RunFailedError("no memory")
        return {"tokens_per_second": 1e5, "peak_memory_gb": None, "rows": 32}

    monkeypatch.setattr(speed, "measure_ours", ours)
    path = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["speed.py", "--tokenizer", "t", "--packed", str(packed_folder), "--json",
                                      str(path), "--cases", "eager", "ours"])  # fmt: skip
    speed.main()
    cases = json.loads(path.read_text())["cases"]
    assert cases["eager"] == {"error": "no memory"}
    assert cases["ours"]["tokens_per_second"] == 1e5
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-2], "fast"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "--cases fast: must be of ours, bare, ancestor" in capsys.readouterr().err


def test_a_child_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailedError, match="ValueError: no room"):
        speed.run_child(["-c", "raise ValueError('no room')"])
    monkeypatch.setattr(speed, "CASE_SECONDS", 0.2)
    with pytest.raises(RunFailedError, match=r"more than 0.2 s"):
        speed.run_child(["-c", "import time; time.sleep(9)"])


# The bare loop and what is carried.


def test_choices_change_the_speed_and_not_the_loss(
    packed_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    arguments = argparse.Namespace(preset="tiny", shape={"num_hidden_layers": 1}, tokenizer=str(tokenizer_folder),
                                   packed=str(packed_folder), rows=2, accumulation=2, steps=3, profile=0)  # fmt: skip
    found = {}
    for choices in ([], ["head"]):
        found[tuple(choices)] = bare_loop.train(argparse.Namespace(**vars(arguments), choices=choices))
    plain, head = found.values()
    assert plain["last_loss"] == pytest.approx(head["last_loss"], abs=1e-4)
    assert len(plain["seconds"]) == 3
    assert min(plain["seconds"]) > 0


def test_what_is_carried_is_checked(tmp_path: Path, packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "carried"
    folder.mkdir()
    (folder / "packed").symlink_to(packed_folder)
    (folder / "more.bin").write_bytes(bytes(2 * 2**20))
    assert "carried 2.0 MiB" in carry.check(folder, [])
    monkeypatch.setattr(carry, "MOST_BYTES", 3 * 2**20)
    with pytest.raises(InputError, match=r"more.bin 2.0 MiB: together more than 3 MiB. Leave some out."):
        carry.check(folder, [folder / "more.bin"])
    monkeypatch.setattr(carry, "MOST_TOKENS", 10)
    with pytest.raises(InputError, match=r"tokens, more than 10. Leave some out."):
        carry.check(folder, [])
