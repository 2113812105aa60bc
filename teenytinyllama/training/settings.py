"""Settings: the keys and rules that every training shares, mixed into the Trainer's own arguments."""

import contextlib
import copy
import math
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ..checks import ensure, model_license
from ..distributed import before_ranks, ranks_of_run
from ..energy.emissions import GridSettings
from ..gpus import choose_precision, has_accelerator, has_pinned_memory
from ..help_text import own_keys
from ..planning.memory import Computation, derive_batch
from .decay import SCHEDULE, planned_decay_steps
from .library import check_trackers, library_keys, refused_by_library, try_optimizer
from .speed import SpeedPlan, check_liger, optimizer_of

if TYPE_CHECKING:
    from transformers import LlamaConfig


_DERIVED = "is derived from tokens_per_step and the number of ranks. Leave it out; set per_device_train_batch_size."
REFUSED_KEYS = {
    "gradient_accumulation_steps": _DERIVED,
    "deepspeed": "ZeRO is chosen by the accelerate file alone: `--accelerate zero2`.",
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "parallelism_config"), "not supported; use `--accelerate zero1`, `zero2` or `zero3`."
    ),
    "push_to_hub": "would push from inside the training, which a slow or dead network could then stop. Set "
    "hub_model_id: owner/name, and `ttl` publishes in a process of its own; or run `ttl publish` afterwards.",
    "hub_token": "secrets never stand in a config. Use `hf auth login` or the HF_TOKEN variable.",
    "enable_jit_checkpoint": "signals are handled by our own callback, which is safe with several ranks.",
    "group_by_length": "rows are shuffled once and for all.",
    "dataloader_drop_last": "every step is whole by construction, and it would drop held-out documents as well.",
    "average_tokens_across_devices": "the loss is the mean over the tokens of all ranks, always.",
    "ignore_data_skip": "a resumed run must go on with the rows it has not seen.",
    "auto_find_batch_size": "would change the tokens a step. Leave it out: the micro-batch fits by itself.",
    "resume_from_checkpoint": "the same command resumes by itself from the latest complete checkpoint.",
    "remove_unused_columns": "the columns are ours.",
    "save_only_model": "a run cannot go on from a checkpoint without optimizer and schedule.",
    "train_sampling_strategy": "rows are shuffled once and for all.",
    "torch_compile": "compiles the whole model, which costs attention its fast kernel. Set compile_layers.",
    **dict.fromkeys(
        ("torch_compile_backend", "torch_compile_mode"),
        "turns torch_compile on, which costs attention its fast kernel. Set compile_layers.",
    ),
    "load_best_model_at_end": "every checkpoint is kept on its own; choose one by metrics.jsonl.",
}


def planned_for(num_ranks: int) -> contextlib.AbstractContextManager[None]:
    """Resolve the configs that are made in the block for so many ranks, none of which this process is."""
    return before_ranks({"WORLD_SIZE": str(num_ranks)})


# What `accelerate launch` sets for distributions that this package does not know.
_OTHER_DISTRIBUTIONS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG",
                        "ACCELERATE_USE_TP")  # fmt: skip


