"""The configs of `ttl sft` and `ttl dpo`: TRL's arguments, plus what conversations, pairs and adapters need."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from trl import DPOConfig, SFTConfig

from ..checks import ensure
from ..data.conversations import (
    conversations_manifest,
    preferences_manifest,
)
from ..distributed import deepspeed_settings, ranks_of_run
from ..models import has_plain_head
from ..planning.memory import shared_rows
from ..training.library import check_zero
from ..training.settings import REFUSED_KEYS, RunSettings
from ..training.speed import SpeedPlan, check_attention, has_chunked_loss
from .rows import load_rows

if TYPE_CHECKING:
    from transformers import LlamaConfig


# Low-rank matrices of the usual ranks hold a few per cent of a model; for estimates of memory only.
_FROZEN_SHARE = 0.95
# 64 rows of 2,048 tokens: small models take larger batches no better (SmolLM's recipes use 128 rows).
_MOST_TOKENS_PER_STEP = 131_072
_MOST_PAIRS_PER_STEP = 128  # SmolLM2's recipes for 135M and 360M (alignment-handbook, recipes/smollm2)
_LEAST_STEPS_PER_EPOCH = 100  # a small set is learnt better in many small steps
_ROWS_BEFORE_DATA = 100_000  # the number of rows that is assumed until `inputs` are read

# TRL's keys that our data preparation replaces, and the model's that our loading does.
_TRL_REFUSED_KEYS = {
    **dict.fromkeys(
        ("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "shuffle_dataset", "completion_only_loss",
         "truncation_mode", "pad_to_multiple_of", "pad_token", "eos_token"),
        "the conversations are prepared before TRL sees them (`ttl conversations`). Leave it out.",
    ),
    "max_length": "is called context.",
    "chat_template_path": "the model's own chat template is used, or ours where it has none.",
    "model_init_kwargs": "give model_name_or_path, model_revision and attn_implementation.",
    "trust_remote_code": "code that comes with a model is never run.",
    "router_aux_loss_coef": "there are no mixtures of experts here.",
    "activation_offloading": "not supported; set activation_checkpointing: true.",
}  # fmt: skip


@dataclass
class LoraSettings:
    """Mixed into a tuning's config: leave `lora_r` out to tune all weights."""

    lora_r: int | None = field(
        default=None, metadata={"help": "rank of LoRA adapters, such as 16; null: all weights are tuned"}
    )
    lora_alpha: float | None = field(default=None, metadata={"help": "scale of the adapters; null: twice the rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout before the adapters"})
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "layers that get adapters, by their names; null: all linear ones but the head"}
    )
    use_dora: bool = field(default=False, metadata={"help": "DoRA: adapters of direction and magnitude"})
    merge: bool = field(
        default=True,
        metadata={"help": "with LoRA: the final model has the adapter added in, and the adapter lies in adapter/; "
                          "false: the adapter alone is saved"},
    )  # fmt: skip

    def _check_lora(self) -> None:
        ensure(
            self.lora_r is None or self.lora_r >= 1,
            f"lora_r={self.lora_r}: must be 1 or more, or null to tune all weights. 16 is usual.",
        )
        without = {"use_dora": self.use_dora, "lora_alpha": self.lora_alpha, "lora_targets": self.lora_targets}
        for name, value in without.items():
            ensure(self.lora_r or not value, f"{name}={value}: belongs to LoRA. Give lora_r as well, such as 16.")
        ensure(0 <= self.lora_dropout < 1, f"lora_dropout={self.lora_dropout}: must lie in [0, 1).")

    def _check_library(self) -> None:
        """Refuse ZeRO-3, which shares each weight out: parts could be neither resized, merged nor tried."""
        settings = deepspeed_settings(getattr(self, "deepspeed_plugin", None))
        ensure(
            settings is None or settings.get("zero_optimization", {}).get("stage") != 3,
            "accelerate=zero3: tuning is not done under ZeRO-3, which shares each weight out; models that need it are "
            "beyond this library. Use zero1, zero2 or ddp.",
        )
        check_zero("adamw", settings)

    @property
    def frozen_share(self) -> float:
        """Return the share of the parameters that are not trained."""
        return _FROZEN_SHARE if self.lora_r else 0.0


