"""What only a GPU can answer: energy against its counter, cost of callbacks, exact resume, speed of generation.

    python benchmarks/gpu/checks.py --tokenizer outputs/tokenizer --packed outputs/packed --minutes 6 --json checks.json
    python benchmarks/gpu/checks.py --tiny      # everything small, on whatever is here, with data of its own

Rows of 2,048 tokens, as `ttl pack --context 2048` makes them; one NVIDIA GPU of 80 GB. The parts, in this order:

energy                a pretraining of about a minute: codecarbon's GPU energy against the GPU's own counter (NVML)
callbacks             what our callbacks cost of a step, timed directly and by steps without (A) and with them (B)
resume                a run resumed from a checkpoint against the one that wrote it and went on; resumed once more
generation            tokens/s of new text: plain `generate`, and an answer as `ttl chat` writes it
static_generation     the same with a static cache, for which transformers compiles the model on a GPU
deterministic_resume  resume again with full_determinism: what differs in resume may be the GPU's own doing

Each part is printed, and the JSON file written anew, as soon as it is known. A part that would begin after --minutes is
skipped; one that fails is reported, the others go on, and the exit code is 1.
"""

import contextlib
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts beside this folder

from callbacks_overhead import GOAL_PERCENT, Training, by_callback, compare, prepare, print_callbacks, time_directly
from common import median, parser, print_table, run_limited, seconds_of, write_results
from run_differences import compare_runs, show_resume

from teenytinyllama.energy.ledger import read_ledger
from teenytinyllama.gpus import device_name, has_accelerator
from teenytinyllama.publishing.energy_report import describe_gpu_check, energy_report
from teenytinyllama.stage_folder import METRICS_NAME, package_commit, versions
from teenytinyllama.training.metrics import read_jsonl

LONGEST_RUN_SECONDS = 400  # of one `ttl pretrain` here: a hang, not a slow machine
PACKAGES = ("torch", "transformers", "accelerate", "codecarbon", "huggingface_hub", "nvidia-ml-py", "triton")


@dataclass(frozen=True)
class Sizes:
    """How much each part does.

    Attributes:
        preset: trained by all parts but generation.
        rows: of a micro-batch.
        generation_presets: write `new_tokens` after a prompt of `prompt_tokens`, for each of `batches` prompts at once.
    """

    preset: str
    tokens_per_step: int
    rows: int
    compile_layers: bool
    energy_steps: int
    callback_steps: int
    resume_steps: int
    generation_presets: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    batches: tuple[int, ...]


FULL = Sizes("160m", 65_536, 16, True, 320, 45, 16, ("160m", "460m"), 128, 256, (1, 32))
TINY = Sizes("tiny", 4096, 8, False, 20, 15, 12, ("tiny",), 16, 8, (1, 2))


@dataclass(frozen=True)
class Inputs:
    """What the parts work on.

    Attributes:
        accelerate: a name of `ttl pretrain --accelerate` for the parts that start one.
    """

    sizes: Sizes
    tokenizer: str
    packed: str
    repeats: int
    accelerate: str = "single"


@dataclass(frozen=True)
class Part:
    """A measurement, and what prints its figures."""

    measure: Callable[[], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]


