"""The report of a plan: its text for the terminal, and on request its JSON and the config of the planned run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..arguments import write_yaml
from ..energy.emissions import place
from ..lab.scaling import ROUGH_NOISE, Prediction, rough_law
from ..stage_folder import write_json
from .config import PlanConfig, planned_values, read_recipe
from .laws import CPU, FITTED_PARAMETERS, FITTED_TOKENS, LEAST_TOKENS_PER_PARAMETER, MOST_TOKENS_PER_PARAMETER
from .memory import REPEATS_WORTH_READING
from .plan import KEPT_BACK, MOST_PER_PARAMETER, READINGS, Plan, make_plan

# Tokens a parameter of an optimum beyond a factor of so many are of a law that does not know what size is worth.
_MOST_RATIO = 1e5
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """Return a count in three digits and a unit: 3.28B, 36.9B, 262k."""
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if abs(number) >= scale * 0.9995), (1.0, ""))
    value = number / scale
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}{unit}"


def markdown_table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _ends(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def _amount(number: float) -> str:
    """Return an amount with about three digits: 0.042, 3.10, 42.1, 1,250."""
    return f"{number:,.{3 if number < 0.1 else 2 if number < 10 else 1 if number < 1000 else 0}f}"


def align(rows: Sequence[Sequence[str]], left: int = 1, indent: str = "  ") -> list[str]:
    """Return rows of cells as lines: the first `left` columns and the last one flush left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1

    def cell(text: str, column: int) -> str:
        return text.ljust(widths[column]) if column < left or column == last else text.rjust(widths[column])

    return [(indent + "  ".join(cell(text, column) for column, text in enumerate(row))).rstrip() for row in rows]


def render(plan: Plan) -> str:
    """Return the whole plan as text."""
    parts = [_question(plan), _options(plan), _optima(plan), _batch(plan), _memory(plan), _disk(plan), _elsewhere(plan)]
    parts += [_sources(plan), _notes(plan)]
    return "\n\n".join("\n".join(part) for part in parts)


def _question(plan: Plan) -> list[str]:
    machine = plan.machine
    has_price = machine.price_usd or machine.price_is_given
    price = f"{machine.price_usd:.2f} USD an hour each" if has_price else "no price"
    speed = "measured speed" if machine.mfu is None else f"{100 * machine.mfu:g} % MFU (6 N + 12 L h T)"
    lines = [
        f"{machine.num_gpus} x {machine.title}: {speed}, {price}, {machine.watts:.0f} W each, PUE {machine.pue:g}, "
        f"grid of {place(machine.country_iso_code, machine.region)}; rows of {plan.context:,} tokens"
    ]
    if plan.limits_hours:
        tightest = min(plan.limits_hours, key=lambda name: plan.limits_hours[name])
        several = len(plan.limits_hours) > 1
        each = [
            f"{_amount(hours)} h by {name}{' (the tightest)' if several and name == tightest else ''}"
            for name, hours in plan.limits_hours.items()
        ]
        lines.append("limits: " + ", ".join(each))
    return lines


def _options(plan: Plan) -> list[str]:
    has_budget = plan.choice.left_usd is not None
    head = ["", "preset", "tokens", "per param.", *(["epochs"] if plan.unique_tokens else [])]
    head += [law.title for law in plan.laws.values()] + (["bits/byte", "90 %"] if plan.lab else [])
    head += ["tokens/s", "hours", "kWh", "kg CO2e", "USD", *(["left"] if has_budget else []), "set by"]
    rows = [head]
    for option in plan.options:
        row = ["*" if option == plan.choice else "", option.preset, short(option.tokens)]
        row += [_amount(option.tokens_per_parameter)]
        row += [] if option.epochs is None else [f"{option.epochs:.2f}"]
        row += [f"{loss:.3f}" for loss in option.losses.values()]
        if option.prediction:
            row += [f"{option.prediction.bits_per_byte:.3f}", _ends(option.prediction.low, option.prediction.high)]
        row += [short(option.tokens_per_second), *map(_amount, (option.hours, option.kwh, option.emissions_kg))]
        row += [f"{option.cost_usd:,.2f}"]
        row += [] if option.left_usd is None else [f"{option.left_usd:,.2f}"]
        rows.append([*row, option.reason])
    kind = "calibrated" if plan.fits else "predicted"
    ranked, laws = plan.laws[plan.ranked_by].title, "the lab's law" if plan.lab else "four laws"
    return [
        f"what fits, with the {kind} loss by {laws}, in nats per token (* lowest by {ranked!r}: worked out below)",
        *align(rows, left=2),
        *(f"  left out: {text}" for text in plan.left_out.values()),
        *_hours_of_choice(plan),
    ]


