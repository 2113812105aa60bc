"""Tokens/s, MFU and memory of a training step on a GPU: `ttl pretrain` with each choice, and a bare loop beside it.

    python benchmarks/gpu/speed.py --preset 160m --tokenizer outputs/tokenizer --packed outputs/packed --json speed.json

One NVIDIA GPU, rows of 2,048 tokens, bfloat16. Each case is a process of its own; its speed is the median after the
first steps, so compilation is not in it. MFU is over the data sheet's peak, by each of `presets.MFU_CONVENTIONS`.

ours              what `ttl pretrain` chooses by itself for a long run
ours, N rows      the same with that micro-batch
ours, ddp         the same with all visible GPUs, which share the rows of a step; likewise zero1, zero2, zero3, which
                  need deepspeed; MFU is over the peak of all, GPU GB that of the first
whole logits      layers compiled, loss as transformers makes it
eager             nothing compiled
liger             Liger's kernels, nothing compiled; needs liger-kernel, as does the next
liger, layers     both
ancestor          TeenyTinyLlama's settings: 4 rows a step, eager, whole logits, AdamW that is not fused
bare              a bare loop with the same choices and rows as ours (`bare_loop.py`)
bare, whole       the same with whole logits
bare, flash       the same with torch's own flash kernel for attention, where cuDNN's is the default
bare, cudnn       the same with cuDNN's
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts beside this folder

from bare_loop import WARM_UP_STEPS
from common import median, parser, print_table, run_limited, write_results

from teenytinyllama.checks import RunFailedError
from teenytinyllama.gpus import device_name, has_accelerator, peak_flops
from teenytinyllama.presets import MFU_CONVENTIONS, PRESETS, flops_per_token, matrix_flops_per_token
from teenytinyllama.stage_folder import METRICS_NAME
from teenytinyllama.training.metrics import read_jsonl

STEP_ROWS = 64  # of a step: any micro-batch of note divides it
ROWS = {"160m": 32, "460m": 16, "1b1": 8}  # of a micro-batch, where a case does not name it
SWEPT_ROWS = {"160m": (8, 16, 64), "460m": (8, 32), "1b1": (4, 16)}
SEVERAL = ("ddp", "zero1", "zero2", "zero3")  # ways to use more than one GPU
CASE_SECONDS = 150  # more is a hang
ON, OFF = ["--compile_layers", "true"], ["--compile_layers", "false"]
OURS: dict[str, list[str]] = {
    "ours": ON,
    "whole logits": [*ON, "--chunked_loss", "false"],
    "eager": OFF,
    "liger": [*OFF, "--use_liger_kernel", "true"],
    "liger, layers": [*ON, "--use_liger_kernel", "true"],
    "ancestor": [*OFF, "--chunked_loss", "false", "--optim", "adamw_torch"],
}
BARE: dict[str, list[str]] = {
    "bare": ["layers", "head"],
    "bare, whole": ["layers"],
    "bare, flash": ["layers", "head", "flash"],
    "bare, cudnn": ["layers", "head", "cudnn"],
}
GOALS = {"160m": (330_000, 412_000), "460m": (116_000, 145_000)}  # tokens/s on an H100: 40 and 50 % of its peak


def case_names(preset: str, num_gpus: int) -> list[str]:
    """Return the cases of a preset, the most important first."""
    names = ["ours", "bare", "ancestor", "whole logits", "eager", *(f"ours, {n} rows" for n in SWEPT_ROWS[preset])]
    liger = ["liger", "liger, layers"] if importlib.util.find_spec("liger_kernel") else []
    several = [f"ours, {way}" for way in SEVERAL] if num_gpus > 1 else []
    return [*names, *liger, *(name for name in BARE if name != "bare"), *several]


def run_child(command: list[str]) -> str:
    """Return the output of a process.

    Raises:
        RunFailedError: it failed, with the end of what it said, or took too long.
    """
    try:
        done = run_limited(command, CASE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunFailedError(f"more than {CASE_SECONDS} s") from error
    if done.returncode:
        raise RunFailedError(" ".join((done.stderr or done.stdout).split())[-300:])
    return done.stdout


def measure_bare(arguments: Any, choices: list[str]) -> dict[str, Any]:
    """Return tokens/s and peak memory of the bare loop."""
    rows = arguments.rows or ROWS[arguments.preset]
    command = [str(Path(__file__).resolve().parents[1] / "bare_loop.py"), "--preset", arguments.preset]
    command += ["--tokenizer", arguments.tokenizer, "--packed", arguments.packed, "--steps", str(arguments.steps)]
    command += ["--rows", str(rows), "--accumulation", str(max(1, STEP_ROWS // rows)), "--with", *choices]
    found = json.loads(run_child([*command, "--profile", str(arguments.profile)]).strip().splitlines()[-1])
    speed = found["tokens_per_step"] / median(found["seconds"][WARM_UP_STEPS:])
    return {"tokens_per_second": speed, "peak_memory_gb": found["peak_memory_gb"], "rows": rows,
            "first_step_seconds": found["seconds"][0], "profile": found["profile"]}  # fmt: skip


def measure_ours(arguments: Any, name: str) -> dict[str, Any]:
    """Return tokens/s and peak memory of `ttl pretrain`, as its own log and record have them."""
    import torch

    base, _, swept = name.partition(", ")
    rows = int(swept.split()[0]) if swept.endswith(" rows") else arguments.rows or ROWS[arguments.preset]
    options, steps = OURS[name if name in OURS else base], arguments.steps
    context = int(json.loads((Path(arguments.packed) / "run.json").read_text())["context"])
    step_rows = STEP_ROWS
    if name == "ancestor":
        rows = step_rows = 4
        steps *= 4  # its steps are short
    if swept in SEVERAL:
        rows = min(rows, STEP_ROWS // max(1, torch.cuda.device_count()))
    options = [*options, "--accelerate", swept if swept in SEVERAL else "single"]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        command = ["-m", "teenytinyllama", "pretrain", "--preset", arguments.preset, "--output_dir", str(folder)]
        command += ["--tokenizer", arguments.tokenizer, "--packed", arguments.packed, "--max_steps", str(steps)]
        command += ["--tokens_per_step", str(step_rows * context), "--per_device_train_batch_size", str(rows)]
        command += ["--logging_steps", "4", "--eval_strategy", "no", "--save_strategy", "no", *options]
        run_child(command)
        records = [record for record in read_jsonl(folder / METRICS_NAME) if "loss" in record]
        training = json.loads((folder / "run.json").read_text())["training"]
    return {
        "tokens_per_second": median(record["tokens_per_second"] for record in records if record["step"] > 8),
        "peak_memory_gb": training.get("peak_gpu_memory_gb"),
        "rows": rows,
        "gpus": training["world_size"],
        "last_loss": records[-1]["loss"],
        "speed": training["speed"],
    }


def with_mfu(figures: dict[str, Any], preset: str, context: int, peak: float) -> dict[str, Any]:
    """Return the figures of a case with its MFU by each convention."""
    counted = (flops_per_token(PRESETS[preset], context), matrix_flops_per_token(PRESETS[preset], context))
    speed = figures["tokens_per_second"] / (peak * figures.get("gpus", 1))
    return {**figures, **{name: speed * flops for name, flops in zip(MFU_CONVENTIONS, counted, strict=True)}}


def show(cases: dict[str, dict[str, Any]], preset: str) -> None:
    """Print the table, and what the goals say of it."""
    speed = {name: found["tokens_per_second"] for name, found in cases.items() if "error" not in found}
    heads = ["case", "GPUs", "rows", "tokens/s", "MFU, 6N+12LhT", "MFU, products", "GPU GB", "of bare", "of ancestor"]
    rows = []
    for name, found in cases.items():
        if "error" in found:
            rows.append([name, "-", "-", found["error"][:80], *["-"] * 5])
            continue
        ratios = [
            found["tokens_per_second"] / speed[other] if other in speed else None for other in ("bare", "ancestor")
        ]
        rows.append([name, found.get("gpus", 1), found["rows"], found["tokens_per_second"],
                     *(f"{100 * found[name]:.1f} %" for name in MFU_CONVENTIONS), found["peak_memory_gb"],
                     *ratios])  # fmt: skip
    print_table(heads, rows)
    if "ours" in speed and preset in GOALS:
        floor, goal = GOALS[preset]
        reached = "goal reached" if speed["ours"] >= goal else "floor reached" if speed["ours"] >= floor else "missed"
        print(f"ours: {speed['ours']:,.0f} tokens/s; floor {floor:,}, goal {goal:,} on an H100: {reached}")


def main() -> None:
    """Measure the cases one after the other; what is known when time ends is printed and written."""
    import torch

    options = parser(__doc__)
    options.add_argument("--preset", choices=sorted(ROWS), default="160m")
    options.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    options.add_argument("--packed", required=True, help="folder of packed rows, context 2,048")
    options.add_argument("--cases", nargs="+", help="default: all")
    options.add_argument("--rows", type=int, help="rows of a micro-batch where a case does not name them")
    options.add_argument("--steps", type=int, default=20, help="steps of 64 rows")
    options.add_argument("--profile", type=int, default=0, metavar="N", help="bare loops: the N slowest kernels")
    options.add_argument("--minutes", type=float, default=8, help="after so many no case begins")
    arguments = options.parse_args()
    known = case_names(arguments.preset, torch.cuda.device_count())
    names = arguments.cases or known
    if unknown := [name for name in names if name not in (*known, *OURS, *BARE)]:
        options.error(f"--cases {', '.join(unknown)}: must be of {', '.join(known)}")
    start, cases = time.monotonic(), {}
    device = device_name() if has_accelerator() else "no GPU"
    peak, source = peak_flops(device_name())
    context = int(json.loads((Path(arguments.packed) / "run.json").read_text())["context"])
    about = {"preset": arguments.preset, "device": device, "peak_flops": peak, "peak_source": source,
             "mfu_conventions": MFU_CONVENTIONS, "context": context}  # fmt: skip
    for name in names:
        if time.monotonic() - start > 60 * arguments.minutes:
            cases[name] = {"error": f"skipped: {arguments.minutes:g} minutes are over"}
            continue
        try:
            found = measure_bare(arguments, BARE[name]) if name in BARE else measure_ours(arguments, name)
            cases[name] = with_mfu(found, arguments.preset, context, peak)
        except RunFailedError as error:  # the other cases are still to be had
            cases[name] = {"error": str(error)}
        print(f"{time.monotonic() - start:.0f} s {name}: {cases[name].get('tokens_per_second')}", file=sys.stderr)
        write_results(arguments.json, {**about, "cases": cases})
    show(cases, arguments.preset)
    write_results(arguments.json, {**about, "cases": cases})


if __name__ == "__main__":
    main()