@dataclass
class TuningSettings(LoraSettings, RunSettings):
    """The keys and rules that instruction and preference tuning share, mixed into TRL's arguments."""

    VERB: ClassVar[str]  # of `ttl`
    MODEL_KIND: ClassVar[str]  # what model_name_or_path names
    DATA_KEY: ClassVar[str]  # the key of the folder of prepared rows
    BATCH_KEY: ClassVar[str]  # the key of the global batch
    OWN_IDENTITY: ClassVar[str]  # the field that decides the weights of this kind of tuning alone

    gradient_checkpointing: bool | None = field(  # TRL turns it on
        default=None, metadata={"help": "the old name of activation_checkpointing"}
    )
    sample_new_tokens: int = field(default=100, metadata={"help": "most tokens of an answer to each sample prompt"})
    num_rows: int = field(init=False, default=0)

    @classmethod
    def identity_keys(cls) -> list[str]:
        """Return the fields that decide the weights; a run folder is gone on with only by a config that shares them."""
        return (
            f"model_name_or_path model_revision {cls.BATCH_KEY} learning_rate lr_scheduler_type warmup_steps "
            "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim seed "
            f"{cls.OWN_IDENTITY} lora_r lora_alpha lora_dropout lora_targets use_dora"
        ).split()

    def _check_tuning(self) -> None:
        arguments: Any = self
        self._check_common()
        self._check_lora()
        check_attention(self.attn_implementation)
        ensure(
            self.model_name_or_path, f"model_name_or_path: missing. Give the {self.MODEL_KIND}: a folder or a Hub id."
        )
        ensure(
            arguments.num_train_epochs > 0,
            f"num_train_epochs={arguments.num_train_epochs}: must be positive. 2 or 3 is usual.",
        )

    def _take_context(self, prepared: int) -> None:
        """Take over the context that the rows were prepared for, and refuse another one beside them."""
        context, folder = getattr(self, "context", None), getattr(self, self.DATA_KEY)
        ensure(
            context in (None, prepared),
            f"context={context}: {self.DATA_KEY}={folder} was prepared for {prepared} tokens. Leave context out, or "
            "give inputs in its place.",
        )
        self.context = prepared

    def _ensure_data(self, how: str) -> str:
        """Return the folder of prepared rows; `how` says how to give one where there are no `inputs`."""
        folder, verb = getattr(self, self.DATA_KEY), f"`ttl {self.VERB}`"
        if getattr(self, "inputs", None):
            how = f"`inputs` are prepared by {verb} before the ranks start, never by a rank. Give the folder it made."
        ensure(folder, f"{self.DATA_KEY}: missing. {how}")
        return str(folder)

    def _usual_rows_a_step(self, most: int) -> int:
        """Return a power of two that leaves an epoch enough steps, or the nearest that all ranks can share."""
        rows = 1 << (max(1, min(most, self.num_rows // _LEAST_STEPS_PER_EPOCH)).bit_length() - 1)
        return shared_rows(rows, ranks_of_run(), getattr(self, "per_device_train_batch_size", None))

    def _derive_steps(self) -> None:
        arguments: Any = self
        if arguments.max_steps <= 0:
            arguments.max_steps = max(1, -(-round(self.num_rows * arguments.num_train_epochs) // self.rows_per_step))
        self._settle_steps()


@dataclass
class SftConfig(TuningSettings, SFTConfig):  # type: ignore[misc]
    """`ttl sft`: a base model, conversations, and how to tune on them.

    The batch is stated in tokens and the length in epochs; accumulation and steps are derived. All other keys are those
    of TRL's SFTConfig; defaults that differ from it are given below.
    """

    VERB, MODEL_KIND, DATA_KEY = "sft", "base model", "conversations"
    BATCH_KEY, OWN_IDENTITY = "tokens_per_step", "packs"
    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **REFUSED_KEYS,
        **_TRL_REFUSED_KEYS,
        "packing_strategy": "whole conversations share rows (best-fit decreasing); none is cut.",
        "padding_free": "set packing.",
        "eval_packing": "held-out conversations are scored one by one.",
        "loss_type": "the negative log-likelihood is used.",
    }
    DERIVED_KEYS: ClassVar[frozenset[str]] = RunSettings.DERIVED_KEYS | {"tokens_per_step"}

    conversations: str | None = field(default=None, metadata={"help": "folder of tokens (`ttl conversations`)"})
    inputs: list[str] | None = field(
        default=None,
        metadata={"help": "instead of conversations: instruction files that `ttl sft` prepares before the ranks start"},
    )
    context: int | None = field(
        default=None, metadata={"help": "with inputs: most tokens of a conversation and of a row; default the model's"}
    )
    validation_inputs: list[str] | None = field(default=None, metadata={"help": "with inputs: see `ttl conversations`"})
    validation_fraction: float = field(default=0.03, metadata={"help": "with inputs: see `ttl conversations`"})
    long_conversations: Literal["split", "drop", "cut"] = field(
        default="split", metadata={"help": "with inputs: see `ttl conversations`"}
    )
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "with inputs: see `ttl conversations`"}
    )
    assistant_only_loss: bool = field(default=True, metadata={"help": "with inputs: see `ttl conversations`"})
    packing: bool = field(
        default=True, metadata={"help": "several conversations share a row, none sees another; false: one a row"}
    )
    tokens_per_step: int | None = field(
        default=None,
        metadata={"help": "global batch of one optimizer step, in tokens of whole rows; null: 131,072, or less so that "
                          "an epoch has 100 steps"},
    )  # fmt: skip
    eval_max_tokens: int = field(
        default=100_000, metadata={"help": "held-out tokens scored at each evaluation; the final score uses all"}
    )
    final_answers: int = field(
        default=32, metadata={"help": "held-out questions answered after tuning, written to answers.jsonl; 0: none"}
    )
    final_answer_tokens: int = field(default=256, metadata={"help": "most tokens of such an answer"})
    check_first_loss: bool = field(
        default=True,
        metadata={
            "help": "stop at once when the base model predicts answers no better than their frequent tokens would"
        },
    )

    # TRL's and the Trainer's own, with other defaults.
    num_train_epochs: float = field(default=3.0, metadata={"help": "how often each conversation is seen"})
    learning_rate: float = field(
        default=3e-4, metadata={"help": "peak learning rate; models this small take 3e-4 to 1e-3"}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "cosine, warmup_stable_decay, linear, …"})
    warmup_steps: float = field(default=0.1, metadata={"help": "steps, or below 1 a share of all steps"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second momentum"})

    packs: bool = field(init=False, default=True)
    learns_answers: bool = field(init=False, default=True)
    row_tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Derive batch, steps and precision, then hand over to TRL's class.

        Raises:
            InputError: see the checks below; the library's own refusals are turned into one.
        """
        self._check_tuning()
        ensure(self.final_answers >= 0, f"final_answers={self.final_answers}: must be 0 (none) or more.")
        manifest = self._manifest()
        self._take_context(manifest["plan"]["context"])
        self.assistant_only_loss = manifest["plan"]["assistant_only_loss"]
        self._derive_batch(manifest)
        self._hand_over_to_trl(bool(manifest["validation"]["conversations"]))

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest of the prepared conversations.

        Raises:
            InputError: there are none.
        """
        how = "Give the folder that `ttl conversations` wrote, or `inputs` with `ttl sft`."
        return conversations_manifest(self._ensure_data(how))

    def _count_rows(self) -> int:
        assert self.context is not None
        return len(load_rows(Path(str(self.conversations)) / "train.parquet", self.context, self.packing))

    def _derive_batch(self, manifest: dict[str, Any]) -> None:
        assert self.context is not None
        self.num_rows = self._count_rows()
        # Unpacked, a row holds one conversation and much padding; a step then takes as many rows as have its tokens.
        row_tokens = self.context if self.packing else max(1, round(manifest["train"]["tokens"] / self.num_rows))
        self.row_tokens = row_tokens
        wanted = self.tokens_per_step
        if wanted is None:
            wanted = self._usual_rows_a_step(_MOST_TOKENS_PER_STEP // row_tokens) * row_tokens
        elif not self.packing:
            wanted = max(1, round(wanted / row_tokens)) * row_tokens
        self._share_batch(wanted, row_tokens)
        self._derive_steps()

    @property
    def tokens_per_row(self) -> int:
        """Return the tokens that one row stands for in the figures of a step: without packing, the mean."""
        return self.row_tokens

    def speed_plan(self, model_config: "LlamaConfig", zero_stage: int) -> SpeedPlan:
        """Return how training and evaluation make the loss; layers are not compiled."""
        return SpeedPlan("chunked" if has_chunked_loss() and has_plain_head(model_config) else "whole", False, {})

    def _hand_over_to_trl(self, has_validation: bool) -> None:
        """TRL is given rows that are ready: it must neither mask, cut nor pack them again."""
        self.packs, self.learns_answers = self.packing, self.assistant_only_loss
        self.packing, self.assistant_only_loss = False, False
        self.max_length, self.dataset_kwargs = None, {"skip_prepare_dataset": True}
        self._hand_over(has_validation)

    def to_yaml_values(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keys that say what this run is; see `RunSettings`."""
        values = super().to_yaml_values(given)
        own = {"packing": self.packs, "assistant_only_loss": self.learns_answers}
        return {**values, **{name: value for name, value in own.items() if name not in given}}


class SftConfigBeforeData(SftConfig):
    """The keys of `ttl sft` while its conversations are still `inputs`, to refuse what is wrong before they are read.

    How many rows there will be is not known; `_ROWS_BEFORE_DATA` are assumed.
    """

    def _manifest(self) -> dict[str, Any]:
        plan = {"context": self.context, "assistant_only_loss": self.assistant_only_loss}
        assert self.context is not None
        tokens = _ROWS_BEFORE_DATA * self.context
        return {"plan": plan, "train": {"tokens": tokens}, "validation": {"conversations": 1}}

    def _count_rows(self) -> int:
        return _ROWS_BEFORE_DATA


@dataclass
class DpoConfig(TuningSettings, DPOConfig):  # type: ignore[misc]
    """`ttl dpo`: a chat model, pairs of a better and a worse answer, and how to tune on them.

    All other keys are those of TRL's DPOConfig; defaults that differ from it are given below.
    """

    VERB, MODEL_KIND, DATA_KEY = "dpo", "chat model", "preferences"
    BATCH_KEY, OWN_IDENTITY = "pairs_per_step", "beta"
    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **REFUSED_KEYS,
        **_TRL_REFUSED_KEYS,
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
        self._check_tuning()
        ensure(self.beta > 0, f"beta={self.beta}: must be positive. 0.1 to 0.5 is usual.")
        manifest = self._manifest()
        self._take_context(manifest["plan"]["context"])
        self.num_rows = manifest["train"]["pairs"]
        self.pair_tokens = max(1, round(manifest["train"]["tokens"] / self.num_rows))
        pairs = self.pairs_per_step or self._usual_rows_a_step(_MOST_PAIRS_PER_STEP)
        self._share_batch(pairs, 1, "pairs_per_step")
        self._derive_steps()
        self.max_length = None
        self._hand_over(bool(manifest["validation"]["pairs"]))

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest of the prepared pairs.

        Raises:
            InputError: there are none.
        """
        return preferences_manifest(self._ensure_data("Give `inputs` with `ttl dpo`."))

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
        pairs = {"pairs": _ROWS_BEFORE_DATA, "tokens": _ROWS_BEFORE_DATA}
        return {"plan": {"context": self.context}, "train": pairs, "validation": {"pairs": 1}}
