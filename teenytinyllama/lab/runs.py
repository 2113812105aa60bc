"""The runs of a laboratory: `ttl lab` trains them side by side, each as `ttl pretrain` would, and keeps a row of each.

The imports are paid once: where a process may fork, every run is a fork of this one. A run that diverges is a row like
the others. The same command goes on where a stopped laboratory was, and a larger grid adds its runs to a smaller one.
`report.write_report` tells what the rows say.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import check_types, load_yaml, write_yaml
from ..checks import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    RunFailedError,
    StoppedResumable,
    available_cores,
    ensure_folder,
    run_main,
)
from ..disk import scratch_folder
from ..gpus import count_usable_gpus, named_gpus
from ..launching.launch import ForkServer, resolve_training, start_training
from ..launching.processes import Child, ForkedChild, end_with
from ..launching.ranks import RankOptions, thread_share
from ..presets import training_flops
from ..progress import progress, say
from ..stage_folder import (
    METRICS_NAME,
    RUNS_FOLDER,
    RUNS_NAME,
    StageFolder,
    lock_run_folder,
    read_jsonl_records,
    read_manifest,
)
from ..training.metrics import DIVERGED, append_jsonl
from .comparison import read_rows
from .config import (
    LabConfig,
    LabRun,
    budgets,
    check_names,
    finalist_runs,
    find_recipes,
    longer_run,
    make_run,
    sweep_runs,
)
from .report import write_report

_POLL_SECONDS = 0.1
# Of a run's folder, what is kept without `keep_models`: its figures.
_KEPT = frozenset({"run.json", "config.yaml", "environment.json", "metrics.jsonl", "emissions.csv", "ledger.jsonl",
                   "loss.png"})  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """A place where one run at a time trains.

    Attributes:
        environment: variables that give it its GPU, or its share of the cores.
        sharers: slots on the same GPU or machine, among which its energy and money are divided.
    """

    environment: dict[str, str]
    sharers: int


def run_lab(config: LabConfig, may_fork: bool) -> Path:
    """Make the runs of the grid that are missing, report on all, and return the laboratory's folder.

    Args:
        config: the grid.
        may_fork: this process has done nothing else, see `ForkServer`.

    Raises:
        InputError: a config of a run is refused, before any has begun; or the folder holds runs of other settings.
        RunFailedError: a run failed for another reason than divergence; the others were made.
        StoppedResumable: a signal came; what the running ones have done is saved where they save.
    """
    server = ForkServer(may_fork, ["teenytinyllama.training.pretrain", "accelerate.commands.launch"])
    folder = Path(config.output_dir)
    ensure_folder("output_dir", folder)
    with scratch_folder() as scratch:
        call = functools.partial(server.call, folder=scratch)
        check_runs(config, call)
        slots = find_slots(config.runs_at_once)
        read_rows(folder)  # damaged ones are refused before the lock is written
        lock = lock_run_folder(folder)
        try:
            rows = read_rows(folder)
            train = functools.partial(train_runs, rows=rows, folder=folder, slots=slots,
                                      keep_models=config.keep_models, forks=server)  # fmt: skip
            failed = train(sweep_runs(config))
            failed += train(finalist_runs(config, rows.values()))
            call(functools.partial(write_report, folder, config.baseline))
            longer = longer_run(config, rows.values())
            if longer is not None:
                failed += train([longer], slots=find_slots(1))  # alone on the machine
                call(functools.partial(write_report, folder, config.baseline))
        finally:
            lock.release()
    if failed:
        raise RunFailedError(
            f"{len(failed)} runs failed, such as {failed[0]}: {rows[failed[0]]['reason']} "
            f"(its log: {_beside(failed[0], folder, '.log')}). The same command tries them again."
        )
    return folder


def check_runs(config: LabConfig, call: Callable[[Callable[[], Any]], Any]) -> None:
    """Check the config of one run of each recipe and of each size, without starting any.

    Args:
        config: the grid.
        call: calls a function, perhaps in another process, and returns its answer.

    Raises:
        InputError: see `PretrainConfig`, the message begins with the arm and the size; or see `check_names`.
    """
    from ..training.config import PretrainConfig

    recipes = find_recipes(config)
    pairs = [(recipe, config.sizes[0]) for recipe in recipes] + [(recipes[0], size) for size in config.sizes[1:]]
    for recipe, size in pairs:
        try:
            run = make_run(config, recipe, size, budgets(config, size)[0], config.seeds[0])
            values = check_types(PretrainConfig, {**run.values, "output_dir": run.name})
            call(functools.partial(_resolve_only, values))
        except InputError as error:
            raise type(error)(f"arms.{recipe.arm} at {size}: {error}") from error
    check_names(config)


def _resolve_only(values: dict[str, Any]) -> str:
    with scratch_folder() as empty:
        return str(resolve_training("pretrain", {**values, "output_dir": str(empty / "run")}, 1)["state"])


def find_slots(runs_at_once: int | None) -> list[Slot]:
    """Return the places where runs train: on the visible GPUs in turn, or on shares of the processor's cores."""
    gpus = count_usable_gpus()
    count = runs_at_once or gpus or available_cores()
    threads, (names, order) = thread_share(count), named_gpus(os.environ, gpus)
    if not gpus:
        return [Slot(threads, count)] * count
    return [
        Slot({"CUDA_VISIBLE_DEVICES": names[place % gpus], **order, **threads}, len(range(place % gpus, count, gpus)))
        for place in range(count)
    ]


