"""Input files: the files that a config's inputs stand for, without what is no data; their hashes and encodings.

An input is one of:

* a file, a folder (searched for files of the known kinds, without hidden and temporary ones) or a glob;
* `hf://datasets/user/name@COMMIT[/pattern]`: files of a Hub dataset at a 40-digit commit;
* `sample`: the embedded corpus, which is no file.

The encoding of a text file (any but parquet) is given or recognised; the user is told if it is not UTF-8.
"""

import codecs
import contextlib
import fnmatch
import glob
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

from ..checks import InputError, counted, ensure, hub_errors, is_main_process
from ..progress import progress, say, tell_read
from ..stage_folder import EMISSIONS_NAME, LEDGER_NAME, MANIFEST_NAME, METRICS_NAME, SAMPLES_NAME, sha256_file

_COMPRESSED = (".gz", ".zst")


def _with_compressed(*kinds: str) -> tuple[str, ...]:
    return tuple(kind + packed for kind in kinds for packed in ("", *_COMPRESSED))


RECORD_SUFFIXES = (".parquet", *_with_compressed(".jsonl", ".json", ".ndjson"))  # of rows with several columns
TABLE_SUFFIXES = _with_compressed(".csv", ".tsv")  # of rows whose cells are all text
SUFFIXES = (*RECORD_SUFFIXES, *TABLE_SUFFIXES, *_with_compressed(".txt"))  # of texts


def describe_kinds(suffixes: tuple[str, ...]) -> str:
    """Return how files of the known kinds end, for a message."""
    plain = [suffix for suffix in suffixes if suffix in SUFFIXES and not suffix.endswith(_COMPRESSED)]
    packed = " (all but parquet also as .gz or .zst)" if any(suffix.endswith(".zst") for suffix in suffixes) else ""
    return ", ".join([", ".join(plain) + packed, *(suffix for suffix in suffixes if suffix not in SUFFIXES)])


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
    """Print what a user should know of the data, once in a run: files are read several times, and by all ranks."""
    if key not in _SAID and is_main_process():
        say(message)
    _SAID.add(key)


def kind_of(path: Path) -> str:
    """Return how the name of a file ends, without the ending of compression."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return ".jsonl" if name.endswith(".ndjson") else Path(name).suffix


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _recognise(parts: Iterator[bytes]) -> str:
    """Return the encoding of a text: by its mark, by the zeros of UTF-16 and UTF-32, UTF-8, or windows-1252.

    Every text that is valid UTF-8 is UTF-8. Another one is windows-1252 if at least nine in ten of its bytes beyond
    ASCII are letters and signs of Portuguese and its neighbours there, none is undefined, none is a control character
    (binary files), and at most one in fifty belongs to a letter or sign in UTF-8 (files of mixed origin). A text of
    which nothing fits counts as UTF-8, and is refused where it is read.

    Args:
        parts: of the text, in order; read as far as needed.
    """
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


class _HashedFile:
    """An open file whose bytes are hashed while they are read."""

    closed = False

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object] | None) -> None:
        self.digest, self._file, self._on_bytes = hashlib.sha256(), file, on_bytes

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes of the file."""
        part = self._file.read(size)
        self.digest.update(part)
        if self._on_bytes:
            self._on_bytes(len(part))
        return part

    def close(self) -> None:
        """Leave the file open, which pyarrow would close after the compressed text: more bytes may follow."""


def _parts(path: Path, file: Any) -> Iterator[bytes]:
    """Yield the bytes of an open file in parts, decompressed."""
    if path.name.lower().endswith(_COMPRESSED):
        import pyarrow

        codec = "gzip" if path.name.lower().endswith(".gz") else "zstd"
        file = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), codec)
    while part := file.read(_PART_BYTES):
        yield part


_ENCODINGS: dict[tuple[Path, int, int], str] = {}  # of text files, by path, size and time of change


