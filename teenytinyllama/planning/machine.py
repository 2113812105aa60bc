"""The machine of a plan: speed, power and price of one GPU, each with whether it was measured, given or assumed."""

from dataclasses import dataclass, replace
from typing import Literal

from ..checks import ensure
from ..emissions import grid_intensity
from ..gpus import get_gpu
from .calibration import MeasuredRun, choose_run
from .config import PlanConfig

Origin = Literal["given", "measured", "data sheet", "table", "assumed"]

# By 6 N + 12 L h T. On an H100 the published figures at 100M to 500M parameters are 40 to 46 % (llm.c, nanochat), and
# this project's own is 40.4 % (docs/lab-log.md, preset 160m, layers compiled); on an A100 they are 51 to 63 %.
DEFAULT_MFU = 0.4
_MFU_REASONS = {
    "h100": "published at this size: 40-46 %; own steps on an H100: 40.4 % (docs/lab-log.md)",
    "h200": "as the H100, which has the same peak",
    "a100": "careful: published runs of this size reach 51-63 %, the TeenyTinyLlama paper's own 11 %",
    "cpu": "careful: of the product of two matrices, timed here",
}
_MFU_UNKNOWN = "a guess from other cards: no run of this size is published for this one"
# Source: codecarbon 3.3.2, external/hardware.py, POWER_CONSTANT.
_CPU_WATTS, _CPU_WATTS_SOURCE = 85.0, "codecarbon's figure for a processor it does not know"


@dataclass(frozen=True)
class Assumption:
    """A number that the plan rests on, where it comes from, and why."""

    name: str
    value: str
    origin: Origin
    reason: str


@dataclass(frozen=True)
class Machine:
    """What a plan runs on.

    Attributes:
        gpu: a key of `gpus.GPUS`, or `cpu`.
        title: its name for readers.
        num_gpus: how many.
        memory_bytes: of each; None: not known.
        mfu: share of the peak that this is; None: the speed was measured.
        flops_per_second: that training reaches on each, by 6 N + 12 L h T.
        watts: of each at work, with its share of the host.
        pue: kWh of the building for each of the machine.
        price_usd: of an hour of each; 0 for one's own computer.
        country_iso_code: where it stands.
        grams_per_kwh: of the grid there, g CO2e/kWh.
        assumptions: where all these are from.
    """

    gpu: str
    title: str
    num_gpus: int
    memory_bytes: float | None
    mfu: float | None
    flops_per_second: float
    watts: float
    pue: float
    price_usd: float
    country_iso_code: str
    grams_per_kwh: float
    assumptions: tuple[Assumption, ...] = ()

    @property
    def precision(self) -> str:
        """Return what `training.hardware.choose_precision` would choose there."""
        return {"cpu": "fp32", "t4": "fp16"}.get(self.gpu, "bf16")

    def tokens_per_second(self, flops_per_token: float) -> float:
        """Return the speed of all GPUs for a model of so many FLOPs a token."""
        return self.num_gpus * self.flops_per_second / flops_per_token

    def kwh(self, hours: float) -> float:
        """Return the energy of so many hours by the clock."""
        return hours * self.num_gpus * self.watts * self.pue / 1000

    def cost_usd(self, hours: float) -> float:
        """Return the money for so many hours by the clock."""
        return hours * self.num_gpus * self.price_usd

    def emissions_kg(self, kwh: float) -> float:
        """Return the kg CO2e of so much energy in its country."""
        return kwh * self.grams_per_kwh / 1000


def build_machine(config: PlanConfig, runs: list[MeasuredRun]) -> Machine:
    """Return the machine of a plan, from runs where they ran on it, then from the question, then from tables.

    Raises:
        InputError: unknown GPU or country, a budget for a computer without a price, or a figure that is both given and
            measured.
    """
    gpu = get_gpu(config.gpu)[0] if config.gpu and config.gpu.lower() != "cpu" else config.gpu and "cpu"
    gpu = gpu or (runs[0].gpu if runs else "h100")
    grams = grid_intensity(config.country, "country")
    ensure(
        config.budget is None or config.price is not None or gpu != "cpu",
        f"budget={config.budget}: an hour of gpu=cpu has no price. Give --price, or ask with --hours or --kwh.",
    )
    run = choose_run(runs, gpu)
    machine = _from_tables(gpu, config, measured_speed=run is not None, grams=grams)
    if run is not None:
        machine = _with_measurements(machine, config, run)
    rest = (
        Assumption("PUE", f"{config.pue:g}", "given" if config.pue != 1 else "assumed", "1 is the machine alone"),
        Assumption("grid", f"{config.country} {grams:.1f} g CO2e/kWh", "table", "codecarbon's table of yearly means"),
    )
    several = Assumption("scaling", f"{config.gpus} x one GPU", "assumed", "no loss to communication; measure it")
    return replace(machine, assumptions=(*machine.assumptions, *((several,) if config.gpus > 1 else ()), *rest))


