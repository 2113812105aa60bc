"""Encodings: the text of a file that is no parquet, in parts and lines; its encoding given or recognised, and said."""

import codecs
import functools
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ..checks import InputError, ensure, is_main_process

_PART_BYTES = 1 << 20  # read at a time
# Bytes of windows-1252 that Portuguese and its neighbours write: letters, quotation marks, dashes, ordinals, currency.
_WINDOWS_1252 = "áàâãäçéèêëíìîïñóòôõöúùûüýÁÀÂÃÄÇÉÈÊËÍÌÎÏÑÓÒÔÕÖÚÙÛÜÝœßªº°«»“”‘’–—…•·§¿¡´€£©®½¼¾²³\u00a0".encode("cp1252")
# What UTF-8 makes of such letters and signs; in windows-1252 nobody writes these characters side by side.
_UTF_8_SEQUENCE = re.compile(rb"\xc3[\x80-\xbf]|\xc2[\xa0-\xbf]|\xe2\x80[\x90-\xbf]")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with that of UTF-16, so it is asked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_SAID: set[tuple[str, ...]] = set()


def say_once(key: tuple[str, ...], message: str) -> None:
    """Print what a user should know of the data, once in a process: files are read several times, and by all ranks."""
    if key not in _SAID and is_main_process():
        print(message, flush=True)
    _SAID.add(key)