def run_parts(
    parts: dict[str, Part],
    minutes: float,
    save: Callable[[dict[str, Any]], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Measure one part after the other and return the figures by part, with what was skipped.

    Args:
        parts: in the order of their importance.
        minutes: after so many no part begins.
        save: is given everything that is known, after each part.
        clock: gives seconds.
    """
    start = clock()
    results: dict[str, Any] = {"parts": {}, "skipped": []}
    for name, part in parts.items():
        begun = clock()
        if begun - start >= 60 * minutes:
            results["skipped"].append(name)
            print(f"\n## {name}\nskipped: {minutes:g} minutes are over", flush=True)
            save(results)
            continue
        print(f"\n## {name}", flush=True)
        figures: dict[str, Any] = {}
        try:
            figures = part.measure()
            part.show(figures)
        except Exception as error:  # of whatever kind: the other parts are still to be had
            traceback.print_exc()
            figures = {**figures, "error": f"{type(error).__name__}: {error}"}
            print_table(["failed", "error"], [[name, figures["error"].splitlines()[0]]])
        results["parts"][name] = {**figures, "part_seconds": clock() - begun}
        print(f"({clock() - begun:.0f} s)", flush=True)
        save(results)
    return results


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own, which gives the GPU's memory back at its end."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def pretrain(inputs: Inputs, folder: Path, steps: int, options: list[str]) -> None:
    """Run `ttl pretrain` in a process of its own.

    Raises:
        RuntimeError: it did not end as it should; with the last lines of its log.
    """
    sizes = inputs.sizes
    command = ["-m", "teenytinyllama", "pretrain", "--preset", sizes.preset, "--accelerate", inputs.accelerate]
    command += ["--tokenizer", inputs.tokenizer, "--packed", inputs.packed, "--output_dir", str(folder)]
    command += ["--tokens_per_step", str(sizes.tokens_per_step)]
    if inputs.accelerate == "single":  # several GPUs share the rows of a step as they can
        command += ["--per_device_train_batch_size", str(sizes.rows)]
    command += ["--max_steps", str(steps), "--compile_layers", str(sizes.compile_layers).lower(), *options]
    done = run_limited(command, LONGEST_RUN_SECONDS)
    if done.returncode:
        last = "\n".join([*done.stdout.splitlines()[-10:], *done.stderr.splitlines()[-10:]])
        raise RuntimeError(f"ttl pretrain ended with {done.returncode}:\n{last}")


def measure_energy(inputs: Inputs) -> dict[str, Any]:
    """Pretrain with evaluations and a checkpoint, and return the figures of the run's own energy report."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        pretrain(inputs, folder, inputs.sizes.energy_steps, ["--eval_steps", "0.5", "--save_steps", "0.5"])
        speeds = [record["tokens_per_second"] for record in read_jsonl(folder / METRICS_NAME) if "loss" in record]
        return {**energy_figures(folder), "tokens_per_second": median(speeds)}


def energy_figures(folder: Path) -> dict[str, Any]:
    """Return both measurements of a run's GPU energy and the mean power of its parts; None where nothing measured.

    codecarbon gives a machine without a GPU that it sees 0 kWh, which is no measurement.
    """
    report, account = energy_report(folder, None, ()), read_ledger(folder)
    assert account is not None
    check, methods = report["gpu_check"], report["ledger"]["methods"]
    sees_gpu = any("GPU" in method for method in methods)
    hours, compared = account.seconds / 3600, check["num_starts"] > 0

    def watts(kwh: float) -> float:
        return 1000 * kwh / report["pue"] / hours

    return {
        "run_seconds": account.seconds,
        "codecarbon_gpu_kwh": check["codecarbon_kwh"] if compared else report["gpu_kwh"] if sees_gpu else None,
        "counter_gpu_kwh": check["counter_kwh"] if compared else None,
        "difference_percent": check["difference_percent"],
        "status": check["status"],
        "said": describe_gpu_check(check),
        "reason": check["reason"],
        "watts": {"GPU": watts(report["gpu_kwh"]) if sees_gpu else None, "CPU": watts(report["cpu_kwh"]),
                  "RAM": watts(report["ram_kwh"])},
        "phases_kwh": report["ledger"]["phases_kwh"],
        "methods": methods,
        "warnings": report["ledger"]["warnings"],
    }  # fmt: skip


def show_energy(figures: dict[str, Any]) -> None:
    """Print the energy part."""
    print_table(
        ["GPU kWh, codecarbon", "GPU kWh, counter", "difference %", "status", "mean W: GPU", "CPU", "RAM", "seconds"],
        [[figures["codecarbon_gpu_kwh"], figures["counter_gpu_kwh"], figures["difference_percent"], figures["status"],
          *figures["watts"].values(), figures["run_seconds"]]],
    )  # fmt: skip
    print(figures["reason"] or figures["said"])
    print(f"codecarbon measures {', '.join(figures['methods'])}")


def measure_callbacks(inputs: Inputs) -> dict[str, Any]:
    """Return what our callbacks cost, by both ways."""
    return dict(in_own_process(_time_callbacks, inputs))


def _time_callbacks(inputs: Inputs) -> dict[str, Any]:
    sizes = inputs.sizes
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    training = Training(sizes.preset, inputs.tokenizer, inputs.packed, sizes.tokens_per_step, sizes.rows,
                        sizes.callback_steps, not has_accelerator(), sizes.compile_layers)  # fmt: skip
    compared = compare(training, inputs.repeats)
    without, with_all = ([times.mean_seconds() for times, _ in compared[name]] for name in "AB")
    step = median(with_all)
    between = [by_callback(parts, training.steps, step) for _, parts in compared["B"]]
    # In a run with evaluations the steps cannot be told from what lies between them, so those of B count.
    callbacks, total, _ = time_directly(training, step)
    return {
        "callbacks": callbacks,
        "percent_of_a_step": total,
        "percent_between_evaluations": median(
            sum(figures["percent_of_a_step"] for figures in found.values()) for found in between
        ),
        "callbacks_between_evaluations": between[-1],
        "step_seconds": step,
        "goal_percent": GOAL_PERCENT,
        "steps_a_run": sizes.callback_steps,
        **difference(without, with_all),
    }


def difference(without: list[float], with_all: list[float]) -> dict[str, Any]:
    """Return how much longer steps are with something, and how much runs of the same kind differ, in per cent."""
    base, runs = median(without), min(len(without), len(with_all))
    apart = max(max(found) - min(found) for found in (without, with_all))
    return {
        "without_seconds": without,
        "with_seconds": with_all,
        "difference_percent": 100 * (median(with_all) / base - 1),
        "spread_percent": 100 * apart / base if runs > 1 else None,
    }


def show_callbacks(figures: dict[str, Any]) -> None:
    """Print the callbacks part, with the goal."""
    print_callbacks(figures["callbacks"], figures["percent_of_a_step"])
    for key, what in (
        ("percent_between_evaluations", "no evaluation and no checkpoint (and codecarbon's threads not timed)"),
        ("percent_of_a_step", f"five evaluations and two checkpoints in {figures['steps_a_run']} steps"),
    ):
        verdict = "reached" if figures[key] < figures["goal_percent"] else "missed"
        print(f"directly, with {what}: {figures[key]:.3f} % of a step of {figures['step_seconds']:.4f} s; "
              f"under {figures['goal_percent']} %: {verdict}")  # fmt: skip
    print("That is the processor's time: it costs nothing while the GPU has work in its queue, and where a callback "
          "waits for the GPU, the wait is in it")  # fmt: skip
    spread = figures["spread_percent"]
    noise = "one run of each kind, so their noise is unknown"
    if spread is not None:
        noise = f"runs of one kind differ by {spread:.3f} %, so a smaller difference says nothing"
    print(f"A {median(figures['without_seconds']):.5f} s, B {median(figures['with_seconds']):.5f} s a step: "
          f"{figures['difference_percent']:+.3f} %; {noise}")  # fmt: skip


def measure_resume(inputs: Inputs, deterministic: bool = False) -> dict[str, Any]:
    """Return how a run resumed from a checkpoint differs from the run that wrote it and went on, and from itself.

    All three share the steps up to the checkpoint, so that what a GPU rounds differently each time has only the steps
    behind it to grow in.
    """
    steps = inputs.sizes.resume_steps
    options = ["--logging_steps", "1", "--eval_strategy", "no", "--save_total_limit", "null"]
    options += ["--full_determinism", "true"] if deterministic else []
    with tempfile.TemporaryDirectory() as parent:
        whole, resumed, again = (Path(parent) / name for name in ("whole", "resumed", "again"))
        pretrain(inputs, whole, steps, [*options, "--save_steps", str(steps // 2)])
        for folder in (resumed, again):
            restore(whole, folder, steps // 2)
            pretrain(inputs, folder, steps, [*options, "--save_steps", str(steps // 2)])
        return {
            "steps": steps,
            "checkpoint": steps // 2,
            "full_determinism": deterministic,
            "resumed": compare_runs(whole, resumed, steps // 2),
            "repeated": compare_runs(resumed, again, steps // 2),
        }


def restore(run: Path, folder: Path, step: int) -> None:
    """Copy a run to where it was when it had written the checkpoint of a step."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("run.json", "*.safetensors", "checkpoint-*"))
    shutil.copytree(run / f"checkpoint-{step}", folder / f"checkpoint-{step}")


def measure_generation(inputs: Inputs, ways: tuple[str, ...]) -> dict[str, Any]:
    """Return the speed of each preset, way and batch; every preset in a process of its own."""
    return {"cases": [case for preset in inputs.sizes.generation_presets
                      for case in in_own_process(_time_generation, inputs, preset, ways)]}  # fmt: skip


def _time_generation(inputs: Inputs, preset: str, ways: tuple[str, ...]) -> list[dict[str, Any]]:
    import torch
    from transformers import LlamaForCausalLM

    from teenytinyllama.models import load_tokenizer, place_for_answers
    from teenytinyllama.presets import preset_config

    tokenizer = load_tokenizer("tokenizer", inputs.tokenizer)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(preset_config(preset, tokenizer))
    model, _ = place_for_answers(model.to(torch.bfloat16))
    cases = [(way, batch) for way in ways for batch in inputs.sizes.batches if batch == 1 or way != "ttl chat"]
    return [{"preset": preset, "way": way, "batch": batch, **_time_case(model, tokenizer, inputs, way, batch)}
            for way, batch in cases]  # fmt: skip


def _time_case(model: Any, tokenizer: Any, inputs: Inputs, way: str, batch: int) -> dict[str, Any]:
    import torch

    from teenytinyllama.chat.generation import Reply, Sampling

    sizes, written = inputs.sizes, 0
    prompts = torch.randint(4, len(tokenizer), (batch, sizes.prompt_tokens), device=model.device)

    def write() -> None:
        nonlocal written
        if way == "ttl chat":  # one answer, streamed, with its own way of choosing tokens; its end token may end it
            reply = Reply(model, tokenizer, prompts[0].tolist(), Sampling(max_new_tokens=sizes.new_tokens))
            "".join(reply)
            written = len(reply.ids)
            return
        cache = {"cache_implementation": "static"} if way == "static cache" else {}
        output = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=sizes.new_tokens, min_new_tokens=sizes.new_tokens, **cache,
        )  # fmt: skip
        written = output[:, sizes.prompt_tokens :].numel()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    warm_up_seconds = seconds_of(write)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    seconds, speeds = [], []
    for _ in range(inputs.repeats):
        seconds.append(seconds_of(write))
        speeds.append(written / seconds[-1])
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {"tokens_per_second": statistics.median(speeds), "seconds": seconds, "new_tokens": written,
            "warm_up_seconds": warm_up_seconds, "peak_gpu_gb": peak}  # fmt: skip


def show_generation(figures: dict[str, Any]) -> None:
    """Print a generation part."""
    keys = ("preset", "way", "batch", "tokens_per_second", "peak_gpu_gb", "warm_up_seconds")
    print_table(["preset", "way", "batch", "tokens/s", "peak GPU GB", "warm-up s"],
                [[case[key] for key in keys] for case in figures["cases"]])  # fmt: skip


def all_parts(inputs: Inputs) -> dict[str, Part]:
    """Return the parts by name, the most important first."""
    return {
        "energy": Part(lambda: measure_energy(inputs), show_energy),
        "callbacks": Part(lambda: measure_callbacks(inputs), show_callbacks),
        "resume": Part(lambda: measure_resume(inputs), show_resume),
        "generation": Part(lambda: measure_generation(inputs, ("plain", "ttl chat")), show_generation),
        "static_generation": Part(lambda: measure_generation(inputs, ("static cache",)), show_generation),
        "deterministic_resume": Part(lambda: measure_resume(inputs, deterministic=True), show_resume),
    }


def main() -> None:
    """Run the parts and leave with 1 if one failed."""
    options = parser(__doc__)
    options.add_argument("--tokenizer", help="folder of the tokenizer")
    options.add_argument("--packed", help="folder of packed rows, context 2,048")
    options.add_argument("--minutes", type=float, default=7, help="after so many no part begins")
    options.add_argument("--parts", nargs="+", help="only these")
    options.add_argument("--accelerate", default="single", help="ddp, zero1 …: energy and resume on all visible GPUs")
    options.add_argument("--tiny", action="store_true", help="the preset tiny, a few steps and tokens; also on a CPU")
    arguments = options.parse_args()
    if not arguments.tiny and not has_accelerator():
        options.error("no GPU is here; --tiny runs without one")
    if bool(arguments.tokenizer) != bool(arguments.packed) or not (arguments.tiny or arguments.packed):
        options.error("--tokenizer, --packed: give both (with --tiny, both or none)")
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.tokenizer, arguments.packed
        if not arguments.packed:
            with contextlib.redirect_stdout(sys.stderr):
                data = prepare(Path(folder))
        inputs = Inputs(TINY if arguments.tiny else FULL, *data, arguments.repeats, arguments.accelerate)
        parts = all_parts(inputs)
        if unknown := set(arguments.parts or ()) - parts.keys():
            options.error(f"--parts {' '.join(sorted(unknown))}: must be of {', '.join(parts)}")
        parts = {name: part for name, part in parts.items() if not arguments.parts or name in arguments.parts}
        machine = {"device": device_name() if has_accelerator() else "no GPU", "versions": versions(PACKAGES),
                   "commit": package_commit(), "sizes": asdict(inputs.sizes),
                   "accelerate": inputs.accelerate}  # fmt: skip
        print(f"{machine['device']}; {machine['versions']}", flush=True)
        results = run_parts(parts, arguments.minutes, lambda known: write_results(arguments.json, {**machine, **known}))
    failed = [name for name, figures in results["parts"].items() if "error" in figures]
    print(f"\nfailed: {', '.join(failed) or 'none'}; skipped: {', '.join(results['skipped']) or 'none'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
