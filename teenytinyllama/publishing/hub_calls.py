"""Calls to the Hub that end: each answer is waited for a bounded time, and retrying is done in one place.

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
from importlib import import_module
from typing import Any, TypeVar

from ..checks import RunFailedError
from ..hub_client import transport_module
from .refusals import one_clean_line

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
