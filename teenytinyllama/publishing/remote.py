"""What a revision of a repository holds, and what of it an upload may replace. Only reads the network."""

import json
import re
from dataclasses import dataclass
from typing import Any

from ..checks import InputError, ensure
from .safety import Upload, UploadFile

# What a repository may hold before we have put anything there: made with it, or written on its page.
_HARMLESS = re.compile(r"\.gitattributes|\.gitignore|README\.md|LICENSE(\.\w+)?", re.IGNORECASE)
_MOST_RECORD_BYTES = 20_000_000


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: git's id of it and, for a large file (LFS), the sha256 of its content."""

    blob_id: str
    sha256: str | None


@dataclass(frozen=True)
class Head:
    """The newest commit of a revision and its files by path."""

    commit: str
    files: dict[str, RemoteFile]


def read_head(api: Any, repository: str, repo_type: str, revision: str) -> Head:
    """Return what a branch holds now; the files are those of the commit, whoever writes meanwhile."""
    refs = api.list_repo_refs(repository, repo_type=repo_type)
    commit = next((branch.target_commit for branch in refs.branches if branch.name == revision), None)
    ensure(commit, f"revision={revision}: {repository} has no such branch.")
    entries = api.list_repo_tree(repository, recursive=True, revision=commit, repo_type=repo_type)
    files = {
        entry.path: RemoteFile(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if hasattr(entry, "blob_id")
    }
    return Head(str(commit), files)


def first_commit(api: Any, repository: str, repo_type: str) -> str:
    """Return the oldest commit of main, which holds nothing of ours."""
    return str(api.list_repo_commits(repository, repo_type=repo_type)[-1].commit_id)


def read_remote_json(repository: str, repo_type: str, commit: str, path: str) -> Any:
    """Return a JSON file of a repository.

    Raises:
        InputError: it is no JSON, or far too long.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repository, path, repo_type=repo_type, revision=commit)
    response = get_session().get(url, headers=build_hf_headers())
    hf_raise_for_status(response)
    where = f"{repository}: {path} of commit {commit[:8]}"
    ensure(len(response.content) <= _MOST_RECORD_BYTES, f"{where} is too long to be ours. Use another repository.")
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise InputError(f"{where} is no JSON, so it is not ours. Use another repository.") from error


def same_content(file: UploadFile, remote: RemoteFile | None, hashes: dict[str, str]) -> bool:
    """Return whether the Hub holds this file as it is here.

    Args:
        file: the local one.
        remote: the one at its path, if any.
        hashes: sha256 by path, of what was hashed before; added to, so that large files are read once.
    """
    if remote is None:
        return False
    if remote.sha256 is None:
        return remote.blob_id == file.blob_id()
    if file.path not in hashes:
        hashes[file.path] = file.sha256()
    return remote.sha256 == hashes[file.path]


def read_record(upload: Upload, head: Head) -> dict[str, Any] | None:
    """Return the record of an earlier upload that the revision holds (see `Upload.record`), or None."""
    if upload.record is None or upload.record not in head.files:
        return None
    record = read_remote_json(upload.repository, upload.repo_type, head.commit, upload.record)
    is_ours = isinstance(record, dict) and "identity" in record and isinstance(record.get("files"), list)
    ensure(
        is_ours,
        f"{upload.repository}: {upload.record} on {upload.revision} is not one that we wrote. Use another repository.",
    )
    return dict(record)


def check_replacement(upload: Upload, head: Head, record: dict[str, Any] | None, replace: bool) -> None:
    """Refuse to put an upload in the place of other things.

    Args:
        upload: what is to be put there.
        head: what is there.
        record: of an earlier upload, see `read_record`.
        replace: the user said that another run's files or a stranger's may be replaced.

    Raises:
        InputError: another run's record, or files of which there is no record.
    """
    if upload.record is None or replace:
        return
    where = f"to={upload.repository}: its {upload.revision}"
    fix = "Choose another repository, or say --replace if this one is to take its place (git keeps the old commits)."
    if record is None:
        others = sorted(path for path in head.files if not _HARMLESS.fullmatch(path))
        ensure(not others, f"{where} holds files that were not published from here ({', '.join(others[:3])}). {fix}")
        return
    identity = _own_record(upload)["identity"]
    ensure(
        same_identity(upload, record),
        f"{where} holds another {'run' if upload.repo_type == 'model' else 'data set'}; different: "
        f"{_differences(record['identity'], identity)}. {fix}",
    )


def check_fixed(upload: Upload, head: Head, hashes: dict[str, str]) -> None:
    """Refuse a branch that holds other weights than those that are to be its own for ever.

    Raises:
        InputError: it does; the message has both hashes.
    """
    for file in upload.files:
        remote = head.files.get(file.path)
        if file.path in upload.fixed and remote is not None and not same_content(file, remote, hashes):
            raise InputError(
                f"{upload.repository}: branch {upload.revision} holds other weights: {file.path} has sha256 "
                f"{remote.sha256 or remote.blob_id} there and {file.sha256()} here. {_branch_fix(upload)}"
            )
    if upload.fixed:
        strangers = [path for path in head.files if path.endswith(".safetensors") and path not in upload.fixed]
        ensure(
            not strangers,
            f"{upload.repository}: branch {upload.revision} holds weights that are not of this checkpoint "
            f"({', '.join(strangers[:3])}). {_branch_fix(upload)}",
        )


def _branch_fix(upload: Upload) -> str:
    return (
        "Nothing was written. Publish to another repository, or delete that branch first: "
        f"hf repos branch delete {upload.repository} {upload.revision}"
    )


def stale_paths(upload: Upload, head: Head, record: dict[str, Any] | None) -> list[str]:
    """Return the files that the record of an earlier upload lists and this one's has no longer."""
    if record is None:
        return []
    kept = {*_own_record(upload)["files"], *(file.path for file in upload.files)}
    return sorted(path for path in head.files if path in record["files"] and path not in kept)


def same_identity(upload: Upload, record: dict[str, Any] | None) -> bool:
    """Return whether a record is of the run (or data set) that the upload is of."""
    return record is not None and bool(_own_record(upload)["identity"] == record["identity"])


def _own_record(upload: Upload) -> dict[str, Any]:
    source = next(file.source for file in upload.files if file.path == upload.record)
    assert isinstance(source, bytes)
    return dict(json.loads(source))


def _differences(before: Any, now: Any) -> str:
    """Return which values of two identities differ, at most three."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"identity (there {str(before)[:60]}, here {str(now)[:60]})"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} (there {before.get(name)}, here {now.get(name)})"[:120] for name in names[:3])
