"""The scripts for a machine with a GPU: their arithmetic, their tables, and what they do when a case fails."""

import argparse
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from teenytinyllama.arguments import load_yaml
from teenytinyllama.checks import EXIT_BAD_INPUT, InputError, RunFailedError
from teenytinyllama.data.packed import NEEDED
from teenytinyllama.presets import MFU_CONVENTIONS

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "benchmarks" / "gpu"
if not SCRIPTS.is_dir():
    pytest.skip("the source distribution has no benchmarks", allow_module_level=True)
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

import bare_loop  # noqa: E402  (scripts, found by the line above)
import carry  # noqa: E402
import common  # noqa: E402
import real_run  # noqa: E402
import speed  # noqa: E402

# The curve of a run.


def record(step: int, **more: float) -> dict[str, Any]:
    return {"step": step, "tokens": 1000 * step, **more}


def logged(step: int, tokens_per_second: float) -> dict[str, Any]:
    """A line of the log; its energy is that of before the evaluation."""
    return record(step, loss=2.0, train_bits_per_byte=1.0, learning_rate=1e-3, grad_norm=0.5, mfu=0.5,
                  mfu_matrix_products=0.4, tokens_per_second=tokens_per_second, kwh=step * 0.9e-4, seconds=7.0)  # fmt: skip


def scored(step: int, bits_per_byte: float, kwh: float) -> dict[str, Any]:
    """A line of an evaluation, with the score of each source."""
    sources = {"contos": {"bits_per_byte": bits_per_byte + 1, "perplexity": 9.0}}
    return record(step, bits_per_byte=bits_per_byte, perplexity=9.0, kwh=kwh) | {"per_source": sources}


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(folder: Path, scores: list[float], tokens_per_second: float = 500.0) -> Path:
    """A run folder as `ttl pretrain` leaves it, with ten steps of 1,000 tokens between evaluations."""
    folder.mkdir()
    lines = [scored(0, 3.0, 0.0)]
    for number, score in enumerate(scores, 1):
        lines += [logged(10 * number, tokens_per_second), scored(10 * number, score, number * 1e-3)]
    write_lines(folder, lines)
    training = {"tokens": 10_000 * len(scores), "tokens_per_second": tokens_per_second, "mfu": 0.5, "mfu_matrix_products": 0.4, "seconds": 99.0,
                "peak_gpu_memory_gb": None, "per_device_train_batch_size": 4, "speed": "fast", "hardware": "a GPU"}  # fmt: skip
    final = {"bits_per_byte": scores[-1], "perplexity": 9.0}
    run = {"training": training, "results": {"final": final}, "hashes": {}}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_curve_has_seconds_and_joules(tmp_path: Path) -> None:
    curve = real_run.read_curve(make_run(tmp_path / "run", [2.0, 1.5]))
    assert [point["seconds"] for point in curve] == [0, 20, 40]
    assert [point["joules"] for point in curve] == pytest.approx([0, 3600, 7200])
    assert [point["bits_per_byte"] for point in curve] == [3.0, 2.0, 1.5]


def test_a_score_of_all_documents_is_no_point_of_the_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [2.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(scored(10, 1.1, 0.002)) + "\n")
    curve = real_run.read_curve(folder)
    assert [point["bits_per_byte"] for point in curve] == [3.0, 2.0]
    assert [point["joules"] for point in curve] == pytest.approx([0, 3600])


def test_seconds_follow_a_speed_that_changes(tmp_path: Path) -> None:
    write_lines(tmp_path, [scored(0, 3.0, 0.0), logged(1, 100.0), logged(5, 400.0), scored(5, 2.0, 1e-3),
                           logged(10, 1000.0), scored(10, 1.5, 2e-3)])  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "tokens": 11000, "lo')  # a kill cut it off
    curve = real_run.read_curve(tmp_path)
    assert [point["seconds"] for point in curve] == pytest.approx([0, 10 + 10, 20 + 5])
    assert [point["tokens"] for point in curve] == [0, 5000, 10_000]


def test_a_run_without_a_log_has_no_curve(tmp_path: Path) -> None:
    assert real_run.read_curve(tmp_path) == []
    assert real_run.reach([], 1.0, "tokens") is None


