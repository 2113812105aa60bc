"""From a question to a plan: which sizes and token counts fit, what each costs, and the run that is worth making."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from ..grid import grid_intensity, place
from ..presets import PRESETS
from .calibration import CPU, LEAST_TOKENS_PER_PARAMETER, LossFit, MeasuredRun, choose_run, fit_losses, read_run
from .config import PLANNED_PRESETS, PlanConfig
from .laws import LAWS, optimum, predicted_loss, unique_optimum
from .machine import Machine, build_machine
from .needs import Needs, run_needs
from .options import Option, limits_in_hours, preset_options, tokens_within, too_little
from .recipes import read_recipe

# Where the chosen run is also shown: Brazil, Portugal, and countries where many rent GPUs.
ELSEWHERE = ("BRA", "PRT", "DEU", "USA", "FRA")


@dataclass(frozen=True)
class Optimum:
    """The size and data with the lowest predicted loss for an amount of compute, by one law."""

    law: str
    num_parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Plan:
    """Everything that a plan found; `choice` is the option that it works out further.

    `affordable_tokens` are those that the limits would let the chosen preset train on; None without a limit.
    """

    machine: Machine
    limits_hours: dict[str, float]
    options: list[Option]
    left_out: dict[str, str]
    choice: Option
    ranked_by: str
    compute_flops: float
    optima: list[Optimum]
    needs: Needs
    elsewhere_kg: dict[str, float]
    runs: list[MeasuredRun]
    fits: dict[str, LossFit]
    unique_tokens: int | None
    context: int
    affordable_tokens: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; keys carry units."""
        sources = {name: law.source for name, law in LAWS.items()}
        return {**asdict(self), "precision": self.machine.precision, "law_sources": sources}


def make_plan(config: PlanConfig, recipes_folder: Path) -> Plan:
    """Return the plan that answers a question.

    Raises:
        InputError: unknown GPU or country, a folder that cannot calibrate, limits too tight for anything, or figures
            that contradict each other.
    """
    runs = [read_run(folder, config.watts is not None) for folder in config.calibrate or []]
    machine = build_machine(config, runs)
    fits = fit_losses(runs)
    ensure(
        not runs or fits or choose_run(runs, machine.gpu, machine.num_gpus) is not None,
        f"calibrate={', '.join(run.folder for run in runs)}: says nothing about this plan: it is not a run on "
        f"gpu={machine.gpu}, and with less than {LEAST_TOKENS_PER_PARAMETER:g} token a parameter its loss does not "
        "count. Leave --gpu out to plan for its hardware, or leave --calibrate out.",
    )
    limits = limits_in_hours(config, machine)
    options: list[Option] = []
    left_out: dict[str, str] = {}
    too_small = ""
    for preset in _presets(config, machine):
        recipe = read_recipe(recipes_folder, preset)
        found = preset_options(config, machine, recipe, limits, fits)
        options += found
        if not found:
            buys, takes = too_little(config, machine, recipe, limits)
            left_out[preset] = f"{buys}; it takes {takes}"
            too_small = (
                too_small or f"{buys}, too few to train anything. It takes {takes}. Raise the limit{_smaller(config)}."
            )
    if not options:
        raise InputError(too_small)  # of the smallest preset, or the one asked for
    ranked_by = "muennighoff" if config.unique_tokens else "besiroglu"
    choice = min(options, key=lambda option: (option.losses[ranked_by], option.cost_usd))
    context = config.context_of(choice.preset)
    recipe = read_recipe(recipes_folder, choice.preset)
    # Compute in the laws' own count, C = 6 N D, so that the optimum of a law compares with the options.
    compute = 6.0 * choice.num_parameters * choice.tokens
    return Plan(
        machine=machine,
        limits_hours=limits,
        options=options,
        left_out=left_out,
        choice=choice,
        ranked_by=ranked_by,
        compute_flops=compute,
        optima=_optima(compute, config.unique_tokens, fits),
        needs=run_needs(PRESETS[choice.preset], context, choice.tokens, choice.tokens_per_step, recipe.checkpoints_kept,
                        config.unique_tokens, machine),
        elsewhere_kg={place(config.country_iso_code, config.region): machine.emissions_kg(choice.kwh)}
        | {country: choice.kwh * grid_intensity(country) / 1000 for country in ELSEWHERE},
        runs=runs,
        fits=fits,
        unique_tokens=config.unique_tokens,
        context=context,
        affordable_tokens=tokens_within(config, machine, recipe, min(limits.values())) if limits else None,
    )  # fmt: skip


def _presets(config: PlanConfig, machine: Machine) -> list[str]:
    """Return the presets to be planned; a computer without a GPU may not get further than the smallest."""
    if config.preset:
        return [config.preset]
    if machine.gpu != CPU:
        return list(PLANNED_PRESETS)
    return [name for name in PRESETS if (config.context or 0) <= PRESETS[name].max_position_embeddings]


def _smaller(config: PlanConfig) -> str:
    return "" if config.preset == "tiny" else ", or plan the demo's model: --preset tiny"


def _optima(compute_flops: float, unique_tokens: int | None, fits: dict[str, LossFit]) -> list[Optimum]:
    found = []
    for name, law in LAWS.items():
        limited = unique_tokens if law.repeats else None
        parameters, tokens = (
            optimum(law, compute_flops) if limited is None else unique_optimum(law, compute_flops, limited)
        )
        loss = predicted_loss(law, parameters, tokens, limited)
        found.append(Optimum(name, parameters, tokens, fits[name](loss) if name in fits else loss))
    return found
