"""What the benchmark scripts share: a table, a JSON file, medians over interleaved repetitions, peak memory."""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TERM_SECONDS = 5.0  # from one signal to the next


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    made.add_argument("--repeats", type=int, default=3, help="interleaved repetitions; medians are reported")
    return made


def interleave(cases: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run every case in turn, `repeats` times over, so that a busy moment of the machine meets all of them."""
    results: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            results[name].append(run())
            print(f"{name}: {results[name][-1]:.6g}", file=sys.stderr, flush=True)  # what is known if it is stopped
    return results


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_child(arguments: Iterable[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a Python command line as a process of its own and return the JSON object on its last line of output."""
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run_limited(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a Python command line as a process of its own, for so long at most, and return what it said.

    `ttl` ends its ranks by itself, at the second signal even those that wait for one another on a GPU.

    Raises:
        subprocess.TimeoutExpired: it took longer; it has ended.
    """
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for _ in range(2):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(TERM_SECONDS)
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def peak_rss_mb(children: bool = False) -> float:
    """Return the peak resident memory of this process (or of its largest finished child) in MB."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def print_table(heads: list[str], rows: list[list[Any]]) -> None:
    """Print rows as a Markdown table."""
    texts = [heads, ["---"] * len(heads), *[[_text(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in texts) for i in range(len(heads))]
    for row in texts:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) and abs(cell) < 1000 else f"{cell:,.0f}" if isinstance(
        cell, float) else str(cell)  # fmt: skip


def write_results(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures with the versions and the machine they were taken on."""
    import tokenizers
    import torch
    import transformers

    if path is None:
        return
    about = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    path.write_text(json.dumps({"about": about, **figures}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
