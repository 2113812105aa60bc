"""The machine of a plan: speed, power and price of its GPUs, where each figure is from, and the memory a run needs."""

from dataclasses import dataclass, replace
from typing import Literal

from ..checks import ensure
from ..energy.emissions import grid_intensity, place
from ..gpus import GPUS, Gpu, get_gpu
from ..presets import Preset, count_parameters
from .config import PlanConfig
from .laws import CPU, MeasuredRun, choose_run
from .memory import (
    USED_SHARE,
    Computation,
    OptimizerName,
    checkpoint_bytes,
    choose_rows,
    final_model_bytes,
    memory_need,
    optimal_batch_tokens,
    optimizer_bytes,
    row_divisors,
)

Origin = Literal["given", "measured", "data sheet", "table", "assumed"]

# By 6 N + 12 L h T. This project's own training steps reach 51.9 % (160m) and 52.7 % (460m) on an H100, 54 to 57 %
# (160m), 55 to 58 % (460m) and 57.8 % (1b1) on an H200 (docs/gpu.md), above what is published at that size (40 to
# 46 %: llm.c, nanochat); on an A100 published figures are 51 to 63 %.
DEFAULT_MFU = 0.4
_MFU = {"h100": 0.5, "h200": 0.55, "t4": 0.25}
_MFU_REASONS = {
    "h100": "own training steps on an H100: 51.9 % (160m), 52.7 % (460m), docs/gpu.md",
    "h200": "own training steps on an H200: 54-57 % (160m), 55-58 % (460m), 57.8 % (1b1), docs/gpu.md",
    "a100": "careful: published runs of this size reach 51-63 %, the TeenyTinyLlama paper's own 11 %",
    "rtx3060": "careful: 87.8M parameters reached 20.2k tokens/s on one, 51 % (maracatu-llm, April 2026)",
    "t4": "a guess: 70 W do not hold its clock; 16.8M parameters reached 20k tokens/s, 3.5 % (maracatu-llm)",
    "cpu": "careful: of the product of two matrices, timed here",
}
_MFU_UNKNOWN = "a guess from other cards: no run of this size is published for this one"
# Share of the speed of as many GPUs on their own. Measured on two H200 of one host under DDP (docs/gpu.md).
_SCALING = 0.96
_SCALING_REASON = "two H200 under DDP: 0.96 to 0.97 (160m, 460m), docs/gpu.md; more GPUs are not measured"
# Source: codecarbon 3.3.2, external/hardware.py, POWER_CONSTANT.
_CPU_WATTS, _CPU_WATTS_SOURCE = 85.0, "codecarbon's figure for a processor it does not know"


@dataclass(frozen=True)
class Assumption:
    """A number that a plan is computed with: its origin, and the reason for it or its source."""

    name: str
    value: str
    origin: Origin
    reason: str


@dataclass(frozen=True)
class Machine:
    """The hardware that a plan is made for.

    Attributes:
        gpu: a key of `gpus.GPUS`, the name of another GPU that a run was measured on, or `cpu`.
        title: name of the GPU or the processor for readers.
        num_gpus: number of GPUs.
        memory_bytes: memory of each GPU; None: not known.
        precision: precision of the training.
        mfu: share of its peak that one GPU alone reaches; None: the speed was measured.
        flops_per_second: speed of each GPU in training, by 6 N + 12 L h T.
        watts: power of each GPU at work, with its share of the host.
        pue: kWh of the building for each kWh of the machine.
        price_usd: price of an hour of each GPU; 0 for one's own computer.
        country_iso_code: country of the machine.
        grams_per_kwh: carbon intensity of the grid there, in g CO2e/kWh.
        assumptions: origin of these figures.
        region: region in the country, or None for the country's mean.
        run: run by which the speed was measured; None: it is assumed.
    """

    gpu: str
    title: str
    num_gpus: int
    memory_bytes: float | None
    precision: str
    mfu: float | None
    flops_per_second: float
    watts: float
    pue: float
    price_usd: float
    country_iso_code: str
    grams_per_kwh: float
    assumptions: tuple[Assumption, ...] = ()
    region: str | None = None
    run: MeasuredRun | None = None

    @property
    def price_is_given(self) -> bool:
        """Return whether the price is the user's, which may be 0, and not the table's."""
        return any(item.name == "price" and item.origin == "given" for item in self.assumptions)

    def tokens_per_second(self, flops_per_token: float) -> float:
        """Return the speed of all GPUs for a model of so many FLOPs a token."""
        return self.num_gpus * self.flops_per_second / flops_per_token

    def kwh(self, hours: float) -> float:
        """Return the energy of so many hours by the clock."""
        return hours * self.num_gpus * self.watts * self.pue / 1000

    def cost_usd(self, hours: float) -> float:
        """Return the price of so many hours by the clock."""
        return hours * self.num_gpus * self.price_usd

    def emissions_kg(self, kwh: float) -> float:
        """Return the kg CO2e of so much energy in its country."""
        return kwh * self.grams_per_kwh / 1000


