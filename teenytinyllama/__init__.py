"""Open Portuguese language models from raw text to the Hub, on a small budget.

Importing this package loads no torch: the public names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .stage_folder import __version__

_LAZY_NAMES = {
    "PRESETS": "presets",
    "Preset": "presets",
    "preset_config": "presets",
    "from_pretrained": "models",
    "train_tokenizer": "tokenizer.train",
    "audit_tokenizer": "tokenizer.train",
}

__all__ = ["PRESETS", "Preset", "__version__", "audit_tokenizer", "from_pretrained", "preset_config", "train_tokenizer"]

if TYPE_CHECKING:
    from .models import from_pretrained
    from .presets import PRESETS, Preset, preset_config
    from .tokenizer.train import audit_tokenizer, train_tokenizer


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name in _LAZY_NAMES:
        return getattr(import_module(f".{_LAZY_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_NAMES])
