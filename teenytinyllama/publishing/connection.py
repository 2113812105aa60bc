"""The connection to the Hugging Face Hub: whose token it is, how long an answer is waited for, what is tried again.

Failures that may pass are retried in one place, `call_hub`; all others become a message that says what to do. Nothing
here changes what is on the Hub: `hub.py` does.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from ..checks import InputError, RunFailedError, transport_module
from .safety import LOGIN, check_token, one_clean_line, repository_page

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Statuses that may pass, as the Hub client has them (huggingface_hub/utils/_http.py).
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)

_CONNECT_SECONDS = 15.0
_LONGEST_WAIT_SECONDS = 60.0
_QUOTA = re.compile(r"quota|storage limit|storage .*(exceed|reached|full)|payment|billing|plan\b", re.IGNORECASE)
# The Hub's refusals that the client raises as plain ValueError: of large files, and of the card's metadata.
_CLIENT_REFUSALS = ("LFS batch API returned errors", "Invalid metadata in README.md")
_XET_STATUS = re.compile(r"HTTP status client error \((\d{3})")
_QUOTA_FIX = " Free some room there, publish to an organisation that has more, or make the repository public."


@dataclass(frozen=True)
class HubLimits:
    """How long the Hub is waited for, and how often a step is tried again.

    Attributes:
        answer_seconds: for one answer; for an upload, until the next piece of it is taken.
        give_up_seconds: spent on waiting for answers and between tries, until a step is given up.
        tries: of one step.
        first_wait_seconds: before the second try; doubled for each further one, up to a minute.
    """

    answer_seconds: float = 120.0
    give_up_seconds: float = 600.0
    tries: int = 8
    first_wait_seconds: float = 1.0


@dataclass(frozen=True)
class Hub:
    """A Hub that accepts this machine's token.

    Attributes:
        api: the client; it finds the token by itself.
        user: who the token belongs to.
        organisations: whose member the user is.
        limits: of waiting.
    """

    api: Any
    user: str
    organisations: frozenset[str]
    limits: HubLimits


def open_hub(limits: HubLimits | None = None) -> Hub:
    """Return a Hub that accepts this machine's token.

    Raises:
        InputError: offline, no token, or one that is not accepted.
        RunFailedError: no answer.
    """
    from huggingface_hub import HfApi

    check_token()
    limits = limits or HubLimits()
    _bound_client(limits)
    api: Any = HfApi()
    known = call_hub("the token", api.whoami, "", Hub(api, "", frozenset(), limits))
    organisations = frozenset(str(part.get("name")) for part in known.get("orgs") or [])
    return Hub(api, str(known["name"]), organisations, limits)


def run_in_thread(call: Callable[[], Result]) -> Result:
    """Return what `call` returns, run in a thread: Xet lets no signal through while it uploads, waiting here does."""
    done: Future[Result] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # raised again by `result`
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done.result()


def _bound_client(limits: HubLimits) -> None:
    """Make all calls of the Hub client in this process wait a bounded time and raise `UnansweredError`.

    By itself the client waits for ever. It retries some calls, sleeping as long as the Hub asks, and others, among them
    the commit, never; and its warnings print the signed addresses of storage. It knows nothing of `UnansweredError`, so
    it retries none. Xet has limits of its own, by its variables; what the user has set of them stays.
    """
    from huggingface_hub import set_client_factory

    http: Any = transport_module()

    class BoundedClient(http.Client):  # type: ignore[misc, name-defined]
        def send(self, request: Any, **options: Any) -> Any:
            try:
                response = super().send(request, **options)
            except http.TransportError as error:
                reason = str(error) or "no answer"
                raise UnansweredError(one_clean_line(f"{type(error).__name__}: {reason}")) from error
            if response.status_code in _PASSING_STATUSES:
                raise UnansweredError(f"HTTP {response.status_code}", _retry_after(response.headers))
            return response

    timeout = http.Timeout(limits.answer_seconds, connect=min(_CONNECT_SECONDS, limits.answer_seconds))
    set_client_factory(lambda: BoundedClient(follow_redirects=True, timeout=timeout))
    os.environ.setdefault("HF_XET_CLIENT_READ_TIMEOUT", f"{limits.answer_seconds * 1000:.0f}ms")
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", f"{limits.give_up_seconds * 1000:.0f}ms")


def _retry_after(headers: Any) -> float:
    """Return the seconds that the Hub asks to wait: Retry-After, or the reset of an exhausted rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    if (text := str(headers.get("retry-after", "")).strip()).isdigit():
        return float(text)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


