"""Where texts are split before pieces are joined: at every space, or where no superword can cross."""

import json
from typing import TYPE_CHECKING, Any

from .vocabulary import SPACE_MARK

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Before a space that follows anything but a letter, since every part of a superword ends with a letter (Oniguruma, for
# `tokenizers`). Naming the words here was exact too, but slower.
SPLIT_PATTERN = rf"(?<=[^\p{{L}}]){SPACE_MARK}"


def split_at_spaces() -> "PreTokenizer":
    """Return the rule that makes each word a unit, with the space before it as its mark."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="never", split=True)


def split_around_superwords() -> "PreTokenizer":
    """Return the rule that splits only where a text can be split without changing an id, superwords or not."""
    from tokenizers import Regex, pre_tokenizers

    mark = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="never", split=False)
    return pre_tokenizers.Sequence([mark, pre_tokenizers.Split(Regex(SPLIT_PATTERN), "merged_with_next")])


def pre_tokenizer_content(pre_tokenizer: "PreTokenizer") -> Any:
    """Return what tokenizer.json holds of a pre-tokenizer."""
    from tokenizers import Tokenizer, models

    backend: Tokenizer = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    return json.loads(backend.to_str())["pre_tokenizer"]
