"""The config of instruction tuning: TRL's arguments, plus what conversations, packing and adapters need."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..checks import ensure, ensure_packages
from ..data.conversations import ConversationsConfig, conversations_manifest
from ..training.batch import shared_rows
from ..training.loss import has_chunked_loss, has_plain_head
from ..training.settings import REFUSED_KEYS, RunSettings
from ..training.speed import SpeedPlan, check_attention
from .adapters import LoraSettings
from .rows import load_rows

if TYPE_CHECKING:
    from transformers import LlamaConfig

ensure_packages("sft", "trl", "peft", "datasets")
from trl import SFTConfig  # noqa: E402  # after the message about the extra

# 64 rows of 2,048 tokens: small models take larger batches no better (SmolLM's recipes use 128 rows).
_MOST_TOKENS_PER_STEP = 131_072
_LEAST_STEPS_PER_EPOCH = 100  # a small set is learnt better in many small steps
ROWS_BEFORE_DATA = 100_000  # stand for the rows that nobody has counted yet

# TRL's keys that our data preparation replaces, and the model's that our loading does.
TRL_REFUSED_KEYS = {
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
class TuningSettings(LoraSettings, RunSettings):
    """The keys and rules that instruction and preference tuning share, mixed into TRL's arguments."""

    gradient_checkpointing: bool | None = field(  # TRL turns it on
        default=None, metadata={"help": "the old name of activation_checkpointing"}
    )
    sample_new_tokens: int = field(default=100, metadata={"help": "most tokens of an answer to each sample prompt"})
    num_rows: int = field(init=False, default=0)

    def _check_tuning(self, what: str) -> None:
        arguments: Any = self
        self._check_common()
        self._check_lora()
        check_attention(self.attn_implementation)
        ensure(self.model_name_or_path, f"model_name_or_path: missing. Give the {what}: a folder or a Hub id.")
        ensure(
            arguments.num_train_epochs > 0,
            f"num_train_epochs={arguments.num_train_epochs}: must be positive. 2 or 3 is usual.",
        )

    def _refuse_other_context(self, key: str, prepared: int) -> None:
        """Refuse a context beside rows that were prepared for another."""
        context = getattr(self, "context", None)
        ensure(
            context in (None, prepared),
            f"context={context}: {key}={getattr(self, key)} was prepared for {prepared} tokens. Leave context out, or "
            "give inputs in its place.",
        )

    def _usual_rows_a_step(self, most: int) -> int:
        """Return a power of two that leaves an epoch enough steps, or the nearest that all ranks can share."""
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        rows = 1 << (max(1, min(most, self.num_rows // _LEAST_STEPS_PER_EPOCH)).bit_length() - 1)
        return shared_rows(rows, ranks, getattr(self, "per_device_train_batch_size", None))

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

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **REFUSED_KEYS,
        **TRL_REFUSED_KEYS,
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
        self._check_tuning("base model")
        ensure(self.final_answers >= 0, f"final_answers={self.final_answers}: must be 0 (none) or more.")
        manifest = self._manifest()
        self._refuse_other_context("conversations", manifest["plan"]["context"])
        self.context = manifest["plan"]["context"]
        self.assistant_only_loss = manifest["plan"]["assistant_only_loss"]
        self._derive_batch(manifest)
        self._hand_over_to_trl(bool(manifest["validation"]["conversations"]))

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest of the prepared conversations.

        Raises:
            InputError: there are none.
        """
        ensure(
            self.conversations,
            "conversations: missing. Give the folder that `ttl conversations` wrote"
            + (
                "; `inputs` are prepared by `ttl sft` before the ranks start, never by a rank."
                if self.inputs
                else ", or `inputs` with `ttl sft`."
            ),
        )
        return conversations_manifest(str(self.conversations))

    def _count_rows(self) -> int:
        assert self.context is not None
        return len(load_rows(Path(str(self.conversations)) / "train.parquet", self.context, self.packing))

    def _derive_batch(self, manifest: dict[str, Any]) -> None:
        assert self.context is not None
        self.num_rows = self._count_rows()
        # Unpacked, a row holds one conversation and much padding: a step takes as many as hold its tokens.
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
        self._refuse_zero_3()

    def to_yaml_values(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keys that say what this run is; see `RunSettings`."""
        values = super().to_yaml_values(given)
        own = {"packing": self.packs, "assistant_only_loss": self.learns_answers}
        return {**values, **{name: value for name, value in own.items() if name not in given}}


def conversations_config_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return those values of a tuning's config that say which conversations to prepare, and how."""
    names = {item.name for item in fields(ConversationsConfig)} - {"output_dir"}
    return {name: value for name, value in values.items() if name in names and value is not None}


class SftConfigBeforeData(SftConfig):
    """The keys of `ttl sft` while its conversations are still `inputs`, to refuse what is wrong before they are read.

    How many rows there will be is not known: as many stand for them as make an epoch of the usual length.
    """

    def _manifest(self) -> dict[str, Any]:
        plan = {"context": self.context, "assistant_only_loss": self.assistant_only_loss}
        assert self.context is not None
        tokens = ROWS_BEFORE_DATA * self.context
        return {"plan": plan, "train": {"tokens": tokens}, "validation": {"conversations": 1}}

    def _count_rows(self) -> int:
        return ROWS_BEFORE_DATA
