"""Trials before a run: whether a micro-batch fits into memory, and how many steps a cap on money or energy pays for.

The micro-batch is how many rows a rank computes at once. It decides speed and memory alone: tokens a step stay as they
are, and accumulation makes up for it. It is chosen from the free memory, tried on every rank before the Trainer is
made, and made smaller by the next start after memory ran out in training.

The speed test finds the length of a run that is limited by money, energy or hours alone. It is the run itself made
short, with the same ranks, ZeRO stage, kernels and rows, in a folder of its own that is deleted; what it consumed stays
in the run's account and counts against its caps. Only `ttl` makes one, before the ranks start.
"""

import contextlib
import copy
import gc
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..checks import InputError, RunFailedError, ensure, is_main_process
from ..data.packed import packed_manifest
from ..distributed import least_over_ranks, ranks_here
from ..energy.ledger import read_ledger
from ..energy.recorder import add_speed_test
from ..gpus import (
    describe_out_of_memory,
    device_name,
    find_gpu,
    free_memory_bytes,
    has_accelerator,
    is_out_of_memory,
    limited_address_space,
)
from ..planning.memory import MemoryNeed, choose_rows, eval_rows, memory_need, row_divisors
from ..stage_folder import (
    ENVIRONMENT_NAME,
    LOCK_NAME,
    METRICS_NAME,
    SPEED_TEST_NAME,
    lock_run_folder,
    read_manifest,
    write_json,
)
from .caps import CAP_KEYS
from .decay import begun_folder
from .metrics import read_jsonl
from .run_plan import RunPlan, with_batch
from .speed import (
    MeasuredSpeed,
    SpeedPlan,
    apply_speed,
    compile_pays,
    eager,
    has_chunked_loss,
    tokens_within,
    zero_stage_of,
)

# A need of up to this share of the free memory is not tried: predictions were at most 16 % below measured peaks.
SURE_SHARE = 0.5
# A GPU's allocator cannot use the last of its memory for one large tensor.
_FRAGMENTED_SHARE = 0.02
OUT_OF_MEMORY_HELP = "Set activation_checkpointing: true, take rows of a smaller context, or a smaller model."