def test_a_score_is_reached_on_the_line_between_two_evaluations(tmp_path: Path) -> None:
    curve = real_run.read_curve(make_run(tmp_path / "run", [2.0, 1.5]))
    assert real_run.reach(curve, 1.75, "seconds") == pytest.approx(30)
    assert real_run.reach(curve, 1.75, "tokens") == pytest.approx(15_000)
    assert real_run.reach(curve, 2.25, "joules") == pytest.approx(0.75 * 3600)
    assert [real_run.reach(curve, score, "tokens") for score in (3.0, 2.0, 1.5)] == [0, 10_000, 20_000]
    assert real_run.reach(curve, 1.0, "seconds") is None
    assert real_run.reach(curve, 3.5, "seconds") is None  # better than that from the start


def test_the_first_time_that_a_score_is_reached_counts() -> None:
    curve = [{"tokens": tokens, "bits_per_byte": score} for tokens, score in ((0, 3), (1, 2), (2, 2.5), (3, 1))]
    assert real_run.reach(curve, 2.25, "tokens") == pytest.approx(0.75)


def test_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path / "ours", [2.0, 1.0]), make_run(tmp_path / "ancestor", [2.5, 1.5], 250.0)]
    figures = real_run.report(folders, tmp_path / "plot.png")
    out = capsys.readouterr().out
    assert "ours is at ancestor's last score (1.5000) after 75.0% of its tokens" in out
    assert "ours is at ancestor's last score (1.5000) after 37.5% of its seconds" in out
    assert "ours is at ancestor's last score (1.5000) after 75.0% of its joules" in out
    assert "| 3.0000 at 0.0M                | 3.0000 at 0.0M                    |" in out
    line = [cell.strip() for cell in out[out.index("| ancestor |") :].split("|")[1:13]]
    assert line == ["ancestor", "1.5", "1.5", "0.0M", "1.5", "9", "250", "50.0 %", "40.0 %", "-", "80", "99"]
    assert "did not reach its end" not in out
    assert figures["ancestor"]["training_seconds"] == 80
    assert (figures["ours"]["seconds"], figures["ours"]["hardware"]) == (99.0, "a GPU")
    assert figures["ours"]["curve"] == real_run.read_curve(folders[0])
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_a_score_that_is_not_reached_has_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path / "ours", [2.5, 1.75]), make_run(tmp_path / "ancestor", [2.0, 1.5])]
    real_run.report(folders, None)
    real_run.report(folders[:1], None)  # nothing to compare it with
    assert "last score" not in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_a_run_that_was_cut_off_counts_as_far_as_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(tmp_path / "ours", [2.0, 1.25, 1.5]), make_run(tmp_path / "ancestor", [2.5, 1.75], 250.0)]
    (folders[1] / "run.json").unlink()
    with (folders[1] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(logged(21, 9000.0)) + "\n")  # behind the last evaluation
    figures = real_run.report(folders, None)
    assert figures["ancestor"]["bits_per_byte"] == 1.75
    assert (figures["ancestor"]["tokens"], figures["ancestor"]["tokens_per_second"]) == (20_000, 250.0)
    assert figures["ancestor"]["training_seconds"] == 80
    assert figures["ours"]["lowest"]["tokens"] == 20_000
    out = capsys.readouterr().out
    assert "ancestor did not reach its end" in out
    assert "| 1.5000 at 0.0M                |                                   |" in out


def test_the_plot_has_a_line_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    folders = [make_run(tmp_path / "ours", [2.0, 1.0]), make_run(tmp_path / "ancestor", [2.5, 1.5])]
    real_run.draw({folder.name: real_run.read_curve(folder) for folder in folders}, tmp_path / "plot.png")
    monkeypatch.undo()
    axes = drawn[0].axes
    assert [axis.get_xlabel() for axis in axes] == ["tokens", "seconds of training", "energy"]
    assert axes[0].get_ylabel() == "held-out bits per byte"
    assert [line.get_label() for line in axes[0].lines] == ["ours", "ancestor"]
    assert [list(axis.lines[1].get_ydata()) for axis in axes] == [[3.0, 2.5, 1.5]] * 3
    assert list(axes[1].lines[0].get_xdata()) == [0, 20, 40]
    pyplot.close(drawn[0])


