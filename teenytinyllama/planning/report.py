"""A plan as the user gets it: text, and on request the JSON and the config of the run."""

from pathlib import Path
from typing import Any

from ..manifest import write_json
from .config import PlanConfig
from .plan import Plan, make_plan
from .recipes import planned_values, read_recipe, write_config
from .table import render, short


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
    stage = next((stage.zero_stage for stage in plan.needs.stages if stage.rows), 3)
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
    values = planned_values(recipe, choice.tokens, choice.tokens_per_step, grid)
    comments = [
        f"{choice.preset}: {short(choice.tokens)} tokens, {choice.tokens_per_parameter:.1f} a parameter, "
        f"{choice.steps:,} steps; planned by `ttl plan`.",
        f"{plan.machine.num_gpus} x {plan.machine.title}: about {choice.hours:,.1f} h, {choice.kwh:,.1f} kWh, "
        f"{choice.cost_usd:,.2f} USD.",
        f"Start it with: {_launch(str(path), plan)}",
        f"The rows of `packed` must be {plan.context:,} tokens long (`ttl pack --context {plan.context}`).",
    ]
    write_config(path, values, comments)
