"""Words of a Portuguese text as numbers, for rules that count words and their repetitions.

Published limits of quality rules were measured with spaCy's Portuguese tokenizer (by FineWeb-2, through datatrove). It
cuts a text at white space, then punctuation and symbols off both ends of each piece, and pieces such as `fim.Novo`
inside. The same is done here, but each distinct piece is cut once: `WordTable` keeps its words as numbers, and a text
becomes an array of numbers, on which all rules count.
"""

import functools
import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .word_hashes import Hashes, Places, hash_spans, pieces_of

# A longer piece without white space is one word: it is no language, and cutting it takes the square of its length.
MOST_CUT_CHARACTERS = 1000
# Distinct pieces that a table keeps (about 100 MB); beyond, it starts anew. No result depends on it.
MOST_PIECES = 500_000

_PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
)
# Pieces that stay whole although they end in or hold punctuation (spaCy's lang/pt, MIT licence): abbreviations, single
# letters with a full stop and the commonest faces.
_ABBREVIATIONS = (
    "Adm. Art. art. Av. av. Cia. dom. Dr. dr. e.g. E.g. E.G. e/ou ed. eng. etc. Fund. Gen. Gov. i.e. I.e. I.E. Inc. "
    "Jr. km/h Ltd. Mr. p.m. Ph.D. Rep. Rev. S/A Sen. Sr. sr. Sra. sra. vs. tel. pág. pag. ä. ö. ü. C++ '' \\n \\t "
)
_FACES = (
    ":) :-) :)) :-)) (: (-: =) (= :] :-] [: [-: [= =] :o) :} :-} 8) 8-) ;) ;-) (; (-; :( :-( :(( (((: ): )-: =( >:( "
    ":') :'-) :'( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X "
    ":-X :x :-x :D :-D ;D =D xD XD ^_^ >.< >.> <.< ._. ;_; -_- o_o O_O 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 </3"
)
_WHOLE = frozenset(
    [*_ABBREVIATIONS.split(), *_FACES.split(), *(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyz")]
)
_LONGEST_FACE = max(map(len, _FACES.split()))
_LONGEST_SUFFIX = 4  # characters of `km/h`; a row of full stops is longer
_ONE_MARK = "".join(sorted(set(_PUNCTUATION + _QUOTES) - set("…’")))  # each is cut off alone, whatever is beside it
_ONE_SUFFIX = frozenset(_ONE_MARK)

# What datatrove's Gopher rules take for symbols: a word of these alone counts as none (its utils/text.py, Apache-2.0).
_SYMBOLS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»‼‽⁇⁈⁉" + "".join(
    map(chr, (*range(9), *range(11, 32), *range(127, 160)))
)
# Marks that end a sentence: those of datatrove's TERMINAL_PUNCTUATION that Portuguese text can hold (all others belong
# to scripts such as Ethiopic or Khmer, whose documents are dropped as another language).
SENTENCE_ENDS = frozenset(".?!‼‽⁇⁈⁉。！？．؟۔।॥")


def _ranges(codes: list[int]) -> str:
    """Return ascending code points as ranges of a character class: single ones beyond U+FFFF are tried one by one."""
    starts = [place for place in range(len(codes)) if not place or codes[place] != codes[place - 1] + 1]
    ends = [*(place - 1 for place in starts[1:]), len(codes) - 1]
    return "".join(f"{re.escape(chr(codes[a]))}-{re.escape(chr(codes[b]))}" for a, b in zip(starts, ends, strict=True))


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a prefix, a suffix, a cut inside, and a cut inside a piece with a hyphen."""
    icons = _ranges([code for code in (*range(0x3100), *range(0x1F000, 0x1FB00))
                     if unicodedata.category(chr(code)) == "So"])  # fmt: skip
    letters = [char for char in map(chr, range(0x600)) if char.isalpha() and char not in "ªº"]
    # Hebrew to Indian scripts, Ethiopic, Japanese, Chinese and Korean have no case: they count as both.
    uncased = "\u0590-\u0dff\u1200-\u137f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
    lower = "".join(char for char in letters if char.islower()) + uncased
    upper = "".join(char for char in letters if char.isupper()) + uncased
    letter = r"[^\W\d_ªº¹²³]"
    ends, quotes = re.escape(_PUNCTUATION + _QUOTES), re.escape(_QUOTES)
    currency = re.escape(_CURRENCY)
    units = "|".join(map(re.escape, _UNITS.split()))
    prefix = rf"\w{{1,3}}\$|\.\.+|\+(?![0-9])|[§%=—–{ends}{currency}{icons}]"
    suffix = (
        rf"(?:\.\.+|……|’’|[—–{ends}{icons}]|['’][sS]|(?<=[0-9])(?:[+{currency}]|(?:US|C|A)\$|{units})|(?<=°[FfCcKk])\."
        rf"|(?<=[0-9{lower}%²\-+|{ends}])\.|(?<=[{upper}][{upper}])\.)\Z"
    )
    # No cut is at a letter, a digit or `_`: to ask that first spares most characters all alternatives.
    inside = (
        rf"(?!\w)(?:\.\.+|[…{icons}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])"
        rf"|(?<={letter}),(?={letter})|(?<={letter})(?:---|--|——|[-–—~])(?={letter})"
        rf"|(?<={letter})[:<>=/](?={letter})|(?<=[0-9])[:<>=/](?={letter}))"
    )
    return re.compile(prefix), re.compile(suffix), re.compile(inside), re.compile(rf"\w+-\w+(?:-\w+)*|{inside}")


_PLAIN = re.compile(r"[0-9]{2,}[ºªoa]?|[0-9]+(?:[.,/:][0-9]+)+[ºªoa]?|[^\W\d_ªº¹²³]+(?:-[^\W\d_ªº¹²³]+)+")
_NEVER_CUT = re.compile(r"[0-9]+(?:[.,/:][0-9]+)+[ªº]?|\w+(?:-\w+)+")  # the commonest: 9.610/98, disse-lhe
_ADDRESS = re.compile(
    r"(?:[\w+.-]{2,}://)?(?:\S+@)?(?:[A-Za-z0-9\u00a1-\uffff][\w\u00a1-\uffff-]*\.)+[^\W\d_A-Z]{2,63}(?::\d{2,5})?(?:[/?#]\S*)?"
)


def _cut_inside(piece: str) -> list[str]:
    """Return the words of a piece whose ends are clean: `fim.Novo` is three, `disse-lhe` and an address are one."""
    if piece.isalnum() or _NEVER_CUT.fullmatch(piece) or ("." in piece and _ADDRESS.fullmatch(piece)):
        return [piece]
    words, start = [], 0
    for match in _patterns()[3 if "-" in piece else 2].finditer(piece):
        if match.start() == 0:
            continue
        words += [piece[start : match.start()], match.group()]
        start = match.end()
    return [word for word in [*words, piece[start:]] if word]


def _join_faces(words: list[str]) -> list[str]:
    """Return the words, with neighbours that make a face or an abbreviation as one word: `)` and `:` before a break."""
    joined, place = [], 0
    while place < len(words):
        for size in range(min(_LONGEST_FACE, len(words) - place), 1, -1):
            if (word := "".join(words[place : place + size])) in _WHOLE:
                joined.append(word)
                place += size
                break
        else:
            joined.append(words[place])
            place += 1
    return joined


def _suffix_start(piece: str, start: int, end: int) -> int:
    """Return where the suffix of `piece[start:end]` begins, or `end` if it has none."""
    if start == end:
        return end
    last = piece[end - 1]
    if last in _ONE_SUFFIX:
        return end - 1
    if last.isdecimal() or piece[max(start, end - _LONGEST_SUFFIX - 1) : end].isalpha():
        return end
    if end - start > 1 and piece[end - 2 : end] == "..":
        return start + len(piece[start:end].rstrip("."))
    match = _patterns()[1].search(piece, max(start, end - _LONGEST_SUFFIX), end)
    return match.start() if match else end


def cut_piece(piece: str) -> list[str]:
    """Return the words of a piece of text without white space, as spaCy's Portuguese tokenizer cuts it.

    Args:
        piece: for instance `(Lei`, which is `(` and `Lei`.
    """
    if piece.isalpha() or len(piece) > MOST_CUT_CHARACTERS or piece in _WHOLE:
        return [piece]
    return _cut_plain(piece) or _cut_ends(piece)


def _cut_plain(piece: str) -> list[str] | None:
    """Return the words of a piece that is one word or number between plain marks, as most are; None for another."""
    core = piece.strip(_ONE_MARK)
    has_stop = core[-1:] == "."
    word = core[:-1] if has_stop else core
    if len(word) < 2 or (not word.isalpha() and ("<" in piece or not _PLAIN.fullmatch(word))):
        return None
    if has_stop and not word[-1].isdecimal():
        # A full stop stays with an abbreviation, with a single capital and with an ordinal's sign.
        ends_word = word[-1].islower() or (word[-2:].isupper() and word[-2:].isalpha())
        if core in _WHOLE or word[-1] in "ªº" or not ends_word:
            return None
    start = piece.index(core)
    before, after = list(piece[:start]), list(piece[start + len(core) :])
    before = _join_faces(before) if len(before) > 1 else before
    after = _join_faces(after) if len(after) > 1 else after
    return [*before, word, ".", *after] if has_stop else [*before, word, *after]


def _cut_ends(piece: str) -> list[str]:
    """Return the words of a piece: what stands at its ends one by one, then what its middle is cut into."""
    prefix_pattern = _patterns()[0]
    start, end = 0, len(piece)
    before: list[str] = []
    after: list[str] = []
    while start < end and piece[start:end] not in _WHOLE:
        has_prefix = not piece[start].isalnum() or "$" in piece[start : start + 4]
        prefix = prefix_pattern.match(piece, start, end) if has_prefix else None
        cut = prefix.end() if prefix else start
        if prefix and piece[cut:end] in _WHOLE:
            before.append(piece[start:cut])
            start = cut
            break
        suffix = _suffix_start(piece, cut, end)
        if suffix < end and piece[start:suffix] in _WHOLE:
            after.append(piece[suffix:end])
            end = suffix
            break
        if not prefix and suffix == end:
            break
        if prefix:
            before.append(piece[start:cut])
            start = cut
        if suffix < end:
            after.append(piece[suffix:end])
            end = suffix
    middle = piece[start:end]
    inner = [middle] if middle in _WHOLE else _cut_inside(middle) if middle else []
    words = [*before, *inner, *after[::-1]]
    return _join_faces(words) if len(words) > 1 else words


def hash_texts(texts: list[str]) -> Hashes:
    """Return the (texts,) 64-bit hash of each text, the same in every process; up to 2**20 characters in all."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return hash_spans(_codes("".join(texts)), ends - np.diff(ends, prepend=0), ends) if texts else _NO_HASHES


def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))