def test_the_report_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = make_run(tmp_path / "ours", [2.0]), tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["real_run.py", "report", str(folder), "--json", str(path)])
    real_run.main()
    assert json.loads(path.read_text())["runs"]["ours"]["bits_per_byte"] == 2.0


def test_recipes_are_the_shipped_one_and_the_paper_s() -> None:
    arguments = argparse.Namespace(tokenizer="t", packed="p", output_dir="o", tokens=105e6)
    ours, ancestor = (real_run.values_of(name, arguments) for name in ("ours", "ancestor"))
    assert (ours["optimizer"], ours["learning_rate"], ours["tokens_per_step"], ours["lr_scheduler_type"]) == (
        "normuon", 4.0e-3, 262_144, "warmup_stable_decay")  # fmt: skip
    assert ours["warmup_steps"] == pytest.approx(500 / 12_500)
    assert (ancestor["tokens_per_step"], ancestor["per_device_train_batch_size"]) == (8192, 4)
    assert ours["max_tokens"] == ancestor["max_tokens"] == 105_000_000
    assert ours["eval_max_tokens"] == ancestor["eval_max_tokens"]
    assert ours["eval_steps"] == ancestor["eval_steps"] == 0.1


def test_our_recipe_is_kept_but_for_its_length() -> None:
    arguments = argparse.Namespace(tokenizer="t", packed="p", output_dir="o", tokens=2e6)
    recipe = load_yaml(real_run.RECIPES["ours"].read_text(encoding="utf-8"), "pretrain.yaml")
    values = real_run.values_of("ours", arguments)
    changed = {name for name in values if name not in recipe or values[name] != recipe[name]}
    assert changed == {"tokenizer", "packed", "output_dir", "max_tokens", "warmup_steps", "eval_steps",
                       "eval_max_tokens", "save_steps", "save_total_limit"}  # fmt: skip
    assert set(recipe) <= set(values)
    assert (values["max_tokens"], values["output_dir"]) == (2_000_000, "o")


def test_the_ancestor_s_settings_are_those_of_its_paper() -> None:
    arguments = argparse.Namespace(tokenizer="t", packed="p", output_dir="o", tokens=2e6)
    values = real_run.values_of("ancestor", arguments)
    expected = {"preset": "160m", "learning_rate": 6e-4, "lr_scheduler_type": "cosine", "adam_beta2": 0.999,
                "weight_decay": 0.01, "max_grad_norm": 0, "optim": "adamw_torch", "compile_layers": False,
                "chunked_loss": False, "save_strategy": "no"}  # fmt: skip
    assert {name: values[name] for name in expected} == expected
    assert values["warmup_steps"] == pytest.approx(0.0109, abs=1e-4)
    assert values["packed"] == "p"


def test_a_run_starts_with_its_recipe_and_single_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def start(command: list[str], check: bool) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(real_run, "subprocess", SimpleNamespace(run=start))
    for recipe in ("ancestor", "ours"):
        monkeypatch.setattr(sys, "argv", ["real_run.py", "train", recipe, "--tokenizer", "t", "--packed", "p",
                                          "--output_dir", "o", "--tokens", "1e6", "--set", "preset=tiny"])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            real_run.main()
        assert ended.value.code == 3
    ancestor, ours = (dict(zip(command[4::2], command[5::2], strict=True)) for command in started)
    assert started[0][1:4] == ["-m", "teenytinyllama", "pretrain"]
    assert (ancestor["--preset"], ancestor["--compile_layers"], ancestor["--max_grad_norm"]) == ("tiny", "false", "0")
    assert (ancestor["--save_strategy"], ancestor["--max_tokens"]) == ("no", "1000000")
    assert (ours["--save_total_limit"], ours["--warmup_steps"]) == ("null", "0.04")


# Speed.


def test_mfu_is_that_computed_by_hand() -> None:
    # 6 x 162,417,408 + 12 x 12 x 768 x 2,048 FLOPs a token; without 6 x (32,000 x 768 + 25 x 768) matrix products alone.
    found = speed.with_mfu({"tokens_per_second": 427_754.0}, "160m", 2048, 989.4e12)
    assert found["mfu"] == pytest.approx(427_754 * 1_200_996_864 / 989.4e12)
    assert found["mfu_matrix_products"] == pytest.approx(427_754 * 1_053_425_664 / 989.4e12)
    assert [round(100 * found[name], 1) for name in MFU_CONVENTIONS] == [51.9, 45.5]
    assert found["tokens_per_second"] == 427_754.0


