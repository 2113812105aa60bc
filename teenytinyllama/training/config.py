"""The pretraining config: the Trainer's own arguments, plus what a language model from scratch needs."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from transformers import TrainingArguments

from ..checks import ensure
from ..data.packed import packed_manifest
from ..data.sources import CorpusConfig
from ..presets import flops_per_token
from .batch import batch_for
from .caps import Decision, check_caps, has_caps
from .loss import has_plain_head
from .settings import REFUSED_KEYS, RunSettings
from .speed import SpeedPlan, check_speed, plan_speed

if TYPE_CHECKING:
    from transformers import LlamaConfig

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
    context: int | None = field(default=None, metadata={"help": "with inputs: tokens a row; default the preset's"})
    tokens_per_step: int | None = field(
        default=None,
        metadata={"help": "global batch of one optimizer step, in tokens; null: what a run of max_tokens learns most "
                          "from by a published law, 262,144 where its length is not known"},
    )  # fmt: skip
    max_tokens: int | None = field(default=None, metadata={"help": "length of the run in tokens (or give max_steps)"})
    max_kwh: float | None = field(
        default=None, metadata={"help": "cap on the energy of all starts; with it (or the next two) max_tokens may be "
                                "left out: a speed test finds it"}
    )  # fmt: skip
    max_cost: float | None = field(
        default=None, metadata={"help": "cap on the money of all starts, in USD; needs price"}
    )
    max_hours: float | None = field(default=None, metadata={"help": "cap on the hours of all starts"})
    hard_stop: bool = field(
        default=False, metadata={"help": "at a cap stop at once, also with a schedule whose decay cannot begin earlier"}
    )
    chunked_loss: bool | None = field(
        default=None,
        metadata={
            "help": "true: loss in chunks (torch 2.13); false: whole logits; null: on a GPU compiled "
            "with the head where layers are compiled, else in chunks where torch has them"
        },
    )
    compile_layers: bool | None = field(
        default=None, metadata={"help": "compile each layer with torch; null: when the run is long enough to pay"}
    )
    eval_max_tokens: int | None = field(
        default=None,
        metadata={"help": "held-out tokens scored at each evaluation; null: a hundredth of the run's tokens, 20,000 to "
                          "200,000. The final score uses all"},
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

    cap_decision: Decision | None = field(init=False, default=None)

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
        if self.tokens_per_step is None:
            self.tokens_per_step = batch_for(self.max_tokens, manifest["context"])
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
        ensure(
            self.packed is not None,
            "packed: missing. Give the folder that `ttl pack` wrote"
            + (
                "; `inputs` are packed by `ttl pretrain` before the ranks start, never by a rank."
                if self.inputs
                else ", or `inputs` with `ttl pretrain`."
            ),
        )
        check_speed(self)
        check_caps(self)
        for key in ("cloze_items", "signal_items"):
            ensure(getattr(self, key) >= 0, f"{key}={getattr(self, key)}: must be 0 (none) or more.")

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


def corpus_config_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return those values of a pretraining config that say what to pack."""
    names = {item.name for item in fields(CorpusConfig)} | {"tokenizer", "context"}
    return {name: value for name, value in values.items() if name in names and value is not None}
