"""The config of `ttl lab`, and the grid of runs that it means: their shapes and names, and the best of each sweep."""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..checks import InputError, ensure
from ..data.packed import packed_manifest
from ..presets import PRESETS, layer_matrices
from .comparison import best_arm, make_outcome

# Keys of `ttl pretrain` that the laboratory gives to each run itself, so that neither an arm nor `settings` may.
OWN_KEYS = ("output_dir", "tokenizer", "packed", "inputs", "max_tokens", "max_steps", "seed", "preset",
            "model_name_or_path", "hub_model_id", "max_kwh", "max_cost", "max_hours")  # fmt: skip


@dataclass
class LabConfig:
    """`ttl lab`: a grid of small trainings on the same rows, each in a folder of its own below `output_dir`."""

    tokenizer: str = field(metadata={"help": "folder or Hub id of the tokenizer of the rows"})
    packed: str = field(metadata={"help": "folder of packed rows (`ttl pack`), the same for all runs"})
    output_dir: str = field(metadata={"help": "folder for the runs, the table, the plots and the law"})
    sizes: list[Any] = field(
        metadata={"help": "models: names of presets, or parameters of their layers such as 0.5M, of which a shape is "
                          "made: heads of 64, as wide as 64 times as deep"}
    )  # fmt: skip
    arms: dict[str, Any] = field(
        metadata={"help": "recipes to compare, by name: keys of `ttl pretrain`, and head_size. A list is swept: one "
                          "run a value"}
    )  # fmt: skip
    tokens: list[float] | None = field(
        default=None, metadata={"help": "budgets: tokens of a run; or give tokens_per_parameter"}
    )
    tokens_per_parameter: list[float] | None = field(
        default=None, metadata={"help": "budgets: tokens of a run for each parameter of the model's layers"}
    )
    more_tokens: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "further budgets of single sizes: {0.1M: [3_200_000]}. A small model that has read much "
                          "shows cheaply what a larger one will do"},
    )  # fmt: skip
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "seeds of the runs of a sweep"})
    finalist_seeds: list[int] | None = field(
        default=None, metadata={"help": "seeds of the best of each sweep at every budget; null: as seeds"}
    )
    swept_at: Literal["first", "each"] = field(
        default="each", metadata={"help": "budgets at which lists are swept: the first alone, or each of them"}
    )
    baseline: str | None = field(
        default=None, metadata={"help": "the arm that others are compared with; null: the first one"}
    )
    settings: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "keys of `ttl pretrain` for all runs: tokens_per_step, learning_rate, …"},
    )
    runs_at_once: int | None = field(
        default=None, metadata={"help": "runs that train at the same time; null: one a GPU, without a GPU one a core"}
    )
    longer_run: float | None = field(
        default=None,
        metadata={"help": "at the end train the largest size with its best recipe for so many times the largest "
                          "budget, and compare the score with the prediction of the law"},
    )  # fmt: skip
    keep_models: bool = field(default=False, metadata={"help": "keep the weights of the runs, not their figures alone"})

    def __post_init__(self) -> None:
        """Check the grid's own keys; those of the runs are checked by `check_runs`.

        Raises:
            InputError: no size, budget, arm, seed or value of a sweep; both kinds of budgets; a baseline that is no
                arm; a key that the laboratory sets itself.
        """
        for name in ("sizes", "arms", "seeds"):
            ensure(getattr(self, name), f"{name}: is empty. Give at least one.")
        ensure(
            bool(self.tokens) != bool(self.tokens_per_parameter),
            f"tokens={self.tokens}, tokens_per_parameter={self.tokens_per_parameter}: give exactly one of the two.",
        )
        for name in ("tokens", "tokens_per_parameter"):
            for budget in getattr(self, name) or []:
                ensure(budget > 0, f"{name}={budget:g}: must be positive.")
        self._check_more_tokens()
        self.baseline = next(iter(self.arms)) if self.baseline is None else self.baseline
        ensure(
            self.baseline in self.arms, f"baseline={self.baseline}: must be one of the arms: {', '.join(self.arms)}."
        )
        for name, changes in {"settings": self.settings, **self.arms}.items():
            where = name if name == "settings" else f"arms.{name}"
            ensure(isinstance(changes, dict), f"{where}={changes}: must be a mapping of keys of `ttl pretrain`.")
            own = [key for key in changes if key in OWN_KEYS]
            ensure(not own, f"{where}.{(own or [''])[0]}: is set by the laboratory, run by run. Leave it out.")
            empty = [key for key in changes if changes[key] == [] and key != "sample_prompts"]
            ensure(not empty, f"{where}.{(empty or [''])[0]}: is an empty list. Give values, or leave it out.")
        for name in ("runs_at_once", "longer_run"):
            value = getattr(self, name)
            ensure(value is None or value >= 1, f"{name}={value}: must be at least 1.")

    def _check_more_tokens(self) -> None:
        known = [str(size) for size in self.sizes]
        for size, found in self.more_tokens.items():
            ensure(str(size) in known, f"more_tokens.{size}: is not one of the sizes: {', '.join(known)}.")
            good = isinstance(found, list) and all(isinstance(budget, int | float) and budget > 0 for budget in found)
            ensure(good, f"more_tokens.{size}={found}: must be a list of positive numbers of tokens.")


