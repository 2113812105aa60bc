"""The vocabulary and the files of the tokenizer: reserved entries, merges, and what other programs read of it.

The rules of the tokenizer are held by the vocabulary itself, and so do not depend on who loads it: a space is always
`▁` at the start of a word, with no prefix added to the text; no piece crosses a space except superwords, which join
function words only; no piece has three digits in a row; a character outside the alphabet becomes its UTF-8 bytes
(`<0x00>` to `<0xFF>`), so there is no unknown text and decoding is exact on any string. One exception: a literal `▁`
(U+2581) decodes to a space, because it is the mark for one. There is no normalizer: texts are composed (NFC) where
they are read, documents and prompts alike (`encode.compose`).

Superwords go on with what Portuguese does when it writes many pairs of function words as one (do, na, pelo, numa). Only
words of a closed list take part, so that the tokens of a text do not depend on whether a content word follows: a prompt
and its continuation are cut where they were cut in training. Superwords have the highest ids. Joins inside words
therefore always go first, and the ids of a text are the ids of its words, then joined within runs of function words.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..stage_folder import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer


UNK_TOKEN, BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<unk>", "<s>", "</s>", "<pad>"
UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))  # ordinary entries, ids 4 to 259
FIRST_BYTE_ID = 4
INSTRUCTION_TOKEN, END_INSTRUCTION_TOKEN = "<instruction>", "</instruction>"
INSTRUCTION_ID, END_INSTRUCTION_ID = 260, 261
SPARE_TOKENS = tuple(f"<reserved_{number}>" for number in range(6))  # ids 262 to 267, so that nothing is ever resized
SPECIAL_TOKENS = (UNK_TOKEN, BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, INSTRUCTION_TOKEN, END_INSTRUCTION_TOKEN, *SPARE_TOKENS)
RESERVED_TOKENS = (*SPECIAL_TOKENS[:4], *BYTE_TOKENS, *SPECIAL_TOKENS[4:])
NUM_RESERVED_TOKENS = len(RESERVED_TOKENS)  # 268

SPACE_MARK = "▁"  # U+2581, as in SentencePiece
_ACCENTED = "áàâãçéêíóôõúü"  # Acordo Ortográfico de 1990, plus the ü of foreign names and of texts before it
DIGITS = "0123456789"
ALWAYS_IN_ALPHABET = frozenset(
    SPACE_MARK + DIGITS + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + _ACCENTED + _ACCENTED.upper()
)


# Articles, prepositions and their contractions, pronouns, conjunctions, common adverbs, quantifiers and auxiliaries.
_WORDS = """
o a os as um uma uns umas de em por para com sem sob sobre entre até desde contra após ante perante segundo conforme
durante mediante do da dos das no na nos nas ao à aos às pelo pela pelos pelas dum duma num numa nuns numas
este esta estes estas esse essa esses essas aquele aquela aqueles aquelas isto isso aquilo
deste desta destes destas desse dessa desses dessas daquele daquela daqueles daquelas disto disso daquilo
neste nesta nestes nestas nesse nessa nesses nessas naquele naquela naqueles naquelas nisto nisso naquilo àquele àquela
eu tu ele ela nós eles elas você vocês me te se lhe lhes vos mim ti si comigo consigo dele dela deles delas
nele nela neles nelas meu minha meus minhas teu tua seu sua seus suas nosso nossa nossos nossas
que quem qual quais cujo cuja cujos cujas onde quando como quanto quanta quantos quantas
e ou mas nem porém porque pois logo portanto embora enquanto caso
não já só mais menos muito muita muitos muitas pouco tão tanto também ainda sempre nunca bem mal aqui ali lá assim então
depois antes agora todo toda todos todas outro outra outros outras algum alguma alguns algumas nenhum nenhuma cada tudo
nada mesmo mesma mesmos mesmas tal tais
é são era eram foi foram ser sendo sido seja será está estão estava estar ter tem têm tinha há havia
pode podem deve devem vai
""".split()  # noqa: SIM905
FUNCTION_WORDS = tuple(dict.fromkeys([*_WORDS, *(word.capitalize() for word in _WORDS)]))
# A word with more letters than this is no function word: between it and the next one no superword crosses.
LONGEST_FUNCTION_WORD = max(map(len, FUNCTION_WORDS))


def number_entries(vocabulary: list[str]) -> dict[str, int]:
    """Return the id of each entry: its place in the list."""
    return {piece: index for index, piece in enumerate(vocabulary)}


def list_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Return the merges, best first, under which `tokenizers` gives the ids of SentencePiece and llama.cpp.

    Those two join any neighbours whose joined text is a piece, the lowest id first (score = -id), leftmost on ties;
    `tokenizers` joins listed pairs only, in the order of the list. So every split of a piece into two pieces is listed,
    ordered by the id of the piece. Ties between two splits of one piece matter where both fit in `x y z` with
    `xy == yz`: leftmost means that `xy` goes first, so a split whose right part also starts the piece comes first.
    No order can settle this for repetitions (`w ww` against `ww w`), which do not arise there: runs pair from the left.
    Source: merge rules read off the two programs' behaviour; equality is measured by the tests.
    """
    ordinary = set(vocabulary[NUM_RESERVED_TOKENS:])
    merges: list[tuple[str, str]] = []
    for piece in vocabulary[NUM_RESERVED_TOKENS:]:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        legal = [split for split in splits if split[0] in ordinary and split[1] in ordinary]
        merges.extend(sorted(legal, key=lambda split: not piece.startswith(split[1])))
    return merges


