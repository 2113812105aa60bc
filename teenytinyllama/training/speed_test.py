"""The length of a run that is capped by money, energy or hours: a few real steps, then arithmetic.

The test is the run itself, made short: the same ranks, ZeRO stage, kernels and rows, in a folder of its own that is
deleted; what it consumed stays in the run's account and counts against its caps. Only `ttl` does this, before the
ranks start; a rank never does.
"""

import contextlib
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, RunFailedError, ensure
from ..data.packed import packed_manifest
from ..energy.ledger import read_ledger
from ..energy.recorder import add_speed_test
from ..gpus import device_name, find_gpu, has_accelerator
from ..stage_folder import ENVIRONMENT_NAME, LOCK_NAME, METRICS_NAME, SPEED_TEST_NAME, read_manifest, write_json
from .caps import CAP_KEYS
from .metrics import read_jsonl
from .run_plan import with_batch
from .saving import lock_run_folder
from .speed import compile_pays

SPEED_TEST_FOLDER = "speed-test"
_STEPS = 8
_FIRST_STEADY_STEP = 3  # before it kernels are chosen, and compiled where that pays
_MOST_ROWS = 16  # of a rank in a step of the test: enough for any micro-batch of note, quick on a slow machine
_LEAST_STEPS = 20  # a run of fewer is not worth starting
# The decay begins when the sums ask for it, so the planned end may lie beyond; a run that turns out faster than its
# test then uses what it saves.
_SLACK = 1.25
# A forward pass is a third of a step (2 of 6 N FLOPs a token, see `presets.flops_per_token`), and each of about
# eleven evaluations scores a hundredth of the run's tokens (`training.config`, eval_max_tokens), at least 20,000.
_FORWARD_SHARE, _EVALUATIONS, _EVALUATED_SHARE, _LEAST_EVALUATED_TOKENS = 1 / 3, 11, 0.01, 20_000


@dataclass(frozen=True)
class MeasuredSpeed:
    """What the test found, over all ranks; `speed_test.json`.

    Attributes:
        tokens_per_second: mean of the steady steps.
        watts: mean power of the machine.
        hardware: the device's name.
        num_ranks: that trained.
        steps: that were made.
        tokens_per_step: of the test's steps, which may be fewer than the run's.
        spent_kwh: by the test.
        spent_hours: that the test took, its start included.
        starting_hours: of them, until the first step; the run will take as many.
        num_gpus: that are paid for.
    """

    tokens_per_second: float
    watts: float
    hardware: str
    num_ranks: int
    steps: int
    tokens_per_step: int
    spent_kwh: float = 0.0
    spent_hours: float = 0.0
    starting_hours: float = 0.0
    num_gpus: int = 1


def settle_length(
    values: dict[str, Any],
    num_ranks: int,
    check: Callable[[dict[str, Any], int], str],
    run_test: Callable[[dict[str, Any], Path], int],
) -> dict[str, Any]:
    """Return the values of a capped pretraining with `max_tokens`; values that have a length come back as they are.

    A test that was made for this folder is not made again, so that the same command resumes the same run.

    Args:
        values: of a config, packed.
        num_ranks: that will train.
        check: refuses values that cannot be trained by, and returns the state of the run's folder.
        run_test: trains by given values with its output in a file, and returns the exit code.

    Raises:
        InputError: `check` refuses the values, the caps pay for too little, an earlier test's record is damaged, or
            another process is training in the run's folder.
        RunFailedError: the test's training failed.
    """
    given = {key: float(values[key]) for key in CAP_KEYS if values.get(key) is not None}
    if not given or values.get("max_tokens") or values.get("max_steps", -1) > 0:
        return values
    # One batch for the test, the check and the run: the length that is found would ask for another.
    values = with_batch(values, num_ranks)
    shortest = {**values, "max_tokens": values_tokens_per_step(values)}
    if check(shortest, num_ranks) == "complete":
        return shortest
    folder = Path(values["output_dir"])
    record = folder / SPEED_TEST_NAME
    speed = _read(record) if record.is_file() else None
    if speed is None:
        print(f"speed test {_STEPS} steps of the run, to see what its caps pay for", flush=True)
        lock = lock_run_folder(folder)
        try:
            speed = _measure(values, num_ranks, run_test)
            write_json(record, asdict(speed))
        finally:
            lock.release()
    tokens, cap = tokens_within(given, float(values.get("price") or 0), speed, values)
    least = _LEAST_STEPS * values_tokens_per_step(values)
    ensure(
        tokens >= least,
        f"{cap}={given[cap]:g}: pays for {max(0, tokens):,.0f} tokens at {speed.tokens_per_second:,.0f} tokens/s and "
        f"{speed.watts:.0f} W, and {_LEAST_STEPS} steps are {least:,}. Raise it, or lower tokens_per_step.",
    )
    decays = values.get("lr_scheduler_type") == "warmup_stable_decay" and not values.get("hard_stop")
    length = round(tokens * (_SLACK if decays else 1))
    more = f"; at most {length / 1e6:,.2f}M, as the decay begins in time" if decays else ""
    print(f"speed test {speed.tokens_per_second:,.0f} tokens/s at {speed.watts:.0f} W on {speed.hardware}: "
          f"{cap}={given[cap]:g} pays for about {tokens / 1e6:,.2f}M tokens{more}", flush=True)  # fmt: skip
    return {**values, "max_tokens": length}


def values_tokens_per_step(values: dict[str, Any]) -> int:
    """Return the tokens of a step, by the values or by the default of a run whose length is not known yet."""
    return int(with_batch(values, 1)["tokens_per_step"])


