"""The pretraining config: the Trainer's own arguments, plus what a language model from scratch needs."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from transformers import TrainingArguments

from ..checks import counted, ensure
from ..data.packed import packed_manifest
from ..data.sources import CorpusConfig
from ..distributed import deepspeed_settings, ranks_of_run
from ..models import has_plain_head
from ..planning.memory import OptimizerName, batch_for
from ..presets import flops_per_token
from ..stage_folder import ENVIRONMENT_NAME
from .caps import check_caps, has_caps
from .decay import SCHEDULE, Decision
from .guards import check_guards
from .library import check_skipping, check_zero
from .optimizer import check_optimizer
from .settings import REFUSED_KEYS, RunSettings
from .speed import SpeedPlan, check_speed, plan_speed

if TYPE_CHECKING:
    from transformers import LlamaConfig

# Keys for packing `inputs`, which rows that are packed already leave without effect.
PACKING_KEYS = ("validation_inputs", "validation_fraction", "text_column", "txt_unit", "encoding")
DEFAULT_PROMPTS = ["Era uma vez", "A capital do Brasil", "O menino abriu a porta e", "Segundo a lei,"]


@dataclass
class PretrainConfig(RunSettings, TrainingArguments):  # type: ignore[misc]  # null where ours derives a value
    """`ttl pretrain`: a preset (or a model to continue), packed rows, and how to optimise.

    Batch and length are stated in tokens; accumulation and steps are derived, so the same config optimises the same
    on one rank or many. All other keys are TrainingArguments' own; defaults that differ from it are given below.
    """

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **REFUSED_KEYS,
        "num_train_epochs": "state the length in tokens: max_tokens.",
    }
    DERIVED_KEYS: ClassVar[frozenset[str]] = RunSettings.DERIVED_KEYS | {"context", "eval_max_tokens"}

    preset: str | None = field(default=None, metadata={"help": "model shape: tiny, 160m, 460m, 1b1"})
    shape: dict[str, int] | None = field(
        default=None, metadata={"help": "changes to the preset's shape, LlamaConfig's names: {num_hidden_layers: 6}"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of the tokenizer of the rows; default with model_name_or_path: its own"},
    )
    packed: str | None = field(default=None, metadata={"help": "folder of packed rows (`ttl pack`)"})
    inputs: list[str] | None = field(
        default=None, metadata={"help": "instead of packed: texts that `ttl pretrain` packs before the ranks start"}
    )
    validation_inputs: list[str] | None = field(default=None, metadata={"help": "with inputs: see `ttl pack`"})
    validation_fraction: float = field(default=0.01, metadata={"help": "with inputs: see `ttl pack`"})
    text_column: str = field(default="text", metadata={"help": "with inputs: see `ttl pack`"})
    txt_unit: Literal["file", "line"] = field(default="file", metadata={"help": "with inputs: see `ttl pack`"})
    encoding: str | None = field(default=None, metadata={"help": "with inputs: see `ttl pack`"})
    context: int | None = field(default=None, metadata={"help": "with inputs: tokens a row; default the preset's"})
    tokens_per_step: int | None = field(
        default=None,
        metadata={"help": "global batch of one optimizer step, in tokens; null: what a run of max_tokens learns most "
                          "from by a published law, 262,144 where its length is not known, or the nearest that the "
                          "ranks can share; a run that has begun keeps its batch"},
    )  # fmt: skip
    max_tokens: int | None = field(default=None, metadata={"help": "length of the run in tokens (or give max_steps)"})
    decay_from: str | None = field(
        default=None,
        metadata={"help": "begin at this checkpoint of a run with warmup_stable_decay, with that run's keys, and end "
                          "at max_tokens as if the run had been planned so; in a new output_dir"},
    )  # fmt: skip
    max_kwh: float | None = field(
        default=None, metadata={"help": "cap on the energy of all starts; with it (or the next two) max_tokens may be "
                                "left out: a speed test finds it"}
    )  # fmt: skip
    max_cost: float | None = field(
        default=None, metadata={"help": "cap on the money of all starts and GPUs, in USD; needs price"}
    )
    max_hours: float | None = field(
        default=None, metadata={"help": "cap on the hours of all starts, from the start of the processes on"}
    )
    hard_stop: bool = field(
        default=False, metadata={"help": "at a cap stop at once, also with a schedule whose decay cannot begin earlier"}
    )
    on_bad_step: Literal["stop", "skip", "rewind"] = field(
        default="stop",
        metadata={"help": "what a step does whose loss or gradient norm is not finite or a spike: stop the run; skip: "
                          "the step is not taken; rewind: back to the newest checkpoint and on without its rows. "
                          "bad_steps.jsonl names its documents"},
    )  # fmt: skip
    spike_factor: float | None = field(
        default=None,
        metadata={"help": "deviations above the median of the last 128 steps that make a spike; null: 6 with skip and "
                          "rewind, none with stop; 0: none"},
    )  # fmt: skip
    max_bad_steps: int = field(
        default=10, metadata={"help": "bad steps in a run that are skipped or gone back for; one more stops it"}
    )
    chunked_loss: bool | None = field(
        default=None,
        metadata={
            "help": "true: loss in chunks (torch 2.13); false: whole logits; null: on a GPU compiled "
            "with the head where layers are compiled, else in chunks where torch has them"
        },
    )
    optimizer: OptimizerName = field(
        default="adamw",
        metadata={"help": "adamw; muon or normuon for the layers' matrices, with AdamW for embeddings, head and norms "
                          "(in one process, under DDP, ZeRO-1 and ZeRO-2)"},
    )  # fmt: skip
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "with muon or normuon: peak rate of embeddings and head; null: learning_rate"}
    )
    compile_layers: bool | None = field(
        default=None, metadata={"help": "compile each layer with torch; null: when the run is long enough to pay"}
    )
    eval_max_tokens: int | None = field(
        default=None,
        metadata={"help": "held-out tokens scored at each evaluation; null: a hundredth of the run's tokens, 20,000 to "
                          "200,000. The final score uses all"},
    )  # fmt: skip

    preflight: bool | None = field(
        default=None,
        metadata={"help": "look at rows, clock and disk before the ranks start; null: before a run of an hour or more. "
                          "`ttl doctor` looks at more"},
    )  # fmt: skip
    cloze_items: int = field(
        default=200,
        metadata={"help": "held-out sentences whose last word is asked at each evaluation, as many as a tenth of "
                          "eval_max_tokens holds; 0: none"},
    )  # fmt: skip
    signal_data_dir: str | None = field(
        default=None,
        metadata={"help": "folder with files of HellaSwag, ARC, CALAME, LAMBADA, asked at each evaluation"},
    )
    signal_items: int = field(default=200, metadata={"help": "with signal_data_dir: questions of each, the first ones"})

    # TrainingArguments' own, with other defaults.
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "cosine, warmup_stable_decay, linear, …"})
    warmup_steps: float = field(default=0.02, metadata={"help": "steps, or below 1 a share of all steps"})
    weight_decay: float = field(default=0.1, metadata={"help": "of matrices; never of norms and embeddings"})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second momentum"})

    early_end: Decision | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Derive batch, steps and precision, then hand over to TrainingArguments.

        Everything is derived *before* the parent's `__post_init__`, which checks it. A micro-batch that is not given is
        provisional: `trials.settle_micro_batch` chooses it when the ranks are connected.

        Raises:
            InputError: see the checks below; TrainingArguments' own refusals are turned into one.
        """
        self._check_choices()
        manifest = self._manifest()
        self._refuse_packing_keys(manifest["context"])
        self.context = manifest["context"]
        if self.tokens_per_step is None:
            self.tokens_per_step, self.batch_reason = open_batch(
                self.output_dir, self.max_tokens, manifest["context"], ranks_of_run(), self.per_device_train_batch_size
            )
        self._share_batch(self.tokens_per_step, manifest["context"])
        self._derive_steps()
        self._hand_over(bool(manifest["validation_tokens"]))

    def _check_choices(self) -> None:
        ensure(
            (self.preset is None) != (self.model_name_or_path is None),
            f"preset={self.preset}, model_name_or_path={self.model_name_or_path}: give exactly one of the two.",
        )
        ensure(self.shape is None or self.preset, "shape: changes a preset's shape, so it needs preset.")
        self._check_common()
        self.tokenizer = self.tokenizer or self.model_name_or_path
        ensure(self.tokenizer, "tokenizer: missing. Give the folder that `ttl tokenizer` wrote.")
        check_speed(self)
        check_optimizer(self)
        schedule = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        ensure(
            self.decay_from is None or schedule == SCHEDULE,
            f"lr_scheduler_type={schedule}: decay_from={self.decay_from} needs {SCHEDULE}. Leave the key out.",
        )
        check_caps(self)
        check_guards(self)
        for key in ("cloze_items", "signal_items"):
            ensure(getattr(self, key) >= 0, f"{key}={getattr(self, key)}: must be 0 (none) or more.")

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest of the packed rows.

        Raises:
            InputError: there are none.
        """
        ensure(
            self.packed is not None,
            "packed: missing. Give the folder that `ttl pack` wrote"
            + (
                "; `inputs` are packed by `ttl pretrain` before the ranks start, never by a rank."
                if self.inputs
                else ", or `inputs` with `ttl pretrain`."
            ),
        )
        return packed_manifest(str(self.packed))

    def _refuse_packing_keys(self, row_tokens: int) -> None:
        """Refuse keys that say how to pack, beside rows that are packed already and differ or cannot tell."""
        ensure(
            self.context in (None, row_tokens),
            f"context={self.context}: packed={self.packed} has rows of {row_tokens} tokens. Leave context out, or pack "
            f"again with `ttl pack --context {self.context}`.",
        )
        for name in PACKING_KEYS:
            value, usual = getattr(self, name), getattr(type(self), name, None)
            ensure(
                value == usual,
                f"{name}={value}: says how to pack, and packed={self.packed} is packed already. Leave it out, or give "
                "inputs in place of packed.",
            )

    def _check_library(self) -> None:
        """Refuse what DeepSpeed, as the accelerate file asks for it, would not do: an optimizer, a skipped step."""
        settings = deepspeed_settings(getattr(self, "deepspeed_plugin", None))
        check_zero(self.optimizer, settings)
        check_skipping(self.on_bad_step, settings)

    def _derive_steps(self) -> None:
        assert self.tokens_per_step is not None
        if self.max_tokens is not None:
            ensure(self.max_tokens > 0, f"max_tokens={self.max_tokens}: must be positive.")
            steps = max(1, round(self.max_tokens / self.tokens_per_step))
            ensure(
                self.max_steps in (-1, steps),
                f"max_steps={self.max_steps}, max_tokens={self.max_tokens}: disagree ({steps} steps). Give one.",
            )
            self.max_steps = steps
        ensure(
            self.max_steps > 0,
            "max_tokens: missing. Give the length of the run in tokens (or max_steps)."
            + (" Only `ttl pretrain` finds it from a cap, before the ranks start." if has_caps(self) else ""),
        )
        if self.eval_max_tokens is None:  # ten evaluations then cost about as much as a twentieth of the training
            self.eval_max_tokens = min(200_000, max(20_000, self.max_steps * self.tokens_per_step // 100))
        self._settle_steps()

    def training_flops(self, model_config: "LlamaConfig") -> float:
        """Return the FLOPs of the whole run, over all ranks."""
        assert self.context is not None
        assert self.tokens_per_step is not None
        return float(flops_per_token(model_config, self.context) * self.tokens_per_step * self.max_steps)

    def speed_plan(self, model_config: "LlamaConfig", zero_stage: int) -> SpeedPlan:
        """Return what makes a step fast, each with its reason."""
        return plan_speed(self, self.training_flops(model_config), zero_stage, has_plain_head(model_config))


def open_batch(
    output_dir: str | None, max_tokens: int | None, context: int, ranks: int, micro_batch: int | None
) -> tuple[int, str]:
    """Return the tokens of a step of a run whose config leaves them open, and why so many.

    A run that has begun keeps the batch it began with, on any number of ranks that can share it.

    Args:
        output_dir: of the run.
        max_tokens: its length; None: not known.
        context: tokens a row.
        ranks: that train.
        micro_batch: rows a rank computes at once, where that is given.

    Raises:
        InputError: the run has begun, and so many ranks cannot share its batch.
    """
    begun = _begun_batch(Path(str(output_dir)) / ENVIRONMENT_NAME)
    if begun is not None and begun % context == 0:
        rows = begun // context
        shares = [str(number) for number in range(1, 17) if rows % number == 0]
        ensure(
            rows % ranks == 0,
            f"output_dir={output_dir}: the run there began with {begun:,} tokens a step, and {ranks} ranks cannot "
            f"share its {rows} rows. Go on with {', '.join(shares)} ranks, or begin a new run in another folder.",
        )
        return begun, "tokens_per_step as the run began"
    usual, shared = batch_for(max_tokens, context), batch_for(max_tokens, context, ranks, micro_batch)
    reason = "tokens_per_step by a published law for the run's length, in a power of two of rows"
    if shared != usual:
        sharing = counted(ranks, "rank")
        reason = f"tokens_per_step not given: {usual:,} by a published law, the nearest that {sharing} can share"
    return shared, reason


def _begun_batch(environment: Path) -> int | None:
    """Return the tokens of a step that a run's record has; None: it has not begun, or its record does not tell."""
    try:
        found = int(json.loads(environment.read_text(encoding="utf-8"))["identity"]["tokens_per_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found > 0 else None


def corpus_config_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return those values of a pretraining config that say what to pack."""
    names = {item.name for item in fields(CorpusConfig)} | {"tokenizer", "context"}
    return {name: value for name, value in values.items() if name in names and value is not None}


class PretrainConfigBeforePacking(PretrainConfig):
    """The keys of `ttl pretrain` while its rows are still `inputs`, to refuse what is wrong before they are packed."""

    def _manifest(self) -> dict[str, Any]:
        return {"context": self.context, "validation_tokens": 1}

    def _refuse_packing_keys(self, row_tokens: int) -> None:
        pass  # they are to be used

    def _derive_steps(self) -> None:
        if self.max_tokens is None and self.max_steps <= 0 and has_caps(self):
            self.max_steps = 1  # stands for the length that a speed test will tell
        super()._derive_steps()
