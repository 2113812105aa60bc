"""LoRA and DoRA: which adapters a tuning trains, and what is saved of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure
from ..published import finish_saved

if TYPE_CHECKING:
    from peft import LoraConfig

MERGED_ADAPTER_FOLDER = "adapter"
# Low-rank matrices of the usual ranks hold a few per cent of a model; for estimates of memory only.
_FROZEN_SHARE = 0.95


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

    def _refuse_zero_3(self) -> None:
        """Called once the library knows its plugins; parts of weights could be neither resized, merged nor tried."""
        plugin: Any = getattr(self, "deepspeed_plugin", None)
        ensure(
            plugin is None or plugin.zero_stage != 3,
            "accelerate=zero3: tuning is not done under ZeRO-3, which shares each weight out; models that need it are "
            "beyond this library. Use zero1, zero2 or ddp.",
        )

    @property
    def frozen_share(self) -> float:
        """Return the share of the parameters that are not trained."""
        return _FROZEN_SHARE if self.lora_r else 0.0


def lora_config(settings: LoraSettings, new_tokens: list[int]) -> "LoraConfig | None":
    """Return PEFT's config of the adapters, or None when all weights are tuned.

    Args:
        settings: the tuning's config.
        new_tokens: ids that were added to the vocabulary: their embeddings are trained, the others stay. The head's
            rows are not, because these tokens stand in questions only, and a model is never asked to write them.
    """
    if not settings.lora_r:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_r,  # type: ignore[arg-type]  # a float works
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
        use_dora=settings.use_dora,
        trainable_token_indices={"embed_tokens": new_tokens} if new_tokens else None,
    )


def save_model(trainer: Any, folder: Path, merge: bool) -> None:
    """Save the tuned model and its tokenizer to a run's folder; call it on every rank.

    Args:
        trainer: after training.
        folder: of the run.
        merge: add a LoRA adapter into the model, and keep it in `adapter/` as well.
    """
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel) or not merge:
        trainer.save_model(str(folder))
        return
    adapter = folder / MERGED_ADAPTER_FOLDER
    trainer.save_model(str(adapter))
    if not trainer.is_world_process_zero():
        return
    (adapter / "training_args.bin").unlink(missing_ok=True)  # a pickle
    merged: Any = model.merge_and_unload()
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    finish_saved(folder)
