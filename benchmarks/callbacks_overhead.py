"""What our callbacks cost of a training step: all together and each, timed directly and against a Trainer without them.

    python benchmarks/callbacks_overhead.py --steps 60 --repeats 3

The preset tiny on the embedded stories, packed here, on the CPU. Two measurements:

direct   one run with evaluations, samples and checkpoints; the run's own clock (`training/trainer.py`) times every
         event of every callback, and the energy tracker's threads are timed where they work
A, B     runs without and with our callbacks, in turn; no evaluation and no checkpoint in either

The direct figures count: on a busy machine two medians of steps differ by more than callbacks take. What a callback
does at every step and log line is compared with the time of a step (goal: under 0.5 %), with the rows of energy written
before evaluations and checkpoints. What is done at an evaluation comes seldom and is given in milliseconds each
time; samples of texts are work that was asked for.
"""

import contextlib
import gc
import itertools
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import median, parser, print_table, write_results
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from teenytinyllama.arguments import build, check_types
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.gpus import has_accelerator
from teenytinyllama.tokenizer.train import TokenizerConfig, build_tokenizer
from teenytinyllama.training import run as run_module
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import build_run
from teenytinyllama.training.run_plan import plan_run
from teenytinyllama.training.trainer import Clock

GOAL_PERCENT = 0.5
WARM_UP_STEPS = 5
SELDOM = ("on_evaluate", "on_prediction_step")  # the clock counts what happens at a checkpoint as saving


@dataclass(frozen=True)
class Training:
    """What all runs of a measurement train.

    Attributes:
        rows: of a micro-batch.
        compile_layers: costs each run a compilation, in the steps that do not count.
    """

    preset: str
    tokenizer: str
    packed: str
    tokens_per_step: int
    rows: int
    steps: int
    use_cpu: bool = True
    compile_layers: bool = False


class NamedClock(Clock):
    """The run's clock, with a part for every event of every callback."""

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Count the time as that of this event of this callback."""
        return super().timed(method, f"{type(method.__self__).__name__}.{method.__name__}")  # type: ignore[attr-defined]


class StepTimes(TrainerCallback):
    """The time from each step's beginning to the next one's: with everything that callbacks do between."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.begun: list[float] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the time; a GPU is waited for only where the measured interval begins and ends."""
        if state.global_step in (WARM_UP_STEPS, state.max_steps - 1) and has_accelerator():
            import torch

            torch.accelerator.synchronize()
        self.begun.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds of each step after the first few; on a GPU, of queueing it."""
        return [after - before for before, after in itertools.pairwise(self.begun)][WARM_UP_STEPS:]

    def mean_seconds(self) -> float:
        """Return the mean seconds of a step after the first few, also on a GPU."""
        found = self.seconds()
        return sum(found) / len(found)


@contextlib.contextmanager
def timed_tracker(seconds: dict[str, float]) -> Iterator[None]:
    """Time what the energy tracker does in threads of its own; both come again and again, each at its interval."""
    from codecarbon.emissions_tracker import BaseEmissionsTracker

    plain = {name: getattr(BaseEmissionsTracker, name) for name in ("_monitor_power", "_measure_power_and_energy")}

    def timed(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return plain[name](*arguments)
            finally:
                if threading.current_thread() is not threading.main_thread():
                    seconds["energy tracker's threads"] += time.thread_time() - start

        return call

    for name in plain:
        setattr(BaseEmissionsTracker, name, timed(name))
    try:
        yield
    finally:
        for name, method in plain.items():
            setattr(BaseEmissionsTracker, name, method)


def prepare(folder: Path) -> tuple[str, str]:
    """Return a tokenizer and packed rows of the embedded stories."""
    tokenizer = build_tokenizer(TokenizerConfig(["sample"], vocab_size=2048, output_dir=str(folder / "tokenizer")))
    packed = pack(PackConfig(["sample"], tokenizer=str(tokenizer), output_dir=str(folder / "packed"), context=256))
    return str(tokenizer), str(packed)


def train(training: Training, callbacks: bool, seldom: bool) -> tuple[StepTimes, dict[str, float]]:
    """Train and return the times of the steps, and the seconds of the parts of the run.

    Args:
        training: what is trained.
        callbacks: whether ours are there.
        seldom: whether there are evaluations and checkpoints.
    """
    gc.collect()  # a Trainer before this one holds its model in cycles
    if training.compile_layers:
        import torch

        torch.compiler.reset()  # torch stops compiling after a few models of one process
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        values = {
            "preset": training.preset, "tokenizer": training.tokenizer, "packed": training.packed,
            "output_dir": f"{folder}/run", "tokens_per_step": training.tokens_per_step, "max_steps": training.steps,
            "logging_steps": 10, "eval_strategy": "steps" if seldom else "no", "eval_steps": 0.25, "save_steps": 0.5,
            "save_strategy": "steps" if seldom else "no", "per_device_train_batch_size": training.rows,
            "compile_layers": training.compile_layers, "use_cpu": training.use_cpu, "learning_rate": 1e-3,
        }  # fmt: skip
        config = build(PretrainConfig, check_types(PretrainConfig, values))
        plan = plan_run(config)
        plan.folder.mkdir()
        run_module.Clock = NamedClock  # type: ignore[misc]
        run, times = build_run(config, plan), StepTimes()
        if not callbacks:
            for callback in list(run.trainer.callback_handler.callbacks):
                if type(callback).__module__.startswith("teenytinyllama"):
                    run.trainer.remove_callback(callback)
        run.trainer.add_callback(times)
        try:
            with run.trainer.clock.part("training"):
                run.trainer.train()
        finally:
            run.energy.stop()
            run.stop.restore_handlers()
    return times, dict(run.trainer.clock.seconds)


def compare(training: Training, repeats: int) -> dict[str, list[tuple[StepTimes, dict[str, float]]]]:
    """Return what `train` returns of runs without (A) and with our callbacks (B), in turn."""
    compared: dict[str, list[tuple[StepTimes, dict[str, float]]]] = {"A": [], "B": []}
    for _ in range(repeats):
        for name, runs in compared.items():
            runs.append(train(training, callbacks=name == "B", seldom=False))
    return compared


def time_directly(
    training: Training, step_seconds: float | None = None
) -> tuple[dict[str, dict[str, float]], float, float]:
    """Return the figures of each callback, their sum in per cent of a step, and the seconds of a step.

    Args:
        training: what is trained.
        step_seconds: of a step; None takes the median of this run, which is right where nothing is queued.
    """
    threads: dict[str, float] = defaultdict(float)
    with timed_tracker(threads):
        times, parts = train(training, callbacks=True, seldom=True)
    step = median(times.seconds()) if step_seconds is None else step_seconds
    # The threads work during evaluations too: their share of the whole time is their share of a step.
    whole = sum(parts.values())
    parts |= {name: seconds / whole * step * training.steps for name, seconds in threads.items()}
    callbacks = by_callback(parts, training.steps, step)
    return callbacks, sum(figures["percent_of_a_step"] for figures in callbacks.values()), step


def by_callback(parts: dict[str, float], steps: int, step: float) -> dict[str, dict[str, float]]:
    """Return for each callback its seconds a step, their share of a step in per cent, and its seconds an evaluation."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds_a_step": 0.0, "seconds_an_evaluation": 0.0})
    evaluations = 5  # at the start and at every quarter
    for name, seconds in parts.items():
        callback, _, event = name.partition(".")
        if event in SELDOM:
            found[callback]["seconds_an_evaluation"] += seconds / evaluations
        elif event or "threads" in name:
            found[callback]["seconds_a_step"] += seconds / steps
    for figures in found.values():
        figures["percent_of_a_step"] = 100 * figures["seconds_a_step"] / step
    return dict(found)


