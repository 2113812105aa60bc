"""The tokenizer class that saves itself under a name which transformers 4 and 5 both load.

It has a module of its own because it imports transformers, and because a class has to be found by its module path
when a tokenizer travels to the worker processes of a dataset map.
"""

from pathlib import Path
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from .files import finish_tokenizer


class PreTrainedTokenizerFast(TokenizersBackend):
    """The generic fast tokenizer of transformers, unchanged, under its older name.

    `save_pretrained` writes the name of the class as `tokenizer_class`. transformers 5 calls the class
    `TokenizersBackend`, which transformers 4 does not know; both know `PreTrainedTokenizerFast`. Carrying the name on
    the class makes every save right, also those that the Trainer makes by itself in each checkpoint. The folder loads
    without this package: `AutoTokenizer` resolves the name inside transformers.
    """

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Return False: beside a `tokenizer.model` transformers would cut "Fast" off the name of the class."""
        return False

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save as transformers does, then complete the folder for other programs; see `finish_tokenizer`."""
        saved: tuple[str, ...] = super().save_pretrained(save_directory, *args, **kwargs)
        finish_tokenizer(Path(save_directory))
        return saved
