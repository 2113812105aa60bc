"""The connection to the Hugging Face Hub: whose token it is, how long an answer is waited for, what is tried again.

Nothing here changes what is on the Hub; `hub.py` does. All failures that may pass are retried in one place, `call_hub`.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from ..checks import InputError, RunFailedError, transport_module
from .safety import UnansweredError, check_token, explain, one_clean_line, passing_failure

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Statuses that may pass, as the Hub client has them (huggingface_hub/utils/_http.py).
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)

_CONNECT_SECONDS = 15.0
_LONGEST_WAIT_SECONDS = 60.0


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
