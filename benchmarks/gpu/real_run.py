"""160m by the shipped recipe and by TeenyTinyLlama's, on the same rows and for as many tokens.

    python benchmarks/gpu/real_run.py train ours --tokens 105e6 --tokenizer T --packed P --output_dir runs/ours
    python benchmarks/gpu/real_run.py train ancestor --tokens 105e6 --tokenizer T --packed P --output_dir runs/ancestor
    python benchmarks/gpu/real_run.py report runs/ours runs/ancestor --plot real-run.png --json real-run.json

`train` is `ttl pretrain`: ours with `recipes/configs/160m/pretrain.yaml`, its warm-up as the same share of the steps;
the ancestor with `recipes/configs/ancestor/160m.yaml`, which says what it cannot reproduce. Both score the same
held-out documents eleven times.

`report` prints bits per byte against tokens, seconds and joules; of a run that was cut off, as far as it came. Seconds
are those of training steps; joules are of the GPU and, as codecarbon models them, of processor and memory, with
evaluations.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts beside this folder

from common import median, print_table, write_results

from teenytinyllama.arguments import load_yaml
from teenytinyllama.presets import MFU_CONVENTIONS
from teenytinyllama.stage_folder import METRICS_NAME
from teenytinyllama.training.metrics import read_jsonl

_CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
RECIPES = {"ours": _CONFIGS / "160m" / "pretrain.yaml", "ancestor": _CONFIGS / "ancestor" / "160m.yaml"}
EVALUATION = {"eval_steps": 0.1, "eval_max_tokens": 200_000}
JOULES_A_KWH = 3.6e6
MOST_DRAWN = 1.6  # times the lowest score


def values_of(recipe: str, arguments: Any) -> dict[str, Any]:
    """Return the values of a run by a recipe."""
    values = load_yaml(RECIPES[recipe].read_text(encoding="utf-8"), RECIPES[recipe].name)
    if recipe == "ancestor":
        values |= {"save_strategy": "no"}
    else:
        steps = round(int(values["max_tokens"]) / int(values["tokens_per_step"]))
        values |= {"warmup_steps": values["warmup_steps"] / steps, "save_steps": 0.2, "save_total_limit": None}
    given = {name: getattr(arguments, name) for name in ("tokenizer", "packed", "output_dir")}
    return {**values, **EVALUATION, **given, "max_tokens": int(arguments.tokens)}


def train(arguments: Any) -> int:
    """Run `ttl pretrain` by a recipe and return its exit code; --set changes single values."""
    values = {**values_of(arguments.recipe, arguments), **dict(arguments.set)}
    options = [text for name, value in values.items() for text in (f"--{name}", _as_option(value))]
    command = [sys.executable, "-m", "teenytinyllama", "pretrain", "--accelerate", "single", *options]
    return subprocess.run(command, check=False).returncode


def _as_option(value: Any) -> str:
    return value if isinstance(value, str) else "null" if value is None else json.dumps(value)


def _pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, value


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Return tokens, training seconds, joules and bits per byte at each evaluation of a run's part of held-out text."""
    import numpy as np

    records = read_jsonl(folder / METRICS_NAME)
    tokens, seconds = [0], [0.0]
    for record in (record for record in records if "loss" in record):
        seconds.append(seconds[-1] + (record["tokens"] - tokens[-1]) / record["tokens_per_second"])
        tokens.append(record["tokens"])
    curve: list[dict[str, float]] = []
    for record in (record for record in records if "bits_per_byte" in record):
        if curve and curve[-1]["tokens"] == record["tokens"]:
            continue  # after the last step's score comes that of all documents, which belongs to no curve
        curve.append(
            {"tokens": record["tokens"], "seconds": float(np.interp(record["tokens"], tokens, seconds)),
             "joules": JOULES_A_KWH * record["kwh"], "bits_per_byte": record["bits_per_byte"]}
        )  # fmt: skip
    return curve


def _run_of(folder: Path) -> dict[str, Any]:
    """Return a run's manifest, or what stands in for it when the run was cut off before its end."""
    if (folder / "run.json").is_file():
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    records = read_jsonl(folder / METRICS_NAME)
    last = next(record for record in reversed(records) if "bits_per_byte" in record)
    train = [record for record in records if "loss" in record and record["step"] <= last["step"]]
    medians = {key: median(record[key] for record in train) for key in ("tokens_per_second", *MFU_CONVENTIONS)}
    return {"training": {"tokens": last["tokens"], **medians}, "results": {"final": last}}


