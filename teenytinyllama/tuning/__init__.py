"""Tuning a base model: instructions (`sft`), preferences (`dpo`), all weights or LoRA adapters."""

from ..checks import ensure_packages

ensure_packages("sft", "trl", "peft", "datasets")