def test_cases_begin_with_the_most_important(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str | None] = [None]
    utilities = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: found[0]))
    monkeypatch.setattr(speed, "importlib", utilities)
    names = speed.case_names("160m", 1)
    assert names[:5] == ["ours", "bare", "ancestor", "whole logits", "eager"]
    assert names[5:] == ["ours, 8 rows", "ours, 16 rows", "ours, 64 rows", "bare, whole", "bare, flash", "bare, cudnn"]
    found[0] = "a package"
    assert [name for name in speed.case_names("460m", 2) if name not in names] == [
        "ours, 32 rows", "liger", "liger, layers", "ours, ddp", "ours, zero1", "ours, zero2", "ours, zero3"
    ]  # fmt: skip
    assert all(speed.STEP_ROWS % rows == 0 for rows in (*speed.ROWS.values(), *speed.SWEPT_ROWS["160m"]))


@pytest.mark.parametrize(
    ("tokens_per_second", "verdict"), [(427_754.0, "goal reached"), (350_000.0, "floor reached"), (1e5, "missed")]
)
def test_goals_are_judged(tokens_per_second: float, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"tokens_per_second": tokens_per_second, "rows": 32, "mfu": 0.5, "mfu_matrix_products": 0.4,
            "peak_memory_gb": 33.0}  # fmt: skip
    speed.show({"ours": case, "liger": {"error": "out of memory"}, "bare": {**case, "tokens_per_second": 4e5}}, "160m")
    out = capsys.readouterr().out
    assert out.strip().endswith(verdict)
    assert "out of memory" in out
    assert f"{tokens_per_second / 4e5:.4g}" in out


def test_the_table_has_a_line_a_case_and_its_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    case = {"rows": 16, "mfu": 0.2512, "mfu_matrix_products": 0.2201, "peak_memory_gb": None}
    speed.show({"eager": {**case, "tokens_per_second": 3e4}, "ours": {"error": "no memory"},
                "ours, ddp": {**case, "tokens_per_second": 5.5e4, "gpus": 2, "mfu": 0.24},
                "ancestor": {**case, "tokens_per_second": 2e4}}, "460m")  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [  # and no verdict without ours
        ["eager", "1", "16", "30,000", "25.1 %", "22.0 %", "-", "-", "1.5"],
        ["ours", "-", "-", "no memory", "-", "-", "-", "-", "-"],
        ["ours, ddp", "2", "16", "55,000", "24.0 %", "22.0 %", "-", "-", "2.75"],
        ["ancestor", "1", "16", "20,000", "25.1 %", "22.0 %", "-", "-", "1"],
    ]