def reach(curve: list[dict[str, float]], bits_per_byte: float, key: str) -> float | None:
    """Return the tokens, seconds or joules at which a curve comes down to a score, between evaluations by a line."""
    for before, after in itertools.pairwise(curve):
        if before["bits_per_byte"] == bits_per_byte:
            return before[key]
        if after["bits_per_byte"] <= bits_per_byte < before["bits_per_byte"]:
            share = (before["bits_per_byte"] - bits_per_byte) / (before["bits_per_byte"] - after["bits_per_byte"])
            return before[key] + share * (after[key] - before[key])
    return None


def report(folders: list[Path], plot: Path | None) -> dict[str, Any]:
    """Print how the runs compare and return the figures."""
    runs = {folder.name: _run_of(folder) for folder in folders}
    curves = {folder.name: read_curve(folder) for folder in folders}
    names = list(curves)
    print_table([f"{name}: bits per byte at tokens" for name in names],
                [[f"{point['bits_per_byte']:.4f} at {point['tokens'] / 1e6:.1f}M" if point else "" for point in points]
                 for points in itertools.zip_longest(*curves.values())])  # fmt: skip
    figures = {}
    for name, run in runs.items():
        training, final = run["training"], run["results"]["final"]
        end, best = curves[name][-1], min(curves[name], key=lambda point: point["bits_per_byte"])
        figures[name] = {**{key: training.get(key) for key in ("tokens", "tokens_per_second", *MFU_CONVENTIONS,
                                                               "seconds", "peak_gpu_memory_gb",
                                                               "per_device_train_batch_size", "speed", "hardware")},
                         "training_seconds": end["seconds"], "joules": end["joules"],
                         "bits_per_byte": end["bits_per_byte"], "perplexity": final["perplexity"],
                         "of_all_held_out": final["bits_per_byte"] if "hashes" in run else None,
                         "lowest": best, "curve": curves[name]}  # fmt: skip
    print()
    print_table(["run", "bits per byte", "lowest", "at tokens", "of all held-out text", "perplexity", "tokens/s",
                 "MFU, 6N+12LhT", "MFU, products", "GPU GB", "training s", "all s", "kJ"],
                [[name, found["bits_per_byte"], found["lowest"]["bits_per_byte"],
                  f"{found['lowest']['tokens'] / 1e6:.1f}M", found["of_all_held_out"], found["perplexity"],
                  found["tokens_per_second"],
                  *(f"{100 * found[key]:.1f} %" for key in MFU_CONVENTIONS), found["peak_gpu_memory_gb"],
                  found["training_seconds"],
                  found["seconds"], found["joules"] / 1e3] for name, found in figures.items()])  # fmt: skip
    for name in (name for name, run in runs.items() if "hashes" not in run):
        print(f"{name} did not reach its end: what it was at its last evaluation")
    if len(names) == 2:
        ours, other = names
        goal = figures[other]["bits_per_byte"]
        for key in ("tokens", "seconds", "joules"):
            needed = reach(curves[ours], goal, key)
            if needed is not None:
                share = needed / curves[other][-1][key]
                print(f"{ours} is at {other}'s last score ({goal:.4f}) after {share:.1%} of its {key}")
    if plot:
        draw(curves, plot)
    return figures


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw bits per byte against tokens, seconds and joules."""
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), dpi=120, sharey=True)
    for axis, (key, label, unit) in zip(axes, (("tokens", "tokens", ""), ("seconds", "seconds of training", "s"),
                                               ("joules", "energy", "J")), strict=True):  # fmt: skip
        for name, curve in curves.items():
            axis.plot([point[key] for point in curve], [point["bits_per_byte"] for point in curve], "o-", label=name)
        axis.set_xlabel(label)
        axis.xaxis.set_major_formatter(EngFormatter(unit=unit, sep=""))
        axis.grid(alpha=0.3)
    lowest = min(point["bits_per_byte"] for curve in curves.values() for point in curve)
    axes[0].set_ylim(0.97 * lowest, MOST_DRAWN * lowest)  # random weights would press the rest together
    axes[0].set_ylabel("held-out bits per byte")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Train by one recipe, or compare two runs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = options.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train")
    training.add_argument("recipe", choices=["ours", "ancestor"])
    for name in ("tokenizer", "packed", "output_dir"):
        training.add_argument(f"--{name}", required=True)
    training.add_argument("--tokens", type=float, default=105e6)
    training.add_argument("--set", type=_pair, nargs="*", default=[], metavar="KEY=VALUE", help="a trial's own values")
    comparing = verbs.add_parser("report")
    comparing.add_argument("folders", nargs="+", type=Path)
    comparing.add_argument("--plot", type=Path)
    comparing.add_argument("--json", type=Path)
    arguments = options.parse_args()
    if arguments.verb == "train":
        sys.exit(train(arguments))
    write_results(arguments.json, {"runs": report(arguments.folders, arguments.plot)})


if __name__ == "__main__":
    main()