def _is_real(word: str) -> bool:
    return word[0] not in _SYMBOLS or bool(word.strip(_SYMBOLS))


_LAST_SPACE = 0x3000
_SPACES = np.array([chr(code).isspace() for code in range(_LAST_SPACE + 2)])
_NO_HASHES = np.zeros(0, np.uint64)


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _spans(text: str) -> tuple[Places, Places, Hashes]:
    """Return where the pieces of a text without white space begin and end, and a hash of each, which is never 0."""
    codes = _codes(text)
    inside = np.zeros(len(codes) + 2, np.int8)
    np.logical_not(_SPACES[np.minimum(codes, _LAST_SPACE + 1)], out=inside[1:-1].view(bool))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[0::2], edges[1::2]
    return starts, ends, np.maximum(hash_spans(codes, starts, ends), np.uint64(1))


class _Column:
    """An array that grows by doubling; `values[:size]` is filled."""

    def __init__(self, dtype: str) -> None:
        self.values: NDArray[Any] = np.zeros(1024, dtype)
        self.size = 0

    def extend(self, values: list[int] | NDArray[Any]) -> None:
        """Put values behind those that are there."""
        size = self.size + len(values)
        if size > len(self.values):
            grown = np.zeros(max(size, 2 * len(self.values)), self.values.dtype)
            grown[: self.size] = self.values[: self.size]
            self.values = grown
        self.values[self.size : size] = values
        self.size = size