def build_machine(config: PlanConfig, runs: list[MeasuredRun]) -> Machine:
    """Return the machine of a plan, by the question, by runs on the same hardware and by tables, in that order.

    Raises:
        InputError: unknown GPU or country, a budget for a computer without a price, or a speed both given and measured.
    """
    gpu = _choose_gpu(config, runs)
    grams = grid_intensity(config.country_iso_code, config.region)
    ensure(
        config.budget is None or config.price is not None or (gpu in GPUS and GPUS[gpu].price_usd > 0),
        f"budget={config.budget}: an hour of gpu={gpu} has no price. Give --price, or ask with --hours or --kwh.",
    )
    run = choose_run(runs, gpu, config.gpus)
    sheet, title, precision, memory_bytes = _read_sheet(gpu, run)
    alone = config.gpus == 1 or config.mfu is not None or (run is not None and run.num_gpus > 1)
    scaling = 1.0 if alone else _SCALING
    mfu = _MFU.get(gpu, DEFAULT_MFU) if config.mfu is None else config.mfu
    machine = Machine(
        gpu=gpu,
        title=title,
        num_gpus=config.gpus,
        memory_bytes=memory_bytes,
        precision=precision,
        mfu=mfu,
        flops_per_second=sheet.peak_flops * mfu * scaling,
        watts=sheet.planned_watts if config.watts is None else config.watts,
        pue=config.pue,
        price_usd=sheet.price_usd if config.price is None else config.price,
        country_iso_code=config.country_iso_code,
        region=config.region,
        grams_per_kwh=grams,
    )
    machine = replace(machine, assumptions=_assumptions(machine, config, sheet, scaling))
    return machine if run is None else _with_measurements(machine, config, run, scaling)


def _choose_gpu(config: PlanConfig, runs: list[MeasuredRun]) -> str:
    if config.gpu is None:
        return runs[0].gpu if runs else "h100"
    for run in runs:
        if config.gpu.lower() == run.gpu.lower():
            return run.gpu
    return CPU if config.gpu.lower() == CPU else get_gpu(config.gpu)[0]


def _read_sheet(gpu: str, run: MeasuredRun | None) -> tuple[Gpu, str, str, float | None]:
    """Return what is known of a GPU or of this computer: record, title, precision, and memory in bytes.

    The peak of this computer's processor is measured here and now, unless a run has measured its speed.
    """
    if gpu in GPUS:
        precision = "bf16" if GPUS[gpu].has_bf16 else "fp16"  # as `gpus.choose_precision` chooses
        return GPUS[gpu], gpu, precision, GPUS[gpu].memory_gb * 1e9
    if gpu != CPU:
        assert run is not None
        return Gpu(gpu, 0.0, 0, 0, 0.0, 0.0, "", "", "not in the table"), gpu, run.precision, run.memory_bytes
    title, peak, source, memory_bytes = _measure_cpu() if run is None else (CPU, 0.0, "", None)
    record = Gpu(CPU, peak, 0, 0, _CPU_WATTS, 0.0, source, _CPU_WATTS_SOURCE, "your own computer")
    return record, title, "fp32", memory_bytes


