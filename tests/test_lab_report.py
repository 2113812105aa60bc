"""Labs that have run: rows to tables, sweeps, tokens to the baseline, IsoFLOP, laws with their intervals, plots, plans."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teenytinyllama.arguments import parse
from teenytinyllama.checks import EXIT_BAD_INPUT, InputError
from teenytinyllama.cli import main
from teenytinyllama.lab.comparison import (
    best_cells,
    find_isoflops,
    find_sweeps,
    make_cells,
    make_outcome,
    read_outcomes,
    tokens_to_baseline,
)
from teenytinyllama.lab.report import write_report
from teenytinyllama.lab.scaling import LabLaw, fit_constants, read_law
from teenytinyllama.launching.launch import recipes_folder
from teenytinyllama.planning.config import PlanConfig
from teenytinyllama.planning.laws import optimum, predicted_loss, useful_tokens
from teenytinyllama.planning.plan import make_plan
from teenytinyllama.planning.table import render

BYTES_PER_TOKEN = 3.5
SIZES = {"0.5M": (1.6e6, 0.5e6), "1.5M": (3.2e6, 1.5e6), "4M": (6.5e6, 4e6)}
TRUTH = (0.6, 30.0, 50.0, 0.35, 0.35)  # E, A, B, a, b


def law_value(num_parameters: float, tokens: float, truth: tuple[float, ...] = TRUTH) -> float:
    e, size, data, a, b, g = (*truth, 1.0)[:6]
    return e + ((size / num_parameters**a) ** (1 / g) + (data / tokens**b) ** (1 / g)) ** g


def row(arm: str, size: str, tokens: float, score: float | None, **values: Any) -> dict[str, Any]:
    parameters, layers = SIZES[size]
    return {
        "name": f"{arm}-{size}-{tokens:g}-{values.get('seed', 1)}", "arm": arm, "group": arm.split()[0], "size": size,
        "tokens": int(tokens), "budget": int(tokens), "tokens_per_step": 2048, "seed": 1, "curve": [],
        "num_parameters": int(parameters), "num_non_embedding": int(layers), "unique_tokens": 10**9,
        "state": "diverged" if score is None else "done", "bits_per_byte": score,
        "loss": None if score is None else score * math.log(2) * BYTES_PER_TOKEN, "flops": 6 * parameters * tokens,
        "seconds": tokens / 1e4, "kwh": 0.001, "usd": None, "reason": None if score else "training has diverged at step 7",
        **values,
    }  # fmt: skip


def lab(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return folder


def make_rows(noise: float = 0.002, seeds: tuple[int, ...] = (1, 2)) -> list[dict[str, Any]]:
    """AdamW and Muon, whose tokens are worth twice as many, at three sizes, four budgets and three learning rates."""
    rng = np.random.default_rng(3)
    rows = []
    for optimizer, worth, best in (("adamw", 1.0, 0.002), ("muon", 2.0, 0.008)):
        for size, (parameters, _) in SIZES.items():
            for tokens in (1e6, 2e6, 4e6, 8e6):
                for rate in (best / 2, best, best * 2):
                    for seed in seeds:
                        score = law_value(parameters, worth * tokens) + 0.05 * math.log(rate / best) ** 2
                        score *= math.exp(noise * rng.standard_normal())
                        rows.append(row(f"{optimizer} lr={rate:g}", size, tokens, score, learning_rate=rate, seed=seed))
    return rows


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows()
    rows += [row("muon lr=0.032", size, 1e6, None, learning_rate=0.032) for size in SIZES]
    check = law_value(SIZES["4M"][0], 2 * 80e6)
    rows.append(row("muon lr=0.008", "4M", 80e6, check, learning_rate=0.008, name="longer", is_check=True))
    folder = lab(tmp_path_factory.mktemp("labs") / "lab", rows)
    write_report(folder, "adamw")
    return folder


# Rows and cells.


def test_the_last_row_of_a_name_counts(tmp_path: Path) -> None:
    folder = lab(tmp_path, [row("adamw lr=0.1", "4M", 1e6, None), row("adamw lr=0.1", "4M", 1e6, 1.5)])
    (run,) = read_outcomes(folder)
    assert (run.state, run.bits_per_byte, run.group, run.budget) == ("done", 1.5, "adamw", 10**6)


def test_what_is_no_lab_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"output_dir=.*: has no runs.jsonl, so it is no lab that has run"):
        read_outcomes(tmp_path)
    broken = row("adamw", "4M", 1e6, 1.5)
    del broken["flops"]
    with pytest.raises(InputError, match=r"runs.jsonl: line 1 is damaged \('flops' is missing\)"):
        read_outcomes(lab(tmp_path, [broken, row("adamw", "4M", 2e6, 1.4)]))
    with pytest.raises(InputError, match="no run is done, so there is no table"):
        write_report(lab(tmp_path, [row("adamw", "4M", 1e6, None)]))
    with pytest.raises(InputError, match="baseline=sgd: must be an arm of the lab: adamw"):
        write_report(lab(tmp_path, [row("adamw", "4M", 1e6, 1.4)]), "sgd")


def test_a_cell_is_a_mean_over_seeds_and_a_diverged_seed_is_told(tmp_path: Path) -> None:
    rows = [row("adamw", "4M", 1e6, 1.4), row("adamw", "4M", 1e6, 1.6, seed=2), row("muon", "4M", 1e6, 1.2),
            row("muon", "4M", 1e6, None, seed=2)]  # fmt: skip
    adamw, muon = make_cells(read_outcomes(lab(tmp_path, rows)))
    assert (adamw.score, round(adamw.deviation or 0, 4)) == (1.5, 0.1414)
    assert (muon.score, muon.scores) == (math.inf, [1.2])  # not to be relied on
    assert set(best_cells([adamw, muon])) == {"adamw"}
    write_report(tmp_path)
    assert "1 diverged: training has diverged at step 7" in (tmp_path / "table.md").read_text()


# Comparisons.


def test_a_best_rate_at_the_edge_of_its_sweep_is_told(tmp_path: Path) -> None:
    rates = {0.001: 1.4, 0.002: 1.3, 0.004: 1.5}
    inner = [row(f"adamw lr={rate}", "4M", 1e6, score, learning_rate=rate) for rate, score in rates.items()]
    (sweep,) = find_sweeps(make_cells(read_outcomes(lab(tmp_path, inner))))
    assert sweep.best is not None
    assert (sweep.best.first.learning_rate, sweep.at_edge) == (0.002, False)
    (edge,) = find_sweeps(make_cells(read_outcomes(lab(tmp_path, inner[:2]))))
    assert edge.at_edge
    diverged = row("adamw lr=0.004", "4M", 1e6, None, learning_rate=0.004)
    (tried,) = find_sweeps(make_cells(read_outcomes(lab(tmp_path, [*inner[:2], diverged]))))
    assert not tried.at_edge  # what lies beyond was tried
    write_report(lab(tmp_path, inner[:2]))
    assert "the sweep is too narrow" in (tmp_path / "table.md").read_text()


def test_tokens_to_the_baseline_are_found_between_budgets(tmp_path: Path) -> None:
    muon = {1e6: 1.4, 2e6: 1.2, 4e6: 1.0}
    rows = [row("adamw", "4M", tokens, score) for tokens, score in {4e6: 1.3, 8e6: 1.1}.items()]
    rows += [row("muon", "4M", tokens, score) for tokens, score in muon.items()]
    (found,) = tokens_to_baseline(make_cells(read_outcomes(lab(tmp_path, rows))), "adamw")
    assert found.ratio == pytest.approx(2e6 * 2**0.5 / 8e6)  # half way in log tokens from 1.2 to 1.0
    assert (found.low, found.has_interval, found.bound) == (None, False, None)


@pytest.mark.parametrize(("scores", "bound"), [((1.0, 0.9), "less than 0.12"), ((1.5, 1.4), "more than 0.25")])
def test_a_score_that_no_run_encloses_is_a_bound(tmp_path: Path, scores: tuple[float, float], bound: str) -> None:
    rows = [row("adamw", "4M", 8e6, 1.1)]
    rows += [row("muon", "4M", tokens, score) for tokens, score in zip((1e6, 2e6), scores, strict=True)]
    (found,) = tokens_to_baseline(make_cells(read_outcomes(lab(tmp_path, rows))), "adamw")
    assert (found.ratio, found.bound) == (None, bound)


def test_the_interval_of_tokens_to_the_baseline_holds_the_truth_nine_times_in_ten() -> None:
    held = total = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = [
            row(arm, "4M", tokens, law_value(6.5e6, worth * tokens) * math.exp(0.004 * rng.standard_normal()), seed=one)
            for arm, worth in (("adamw", 1.0), ("muon", 2.0))
            for tokens in (1e6, 2e6, 4e6, 8e6)
            for one in (1, 2, 3)
        ]
        (found,) = tokens_to_baseline(make_cells([make_outcome(each) for each in rows]), "adamw")
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.5 <= found.high
        total += 1
    assert held / total >= 0.8


def test_a_parabola_finds_the_best_size() -> None:
    rows = []
    for size, (parameters, _) in SIZES.items():
        tokens = 1.92e13 / 6 / parameters
        rows.append(row("adamw", size, tokens, 1 + 0.1 * (math.log(parameters) - math.log(3e6)) ** 2))
    (curve,) = find_isoflops(make_cells([make_outcome(each) for each in rows]))
    assert curve.num_parameters == pytest.approx(3e6, rel=1e-3)
    assert curve.tokens == pytest.approx(1.92e13 / 6 / 3e6, rel=1e-2)
    assert curve.bits_per_byte == pytest.approx(1.0, abs=1e-6)
    rising = [{**each, "bits_per_byte": 1 + each["num_parameters"] / 1e7} for each in rows]
    (edge,) = find_isoflops(make_cells([make_outcome(each) for each in rising]))
    assert edge.num_parameters is None


# The law.


def law_of(parameters: Any, tokens: Any, scores: Any, seed: int = 0) -> LabLaw:
    fit = fit_constants(parameters, tokens, scores, seed)
    e, size, data, a, b, g = fit.constants
    return LabLaw("arm", e, size, data, a, b, g, fit.noise, fit.draws, [], {}, 4.0, (int(min(parameters)), int(max(parameters))),
                  (int(min(tokens)), int(max(tokens))), 0.0, 0.0)  # fmt: skip


def test_a_law_is_recovered_from_many_exact_runs() -> None:
    parameters, tokens = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 3e8, 6), np.geomspace(1e7, 1e10, 8)))
    truth = (0.6, 300.0, 900.0, 0.34, 0.37)
    scores = [law_value(n, d, truth) for n, d in zip(parameters, tokens, strict=True)]
    fit = fit_constants(parameters, tokens, scores)
    assert fit.constants == pytest.approx((*truth, 1.0), rel=0.05)
    assert fit.misfit < 1e-3
    published = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al.
    scores = [law_value(n, d, published) for n, d in zip(parameters, tokens, strict=True)]
    found = fit_constants(parameters, tokens, scores).constants
    assert found[0] == pytest.approx(1.8172, abs=0.03)
    assert found[3:5] == pytest.approx(published[3:], abs=0.01)
    assert found[5] == pytest.approx(1.0, abs=0.05)


def test_sizes_that_drift_apart_are_recovered_too() -> None:
    parameters, tokens = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 3e8, 6), np.geomspace(1e7, 1e10, 8)))
    truth = (0.6, 100.0, 300.0, 0.35, 0.3, 0.4)
    fit = fit_constants(parameters, tokens, [law_value(n, d, truth) for n, d in zip(parameters, tokens, strict=True)])
    assert fit.constants == pytest.approx(truth, rel=0.05)


def test_the_optimum_of_a_coupled_law_is_lower_than_its_neighbours(written: Path) -> None:
    law = replace(read_law(written), coupling=0.4, size_exponent=0.5, data_exponent=0.25).in_nats()
    parameters, tokens = optimum(law, 1e16)
    best = predicted_loss(law, parameters, tokens)
    for factor in (0.9, 1.1):
        assert best < predicted_loss(law, parameters * factor, tokens / factor)


def test_one_wild_run_moves_the_law_little() -> None:
    parameters, tokens = (each.ravel() for each in np.meshgrid([1e6, 2e6, 4e6], [1e6, 2e6, 4e6, 8e6]))
    scores = [law_value(n, d) for n, d in zip(parameters, tokens, strict=True)]
    straight = law_of(parameters, tokens, scores).bits_per_byte(4e6, 3e7)
    scores[5] *= 1.1
    assert law_of(parameters, tokens, scores).bits_per_byte(4e6, 3e7) == pytest.approx(straight, rel=0.01)


def coverage(labs: int) -> tuple[int, list[float]]:
    """How many intervals hold the score of a run ten times longer, of labs with two sizes and four budgets."""
    rng = np.random.default_rng(5)
    parameters, tokens = np.repeat([0.5e6, 1.5e6], 4), np.tile([0.25e6, 0.5e6, 1e6, 2e6], 2)
    held, errors = 0, []
    for seed in range(labs):
        a, b = np.maximum(0.1, rng.normal(0.35, 0.1, 2))
        e = 0.6 * math.exp(0.5 * rng.standard_normal())
        g = float(np.clip(rng.normal(0.6, 0.3), 0.2, 1.25))
        truth = (e, 0.35 * 8e5**a, 0.8 * 1e6**b, a, b, g)
        noise = np.exp(0.002 * rng.standard_normal(9))
        scores = [law_value(n, d, truth) * each for n, d, each in zip(parameters, tokens, noise, strict=False)]
        measured = law_value(1.5e6, 2e7, truth) * noise[8]
        found = law_of(parameters, tokens, scores, seed).predict(1.5e6, 2e7)
        held += found.low <= measured <= found.high
        errors.append(found.bits_per_byte - measured)
    return held, errors


@pytest.mark.slow
def test_the_law_of_a_small_lab_predicts_a_run_ten_times_longer() -> None:
    held, errors = coverage(12)
    assert held >= 9
    assert float(np.median(np.abs(errors))) < 0.02


@pytest.mark.slow
def test_ninety_of_a_hundred_intervals_hold_the_truth() -> None:
    held, _ = coverage(100)
    assert 84 <= held <= 97


def test_what_is_far_from_the_runs_has_a_wider_interval(written: Path) -> None:
    law = read_law(written)
    widths = []
    for times in (1, 10, 100):
        found = law.predict(law.parameters[1], times * law.tokens[1])
        widths.append(found.high - found.low)
        assert found.low < found.bits_per_byte < found.high
    assert widths == sorted(widths)
    assert widths[2] > 2 * widths[0]


def test_repeated_tokens_count_for_less(written: Path) -> None:
    assert useful_tokens(4e6, None) == useful_tokens(4e6, 8e6) == 4e6
    assert useful_tokens(4e6, 1e6) == pytest.approx(3.726e6, rel=1e-3)  # four readings, Muennighoff et al.
    law = read_law(written)
    assert law.bits_per_byte(4e6, 4e6, 1e6) == law.bits_per_byte(4e6, useful_tokens(4e6, 1e6))


def test_the_file_of_the_law_predicts(written: Path) -> None:
    found = read_law(written).predict(6.5e6, 80e6)
    assert found.arm == "muon"
    assert found.low <= law_value(6.5e6, 160e6) <= found.high
    assert found.bits_per_byte == pytest.approx(law_value(6.5e6, 160e6), abs=0.02)
    assert found.nats_per_token[0] == pytest.approx(found.bits_per_byte * math.log(2) * BYTES_PER_TOKEN, rel=1e-6)
    assert found.times_tokens == pytest.approx(10)
    worse = read_law(written, "adamw").predict(6.5e6, 80e6)
    assert worse.bits_per_byte > found.bits_per_byte
    with pytest.raises(InputError, match=r"has no law of arm sgd\. It has laws of"):
        read_law(written, "sgd")


def test_a_lab_that_is_too_small_has_no_law_and_says_why(tmp_path: Path) -> None:
    rows = [row("adamw", "4M", tokens, law_value(6.5e6, tokens)) for tokens in (1e6, 2e6)]
    rows += [row("adamw", "0.5M", tokens, law_value(1.6e6, tokens), tokens_per_step=10**5) for tokens in (1e6, 2e6)]
    write_report(lab(tmp_path, rows))
    table = (tmp_path / "table.md").read_text()
    assert "- No law: arm adamw: 2 runs of 1 sizes and 2 budgets are too few for a law" in table
    assert "(2 have fewer)" in table
    with pytest.raises(InputError, match=r"has no law\. arm adamw: 2 runs of 1 sizes"):
        read_law(tmp_path)


def test_a_lab_in_which_size_is_worth_nothing_says_so(tmp_path: Path, written: Path) -> None:
    rows = [row("adamw", size, tokens, law_value(2e6, tokens)) for size in SIZES for tokens in (1e6, 2e6, 4e6)]
    write_report(lab(tmp_path, rows))
    words = "its larger models did not score better by more than noise"
    assert words in (tmp_path / "table.md").read_text()
    assert words not in (written / "table.md").read_text()
    argv = ["--tokens", "100000000", "--preset", "tiny", "--gpu", "h200", "--calibrate"]
    plans = [
        render(make_plan(parse(PlanConfig, [*argv, str(place)]), recipes_folder())) for place in (tmp_path, written)
    ]
    optima = [next(line for line in plan.splitlines() if line.startswith("  lab ")).split() for plan in plans]
    assert optima[0][1:3] == ["none", "none"]
    assert "none" not in optima[1]


def test_runs_that_follow_no_law_are_told_in_the_report_and_in_a_plan(tmp_path: Path, written: Path) -> None:
    scores = {1e6: 2.6, 2e6: 2.3, 4e6: 1.6}  # falls faster and faster
    rows = [row("adamw", size, tokens, score + 0.05 * place) for place, size in enumerate(("4M", "0.5M"))
            for tokens, score in scores.items()]  # fmt: skip
    write_report(lab(tmp_path, rows))
    words = "% about this law, and seeds differ by 0.1 to 0.3 %. Leave out budgets"
    assert words in (tmp_path / "table.md").read_text()
    assert words not in (written / "table.md").read_text()
    config = parse(PlanConfig, ["--tokens", "1e8", "--preset", "tiny", "--gpu", "h200", "--calibrate", str(tmp_path)])
    assert f"Warning: the lab's runs lie {100 * read_law(tmp_path).noise:.1f} {words}" in render(
        make_plan(config, recipes_folder())
    )


def test_short_runs_are_left_out_of_the_law(tmp_path: Path) -> None:
    rows = [row("adamw", size, tokens, law_value(SIZES[size][0], tokens)) for size in ("0.5M", "4M")
            for tokens in (1e5, 1e6, 2e6, 4e6)]  # fmt: skip
    write_report(lab(tmp_path, rows))
    assert read_law(tmp_path).left_out == dict.fromkeys(
        ("adamw-0.5M-100000-1", "adamw-4M-100000-1"), "49 steps, fewer than 100"
    )
    assert "2 runs left out, such as adamw-" in (tmp_path / "table.md").read_text()


def test_a_damaged_or_missing_law_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no law.json yet. Run `ttl lab` to its end"):
        read_law(tmp_path)
    (tmp_path / "law.json").write_text('{"laws": {"a": {}}, "arm": "a", "refused": {}}')
    with pytest.raises(InputError, match=r"law.json is damaged .* Run `ttl lab` again"):
        read_law(tmp_path)


def test_without_scipy_there_are_tables_and_no_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "scipy" else find(name, *rest))
    write_report(lab(tmp_path, make_rows()))
    assert (
        "No law: scipy: not installed. Install what this needs: pip install 'teenytinyllama[lab]'"
        in (tmp_path / "table.md").read_text()
    )


# Files.


def test_the_table_has_every_run_and_every_comparison(written: Path) -> None:
    table = (written / "table.md").read_text()
    for words in ("# Lab", "145 done, 3 diverged", "## Best learning rates", "## Tokens needed to reach adamw",
                  "## Best size for equal compute", "## Scaling law", "## The law checked", "| inside |"):  # fmt: skip
        assert words in table
    with (written / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 72 + 3
    assert {line["note"] for line in lines} == {"", "1 diverged: training has diverged at step 7"}
    assert float(lines[0]["bits_per_byte"]) > 1


def test_the_shares_of_tokens_are_near_what_made_them(written: Path) -> None:
    found = tokens_to_baseline(make_cells(read_outcomes(written)), "adamw")
    assert [each.size for each in found] == list(SIZES)
    for each in found:
        assert each.ratio == pytest.approx(0.5, abs=0.05)


def test_plots_are_drawn_where_there_is_something_to_draw(written: Path, tmp_path: Path) -> None:
    names = {"tokens.png", "rates.png", "isoflop.png", "baseline.png"}
    assert names <= {path.name for path in written.iterdir()}
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    write_report(lab(tmp_path, [row("adamw", "4M", 1e6, 1.5)]))
    assert {path.name for path in tmp_path.glob("*.png")} == {"tokens.png"}
    assert not list(tmp_path.glob("*partial*"))


# Plans.


def test_a_plan_uses_the_law_of_a_lab(written: Path) -> None:
    config = parse(
        PlanConfig, ["--tokens", "100000000", "--preset", "tiny", "--gpu", "h200", "--calibrate", str(written)]
    )
    plan = make_plan(config, recipes_folder())
    law, choice = read_law(written), plan.choice
    assert (plan.ranked_by, list(choice.losses), plan.fits) == ("lab", ["lab"], {})
    assert choice.prediction is not None
    assert choice.prediction.bits_per_byte == pytest.approx(law.bits_per_byte(choice.num_parameters, choice.tokens))
    assert choice.losses["lab"] == pytest.approx(choice.prediction.nats_per_token[0])
    text = " ".join(render(plan).split())
    for words in ("predicted loss by the lab's law", "bits/byte 90 %", f"{written}: law fitted to 24 runs of muon",
                  "times the tokens of its longest run", f"{choice.prediction.bits_per_byte:.3f}"):  # fmt: skip
        assert words in text
    assert "four laws" not in text
    assert json.loads(json.dumps(plan.to_json()))["lab"] == str(written)


def test_a_plan_with_a_lab_counts_repeated_tokens(written: Path) -> None:
    def loss(*more: str) -> float:
        argv = ["--tokens", "100000000", "--preset", "tiny", "--gpu", "h200", "--calibrate", str(written), *more]
        plan = make_plan(parse(PlanConfig, argv), recipes_folder())
        assert plan.choice.prediction is not None
        assert plan.choice.losses["lab"] == pytest.approx(plan.choice.prediction.nats_per_token[0])
        return plan.choice.losses["lab"]

    assert loss("--unique_tokens", "10000000") > loss() == loss("--unique_tokens", "1000000000")


def test_a_lab_without_a_law_or_beside_another_is_refused(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab(tmp_path / "new", [row("adamw", "4M", 1e6, 1.5)])
    monkeypatch.setattr(sys, "argv", ["ttl", "plan", "--tokens", "1000000000", "--calibrate", str(tmp_path / "new")])
    assert main() == EXIT_BAD_INPUT
    assert "has no law.json yet. Run `ttl lab` to its end." in capsys.readouterr().err
    config = parse(PlanConfig, ["--tokens", "1000000000", "--calibrate", str(written), str(tmp_path / "new")])
    with pytest.raises(InputError, match="are several labs, and a plan uses one law"):
        make_plan(config, recipes_folder())
    write_report(tmp_path / "new")
    config = parse(PlanConfig, ["--tokens", "1000000000", "--calibrate", str(tmp_path / "new")])
    with pytest.raises(InputError, match="1 runs of 1 sizes and 1 budgets are too few for a law"):
        make_plan(config, recipes_folder())
