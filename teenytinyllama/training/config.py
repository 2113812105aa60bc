"""The pretraining config: the Trainer's own arguments, plus what a language model from scratch needs."""

import os
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from ..checks import InputError, ensure
from ..data.packed import packed_manifest
from ..data.sources import CorpusConfig
from .batch import derive_batch
from .hardware import choose_precision, has_accelerator
from .speed import check_speed

DEFAULT_PROMPTS = ["Era uma vez", "A capital do Brasil", "O menino abriu a porta e", "Segundo a lei,"]
_DERIVED = "is derived from tokens_per_step and the number of ranks. Leave it out; set per_device_train_batch_size."


@dataclass
class PretrainConfig(TrainingArguments):
    """`ttl pretrain`: a preset (or a model to continue), packed rows, and how to optimise.

    Batch and length are stated in tokens; accumulation and steps are derived, so the same config optimises the same
    on one rank or many. All other keys are TrainingArguments' own; defaults that differ from it are given below.
    """

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        "gradient_accumulation_steps": _DERIVED,
        "deepspeed": "ZeRO is chosen by the accelerate file alone: `ttl pretrain --accelerate zero2 …`.",
        "fsdp": "not supported; use `--accelerate zero1`, `zero2` or `zero3`.",
        "push_to_hub": "training never writes to the network; publish the run folder afterwards.",
        "hub_token": "secrets never stand in a config. Use `hf auth login` or the HF_TOKEN variable.",
        "enable_jit_checkpoint": "signals are handled by our own callback, which is safe with several ranks.",
        "group_by_length": "all rows are equally long.",
        "dataloader_drop_last": "every step is whole by construction, and it would drop held-out documents as well.",
        "ignore_data_skip": "a resumed run must go on with the rows it has not seen.",
        "auto_find_batch_size": "would change the tokens a step. Leave it out: the micro-batch fits by itself.",
        "resume_from_checkpoint": "the same command resumes by itself from the latest complete checkpoint.",
        "remove_unused_columns": "packed rows have one column.",
        "train_sampling_strategy": "rows are shuffled when packed, once and for all.",
        "num_train_epochs": "state the length in tokens: max_tokens.",
        "torch_compile": "compiles the whole model, which costs attention its fast kernel. Set compile_layers.",
        "load_best_model_at_end": "one pass over held-out text has no best epoch; every checkpoint is kept on its own.",
    }

    preset: str | None = field(default=None, metadata={"help": "model shape: tiny, 160m, 460m, 1b1"})
    shape: dict[str, int] | None = field(
        default=None, metadata={"help": "changes to the preset's shape, LlamaConfig's names: {num_hidden_layers: 6}"}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "continue from this model (folder or Hub id) instead of a preset"}
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch or commit of model_name_or_path"})
    tokenizer: str | None = field(default=None, metadata={"help": "folder or Hub id of the tokenizer of the rows"})
    packed: str | None = field(default=None, metadata={"help": "folder of packed rows (`ttl pack`)"})
    inputs: list[str] | None = field(
        default=None, metadata={"help": "instead of packed: texts that `ttl pretrain` packs before the ranks start"}
    )
    validation_inputs: list[str] | None = field(default=None, metadata={"help": "with inputs: see `ttl pack`"})
    validation_fraction: float = field(default=0.01, metadata={"help": "with inputs: see `ttl pack`"})
    text_column: str = field(default="text", metadata={"help": "with inputs: see `ttl pack`"})
    txt_unit: Literal["file", "line"] = field(default="file", metadata={"help": "with inputs: see `ttl pack`"})
    context: int | None = field(default=None, metadata={"help": "with inputs: tokens a row; default the preset's"})
    tokens_per_step: int = field(default=262_144, metadata={"help": "global batch of one optimizer step, in tokens"})
    max_tokens: int | None = field(default=None, metadata={"help": "length of the run in tokens (or give max_steps)"})
    decay_fraction: float = field(
        default=0.2, metadata={"help": "warmup_stable_decay: share of the steps in which the rate falls to zero"}
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "sdpa, eager; on a GPU also flash_attention_2, flash_attention_3"}
    )
    chunked_loss: bool | None = field(
        default=None, metadata={"help": "loss without whole logits; null: where torch has it (2.13) and Liger is off"}
    )
    compile_layers: bool | None = field(
        default=None, metadata={"help": "compile each layer with torch; null: when the run is long enough to pay"}
    )
    eval_max_tokens: int | None = field(
        default=None,
        metadata={"help": "held-out tokens scored at each evaluation; null: a hundredth of the run's tokens, 20,000 to "
                          "200,000. The final score uses all"},
    )  # fmt: skip
    sample_prompts: list[str] | None = field(
        default=None, metadata={"help": "texts continued at every evaluation, written to samples.jsonl"}
    )
    sample_new_tokens: int = field(default=60, metadata={"help": "tokens generated for each prompt"})
    country_iso_code: str = field(
        default="BRA", metadata={"help": "three-letter country of the machine, for the grid's carbon intensity"}
    )
    license: str = field(default="apache-2.0", metadata={"help": "licence of the model, for its card"})

    # TrainingArguments' own, with other defaults.
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "rows a rank computes at once; default: chosen from the free memory"}
    )
    per_device_eval_batch_size: int | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "held-out windows a rank scores at once; default: as many as the micro-batch"},
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "cosine, warmup_stable_decay, linear, …"})
    warmup_steps: float = field(default=0.02, metadata={"help": "steps, or below 1 a share of all steps"})
    weight_decay: float = field(default=0.1, metadata={"help": "of matrices; never of norms and embeddings"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second momentum"})
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
    bf16: bool | None = field(default=None, metadata={"help": "null: chosen from the hardware"})  # type: ignore[assignment]
    fp16: bool | None = field(default=None, metadata={"help": "null: chosen from the hardware"})  # type: ignore[assignment]

    precision_reason: str = field(init=False, default="")
    micro_batch_given: bool = field(init=False, default=False)
    eval_batch_given: bool = field(init=False, default=False)
    micro_batch_reason: str = field(init=False, default="")
    micro_batch_failed_rows: int | None = field(init=False, default=None)
    micro_batch_free_bytes: int = field(init=False, default=0)
    rows_per_step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Derive batch, steps and precision, then hand over to TrainingArguments.

        Everything is derived *before* the parent's `__post_init__`, which checks it. A micro-batch that is not given is
        provisional: `micro_batch.settle_micro_batch` chooses it when the ranks are connected.

        Raises:
            InputError: see the checks below; TrainingArguments' own refusals are turned into one.
        """
        self._check_choices()
        manifest = packed_manifest(str(self.packed))
        self.context = manifest["context"]
        self._derive_batch(int(os.environ.get("WORLD_SIZE", "1")))
        self._derive_steps()
        self._choose_precision()
        if not has_accelerator():
            # Without this, DeepSpeed on a machine without GPU has a world of two and the Trainer a world of one.
            self.use_cpu = True
        elif isinstance(self.accelerator_config, dict | None):
            # A blocking copy to the GPU waits for all work queued before it, once per micro-batch.
            self.accelerator_config = {"non_blocking": True, **(self.accelerator_config or {})}
        self.train_sampling_strategy = "sequential"
        self.remove_unused_columns = False
        self.save_checkpoints_kept, self.save_total_limit = self.save_total_limit, None  # rotation is ours
        if not manifest["validation_tokens"]:
            self.eval_strategy = "no"
        self.eval_on_start = self.eval_strategy != "no"
        try:
            super().__post_init__()
        except ValueError as error:
            raise InputError(f"config: {error}") from error
        ensure(
            self.n_gpu <= 1,
            f"{self.n_gpu} GPUs and one process: start one rank a GPU with `ttl pretrain` or `accelerate launch`.",
        )

    def _check_choices(self) -> None:
        ensure(
            (self.preset is None) != (self.model_name_or_path is None),
            f"preset={self.preset}, model_name_or_path={self.model_name_or_path}: give exactly one of the two.",
        )
        ensure(self.shape is None or self.preset, "shape: changes a preset's shape, so it needs preset.")
        ensure(self.output_dir, "output_dir: missing. Give the folder of the run.")
        ensure(self.tokenizer, "tokenizer: missing. Give the folder that `ttl tokenizer` wrote.")
        ensure(
            self.packed is not None,
            "packed: missing. Give the folder that `ttl pack` wrote"
            + (
                "; `inputs` are packed by `ttl pretrain` before the ranks start, never by a rank."
                if self.inputs
                else ", or `inputs` with `ttl pretrain`."
            ),
        )
        reports = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        ensure(
            not {"all", "codecarbon"} & set(reports),
            f"report_to={self.report_to}: would start a second energy tracker beside ours. Name the tracker you want.",
        )
        ensure(
            len(self.country_iso_code) == 3 and self.country_iso_code.isupper(),
            f"country_iso_code={self.country_iso_code}: must be three capital letters (ISO 3166), such as BRA or PRT.",
        )
        ensure(0 < self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction}: must lie in (0, 1].")
        check_speed(self)

    def _derive_batch(self, world_size: int) -> None:
        assert self.context is not None
        self.micro_batch_given = self.per_device_train_batch_size is not None
        self.eval_batch_given = self.per_device_eval_batch_size is not None
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or 4  # provisional, like the micro-batch
        self.rows_per_step, self.per_device_train_batch_size, self.gradient_accumulation_steps = derive_batch(
            self.tokens_per_step, self.context, self.per_device_train_batch_size, world_size
        )

    def set_micro_batch(self, rows: int, reason: str) -> None:
        """Compute `rows` at once on each rank, with the accumulation that keeps the tokens of a step.

        Only before the Trainer is made: it reads the two numbers then, and fills DeepSpeed's `auto` values from them.
        """
        self.per_device_train_batch_size, self.micro_batch_reason = rows, reason
        self.gradient_accumulation_steps = self.rows_per_step // self.world_size // rows

    def _derive_steps(self) -> None:
        if self.max_tokens is not None:
            ensure(self.max_tokens > 0, f"max_tokens={self.max_tokens}: must be positive.")
            steps = max(1, round(self.max_tokens / self.tokens_per_step))
            ensure(
                self.max_steps in (-1, steps),
                f"max_steps={self.max_steps}, max_tokens={self.max_tokens}: disagree ({steps} steps). Give one.",
            )
            self.max_steps = steps
        ensure(self.max_steps > 0, "max_tokens: missing. Give the length of the run in tokens (or max_steps).")
        if self.eval_max_tokens is None:  # ten evaluations then cost about as much as a twentieth of the training
            self.eval_max_tokens = min(200_000, max(20_000, self.max_steps * self.tokens_per_step // 100))
        if self.lr_scheduler_type == "warmup_stable_decay":
            given = self.lr_scheduler_kwargs if isinstance(self.lr_scheduler_kwargs, dict) else {}
            decay = {"num_decay_steps": max(1, round(self.decay_fraction * self.max_steps)), "decay_type": "linear"}
            self.lr_scheduler_kwargs = {**decay, **given}

    def _choose_precision(self) -> None:
        if self.bf16 is None and self.fp16 is None:
            precision, self.precision_reason = ("fp32", "use_cpu") if self.use_cpu else choose_precision()
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        else:
            self.precision_reason = "as configured"
            self.bf16, self.fp16 = bool(self.bf16), bool(self.fp16)

    @property
    def precision(self) -> str:
        """Return bf16, fp16 or fp32."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    def to_yaml_values(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keys that say what this run is: those given, and our own with their defaults; no derived ones."""
        derived = {"context", "max_steps", "eval_max_tokens", "per_device_train_batch_size", "lr_scheduler_kwargs"}
        derived |= {"bf16", "fp16"}
        own = [item.name for item in fields(self) if item.init and item.name in PretrainConfig.__annotations__]
        values = {name: getattr(self, name) for name in own if name not in derived and name not in given}
        values = {name: getattr(value, "value", value) for name, value in values.items()}  # enums by their value
        if "save_total_limit" not in given:
            values["save_total_limit"] = self.save_checkpoints_kept
        return {**given, **{name: value for name, value in values.items() if value is not None}}


def corpus_config_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return those values of a pretraining config that say what to pack."""
    names = {item.name for item in fields(CorpusConfig)} | {"tokenizer", "context"}
    return {name: value for name, value in values.items() if name in names and value is not None}
