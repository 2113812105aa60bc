"""Uploads to the Hugging Face Hub: the only module that writes to the network.

An upload becomes one commit on top of the newest one that was read (`parent_commit`), or none if the Hub holds all of
it already. What the Hub holds is read before each try, so every step may be repeated: a commit whose answer was lost
is found and not made twice, and a second writer cannot come in between. Failures that may pass are retried in one
place, `_call`. Large files go through Xet, or through Git LFS with HF_HUB_DISABLE_XET=1; always by
`create_commit`, since `upload_folder` makes several commits under Xet.

A bucket has no commits: its files come and go one by one. So the record that says what is whole is sent first and last,
and the marker of a checkpoint after its files.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpointing.checkpoints import complete_checkpoints
from ..checks import InputError, RunFailedError, ensure
from .connection import Hub, UnansweredError, call_hub, run_in_thread
from .safety import (
    BUCKET_PREFIX,
    Upload,
    UploadFile,
    check_replacement,
    check_upload,
    claim_file,
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
    """What main, or a bucket, held before an upload.

    Attributes:
        record: of an earlier upload of the same run, or None.
        branches: names of all branches; of a bucket, of its folders.
        private: whether only its owners see the repository.
    """

    record: dict[str, Any] | None
    branches: frozenset[str]
    private: bool

    def entries(self) -> list[dict[str, Any]]:
        """Return what the list of checkpoints says of those whose branches, or folders, are there."""
        found = (self.record or {}).get("checkpoints")
        entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        return [
            entry
            for entry in entries
            if isinstance(entry.get("step"), int)
            and isinstance(entry.get("sha256"), dict)
            and isinstance(place := entry.get("branch", entry.get("folder")), str)
            and place in self.branches
        ]


def check_distinct(entries: list[dict[str, Any]]) -> None:
    """Refuse checkpoints of different steps with the same weights: one of them is not what its name says.

    Two branches of Pythia served the same weights for a long time (EleutherAI/pythia, issue 205).

    Raises:
        InputError: there are such; the message names both and the hash.
    """
    seen: dict[str, int] = {}
    for entry in entries:
        hashes = json.dumps(entry["sha256"], sort_keys=True)
        if hashes in seen:
            name, digest = next(iter(entry["sha256"].items()))
            raise InputError(
                f"checkpoints: steps {seen[hashes]} and {entry['step']} have the same weights ({name}, sha256 "
                f"{digest}), so one of the branches would not hold what its name says. Delete the wrong one."
            )
        seen[hashes] = entry["step"]


def merge_entries(*lists: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of several lists by step; a later list wins."""
    by_step = {entry["step"]: entry for entries in lists for entry in entries}
    return [by_step[step] for step in sorted(by_step)]


