"""The question to a plan (limits, machine, data, files to write), and the shipped recipe that each plan starts from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..arguments import load_yaml
from ..checks import ensure
from ..presets import PRESETS, get_preset
from .memory import OptimizerName

# The demo's preset `tiny` has a vocabulary of 2,048 tokens for short stories, and nobody rents a GPU for it. It is
# planned only where it is asked for, and on a computer without a GPU.
PLANNED_PRESETS = tuple(name for name in PRESETS if name != "tiny")
USUAL_CONTEXT = 2048
LIMITS = ("budget", "hours", "kwh")
_MOST, _MOST_GPUS = 1e15, 512  # of any figure, far beyond use; of GPUs: rows of the largest recipe's step (1b1)


@dataclass
class PlanConfig:
    """`ttl plan`: the given limits bound the run, the tightest one decides; what is not given is computed."""

    budget: float | None = field(default=None, metadata={"help": "money to spend on GPU hours, in USD"})
    hours: float | None = field(default=None, metadata={"help": "time that the run may take, in hours by the clock"})
    kwh: float | None = field(default=None, metadata={"help": "energy that the run may take, in kWh"})
    tokens: int | None = field(default=None, metadata={"help": "tokens to train on, if the limits allow that many"})
    preset: str | None = field(
        default=None,
        metadata={"help": f"one of {', '.join(PRESETS)}; default: all but tiny (on a cpu tiny too), and "
                                "the best is named"},
    )  # fmt: skip
    gpu: str | None = field(
        default=None,
        metadata={"help": "h200, h100, a100-80gb, a100-40gb, rtx4090, rtx3090, rtx4060, rtx3060, l4, t4, "
                          "v100-32gb, v100-16gb, or cpu (measured here); default h100, with calibrate the run's"},
    )  # fmt: skip
    gpus: int = field(
        default=1, metadata={"help": "number of GPUs of one host; several keep 0.96 of the speed of as many alone"}
    )
    price: float | None = field(
        default=None,
        metadata={"help": "USD for an hour of one GPU (of the whole machine where there is none), 0 for one's own; "
                          "default: a usual price"},
    )  # fmt: skip
    mfu: float | None = field(
        default=None, metadata={"help": "share of the peak that is reached, by 6 N + 12 L h T a token, such as 0.4"}
    )
    watts: float | None = field(
        default=None, metadata={"help": "power of one GPU at work with its share of the host, in watts"}
    )
    pue: float = field(
        default=1.0, metadata={"help": "what the building draws for each kWh of the machine; 1 is the machine alone"}
    )
    country_iso_code: str = field(default="BRA", metadata={"help": "three-letter country of the machine, for its grid"})
    region: str | None = field(
        default=None, metadata={"help": "its state, province or price zone, where codecarbon knows some"}
    )
    context: int | None = field(
        default=None, metadata={"help": f"tokens a row; default {USUAL_CONTEXT}, or what the preset is made for"}
    )
    unique_tokens: int | None = field(
        default=None,
        metadata={
            "help": "different tokens that there are; more are repeats, which teach less: no more than four "
            "readings are recommended"
        },
    )
    optimizer: OptimizerName | None = field(
        default=None, metadata={"help": "adamw, muon or normuon, see `ttl pretrain`; default: the recipe's"}
    )
    calibrate: list[str] | None = field(
        default=None,
        metadata={
            "help": "folders of finished runs: their speed, watts and loss replace assumptions; or of a "
            "`ttl lab`: the law fitted to it replaces the published ones"
        },
    )
    json: str | None = field(default=None, metadata={"help": "file to write the whole plan to, as JSON"})
    write: str | None = field(default=None, metadata={"help": "file to write the run's config for `ttl pretrain` to"})

    def __post_init__(self) -> None:
        """Refuse a question that cannot be answered.

        Raises:
            InputError: nothing is asked, a figure that cannot be, an unknown preset, or a file that exists.
        """
        asked = (*LIMITS, "tokens", "preset")
        ensure(
            any(getattr(self, name) is not None for name in asked),
            "ttl plan: asks nothing. Give --budget USD, --hours, --kwh, --tokens, --preset, or several of them.",
        )
        for name in (*LIMITS, "tokens", "mfu", "watts", "pue", "gpus", "unique_tokens"):
            value = getattr(self, name)
            ensure(
                value is None or 0 < value <= _MOST,
                f"{name}={value}: must be more than 0 and at most {_MOST:g}. Leave it out if it does not matter.",
            )
        ensure(
            self.price is None or 0 <= self.price <= _MOST,
            f"price={self.price}: must be 0 to {_MOST:g}, in USD for an hour of one GPU. 0 is one's own.",
        )
        ensure(
            self.budget is None or self.price != 0,
            f"budget={self.budget}, price=0: free hours never use money up. Give --hours, --kwh or --tokens instead.",
        )
        ensure(
            self.gpus <= _MOST_GPUS,
            f"gpus={self.gpus}: is more than the rows of a step can feed. Give {_MOST_GPUS} or fewer.",
        )
        ensure(
            self.mfu is None or self.mfu <= 1, f"mfu={self.mfu}: is a share of the peak, at most 1. Write 40 % as 0.4."
        )
        ensure(self.pue >= 1, f"pue={self.pue}: a building draws at least what the machine does. Give 1 or more.")
        longest = get_preset(self.preset or PLANNED_PRESETS[0]).max_position_embeddings
        ensure(
            self.context is None or 8 <= self.context <= longest,
            f"context={self.context}: must be 8 to {longest} tokens, which the presets are made for.",
        )
        self.country_iso_code = self.country_iso_code.upper()
        self._check_files()

    def context_of(self, preset: str) -> int:
        """Return the tokens a row that a preset is planned with."""
        return self.context or min(USUAL_CONTEXT, PRESETS[preset].max_position_embeddings)

    def _check_files(self) -> None:
        ensure(
            self.json is None or self.json != self.write,
            f"json={self.json}, write={self.write}: are the same file. Give two names.",
        )
        for name in ("json", "write"):
            given = getattr(self, name)
            if given is None:
                continue
            path = Path(given)
            ensure(not path.exists(), f"{name}={given}: already exists. Choose another name or delete it.")
            ensure(path.parent.is_dir(), f"{name}={given}: the folder {path.parent} does not exist. Make it first.")


_WARMUP_SHARE = 0.02  # PretrainConfig's default, for runs that are too short for the recipe's number of steps


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
    def optimizer(self) -> OptimizerName:
        """Return what trains the layers' matrices in the recipe."""
        found: OptimizerName = self.values.get("optimizer", "adamw")
        return found

    @property
    def checkpoints_kept(self) -> int:
        """Return how many checkpoints stay on the disk."""
        return int(self.values["save_total_limit"])

    @property
    def num_evaluations(self) -> int:
        """Return how often the run scores held-out text before its end."""
        return round(1 / float(self.values["eval_steps"]))

    @property
    def num_saves(self) -> int:
        """Return how many checkpoints the run writes."""
        return round(1 / float(self.values["save_steps"]))


