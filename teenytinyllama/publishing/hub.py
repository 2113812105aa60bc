"""The only module that writes to the network: an upload becomes one commit, once, checked against what the Hub holds.

Every step may be repeated. What the Hub holds is read before each try, so after a lost answer the commit that was made
is found and none is made twice; `parent_commit` lets no second writer come in between.

Calls to the Hub that end: each answer is waited for a bounded time, and retrying is done in one place.

The Hub client waits for ever by default. It retries some calls and not others, among them the commit, and its
warnings print the signed addresses of storage. Here its HTTP client is replaced by one that waits a bounded time and
reports every failure that may pass as one exception, which the client does not know and so does not retry.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from ..checks import RunFailedError, ensure, transport_module
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
from .safety import Upload, check_token, check_upload, explain, one_clean_line, repository_page

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Statuses that may pass, as the Hub client has them (huggingface_hub/utils/_http.py).
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
_CONNECT_SECONDS = 15.0
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class HubLimits:
    """How long is waited, and how often is tried again.

    Attributes:
        answer_seconds: for one answer; for an upload, for the next piece of it to be taken.
        give_up_seconds: without a step done or a file taken, until retrying ends.
        tries: of one step.
        first_wait_seconds: before the second try; doubled for each further one, up to a minute.
    """

    answer_seconds: float = 120.0
    give_up_seconds: float = 600.0
    tries: int = 8
    first_wait_seconds: float = 1.0


@dataclass
class HubClock:
    """When a step last began or a file was last taken by the Hub, in seconds of `time.monotonic`."""

    last_progress: float = field(default_factory=time.monotonic)


class Unanswered(Exception):
    """A call that failed for a reason that may pass.

    Attributes:
        wait_seconds: what the Hub asks to wait (Retry-After), or 0.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def bound_client(limits: HubLimits) -> HubClock:
    """Make all calls of the Hub client in this process wait a bounded time and raise `Unanswered`; return its clock.

    Uploads go through Git LFS over this HTTP client. Xet's own transport, which would be used otherwise, can be given
    no limits and commits in several parts; `HF_HUB_DISABLE_XET=0` in the environment brings it back.
    """
    from huggingface_hub import constants, set_client_factory

    http: Any = transport_module()
    request_hook = import_module("huggingface_hub.utils._http").hf_request_event_hook
    clock = HubClock()

    class BoundedClient(http.Client):  # type: ignore[misc, name-defined]
        def send(self, request: Any, **options: Any) -> Any:
            try:
                response = super().send(request, **options)
            except http.TransportError as error:
                reason = str(error) or "no answer"
                raise Unanswered(one_clean_line(f"{type(error).__name__}: {reason}")) from error
            if response.status_code in _PASSING_STATUSES:
                raise Unanswered(f"HTTP {response.status_code}", _retry_after(response.headers))
            if request.method == "PUT" and response.status_code < 400:
                clock.last_progress = time.monotonic()
            return response

    def make_client() -> Any:
        timeout = http.Timeout(limits.answer_seconds, connect=min(_CONNECT_SECONDS, limits.answer_seconds))
        return BoundedClient(event_hooks={"request": [request_hook]}, follow_redirects=True, timeout=timeout)

    set_client_factory(make_client)
    if "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True
    return clock


def _retry_after(headers: Any) -> float:
    """Return the seconds that the Hub asks to wait: Retry-After, or the reset of an exhausted rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    text = str(headers.get("retry-after", "")).strip()
    if text.isdigit():
        return float(text)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def passing_failure(error: BaseException | None) -> Unanswered | None:
    """Return the failure that may pass among an exception and its causes, or None."""
    while error is not None:
        if isinstance(error, Unanswered):
            return error
        if isinstance(error, json.JSONDecodeError):  # the client reads an answer before it looks at its status
            return Unanswered("an answer that is no JSON")
        error = error.__cause__
    return None


def with_retries(what: str, call: Callable[[], Result], limits: HubLimits, clock: HubClock) -> Result:
    """Return what `call` returns, tried again while its failures may pass. The call must be safe to repeat.

    Args:
        what: the step, for the log and the message.
        call: one step; every other exception of its passes through.
        limits: of tries and time.
        clock: of the client.

    Raises:
        RunFailedError: too many tries, or too long without progress.
    """
    clock.last_progress = time.monotonic()
    wait_seconds = limits.first_wait_seconds
    for number in range(1, limits.tries + 1):
        try:
            return call()
        except (Unanswered, RuntimeError, json.JSONDecodeError) as error:  # RuntimeError: from the client's threads
            failure = passing_failure(error)
            if failure is None:
                raise
            waited = time.monotonic() - clock.last_progress
            pause = max(wait_seconds, failure.wait_seconds)
            if number == limits.tries or waited + pause > limits.give_up_seconds:
                asked = f", and asks to wait {failure.wait_seconds:.0f} s" if failure.wait_seconds else ""
                raise RunFailedError(
                    f"{what}: {endpoint()} gives no good answer ({failure}{asked}). Tried {number} times, "
                    f"{waited:.0f} s without progress."
                ) from error
            logger.warning("%s: %s; trying again in %.0f s", what, failure, pause)
            time.sleep(pause)
            wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
    raise AssertionError("unreachable: the last try returns or raises")


def endpoint() -> str:
    """Return the address of the Hub."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


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
