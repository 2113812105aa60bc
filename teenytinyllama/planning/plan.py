"""From a question to a plan: which sizes and token counts fit, what each costs, and the run that is worth making.

Sizes and token counts within the limits of a question, and what each takes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from ..energy.emissions import grid_intensity, place
from ..presets import PRESETS, count_parameters, flops_per_token
from .config import LIMITS, PLANNED_PRESETS, PlanConfig, Recipe, read_recipe, step_tokens
from .laws import (
    CPU,
    LAWS,
    LEAST_TOKENS_PER_PARAMETER,
    MOST_TOKENS_PER_PARAMETER,
    LossFit,
    MeasuredRun,
    choose_run,
    fit_losses,
    optimum,
    predicted_loss,
    read_run,
    unique_optimum,
)
from .machine import Machine, Needs, build_machine, run_needs
from .memory import REPEATS_WORTH_READING, checkpoint_bytes

# Tokens a parameter of a run that goes far beyond what is compute-optimal, for a small model that is cheap to use.
LONG_RUN = 100
# An option within this of what the limit allows says nothing that the limit's own line does not.
_NEARLY = 0.95
# Share of a budget that no run is planned with: for the tokenizer, packing and a start that fails. Assumed.
KEPT_BACK = 0.02
# What ends an option where no limit does.
READINGS, MOST_PER_PARAMETER = f"{REPEATS_WORTH_READING} readings", f"{MOST_TOKENS_PER_PARAMETER:,} per param."
_MOST_TOKENS = 10**18
# What is outside of steps where no run has measured it. A forward pass is a third of a step (2 of 6 N FLOPs a token);
# `ttl pack` holds out 1 % by default, all of which the last evaluation scores. Callbacks and samples took 0.08 % of
# steps between evaluations on a GPU (docs/gpu.md) and 0.20 % of 81 minutes (docs/performance.md). A start took 20 s on
# a CPU (docs/performance.md); two minutes on a GPU, where layers are compiled, and the speed of the disk are assumed.
_FORWARD_SHARE, _HELD_OUT_SHARE, _CALLBACKS_SHARE = 1 / 3, 0.01, 0.0035
_START_SECONDS = {"cpu": 20.0, "gpu": 120.0}
_DISK_BYTES_PER_SECOND = 5e8


@dataclass(frozen=True)
class Option:
    """A preset and a token count, and what they take.

    Attributes:
        preset: key of `presets.PRESETS`.
        num_parameters: all of them.
        tokens: trained on, in whole steps.
        tokens_per_step: batch of the recipe, in tokens.
        steps: optimizer steps.
        tokens_per_parameter: tokens over parameters.
        epochs: times each unique token is seen; None: all tokens are taken for new.
        losses: by law, in nats per token; calibrated where runs were given.
        flops: by 6 N + 12 L h T.
        tokens_per_second: of all GPUs.
        hours: by the clock, of the whole run.
        outside_hours: of these, what is no training step, by what it is for.
        kwh: energy, of all but the start.
        emissions_kg: kg CO2e.
        cost_usd: money.
        left_usd: what is left of the budget; None without one.
        reason: why so many tokens: the limit that binds, or which target it is.
    """

    preset: str
    num_parameters: int
    tokens: int
    tokens_per_step: int
    steps: int
    tokens_per_parameter: float
    epochs: float | None
    losses: dict[str, float]
    flops: float
    tokens_per_second: float
    hours: float
    outside_hours: dict[str, float]
    kwh: float
    emissions_kg: float
    cost_usd: float
    left_usd: float | None
    reason: str


def limits_in_hours(config: PlanConfig, machine: Machine) -> dict[str, float]:
    """Return how long each given limit lets the machine run, in hours by the clock; a part of a budget is kept back."""
    hourly = {"budget": machine.cost_usd(1.0) / (1 - KEPT_BACK), "hours": 1.0, "kwh": machine.kwh(1.0)}
    return {name: getattr(config, name) / hourly[name] for name in LIMITS if getattr(config, name) is not None}


def outside_hours(config: PlanConfig, machine: Machine, recipe: Recipe, tokens: float) -> dict[str, float]:
    """Return the hours of a run that are no training steps, by what they are for.

    On the hardware of a calibrating run they are that run's: its start, and the rest in the proportion of the tokens
    that an evaluation scores and of the time that a token takes.
    """
    shape, run = PRESETS[recipe.preset], machine.run
    speed = machine.tokens_per_second(flops_per_token(shape, config.context_of(recipe.preset)))
    if run is not None:
        longer = _evaluated_tokens(tokens) / _evaluated_tokens(run.tokens) if run.scores_by_length else 1.0
        rest = run.outside_seconds * longer * run.tokens_per_second / speed
        return {"evaluations, saves and callbacks": rest / 3600, "start": run.starting_seconds / 3600}
    held_out = _HELD_OUT_SHARE * min(tokens, config.unique_tokens or tokens)
    scored = (recipe.num_evaluations + 1) * min(_evaluated_tokens(tokens), held_out) + held_out
    each = checkpoint_bytes(count_parameters(shape), machine.precision)
    seconds = {
        "evaluations": _FORWARD_SHARE * scored / speed,
        "checkpoints": recipe.num_saves * each / _DISK_BYTES_PER_SECOND,
        "callbacks and samples": _CALLBACKS_SHARE * tokens / speed,
        "start": _START_SECONDS["cpu" if machine.gpu == CPU else "gpu"],
    }
    return {name: taken / 3600 for name, taken in seconds.items()}


def _evaluated_tokens(tokens: float) -> float:
    """Return the tokens that an evaluation scores by default; see `training.config`, eval_max_tokens."""
    return min(200_000.0, max(20_000.0, tokens / 100))


def tokens_within(config: PlanConfig, machine: Machine, recipe: Recipe, hours: float) -> int:
    """Return the most tokens that a run of so many hours trains on, what is outside of its steps included."""
    speed = machine.tokens_per_second(flops_per_token(PRESETS[recipe.preset], config.context_of(recipe.preset)))
    low, high = 0.0, min(hours * 3600 * speed, _MOST_TOKENS)
    for _ in range(64):
        middle = (low + high) / 2
        taken = middle / speed / 3600 + sum(outside_hours(config, machine, recipe, middle).values())
        low, high = (middle, high) if taken <= hours else (low, middle)
    return int(low)


def _ends(config: PlanConfig, machine: Machine, recipe: Recipe, limits: dict[str, float]) -> list[tuple[int, str]]:
    """Return the tokens that no option goes beyond, each with its reason."""
    ends = []
    if limits:
        binding = min(limits, key=lambda name: limits[name])
        ends.append((tokens_within(config, machine, recipe, limits[binding]), binding))
    if config.tokens is None:  # whoever asks for more is told what it means, and gets it
        parameters = count_parameters(PRESETS[recipe.preset])
        ends.append((MOST_TOKENS_PER_PARAMETER * parameters, MOST_PER_PARAMETER))
        if config.unique_tokens:
            ends.append((REPEATS_WORTH_READING * config.unique_tokens, READINGS))
    return ends


def preset_options(
    config: PlanConfig, machine: Machine, recipe: Recipe, limits: dict[str, float], fits: dict[str, LossFit]
) -> list[Option]:
    """Return the token counts of one preset that are worth a line, fewest first; none if the limits allow too few."""
    shape, step = PRESETS[recipe.preset], step_tokens(recipe, config.context_of(recipe.preset), config.gpus)
    parameters = count_parameters(shape)
    targets = [(recipe.max_tokens, "recipe"), (LONG_RUN * parameters, f"{LONG_RUN} per param.")]
    if config.tokens is not None:
        ensure(
            config.tokens >= step,
            f"tokens={config.tokens}: is less than one step of {recipe.preset}, {step:,} tokens. Ask for more.",
        )
        targets = [(config.tokens, "tokens")]
    most, reason = min(_ends(config, machine, recipe, limits), default=(_MOST_TOKENS, ""))
    if config.tokens is None or config.tokens > most:
        if most < max(LEAST_TOKENS_PER_PARAMETER * parameters, step):
            return []
        shorter = [] if config.tokens is not None else [item for item in targets if item[0] < _NEARLY * most]
        if limits or len(shorter) < len(targets):
            targets = [*shorter, (int(most), reason)]
    return [_option(config, machine, recipe, tokens, step, reason, fits) for tokens, reason in targets]


def _option(
    config: PlanConfig,
    machine: Machine,
    recipe: Recipe,
    tokens: int,
    step: int,
    reason: str,
    fits: dict[str, LossFit],
) -> Option:
    shape = PRESETS[recipe.preset]
    parameters, flops = count_parameters(shape), flops_per_token(shape, config.context_of(recipe.preset))
    steps = tokens // step
    tokens = steps * step
    speed = machine.tokens_per_second(flops)
    outside = outside_hours(config, machine, recipe, tokens)
    hours = tokens / speed / 3600 + sum(outside.values())
    cost, kwh = machine.cost_usd(hours), machine.kwh(hours - outside["start"])  # nothing is measured in the start
    return Option(
        preset=recipe.preset,
        num_parameters=parameters,
        tokens=tokens,
        tokens_per_step=step,
        steps=steps,
        tokens_per_parameter=tokens / parameters,
        epochs=tokens / config.unique_tokens if config.unique_tokens else None,
        losses={
            name: _calibrated(fits, name, predicted_loss(law, parameters, tokens, config.unique_tokens))
            for name, law in LAWS.items()
        },
        flops=float(tokens) * flops,
        tokens_per_second=speed,
        hours=hours,
        outside_hours=outside,
        kwh=kwh,
        emissions_kg=machine.emissions_kg(kwh),
        cost_usd=cost,
        left_usd=None if config.budget is None else max(0.0, config.budget - cost),
        reason=reason,
    )


def _calibrated(fits: dict[str, LossFit], law: str, predicted: float) -> float:
    """Return a law's prediction moved onto the corpus of the runs, if there are any.

    Raises:
        InputError: that would be no loss any more.
    """
    if law not in fits:
        return predicted
    loss = fits[law](predicted)
    ensure(
        loss > 0,
        f"calibrate: moves the predicted loss to {loss:.2f}, which cannot be: the runs are too far from the plan. Give "
        "longer or larger runs.",
    )
    return loss


def too_little(config: PlanConfig, machine: Machine, recipe: Recipe, limits: dict[str, float]) -> tuple[str, str]:
    """Return what a limit that is too tight for a preset buys, and what the preset takes."""
    tokens, binding = min(_ends(config, machine, recipe, limits))
    parameters = count_parameters(PRESETS[recipe.preset])
    per_parameter = tokens / parameters
    if binding == READINGS:
        return (
            f"unique_tokens={config.unique_tokens}: {REPEATS_WORTH_READING} readings are {per_parameter:.2g} tokens a "
            f"parameter of {recipe.preset}",
            f"{LEAST_TOKENS_PER_PARAMETER * parameters / REPEATS_WORTH_READING / 1e6:,.2f}M different tokens for one "
            "token a parameter, or --tokens to read them more often all the same",
        )
    speed = machine.tokens_per_second(flops_per_token(PRESETS[recipe.preset], config.context_of(recipe.preset)))

    def takes(tokens: float) -> str:
        hours = tokens / speed / 3600 + sum(outside_hours(config, machine, recipe, tokens).values())
        amounts = {
            "budget": f"{machine.cost_usd(hours) / (1 - KEPT_BACK):,.2f} USD",
            "hours": f"{hours:,.2f} hours",
            "kwh": f"{machine.kwh(hours):,.2f} kWh",
        }
        return amounts[binding]

    buys = f"{binding}={getattr(config, binding):g}: buys {per_parameter:.2g} tokens a parameter of {recipe.preset}"
    return buys, (
        f"{takes(LEAST_TOKENS_PER_PARAMETER * parameters)} for one token a parameter and {takes(recipe.max_tokens)} "
        f"for its recipe ({_count(recipe.max_tokens)} tokens)"
    )


def _count(tokens: int) -> str:
    return f"{tokens / 1e9:.2f}B" if tokens >= 1e9 else f"{tokens / 1e6:.2f}M"


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
