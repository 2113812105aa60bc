"""The config of preference tuning: TRL's arguments, plus what pairs of answers and adapters need."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from ..checks import ensure, ensure_packages
from ..data.preferences import PreferencesConfig, preferences_manifest
from ..training.settings import REFUSED_KEYS, RunSettings
from .config import ROWS_BEFORE_DATA, TRL_REFUSED_KEYS, TuningSettings

ensure_packages("sft", "trl", "peft", "datasets")
from trl import DPOConfig  # noqa: E402  # after the message about the extra

_MOST_PAIRS_PER_STEP = 128  # SmolLM2's recipes for 135M and 360M (alignment-handbook, recipes/smollm2)


@dataclass
class DpoConfig(TuningSettings, DPOConfig):  # type: ignore[misc]
    """`ttl dpo`: a chat model, pairs of a better and a worse answer, and how to tune on them.

    All other keys are those of TRL's DPOConfig; defaults that differ from it are given below.
    """

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **REFUSED_KEYS,
        **TRL_REFUSED_KEYS,
        "padding_free": "pairs are padded.",
        "precompute_ref_log_probs": "the reference model is kept in memory, or is the base of the adapters.",
        "precompute_ref_batch_size": "the reference model is kept in memory, or is the base of the adapters.",
        "sync_ref_model": "the reference is the model as it was before tuning.",
        "loss_type": "the sigmoid loss is used.",
    }
    DERIVED_KEYS: ClassVar[frozenset[str]] = RunSettings.DERIVED_KEYS | {"pairs_per_step"}

    preferences: str | None = field(
        default=None, metadata={"help": "folder of pairs that an earlier `ttl dpo` prepared"}
    )
    inputs: list[str] | None = field(
        default=None, metadata={"help": "preference files that `ttl dpo` prepares before the ranks start"}
    )
    context: int | None = field(
        default=None,
        metadata={"help": "with inputs: most tokens of a prompt with an answer; default 1024 or the model's"},
    )
    validation_fraction: float = field(default=0.05, metadata={"help": "with inputs: share of the prompts held out"})
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse",
        metadata={"help": "with inputs: rows that are no pair: refuse them all, or drop and count them"},
    )
    pairs_per_step: int | None = field(
        default=None,
        metadata={
            "help": "global batch of one optimizer step; null: 128 pairs, or fewer so that an epoch has 100 steps"
        },
    )

    # TRL's and the Trainer's own, with other defaults. Source: SmolLM2's recipes for 135M and 360M.
    beta: float = field(default=0.5, metadata={"help": "how strongly the model is held to the reference"})
    num_train_epochs: float = field(default=2.0, metadata={"help": "how often each pair is seen"})
    learning_rate: float = field(default=1e-6, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "cosine, linear, …"})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps, or below 1 a share of all steps"})

    pair_tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Derive batch, steps and precision, then hand over to TRL's class.

        Raises:
            InputError: see the checks below; the library's own refusals are turned into one.
        """
        self._check_tuning("chat model")
        ensure(self.beta > 0, f"beta={self.beta}: must be positive. 0.1 to 0.5 is usual.")
        manifest = self._manifest()
        self._refuse_other_context("preferences", manifest["plan"]["context"])
        self.context = manifest["plan"]["context"]
        self.num_rows = manifest["train"]["pairs"]
        self.pair_tokens = max(1, round(manifest["train"]["tokens"] / self.num_rows))
        pairs = self.pairs_per_step or self._usual_rows_a_step(_MOST_PAIRS_PER_STEP)
        self._share_batch(pairs, 1, "pairs_per_step")
        self._derive_steps()
        self.max_length = None
        self._hand_over(bool(manifest["validation"]["pairs"]))
        self._refuse_zero_3()

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest of the prepared pairs.

        Raises:
            InputError: there are none.
        """
        ensure(
            self.preferences,
            "preferences: missing. "
            + (
                "`inputs` are prepared by `ttl dpo` before the ranks start, never by a rank. Give the folder it made."
                if self.inputs
                else "Give `inputs` with `ttl dpo`."
            ),
        )
        return preferences_manifest(str(self.preferences))

    @property
    def tokens_per_row(self) -> int:
        """Return the mean tokens of a pair, both sides."""
        return self.pair_tokens

    @property
    def longest_row(self) -> int:
        """Return the most tokens of a pair: two sequences."""
        assert self.context is not None
        return 2 * self.context

    @property
    def reference_models(self) -> int:
        """Return 1 where the reference is a model of its own, 0 where it is the base of the adapters."""
        return 0 if self.lora_r else 1


class DpoConfigBeforeData(DpoConfig):
    """The keys of `ttl dpo` while its pairs are still `inputs`, to refuse what is wrong before they are read."""

    def _manifest(self) -> dict[str, Any]:
        pairs = {"pairs": ROWS_BEFORE_DATA, "tokens": ROWS_BEFORE_DATA}
        return {"plan": {"context": self.context}, "train": pairs, "validation": {"pairs": 1}}


def preferences_config_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return those values of a tuning's config that say which pairs to prepare, and how."""
    names = {item.name for item in fields(PreferencesConfig)} - {"output_dir"}
    return {name: value for name, value in values.items() if name in names and value is not None}