# Of every run, unless `settings` says otherwise: a laboratory keeps figures and no checkpoints, and asks no questions.
DEFAULT_SETTINGS: dict[str, Any] = {
    "save_strategy": "no", "eval_steps": 0.25, "cloze_items": 0, "sample_prompts": [], "logging_steps": 0.05,
}  # fmt: skip
_HEAD_SIZE = 64
_MULTIPLES = {"k": 1e3, "M": 1e6, "B": 1e9}
_SHAPE_PRESET = "tiny"  # lends what a shape does not say: rope, norms, untied embeddings


@dataclass(frozen=True)
class LabRecipe:
    """One arm with one value of each key that it sweeps.

    Attributes:
        arm: its name in the config.
        changes: keys of `ttl pretrain`, and `head_size`.
        swept: the part of `changes` that differs between the recipes of the arm.
    """

    arm: str
    changes: dict[str, Any]
    swept: dict[str, Any]

    @property
    def label(self) -> str:
        """Return its name in tables: `muon learning_rate=0.002`."""
        return " ".join([self.arm, *(f"{key}={_written(value)}" for key, value in self.swept.items())])


@dataclass(frozen=True)
class LabRun:
    """One training of the laboratory.

    Attributes:
        name: of its folder, unique.
        recipe: what it tries.
        size: of the model, as the config has it.
        tokens: of the run.
        seed: of weights and order of rows.
        values: of `ttl pretrain`, all but `output_dir`.
        is_check: the longer run that the law's prediction is compared with; it is not fitted.
    """

    name: str
    recipe: LabRecipe
    size: str
    tokens: int
    seed: int
    values: dict[str, Any]
    is_check: bool = False


def shape_of_size(num_parameters: float) -> dict[str, int]:
    """Return the shape of a Llama whose layers have about so many parameters.

    A layer of width h has 16 h^2 (four matrices of attention, three of the MLP, which is four times as wide). The width
    is a multiple of 64; of those within a fifth of the size, or else the nearest, the one is taken whose width comes
    nearest to 64 times the number of layers, the ratio of the 160m preset.

    Raises:
        InputError: less than 100,000 or more than 10 billion parameters.
    """
    ensure(
        1e5 <= num_parameters <= 1e10, f"sizes={num_parameters:g}: must be 0.1M to 10B parameters, or a preset's name."
    )
    best: tuple[float, int, int] | None = None
    for width in range(64, 8193, 64):
        layers = max(1, round(num_parameters / (16 * width * width)))
        off = abs(math.log(16 * width * width * layers / num_parameters))
        cost = max(0.0, off - math.log(1.2)) * 100 + abs(math.log(width / (64 * layers)))
        if best is None or cost < best[0]:
            best = (cost, width, layers)
    assert best is not None
    _, width, layers = best
    heads = width // _HEAD_SIZE
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads}  # fmt: skip


def model_keys(size: Any, head_size: int | None = None) -> dict[str, Any]:
    """Return the keys `preset` and `shape` of a size of the config: a preset's name, or a number such as 0.5M.

    Raises:
        InputError: neither of the two, or a head size that does not divide the width.
    """
    if isinstance(size, str) and size in PRESETS:
        keys: dict[str, Any] = {"preset": size}
        width = PRESETS[size].hidden_size
    else:
        keys = {"preset": _SHAPE_PRESET, "shape": shape_of_size(_parse_size(size))}
        width = keys["shape"]["hidden_size"]
    if head_size is not None:
        ensure(
            isinstance(head_size, int) and head_size > 0 and width % head_size == 0,
            f"head_size={head_size}: must divide the width of the model, {width} for sizes={size}.",
        )
        heads = width // head_size
        keys["shape"] = keys.get("shape", {}) | {"num_attention_heads": heads, "num_key_value_heads": heads}
    return keys


def _parse_size(size: Any) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", str(size))
    if match is None:
        raise InputError(
            f"sizes={size}: must be a number of parameters such as 500k, 1.5M or 1B, or one of {', '.join(PRESETS)}."
        )
    return float(match[1]) * _MULTIPLES.get(match[2], 1.0)


def layer_parameters(size: Any) -> int:
    """Return the parameters of the matrices in the layers of a size: neither embedding, head nor norms."""
    keys = model_keys(size)
    preset = replace(PRESETS[keys["preset"]], **keys.get("shape", {}))
    return sum(rows * columns * count for (rows, columns), count in layer_matrices(preset).items())


def find_recipes(config: LabConfig) -> list[LabRecipe]:
    """Return the recipes of all arms: one for each combination of the values that an arm sweeps."""
    recipes = []
    for arm, changes in config.arms.items():
        lists = {key: value for key, value in changes.items() if isinstance(value, list) and key != "sample_prompts"}
        for values in itertools.product(*lists.values()):
            swept = dict(zip(lists, values, strict=True))
            recipes.append(LabRecipe(arm, {**changes, **swept}, swept))
    return recipes