def _measure_cpu() -> tuple[str, float, str, float]:
    """Return this computer's name, its peak in FLOP/s, how that was measured, and its free memory in bytes."""
    import torch

    from ..gpus import device_name, free_memory_bytes, peak_flops

    peak, source = peak_flops("cpu")
    title = "cpu" if torch.cuda.is_available() else device_name()  # with a GPU, device_name is the GPU's
    return title, peak, source.removeprefix("measured: "), free_memory_bytes(torch.device("cpu"))


def _assumptions(machine: Machine, config: PlanConfig, sheet: Gpu, scaling: float) -> tuple[Assumption, ...]:
    """Return the origin of a machine's figures, as far as no run has measured them."""

    def item(name: str, value: str, given: float | None, reason: str) -> Assumption:
        if given is None:
            return Assumption(name, value, "assumed", reason)
        return Assumption(name, value, "given", "on the command line")

    origin: Origin = "data sheet" if machine.gpu in GPUS else "measured"
    reason = next((text for gpu, text in _MFU_REASONS.items() if machine.gpu.startswith(gpu)), _MFU_UNKNOWN)
    grid = f"{place(machine.country_iso_code, machine.region)} {machine.grams_per_kwh:.1f} g CO2e/kWh"
    found = [
        Assumption("peak", f"{sheet.peak_flops / 1e12:.3g} TFLOP/s", origin, sheet.source),
        item("MFU", f"{100 * (machine.mfu or 0):g} %", config.mfu, reason),
        item("power", f"{machine.watts:.0f} W each", config.watts, sheet.watts_source),
        item("price", f"{machine.price_usd:.2f} USD an hour each", config.price, sheet.price_source),
        item("PUE", f"{config.pue:g}", None if config.pue == 1 else config.pue, "the machine alone"),
        Assumption("grid", grid, "table", "codecarbon's table of yearly means"),
    ]
    if config.gpus > 1:
        reason = _SCALING_REASON
        if scaling == 1:
            reason = (
                "each reaches the MFU that is given"
                if config.mfu is not None
                else "each as fast as one of those that were measured"
            )
        found.append(Assumption("scaling", f"{config.gpus} x {scaling:g}", "assumed", reason))
    return tuple(found)


def _with_measurements(machine: Machine, config: PlanConfig, run: MeasuredRun, scaling: float) -> Machine:
    """Return the machine with the speed and the power of a run in place of those of the tables.

    Raises:
        InputError: `mfu` is given as well.
    """
    ensure(
        config.mfu is None,
        f"mfu={config.mfu}, calibrate={run.folder}: the run measured the speed of this hardware. Give one of the two.",
    )
    speed = Assumption(
        "speed",
        f"{run.tokens_per_second:,.0f} tokens/s in steps, {run.overall_tokens_per_second:,.0f} over all there",
        "measured",
        f"{run.folder}: {run.num_parameters:,} parameters on {run.num_gpus} x {run.hardware}; scaled by FLOPs a token",
    )
    measured = [speed]
    replaced = {"peak", "MFU"}
    if run.watts is not None:
        reason = f"{run.folder}: kWh over hours, host included"
        measured.append(Assumption("power", f"{run.watts:.0f} W each", "measured", reason))
        replaced.add("power")
    return replace(
        machine,
        title=run.hardware if machine.gpu == CPU else machine.title,
        mfu=None,
        run=run,
        flops_per_second=run.flops_per_second * scaling,
        watts=machine.watts if run.watts is None else run.watts,
        assumptions=(*measured, *(item for item in machine.assumptions if item.name not in replaced)),
    )


STAGES: tuple[int | None, ...] = (None, 1, 2, 3)
_STAGES_OF_MUON = STAGES[:3]  # ZeRO 3 does not give it whole matrices
_MOST_ROWS = 64
_TOKEN_BYTES = 2  # `ttl pack` keeps ids of up to 65,536 entries in two bytes


