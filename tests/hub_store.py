"""The repositories of the test Hub as plain directories and JSON files.

    folder/models/<owner>/<name>/<revision>/...          the files of one commit
    folder/models/<owner>/<name>/.hub/settings.json      private, gated, branches, tags
    folder/models/<owner>/<name>/.hub/commits/<id>.json  parents, message, and the list of files
    folder/models/<owner>/<name>/.hub/lfs/<sha256>       the content of LFS files

and the same under `datasets`, `spaces` and `buckets`. A repository without `.hub` was written by hand: each of its folders is a
branch whose commit is a hash of its files or, when the name is 40 hexadecimal digits, a commit. Such a tree is read again
at each request until something is written to the repository; then `.hub` is made and holds from there on. Files that a
commit did not change are hard links to those of its parent.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hub_files import FileEntry, entry_of, git_attributes, git_oid

COMMIT = re.compile(r"[0-9a-f]{40}")
ID = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*")
KINDS = ("models", "datasets", "spaces", "buckets")
# Commits are a second apart from a fixed date, so that the same writes give the same ids.
FIRST_DATE = datetime(2024, 1, 30, 12)


@dataclass(frozen=True)
class Commit:
    """One commit; `folder` is the name of the directory that holds its files."""

    oid: str
    parents: list[str]
    title: str
    message: str
    author: str
    date: str
    folder: str
    files: dict[str, FileEntry] = field(repr=False)


@dataclass
class Repository:
    """One repository: its settings, refs and commits. `save` writes what was changed."""

    kind: str
    id: str
    folder: Path
    private: bool = False
    gated: str | bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict, repr=False)

    @property
    def owner(self) -> str:
        """The user or organisation that the repository belongs to."""
        return self.id.split("/")[0]

    @property
    def lfs_folder(self) -> Path:
        """Where the contents of its LFS files are, named by their sha256."""
        return self.folder / ".hub" / "lfs"

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag or a commit id."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def history(self, revision: str) -> list[Commit]:
        """Return the commits that lead to a revision, newest first."""
        commit, found = self.find(revision), []
        while commit:
            found.append(commit)
            commit = self.commits[commit.parents[0]] if commit.parents else None
        return found

    def path_of(self, commit: Commit, name: str) -> Path:
        """Return where the content of a file of a commit is."""
        return self.folder / commit.folder / name

    def lfs_path(self, sha256: str) -> Path | None:
        """Return where an LFS content is: uploaded, or put there by hand; None if the repository does not have it."""
        if (self.lfs_folder / sha256).is_file():
            return self.lfs_folder / sha256
        found = (
            self.path_of(commit, name)
            for commit in self.commits.values()
            for name, entry in commit.files.items()
            if entry.sha256 == sha256
        )
        return next(found, None)

    def keep_lfs(self, content: bytes) -> str:
        """Put a content into the LFS store and return its sha256."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.lfs_folder.mkdir(parents=True, exist_ok=True)
        (self.lfs_folder / f"{sha256}.new").write_bytes(content)
        (self.lfs_folder / f"{sha256}.new").replace(self.lfs_folder / sha256)
        return sha256

    def save(self) -> None:
        """Write settings, refs and those commits that are not on disk yet."""
        hub = self.folder / ".hub"
        (hub / "commits").mkdir(parents=True, exist_ok=True)
        for oid, commit in self.commits.items():
            if not (hub / "commits" / f"{oid}.json").exists():
                _write_json(hub / "commits" / f"{oid}.json", asdict(commit))
        names = ("private", "gated", "branches", "tags", "sdk")
        _write_json(hub / "settings.json", {name: getattr(self, name) for name in names})

    def commit(
        self, branch: str, changes: Mapping[str, bytes | str | None], title: str, author: str, message: str = ""
    ) -> Commit:
        """Add a commit to a branch (which is made if there is none, as a branch of nothing) and return it.

        Args:
            branch: its name.
            changes: path -> content, the sha256 of an LFS file that is in the store, or None to delete the path.
            title: the first line of the message.
            author: who commits.
            message: the rest of the message.
        """
        parent = self.commits[self.branches[branch]] if branch in self.branches else None
        date = (FIRST_DATE + timedelta(seconds=len(self.commits))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        building = self.folder / ".hub" / "building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        files = self._copy_tree(parent, building, leave_out=set(changes))
        for name, change in changes.items():
            if change is not None:
                files[name] = self._place(building / name, name, change)
        lines = [f"{name} {entry.oid}" for name, entry in sorted(files.items())]
        parents = [parent.oid] if parent else []
        identity = "\n".join([*parents, title, message, author, date, *lines])
        oid = hashlib.sha1(identity.encode()).hexdigest()
        # The same change made to two branches is one commit.
        if oid not in self.commits:
            os.replace(building, self.folder / oid)
            self.commits[oid] = Commit(oid, parents, title, message, author, date, oid, dict(sorted(files.items())))
        self.branches[branch] = oid
        self.save()
        return self.commits[oid]

    def _copy_tree(self, parent: Commit | None, target: Path, leave_out: set[str]) -> dict[str, FileEntry]:
        """Link the files of the parent into `target` and return their entries."""
        kept = {name: entry for name, entry in (parent.files if parent else {}).items() if name not in leave_out}
        for name in kept:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.path_of(parent, name), target / name)
        return kept

    def _place(self, target: Path, name: str, content: bytes | str) -> FileEntry:
        """Write a file, or link it from the LFS store, and return its entry."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
            return FileEntry(git_oid(content), len(content))
        stored = self.lfs_path(content)
        assert stored is not None
        os.link(stored, target)
        return FileEntry.of_lfs(content, target.stat().st_size)


class Store:
    """All repositories under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, kind: str, id: str) -> Repository | None:
        """Return a repository, None if there is none of that name."""
        if kind not in KINDS or not ID.fullmatch(id):
            return None
        folder = self.folder / kind / id
        settings = folder / ".hub" / "settings.json"
        if settings.is_file():
            repository = Repository(kind, id, folder, **json.loads(settings.read_text(encoding="utf-8")))
            for path in (folder / ".hub" / "commits").glob("*.json"):
                fields = json.loads(path.read_text(encoding="utf-8"))
                fields["files"] = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
                repository.commits[path.stem] = Commit(**fields)
            return repository
        return _read_by_hand(kind, id, folder) if folder.is_dir() else None

    def all(self, kind: str) -> Iterator[Repository]:
        """Yield all repositories of a kind, by name."""
        for folder in sorted((self.folder / kind).glob("*/*")):
            repository = self.find(kind, f"{folder.parent.name}/{folder.name}")
            if repository:
                yield repository

    def create(self, kind: str, id: str, author: str, **settings: Any) -> Repository:
        """Create a repository with the first commit that the Hub makes: the list of LFS suffixes; a bucket is empty."""
        repository = Repository(kind, id, self.folder / kind / id, **settings)
        repository.folder.mkdir(parents=True)
        first = {} if kind == "buckets" else {".gitattributes": git_attributes()}
        repository.commit("main", first, "initial commit", author)
        return repository

    def delete(self, repository: Repository) -> None:
        """Remove a repository for good."""
        shutil.rmtree(repository.folder)

    def move(self, repository: Repository, id: str) -> None:
        """Give a repository another name."""
        target = self.folder / repository.kind / id
        target.parent.mkdir(parents=True, exist_ok=True)
        repository.folder.rename(target)


def _read_by_hand(kind: str, id: str, folder: Path) -> Repository:
    """Return a repository that consists of nothing but folders, one a revision."""
    repository = Repository(kind, id, folder)
    for revision in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != ".hub"):
        paths = [path for path in sorted(revision.rglob("*")) if path.is_file()]
        files = {name: entry_of(path) for path in paths for name in [path.relative_to(revision).as_posix()]}
        lines = "\n".join(f"{name} {entry.oid}" for name, entry in files.items())
        is_commit = COMMIT.fullmatch(revision.name)
        oid = revision.name if is_commit else hashlib.sha1(lines.encode()).hexdigest()
        date = FIRST_DATE.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        repository.commits[oid] = Commit(oid, [], "written by hand", "", repository.owner, date, revision.name, files)
        if not is_commit:
            repository.branches[unquote(revision.name)] = oid  # a slash in a branch's name is %2F in the folder's
    return repository


def _write_json(path: Path, value: object) -> None:
    """Write a JSON file so that it is either the old one or the new one."""
    path.with_suffix(".new").write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    path.with_suffix(".new").replace(path)
