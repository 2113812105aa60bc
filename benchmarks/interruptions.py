"""A training that is interrupted again and again, beside the same one that is left alone.

    python benchmarks/interruptions.py --config RUN.yaml --output_dir OUT --accelerate zero2 --ranks 2 1
    python benchmarks/interruptions.py --config RUN.yaml --output_dir OUT

At random moments (of a seed) a rank or `ttl` itself is killed with SIGKILL, or `ttl` gets a TERM; then the same command
is given again, with the next number of ranks in the list. Prints a table of what happened, and the sha256 of both final
models: the same, bit by bit, where the ranks never changed. Both runs are left in OUT.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import print_table, write_results

from teenytinyllama.stage_folder import sha256_file
from teenytinyllama.training.metrics import read_jsonl

FAULTS = ("SIGKILL of a rank", "SIGKILL of ttl", "SIGTERM of ttl")
Run = subprocess.Popen[str]


def start(arguments: Any, folder: Path, ranks: int) -> Run:
    """Start the training in a folder with so many ranks; what it says goes into a log."""
    words = ["--accelerate", arguments.accelerate, "--num_processes", str(ranks)] if arguments.accelerate else []
    command = [sys.executable, "-m", "teenytinyllama", "pretrain", "--config", arguments.config,
               "--output_dir", str(folder), *words]  # fmt: skip
    with Path(f"{folder}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def reached(folder: Path) -> int:
    """Return the last step that the run has logged."""
    lines = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    return max((line["step"] for line in lines), default=0)


def newest_checkpoint(folder: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def strike(run: Run, fault: str, dice: random.Random) -> None:
    """Let a fault happen to a run."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    if fault == "SIGKILL of a rank" and children:
        os.kill(int(dice.choice(children)), signal.SIGKILL)
    else:
        os.kill(run.pid, signal.SIGTERM if fault == "SIGTERM of ttl" else signal.SIGKILL)


def last_line(log: Path) -> str:
    """Return the last line of a log that says what ended the run."""
    lines = [
        line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith(("error", "stopped", "SIG"))
    ]
    return lines[-1][:110] if lines else ""


def interrupt(arguments: Any, folder: Path, steps: int) -> list[list[str]]:
    """Train with interruptions at random steps, and return a row for each."""
    dice, rows = random.Random(arguments.seed), []
    moments = sorted(dice.sample(range(1, steps), arguments.times))
    ranks = arguments.ranks or [1]
    for number, moment in enumerate([*moments, steps]):
        count, begun = ranks[number % len(ranks)], time.monotonic()
        resumed = newest_checkpoint(folder)
        run = start(arguments, folder, count)
        while run.poll() is None and reached(folder) < moment:
            time.sleep(0.1)
        fault = dice.choice(FAULTS) if run.poll() is None and moment < steps else ""
        if fault:
            time.sleep(dice.random())
            step = reached(folder)
            strike(run, fault, dice)
        code = run.wait()
        step = step if fault else reached(folder)
        rows.append([number + 1, count, resumed, step, fault or "none, to its end", code, newest_checkpoint(folder),
                     f"{time.monotonic() - begun:.0f}", last_line(Path(f"{folder}.log")) if fault else ""])  # fmt: skip
        print(*rows[-1], flush=True)
        if code == 0:
            break
        time.sleep(1.0 + 6.0 * (fault == "SIGKILL of ttl"))  # ranks of a killed `ttl` save and end by themselves
    return rows


def main() -> None:
    """Train both, and print what happened."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", required=True)
    options.add_argument("--output_dir", type=Path, required=True)
    options.add_argument("--times", type=int, default=10)
    options.add_argument("--accelerate")
    options.add_argument("--ranks", type=int, nargs="*", help="numbers of ranks, in turn")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path)
    arguments = options.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    alone, torn = arguments.output_dir / "alone", arguments.output_dir / "interrupted"
    begun = time.monotonic()
    if start(arguments, alone, (arguments.ranks or [1])[0]).wait():
        sys.exit(f"the run without interruptions failed, see {alone}.log")
    seconds = time.monotonic() - begun
    rows = interrupt(arguments, torn, reached(alone))
    heads = [
        "start",
        "ranks",
        "from step",
        "to step",
        "fault",
        "exit code",
        "newest checkpoint",
        "seconds",
        "last line",
    ]
    print_table(heads, rows)
    results = {folder.name: json.loads((folder / "run.json").read_text())["results"]["final"]["bits_per_byte"]
               for folder in (alone, torn)}  # fmt: skip
    hashes = {folder.name: sha256_file(folder / "model.safetensors") for folder in (alone, torn)}
    losses = [
        [line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line] for folder in (alone, torn)
    ]
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    print(f"\nalone {seconds:.0f} s; sha256 {hashes}; bits per byte {results}; losses at most {apart:.2e} apart")
    write_results(arguments.json, {"rows": rows, "sha256": hashes, "bits_per_byte": results, "losses_apart": apart})


if __name__ == "__main__":
    main()
