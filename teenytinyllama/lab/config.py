"""The config of `ttl lab`: sizes, budgets of tokens, arms and seeds of a laboratory."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..checks import ensure

# Keys of `ttl pretrain` that the laboratory gives to each run itself, so that neither an arm nor `settings` may.
OWN_KEYS = ("output_dir", "tokenizer", "packed", "inputs", "max_tokens", "max_steps", "seed", "preset",
            "model_name_or_path", "hub_model_id", "max_kwh", "max_cost", "max_hours")  # fmt: skip
_MOST_RUNS = 10_000


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
        """Check the grid's own keys; those of the runs are checked by `grid.check_runs`.

        Raises:
            InputError: no size, budget, arm or seed; both kinds of budgets; a baseline that is no arm; a key that the
                laboratory sets itself.
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
        for name in ("runs_at_once", "longer_run"):
            value = getattr(self, name)
            ensure(value is None or value >= 1, f"{name}={value}: must be at least 1.")

    def _check_more_tokens(self) -> None:
        known = [str(size) for size in self.sizes]
        for size, found in self.more_tokens.items():
            ensure(str(size) in known, f"more_tokens.{size}: is not one of the sizes: {', '.join(known)}.")
            good = isinstance(found, list) and all(isinstance(budget, int | float) and budget > 0 for budget in found)
            ensure(good, f"more_tokens.{size}={found}: must be a list of positive numbers of tokens.")
