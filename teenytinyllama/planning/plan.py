"""Plans: which sizes and token counts fit a question's limits, what each of them takes, and the run worth making."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from ..energy.emissions import grid_intensity, place
from ..lab.scaling import LAW_NAME, LabLaw, Prediction, read_law
from ..presets import PRESETS, Preset, flops_per_token
from ..stage_folder import RUNS_NAME
from .config import LIMITS, PLANNED_PRESETS, PlanConfig, Recipe, read_recipe, step_tokens
from .laws import (
    CPU,
    LAWS,
    LEAST_TOKENS_PER_PARAMETER,
    MOST_TOKENS_PER_PARAMETER,
    LossFit,
    LossLaw,
    MeasuredRun,
    choose_run,
    fit_losses,
    optimum,
    predicted_loss,
    read_run,
    unique_optimum,
)
from .machine import Machine, Needs, build_machine, run_needs
from .memory import REPEATS_WORTH_READING, OptimizerName, checkpoint_bytes, optimizer_bytes

LAB = "lab"  # the name of a lab's law among the laws of a plan


@dataclass(frozen=True)
class Optimum:
    """The size and data with the lowest predicted loss for an amount of compute, by one law."""

    law: str
    num_parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Expectations:
    """The laws of a plan.

    Attributes:
        laws: by name, in nats per token.
        fits: how the losses of finished runs follow from those of a law; empty without such runs, and with a lab.
        lab: law of a lab; None: without one.
        lab_folder: of that lab.
    """

    laws: dict[str, LossLaw] = field(default_factory=lambda: dict(LAWS))
    fits: dict[str, LossFit] = field(default_factory=dict)
    lab: LabLaw | None = None
    lab_folder: str | None = None

    def losses(self, num_parameters: float, tokens: float, unique_tokens: float | None) -> dict[str, float]:
        """Return the losses by law in nats per token.

        Raises:
            InputError: a calibrated loss is not above 0.
        """
        predicted = {name: predicted_loss(law, num_parameters, tokens, unique_tokens)
                     for name, law in self.laws.items()}  # fmt: skip
        return {name: self._calibrated(name, loss) for name, loss in predicted.items()}

    def prediction(self, num_parameters: float, tokens: float, unique_tokens: float | None) -> Prediction | None:
        """Return what the lab's law expects, with its interval; None without a lab."""
        return self.lab.predict(num_parameters, tokens, unique_tokens) if self.lab else None

    def ranking(self, unique_tokens: float | None) -> str:
        """Return the name of the law by which options are ranked."""
        return LAB if self.lab else "muennighoff" if unique_tokens else "besiroglu"

    def optima(self, compute_flops: float, unique_tokens: int | None) -> list[Optimum]:
        """Return the size and data with the lowest loss for C = 6 N D FLOPs, by each law."""
        found = []
        for name, law in self.laws.items():
            limited = unique_tokens if law.repeats else None
            parameters, tokens = (
                optimum(law, compute_flops) if limited is None else unique_optimum(law, compute_flops, limited)
            )
            loss = predicted_loss(law, parameters, tokens, limited)
            found.append(Optimum(name, parameters, tokens, self.fits[name](loss) if name in self.fits else loss))
        return found

    def _calibrated(self, law: str, predicted: float) -> float:
        """Return a predicted loss, moved onto the corpus of the calibrating runs if there are any."""
        if law not in self.fits:
            return predicted
        loss = self.fits[law](predicted)
        ensure(
            loss > 0,
            f"calibrate: moves the predicted loss to {loss:.2f}, which cannot be: the runs are too far from the plan. "
            "Give longer or larger runs.",
        )
        return loss


def make_expectations(runs: list[MeasuredRun], labs: list[str]) -> Expectations:
    """Return the laws of a plan.

    Args:
        runs: finished ones; their losses count where there is no lab.
        labs: folders of labs.

    Raises:
        InputError: several labs, a lab without a law (with the reason), or runs that cannot calibrate.
    """
    ensure(len(labs) < 2, f"calibrate={', '.join(labs)}: are several labs, and a plan uses one law. Give one of them.")
    if not labs:
        return Expectations(fits=fit_losses(runs))
    law = read_law(Path(labs[0]))
    return Expectations(laws={LAB: law.in_nats()}, lab=law, lab_folder=labs[0])