def call_hub(what: str, call: Callable[[], Result], repository: str, hub: Hub) -> Result:
    """Return what a call to the Hub returns, tried again while its failures may pass; it must be safe to repeat.

    Raises:
        InputError: the Hub refuses it for good.
        RunFailedError: too many tries, or too long a wait.
    """
    from huggingface_hub import constants

    limits = hub.limits
    number, waited, wait_seconds = 0, 0.0, limits.first_wait_seconds
    while True:
        number, begin = number + 1, time.monotonic()
        try:
            return call()
        except InputError:  # our own refusal of what was read
            raise
        # RuntimeError: from the client's threads. OSError: the client's own, and Xet's ConnectionError.
        except (UnansweredError, OSError, RuntimeError, ValueError) as error:
            failure = passing_failure(error)
            if failure is None:
                if (refusal := explain(error, what, repository, hub.user)) is None:
                    raise
                raise refusal from error
            # Of a long upload, only the last answer was waited for in vain.
            waited += min(time.monotonic() - begin, limits.answer_seconds)
            pause = max(wait_seconds, failure.wait_seconds)
            if number == limits.tries or waited + pause > limits.give_up_seconds:
                asked = f", and asks to wait {failure.wait_seconds:.0f} s" if failure.wait_seconds else ""
                raise RunFailedError(
                    f"{what}: {constants.ENDPOINT} gives no good answer ({failure}{asked}). Tried {number} times, "
                    f"{waited:.0f} s without progress."
                ) from error
            logger.warning("%s: %s; trying again in %.0f s", what, failure, pause)
            time.sleep(pause)
            waited += pause
            wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)


class UnansweredError(Exception):
    """A call to the Hub that failed for a reason that may pass.

    Attributes:
        wait_seconds: what the Hub asks to wait (Retry-After), or 0.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def passing_failure(error: BaseException | None) -> UnansweredError | None:
    """Return the failure that may pass among an exception and its causes, or None."""
    while error is not None:
        if isinstance(error, UnansweredError):
            return error
        if isinstance(error, json.JSONDecodeError):  # the client reads an answer before it looks at its status
            return UnansweredError("an answer that is no JSON")
        if (failure := _failure_of_batch(error)) and error.response.status_code == 200:  # type: ignore[attr-defined]
            return UnansweredError(one_clean_line(f"a part of it was not done: {failure}"))
        if type(error) is ConnectionError and not _xet_status(error):
            return UnansweredError(one_clean_line(str(error)))
        error = error.__cause__
    return None


def explain(error: Exception, what: str, repository: str, user: str) -> InputError | None:
    """Return the refusal that an exception of the Hub client means, or None for what is no refusal of the Hub.

    Args:
        error: as raised by the client.
        what: was being done, as `ana/modelo: the commit to main`.
        repository: where to.
        user: who the token belongs to; empty if that is not known yet.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, HfHubHTTPError):  # from a thread that uploads
        error = error.__cause__
    said = ""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = error.server_message or error.response.headers.get("X-Error-Message") or _failure_of_batch(error)
        said = one_clean_line(said)
    elif isinstance(error, ValueError) and str(error).startswith(_CLIENT_REFUSALS):
        said = one_clean_line(str(error))
        return InputError(f"{what}: the Hub refuses it: {said}{_QUOTA_FIX if _QUOTA.search(said) else ''}")
    elif (status := _xet_status(error)) == 0:
        return None
    who = f"as {user}" if user else "with this token"
    if isinstance(error, GatedRepoError):
        reason = f"access to {repository} has to be granted. Ask for it at {repository_page(repository)}."
    elif status == 401 or (status == 403 and not user):
        reason = f"the Hub does not accept the token (HTTP {status}). It may be mistyped or expired. {LOGIN}"
    elif status in (402, 413, 507) or _QUOTA.search(said):
        reason = f"the Hub has no room for it (HTTP {status}): {said}.{_QUOTA_FIX}"
    elif status == 403:
        reason = (
            f"you may not write to {repository} {who} (HTTP 403): {said}. Use a token with write permission for it, "
            "or your own repository."
        )
    elif isinstance(error, RepositoryNotFoundError) or status == 404:
        reason = f"{repository} does not exist, or you may not see it {who} (HTTP {status})."
    else:
        reason = f"the Hub refuses it (HTTP {status}): {said}."
    return InputError(f"{what}: {reason}")


def _failure_of_batch(error: BaseException) -> str:
    """Return the first file of a bucket's batch that the Hub could not send or delete, and why; or an empty text."""
    failures = getattr(error, "failures", None)
    return f"{failures[0].get('path')}: {failures[0].get('error')}" if failures else ""


def _xet_status(error: BaseException) -> int:
    """Return the status with which Xet was refused for good, or 0; it raises a ConnectionError for everything."""
    found = _XET_STATUS.search(str(error)) if type(error) is ConnectionError else None
    return int(found[1]) if found and found[1] not in ("408", "429") else 0