def print_callbacks(callbacks: dict[str, dict[str, float]], total: float) -> None:
    """Print the figures of each callback and of all, the costliest first."""
    print_table(
        ["callback", "ms a step", "% of a step", "ms an evaluation"],
        [[name, 1000 * figures["seconds_a_step"], figures["percent_of_a_step"], 1000 * figures["seconds_an_evaluation"]]
         for name, figures in sorted(callbacks.items(), key=lambda item: -item[1]["percent_of_a_step"])]
        + [["all", sum(figures["seconds_a_step"] for figures in callbacks.values()) * 1000, total, None]],
    )  # fmt: skip


def main() -> None:
    """Print the table and the verdict."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--tokens_per_step", type=int, default=2048, help="in one micro-batch, rows of 256 tokens")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            tokenizer, packed = prepare(Path(folder))
        training = Training("tiny", tokenizer, packed, arguments.tokens_per_step, arguments.tokens_per_step // 256,
                            arguments.steps)  # fmt: skip
        compared = {name: [seconds for times, _ in runs for seconds in times.seconds()]
                    for name, runs in compare(training, arguments.repeats).items()}  # fmt: skip
        callbacks, total, step = time_directly(training)
    without, with_all = median(compared["A"]), median(compared["B"])
    print_callbacks(callbacks, total)
    verdict = "reached" if total < GOAL_PERCENT else "missed"
    print(f"step {step:.3f} s, {arguments.steps} steps; under {GOAL_PERCENT} % of a step: {verdict}, {total:.3f} %")
    print(f"A {without:.4f} s, B {with_all:.4f} s a step, medians of {len(compared['A'])} steps each: "
          f"{100 * (with_all / without - 1):+.2f} %")  # fmt: skip
    write_results(
        arguments.json,
        {"callbacks": callbacks, "percent_of_a_step": total, "goal_percent": GOAL_PERCENT, "step_seconds": step,
         "without_seconds": without, "with_seconds": with_all, "steps": arguments.steps},
    )  # fmt: skip


if __name__ == "__main__":
    main()
