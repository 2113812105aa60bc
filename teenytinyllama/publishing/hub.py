"""The only module that writes to the network: an upload becomes one commit, once, checked against what the Hub holds.

Every step may be repeated. What the Hub holds is read before each try, so after a lost answer the commit that was made
is found and none is made twice; `parent_commit` lets no second writer come in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ..checks import RunFailedError, ensure
from .hub_calls import HubClock, HubLimits, Unanswered, bound_client, with_retries
from .refusals import check_token, explain, repository_page
from .remote import (
    Head,
    check_fixed,
    check_replacement,
    first_commit,
    read_head,
    read_record,
    same_content,
    same_identity,
    stale_paths,
)
from .safety import check_upload
from .uploads import Upload

Result = TypeVar("Result")

_UPLOAD_THREADS = 2  # a training may share the line and the processor
# Precondition failed, and the Hub's other word for a head that has moved.
_OVERTAKEN_STATUSES = (409, 412)


@dataclass(frozen=True)
class Hub:
    """A Hub that knows us.

    Attributes:
        api: the client; it finds the token by itself.
        user: who the token belongs to.
        organisations: whose member the user is.
        limits: of waiting.
        clock: of the client.
    """

    api: Any
    user: str
    organisations: frozenset[str]
    limits: HubLimits
    clock: HubClock


@dataclass(frozen=True)
class Pushed:
    """What became of an upload.

    Attributes:
        commit: that holds it, 40 hexadecimal digits.
        url: where to look at it.
        changed: whether a commit was made; False if the Hub held all of it already.
    """

    commit: str
    url: str
    changed: bool


def open_hub(limits: HubLimits | None = None) -> Hub:
    """Return a Hub that accepts this machine's token.

    Raises:
        InputError: offline, no token, or one that is not accepted.
        RunFailedError: no answer.
    """
    from huggingface_hub import HfApi

    check_token()
    limits = limits or HubLimits()
    clock = bound_client(limits)
    api: Any = HfApi()
    known = _call("the token", api.whoami, "", Hub(api, "", frozenset(), limits, clock))
    organisations = frozenset(str(part.get("name")) for part in known.get("orgs") or [])
    return Hub(api, str(known["name"]), organisations, limits, clock)


def _call(what: str, call: Callable[[], Result], repository: str, hub: Hub) -> Result:
    """Return what a repeatable call to the Hub returns; its refusals are explained."""
    try:
        return with_retries(what, call, hub.limits, hub.clock)
    except (OSError, ValueError, RuntimeError) as error:
        refusal = None if isinstance(error, RunFailedError) else explain(error, what, repository, hub.user)
        if refusal is None:
            raise
        raise refusal from error


@dataclass(frozen=True)
class Standing:
    """What main held before an upload.

    Attributes:
        record: of an earlier upload of the same run, or None.
        branches: names of all branches.
        private: whether only its owners see the repository.
    """

    record: dict[str, Any] | None
    branches: frozenset[str]
    private: bool


def prepare(hub: Hub, upload: Upload, *, private: bool = True, replace: bool = False) -> Standing:
    """Make the repository of an upload to main if it is missing, and refuse one that may not be written to.

    Raises:
        InputError: see `push`; nothing is changed then.
        RunFailedError: no good answer in time.
    """
    check_upload(upload)
    name, kind = upload.repository, upload.repo_type
    is_private = ensure_repository(hub, name, kind, private)

    def look() -> Standing:
        head = read_head(hub.api, name, kind, upload.revision)
        record = read_record(upload, head)
        check_replacement(upload, head, record, replace)
        branches = frozenset(branch.name for branch in hub.api.list_repo_refs(name, repo_type=kind).branches)
        return Standing(record if same_identity(upload, record) else None, branches, is_private)

    return _call(f"{name}: reading it", look, name, hub)


def push(hub: Hub, upload: Upload, *, private: bool = True, replace: bool = False) -> Pushed:
    """Make one revision of a repository hold an upload, by one commit or none, and compare the hashes afterwards.

    Repository and branch are made if they are missing. Files of others on that revision stay.

    Args:
        hub: see `open_hub`.
        upload: what and where.
        private: a repository that is made is private; with True, one that is public already is refused.
        replace: go on although the revision holds another run or files that are not ours.

    Raises:
        InputError: the Hub refuses it for good, the repository is somebody else's or public, or its revision holds
            other content that may not be replaced.
        RunFailedError: no good answer in time, or the Hub holds other bytes than were sent.
    """
    check_upload(upload)
    ensure_repository(hub, upload.repository, upload.repo_type, private)
    where = f"{upload.repository}: {upload.revision}"
    if upload.revision != "main":
        _call(f"{where}: making the branch", lambda: _ensure_branch(hub, upload), upload.repository, hub)
    hashes: dict[str, str] = {}
    seen: list[str] = []
    head = _call(f"{where}: the commit", lambda: _commit(hub, upload, replace, hashes, seen), upload.repository, hub)
    wrong = [file for file in upload.files if not same_content(file, head.files.get(file.path), hashes)]
    url = f"{repository_page(upload.repository, upload.repo_type)}/tree/{upload.revision}"
    if wrong:
        remote = head.files.get(wrong[0].path)
        raise RunFailedError(
            f"{where}: commit {head.commit} does not hold what was sent: {wrong[0].path} has sha256 "
            f"{wrong[0].sha256()} here and {(remote.sha256 or remote.blob_id) if remote else 'is missing'} there. Run "
            f"the same command again; if it stays so, look at {url}"
        )
    return Pushed(head.commit, url, changed=seen[0] != head.commit)


def ensure_repository(hub: Hub, repository: str, repo_type: str, private: bool) -> bool:
    """Make a repository if it is missing; return whether it is private.

    Raises:
        InputError: it is somebody else's, or public although private is wanted, or cannot be made.
        RunFailedError: no good answer in time.
    """
    owners = {hub.user, *hub.organisations}
    owner = repository.split("/")[0]
    ensure(
        owner in owners,
        f"to={repository}: {owner} is somebody else. This token is of {hub.user} and may write for: "
        f"{', '.join(sorted(owners))}.",
    )
    info = _call(f"{repository}: looking for it", lambda: _find(hub, repository, repo_type), repository, hub)
    if info is None:
        make = partial(hub.api.create_repo, repository, repo_type=repo_type, private=private, exist_ok=True)
        _call(f"{repository}: making it", make, repository, hub)
        return private
    ensure(
        info.private or not private,
        f"to={repository}: is public, so everybody would see this at once. Say so with --public, or make it private "
        f"first: {repository_page(repository, repo_type)}/settings",
    )
    return bool(info.private)


def _find(hub: Hub, repository: str, repo_type: str) -> Any | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return hub.api.repo_info(repository, repo_type=repo_type)
    except GatedRepoError:  # a RepositoryNotFoundError as well
        raise
    except RepositoryNotFoundError:
        return None


def _ensure_branch(hub: Hub, upload: Upload) -> None:
    """Make the branch if it is missing, from the first commit, so that it holds nothing of main's files."""
    name, kind = upload.repository, upload.repo_type
    refs = hub.api.list_repo_refs(name, repo_type=kind)
    if upload.revision not in {branch.name for branch in refs.branches}:
        start = first_commit(hub.api, name, kind)
        hub.api.create_branch(name, branch=upload.revision, revision=start, repo_type=kind, exist_ok=True)