# Tokens a parameter of a run that goes far beyond what is compute-optimal, for a small model that is cheap to use.
LONG_RUN = 100
# An option within this share of what the limit allows says nothing that the limit's own line does not.
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
# Countries where the chosen run is also shown: Brazil, Portugal, and those where many rent GPUs.
ELSEWHERE = ("BRA", "PRT", "DEU", "USA", "FRA")


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
        prediction: of the lab's law, with its interval; None without a lab.
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
    prediction: Prediction | None
    flops: float
    tokens_per_second: float
    hours: float
    outside_hours: dict[str, float]
    kwh: float
    emissions_kg: float
    cost_usd: float
    left_usd: float | None
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A preset on the machine of a plan: how fast its recipe trains there, and what a run of any length takes."""

    config: PlanConfig
    machine: Machine
    recipe: Recipe

    @property
    def shape(self) -> Preset:
        """Return the shape of the model."""
        return PRESETS[self.recipe.preset]

    @property
    def optimizer(self) -> OptimizerName:
        """Return what trains the layers' matrices."""
        return self.config.optimizer or self.recipe.optimizer

    @cached_property
    def flops_per_token(self) -> int:
        """Return the training FLOPs of a token, by 6 N + 12 L h T."""
        return flops_per_token(self.shape, self.config.context_of(self.recipe.preset))

    @cached_property
    def tokens_per_second(self) -> float:
        """Return the speed of all GPUs in training steps."""
        return self.machine.tokens_per_second(self.flops_per_token)

    def outside_hours(self, tokens: float) -> dict[str, float]:
        """Return the hours of a run that are no training steps, by what they are for.

        On the hardware of a calibrating run they are that run's: its start, and the rest in the proportion of the
        tokens that an evaluation scores and of the time that a token takes.
        """
        run, speed = self.machine.run, self.tokens_per_second
        if run is not None:
            longer = _evaluated_tokens(tokens) / _evaluated_tokens(run.tokens) if run.scores_by_length else 1.0
            rest = run.outside_seconds * longer * run.tokens_per_second / speed
            return {"evaluations, saves and callbacks": rest / 3600, "start": run.starting_seconds / 3600}
        held_out = _HELD_OUT_SHARE * min(tokens, self.config.unique_tokens or tokens)
        scored = (self.recipe.num_evaluations + 1) * min(_evaluated_tokens(tokens), held_out) + held_out
        moments = optimizer_bytes(self.shape, self.optimizer)
        each = checkpoint_bytes(self.shape.num_parameters, self.machine.precision, moments=moments)
        seconds = {
            "evaluations": _FORWARD_SHARE * scored / speed,
            "checkpoints": self.recipe.num_saves * each / _DISK_BYTES_PER_SECOND,
            "callbacks and samples": _CALLBACKS_SHARE * tokens / speed,
            "start": _START_SECONDS["cpu" if self.machine.gpu == CPU else "gpu"],
        }
        return {name: taken / 3600 for name, taken in seconds.items()}

    def hours(self, tokens: float) -> float:
        """Return the hours by the clock of a run of so many tokens."""
        return tokens / self.tokens_per_second / 3600 + sum(self.outside_hours(tokens).values())

    def tokens_within(self, hours: float) -> int:
        """Return the most tokens that a run of so many hours trains on, what is outside of its steps included."""
        low, high = 0.0, min(hours * 3600 * self.tokens_per_second, _MOST_TOKENS)
        for _ in range(64):
            middle = (low + high) / 2
            low, high = (middle, high) if self.hours(middle) <= hours else (low, middle)
        return int(low)

    def ends(self, limits: dict[str, float]) -> list[tuple[int, str]]:
        """Return the tokens that no option goes beyond, each with its reason; `limits` are in hours by the clock."""
        ends = []
        if limits:
            binding = min(limits, key=lambda name: limits[name])
            ends.append((self.tokens_within(limits[binding]), binding))
        if self.config.tokens is None:  # whoever asks for more is told what it means, and gets it
            ends.append((MOST_TOKENS_PER_PARAMETER * self.shape.num_parameters, MOST_PER_PARAMETER))
            if self.config.unique_tokens:
                ends.append((REPEATS_WORTH_READING * self.config.unique_tokens, READINGS))
        return ends

    def options(self, limits: dict[str, float], expectations: Expectations) -> list[Option]:
        """Return the token counts that are worth a line, fewest first; none if the limits allow too few."""
        preset, parameters, asked = self.recipe.preset, self.shape.num_parameters, self.config.tokens
        step = step_tokens(self.recipe, self.config.context_of(preset), self.config.gpus)
        targets = [(self.recipe.max_tokens, "recipe"), (LONG_RUN * parameters, f"{LONG_RUN} per param.")]
        if asked is not None:
            ensure(asked >= step, f"tokens={asked}: is less than one step of {preset}, {step:,} tokens. Ask for more.")
            targets = [(asked, "tokens")]
        most, reason = min(self.ends(limits), default=(_MOST_TOKENS, ""))
        if asked is None or asked > most:
            if most < max(LEAST_TOKENS_PER_PARAMETER * parameters, step):
                return []
            shorter = [] if asked is not None else [item for item in targets if item[0] < _NEARLY * most]
            if limits or len(shorter) < len(targets):
                targets = [*shorter, (int(most), reason)]
        return [self._option(tokens // step, step, reason, expectations) for tokens, reason in targets]

    def _option(self, steps: int, step: int, reason: str, expectations: Expectations) -> Option:
        config, machine, parameters = self.config, self.machine, self.shape.num_parameters
        tokens = steps * step
        hours, outside = self.hours(tokens), self.outside_hours(tokens)
        cost, kwh = machine.cost_usd(hours), machine.kwh(hours - outside["start"])  # nothing is measured in the start
        return Option(
            preset=self.recipe.preset,
            num_parameters=parameters,
            tokens=tokens,
            tokens_per_step=step,
            steps=steps,
            tokens_per_parameter=tokens / parameters,
            epochs=tokens / config.unique_tokens if config.unique_tokens else None,
            losses=expectations.losses(parameters, tokens, config.unique_tokens),
            prediction=expectations.prediction(parameters, tokens, config.unique_tokens),
            flops=float(tokens) * self.flops_per_token,
            tokens_per_second=self.tokens_per_second,
            hours=hours,
            outside_hours=outside,
            kwh=kwh,
            emissions_kg=machine.emissions_kg(kwh),
            cost_usd=cost,
            left_usd=None if config.budget is None else max(0.0, config.budget - cost),
            reason=reason,
        )

    def too_little(self, limits: dict[str, float]) -> tuple[str, str]:
        """Return what a limit that is too tight for the preset buys, and what the preset takes."""
        preset, parameters = self.recipe.preset, self.shape.num_parameters
        tokens, binding = min(self.ends(limits))
        per_parameter = tokens / parameters
        if binding == READINGS:
            return (
                f"unique_tokens={self.config.unique_tokens}: {REPEATS_WORTH_READING} readings are {per_parameter:.2g} "
                f"tokens a parameter of {preset}",
                f"{LEAST_TOKENS_PER_PARAMETER * parameters / REPEATS_WORTH_READING / 1e6:,.2f}M different tokens for "
                "one token a parameter, or --tokens to read them more often all the same",
            )

        def takes(tokens: float) -> str:
            hours = self.hours(tokens)
            amounts = {
                "budget": f"{self.machine.cost_usd(hours) / (1 - KEPT_BACK):,.2f} USD",
                "hours": f"{hours:,.2f} hours",
                "kwh": f"{self.machine.kwh(hours):,.2f} kWh",
            }
            return amounts[binding]

        length = self.recipe.max_tokens
        shown = f"{length / 1e9:.2f}B" if length >= 1e9 else f"{length / 1e6:.2f}M"
        return (
            f"{binding}={getattr(self.config, binding):g}: buys {per_parameter:.2g} tokens a parameter of {preset}",
            f"{takes(LEAST_TOKENS_PER_PARAMETER * parameters)} for one token a parameter and {takes(length)} for its "
            f"recipe ({shown} tokens)",
        )


def _evaluated_tokens(tokens: float) -> float:
    """Return the tokens that an evaluation scores by default; see `training.config`, eval_max_tokens."""
    return min(200_000.0, max(20_000.0, tokens / 100))


def limits_in_hours(config: PlanConfig, machine: Machine) -> dict[str, float]:
    """Return how long each given limit lets the machine run, in hours by the clock; a part of a budget is kept back."""
    hourly = {"budget": machine.cost_usd(1.0) / (1 - KEPT_BACK), "hours": 1.0, "kwh": machine.kwh(1.0)}
    return {name: getattr(config, name) / hourly[name] for name in LIMITS if getattr(config, name) is not None}


@dataclass(frozen=True)
class Plan:
    """The answer to a question: all options, and what the chosen one (`choice`) needs.

    `lab` is the folder of the lab whose law was used; None without one. `affordable_tokens` is how many tokens the
    limits would let the chosen preset train on; None without a limit.
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
    laws: dict[str, LossLaw]
    fits: dict[str, LossFit]
    lab: str | None
    unique_tokens: int | None
    context: int
    affordable_tokens: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; keys carry units."""
        sources = {name: law.source for name, law in self.laws.items()}
        return {**asdict(self), "precision": self.machine.precision, "law_sources": sources}


def make_plan(config: PlanConfig, recipes_folder: Path) -> Plan:
    """Return the plan that answers a question.

    Raises:
        InputError: unknown GPU or country, a folder that cannot calibrate, limits too tight for anything, or figures
            that contradict each other.
    """
    folders = config.calibrate or []
    labs = [name for name in folders if any((Path(name) / file).is_file() for file in (RUNS_NAME, LAW_NAME))]
    runs = [read_run(name, config.watts is not None) for name in folders if name not in labs]
    machine = build_machine(config, runs)
    expectations = make_expectations(runs, labs)
    ensure(
        not runs or expectations.fits or choose_run(runs, machine.gpu, machine.num_gpus) is not None,
        f"calibrate={', '.join(run.folder for run in runs)}: says nothing about this plan: it is not a run on "
        f"gpu={machine.gpu}, and with less than {LEAST_TOKENS_PER_PARAMETER:g} token a parameter its loss does not "
        "count. Leave --gpu out to plan for its hardware, or leave --calibrate out.",
    )
    limits = limits_in_hours(config, machine)
    options: list[Option] = []
    left_out: dict[str, str] = {}
    too_small = ""
    candidates = {name: Candidate(config, machine, read_recipe(recipes_folder, name))
                  for name in _presets(config, machine)}  # fmt: skip
    for preset, candidate in candidates.items():
        found = candidate.options(limits, expectations)
        options += found
        if not found:
            buys, takes = candidate.too_little(limits)
            left_out[preset] = f"{buys}; it takes {takes}"
            smaller = "" if config.preset == "tiny" else ", or plan the demo's model: --preset tiny"
            told = f"{buys}, too few to train anything. It takes {takes}. Raise the limit{smaller}."
            too_small = too_small or told
    if not options:
        raise InputError(too_small)  # of the smallest preset, or the one asked for
    ranked_by = expectations.ranking(config.unique_tokens)
    choice = min(options, key=lambda option: (option.losses[ranked_by], option.cost_usd))
    chosen, context = candidates[choice.preset], config.context_of(choice.preset)
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
        optima=expectations.optima(compute, config.unique_tokens),
        needs=run_needs(chosen.shape, context, choice.tokens, choice.tokens_per_step, chosen.recipe.checkpoints_kept,
                        config.unique_tokens, machine, chosen.optimizer),
        elsewhere_kg={place(config.country_iso_code, config.region): machine.emissions_kg(choice.kwh)}
        | {country: choice.kwh * grid_intensity(country) / 1000 for country in ELSEWHERE},
        runs=runs,
        laws=expectations.laws,
        fits=expectations.fits,
        lab=expectations.lab_folder,
        unique_tokens=config.unique_tokens,
        context=context,
        affordable_tokens=chosen.tokens_within(min(limits.values())) if limits else None,
    )  # fmt: skip


def _presets(config: PlanConfig, machine: Machine) -> list[str]:
    """Return the presets to be planned; `tiny` only where it is asked for, and on a computer without a GPU."""
    if config.preset:
        return [config.preset]
    if machine.gpu != CPU:
        return list(PLANNED_PRESETS)
    return [name for name in PRESETS if (config.context or 0) <= PRESETS[name].max_position_embeddings]