def _from_tables(gpu: str, config: PlanConfig, measured_speed: bool, grams: float) -> Machine:
    """Return the machine without any measurement but that of a CPU's peak, made here and now."""
    memory_bytes: float | None = None
    if gpu == "cpu":
        title, peak, peak_source, watts, watts_source = "cpu", 0.0, "", _CPU_WATTS, _CPU_WATTS_SOURCE
        price, price_source = 0.0, "your own computer"
        if not measured_speed:
            title, peak, peak_source, memory_bytes = _measure_cpu()
    else:
        record = get_gpu(gpu)[1]
        title, peak, peak_source = gpu, record.peak_flops, record.source
        memory_bytes, watts, watts_source = record.memory_gb * 1e9, record.planned_watts, record.watts_source
        price, price_source = record.price_usd, record.price_source
    mfu = DEFAULT_MFU if config.mfu is None else config.mfu
    reason = next((text for name, text in _MFU_REASONS.items() if gpu.startswith(name)), _MFU_UNKNOWN)
    speed = (
        Assumption(
            "peak", f"{peak / 1e12:.3g} TFLOP/s", "measured" if gpu == "cpu" else "data sheet", peak_source
        ),
        Assumption("MFU", f"{100 * mfu:g} %", *_origin(config.mfu, reason), ),
    )  # fmt: skip
    given_watts = config.watts is not None
    return Machine(
        gpu=gpu,
        title=title,
        num_gpus=config.gpus,
        memory_bytes=memory_bytes,
        mfu=mfu,
        flops_per_second=peak * mfu,
        watts=watts if config.watts is None else config.watts,
        pue=config.pue,
        price_usd=price if config.price is None else config.price,
        country_iso_code=config.country,
        grams_per_kwh=grams,
        assumptions=(
            *(() if measured_speed else speed),
            Assumption(
                "power", f"{config.watts if given_watts else watts:.0f} W each", *_origin(config.watts, watts_source)
            ),
            Assumption(
                "price",
                f"{price if config.price is None else config.price:.2f} USD an hour each",
                *_origin(config.price, price_source),
            ),
        ),
    )


def _origin(given: float | None, reason: str) -> tuple[Origin, str]:
    return ("assumed", reason) if given is None else ("given", "on the command line")


def _measure_cpu() -> tuple[str, float, str, float]:
    """Return this computer's name, its peak in FLOP/s, how that was measured, and its free memory in bytes."""
    import torch

    from ..training.hardware import device_name, peak_flops
    from ..training.memory import free_memory_bytes

    peak, source = peak_flops("cpu")
    return (
        device_name() if not torch.cuda.is_available() else "cpu",
        peak,
        source,
        free_memory_bytes(torch.device("cpu")),
    )


def _with_measurements(machine: Machine, config: PlanConfig, run: MeasuredRun) -> Machine:
    """Return the machine with a run's speed and watts in place of the tables'.

    Raises:
        InputError: `mfu` is given as well.
    """
    ensure(
        config.mfu is None,
        f"mfu={config.mfu}, calibrate={run.folder}: the run measured the speed of this hardware. Give one of the two.",
    )
    speed = Assumption(
        "speed",
        f"{run.tokens_per_second:,.0f} tokens/s there",
        "measured",
        f"{run.folder}: {run.num_parameters:,} parameters on {run.num_gpus} x {run.hardware}; scaled by FLOPs a token",
    )
    kept = tuple(item for item in machine.assumptions if run.watts is None or item.name != "power")
    watts = machine.watts
    measured: tuple[Assumption, ...] = (speed,)
    if run.watts is not None:
        watts = run.watts
        measured += (
            Assumption("power", f"{watts:.0f} W each", "measured", f"{run.folder}: kWh over hours, host included"),
        )
    title = run.hardware if machine.gpu == "cpu" else machine.title
    return replace(
        machine,
        title=title,
        mfu=None,
        flops_per_second=run.flops_per_second,
        watts=watts,
        assumptions=(*measured, *kept),
    )