class _HashTable:
    """Numbers by 64-bit hashes, many looked up at once: an open-addressed table, a quarter full at most."""

    def __init__(self) -> None:
        self._bits, self.size = 16, 0
        self._keys, self._numbers = np.zeros(1 << self._bits, "<u8"), np.zeros(1 << self._bits, "<i4")

    def find(self, hashes: Hashes) -> NDArray[np.int32]:
        """Return the (hashes,) number of each, -1 for one that is not there."""
        slots = hashes >> np.uint64(64 - self._bits)
        keys, numbers = self._keys[slots], self._numbers[slots]
        other = np.flatnonzero(keys != hashes)
        while len(other):
            absent = self._keys[slots[other]] == 0
            numbers[other[absent]] = -1
            other = other[~absent]
            slots[other] = (slots[other] + np.uint64(1)) & np.uint64((1 << self._bits) - 1)
            numbers[other] = self._numbers[slots[other]]
            other = other[self._keys[slots[other]] != hashes[other]]
        return numbers

    def add(self, hashes: Hashes) -> None:
        """Take different new hashes, none of them 0; their numbers follow those that are there."""
        numbers = np.arange(self.size, self.size + len(hashes), dtype="<i4")
        self.size += len(hashes)
        if 4 * self.size > len(self._keys):
            filled = np.flatnonzero(self._keys)
            hashes, numbers = (np.append(self._keys[filled], hashes), np.append(self._numbers[filled], numbers))
            self._bits = (4 * self.size).bit_length()
            self._keys, self._numbers = np.zeros(1 << self._bits, "<u8"), np.zeros(1 << self._bits, "<i4")
        slots = hashes >> np.uint64(64 - self._bits)
        while len(hashes):
            free = self._keys[slots] == 0
            self._keys[slots[free]] = hashes[free]  # of two for one slot the last one has it
            placed = self._keys[slots] == hashes
            self._numbers[slots[placed]] = numbers[placed]
            hashes, numbers, slots = hashes[~placed], numbers[~placed], slots[~placed]
            slots = (slots + np.uint64(1)) & np.uint64((1 << self._bits) - 1)


