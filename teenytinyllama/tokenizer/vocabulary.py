"""The entries of the tokenizer: the reserved ones at fixed ids, the alphabet, and the merges that pieces imply."""

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
