"""Uploads to the Hugging Face Hub: the only module that writes to the network.

An upload becomes one commit on top of the newest one that was read (`parent_commit`), or none if the Hub holds all of
it already. What the Hub holds is read before each try, so every step may be repeated: a commit whose answer was lost
is found and not made twice, and a second writer cannot come in between. Failures that may pass are retried in one
place, `_call`. Large files go through Xet, or through Git LFS with HF_HUB_DISABLE_XET=1; always by
`create_commit`, since `upload_folder` makes several commits under Xet.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..checks import InputError, RunFailedError, ensure
from .connection import Hub, call_hub, run_in_thread
from .safety import (
    UnansweredError,
    Upload,
    UploadFile,
    check_replacement,
    check_upload,
    repository_page,
    same_identity,
    stale_paths,
)

# Precondition failed, and the Hub's other word for a head that has moved.
_OVERTAKEN_STATUSES = (409, 412)
_UPLOAD_THREADS = 2  # a training may share the line and the processor
_MOST_RECORD_BYTES = 20_000_000


@dataclass(frozen=True)
class Head:
    """The newest commit of a branch, and its files (`huggingface_hub.RepoFile`) by path."""

    commit: str
    files: dict[str, Any]

    def hash_of(self, path: str) -> str:
        """Return the sha256 of a large file, git's id of another one, or that it is missing."""
        file = self.files.get(path)
        return str(file.lfs.sha256 if file.lfs else file.blob_id) if file else "is missing"


@dataclass(frozen=True)
class RepositoryState:
    """What main held before an upload.

    Attributes:
        record: of an earlier upload of the same run, or None.
        branches: names of all branches.
        private: whether only its owners see the repository.
    """

    record: dict[str, Any] | None
    branches: frozenset[str]
    private: bool


@dataclass(frozen=True)
class Pushed:
    """What became of an upload: where to look at it, and whether a commit was made or the Hub held all of it."""

    url: str
    changed: bool


def prepare(hub: Hub, upload: Upload, *, private: bool = True, replace: bool = False) -> RepositoryState:
    """Make the repository of an upload to main if it is missing, and refuse one that may not be written to.

    Raises:
        InputError: see `push`; nothing is changed then.
        RunFailedError: no good answer in time.
    """
    check_upload(upload)
    is_private = _ensure_repository(hub, upload.repository, upload.repo_type, private)

    def look() -> RepositoryState:
        refs = hub.api.list_repo_refs(upload.repository, repo_type=upload.repo_type)
        head = _read_head(hub, upload, refs)
        record = _read_record(upload, head)
        check_replacement(upload, head.files, record, replace)
        branches = frozenset(branch.name for branch in refs.branches)
        return RepositoryState(record if record and same_identity(upload, record) else None, branches, is_private)

    return call_hub(f"{upload.repository}: reading it", look, upload.repository, hub)


def push(hub: Hub, upload: Upload, *, private: bool = True, replace: bool = False) -> Pushed:
    """Make one branch of a repository hold an upload, by one commit or none, and compare the hashes afterwards.

    Repository and branch are made if they are missing. Files of others on that branch stay.

    Args:
        hub: see `open_hub`.
        upload: what and where.
        private: a repository that is made is private; with True, one that is public already is refused.
        replace: go on although the branch holds another run or files that are not ours.

    Raises:
        InputError: the Hub refuses it for good, the repository is somebody else's or public, or its branch holds
            other content that may not be replaced.
        RunFailedError: no good answer in time, or the Hub holds other bytes than were sent.
    """
    check_upload(upload)
    _ensure_repository(hub, upload.repository, upload.repo_type, private)
    where = f"{upload.repository}: {upload.revision}"
    if upload.revision != "main":
        call_hub(f"{where}: making the branch", lambda: _ensure_branch(hub, upload), upload.repository, hub)
    hashes: dict[str, str] = {}
    seen: list[str] = []
    head = call_hub(f"{where}: the commit", lambda: _commit(hub, upload, replace, hashes, seen), upload.repository, hub)
    wrong = [file for file in upload.files if not _is_there(file, head.files.get(file.path), hashes)]
    url = f"{repository_page(upload.repository, upload.repo_type)}/tree/{upload.revision}"
    if wrong:
        raise RunFailedError(
            f"{where}: commit {head.commit} does not hold what was sent: {wrong[0].path} has sha256 "
            f"{wrong[0].sha256()} here and {head.hash_of(wrong[0].path)} there. Run the same command again; if it "
            f"stays so, look at {url}"
        )
    return Pushed(url, changed=seen[0] != head.commit)