def keep_reachable(base: list[str], learnt: list[str], vocab_size: int) -> list[str]:
    """Return `base` and the first learnt pieces that fit, less those that their own text does not encode to.

    Such a piece would be a dead entry. It happens when a piece was built on one that is no ordinary entry: `<s>`
    learnt from HTML is our special token, and so `<s>x` has nothing to be built from.
    """
    from tokenizers import Tokenizer, models

    while True:
        vocabulary = [*base, *learnt][:vocab_size]
        model = Tokenizer(models.BPE(vocab=number_entries(vocabulary), merges=list_merges(vocabulary)))
        pieces = vocabulary[len(base) :]
        encodings = model.encode_batch_fast(pieces, add_special_tokens=False)
        dead = {piece for piece, encoding in zip(pieces, encodings, strict=True) if len(encoding.ids) != 1}
        if not dead:
            return vocabulary
        learnt = [piece for piece in learnt if piece not in dead]


def superword_parts(vocabulary: list[str]) -> list[str]:
    """Return the words (with their mark) that the superwords of a vocabulary are made of, sorted."""
    superwords = (piece for piece in vocabulary[NUM_RESERVED_TOKENS:] if SPACE_MARK in piece[1:])
    return sorted({SPACE_MARK + word for piece in superwords for word in piece.split(SPACE_MARK)[1:]})


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


def is_our_split(content: Any) -> bool:
    """Return whether the `pre_tokenizer` of a `tokenizer.json` is one of the two rules above."""
    from tokenizers import Tokenizer, models

    backend: Tokenizer = Tokenizer(models.BPE())
    ours = []
    for rule in (split_at_spaces, split_around_superwords):
        backend.pre_tokenizer = rule()
        ours.append(json.loads(backend.to_str())["pre_tokenizer"])
    return content in ours


def build_backend(vocabulary: list[str]) -> "Tokenizer":
    """Return the Rust tokenizer of a finished vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    backend = Tokenizer(
        models.BPE(
            vocab=number_entries(vocabulary),
            merges=list_merges(vocabulary),
            unk_token=UNK_TOKEN,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # No rule for digits or superwords here: the vocabulary holds them. Splitting changes no id either, but lets the
    # model keep the ids of words it has seen.
    backend.pre_tokenizer = split_around_superwords() if superword_parts(vocabulary) else split_at_spaces()
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN}:0 $A:0",
        pair=f"{BOS_TOKEN}:0 $A:0 {BOS_TOKEN}:1 $B:1",
        special_tokens=[(BOS_TOKEN, BOS_ID)],
    )
    # The byte tokens are left out on purpose: as added tokens, a typed "<0x41>" would become a byte.
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


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


def frame_tokenizer(tokenizer: Any, start: list[int], separator: list[int], end: list[int]) -> None:
    """Let a tokenizer put tokens around its texts by itself, in place, and when it is saved and read again.

    A classifier reads a text as in its training only if the tokenizer beside it frames the text alike.

    Args:
        tokenizer: of transformers; one without a Rust backend is left as it is.
        start: ids before the text.
        separator: ids between the two texts of a pair.
        end: ids behind the text, or behind the second one.
    """
    from tokenizers import processors

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    first, between, last = ([backend.id_to_token(index) for index in ids] for ids in (start, separator, end))
    known = dict(zip([*first, *between, *last], [*start, *separator, *end], strict=True))
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *between, "$B:1", *last],
        special_tokens=list(known.items()),
    )


def portable_tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json` in the words of transformers 4, which version 5 reads alike."""
    config = dict(config)
    if config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizer"):  # names of transformers 5
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        extra = config.pop("extra_special_tokens")
        known = config.get("additional_special_tokens") or []
        config["additional_special_tokens"] = [*known, *(token for token in extra if token not in known)]
    for name in ("is_local", "local_files_only"):  # how it was read on this machine; transformers sets them anew
        config.pop(name, None)
    return config


def sentencepiece_model(content: dict[str, Any]) -> bytes | None:
    """Return the content of `tokenizer.model` for a `tokenizer.json`, or None when the tokenizer is not one of ours.

    The score of an entry is minus its id, by which SentencePiece and llama.cpp join pieces as `tokenizers` does (see
    `list_merges`). The normaliser is the identity: no space is added in front, none is taken away.

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
    return (
        model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and content["normalizer"] is None
        and is_our_split(content["pre_tokenizer"])
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


def __getattr__(name: str) -> Any:
    """Make the class `PreTrainedTokenizerFast` when it is first asked for: it imports transformers (PEP 562).

    It is found by this module's name when a tokenizer travels to the worker processes of a dataset map.
    """
    if name != "PreTrainedTokenizerFast":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = _portable_class()
    return found


def _portable_class() -> type:
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    class PreTrainedTokenizerFast(TokenizersBackend):
        """The generic fast tokenizer of transformers, unchanged, under its older name.

        `save_pretrained` writes the name of the class as `tokenizer_class`. transformers 5 calls the class
        `TokenizersBackend`, which transformers 4 does not know; both know `PreTrainedTokenizerFast`. Carrying the name
        on the class makes every save right, also those that the Trainer makes by itself in each checkpoint. The folder
        loads without this package: `AutoTokenizer` resolves the name inside transformers.
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

    PreTrainedTokenizerFast.__qualname__ = "PreTrainedTokenizerFast"  # so that pickle finds it by the module
    return PreTrainedTokenizerFast
