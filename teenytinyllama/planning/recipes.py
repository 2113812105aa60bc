"""The shipped pretraining recipes, as plans start from them, and the recipe of a planned run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import load_yaml, write_yaml

_WARMUP_SHARE = 0.02  # PretrainConfig's own default: for runs too short for a recipe's absolute warmup


@dataclass(frozen=True)
class Recipe:
    """A shipped `recipes/configs/<preset>/pretrain.yaml`."""

    preset: str
    values: dict[str, Any]

    @property
    def tokens_per_step(self) -> int:
        """Return the recipe's batch in tokens."""
        return int(self.values["tokens_per_step"])

    @property
    def max_tokens(self) -> int:
        """Return the recipe's length in tokens, about 20 a parameter."""
        return int(self.values["max_tokens"])

    @property
    def checkpoints_kept(self) -> int:
        """Return how many checkpoints stay on the disk."""
        return int(self.values["save_total_limit"])

    @property
    def num_evaluations(self) -> int:
        """Return how often it scores held-out text on the way."""
        return round(1 / float(self.values["eval_steps"]))

    @property
    def num_saves(self) -> int:
        """Return how many checkpoints it writes."""
        return round(1 / float(self.values["save_steps"]))


def read_recipe(folder: Path, preset: str) -> Recipe:
    """Return the recipe of a preset from the folder of recipes."""
    path = folder / "configs" / preset / "pretrain.yaml"
    return Recipe(preset, load_yaml(path.read_text(encoding="utf-8"), str(path)))


def step_tokens(recipe: Recipe, context: int, num_gpus: int) -> int:
    """Return the recipe's tokens of a step, rounded up to whole rows that the GPUs share evenly."""
    rows = -(-recipe.tokens_per_step // context)
    return -(-rows // num_gpus) * num_gpus * context


def planned_values(recipe: Recipe, tokens: int, tokens_per_step: int, grid: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a planned run for `ttl pretrain`: the recipe with another length and place."""
    warmup = recipe.values["warmup_steps"]
    if warmup > 0.1 * tokens / tokens_per_step:
        warmup = _WARMUP_SHARE
    changed = {
        "tokens_per_step": tokens_per_step,
        "max_tokens": tokens,
        "warmup_steps": warmup,
        **grid,
    }
    return {**recipe.values, **changed}


def write_config(path: Path, values: dict[str, Any], comments: list[str]) -> None:
    """Write a planned run's config as YAML below its comments; the file must not be there yet."""
    with path.open("x", encoding="utf-8"):  # whoever made it in the meantime keeps it
        pass
    write_yaml(path, values, comments)