@dataclass
class RunSettings(GridSettings):
    """Mixed into a dataclass of TrainingArguments, in front of it: `class PretrainConfig(RunSettings, …)`.

    A subclass checks its own keys in `__post_init__`, derives batch and steps, and calls `_hand_over` last.
    """

    REFUSED_KEYS: ClassVar[dict[str, str]] = REFUSED_KEYS
    # Keys that follow from others or from the machine, and so say nothing about a run.
    DERIVED_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"max_steps", "per_device_train_batch_size", "lr_scheduler_kwargs", "bf16", "fp16"}
    )

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "continue from this model (folder or Hub id)"}
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch or commit of model_name_or_path"})
    decay_fraction: float = field(
        default=0.2, metadata={"help": "warmup_stable_decay: share of the steps in which the rate falls to zero"}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "sdpa, eager; on a GPU also flash_attention_2, flash_attention_3"}
    )
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "texts continued (or answered) at every evaluation, written to samples.jsonl"}
    )
    sample_new_tokens: int = field(default=60, metadata={"help": "tokens generated for each prompt"})
    price: float | None = field(
        default=None,
        metadata={"help": "USD for an hour of one GPU (of the whole machine where there is none), for money in the log "
                          "and for max_cost; all GPUs of all machines are paid"},
    )  # fmt: skip
    license: str = field(
        default="apache-2.0", metadata={"help": "licence of the model for its card, by the Hub's name"}
    )
    card_language: Literal["en", "pt", "both"] = field(
        default="both", metadata={"help": "language of the model's card: en, pt, or both, one after the other"}
    )

    # TrainingArguments' own, with other defaults.
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "rows a rank computes at once; default: chosen from the free memory"}
    )
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={"help": "held-out rows a rank scores at once; default: as many as the micro-batch"},
    )
    logging_steps: float = field(default=10, metadata={"help": "steps between two log lines"})
    logging_first_step: bool = field(default=True, metadata={"help": "also log the first step, before any learning"})
    eval_strategy: str = field(default="steps", metadata={"help": "steps or no"})
    eval_steps: float | None = field(default=0.1, metadata={"help": "steps, or below 1 a share of all steps"})
    save_steps: float = field(default=0.1, metadata={"help": "steps, or below 1 a share of all steps"})
    save_total_limit: int | None = field(default=3, metadata={"help": "complete checkpoints kept; null keeps all"})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "the Trainer's filter asks the GPU at every micro-batch; we check when logging"},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "a Llama uses all its parameters; looking for unused ones costs time"}
    )
    bf16: bool | None = field(default=None, metadata={"help": "null: chosen from the hardware"})
    fp16: bool | None = field(default=None, metadata={"help": "null: chosen from the hardware"})

    context: int | None = field(init=False, default=None)
    rows_per_step: int = field(init=False, default=0)
    batch_reason: str = field(init=False, default="")
    precision_reason: str = field(init=False, default="")
    given_shares: dict[str, float] = field(init=False, default_factory=dict)
    given_schedule: Any = field(init=False, default=None)
    micro_batch_given: bool = field(init=False, default=False)
    eval_batch_given: bool = field(init=False, default=False)
    micro_batch_reason: str = field(init=False, default="")
    micro_batch_failed_rows: int | None = field(init=False, default=None)
    micro_batch_free_bytes: int = field(init=False, default=0)

    def _check_common(self) -> None:
        arguments: Any = self
        ensure(arguments.output_dir, "output_dir: missing. Give the folder of the run.")
        for variable in _OTHER_DISTRIBUTIONS:
            ensure(
                os.environ.get(variable, "false").lower() in ("", "0", "false", "no"),
                f"{variable}={os.environ.get(variable)}: not supported; ranks would wait for each other without end. "
                "Use a file with DEEPSPEED, MULTI_GPU or NO, such as recipes/accelerate/zero1.yaml.",
            )
        self.license = model_license("license", self.license)
        check_trackers(arguments.report_to)
        check_liger(arguments.use_liger_kernel)
        ensure(
            len(self.country_iso_code) == 3 and self.country_iso_code.isupper(),
            f"country_iso_code={self.country_iso_code}: must be three capital letters (ISO 3166), such as BRA or PRT.",
        )
        ensure(
            self.price is None or 0 <= self.price < math.inf,
            f"price={self.price}: must be 0 or more, in USD for an hour of one GPU.",
        )
        ensure(
            arguments.save_strategy != "best",
            "save_strategy=best: checkpoints are kept by their age. Use steps or no, and choose one by metrics.jsonl.",
        )
        ensure(
            self.save_total_limit is None or self.save_total_limit > 0,
            f"save_total_limit={self.save_total_limit}: the newest complete checkpoint always stays. Use 1 or more, or "
            "null to keep all.",
        )
        ensure(0 < self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction}: must lie in (0, 1].")

    def _share_batch(self, tokens_per_step: int, row_tokens: int, key: str = "tokens_per_step") -> None:
        """Derive rows a step, the micro-batch (provisional when not given) and accumulation."""
        self.micro_batch_given = self.per_device_train_batch_size is not None
        self.eval_batch_given = self.per_device_eval_batch_size is not None
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or 4  # provisional, like the micro-batch
        self.rows_per_step, self.per_device_train_batch_size, self.gradient_accumulation_steps = derive_batch(
            tokens_per_step, row_tokens, self.per_device_train_batch_size, ranks_of_run(), key
        )

    def set_micro_batch(self, rows: int, reason: str) -> None:
        """Compute `rows` at once on each rank, with the accumulation that keeps the tokens of a step.

        Only before the Trainer is made: it reads the two numbers then, and fills DeepSpeed's `auto` values from them.
        """
        arguments: Any = self
        self.per_device_train_batch_size, self.micro_batch_reason = rows, reason
        self.gradient_accumulation_steps = self.rows_per_step // arguments.world_size // rows

    def _settle_steps(self) -> None:
        """State in steps what `max_steps`, derived before, gives a number to.

        Shares of the steps become steps, in the Trainer's own way (rounded up): a cap may end the run earlier, and a
        resumed Trainer would warn that the share differs from the steps in its checkpoint. The decay of
        warmup_stable_decay, which has no default, gets its length.
        """
        arguments: Any = self
        self.given_schedule = copy.copy(arguments.lr_scheduler_kwargs)  # a cap may change the other
        max_steps: int = arguments.max_steps
        for name in ("warmup_steps", "logging_steps", "eval_steps", "save_steps"):
            value = getattr(arguments, name)
            if value is not None and 0 < value < 1:
                self.given_shares[name] = value
                setattr(self, name, math.ceil(value * max_steps))
        if arguments.lr_scheduler_type == SCHEDULE:
            given = self.given_schedule if isinstance(self.given_schedule, dict) else {}
            steps = planned_decay_steps(max_steps, self.decay_fraction)
            decay = {"num_decay_steps": steps, "decay_type": "linear"}
            arguments.lr_scheduler_kwargs = {**decay, **given}

    @classmethod
    def from_resolved(cls, resolved: dict[str, Any]) -> Self:
        """Return the config that another process has checked and resolved, with the device and precision of this one.

        Args:
            resolved: what that config has as `resolved`, perhaps read from a JSON file.

        Raises:
            InputError: see `_hand_over`.
        """
        config = cls.__new__(cls)
        for name, value in resolved["values"].items():
            setattr(config, name, value)
        config._hand_over(resolved["has_validation"], is_checked=True)
        return config

    def _hand_over(self, has_validation: bool, is_checked: bool = False) -> None:
        """Settle device and precision, then let the library's class check what was derived.

        Raises:
            InputError: the library refuses a value, or one process sees several GPUs.
        """
        arguments: Any = self
        values = {
            item.name: copy.deepcopy(getattr(self, item.name)) for item in fields(self) if hasattr(self, item.name)
        }
        self.resolved = {"values": values, "has_validation": has_validation}
        self._choose_precision()
        if not has_accelerator():
            # Without this, DeepSpeed on a machine without GPU has a world of two and the Trainer a world of one.
            arguments.use_cpu = True
        elif not has_pinned_memory():
            arguments.dataloader_pin_memory = False
        elif isinstance(arguments.accelerator_config, dict | None):
            # A blocking copy to the GPU waits for all work queued before it, once per micro-batch.
            arguments.accelerator_config = {"non_blocking": True, **(arguments.accelerator_config or {})}
        arguments.train_sampling_strategy = "sequential"
        arguments.remove_unused_columns = False
        self.save_checkpoints_kept, self.save_total_limit = self.save_total_limit, None  # rotation is ours
        if not has_validation:
            self.eval_strategy = "no"
        arguments.eval_on_start = self.eval_strategy != "no"
        given = {name: getattr(self, name) for name in library_keys()}
        with refused_by_library(given):
            super().__post_init__()  # type: ignore[misc]
        if not is_checked:
            with refused_by_library(given):
                try_optimizer(arguments)
        ensure(
            arguments.n_gpu <= 1,
            f"{arguments.n_gpu} GPUs and one process: start one rank a GPU with `ttl` or `accelerate launch`.",
        )
        self._check_library()

    def _check_library(self) -> None:
        """Refuse what only the library's class, once it is made, tells; for subclasses."""

    def _choose_precision(self) -> None:
        if self.bf16 is None and self.fp16 is None:
            on_cpu = getattr(self, "use_cpu", False)
            precision, self.precision_reason = ("fp32", "use_cpu") if on_cpu else choose_precision()
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        else:
            self.precision_reason = "as configured"
            self.bf16, self.fp16 = bool(self.bf16), bool(self.fp16)

    @property
    def precision(self) -> str:
        """Return bf16, fp16 or fp32."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    @property
    def tokens_per_row(self) -> int:
        """Return the tokens that one row stands for in the figures of a step."""
        return self.longest_row

    @property
    def longest_row(self) -> int:
        """Return the most tokens that one row can hold, which its memory depends on."""
        assert self.context is not None
        return self.context

    def speed_plan(self, model_config: "LlamaConfig", zero_stage: int) -> SpeedPlan:
        """Return how training and evaluation make the loss, and whether layers are compiled."""
        return SpeedPlan("chunked", False, {})

    @property
    def recomputes_layers(self) -> bool:
        """Return whether layers are computed again in the backward pass; transformers renamed the key."""
        names = ("activation_checkpointing", "gradient_checkpointing")
        return any(bool(getattr(self, name, False)) for name in names)

    def computation(
        self, speed: SpeedPlan, zero_stage: int | None, world_size: int, *, on_gpu: bool, compiled: bool
    ) -> Computation:
        """Return how a rank computes, as far as its memory depends on it; arguments as `Computation` has them."""
        settings: Any = self
        return Computation(
            precision=self.precision,
            zero_stage=zero_stage,
            world_size=world_size,
            loss="chunked" if settings.use_liger_kernel else speed.loss,  # Liger keeps as little
            compiled=compiled,
            attention=self.attn_implementation,
            checkpointing=self.recomputes_layers,
            on_gpu=on_gpu,
            frozen_share=self.frozen_share,
            reference_models=self.reference_models,
            optimizer=optimizer_of(self),
        )

    @property
    def frozen_share(self) -> float:
        """Return the share of the parameters that are not trained."""
        return 0.0

    def new_checkpoints(self, steps_there: list[int]) -> int:
        """Return by how many checkpoints the folder will grow: until those are deleted that are more than are kept.

        Args:
            steps_there: of the complete checkpoints that lie there.
        """
        arguments: Any = self
        if arguments.save_strategy != "steps" or self.save_steps <= 0:
            return 1  # the last one, or a signal's
        done = max((step for step in steps_there if step <= arguments.max_steps), default=0)
        to_come = math.ceil(arguments.max_steps / self.save_steps) - int(done // self.save_steps)  # the last is saved
        if self.save_checkpoints_kept is not None:
            to_come = min(to_come, self.save_checkpoints_kept + 1 - len(steps_there))
        return max(1, to_come)

    @property
    def reference_models(self) -> int:
        """Return how many models beside the trained one are held in memory."""
        return 0

    def to_yaml_values(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keys that say what this run is: those given, and our own with their defaults; no derived ones.

        Shares stay shares.
        """
        own = [item.name for item in fields(self) if item.init and item.name in own_keys(type(self))]
        values = {name: getattr(self, name) for name in own if name not in self.DERIVED_KEYS} | self.given_shares
        values = {name: value for name, value in values.items() if name not in given}
        values = {name: getattr(value, "value", value) for name, value in values.items()}  # enums by their value
        if "save_total_limit" not in given:
            values["save_total_limit"] = self.save_checkpoints_kept
        return {**given, **{name: value for name, value in values.items() if value is not None}}