def tokens_within(
    caps: dict[str, float], price_usd: float, speed: MeasuredSpeed, values: dict[str, Any]
) -> tuple[float, str]:
    """Return the tokens that what the test left of the tightest cap pays for, evaluations included, and its key."""
    gone = speed.spent_hours + speed.starting_hours
    hours = {
        "max_hours": lambda cap: cap - gone,
        "max_cost": lambda cap: cap / (price_usd * speed.num_gpus) - gone,
        "max_kwh": lambda cap: (cap - speed.spent_kwh) / (speed.watts / 1000) if speed.watts else float("inf"),
    }
    tightest = min(caps, key=lambda key: hours[key](caps[key]))
    tokens = hours[tightest](caps[tightest]) * 3600 * speed.tokens_per_second
    if values.get("eval_strategy") != "no":
        held_out = packed_manifest(str(values["packed"]))["validation_tokens"]
        tokens -= _FORWARD_SHARE * (held_out + _EVALUATIONS * min(_LEAST_EVALUATED_TOKENS, held_out))
        tokens /= 1 + _FORWARD_SHARE * _EVALUATIONS * _EVALUATED_SHARE
    return tokens, tightest


def _measure(values: dict[str, Any], num_ranks: int, run_test: Callable[[dict[str, Any], Path], int]) -> MeasuredSpeed:
    folder = Path(values["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    place, log = folder / SPEED_TEST_FOLDER, folder / f"{SPEED_TEST_FOLDER}.log"
    is_ours = not place.is_symlink() and (place / ENVIRONMENT_NAME).is_file()
    left_over = {path.name for path in place.iterdir()} - {LOCK_NAME} if place.is_dir() else set()
    ensure(
        is_ours or not (left_over or place.is_symlink()),
        f"output_dir={folder}: its {SPEED_TEST_FOLDER} is not of a speed test. Move it away, or choose another folder.",
    )
    _clear(place)  # of a test that was killed
    test = test_values(values, num_ranks, place)
    try:
        code = run_test(test, log)
        if code != 0:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RunFailedError(f"the speed test ended with exit code {code}; its last lines:\n{tail}")
        speed = _read_test(place, test)
    except BaseException:
        with contextlib.suppress(OSError, InputError):  # what the test died of is what the user has to know
            _clear(place)
        raise
    _clear(place)
    log.unlink()
    return speed


def _clear(place: Path) -> None:
    """Put what a test consumed into the run's account, and delete its folder."""
    try:
        add_speed_test(place, place.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_values(values: dict[str, Any], num_ranks: int, place: Path) -> dict[str, Any]:
    """Return the values of the test: a few steps of the same kind, without evaluations, samples and checkpoints."""
    context = packed_manifest(str(values["packed"]))["context"]
    rows_per_rank = values_tokens_per_step(values) // context // num_ranks
    most = max(_MOST_ROWS, int(values.get("per_device_train_batch_size") or 0))
    rows = max(n for n in range(1, min(most, rows_per_rank) + 1) if rows_per_rank % n == 0)
    kept = {key: value for key, value in values.items()
            if key not in ("max_kwh", "max_cost", "max_hours", "hard_stop", "hub_model_id")}  # fmt: skip
    return {
        **kept,
        "output_dir": str(place),
        "tokens_per_step": rows * num_ranks * context,
        "max_steps": _STEPS,
        "warmup_steps": 1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "sample_prompts": [],
        "compile_layers": _compiles(values, num_ranks),
    }


def _compiles(values: dict[str, Any], num_ranks: int) -> bool | None:
    """Return whether the run will compile its layers: it decides by its length, which only the caps tell so far."""
    if values.get("compile_layers") is not None:
        return bool(values["compile_layers"])
    gpu = find_gpu(device_name())
    watts = gpu[1].planned_watts if gpu else 100.0  # a computer without a known GPU
    num_gpus = num_ranks if has_accelerator() else 1
    hours = min(
        [
            float(values.get("max_hours") or "inf"),
            float(values.get("max_cost") or "inf") / (float(values.get("price") or 1) * num_gpus),
            float(values.get("max_kwh") or "inf") * 1000 / (watts * num_gpus),
        ]
    )
    return compile_pays(hours * 3600)[0] or None


def _read_test(place: Path, test: dict[str, Any]) -> MeasuredSpeed:
    records = [record for record in read_jsonl(place / METRICS_NAME) if "loss" in record]
    training = read_manifest("speed test", str(place), "pretrain", "Run it again.")["training"]
    account = read_ledger(place)
    total = account.total if account else None
    starting_hours = account.starting_seconds / 3600 if account else 0.0
    steady = [record for record in records if record["step"] >= _FIRST_STEADY_STEP]
    return MeasuredSpeed(
        tokens_per_second=statistics.harmonic_mean([record["tokens_per_second"] for record in steady]),
        watts=1000 * total.energy_kwh / (total.seconds / 3600) if total and total.seconds else 0.0,
        hardware=training["hardware"],
        num_ranks=training["world_size"],
        steps=training["steps"],
        tokens_per_step=test["tokens_per_step"],
        spent_kwh=total.energy_kwh if total else 0.0,
        spent_hours=(total.seconds / 3600 if total else 0.0) + starting_hours,
        starting_hours=starting_hours,
        num_gpus=sum(start.num_gpus or 1 for start in account.starts) if account else 1,
    )


def _read(path: Path) -> MeasuredSpeed:
    try:
        return MeasuredSpeed(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}). Delete it to test the speed again.") from error