def train_runs(
    runs: Iterable[LabRun],
    *,
    rows: dict[str, dict[str, Any]],
    folder: Path,
    slots: list[Slot],
    keep_models: bool,
    forks: ForkServer,
) -> list[str]:
    """Train the runs that have no row yet or have failed, and add their rows; return the names of those that fail.

    Args:
        runs: in the order in which they begin.
        rows: of the runs that have ended, by name; grows.
        folder: of the laboratory.
        slots: where they train; one run each at a time.
        keep_models: keep the weights.
        forks: makes the processes, where it can.

    Raises:
        InputError: a row there is of a run of the same name with other settings.
        StoppedResumable: a signal came; the running ones have been asked to save and stop.
    """
    runs = list(runs)
    place = StageFolder(folder, "lab", "laboratory")
    for run in runs:
        if run.name in rows:
            before = rows[run.name]["values"]
            place.ensure_same(before, dict.fromkeys(before) | run.values, f"({run.name}) Choose another folder.")
            if rows[run.name]["is_check"] and not run.is_check:  # a larger grid has the longer run of a smaller one
                rows[run.name] = rows[run.name] | {"is_check": False}
                append_jsonl(folder / RUNS_NAME, rows[run.name])
    waiting = [run for run in runs if rows.get(run.name, {}).get("state") not in ("done", "diverged")]
    count, ended, failed = len(waiting), 0, []
    running: dict[int, tuple[LabRun, Child, float]] = {}
    bar = progress(None, "training", "runs", total=count)
    try:
        while waiting or running:
            for number, slot in enumerate(slots):
                if waiting and number not in running:
                    run = waiting.pop(0)
                    running[number] = (run, _start(run, folder, slot, forks), time.monotonic())
            time.sleep(_POLL_SECONDS)
            for number, (run, child, start) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[number]
                row = make_row(run, folder, int(child.returncode or 0), slots[number].sharers)
                ended += 1
                _report(row, f"{ended}/{count}", time.monotonic() - start)
                bar.update()
                if row["state"] == "stopped":  # somebody ended this run alone
                    raise StoppedResumable(f"{run.name} was stopped; the same command goes on")
                failed += [run.name] if row["state"] == "failed" else []
                rows[run.name] = row
                append_jsonl(folder / RUNS_NAME, row)
                _clear(folder / RUNS_FOLDER / run.name, row, keep_models)
    finally:
        bar.close()
        _stop([child for _, child, _ in running.values()])
    return failed


def _start(run: LabRun, folder: Path, slot: Slot, forks: ForkServer) -> Child:
    """Start `ttl pretrain` for a run in a process of its own, which writes into the run's log."""
    place, settings = folder / RUNS_FOLDER / run.name, _beside(run.name, folder, ".yaml")
    values = {**run.values, "output_dir": str(place)}
    # A run that has ended and whose row was not written any more is taken in: `ttl pretrain` finds it complete.
    if (place / "run.json").is_file() and not _is_of(settings, values):
        shutil.rmtree(place)
    settings.parent.mkdir(exist_ok=True)
    write_yaml(settings, values, [f"ttl pretrain --config {settings}"])
    variables = {**slot.environment, "TTL_COMMAND": f"ttl pretrain --config {settings}"}
    with _beside(run.name, folder, ".log").open("wb") as output:
        if not forks.can_fork:
            command = [sys.executable, "-m", "teenytinyllama", "pretrain", "--config", str(settings)]
            return subprocess.Popen(command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=output, start_new_session=True)  # fmt: skip

        parent = os.getpid()

        def work() -> None:
            end_with(parent)  # else a run outlives a killed laboratory, and the next one finds its folder taken
            os.environ.update(variables)
            sys.modules["torch"].set_num_threads(int(variables["OMP_NUM_THREADS"]))
            raise SystemExit(run_main(lambda: start_training("pretrain", values, RankOptions(), may_fork=True)))

        return ForkedChild(work, output.fileno())