def kind_of(path: Path) -> str:
    """Return how the name of a file ends, without the ending of compression."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return ".jsonl" if name.endswith(".ndjson") else Path(name).suffix


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def not_utf_8(key: str, path: Path, where: str, error: UnicodeDecodeError) -> InputError:
    """Return the refusal of bytes that are not UTF-8, with what to do about them.

    Args:
        key: the config key that names the file.
        path: of the file.
        where: the row, line or byte.
        error: the decoder's.
    """
    advice = ""
    if kind_of(path) != ".parquet":
        quoted = shlex.quote(path.name), shlex.quote(f"utf8-{path.name}")
        advice = (
            " Repair the place or drop it. If all of the file is windows-1252 (old Brazilian files mostly are): "
            + ("encoding: cp1252, or " if key in ("inputs", "validation_inputs") else "")
            + f"iconv -f WINDOWS-1252 -t UTF-8 {quoted[0]} > {quoted[1]}"
        )
    found = f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else "the end"
    return InputError(f"{key}={path}: {where} is not valid UTF-8 ({found}).{advice}")


def ensure_encoding(encoding: str | None) -> None:
    """Check the key `encoding`.

    Raises:
        InputError: Python knows no character encoding of that name.
    """
    if encoding is None:
        return
    fix = "Give one such as utf-8, cp1252 (windows-1252), latin-1, utf-16, cp850 or mac-roman, or leave it out."
    try:
        found = codecs.lookup(encoding)
        is_of_text = found._is_text_encoding and "aã".encode(encoding).decode(encoding) == "aã"  # type: ignore[attr-defined]
    except (LookupError, ValueError) as error:  # also one that has no ã, and a NUL in the name
        raise InputError(f"encoding={encoding}: is no encoding of Portuguese text. {fix}") from error
    ensure(
        is_of_text and "escape" not in found.name and found.name not in ("idna", "punycode"),
        f"encoding={encoding}: is no encoding of Portuguese text. {fix}",
    )


@functools.lru_cache(maxsize=100_000)  # files are read several times
def _recognise(key: str, path: Path, size: int, changed_ns: int) -> str:
    """Return the encoding of a file: by its mark, by the zeros of UTF-16 and UTF-32, UTF-8, or windows-1252.

    Every file that is valid UTF-8 is UTF-8. Another one is windows-1252 if at least nine in ten of its bytes beyond
    ASCII are letters and signs of Portuguese and its neighbours there, none is undefined, none is a control character
    (binary files), and at most one in fifty belongs to a letter or sign in UTF-8 (files of mixed origin). A file of
    which nothing fits counts as UTF-8, and is refused where it is read.
    """
    parts = _bytes(key, path)
    head = next(parts, b"")
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if by_zeros := _by_zeros(head[:4096]):
        return by_zeros
    decoder, is_utf_8 = codecs.getincrementaldecoder("utf-8")(), True
    counts, in_sequences = np.zeros(256, dtype=np.int64), 0
    for part in itertools.chain([head], parts):
        if is_utf_8:
            try:
                decoder.decode(part)
            except UnicodeDecodeError:
                is_utf_8 = False
        counts += np.bincount(np.frombuffer(part, dtype=np.uint8), minlength=256)
        in_sequences += sum(map(len, _UTF_8_SEQUENCE.findall(part)))
    if is_utf_8 and not decoder.getstate()[0]:
        return "utf-8"
    usual = sum(int(counts[byte]) for byte in _WINDOWS_1252 if byte > 127)
    others = int(counts[128:].sum())
    impossible = [*range(9), *range(14, 26), *range(28, 32), 0x81, 0x8D, 0x8F, 0x90, 0x9D]
    fits = usual >= 0.9 * others and in_sequences <= 0.02 * others and not counts[impossible].any()
    return "cp1252" if fits else "utf-8"


def _by_zeros(head: bytes) -> str | None:
    """Return which UTF-16 or UTF-32 without a mark the zeros in the first bytes of a file show, if any."""
    zeros = [head[place::4].count(0) / max(1, len(head[place::4])) for place in range(4)]
    if len(head) < 4 or max(zeros) < 0.5:
        return None
    if min(zeros[2:]) > 0.9:
        return "utf-32-le"
    if min(zeros[:2]) > 0.9:
        return "utf-32-be"
    odd, even = (zeros[1] + zeros[3]) / 2, (zeros[0] + zeros[2]) / 2
    return "utf-16-le" if odd > 0.5 and even < 0.1 else "utf-16-be" if even > 0.5 and odd < 0.1 else None


def _bytes(key: str, path: Path) -> Iterator[bytes]:
    """Yield the bytes of a plain or compressed file in parts."""
    try:
        with _open_bytes(path) as stream:
            while part := stream.read(_PART_BYTES):
                yield part
    except OSError as error:
        what = "damaged compressed file" if path.name.lower().endswith((".gz", ".zst")) else "cannot be read"
        raise InputError(f"{key}={path}: {what} ({first_line(error)}).") from error


def _open_bytes(path: Path) -> IO[bytes]:
    if path.name.lower().endswith((".gz", ".zst")):
        import pyarrow

        codec = "gzip" if path.name.lower().endswith(".gz") else "zstd"
        stream: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), codec)
        return stream
    return path.open("rb")


def _recognised(key: str, path: Path) -> str:
    """Return the encoding of a file by `_recognise`, and say it if it is not UTF-8."""
    status = path.stat()
    encoding = _recognise(key, path, status.st_size, status.st_mtime_ns)
    if encoding != "utf-8":
        shown = "windows-1252" if encoding == "cp1252" else encoding.upper()
        say_once(
            ("encoding", str(path.parent), encoding),
            f"{key}={path}: is not UTF-8 and is read as {shown}, as are files like it.",
        )
    return encoding


def characters(key: str, path: Path, encoding: str | None, by_line: bool = True) -> Iterator[str]:
    """Yield the text of a file in parts, without a byte order mark.

    Args:
        key: the config key that names the file, for the message.
        path: of the file.
        encoding: of the file; None: recognised, and said if it is not UTF-8.
        by_line: name the line of a bad byte, rather than its place in the file.
    """
    name = encoding or _recognised(key, path)
    decoder = codecs.getincrementaldecoder(name)()
    lines = position = 0
    for part in itertools.chain(_bytes(key, path), [b""]):
        held_back = len(decoder.getstate()[0])  # the first bytes of a character that the last part cut
        try:
            text = decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n") + 1
            place = position - held_back + error.start
            where = f"line {line}" if by_line else f"byte {place}"
            if codecs.lookup(name).name == "utf-8":
                raise not_utf_8(key, path, where, error) from error
            raise InputError(
                f"{key}={path}: {where} is not valid {name} ({error.reason}). Repair it, or give its encoding."
            ) from error
        except UnicodeError as error:  # UTF-16 without the mark that its name promises
            raise InputError(f"{key}={path}: is not valid {name} ({error}). Give its encoding, or none.") from error
        text = text.removeprefix("\ufeff") if position == 0 else text
        position += len(part)
        lines += text.count("\n")
        yield text


def lines_of(parts: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in parts, without their line feeds."""
    begun: list[str] = []  # of a line longer than a part: joined once, when it ends
    for part in parts:
        first, *more = part.split("\n")
        begun.append(first)
        if more:
            yield "".join(begun)
            yield from more[:-1]
            begun = [more[-1]]
    if last := "".join(begun):
        yield last