@pytest.mark.parametrize(("preset", "floor", "goal"), [("160m", 330_000.0, 412_000.0), ("460m", 116_000.0, 145_000.0)])
def test_a_goal_is_reached_at_its_number(
    preset: str, floor: float, goal: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, verdict in ((goal, "goal reached"), (goal - 1, "floor reached"), (floor, "floor reached"),
                            (floor - 1, "missed")):  # fmt: skip
        speed.show({"ours": {"tokens_per_second": number, "rows": 1, "mfu": 0.5, "mfu_matrix_products": 0.4,
                             "peak_memory_gb": 1.0}}, preset)  # fmt: skip
        assert capsys.readouterr().out.endswith(
            f"ours: {number:,.0f} tokens/s; floor {floor:,.0f}, goal {goal:,.0f} on an H100: {verdict}\n"
        )


def test_our_speed_is_that_of_the_log_without_its_first_steps(
    packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[dict[str, str]] = []

    def pretrain(command: list[str]) -> str:
        assert command[:3] == ["-m", "teenytinyllama", "pretrain"]
        commands.append(dict(zip(command[3::2], command[4::2], strict=True)))
        folder = Path(commands[-1]["--output_dir"])
        folder.mkdir()
        lines = [logged(4, 1.0), logged(8, 2.0), logged(12, 500.0), logged(16, 700.0), logged(20, 600.0)]
        write_lines(folder, [*lines, scored(20, 2.0, 0.0)])
        gpus = 2 if commands[-1].get("--accelerate") == "ddp" else 1
        training = {"training": {"peak_gpu_memory_gb": 12.5, "speed": "fast", "world_size": gpus}}
        (folder / "run.json").write_text(json.dumps(training))
        return ""

    monkeypatch.setattr(speed, "run_child", pretrain)
    arguments = argparse.Namespace(preset="160m", tokenizer="t", packed=str(packed_folder), rows=None, steps=20)
    names = ("ours", "ours, 8 rows", "eager", "ancestor", "ours, ddp")
    found = {name: speed.measure_ours(arguments, name) for name in names}
    assert found["ours"] == {"tokens_per_second": 600.0, "peak_memory_gb": 12.5, "rows": 32, "gpus": 1,
                             "last_loss": 2.0, "speed": "fast"}  # fmt: skip
    assert [case["rows"] for case in found.values()] == [32, 8, 32, 4, 32]
    assert [command["--per_device_train_batch_size"] for command in commands] == ["32", "8", "32", "4", "32"]
    assert [int(command["--tokens_per_step"]) for command in commands] == [64 * 32] * 3 + [4 * 32, 64 * 32]
    assert [command["--max_steps"] for command in commands] == ["20", "20", "20", "80", "20"]
    assert [command["--compile_layers"] for command in commands] == ["true", "true", "false", "false", "true"]
    assert [command["--accelerate"] for command in commands] == ["single"] * 4 + ["ddp"]
    assert found["ours, ddp"]["gpus"] == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert speed.measure_ours(arguments, "ours, zero1")["rows"] == 8, "64 rows for 8 GPUs"
    assert (commands[3]["--optim"], commands[3]["--chunked_loss"]) == ("adamw_torch", "false")


def test_the_bare_loop_s_speed_is_that_after_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def loop(command: list[str]) -> str:
        commands.append(command)
        seconds = [9.0] * bare_loop.WARM_UP_STEPS + [2.0, 4.0, 3.0]
        said = {"tokens_per_step": 600, "seconds": seconds, "peak_memory_gb": 5.0, "profile": None}
        return f"a warning\n{json.dumps(said)}\n"

    monkeypatch.setattr(speed, "run_child", loop)
    arguments = argparse.Namespace(preset="460m", tokenizer="t", packed="p", rows=None, steps=8, profile=0)
    found = speed.measure_bare(arguments, speed.BARE["bare"])
    assert found == {"tokens_per_second": 200.0, "peak_memory_gb": 5.0, "rows": 16, "first_step_seconds": 9.0,
                     "profile": None}  # fmt: skip
    assert " ".join(commands[0]).endswith("--steps 8 --rows 16 --accumulation 4 --with layers head --profile 0")
    assert Path(commands[0][0]).is_file()


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


def test_what_is_known_is_written_when_time_ends(
    tmp_path: Path, packed_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, path, known = [0.0], tmp_path / "speed.json", []

    def measure(arguments: Any, case: Any) -> dict[str, Any]:
        known.append(list(json.loads(path.read_text())["cases"]) if path.is_file() else [])
        now[0] += 70
        return {"tokens_per_second": 1e5, "peak_memory_gb": None, "rows": 32}

    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(speed, "measure_ours", measure)
    monkeypatch.setattr(speed, "measure_bare", measure)
    monkeypatch.setattr(sys, "argv", ["speed.py", "--tokenizer", "t", "--packed", str(packed_folder), "--json",
                                      str(path), "--minutes", "2"])  # fmt: skip
    speed.main()
    found = json.loads(path.read_text())
    assert known == [[], ["ours"]]  # the second began in time
    assert list(found["cases"]) == speed.case_names("160m", 1)
    assert found["cases"]["bare"]["mfu"] > 0
    assert all(case == {"error": "skipped: 2 minutes are over"} for case in list(found["cases"].values())[2:])
    assert (found["preset"], found["context"]) == ("160m", 32)
    assert capsys.readouterr().out.strip().endswith("on an H100: missed")


def test_a_child_that_takes_too_long_gets_the_second_signal(tmp_path: Path) -> None:
    """The first is what `ttl` ends its ranks by, the second what ends those that hang."""
    log = tmp_path / "signals"
    script = (
        "import pathlib, signal, time\n"
        f"log = pathlib.Path({str(log)!r})\n"
        "def count(*_):\n"
        "    log.write_text(log.read_text() + 'x' if log.exists() else 'x')\n"
        "    if log.read_text() == 'xx': raise SystemExit(75)\n"
        "signal.signal(signal.SIGTERM, count)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "TERM_SECONDS", 1.0)
        with pytest.raises(subprocess.TimeoutExpired):
            common.run_limited(["-c", script], 2)
    assert log.read_text() == "xx"
    done = common.run_limited(["-c", "import sys; print('out'); sys.exit('err')"], 60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")


def test_a_child_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.run_child(["-c", "print('done')"]) == "done\n"
    with pytest.raises(RunFailedError, match="ValueError: no room"):
        speed.run_child(["-c", "raise ValueError('no room')"])
    with pytest.raises(RunFailedError) as failed:  # only the end, and what was printed if nothing else was said
        speed.run_child(["-c", "print('x' * 400, 'at  the', 'end', sep='\\n'); raise SystemExit(2)"])
    assert str(failed.value).endswith("xxx at the end")
    assert len(str(failed.value)) == 300
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
    assert 3 < plain["last_loss"] < 6.4  # ln 600 before training
    assert plain["tokens_per_step"] == 2 * 2 * 32
    assert len(plain["seconds"]) == 3
    assert min(plain["seconds"]) > 0


@pytest.mark.slow
def test_a_chosen_kernel_is_the_one_that_computes(tmp_path: Path) -> None:
    """Each in a process of its own with one cache of compiled code; a CPU has no cuDNN and takes plain arithmetic."""
    script = (
        "import sys, torch, bare_loop\n"
        "attend = torch.compile(lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True))\n"
        "with bare_loop.attention_by(sys.argv[1:]), torch.profiler.profile() as profiler:\n"
        "    attend(torch.ones(1, 2, 64, 16))\n"
        "print(any('flash_attention' in event.key for event in profiler.key_averages()))\n"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(SCRIPTS.parent)}
    flash = [
        subprocess.run([sys.executable, "-c", script, choice], env=environment, capture_output=True, text=True,
                       check=True).stdout.split()[-1]
        for choice in ("flash", "cudnn")
    ]  # fmt: skip
    assert flash == ["True", "False"]


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


def test_what_is_carried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packed, wheels = Path("carried/packed"), Path("wheels")
    packed.mkdir(parents=True)
    manifest = json.dumps(dict.fromkeys(NEEDED, 0) | {"stage": "pack", "train_tokens": 20_000_000})
    (packed / "run.json").write_text(manifest + " " * (2**20 - len(manifest)))
    (wheels / "inner").mkdir(parents=True)
    (wheels / "inner" / "a.whl").write_bytes(bytes(2**19))
    Path("b.zip").write_bytes(bytes(2 * 2**20))
    said = carry.check(Path("carried"), [wheels, Path("b.zip")])
    assert said == ("20,000,000 tokens to train on; carried 1.0 MiB, wheels 0.5 MiB, b.zip 2.0 MiB; "
                    "together 3.5 of 60 MiB")  # fmt: skip
    (packed / "run.json").write_text(manifest.replace("20000000", "20000001"))
    with pytest.raises(InputError, match="inputs: make 20,000,001 tokens, more than 20,000,000. Leave some out."):
        carry.check(Path("carried"), [])


def test_too_much_to_carry_ends_with_bad_input(
    tmp_path: Path, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["carry.py", "--inputs", str(corpus_folder), "--folder", str(tmp_path / "carried"), "--vocab_size", "600",
               "--context", "32"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    assert carry.main() == 0
    assert "tokens to train on" in capsys.readouterr().out
    monkeypatch.setattr(carry, "MOST_BYTES", 2**10)
    assert carry.main() == EXIT_BAD_INPUT  # what is made is kept
    assert "Leave some out." in capsys.readouterr().err
