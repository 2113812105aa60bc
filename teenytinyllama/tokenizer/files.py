"""A saved tokenizer as other programs read it: `tokenizer.model` for llama.cpp and SentencePiece, keys for all."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..manifest import write_json
from .splitting import pre_tokenizer_content, split_around_superwords, split_at_spaces
from .vocabulary import BOS_ID, BYTE_TOKENS, EOS_ID, NUM_RESERVED_TOKENS, PAD_ID, RESERVED_TOKENS, UNK_ID, UNK_TOKEN

SENTENCEPIECE_NAME = "tokenizer.model"
# Field numbers and values of sentencepiece_model.proto (github.com/google/sentencepiece, v0.2.1). They are written
# here without generated code, because that of `sentencepiece` binds to one major version of protobuf.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_MODEL_TYPE, _BPE, _VOCAB_SIZE, _BYTE_FALLBACK = 3, 2, 4, 35
_SPECIAL_IDS = {40: UNK_ID, 41: BOS_ID, 42: EOS_ID, 43: PAD_ID}
_ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 3, 4, 5


def finish_tokenizer(folder: Path) -> None:
    """Complete a folder into which transformers 5 saved a tokenizer, so that other programs read the same one.

    * Special tokens without a role stand under `additional_special_tokens`: transformers 4 fails on the list
      `extra_special_tokens`, and transformers 5 reads both alike.
    * The class has the name that both versions know.
    * A tokenizer of `train_tokenizer` has `tokenizer.model` beside it, with tokens that were added to it. Without the
      file llama.cpp's converter gives every entry one score, and its ids are others. Any other tokenizer has none: what
      the file would say could not be known to be true.

    Args:
        folder: where `tokenizer_config.json` and `tokenizer.json` lie; one without them is left as it is.
    """
    config_path, content_path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if config_path.is_file():
        config = json.loads(config_path.read_text(encoding="utf-8"))
        mended = portable_tokenizer_config(config)
        if mended != config:
            write_json(config_path, mended)
    if content_path.is_file():
        model = sentencepiece_model(json.loads(content_path.read_text(encoding="utf-8")))
        if model is not None:
            (folder / SENTENCEPIECE_NAME).write_bytes(model)


def portable_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json` in the words of transformers 4, which version 5 reads alike."""
    config = dict(config)
    if config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizer"):  # names of transformers 5
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        extra = config.pop("extra_special_tokens")
        known = config.get("additional_special_tokens") or []
        config["additional_special_tokens"] = [*known, *(token for token in extra if token not in known)]
    return config


def sentencepiece_model(content: dict[str, Any]) -> bytes | None:
    """Return the content of `tokenizer.model` for a `tokenizer.json`, or None when the tokenizer is not one of ours.

    The score of an entry is minus its id, by which SentencePiece and llama.cpp join pieces as `tokenizers` does (see
    `vocabulary.list_merges`). The normaliser is the identity: no space is added in front, none is taken away.

    Args:
        content: of `tokenizer.json`.
    """
    if not _is_ours(content):
        return None
    model = content["model"]["vocab"]
    added = {token["content"]: token for token in content["added_tokens"]}
    numbers = {**model, **{name: token["id"] for name, token in added.items()}}
    vocabulary = sorted(numbers, key=numbers.__getitem__)
    if [numbers[piece] for piece in vocabulary] != list(range(len(vocabulary))):
        return None  # ids with gaps cannot be written
    return b"".join(_encode_model(vocabulary, {name: bool(token["special"]) for name, token in added.items()}))


def _is_ours(content: dict[str, Any]) -> bool:
    """Return whether a `tokenizer.json` was made by `train_tokenizer`, whatever tokens were added to it since."""
    model = content["model"]
    vocabulary = model.get("vocab")
    ours = [pre_tokenizer_content(rule()) for rule in (split_at_spaces, split_around_superwords)]
    return (
        model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and content["normalizer"] is None
        and content["pre_tokenizer"] in ours
        and len(vocabulary) > NUM_RESERVED_TOKENS
        and all(vocabulary.get(piece) == index for index, piece in enumerate(RESERVED_TOKENS))
    )


def _encode_model(vocabulary: list[str], added: dict[str, bool]) -> Iterator[bytes]:
    """Yield the parts of a ModelProto; `added` says of tokens found in the text whether they are special."""
    bytes_tokens = set(BYTE_TOKENS)
    for index, piece in enumerate(vocabulary):
        kind = _NORMAL
        if piece in bytes_tokens:
            kind = _BYTE
        elif piece in added:
            kind = _UNKNOWN if piece == UNK_TOKEN else _CONTROL if added[piece] else _USER_DEFINED
        yield _field(_PIECES, _field(1, piece.encode()) + _field(2, float(-index)) + _field(3, kind))
    trainer = {_MODEL_TYPE: _BPE, _VOCAB_SIZE: len(vocabulary), _BYTE_FALLBACK: 1, **_SPECIAL_IDS}
    yield _field(_TRAINER, b"".join(_field(number, value) for number, value in trainer.items()))
    normalizer = {_ADD_DUMMY_PREFIX: 0, _REMOVE_EXTRA_WHITESPACES: 0, _ESCAPE_WHITESPACES: 1}
    yield _field(_NORMALIZER, _field(1, b"identity") + b"".join(_field(n, v) for n, v in normalizer.items()))


def _field(number: int, value: bytes | float | int) -> bytes:
    """Return a field in protobuf's wire format: bytes, a 32-bit float, or a whole number of 0 or more."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
