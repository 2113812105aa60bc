"""A training step through `ttl pretrain` against a bare PyTorch loop, in turn, in the same run.

    python benchmarks/training_step.py --tokenizer outputs/tokenizer --packed outputs/packed

The model is the preset 160m cut to 6 layers x 256; rows as packed; one step is one micro-batch, so that everything but
the model weighs as much as it can. All cases use the fused AdamW, clip gradients like the Trainer does, and see the
same rows. Speeds are medians over the steps after the first few; a run's own compilation is not in them.

bare           model(input_ids, labels).loss.backward(), clip, step
bare, layers   the same with each layer compiled
bare, loss     the same as bare, with torch's chunked loss
bare, both
trainer        transformers.Trainer with its defaults
ancestor       our recipe with the ancestor's choices: whole logits, no compilation, AdamW that is not fused
ours, eager    `ttl pretrain --compile_layers false`
ours           `ttl pretrain --compile_layers true`
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bare_loop import WARM_UP_STEPS, build_model
from common import in_child, interleave, median, parser, print_table, write_results

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
         "num_key_value_heads": 4}  # fmt: skip
BARE = {"bare": [], "bare, layers": ["layers"], "bare, loss": ["loss"], "bare, both": ["layers", "loss"]}
OURS = {
    "ours, eager": ["--compile_layers", "false"],
    "ours": ["--compile_layers", "true"],
    "ancestor": ["--compile_layers", "false", "--chunked_loss", "false", "--optim", "adamw_torch"],
}


def plain_trainer(arguments: Any) -> list[float]:
    """Return the seconds of each step of the Trainer with its defaults."""
    import numpy as np
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from teenytinyllama.training.pretrain import CausalCollator, TrainingRows

    rows = np.load(Path(arguments.packed) / "train.npy", mmap_mode="r")
    times = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        settings = TrainingArguments(
            folder, max_steps=arguments.steps, per_device_train_batch_size=arguments.rows, save_strategy="no",
            logging_steps=10, learning_rate=1e-3, weight_decay=0.1, adam_beta2=0.95, use_cpu=True,
            remove_unused_columns=False,
        )  # fmt: skip
        Trainer(
            build_model("160m", SHAPE, arguments.tokenizer, rows.shape[1]),
            settings,
            CausalCollator(0),
            TrainingRows(rows, arguments.steps * arguments.rows, 0),
            callbacks=[Clock()],
        ).train()
    return [after - before for before, after in itertools.pairwise(times)]


def ours(arguments: Any, options: list[str]) -> float:
    """Return tokens/s of `ttl pretrain`, as its log has them: the median of the intervals after the first."""
    context = json.loads((Path(arguments.packed) / "run.json").read_text())["context"]
    tokens_per_step = arguments.rows * context
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "teenytinyllama", "pretrain", "--preset", "160m", "--shape", json.dumps(SHAPE)]
        command += ["--tokenizer", arguments.tokenizer, "--packed", arguments.packed, "--output_dir", f"{folder}/run"]
        command += ["--tokens_per_step", str(tokens_per_step), "--max_steps", str(arguments.steps)]
        command += ["--per_device_train_batch_size", str(arguments.rows), "--logging_steps", "5"]
        command += ["--eval_strategy", "no", "--save_strategy", "no", *options]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        return median(line["tokens_per_second"] for line in lines[2:] if "loss" in line)


def bare(arguments: Any, choices: list[str]) -> float:
    """Return tokens/s of the bare loop in a process of its own."""
    command = [str(Path(__file__).with_name("bare_loop.py")), "--preset", "160m", "--shape", json.dumps(SHAPE)]
    command += ["--tokenizer", arguments.tokenizer, "--packed", arguments.packed, "--steps", str(arguments.steps)]
    found = in_child([*command, "--rows", str(arguments.rows), "--with", *choices])
    return float(found["tokens_per_step"] / median(found["seconds"][WARM_UP_STEPS:]))


def measure(arguments: Any, name: str) -> float:
    """Return tokens/s of a case in a process of its own."""
    if name in OURS:
        return ours(arguments, OURS[name])
    if name in BARE:
        return bare(arguments, BARE[name])
    command = [sys.executable, __file__, "--in_this_process", "--tokenizer", arguments.tokenizer]
    command += ["--packed", arguments.packed, "--steps", str(arguments.steps), "--rows", str(arguments.rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    options.add_argument("--packed", required=True, help="folder of packed rows")
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--rows", type=int, default=4, help="rows a step")
    options.add_argument("--cases", nargs="+", default=[*BARE, "trainer", *OURS])
    options.add_argument("--in_this_process", action="store_true", help="the Trainer alone, here and now")
    arguments = options.parse_args()
    if arguments.in_this_process:
        run = plain_trainer(arguments)
        context = json.loads((Path(arguments.packed) / "run.json").read_text())["context"]
        print(arguments.rows * context / median(run[WARM_UP_STEPS:]))
        return
    speeds = interleave({name: lambda name=name: measure(arguments, name) for name in arguments.cases},
                        arguments.repeats)  # fmt: skip
    base = median(speeds["bare"]) if "bare" in speeds else None
    compiled = median(speeds["bare, layers"]) if "bare, layers" in speeds else None
    print(f"{os.cpu_count()} cores, {arguments.rows} rows a step, medians of {arguments.repeats} runs")
    rows = []
    for name, found in speeds.items():
        speed = median(found)
        rows.append([name, speed, base and speed / base, compiled and speed / compiled])
    print_table(["case", "tokens/s", "times bare", "times bare, layers"], rows)
    write_results(arguments.json, {"tokens_per_second": speeds})


if __name__ == "__main__":
    main()