def kept_entries(run: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of checkpoints that a bucket is to hold on: those that the run keeps, and newer ones.

    What is newer than all that is here was written by the same run elsewhere, such as on a machine that was lost: only
    a run that has got further takes it out.
    """
    steps = {step for step, _ in complete_checkpoints(run)}
    return [entry for entry in entries if entry["step"] in steps or entry["step"] > max(steps, default=-1)]


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

    def look_at_main() -> RepositoryState:
        refs = hub.api.list_repo_refs(upload.repository, repo_type=upload.repo_type)
        head = _read_head(hub, upload, refs)
        record = _read_record(upload, head)
        check_replacement(upload, head.files, record, replace)
        branches = frozenset(branch.name for branch in refs.branches)
        return RepositoryState(record if record and same_identity(upload, record) else None, branches, is_private)

    def look_at_bucket() -> RepositoryState:
        head = _read_bucket(hub, upload.repository)
        record = _read_record(upload, head)
        check_replacement(upload, head.files, record, replace)
        return RepositoryState(record, frozenset(path.split("/")[0] for path in head.files), is_private)

    look = look_at_bucket if upload.repo_type == "bucket" else look_at_main
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
    if upload.repo_type == "bucket":
        return _push_to_bucket(hub, upload, private)
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


def _push_to_bucket(hub: Hub, upload: Upload, private: bool) -> Pushed:
    """Make a bucket hold an upload, and compare the hashes afterwards; see `push`.

    Raises:
        InputError: see `push`; nothing of another run is ever replaced.
        RunFailedError: see `push`.
    """
    check_upload(upload)
    _ensure_repository(hub, upload.repository, "bucket", private)
    where = f"{upload.repository}: {upload.revision}"
    hashes: dict[str, str] = {}
    sent: list[str] = []
    work = partial(_fill_bucket, hub, upload, hashes, sent)
    head = call_hub(f"{where}: sending it", work, upload.repository, hub)
    wrong = [file.path for file in upload.files if not _is_in_bucket(file, head.files.get(file.path), hashes)]
    url = repository_page(upload.repository, "bucket")
    if wrong:
        raise RunFailedError(
            f"{where}: the bucket does not hold what was sent: {wrong[0]} has another hash there. Does somebody else "
            f"write to it? Run the same command again; if it stays so, look at {url}"
        )
    return Pushed(url, changed=bool(sent))


def _fill_bucket(hub: Hub, upload: Upload, hashes: dict[str, str], sent: list[str]) -> Head:
    """Send what a bucket does not hold yet, delete what it is to hold no longer, and return what it holds then.

    Args:
        hub: see `open_hub`.
        upload: see `push`.
        hashes: Xet hash by path of what was hashed before; added to, so that large files are read once.
        sent: paths that were sent or deleted, in any try; added to.
    """
    head = _read_bucket(hub, upload.repository)
    record = _read_record(upload, head)
    check_replacement(upload, head.files, record, replace=False)
    missing = [file for file in upload.files if not _is_in_bucket(file, head.files.get(file.path), hashes)]
    content = [file for file in missing if file.path not in (upload.record, *upload.last)]
    markers = [file for file in missing if file.path in upload.last]
    stale = stale_paths(upload, head.files, record)
    if not missing and not stale:
        return head
    claim = [claim_file(upload, record)] if content or markers or stale else []
    last = [file for file in upload.files if file.path == upload.record]
    for part in (claim, content, markers, stale, last):
        if part == claim and claim and _is_in_bucket(claim[0], head.files.get(claim[0].path), {}):
            continue  # of a try that was broken off
        added = [(file.source, file.path) for file in part if isinstance(file, UploadFile)]
        deleted = [path for path in part if isinstance(path, str)]
        if part:
            sent += [*(path for _, path in added), *deleted]
            run_in_thread(partial(hub.api.batch_bucket_files, upload.repository, add=added, delete=deleted))
    return _read_bucket(hub, upload.repository)


def _read_bucket(hub: Hub, repository: str) -> Head:
    """Return what a bucket holds now: its files (`huggingface_hub.BucketFile`) by path; it has no commits."""
    entries = hub.api.list_bucket_tree(repository, recursive=True)
    return Head("", {entry.path: entry for entry in entries if entry.type == "file"})


def _is_in_bucket(file: UploadFile, remote: Any, hashes: dict[str, str]) -> bool:
    """Return whether a bucket holds this file as it is here; see `_fill_bucket` for `hashes`."""
    if remote is None or remote.size != file.size_bytes:
        return False
    if file.path not in hashes:
        hashes[file.path] = file.xet_hash()
    return bool(remote.xet_hash == hashes[file.path])


def _ensure_repository(hub: Hub, repository: str, repo_type: str, private: bool) -> bool:
    """Make a repository if it is missing; return whether it is private.

    Raises:
        InputError: it is somebody else's, or public although private is wanted, or cannot be made.
        RunFailedError: no good answer in time.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    is_bucket = repo_type == "bucket"
    where = f"to={BUCKET_PREFIX if is_bucket else ''}{repository}"
    owners = {hub.user, *hub.organisations}
    owner = repository.split("/")[0]
    ensure(
        owner in owners,
        f"{where}: {owner} is somebody else. This token is of {hub.user} and may write for: "
        f"{', '.join(sorted(owners))}.",
    )

    def find() -> Any | None:
        try:
            return hub.api.bucket_info(repository) if is_bucket else hub.api.repo_info(repository, repo_type=repo_type)
        except GatedRepoError:  # a RepositoryNotFoundError as well
            raise
        except RepositoryNotFoundError:
            return None
        except HfHubHTTPError as error:  # BucketNotFoundError, which an old client has not
            if is_bucket and error.response.status_code == 404:
                return None
            raise

    info = call_hub(f"{repository}: looking for it", find, repository, hub)
    if info is None:
        create = hub.api.create_bucket if is_bucket else partial(hub.api.create_repo, repo_type=repo_type)
        make = partial(create, repository, private=private, exist_ok=True)
        call_hub(f"{repository}: making it", make, repository, hub)
        return private
    ensure(
        info.private or not private,
        f"{where}: is public, so everybody would see this at once. Say so with --public, or make it private first: "
        f"{repository_page(repository, repo_type)}/settings",
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
    name = f"{upload.repository}: {upload.record}"
    if upload.repo_type == "bucket":
        url = f"{repository_page(upload.repository, 'bucket')}/resolve/{upload.record}"
        where = place = f"{name} of the bucket"
        fix = "Use another bucket."
    else:
        url = hf_hub_url(upload.repository, upload.record, repo_type=upload.repo_type, revision=head.commit)
        where, place = f"{name} of commit {head.commit[:8]}", f"{name} on {upload.revision}"
        fix = "Use another repository."
    response = get_session().get(url, headers=build_hf_headers())
    hf_raise_for_status(response)
    ensure(len(response.content) <= _MOST_RECORD_BYTES, f"{where} is too long to be ours. {fix}")
    try:
        record = json.loads(response.content)
    except ValueError as error:
        raise InputError(f"{where} is no JSON, so it is not ours. {fix}") from error
    is_record = isinstance(record, dict) and "identity" in record and isinstance(record.get("files"), list)
    ensure(is_record, f"{place} is not one that we wrote. {fix}")
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