def read_recipe(folder: Path, preset: str) -> Recipe:
    """Return the recipe of a preset from the folder of recipes."""
    path = folder / "configs" / preset / "pretrain.yaml"
    return Recipe(preset, load_yaml(path.read_text(encoding="utf-8"), str(path)))


def step_tokens(recipe: Recipe, context: int, num_gpus: int) -> int:
    """Return the recipe's tokens of a step, rounded up to whole rows that the GPUs share evenly."""
    rows = -(-recipe.tokens_per_step // context)
    return -(-rows // num_gpus) * num_gpus * context


def planned_values(
    recipe: Recipe, tokens: int, tokens_per_step: int, optimizer: OptimizerName, grid: dict[str, Any]
) -> dict[str, Any]:
    """Return the config of a planned run for `ttl pretrain`: the recipe with the plan's length, batch and grid.

    Another optimizer than the recipe's keeps its rates, which mean the same, but not a rate of embeddings alone.
    """
    warmup = recipe.values["warmup_steps"]
    if warmup > 0.1 * tokens / tokens_per_step:
        warmup = _WARMUP_SHARE
    changed: dict[str, Any] = {"tokens_per_step": tokens_per_step, "max_tokens": tokens, "warmup_steps": warmup}
    values = dict(recipe.values)
    if optimizer != recipe.optimizer:
        values.pop("embedding_learning_rate", None)
        changed["optimizer"] = optimizer
    return {**values, **changed, **grid}
