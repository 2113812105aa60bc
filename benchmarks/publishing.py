"""Does publishing beside a training slow it? The same run without a follower, with one, and with a Hub that is dead.

    python benchmarks/publishing.py --tokenizer outputs/tiny/tokenizer --packed outputs/tiny/packed

The Hub is the one of the tests, on this machine, so it takes processor time as well that a real one would not. Every
20 steps a checkpoint is saved and published, far more often than in a real run.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_benchmark"


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(folder: Path, options: list[str], endpoint: str | None, seconds: dict[str, list[float]], name: str) -> float:
    """Train once in a new folder and return the median of the tokens a second of its logged intervals."""
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    words = ["pretrain", "--preset", "tiny", "--output_dir", str(run), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment["PYTHONPATH"] = str(ROOT)
    if endpoint:
        environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
        words += ["--hub_model_id", f"ana/{run.parent.name}"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "teenytinyllama", *words], env=environment)
    while not (run / "run.json").exists() and process.poll() is None:
        time.sleep(0.05)
    seconds.setdefault(name, []).append(time.perf_counter() - start)
    if process.wait() != 0:
        raise SystemExit(f"{name}: the training failed")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return common.median(record["tokens_per_second"] for record in records[1:] if "tokens_per_second" in record)


def main() -> None:
    """Print a table and write JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--packed", required=True)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    options = ["--tokenizer", arguments.tokenizer, "--packed", arguments.packed, "--max_steps", str(arguments.steps)]
    options += ["--tokens_per_step", "2048", "--save_steps", "20", "--save_total_limit", "1", "--logging_steps", "10"]
    options += ["--eval_strategy", "no", "--per_device_train_batch_size", "8"]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        command = [sys.executable, str(ROOT / "tests" / "hub_server.py"), str(folder / "hub"), "--port", str(port)]
        server = subprocess.Popen([*command, "--user", f"ana={TOKEN}"], stdout=subprocess.DEVNULL)
        endpoints = {"alone": None, "followed": f"http://127.0.0.1:{port}", "dead Hub": "http://127.0.0.1:9"}
        cases: dict[str, Callable[[], float]] = {
            case: partial(train, folder, options, endpoint, seconds, case) for case, endpoint in endpoints.items()
        }
        try:
            speeds = common.interleave(cases, arguments.repeats)
        finally:
            server.kill()
    for case, values in speeds.items():
        print(f"{case:10} {common.median(values):10,.0f} tokens/s {common.median(seconds[case]):8.1f} s to run.json")
    if arguments.json:
        figures = {"tokens_per_second": speeds, "seconds_to_run_json": seconds, "steps": arguments.steps}
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