@dataclass(frozen=True)
class StageMemory:
    """Memory of one GPU under one ZeRO stage of DeepSpeed, which shares the optimizer's state between GPUs.

    Attributes:
        zero_stage: the stage; 0 shares nothing (`--accelerate single` or `ddp`).
        state_bytes: memory that is used whatever the micro-batch is.
        bytes_by_rows: peak memory by the rows that a GPU computes at once.
        rows: the micro-batch that would be chosen; None: not even one row fits.
    """

    zero_stage: int
    state_bytes: int
    bytes_by_rows: dict[int, int]
    rows: int | None


@dataclass(frozen=True)
class Needs:
    """Batch, memory and disk of a run.

    Attributes:
        optimal_batch_tokens: tokens of a step that the batch law advises for the run's length.
        optimizer: what trains the layers' matrices.
        usable_bytes: part of each GPU's memory that is planned with; None: the memory is not known.
        stages: memory by ZeRO stage.
        checkpoints_kept: checkpoints that the recipe keeps on the disk, beside the one that is being written.
        checkpoints_bytes: room for these checkpoints and the final model.
        packed_bytes: room for the packed rows of tokens.
    """

    optimal_batch_tokens: float
    optimizer: OptimizerName
    usable_bytes: float | None
    stages: list[StageMemory]
    checkpoints_kept: int
    checkpoints_bytes: int
    packed_bytes: int


def run_needs(
    shape: Preset,
    context: int,
    tokens: int,
    tokens_per_step: int,
    checkpoints_kept: int,
    unique_tokens: int | None,
    machine: Machine,
    optimizer: OptimizerName = "adamw",
) -> Needs:
    """Return what a run of a preset needs on a machine.

    Args:
        shape: of the model.
        context: tokens a row.
        tokens: of the whole run.
        tokens_per_step: global batch.
        checkpoints_kept: number of checkpoints that stay on the disk.
        unique_tokens: different tokens; None: as many as are trained on.
        machine: what it runs on.
        optimizer: what trains the layers' matrices.
    """
    rows_per_gpu = tokens_per_step // context // machine.num_gpus
    parameters = count_parameters(shape)
    each = checkpoint_bytes(parameters, machine.precision, moments=optimizer_bytes(shape, optimizer))
    checkpoints = (checkpoints_kept + 1) * each  # one is being written
    return Needs(
        optimal_batch_tokens=optimal_batch_tokens(tokens),
        optimizer=optimizer,
        usable_bytes=None if machine.memory_bytes is None else _used_share(machine) * machine.memory_bytes,
        stages=[
            _stage_memory(shape, context, rows_per_gpu, stage, machine, optimizer)
            for stage in (STAGES if optimizer == "adamw" else _STAGES_OF_MUON)
        ],
        checkpoints_kept=checkpoints_kept,
        checkpoints_bytes=checkpoints + final_model_bytes(parameters),
        packed_bytes=_TOKEN_BYTES * min(tokens, unique_tokens or tokens),
    )


def _used_share(machine: Machine) -> float:
    return USED_SHARE["cpu" if machine.gpu == CPU else "gpu"]


def _stage_memory(
    shape: Preset, context: int, rows_per_gpu: int, stage: int | None, machine: Machine, optimizer: OptimizerName
) -> StageMemory:
    on_gpu = machine.gpu != CPU
    how = Computation(
        precision=machine.precision,
        zero_stage=stage,
        world_size=machine.num_gpus,
        # `training.speed.plan_speed`, for a run that is long enough to compile
        loss="whole" if stage == 3 else "compiled" if on_gpu else "chunked",
        compiled=on_gpu and stage != 3,
        on_gpu=on_gpu,
        optimizer=optimizer,
    )
    need = memory_need(shape, context, how)
    divisors = row_divisors(rows_per_gpu)
    chosen = None
    if machine.memory_bytes is not None and need.total_bytes(1) <= _used_share(machine) * machine.memory_bytes:
        chosen = choose_rows(divisors, need, int(machine.memory_bytes), context, "cuda" if on_gpu else "cpu")
    powers = [2**power for power in range(_MOST_ROWS.bit_length()) if 2**power <= rows_per_gpu]
    by_rows = {rows: need.total_bytes(rows) for rows in powers}
    return StageMemory(stage or 0, need.state_bytes, by_rows, chosen)