def _hours_of_choice(plan: Plan) -> list[str]:
    """Return what the hours of the chosen option are for, and what is kept back of a budget."""
    choice = plan.choice
    parts = {"steps": choice.hours - sum(choice.outside_hours.values()), **choice.outside_hours}
    each = ", ".join(f"{name} {_amount(hours)}" for name, hours in parts.items())
    lines = [f"  hours of *: {each}"]
    if choice.left_usd is not None:
        budget = choice.cost_usd + choice.left_usd
        lines.append(f"  {100 * KEPT_BACK:g} % of the budget, {KEPT_BACK * budget:,.2f} USD, are kept back for the "
                     "tokenizer, packing and a start that fails")  # fmt: skip
    return lines


def _optima(plan: Plan) -> list[str]:
    rows = [["law", "parameters", "tokens", "per param.", "loss", ""]]
    for found in plan.optima:
        law, ratio = plan.laws[found.law], found.tokens / found.num_parameters
        if not 1 / _MOST_RATIO <= ratio <= _MOST_RATIO:
            rows.append([law.title, "none", "none", "", "", f"{law.source}, which do not tell what size is worth"])
            continue
        rows.append([law.title, short(found.num_parameters), short(found.tokens),
                     _amount(ratio), f"{found.loss:.3f}", law.source])  # fmt: skip
    compute = f"{plan.compute_flops:.2e}".replace("e+", "e")
    return [f"compute-optimal size and data for the compute of * (6 N D = {compute} FLOPs)", *align(rows)]


def _batch(plan: Plan) -> list[str]:
    choice, rows = plan.choice, plan.choice.tokens_per_step // plan.context
    advice = plan.needs.optimal_batch_tokens
    return [
        f"batch of {choice.preset} over {short(choice.tokens)} tokens",
        f"  used:   {choice.tokens_per_step:,} tokens a step = {rows:,} rows, {choice.steps:,} steps "
        "(the recipe's, in whole rows a GPU)",
        f"  advice: {short(advice)} tokens a step = {advice / plan.context:,.0f} rows, {choice.tokens / advice:,.0f} "
        "steps, by 0.0306 D^0.383 rows of 2,048 (arXiv 2505.13738);",
        "          four times as many tokens a step cost about 0.03 nats there",
    ]


def _memory(plan: Plan) -> list[str]:
    needs, machine = plan.needs, plan.machine
    counts = list(needs.stages[0].bytes_by_rows)
    rows = [["ZeRO stage", "without rows", *(f"{count} row{'s' * (count > 1)}" for count in counts), "largest useful"]]
    for stage in needs.stages:
        name = "0 (none)" if stage.zero_stage == 0 else str(stage.zero_stage)
        cells = [
            f"{total / 1e9:.1f}{'!' if needs.usable_bytes is not None and total > needs.usable_bytes else ''}"
            for total in stage.bytes_by_rows.values()
        ]
        largest = (
            f"{stage.rows} row{'s' * (stage.rows > 1)}"
            if stage.rows
            else "not known"
            if needs.usable_bytes is None
            else "does not fit"
        )
        rows.append([name, f"{stage.state_bytes / 1e9:.1f}", *cells, largest])
    size = "its memory is not known"
    if machine.memory_bytes is not None and needs.usable_bytes is not None:
        memory_gb, usable_gb = machine.memory_bytes / 1e9, needs.usable_bytes / 1e9
        size = f"of {memory_gb:.0f} GB, {usable_gb:.0f} GB are planned with; ! is more"
    what = f"memory of {plan.choice.preset} with {needs.optimizer} on each {machine.title} in GB"
    return [f"{what}, by rows at once ({size})", *align(rows)]


def _disk(plan: Plan) -> list[str]:
    needs = plan.needs
    return [
        f"disk: {needs.checkpoints_bytes / 1e9:.1f} GB for {needs.checkpoints_kept} checkpoints, one being written and "
        f"the final model; {needs.packed_bytes / 1e9:.1f} GB for the packed rows"
    ]


def _elsewhere(plan: Plan) -> list[str]:
    each = [f"{country} {_amount(kg)}" for country, kg in plan.elsewhere_kg.items()]
    return [f"the same {_amount(plan.choice.kwh)} kWh elsewhere, in kg CO2e: " + ", ".join(each)]


