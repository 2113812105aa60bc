"""Tuning a base model: instructions (`sft`), preferences (`dpo`), all weights or LoRA adapters."""