def _is_of(settings: Path, values: dict[str, Any]) -> bool:
    """Return whether the config that a run was started with has these values."""
    return settings.is_file() and load_yaml(settings.read_text(encoding="utf-8"), settings.name) == values


def _beside(name: str, folder: Path, ending: str) -> Path:
    return folder / RUNS_FOLDER / f"{name}{ending}"


def _stop(children: list[Child]) -> None:
    """Ask the processes to save and stop, and wait for them."""
    for child in children:
        child.send_signal(signal.SIGTERM)
    for child in children:
        child.wait()


def make_row(run: LabRun, folder: Path, code: int, sharers: int) -> dict[str, Any]:
    """Return the row of a run that has ended.

    `seconds` are those of training steps at their mean speed, without the start, evaluations and saving. Energy and
    money are the run's own as measured, divided by the runs that share its GPU or machine.

    Args:
        run: that has ended.
        folder: of the laboratory.
        code: its exit code.
        sharers: runs that share its GPU or machine.
    """
    place = folder / RUNS_FOLDER / run.name
    row: dict[str, Any] = {
        "name": run.name, "group": run.recipe.arm, "arm": run.recipe.label, "swept": run.recipe.swept,
        "size": run.size, "budget": run.tokens, "tokens": run.tokens, "seed": run.seed, "is_check": run.is_check,
        "values": run.values, "bits_per_byte": None, "loss": None, "kwh": None, "usd": None, "curve": [],
    }  # fmt: skip
    if code != EXIT_DONE:
        log = _beside(run.name, folder, ".log").read_text(encoding="utf-8", errors="replace").strip()
        is_stop = code in (EXIT_RESUMABLE, -signal.SIGTERM)
        state = "stopped" if is_stop else "diverged" if code == EXIT_FAILED and DIVERGED in log else "failed"
        said = [line for line in log.splitlines() if state != "diverged" or DIVERGED in line]
        return {**row, "state": state, "reason": said[-1].removeprefix("failed: ") if said else f"exit code {code}"}
    manifest = read_manifest("output_dir", place, "pretrain", "Delete the folder; the same command makes it again.")
    model, training, final = manifest["model"], manifest["training"], manifest["results"]["final"]
    evaluations = [record for record in read_jsonl_records(place / METRICS_NAME) if "scored_bytes" in record]
    seconds = training["tokens"] / training["steps_tokens_per_second"]
    tables = 2 * model["vocab_size"] * model["hidden_size"]
    flops = training_flops(model["num_parameters"], model["num_hidden_layers"], model["hidden_size"], model["context"])
    values = run.values
    return {
        **row,
        "state": "done",
        "num_parameters": model["num_parameters"],
        "num_non_embedding": model["num_parameters"] - tables,
        "hidden_size": model["hidden_size"],
        "vocab_size": model["vocab_size"],
        "tokens": training["tokens"],
        "tokens_per_step": training["tokens_per_step"],
        "unique_tokens": manifest["data"]["train_tokens"],
        "learning_rate": manifest["config"]["learning_rate"],
        "optimizer": manifest["config"]["optimizer"],
        "bits_per_byte": final["bits_per_byte"],
        "loss": final["nats_per_token"],
        "flops": flops * training["tokens"],
        "seconds": seconds,
        "tokens_per_second": training["steps_tokens_per_second"],
        "kwh": evaluations[-1]["kwh"] / sharers if evaluations and "kwh" in evaluations[-1] else None,
        "usd": values["price"] * seconds / 3600 / sharers if values.get("price") else None,
        "hardware": training["hardware"],
        "curve": [[record["tokens"], record["bits_per_byte"]] for record in evaluations[:-1]],
    }


def _report(row: dict[str, Any], place: str, seconds: float) -> None:
    what = f"{row['arm']}, {row['size']}, {row['tokens']:,} tokens, seed {row['seed']}"
    score = row["bits_per_byte"]
    result = f"{score:.4f} bits per byte" if score is not None else f"{row['state']}: {row['reason']}"
    say(f"{place:>9}  {what}: {result} ({seconds:,.0f} s)")


def _clear(place: Path, row: dict[str, Any], keep_models: bool) -> None:
    """Delete the weights and checkpoints of a run that is a row, unless they are to be kept."""
    if keep_models or row["state"] == "failed":
        return
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _KEPT:
            path.unlink()