def _commit(hub: Hub, upload: Upload, replace: bool, hashes: dict[str, str], seen: list[str]) -> Head:
    """Send what the branch does not hold yet, as one commit on top of its newest, and return what it holds then.

    Args:
        hub: see `open_hub`.
        upload: see `push`.
        replace: see `push`.
        hashes: sha256 by path of what was hashed before; added to, so that large files are read once.
        seen: the newest commits that were found, one a try; added to.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head = _read_head(hub, upload)
    seen.append(head.commit)
    record = _read_record(upload, head)
    check_replacement(upload, head.files, record, replace)
    _check_fixed(upload, head, hashes)
    missing = [file for file in upload.files if not _is_there(file, head.files.get(file.path), hashes)]
    stale = stale_paths(upload, head.files, record)
    if not missing and not stale:
        return head
    additions = [CommitOperationAdd(file.path, file.source) for file in missing]
    for addition in additions:
        if addition.path_in_repo in hashes:  # the client need not read the file once more for it
            addition.upload_info.sha256 = bytes.fromhex(hashes[addition.path_in_repo])
    send = partial(
        hub.api.create_commit,
        upload.repository,
        [*additions, *(CommitOperationDelete(path) for path in stale)],
        commit_message=upload.message,
        repo_type=upload.repo_type,
        revision=upload.revision,
        parent_commit=head.commit,
        num_threads=_UPLOAD_THREADS,
    )
    try:
        run_in_thread(send)
    except OSError as error:
        answer = getattr(error, "response", None)
        if answer is not None and answer.status_code in _OVERTAKEN_STATUSES:
            raise UnansweredError("another commit came first") from error
        raise
    return _read_head(hub, upload)


def _ensure_repository(hub: Hub, repository: str, repo_type: str, private: bool) -> bool:
    """Make a repository if it is missing; return whether it is private.

    Raises:
        InputError: it is somebody else's, or public although private is wanted, or cannot be made.
        RunFailedError: no good answer in time.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    owners = {hub.user, *hub.organisations}
    owner = repository.split("/")[0]
    ensure(
        owner in owners,
        f"to={repository}: {owner} is somebody else. This token is of {hub.user} and may write for: "
        f"{', '.join(sorted(owners))}.",
    )

    def find() -> Any | None:
        try:
            return hub.api.repo_info(repository, repo_type=repo_type)
        except GatedRepoError:  # a RepositoryNotFoundError as well
            raise
        except RepositoryNotFoundError:
            return None

    info = call_hub(f"{repository}: looking for it", find, repository, hub)
    if info is None:
        make = partial(hub.api.create_repo, repository, repo_type=repo_type, private=private, exist_ok=True)
        call_hub(f"{repository}: making it", make, repository, hub)
        return private
    ensure(
        info.private or not private,
        f"to={repository}: is public, so everybody would see this at once. Say so with --public, or make it private "
        f"first: {repository_page(repository, repo_type)}/settings",
    )
    return bool(info.private)


def _ensure_branch(hub: Hub, upload: Upload) -> None:
    """Make the branch if it is missing, from the first commit of main, so that it holds nothing of main's files."""
    name, kind = upload.repository, upload.repo_type
    refs = hub.api.list_repo_refs(name, repo_type=kind)
    if upload.revision not in {branch.name for branch in refs.branches}:
        first = hub.api.list_repo_commits(name, repo_type=kind)[-1].commit_id
        hub.api.create_branch(name, branch=upload.revision, revision=first, repo_type=kind, exist_ok=True)


def _read_head(hub: Hub, upload: Upload, refs: Any = None) -> Head:
    """Return what a branch holds now; the files are those of the commit, whoever writes meanwhile."""
    name, kind = upload.repository, upload.repo_type
    refs = refs or hub.api.list_repo_refs(name, repo_type=kind)
    commit = next((branch.target_commit for branch in refs.branches if branch.name == upload.revision), None)
    ensure(commit, f"revision={upload.revision}: {name} has no such branch.")
    entries = hub.api.list_repo_tree(name, recursive=True, revision=commit, repo_type=kind)
    return Head(str(commit), {entry.path: entry for entry in entries if hasattr(entry, "blob_id")})


def _read_record(upload: Upload, head: Head) -> dict[str, Any] | None:
    """Return the record of an earlier upload that the branch holds (see `Upload.record`), or None.

    Raises:
        InputError: a file of that name that is not ours.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if upload.record is None or upload.record not in head.files:
        return None
    url = hf_hub_url(upload.repository, upload.record, repo_type=upload.repo_type, revision=head.commit)
    response = get_session().get(url, headers=build_hf_headers())
    hf_raise_for_status(response)
    where = f"{upload.repository}: {upload.record} of commit {head.commit[:8]}"
    ensure(len(response.content) <= _MOST_RECORD_BYTES, f"{where} is too long to be ours. Use another repository.")
    try:
        record = json.loads(response.content)
    except ValueError as error:
        raise InputError(f"{where} is no JSON, so it is not ours. Use another repository.") from error
    ensure(
        isinstance(record, dict) and "identity" in record and isinstance(record.get("files"), list),
        f"{upload.repository}: {upload.record} on {upload.revision} is not one that we wrote. Use another repository.",
    )
    return dict(record)


def _is_there(file: UploadFile, remote: Any, hashes: dict[str, str]) -> bool:
    """Return whether the Hub holds this file as it is here; see `_commit` for `hashes`."""
    if remote is None:
        return False
    if remote.lfs is None:
        return bool(remote.blob_id == file.blob_id())
    if file.path not in hashes:
        hashes[file.path] = file.sha256()
    return bool(remote.lfs.sha256 == hashes[file.path])


def _check_fixed(upload: Upload, head: Head, hashes: dict[str, str]) -> None:
    """Refuse a branch that holds other weights than those of its checkpoint, which never change.

    Raises:
        InputError: it does; the message has both hashes.
    """
    where = f"{upload.repository}: branch {upload.revision} holds"
    fix = (
        "Nothing was written. Publish to another repository, or delete that branch first: "
        f"hf repos branch delete {upload.repository} {upload.revision}"
    )
    for file in upload.files:
        remote = head.files.get(file.path)
        if file.path in upload.fixed and remote is not None and not _is_there(file, remote, hashes):
            here, there = file.sha256(), head.hash_of(file.path)
            raise InputError(f"{where} other weights: {file.path} has sha256 {there} there and {here} here. {fix}")
    if upload.fixed:
        strangers = [path for path in head.files if path.endswith(".safetensors") and path not in upload.fixed]
        ensure(not strangers, f"{where} weights that are not of this checkpoint ({', '.join(strangers[:3])}). {fix}")
