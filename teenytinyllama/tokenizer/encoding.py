"""Encode with a tokenizer, make it portable, fingerprint it: what every stage shares."""

import hashlib
import json
import unicodedata
from typing import TYPE_CHECKING, Any

from ..checks import ensure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The parts of tokenizer.json that decide ids. The decoder decides text only; padding and truncation belong to a call.
_ID_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")


def compose(text: str) -> str:
    """Return a text with composed letters (Unicode's form NFC), as keyboards write them.

    Documents, prompts, questions and answers all pass through here: a model that learnt from `é` as one character
    reads `e` and an accent as something else, and in more tokens.
    """
    return unicodedata.normalize("NFC", text)


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, with no special token added and none read from the text.

    A `</s>` typed in a document stays four characters: read as the special token, it would be an end of text that
    anyone can inject. Equal to `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`, by the fastest
    batch call. Truncation and padding left behind by an earlier call are switched off.

    Args:
        tokenizer: any tokenizer of transformers; one without a Rust backend takes the slow way.
        texts: a list (not one string).

    Returns:
        One list of ids per text.

    Raises:
        InputError: `texts` is one string.
    """
    ensure(not isinstance(texts, str), "texts: got one str, and a list of str is needed. Write [text].")
    if not texts:
        return []
    if not tokenizer.is_fast:
        slow: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return slow
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True  # "encode the special strings as text"
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, add_special_tokens: bool = True) -> list[int]:
    """Return the token ids of a composed text, with the special tokens that the tokenizer puts around it.

    As `encode_texts`, special tokens typed in the text are text: a `</s>` in a question of a benchmark ends nothing.
    """
    found: Any = tokenizer(compose(text), add_special_tokens=add_special_tokens, split_special_tokens=True)
    return list(found["input_ids"])


def make_portable(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return the same tokenizer, made to save itself under a class name that transformers 4 and 5 both load.

    Only the generic fast class is touched (in place); a model's own class, such as LlamaTokenizer, has a name that
    both versions know.
    """
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    from .portable import PreTrainedTokenizerFast

    if type(tokenizer) is TokenizersBackend:
        tokenizer.__class__ = PreTrainedTokenizerFast  # adds no state, so changing the class is safe
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 (64 hexadecimal digits) of all that decides ids: equal before saving and after loading.

    Covers vocabulary, merges, added tokens, normalizer, pre-tokenizer and post-processor; not the chat template, the
    decoder, padding or truncation.

    Raises:
        InputError: a tokenizer without a Rust backend.
    """
    ensure(
        tokenizer.is_fast,
        f"tokenizer={type(tokenizer).__name__}: only a fast tokenizer has a fingerprint. Convert it to tokenizer.json.",
    )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: content.get(name) for name in _ID_PARTS}
    if "merges" in parts["model"]:  # written as "a b" by older versions, as ["a", "b"] by newer ones
        merges = parts["model"]["merges"]
        parts["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
