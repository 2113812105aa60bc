"""Input files: the files that a config's inputs stand for, without what is no data; their hashes.

An input is one of:

* a file, a folder (searched for files of the known kinds, without hidden and temporary ones) or a glob;
* `hf://datasets/user/name@COMMIT[/pattern]`: files of a Hub dataset at a 40-digit commit;
* `sample`: the embedded corpus, which is no file.
"""

import fnmatch
import glob
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from ..checks import InputError, ensure
from ..hub_client import hub_errors
from ..manifest import MANIFEST_NAME, sha256_file
from .encodings import say_once
from .readers import SUFFIXES, describe_kinds

SAMPLE = "sample"
_HUB_INPUT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)(?:/(?P<pattern>.+))?$")
# Hidden files, and rests of editors, browsers, copiers and systems; the same of folders.
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
environment.json emissions.json package.json package-lock.json croissant.json
""".split()  # noqa: SIM905
)
_OUR_RECORDS = frozenset({"emissions.csv", "ledger.jsonl", "metrics.jsonl", "samples.jsonl"})  # beside a run.json
_EXPLANATION = re.compile(r"(readme|licen[cs]e|citation)|\.git(attributes|ignore|keep)$")  # not worth a word
_NAMES_SHOWN = 3


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
        before, left_out, given = len(files), LeftOut(), PurePath(text).parts
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
    """Return what a glob stands for; `**` is any depth, and then means files, which their folders would repeat."""
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return [path for path in found if path.is_file()] if "**" in pattern else found


@dataclass
class LeftOut:
    """Files in a folder, or matched by a glob, that are not read."""

    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def takes(self, path: Path, below: PurePath, suffixes: tuple[str, ...] | None = None) -> bool:
        """Note a file that is not to be read, and return whether it is one.

        Args:
            path: of the file.
            below: its path below the folder that was given, each part of which can be hidden.
            suffixes: of the known kinds; None: an unknown kind is not asked for.
        """
        name = path.name.lower()
        if suffixes is not None and _EXPLANATION.match(name) and not name.endswith(suffixes):
            return True
        if is_hidden(below):
            self.hidden.append(str(below))
        elif not path.is_file():
            self.broken.append(str(below))
        elif suffixes is not None and not name.endswith(suffixes):
            self.kinds[path.suffix.lower() or "without an ending"] += 1
        elif is_record(path):
            self.records.append(str(below))
        elif path.stat().st_size == 0:
            self.empty.append(str(below))
        else:
            return False
        return True

    def describe(self, head: str) -> str:
        """Return how many files of which kinds, behind a head; empty if there are none."""
        parts = [
            f"{len(names)} {what.format(s='s' * (len(names) != 1))} ({', '.join(sorted(names)[:_NAMES_SHOWN])}"
            f"{', …' * (len(names) > _NAMES_SHOWN)})"
            for what, names in (
                ("hidden or temporary file{s}", self.hidden),
                ("empty file{s}", self.empty),
                ("record{s} beside data", self.records),
                ("broken link{s}", self.broken),
            )
            if names
        ]
        if self.kinds:
            count = sum(self.kinds.values())
            shown = ", ".join(f"{number} {suffix}" for suffix, number in self.kinds.most_common(8))
            parts.append(f"{count} file{'s' * (count != 1)} of other kinds ({shown})")
        return head + ", ".join(parts) if parts else ""


def is_hidden(below: PurePath) -> bool:
    """Return whether a file is hidden or temporary, or lies in a folder that is, by its path below the one given."""
    return any(_TEMPORARY.match(part.lower()) for part in below.parts)


def is_record(path: Path) -> bool:
    """Return whether a file describes the data beside it, by its name."""
    name = path.name.lower()
    return name in _RECORDS or (name in _OUR_RECORDS and (path.parent / MANIFEST_NAME).exists())


def list_data_files(folder: Path, suffixes: tuple[str, ...], left_out: LeftOut | None = None) -> list[Path]:
    """Return the files of known kinds in a folder and below it, links to folders included, by name.

    Args:
        folder: which may itself be hidden.
        suffixes: of the known kinds.
        left_out: filled with what is not read.
    """
    left_out = LeftOut() if left_out is None else left_out
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
    ensure(match, f"{key}={text}: not of the form hf://datasets/user/name@commit or …@commit/pattern.")
    assert match is not None
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


def hash_files(files: list[SourceFile]) -> dict[str, str]:
    """Return the sha256 of each file by its name; files of one name are told apart by a number."""
    from tqdm import tqdm

    size = sum(file.path.stat().st_size for file in files)
    # disable=None: a bar on a terminal, nothing in a log file.
    with tqdm(total=size, desc="hashing inputs", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        hashes: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for file in files:
            name = file.name
            while name in hashes or not counts[file.name]:
                counts[file.name] += 1
                name = file.name if counts[file.name] == 1 else f"{file.name} ({counts[file.name]})"
            hashes[name] = sha256_file(file.path, bar.update)
        return hashes
