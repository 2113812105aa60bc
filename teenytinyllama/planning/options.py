"""Sizes and token counts within the limits of a question, and what each takes."""

from dataclasses import dataclass

from ..checks import ensure
from ..presets import PRESETS, count_parameters, flops_per_token
from .calibration import LEAST_TOKENS_PER_PARAMETER, LossFit
from .config import LIMITS, PlanConfig
from .laws import LAWS, predicted_loss
from .machine import Machine
from .recipes import Recipe, step_tokens

# Tokens a parameter of a run that goes far beyond what is compute-optimal, for a small model that is cheap to use.
LONG_RUN = 100
# An option within this of what the limit allows says nothing that the limit's own line does not.
_NEARLY = 0.95


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
        hours: by the clock, of training steps alone.
        kwh: energy.
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
    kwh: float
    emissions_kg: float
    cost_usd: float
    left_usd: float | None
    reason: str


def limits_in_hours(config: PlanConfig, machine: Machine) -> dict[str, float]:
    """Return how long each given limit lets the machine run, in hours by the clock."""
    hourly = {"budget": machine.cost_usd(1.0), "hours": 1.0, "kwh": machine.kwh(1.0)}
    return {name: getattr(config, name) / hourly[name] for name in LIMITS if getattr(config, name) is not None}


def preset_options(
    config: PlanConfig, machine: Machine, recipe: Recipe, limits: dict[str, float], fits: dict[str, LossFit]
) -> list[Option]:
    """Return the token counts of one preset that are worth a line, fewest first; none if the limits allow too few."""
    shape, step = PRESETS[recipe.preset], step_tokens(recipe, config.context, config.gpus)
    parameters = count_parameters(shape)
    speed = machine.tokens_per_second(flops_per_token(shape, config.context))
    targets = [(recipe.max_tokens, "recipe"), (LONG_RUN * parameters, f"{LONG_RUN} per param.")]
    if config.tokens is not None:
        ensure(
            config.tokens >= step,
            f"tokens={config.tokens}: is less than one step of {recipe.preset}, {step:,} tokens. Ask for more.",
        )
        targets = [(config.tokens, "tokens")]
    if limits:
        binding = min(limits, key=lambda name: limits[name])
        most = limits[binding] * 3600 * speed
        if config.tokens is not None and config.tokens <= most:
            pass
        elif most < max(LEAST_TOKENS_PER_PARAMETER * parameters, step):
            return []
        else:
            shorter = [] if config.tokens is not None else [item for item in targets if item[0] < _NEARLY * most]
            targets = [*shorter, (int(most), binding)]
    return [_option(config, machine, recipe.preset, tokens, step, reason, fits) for tokens, reason in targets]


def _option(
    config: PlanConfig,
    machine: Machine,
    preset: str,
    tokens: int,
    step: int,
    reason: str,
    fits: dict[str, LossFit],
) -> Option:
    shape = PRESETS[preset]
    parameters, flops = count_parameters(shape), flops_per_token(shape, config.context)
    steps = tokens // step
    tokens = steps * step
    speed = machine.tokens_per_second(flops)
    hours = tokens / speed / 3600
    cost, kwh = machine.cost_usd(hours), machine.kwh(hours)
    return Option(
        preset=preset,
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
    binding = min(limits, key=lambda name: limits[name])
    shape = PRESETS[recipe.preset]
    speed = machine.tokens_per_second(flops_per_token(shape, config.context))
    parameters = count_parameters(shape)

    def takes(tokens: float) -> str:
        hours = tokens / speed / 3600
        amounts = {
            "budget": f"{machine.cost_usd(hours):,.2f} USD",
            "hours": f"{hours:,.2f} hours",
            "kwh": f"{machine.kwh(hours):,.2f} kWh",
        }
        return amounts[binding]

    per_parameter = limits[binding] * 3600 * speed / parameters
    buys = f"{binding}={getattr(config, binding):g}: buys {per_parameter:.2g} tokens a parameter of {recipe.preset}"
    return buys, (
        f"{takes(LEAST_TOKENS_PER_PARAMETER * parameters)} for one token a parameter and {takes(recipe.max_tokens)} "
        f"for its recipe ({recipe.max_tokens / 1e9:.2f}B tokens)"
    )