def budgets(config: LabConfig, size: Any) -> list[int]:
    """Return the tokens of the runs of a size, the smallest first."""
    found = config.tokens or [ratio * layer_parameters(size) for ratio in config.tokens_per_parameter or []]
    more = {str(name): tokens for name, tokens in config.more_tokens.items()}.get(str(size), [])
    return sorted({round(tokens) for tokens in [*found, *more]})


def make_run(config: LabConfig, recipe: LabRecipe, size: Any, tokens: int, seed: int, is_check: bool = False) -> LabRun:
    """Return one run of the grid with all values of its training; the model's context is that of the rows."""
    changes = {**DEFAULT_SETTINGS, **config.settings, **recipe.changes}
    model = model_keys(size, changes.pop("head_size", None))
    shape = {
        "max_position_embeddings": _context(config.packed),
        **model.pop("shape", {}),
        **(changes.pop("shape", None) or {}),
    }
    values = {**model, "shape": shape, "tokenizer": config.tokenizer, "packed": config.packed,
              "max_tokens": tokens, "seed": seed, **changes}  # fmt: skip
    parts = [recipe.arm, *(f"{key}_{_written(value)}" for key, value in recipe.swept.items())]
    name = "-".join([*parts, str(size), f"{_written(tokens / 1e6)}M", f"seed{seed}"])
    return LabRun(re.sub(r"[^\w.-]+", "_", name), recipe, str(size), tokens, seed, values, is_check)


@functools.cache
def _context(packed: str) -> int:
    return int(packed_manifest(packed)["context"])


def check_names(config: LabConfig) -> None:
    """Refuse a grid of which two runs would share a folder.

    Raises:
        InputError: a size, seed or swept value is given twice, or two arms or budgets are written alike.
    """
    lists: dict[str, list[Any]] = {
        "sizes": [str(size) for size in config.sizes],
        "seeds": config.seeds,
        "finalist_seeds": config.finalist_seeds or [],
    }
    for name, values in lists.items():
        ensure(len(set(values)) == len(values), f"{name}={values}: has a value twice. Give each once.")
    names = Counter(
        make_run(config, recipe, size, tokens, config.seeds[0]).name
        for recipe in find_recipes(config)
        for size in config.sizes
        for tokens in budgets(config, size)
    )
    name, times = names.most_common(1)[0]
    ensure(
        times == 1,
        f"arms, tokens: {times} runs of the grid would have the folder {name}. Give each value of a sweep once, and "
        "arms and budgets that differ in more than signs or the seventh digit.",
    )


def sweep_runs(config: LabConfig) -> list[LabRun]:
    """Return the runs of the sweeps: every recipe at every size, at the first budget or at each."""
    return [
        make_run(config, recipe, size, tokens, seed)
        for size in config.sizes
        for tokens in (budgets(config, size)[:1] if config.swept_at == "first" else budgets(config, size))
        for recipe in find_recipes(config)
        for seed in config.seeds
    ]


def finalist_runs(config: LabConfig, rows: Iterable[dict[str, Any]]) -> list[LabRun]:
    """Return the runs of the finalists: of each arm the best recipe of a size, at every budget with every seed.

    The best recipe of a budget is that of its own sweep; of a budget without one, that of the first budget. Runs that
    the sweep has made already are among them.

    Args:
        config: of the laboratory.
        rows: of the sweeps, as in `runs.jsonl`.
    """
    outcomes, runs = [make_outcome(row) for row in rows], []
    recipes = {recipe.label: recipe for recipe in find_recipes(config)}
    for size in config.sizes:
        for arm in config.arms:
            for tokens in budgets(config, size):
                swept = budgets(config, size)[0] if config.swept_at == "first" else tokens
                best = best_arm(run for run in outcomes if (run.group, run.size, run.budget) == (arm, str(size), swept))
                if best is not None:
                    seeds = config.seeds if config.finalist_seeds is None else config.finalist_seeds
                    runs += [make_run(config, recipes[best], size, tokens, seed) for seed in seeds]
    return runs


def longer_run(config: LabConfig, rows: Iterable[dict[str, Any]]) -> LabRun | None:
    """Return the run that the law's prediction is compared with, or None where none is wanted or no run is done.

    It has the best recipe of the largest size at its largest budget, and `longer_run` times its tokens.

    Args:
        config: of the laboratory.
        rows: of all other runs, as in `runs.jsonl`.
    """
    if config.longer_run is None:
        return None
    size = max(config.sizes, key=layer_parameters)
    tokens = budgets(config, size)[-1]
    outcomes = map(make_outcome, rows)
    best = best_arm(run for run in outcomes if (run.size, run.budget) == (str(size), tokens))
    if best is None:
        return None
    recipe = next(recipe for recipe in find_recipes(config) if recipe.label == best)
    return make_run(config, recipe, size, round(config.longer_run * tokens), config.seeds[0], is_check=True)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