def _sources(plan: Plan) -> list[str]:
    rows = [[item.name, item.value, item.origin, item.reason] for item in plan.machine.assumptions]
    for run in plan.runs:
        counted = run.tokens_per_parameter >= LEAST_TOKENS_PER_PARAMETER
        reason = f"{run.folder}: {run.loss_name}, {short(run.num_parameters)} parameters, {short(run.tokens)} tokens"
        if not counted:
            reason += f"; not used: {run.tokens_per_parameter:.2g} tokens a parameter are too few"
        rows.append(["loss", f"{run.loss:.3f} nats", "measured", reason])
    for name, fit in plan.fits.items():
        value = f"{fit.offset:+.3f}" if fit.slope == 1 else f"{fit.slope:.3f} x {fit.offset:+.3f}"
        rows.append([f"law {plan.laws[name].title}", value, "measured", "added to its prediction" if fit.slope == 1
                     else "slope times its prediction, plus offset"])  # fmt: skip
    prediction = plan.choice.prediction
    if prediction:
        low, high = prediction.nats_per_token[1:]
        rows.append(["loss of *", f"{prediction.nats_per_token[0]:.3f} nats", "fitted",
                     f"{plan.lab}: law {plan.laws[plan.ranked_by].source}; {_ends(low, high)} nats, 90 %"])  # fmt: skip
    elif not plan.fits:
        rows.append(
            ["loss", "four laws", "assumed", "fitted to other corpora and tokenizers; --calibrate RUN measures"]
        )
    return ["where the numbers come from", *align(rows, left=4)]


def _notes(plan: Plan) -> list[str]:
    lines = ["how to read this"]
    if plan.choice.prediction:
        lines += _about_lab(plan.choice.prediction)
    elif plan.fits:
        lines.append(
            "  Losses are moved onto the corpus and tokenizer of the calibrating runs; far from their size they drift."
        )
    else:
        lines.append(
            "  Absolute losses do not transfer between corpora and tokenizers: 'refit' gives 3.18 and 2.74 where the"
        )
        lines.append(
            "  TeenyTinyLlama paper measured 2.80 and 2.47. Differences between lines of one column do, roughly."
        )
    if plan.unique_tokens is None:
        lines.append("  All tokens are taken to be different ones: give --unique_tokens with a corpus of known size.")
    elif not plan.lab:
        lines.append(
            "  Only the law 'repeats' knows that a token seen again teaches less; the others take it for a new one."
        )
    return [*lines, *_warnings(plan), *_about_hours(plan)]


def _about_lab(prediction: Prediction) -> list[str]:
    """Return what the lab's law is of, and how far beyond its runs the plan takes it."""
    return [
        "  The loss is of the lab's corpus and tokenizer, by the law of its own runs; the interval of 90 % is of the "
        "score of one run.",
        f"  * has {_amount(prediction.times_parameters)} times the parameters of the lab's largest model and "
        f"{_amount(prediction.times_tokens)} times the tokens of its longest run; beyond ten times no prediction was "
        "checked.",
        *([f"  Warning: {rough_law(prediction.noise)}"] if prediction.noise > ROUGH_NOISE else []),
        "  The law counts all parameters, so a preset with a larger vocabulary than the lab's looks larger than it is.",
    ]


def _about_hours(plan: Plan) -> list[str]:
    run = plan.machine.run
    if run is None:
        return ["  Hours hold evaluations, checkpoints and the start as assumed; --calibrate RUN measures them."]
    share = run.outside_seconds * run.overall_tokens_per_second / run.tokens
    return [f"  Hours hold evaluations, saves and the start as in {run.folder}, where {100 * share:.0f} % of the time "
            "was no step."]  # fmt: skip