def _commit(hub: Hub, upload: Upload, replace: bool, hashes: dict[str, str], seen: list[str]) -> Head:
    """Send what the revision does not hold yet, as one commit on top of its head, and return what it holds then.

    Args:
        hub: see `open_hub`.
        upload: what and where.
        replace: see `push`.
        hashes: see `same_content`.
        seen: heads that were found, one a try; added to.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    place = (upload.repository, upload.repo_type, upload.revision)
    head = read_head(hub.api, *place)
    seen.append(head.commit)
    record = read_record(upload, head)
    check_replacement(upload, head, record, replace)
    check_fixed(upload, head, hashes)
    missing = [file for file in upload.files if not same_content(file, head.files.get(file.path), hashes)]
    stale = stale_paths(upload, head, record)
    if not missing and not stale:
        return head
    additions = [CommitOperationAdd(file.path, file.source) for file in missing]
    for addition in additions:
        if addition.path_in_repo in hashes:  # the client need not read the file once more for it
            addition.upload_info.sha256 = bytes.fromhex(hashes[addition.path_in_repo])
    try:
        hub.api.create_commit(
            upload.repository,
            [*additions, *(CommitOperationDelete(path) for path in stale)],
            commit_message=upload.message,
            repo_type=upload.repo_type,
            revision=upload.revision,
            parent_commit=head.commit,
            num_threads=_UPLOAD_THREADS,
        )
    except OSError as error:
        answer = getattr(error, "response", None)
        if answer is not None and answer.status_code in _OVERTAKEN_STATUSES:
            raise Unanswered("another commit came first") from error
        raise
    return read_head(hub.api, *place)
