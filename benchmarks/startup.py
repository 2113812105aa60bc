"""How long a user waits: import, help, a refusal, and the first step of a training.

    python benchmarks/startup.py --tokenizer outputs/tokenizer --packed outputs/packed

The floor for a training is what importing torch and the Trainer takes in one process. `ttl pretrain` imports them once;
its check and its ranks are forks of it, so that a refusal costs nothing and signals have somebody to hold them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import interleave, median, parser, print_table, seconds_of, write_results

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip


def run(command: list[str], codes: tuple[int, ...] = (0,)) -> float:
    """Return the seconds of a command that ends with one of the codes."""

    def call() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in codes:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")

    return seconds_of(call)


def first_step(command: list[str]) -> float:
    """Return the seconds until the line of the first step is printed."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--output_dir", f"{folder}/run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        seconds, output = None, ""
        for line in process.stdout:
            output += line
            if line.lstrip().startswith("step") and seconds is None:
                seconds = time.perf_counter() - start
        if process.wait() or seconds is None:
            raise SystemExit(f"no step was printed by {' '.join(command)}\n{output}")
        return seconds


def main() -> None:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    options.add_argument("--packed", required=True, help="folder of packed rows")
    arguments = options.parse_args()
    context = json.loads((Path(arguments.packed) / "run.json").read_text())["context"]
    python, ttl = sys.executable, [sys.executable, "-m", "teenytinyllama"]
    training = ["--preset", "160m", "--shape", json.dumps(SHAPE), "--tokenizer", arguments.tokenizer]
    training += ["--packed", arguments.packed, "--tokens_per_step", str(context), "--max_steps", "2"]
    training += ["--eval_strategy", "no", "--save_strategy", "no"]
    recipe = str(Path(__file__).resolve().parent.parent / "recipes" / "pretrain.py")
    cases: dict[str, Any] = {
        "python -c pass": lambda: run([python, "-c", "pass"]),
        "import teenytinyllama": lambda: run([python, "-c", "import teenytinyllama"]),
        "ttl --help": lambda: run([*ttl, "--help"]),
        "ttl pretrain --help": lambda: run([*ttl, "pretrain", "--help"]),
        "ttl pretrain, refused": lambda: run([*ttl, "pretrain", *training, "--learning_rat", "1"], (2,)),
        "floor: import torch, Trainer, Llama": lambda: run(
            [python, "-c", "import torch; from transformers import LlamaForCausalLM, Trainer, TrainingArguments"]
        ),
        "python recipes/pretrain.py, first step": lambda: first_step([python, recipe, *training]),
        "ttl pretrain, first step": lambda: first_step([*ttl, "pretrain", *training]),
    }
    seconds = interleave(cases, arguments.repeats)
    print_table(["what", "seconds"], [[name, median(found)] for name, found in seconds.items()])
    write_results(arguments.json, {"seconds": seconds})


if __name__ == "__main__":
    main()