def _warnings(plan: Plan) -> list[str]:
    """Return the warnings about the chosen option and about its predicted loss."""
    choice, lines = plan.choice, []
    turns = "Muennighoff et al. 2023; here a model got worse after seven to ten readings, docs/gpu.md"
    if choice.epochs is not None and choice.epochs > 1.01 * REPEATS_WORTH_READING:
        lines.append(f"  Warning: each token is read {choice.epochs:,.1f} times. Up to {REPEATS_WORTH_READING} teach "
                     f"nearly as much as new text ({turns}).")  # fmt: skip
    if choice.reason == READINGS:
        more = f"; the limit would pay for {short(plan.affordable_tokens)}" if plan.affordable_tokens else ""
        lines.append(f"  No more than {REPEATS_WORTH_READING} readings are recommended ({turns}){more}: more text is "
                     "worth more than more hours.")  # fmt: skip
    if choice.tokens_per_parameter < LEAST_TOKENS_PER_PARAMETER:
        lines.append(
            "  The laws were not fitted to runs of less than one token a parameter: take no loss from this plan."
        )
    if not plan.lab and (choice.num_parameters < FITTED_PARAMETERS[0] or choice.tokens > FITTED_TOKENS[1]):
        lines.append("  The laws were fitted to 70M to 16B parameters on 5B to 500B tokens: beyond, their losses are a "
                     "guess.")  # fmt: skip
    if choice.preset == "tiny" and plan.machine.gpu != CPU and plan.machine.run is None:
        lines.append("  A model as small as tiny keeps no GPU busy: expect a small part of this speed.")
    if choice.preset == "tiny" and len({option.preset for option in plan.options}) > 1:
        lines.append("  Losses of tiny, whose vocabulary has 4,096 entries, do not compare with those of the others.")
    if choice.tokens_per_parameter > MOST_TOKENS_PER_PARAMETER:
        lines.append(f"  Warning: nobody has measured that a model learns from more than "
                     f"{MOST_TOKENS_PER_PARAMETER:,} tokens a parameter (arXiv 2401.00448).")  # fmt: skip
    if choice.reason == MOST_PER_PARAMETER and plan.affordable_tokens:
        lines.append(f"  The limit would pay for {short(plan.affordable_tokens)} tokens, and no more than "
                     f"{MOST_TOKENS_PER_PARAMETER:,} a parameter are recommended (arXiv 2401.00448): it calls for a "
                     "larger model than this one, and the rest is left.")  # fmt: skip
    return lines


def report_plan(config: PlanConfig, recipes_folder: Path) -> str:
    """Return the plan as text, after writing the files that were asked for.

    Args:
        config: the question.
        recipes_folder: has `configs/<preset>/pretrain.yaml`.

    Raises:
        InputError: see `make_plan`; nothing is written then.
    """
    plan = make_plan(config, recipes_folder)
    lines = [render(plan)]
    if config.write:
        _write_run(Path(config.write), plan, recipes_folder)
        lines.append(f"wrote {config.write}: {_launch(config.write, plan)}")
    if config.json:
        write_json(Path(config.json), plan.to_json())
        lines.append(f"wrote {config.json}")
    return "\n".join([lines[0], *([""] if len(lines) > 1 else []), *lines[1:]])


def _launch(path: str, plan: Plan) -> str:
    """Return the command that starts the planned run, with the first way of sharing that fits."""
    if plan.machine.num_gpus == 1:
        return f"ttl pretrain --config {path}"
    stages = plan.needs.stages
    stage = next((stage.zero_stage for stage in stages if stage.rows), stages[-1].zero_stage)
    backend = "ddp" if stage == 0 else f"zero{stage}"
    return f"ttl pretrain --accelerate {backend} --num_processes {plan.machine.num_gpus} --config {path}"


def _write_run(path: Path, plan: Plan, recipes_folder: Path) -> None:
    choice = plan.choice
    recipe = read_recipe(recipes_folder, choice.preset)
    machine = plan.machine
    grid: dict[str, Any] = {"country_iso_code": machine.country_iso_code}
    grid |= {"region": machine.region} if machine.region else {}
    grid |= {"pue": machine.pue} if machine.pue != 1 else {}
    grid |= {"price": machine.price_usd} if machine.price_is_given else {}
    values = planned_values(recipe, choice.tokens, choice.tokens_per_step, plan.needs.optimizer, grid)
    comments = [
        f"{choice.preset}: {short(choice.tokens)} tokens, {choice.tokens_per_parameter:.1f} a parameter, "
        f"{choice.steps:,} steps; planned by `ttl plan`.",
        f"{plan.machine.num_gpus} x {plan.machine.title}: about {choice.hours:,.1f} h, {choice.kwh:,.1f} kWh, "
        f"{choice.cost_usd:,.2f} USD.",
        f"Start it with: {_launch(str(path), plan)}",
        f"The rows of `packed` must be {plan.context:,} tokens long (`ttl pack --context {plan.context}`).",
    ]
    path.touch(exist_ok=False)  # a file that somebody has made meanwhile stays
    write_yaml(path, values, comments)