def settle_micro_batch(config: Any, plan: RunPlan) -> None:
    """Set the micro-batch, the accumulation and why in `config`, a `RunSettings`.

    Call it on every rank once they are connected and before the Trainer.

    A micro-batch that is not given is chosen from the free memory of the rank that has least. A resumed run keeps the
    one it had, so that floating-point sums keep their order. One that might not fit is tried, and the next smaller one
    is taken, until one fits. All this happens before the Trainer is made, because the Trainer then reads accumulation,
    and fills in DeepSpeed's `auto` values from it.

    Raises:
        InputError: not even one row fits.
    """
    assert config.context is not None
    assert config.per_device_train_batch_size is not None
    device, zero_stage = config.device, zero_stage_of(config)
    speed: SpeedPlan = config.speed_plan(plan.model_config, zero_stage or 0)
    compiled, on_gpu = compiles_trial(speed, device), device.type != "cpu"
    how = config.computation(speed, zero_stage, config.world_size, on_gpu=on_gpu, compiled=compiled)
    need = memory_need(plan.model_config, config.longest_row, how)
    least_over_ranks(0, device)  # the first collective makes buffers of its own: before the free memory is read
    free_bytes = least_over_ranks(free_memory_bytes(device, ranks_here()), device)
    before = earlier_choice(begun_folder(config, plan.folder), config, free_bytes)
    divisors = row_divisors(config.rows_per_step // config.world_size)
    rows, reason = config.per_device_train_batch_size, "as configured"
    failed = before.get("failed_rows")
    allowed = [n for n in divisors if failed is None or n < failed] or divisors[:1]
    config.micro_batch_failed_rows, config.micro_batch_free_bytes = failed, free_bytes
    if not config.micro_batch_given:
        rows = choose_rows(allowed, need, free_bytes, config.longest_row, device.type)
        reason = f"chosen: about {need.total_bytes(rows) / 1e9:.2f} of {free_bytes / 1e9:.1f} GB free"
        if before.get("rows") in allowed and need.total_bytes(before["rows"]) <= free_bytes:
            rows, reason = before["rows"], "as before"
    elif rows not in allowed:
        reason = f"{rows} as configured ran out of memory before"
        _say(f"micro-batch {rows} ran out of memory before ({plan.folder / ENVIRONMENT_NAME}): {allowed[-1]}")
        rows = allowed[-1]
    config.set_micro_batch(*_shrink_until_it_fits(config, plan, need, rows, reason))
    if not config.eval_batch_given:
        rows, vocab_size = config.per_device_train_batch_size, plan.model_config.vocab_size
        config.per_device_eval_batch_size = eval_rows(rows, config.longest_row, vocab_size, speed.loss == "whole")


def compiles_trial(speed: SpeedPlan, device: torch.device) -> bool:
    """Return whether a trial compiles the layers as the training will, and its memory is to be counted so.

    On a CPU it does not: the compiler would be under the trial's limit of the address space.
    """
    return speed.compile_layers and device.type != "cpu"


def _shrink_until_it_fits(config: Any, plan: RunPlan, need: MemoryNeed, rows: int, reason: str) -> tuple[int, str]:
    free_bytes, device = config.micro_batch_free_bytes, config.device
    while True:
        sure = need.total_bytes(rows) <= SURE_SHARE * free_bytes and plan.model_config.model_type == "llama"
        # No trial under ZeRO 3, where a rank may not have room for a whole model, nor with frozen weights or a second
        # model, which a trial does not build.
        if sure or zero_stage_of(config) == 3 or config.frozen_share or config.reference_models:
            return rows, reason
        failure = try_rows(config, plan, need, rows)
        if least_over_ranks(int(not failure), device):
            return rows, reason
        smaller = [n for n in row_divisors(config.rows_per_step // config.world_size) if n < rows]
        failure = failure or "on another rank"
        if not smaller:
            raise InputError(
                f"context={config.context}: not even one row of so many tokens fits into memory ({failure}; "
                f"{free_bytes / 1e9:.1f} GB were free, weights, gradients and optimizer states need about "
                f"{need.state_bytes / 1e9:.1f}). {OUT_OF_MEMORY_HELP}"
            )
        _say(f"micro-batch {rows} does not fit ({failure}): {smaller[-1]}")
        rows, reason = smaller[-1], f"{rows} did not fit"


def try_rows(config: Any, plan: RunPlan, need: MemoryNeed, rows: int) -> str:
    """Compute one micro-batch of random rows while the memory of the optimizer's states is held back.

    The random state of the process is the same afterwards.

    Returns:
        Why it does not fit, or an empty text.

    Raises:
        RuntimeError: it fails for another reason than memory.
    """
    device = config.device
    speed: SpeedPlan = config.speed_plan(plan.model_config, 0)
    compiles = compiles_trial(speed, device)
    keeps_state = device.type not in ("cpu", "mps")  # Apple's generator has no index; the Trainer seeds it anyway
    devices, kind = ([device.index or 0], device.type) if keeps_state else ([], "cuda")
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            _compute_micro_batch(config, plan, need, rows, replace(speed, compile_layers=compiles, reasons={}))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return describe_out_of_memory(error)
    finally:
        if compiles:  # otherwise the shape of the training is a second one, and torch compiles code for all shapes
            torch.compiler.reset()
        gc.collect()
        if device.type != "cpu":
            getattr(torch, device.type).empty_cache()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    return ""


def _compute_micro_batch(config: Any, plan: RunPlan, need: MemoryNeed, rows: int, speed: SpeedPlan) -> None:
    device, own_weights = config.device, config.deepspeed_plugin is not None
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.precision]
    with device:
        model = _build_model(config, plan, speed)
    model.to(device=device, dtype=kind if own_weights else None)
    vocab_size = plan.model_config.vocab_size

    def compute(rows: int, tokens: int) -> None:
        ids = torch.randint(0, vocab_size, (rows, tokens), device=device)
        with torch.autocast(device.type, kind, enabled=kind != torch.float32 and not own_weights):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    with eager() if speed.compile_layers else contextlib.nullcontext():
        compute(1, min(8, config.context))  # the gradients, and the libraries' own buffers
    state = need.state_bytes - sum(2 * parameter.nbytes for parameter in model.parameters())
    if device.type == "cpu":
        torch.empty(torch.get_num_threads() << 16).zero_()  # starts all threads: none can be made under the limit
        with limited_address_space(config.micro_batch_free_bytes - need.state_bytes):
            compute(rows, config.context)
        return
    if config.precision != "fp32" and not own_weights:
        state -= 2 * sum(parameter.numel() for parameter in model.parameters())  # autocast's copies are made here too
    state += int(_FRAGMENTED_SHARE * config.micro_batch_free_bytes)
    held_back = torch.empty(max(0, state), dtype=torch.uint8, device=device)
    compute(rows, config.context)
    getattr(torch, device.type).synchronize()
    del held_back


def _build_model(config: Any, plan: RunPlan, speed: SpeedPlan) -> Any:
    """Return a model that needs the memory of the one that will be trained; its weights are random and thrown away.

    What is compiled for it lies in torch's cache when the training compiles the same.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(copy.deepcopy(plan.model_config)).float()
    model.set_attn_implementation(config.attn_implementation)
    loss = "whole" if speed.loss == "chunked" and not has_chunked_loss() else speed.loss
    apply_speed(model, replace(speed, loss=loss))
    if config.use_liger_kernel:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, config.liger_kernel_config)
    if config.recomputes_layers:
        model.gradient_checkpointing_enable()
    return model.train()


def earlier_choice(folder: Path, config: Any, free_bytes: int) -> dict[str, Any]:
    """Return the micro-batch that the last start of this run recorded, if it had the same ranks and hardware."""
    path = folder / ENVIRONMENT_NAME
    record = json.loads(path.read_text(encoding="utf-8")).get("micro_batch", {}) if path.is_file() else {}
    if (record.get("world_size"), record.get("device")) != (config.world_size, device_name()):
        return {}
    if free_bytes > 1.2 * record["free_bytes"]:
        record["failed_rows"] = None  # another program has given memory back since
    return dict(record)


def micro_batch_record(config: Any) -> dict[str, Any]:
    """Return what `environment.json` keeps of the micro-batch for the next start."""
    return {
        "rows": config.per_device_train_batch_size,
        "failed_rows": config.micro_batch_failed_rows,
        "free_bytes": config.micro_batch_free_bytes,
        "world_size": config.world_size,
        "device": device_name(),
    }


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


SPEED_TEST_FOLDER = "speed-test"
_STEPS, _FIRST_STEADY_STEP = 8, 3  # in the steps before, kernels are chosen, and compiled where that pays
_MOST_ROWS = 16  # of a rank in a step of the test: enough for usual micro-batches, and quick on a slow machine
_LEAST_STEPS = 20  # a run of fewer is not worth starting
# The decay begins when the caps ask for it, so the planned end may lie beyond; a run that turns out faster than its
# test then uses what it saves.
_SLACK = 1.25


def settle_length(
    values: dict[str, Any],
    num_ranks: int,
    check: Callable[[dict[str, Any], int], str],
    run_test: Callable[[dict[str, Any], Path], int],
) -> dict[str, Any]:
    """Return the values of a capped pretraining with `max_tokens`; values that have a length come back as they are.

    A test that was made for this folder is not made again, so that the same command resumes the same run.

    Args:
        values: the values of a pretraining config whose rows are packed.
        num_ranks: number of ranks that will train.
        check: refuses values that no training can have, and returns the state of the run's folder.
        run_test: trains with given values, writes its output into a file, and returns the exit code.

    Raises:
        InputError: `check` refuses the values, the caps pay for too little, an earlier test's record is damaged, or
            another process is training in the run's folder.
        RunFailedError: the test's training failed.
    """
    given = {key: float(values[key]) for key in CAP_KEYS if values.get(key) is not None}
    if not given or values.get("max_tokens") or values.get("max_steps", -1) > 0:
        return values
    # The batch is decided here, once for the test, the check and the run: the length found below would change it.
    values = with_batch(values, num_ranks)
    tokens_per_step = int(values["tokens_per_step"])
    shortest = {**values, "max_tokens": tokens_per_step}
    if check(shortest, num_ranks) == "complete":
        return shortest
    speed = _speed_of(values, num_ranks, run_test)
    tokens, cap = tokens_within(given, float(values.get("price") or 0), speed, values)
    least = _LEAST_STEPS * tokens_per_step
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


def _speed_of(values: dict[str, Any], num_ranks: int, run_test: Callable[[dict[str, Any], Path], int]) -> MeasuredSpeed:
    """Return the speed that an earlier test has recorded in the run's folder, or that of a test now."""
    folder = Path(values["output_dir"])
    record = folder / SPEED_TEST_NAME
    if record.is_file():
        try:
            return MeasuredSpeed(**json.loads(record.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{record}: is damaged ({error}). Delete it to test the speed again.") from error
    print(f"speed test {_STEPS} steps of the run, to see what its caps pay for", flush=True)
    lock = lock_run_folder(folder)
    try:
        speed = measure_speed(values, num_ranks, run_test)
        write_json(record, asdict(speed))
    finally:
        lock.release()
    return speed


def measure_speed(
    values: dict[str, Any], num_ranks: int, run_test: Callable[[dict[str, Any], Path], int], steps: int = _STEPS
) -> MeasuredSpeed:
    """Run the speed test of a run, of so many steps, in its folder, delete the test's folder, return what it found.

    Raises:
        InputError: a folder that this package did not make has the name of the test's.
        RunFailedError: the test's training failed.
    """
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
    test = short_run_values(values, num_ranks, place, steps)
    try:
        code = run_test(test, log)
        if code != 0:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RunFailedError(f"the speed test ended with exit code {code}; its last lines:\n{tail}")
        speed = _read_test(place, test)
    except BaseException:
        with contextlib.suppress(OSError, InputError):  # the user has to know the test's own error, not this one
            _clear(place)
        raise
    _clear(place)
    log.unlink()
    return speed


def _clear(place: Path) -> None:
    """Add the energy of a test to the run's account, and delete the test's folder."""
    try:
        add_speed_test(place, place.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def short_run_values(values: dict[str, Any], num_ranks: int, place: Path, steps: int = _STEPS) -> dict[str, Any]:
    """Return the values of the speed test: a few steps like the run's, without evaluations, samples and checkpoints."""
    context = packed_manifest(str(values["packed"]))["context"]
    rows_per_rank = int(values["tokens_per_step"]) // context // num_ranks
    most = max(_MOST_ROWS, int(values.get("per_device_train_batch_size") or 0))
    rows = max(n for n in row_divisors(rows_per_rank) if n <= most)
    without = {*CAP_KEYS, "hard_stop", "hub_model_id"}
    return {
        **{key: value for key, value in values.items() if key not in without},
        "output_dir": str(place),
        "tokens_per_step": rows * num_ranks * context,
        "max_steps": steps,
        "warmup_steps": 1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "sample_prompts": [],
        "compile_layers": _compiles(values, num_ranks),
    }


def _compiles(values: dict[str, Any], num_ranks: int) -> bool | None:
    """Return whether the run will compile its layers, which depends on its length; so far only the caps bound that."""
    if values.get("compile_layers") is not None:
        return bool(values["compile_layers"])
    gpu = find_gpu(device_name())
    watts = gpu[1].planned_watts if gpu else 100.0  # a computer without a known GPU
    num_gpus = num_ranks if has_accelerator() else 1
    hours = min(
        float(values.get("max_hours") or "inf"),
        float(values.get("max_cost") or "inf") / (float(values.get("price") or 1) * num_gpus),
        float(values.get("max_kwh") or "inf") * 1000 / (watts * num_gpus),
    )
    return compile_pays(hours * 3600)[0] or None


def _read_test(place: Path, test: dict[str, Any]) -> MeasuredSpeed:
    records = [record for record in read_jsonl(place / METRICS_NAME) if "loss" in record]
    training = read_manifest("speed test", str(place), "pretrain", "Run it again.")["training"]
    account = read_ledger(place)
    steady = [record["tokens_per_second"] for record in records if record["step"] >= _FIRST_STEADY_STEP]
    measured = MeasuredSpeed(
        tokens_per_second=statistics.harmonic_mean(steady),
        watts=0.0,
        hardware=training["hardware"],
        num_ranks=training["world_size"],
        steps=training["steps"],
        tokens_per_step=test["tokens_per_step"],
    )
    if account is None:
        return measured
    kwh, hours, starting_hours = account.total.energy_kwh, account.total.seconds / 3600, account.starting_seconds / 3600
    return replace(
        measured,
        watts=1000 * kwh / hours if hours else 0.0,
        spent_kwh=kwh,
        spent_hours=hours + starting_hours,
        starting_hours=starting_hours,
        num_gpus=sum(start.num_gpus or 1 for start in account.starts),
    )
