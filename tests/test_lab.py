"""`ttl lab`: the grid that its config means, and a real laboratory of tiny runs, stopped, gone on with and enlarged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from teenytinyllama.checks import InputError
from teenytinyllama.lab.comparison import make_cells, read_outcomes
from teenytinyllama.lab.config import (
    LabConfig,
    budgets,
    check_names,
    finalist_runs,
    find_recipes,
    layer_parameters,
    longer_run,
    make_run,
    model_keys,
    shape_of_size,
    sweep_runs,
)
from teenytinyllama.lab.runs import check_runs, find_slots, train_runs
from teenytinyllama.launching.launch import ForkServer
from teenytinyllama.presets import PRESETS, count_parameters

ARMS = {"adamw": {"learning_rate": [0.001, 0.002]}, "muon": {"optimizer": "muon", "learning_rate": 0.002}}


@pytest.fixture
def keys(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    return {"tokenizer": str(tokenizer_folder), "packed": str(packed_folder), "output_dir": str(tmp_path / "lab"),
            "sizes": ["0.1M", "0.5M"], "tokens": [2000, 1000], "arms": ARMS}  # fmt: skip


def row(arm: str, size: str, budget: int, score: float | None, seed: int = 0) -> dict[str, Any]:
    return {"name": f"{arm} {size} {budget} {seed}", "arm": arm, "group": arm.split()[0], "size": size,
            "budget": budget, "tokens": budget, "seed": seed, "state": "diverged" if score is None else "done",
            "bits_per_byte": score, "loss": score, "flops": 1.0, "num_parameters": 1, "num_non_embedding": 1}  # fmt: skip


@pytest.mark.parametrize(("size", "width", "layers"), [("0.5M", 128, 2), ("1.5M", 192, 3), ("4M", 256, 4),
                                                       ("12M", 384, 5)])  # fmt: skip
def test_a_size_becomes_a_shape_of_about_so_many_parameters(size: str, width: int, layers: int) -> None:
    shape = model_keys(size)["shape"]
    assert (shape["hidden_size"], shape["num_hidden_layers"]) == (width, layers)
    assert shape["intermediate_size"] == 4 * width
    assert layer_parameters(size) == 16 * width**2 * layers
    assert layer_parameters(size) == pytest.approx(float(size[:-1]) * 1e6, rel=0.2)


def test_a_presets_layers_are_its_parameters_without_tables_and_norms() -> None:
    preset = PRESETS["1b1"]
    norms = (2 * preset.num_hidden_layers + 1) * preset.hidden_size
    tables = 2 * preset.vocab_size * preset.hidden_size
    assert layer_parameters("1b1") == count_parameters(preset) - tables - norms


def test_every_size_from_small_to_large_has_a_shape_near_it() -> None:
    for exponent in range(50, 100):
        wanted = 10 ** (exponent / 10)
        shape = shape_of_size(wanted)
        assert 16 * shape["hidden_size"] ** 2 * shape["num_hidden_layers"] == pytest.approx(wanted, rel=0.35)


def test_the_grid_is_swept_and_the_best_of_each_arm_and_size_goes_on(keys: dict[str, Any]) -> None:
    config = LabConfig(**keys, swept_at="first", seeds=[0], finalist_seeds=[0, 1])
    assert [recipe.label for recipe in find_recipes(config)] == ["adamw learning_rate=0.001",
                                                                 "adamw learning_rate=0.002", "muon"]  # fmt: skip
    runs = sweep_runs(config)
    assert len(runs) == 2 * 3
    assert {run.tokens for run in runs} == {1000}
    assert len({run.name for run in runs}) == len(runs)
    rows = [row("adamw learning_rate=0.001", "0.1M", 1000, 2.0), row("adamw learning_rate=0.002", "0.1M", 1000, None),
            row("adamw learning_rate=0.001", "0.5M", 1000, 2.0), row("adamw learning_rate=0.002", "0.5M", 1000, 1.9),
            row("muon", "0.1M", 1000, 1.8), row("muon", "0.5M", 1000, None)]  # fmt: skip
    finalists = {(run.recipe.label, run.size, run.tokens, run.seed) for run in finalist_runs(config, rows)}
    assert finalists == {(label, size, tokens, seed) for tokens in (1000, 2000) for seed in (0, 1) for label, size in
                         [("adamw learning_rate=0.001", "0.1M"), ("adamw learning_rate=0.002", "0.5M"),
                          ("muon", "0.1M")]}  # fmt: skip


def test_a_recipe_with_one_diverged_seed_is_not_the_best(keys: dict[str, Any]) -> None:
    config = LabConfig(**keys | {"sizes": ["0.1M"]}, swept_at="first")
    slow, fast = "adamw learning_rate=0.001", "adamw learning_rate=0.002"
    rows = [row(slow, "0.1M", 1000, 2.0), row(fast, "0.1M", 1000, 1.5), row(fast, "0.1M", 1000, None, seed=1)]
    assert {run.recipe.label for run in finalist_runs(config, rows)} == {slow}


def test_the_longer_run_has_the_best_recipe_of_the_largest_size(keys: dict[str, Any]) -> None:
    config = LabConfig(**keys, longer_run=10)
    rows = [row("muon", "0.5M", 2000, 1.8), row("adamw learning_rate=0.001", "0.5M", 2000, 1.9),
            row("adamw learning_rate=0.001", "0.1M", 2000, 1.0)]  # fmt: skip
    run = longer_run(config, rows)
    assert run is not None
    assert (run.recipe.label, run.size, run.tokens, run.is_check) == ("muon", "0.5M", 20_000, True)
    assert longer_run(LabConfig(**keys), rows) is None
    assert longer_run(config, []) is None


def test_a_run_has_the_settings_the_arms_changes_and_the_context_of_the_rows(keys: dict[str, Any]) -> None:
    arms = {"wide": {"head_size": 128, "learning_rate": 0.003, "optimizer": "muon"}}
    settings = {"learning_rate": 0.001, "logging_steps": 3}
    config = LabConfig(**keys | {"arms": arms, "settings": settings})
    values = make_run(config, find_recipes(config)[0], "0.5M", 1000, 7).values
    assert values["shape"]["num_attention_heads"] == 1
    assert values["shape"]["max_position_embeddings"] == 32
    expected = {"learning_rate": 0.003, "logging_steps": 3, "save_strategy": "no", "max_tokens": 1000, "seed": 7}
    assert expected.items() <= values.items()
    assert "head_size" not in values


def test_budgets_by_parameter_follow_the_size(keys: dict[str, Any]) -> None:
    config = LabConfig(**keys | {"tokens": None}, tokens_per_parameter=[20, 5])
    assert budgets(config, "0.5M") == [5 * 524_288, 20 * 524_288]


def test_a_small_size_may_have_further_budgets(keys: dict[str, Any]) -> None:
    config = LabConfig(**keys, more_tokens={"0.1M": [8000, 2000]})
    assert (budgets(config, "0.1M"), budgets(config, "0.5M")) == ([1000, 2000, 8000], [1000, 2000])
    first = next(recipe for recipe in find_recipes(config) if recipe.arm == "muon")
    rows = [row("muon", "0.1M", 8000, 1.0), row("muon", "0.5M", 2000, 2.0)]
    longer = longer_run(LabConfig(**keys, more_tokens={"0.1M": [8000]}, longer_run=10), rows)
    assert longer is not None
    assert (longer.size, longer.tokens, longer.recipe) == ("0.5M", 20_000, first)


@pytest.mark.parametrize(("change", "message"), [
    ({"sizes": []}, "sizes: is empty"),
    ({"tokens_per_parameter": [5]}, "give exactly one of the two"),
    ({"tokens": [0]}, "tokens=0: must be positive"),
    ({"more_tokens": {"0.2M": [100]}}, "more_tokens.0.2M: is not one of the sizes: 0.1M, 0.5M"),
    ({"more_tokens": {"0.1M": [0]}}, r"more_tokens.0.1M=\[0\]: must be a list of positive numbers"),
    ({"more_tokens": {"0.1M": 100}}, "more_tokens.0.1M=100: must be a list"),
    ({"baseline": "adam"}, "baseline=adam: must be one of the arms: adamw, muon"),
    ({"arms": {"a": {"seed": 3}}}, "arms.a.seed: is set by the laboratory"),
    ({"arms": {"a": [1]}}, r"arms.a=\[1\]: must be a mapping"),
    ({"settings": {"packed": "x"}}, "settings.packed: is set by the laboratory"),
    ({"runs_at_once": 0}, "runs_at_once=0: must be at least 1"),
    ({"longer_run": 0.5}, "longer_run=0.5: must be at least 1"),
    ({"arms": {"a": {"learning_rate": []}}}, "arms.a.learning_rate: is an empty list. Give values"),
])  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(keys: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabConfig(**keys | change)


@pytest.mark.parametrize(("change", "message"), [
    ({"sizes": ["0.1M", "0.1M"]}, "sizes=.*: has a value twice. Give each once"),
    ({"seeds": [0, 0]}, r"seeds=\[0, 0\]: has a value twice"),
    ({"finalist_seeds": [1, 2, 1]}, r"finalist_seeds=\[1, 2, 1\]: has a value twice"),
    ({"arms": {"a": {"learning_rate": [0.001, 1e-3]}}}, "2 runs of the grid would have the folder a-learning_rate_0.001"),
    ({"arms": {"a b": {}, "a/b": {}}}, "2 runs of the grid would have the folder a_b-0.1M-0.001M-seed0"),
    ({"tokens": [10_000_000, 10_000_001]}, "2 runs of the grid would have the folder .*-0.1M-10M-seed0"),
])  # fmt: skip
def test_runs_that_would_share_a_folder_are_refused(keys: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_names(LabConfig(**keys | change))


def test_a_grid_of_different_runs_is_taken(keys: dict[str, Any]) -> None:
    check_names(LabConfig(**keys, seeds=[0, 1], finalist_seeds=[0, 1, 2]))


def test_a_head_size_that_does_not_fit_names_its_arm(keys: dict[str, Any]) -> None:
    config = LabConfig(**keys | {"arms": {"wide": {"head_size": 48}}})
    with pytest.raises(InputError, match=r"arms.wide at 0.1M: head_size=48: must divide the width of the model, 64"):
        check_runs(config, lambda function: function())


def test_the_longer_run_of_a_small_grid_is_a_run_of_a_larger_one(keys: dict[str, Any], tmp_path: Path) -> None:
    small = LabConfig(**keys | {"arms": {"a": {}}, "tokens": [1000]}, longer_run=4)
    done = [row("a", "0.5M", 1000, 1.9)]
    check = longer_run(small, done)
    assert check is not None
    rows = {check.name: row("a", "0.5M", 4000, 1.5) | {"name": check.name, "is_check": True, "values": check.values}}
    (run,) = sweep_runs(LabConfig(**keys | {"arms": {"a": {}}, "tokens": [4000], "sizes": ["0.5M"]}))
    failed = train_runs([run], rows=rows, folder=tmp_path, slots=[], keep_models=False, forks=ForkServer(False, []))
    assert failed == []
    assert [cell.first.budget for cell in make_cells(read_outcomes(tmp_path))] == [4000]


@pytest.mark.parametrize(("size", "head_size", "message"), [
    ("small", None, "sizes=small: must be a number of parameters such as 500k"),
    ("10", None, "sizes=10: must be 0.1M to 10B parameters"),
    ("0.5M", 48, "head_size=48: must divide the width of the model, 128 for sizes=0.5M"),
])  # fmt: skip
def test_a_size_that_cannot_be_is_refused(size: str, head_size: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_keys(size, head_size)


def test_slots_share_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    for place in ("lab.runs", "launching.ranks"):
        monkeypatch.setattr(f"teenytinyllama.{place}.available_cores", lambda: 6)
    monkeypatch.setattr("teenytinyllama.lab.runs.count_usable_gpus", lambda: 2)
    slots = find_slots(3)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "6", "4"]
    assert [slot.sharers for slot in slots] == [2, 1, 2]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {"2"}
    monkeypatch.setattr("teenytinyllama.lab.runs.count_usable_gpus", lambda: 0)
    assert [(slot.sharers, slot.environment["OMP_NUM_THREADS"]) for slot in find_slots(None)] == [(6, "1")] * 6


def start(keys: dict[str, Any], path: Path) -> subprocess.Popen[str]:
    path.write_text(json.dumps(keys), encoding="utf-8")  # JSON is YAML
    return subprocess.Popen([sys.executable, "-m", "teenytinyllama", "lab", "--config", str(path)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip


@pytest.mark.slow
def test_a_laboratory_is_stopped_gone_on_with_and_enlarged(keys: dict[str, Any], tmp_path: Path) -> None:
    """Two arms, of which one diverges; a signal, the rest, and one budget more. Every run is made once."""
    keys |= {"sizes": ["0.1M"], "tokens": [320], "swept_at": "first",
             "arms": {"plain": {"learning_rate": [0.001, 0.01]}, "broken": {"learning_rate": 1000}},
             "settings": {"tokens_per_step": 32, "warmup_steps": 1, "eval_max_tokens": 100}, "runs_at_once": 1}  # fmt: skip
    folder, config = Path(keys["output_dir"]), tmp_path / "lab.yaml"
    first = start(keys, config)
    rows = folder / "runs.jsonl"
    deadline = time.monotonic() + 120
    while not rows.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 75, said
    assert "the same command goes on" in said
    known = rows.read_text(encoding="utf-8")
    assert start(keys, config).wait(timeout=300) == 0
    assert rows.read_text(encoding="utf-8").startswith(known)
    found = {row["name"]: row for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines())}
    assert {name: row["state"] for name, row in found.items()} == {
        "plain-learning_rate_0.001-0.1M-0.00032M-seed0": "done",
        "plain-learning_rate_0.01-0.1M-0.00032M-seed0": "done",
        "broken-0.1M-0.00032M-seed0": "diverged",
    }
    assert "training has diverged" in found["broken-0.1M-0.00032M-seed0"]["reason"]
    best = found["plain-learning_rate_0.01-0.1M-0.00032M-seed0"]
    assert best["bits_per_byte"] < found["plain-learning_rate_0.001-0.1M-0.00032M-seed0"]["bits_per_byte"]
    manifest = json.loads((folder / "runs" / best["name"] / "run.json").read_text(encoding="utf-8"))
    assert best["bits_per_byte"] == manifest["results"]["final"]["bits_per_byte"]
    assert not (folder / "runs" / best["name"] / "model.safetensors").exists()
    assert "| broken | 0.1M |" in (folder / "table.md").read_text(encoding="utf-8")

    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(line for line in lines if best["name"] not in line), encoding="utf-8")
    made_ns = (folder / "runs" / best["name"] / "run.json").stat().st_mtime_ns
    assert start(keys, config).wait(timeout=300) == 0  # as after a kill between a run's end and its row
    taken_in = json.loads(rows.read_text(encoding="utf-8").splitlines()[-1])
    assert (taken_in["name"], taken_in["bits_per_byte"]) == (best["name"], best["bits_per_byte"])
    assert (folder / "runs" / best["name"] / "run.json").stat().st_mtime_ns == made_ns, "it was trained again"

    keys["tokens"] = [320, 640]
    larger = start(keys, config)
    said, _ = larger.communicate(timeout=300)
    assert larger.returncode == 0, said
    names = [json.loads(line)["name"] for line in rows.read_text(encoding="utf-8").splitlines()]
    assert names[len(found) :] == ["plain-learning_rate_0.01-0.1M-0.00064M-seed0"]  # the best goes on, the others stay

    keys["settings"] |= {"weight_decay": 0.0}
    other = start(keys, config)
    said, _ = other.communicate(timeout=300)
    assert other.returncode == 2
    assert "different: weight_decay (there None, now 0.0)" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_runs_end_with_a_laboratory_that_is_killed(keys: dict[str, Any], tmp_path: Path) -> None:
    """Else they hold their folders, and the same command would count them as failed."""
    keys |= {"sizes": ["0.1M"], "tokens": [10_000_000], "arms": {"a": {}}, "runs_at_once": 1,
             "settings": {"tokens_per_step": 32, "logging_steps": 10, "eval_max_tokens": 100}}  # fmt: skip
    process = start(keys, tmp_path / "lab.yaml")
    metrics = Path(keys["output_dir"]) / "runs" / "a-0.1M-10M-seed0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and '"loss"' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    for child in alive:
        child.kill()
    assert not alive


@pytest.mark.slow
def test_a_refused_key_of_an_arm_stops_before_any_run(keys: dict[str, Any], tmp_path: Path) -> None:
    keys["arms"] = {"plain": {}, "odd": {"learning_rat": 1}}
    process = start(keys, tmp_path / "lab.yaml")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "arms.odd at 0.1M: learning_rat: unknown key. Did you mean 'learning_rate'?" in said
    assert not Path(keys["output_dir"]).exists()