class WordTable:
    """The words of all pieces met so far, as numbers.

    Pieces are told apart by 64-bit hashes: of a million, two have the same one with a probability of about 3e-8.

    Args:
        most_pieces: distinct pieces to keep before the table starts anew.
    """

    def __init__(self, most_pieces: int = MOST_PIECES) -> None:
        self.most_pieces = most_pieces
        self._clear()

    def _clear(self) -> None:
        self._pieces = _HashTable()
        self._words: dict[str, int] = {}
        self._ends, self._of_pieces = _Column("<i8"), _Column("<i8")
        self._ends.extend([0])
        self._lengths, self._hashes = _Column("<i8"), _Column("<u8")
        self._letters, self._real = _Column("u1"), _Column("u1")

    def _cut(self, pieces: list[str]) -> None:
        """Cut pieces that are new, and describe those of their words that are new."""
        known = self._words
        counts: list[int] = []
        of_pieces: list[int] = []
        new: list[str] = []
        for piece in pieces:
            words = [piece] if piece.isalpha() else cut_piece(piece)
            counts.append(len(words))
            for word in words:
                number = known.setdefault(word, len(known))
                of_pieces.append(number)
                if number == self._lengths.size + len(new):
                    new.append(word)
        self._ends.extend(self._of_pieces.size + np.cumsum(counts))
        self._of_pieces.extend(of_pieces)
        if new:
            self._lengths.extend(list(map(len, new)))
            self._hashes.extend(hash_texts(new))
            self._letters.extend([word.isalpha() or (not word.isdecimal() and _has_letter(word)) for word in new])
            self._real.extend([word.isalnum() or _is_real(word) for word in new])

    def _numbers_of(self, text: str) -> NDArray[np.int32]:
        """Return the (pieces,) numbers of a text's pieces; those that are new are cut."""
        starts, ends, hashes = _spans(text)
        numbers = self._pieces.find(hashes)
        new = np.flatnonzero(numbers < 0)
        if len(new):
            first: dict[int, int] = {}  # by hash; `setdefault` beats a sort of the few that are new
            own = hashes[new]
            of_new = [first.setdefault(value, len(first)) for value in own.tolist()]
            numbers[new] = np.array(of_new) + self._pieces.size
            self._pieces.add(np.fromiter(first, np.uint64, len(first)))
            spans: list[tuple[int, int]] = []
            for number, start, end in zip(of_new, starts[new].tolist(), ends[new].tolist(), strict=True):
                if number == len(spans):
                    spans.append((start, end))
            self._cut([text[start:end] for start, end in spans])
        return numbers

    def read(self, text: str) -> NDArray[np.int64]:
        """Return the (words,) numbers of a text's words, in their order; they hold until the next `read`."""
        if self._pieces.size > self.most_pieces:
            self._clear()
        numbers = np.concatenate([self._numbers_of(part) for _, part in pieces_of(text)])
        if not len(numbers):
            return np.zeros(0, np.int64)
        first = self._ends.values[numbers]
        counts = self._ends.values[numbers + 1] - first
        ends = np.cumsum(counts)
        places = np.repeat(first - (ends - counts), counts) + np.arange(ends[-1])
        return self._of_pieces.values[places]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the characters of each word."""
        return self._lengths.values

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Return a 64-bit hash of each word."""
        return self._hashes.values

    @property
    def letters(self) -> NDArray[np.uint8]:
        """Return 1 for each word with a letter."""
        return self._letters.values

    @property
    def real(self) -> NDArray[np.uint8]:
        """Return 1 for each word that is more than symbols."""
        return self._real.values