def _scan(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Return the sha256 of a text file, and keep its encoding; the file is read once for both.

    Raises:
        OSError: it cannot be read, or is a damaged compressed file.
    """
    status = path.stat()
    with path.open("rb") as opened:
        file = _HashedFile(opened, on_bytes)
        _ENCODINGS[path, status.st_size, status.st_mtime_ns] = _recognise(_parts(path, file))
        while file.read(_PART_BYTES):  # what was not needed to recognise the encoding
            pass
        return file.digest.hexdigest()


def encoding_of(key: str, path: Path) -> str:
    """Return the encoding of a text file, recognised by its bytes; the user is told of one other than UTF-8.

    Raises:
        InputError: the file cannot be read; it names the config key.
    """
    status = path.stat()
    seen = path, status.st_size, status.st_mtime_ns
    try:
        if seen not in _ENCODINGS:
            _scan(path)
    except OSError as error:
        raise _unreadable(key, path, error) from error
    encoding = _ENCODINGS[seen]
    if encoding != "utf-8":
        shown = "windows-1252" if encoding == "cp1252" else encoding.upper()
        say_once(
            ("encoding", str(path.parent), encoding),
            f"{key}={path}: is not UTF-8 and is read as {shown}, as are files like it.",
        )
    return encoding


def read_bytes(key: str, path: Path) -> Iterator[bytes]:
    """Yield the bytes of a plain or compressed file in parts.

    Raises:
        InputError: the file cannot be read; it names the config key.
    """
    try:
        with path.open("rb") as file:
            before = 0
            for part in _parts(path, file):
                if not file.closed:  # as pyarrow does at the end of what was packed
                    tell_read(-before + (before := file.tell()))
                yield part
    except OSError as error:
        raise _unreadable(key, path, error) from error


def _unreadable(key: str, path: Path, error: OSError) -> InputError:
    what = "damaged compressed file" if path.name.lower().endswith(_COMPRESSED) else "cannot be read"
    return InputError(f"{key}={path}: {what} ({first_line(error)}).")


SAMPLE = "sample"
_HUB_INPUT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)(?:/(?P<pattern>.+))?$")
# Names of hidden files and folders, and of temporary ones of editors, browsers, copiers and systems.
_TEMPORARY_NAMES = r"""
.* ~$* #*# *~ *.tmp *.temp *.part *.partial *.crdownload *.download *.swp *.bak *.lock thumbs.db desktop.ini __macosx
__pycache__ $recycle.bin system?volume?information lost+found _temporary _delta_log _success _metadata _common_metadata
""".split()  # noqa: SIM905
_TEMPORARY = re.compile("|".join(map(fnmatch.translate, _TEMPORARY_NAMES)))
# What other programs write beside data to describe it; rows under such a name have to be given by their path.
_RECORDS = frozenset(
    """
run.json audit.json config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json
added_tokens.json generation_config.json dataset_info.json dataset_infos.json dataset_dict.json state.json
environment.json emissions.json bad_steps.jsonl package.json package-lock.json croissant.json
""".split()  # noqa: SIM905
)
_OUR_RECORDS = frozenset({EMISSIONS_NAME, LEDGER_NAME, METRICS_NAME, SAMPLES_NAME})  # beside a run.json
_EXPLANATION = re.compile(r"(readme|licen[cs]e|citation)|\.git(attributes|ignore|keep)$")  # left out without a message


@dataclass(frozen=True)
class SourceFile:
    """A file to read, under the name that a user would know it by."""

    name: str
    path: Path


def resolve_files(key: str, inputs: list[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[SourceFile]:
    """Return the files that the inputs stand for, in a fixed order; `sample` has none.

    Args:
        key: the config key that names them, for the message.
        inputs: files, folders, globs, Hub datasets; see the module.
        suffixes: how files of the wanted kinds end.

    Raises:
        InputError: an input matches nothing, is of an unknown kind, or is a Hub dataset without a pinned commit.
    """
    files: list[SourceFile] = []
    for text in inputs:
        if text == SAMPLE:
            continue
        if text.startswith("hf://"):
            files += _hub_files(key, text, suffixes)
            continue
        is_named = Path(text).exists()
        paths = [Path(text)] if is_named else _matches(text)
        ensure(
            paths,
            f"{key}={text}: no such file or folder, and no file matches it as a glob. A Hub dataset is written "
            "hf://datasets/user/name@commit.",
        )
        before, left_out, given = len(files), _LeftOut(), PurePath(text).parts
        for path in paths:
            # What a user names is read; of what a glob found, hidden and temporary files are left out.
            below = PurePath(*(part for part in path.parts if part not in given))
            if path.is_dir() and (is_named or not is_hidden(below)):
                found = list_data_files(path, suffixes, left_out)
                files += [SourceFile(str(file.relative_to(path.parent)), file) for file in found]
            elif is_named or not left_out.takes(path, below):
                ensure(
                    path.is_file() and path.name.lower().endswith(suffixes),
                    f"{key}={path}: unknown kind of file. Known are {describe_kinds(suffixes)}.",
                )
                files.append(SourceFile(path.name, path))
        ensure(
            len(files) > before,
            f"{key}={text}: the folder holds no {describe_kinds(suffixes)} file to read"
            f"{left_out.describe('; left out are ')}.",
        )
        if said := left_out.describe(f"{key}={text}: left out "):
            say_once(("left out", said), said)
    return files


def _matches(pattern: str) -> list[Path]:
    """Return what a glob matches; with `**`, which matches at any depth, files alone: folders would repeat them."""
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return [path for path in found if path.is_file()] if "**" in pattern else found


_HIDDEN, _EMPTY, _RECORD, _BROKEN = "hidden or temporary file", "empty file", "record", "broken link"


class _LeftOut:
    """Files in a folder, or matched by a glob, that are not read."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {reason: [] for reason in (_HIDDEN, _EMPTY, _RECORD, _BROKEN)}
        self.kinds: Counter[str] = Counter()

    def takes(self, path: Path, below: PurePath, suffixes: tuple[str, ...] | None = None) -> bool:
        """Note a file that is not to be read, and return whether it is one.

        Args:
            path: of the file.
            below: its path below the folder that was given, each part of which can be hidden.
            suffixes: of the known kinds; None: an unknown kind is not asked for.
        """
        name = path.name.lower()
        is_unknown = suffixes is not None and not name.endswith(suffixes)
        if is_unknown and _EXPLANATION.match(name):
            return True
        if is_hidden(below):
            self.names[_HIDDEN].append(str(below))
        elif not path.is_file():
            self.names[_BROKEN].append(str(below))
        elif is_unknown:
            self.kinds[path.suffix.lower() or "without an ending"] += 1
        elif name in _RECORDS or (name in _OUR_RECORDS and (path.parent / MANIFEST_NAME).exists()):
            self.names[_RECORD].append(str(below))
        elif path.stat().st_size == 0:
            self.names[_EMPTY].append(str(below))
        else:
            return False
        return True

    def describe(self, head: str) -> str:
        """Return how many files of which kinds, behind a head; empty if there are none."""
        parts = []
        for reason, names in self.names.items():
            if names:
                shown = ", ".join(sorted(names)[:3]) + ", …" * (len(names) > 3)
                what = counted(len(names), reason) + " beside data" * (reason == _RECORD)
                parts.append(f"{what} ({shown})")
        if self.kinds:
            shown = ", ".join(f"{number} {suffix}" for suffix, number in self.kinds.most_common(8))
            shown += "; save their texts as .txt" * bool(self.kinds.keys() & {".docx", ".doc", ".odt", ".pdf", ".rtf"})
            parts.append(f"{counted(self.kinds.total(), 'file')} of other kinds ({shown})")
        return head + ", ".join(parts) if parts else ""


def is_hidden(below: PurePath) -> bool:
    """Return whether a file is hidden or temporary, or lies in a folder that is, by its path below the one given."""
    return any(_TEMPORARY.match(part.lower()) for part in below.parts)


def list_data_files(folder: Path, suffixes: tuple[str, ...], left_out: _LeftOut | None = None) -> list[Path]:
    """Return the files of known kinds in a folder and below it, links to folders included, by name.

    Args:
        folder: which may itself be hidden.
        suffixes: of the known kinds.
        left_out: filled with what is not read.
    """
    left_out = _LeftOut() if left_out is None else left_out
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()  # the same on every machine
        paths = [Path(place) / name for name in names]
        found += [path for path in paths if not left_out.takes(path, path.relative_to(folder), suffixes)]
    return sorted(found)


def hub_datasets(inputs: list[str]) -> list[str]:
    """Return the Hub datasets among the inputs of a stage, without commits and patterns."""
    return sorted({match["repo"] for text in inputs if (match := _HUB_INPUT.match(text))})


def _hub_files(key: str, text: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Download the text files of a Hub dataset at its pinned commit, one by one.

    A whole-snapshot download answers a server error with whatever lies in the cache; per-file downloads fail.
    """
    match = _HUB_INPUT.match(text)
    if match is None:
        raise InputError(f"{key}={text}: not of the form hf://datasets/user/name@commit or …@commit/pattern.")
    repo, revision, pattern = match["repo"], match["revision"], match["pattern"] or "*"
    ensure(
        re.fullmatch(r"[0-9a-f]{40}", revision),
        f"{key}={text}: {revision!r} can move. Pin the 40-digit commit that the dataset's page shows under "
        "'Files and versions'.",
    )
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
        wanted = [
            name
            for name in sorted(names)
            if name.lower().endswith(suffixes)
            and fnmatch.fnmatch(name, pattern)
            and not is_hidden(PurePath(name))
            and PurePath(name).name.lower() not in _RECORDS
        ]
        ensure(wanted, f"{key}={text}: no {describe_kinds(suffixes)} file there matches {pattern!r}.")
        return [
            SourceFile(f"{repo}/{name}", Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision)))
            for name in wanted
        ]
    except hub_errors() as error:
        raise InputError(
            f"{key}={text}: could not be read from the Hub: {type(error).__name__}: {str(error).splitlines()[0]} "
            "Check the name, the commit, `hf auth login` for a private dataset, and the network."
        ) from error


def hash_files(files: list[SourceFile], recognise: bool = True) -> dict[str, str]:
    """Return the sha256 of each file by its name; files of one name are told apart by a number.

    With `recognise`, the encodings of text files are found in the same reading, for whoever reads them next.
    """
    with progress(None, "hashing inputs", "B", total=sum(file.path.stat().st_size for file in files)) as bar:
        hashes, counts = dict[str, str](), Counter[str]()
        for file in files:
            name = file.name
            while name in hashes or not counts[file.name]:
                counts[file.name] += 1
                name = file.name if counts[file.name] == 1 else f"{file.name} ({counts[file.name]})"
            hashes[name] = _hash(file.path, bar.update, recognise and kind_of(file.path) != ".parquet")
        return hashes


def _hash(path: Path, on_bytes: Callable[[int], object], recognise: bool) -> str:
    if recognise:
        with contextlib.suppress(OSError):  # a damaged compressed file is refused where its rows are read
            return _scan(path, on_bytes)
    return sha256_file(path, on_bytes)
