"""Faults of the test Hub, to the request, and the log of what was asked."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

# What a request can change; `Request.write` is one of these or None.
WRITES = (
    "create_repo",
    "delete_repo",
    "move_repo",
    "settings",
    "commit",
    "branch",
    "delete_branch",
    "tag",
    "delete_tag",
)
WRITES += ("lfs_put", "lfs_part", "lfs_complete", "create_bucket", "delete_bucket", "batch")
KINDS_OF_FAULT = ("reset", "close", "lost_answer", "stall", "truncate")
# Messages of the Hub's refusals that have nothing to do with the request itself.
MESSAGES = {
    "402": "Payment required: private repository storage limit reached, please upgrade your plan",
    "403": "Forbidden: your storage quota is used up",
    "413": "Payload Too Large",
    "429": "Too Many Requests: you have reached your rate limit",
    "500": "Internal Error - We're working hard to fix this as soon as possible!",
    "503": "Service Unavailable",
}


@dataclass(frozen=True)
class Request:
    """One line of the log.

    `number` counts from 1 in order of arrival. `status` is 0 if the connection was closed without an answer. `user` is who
    the token belongs to, None without a token. `write` names what was changed on the server, None if nothing was.
    `fault` is the fault that struck.
    """

    method: str
    path: str
    status: int
    user: str | None
    number: int = 0
    write: str | None = None
    fault: str | None = None


@dataclass
class Fault:
    """A fault that waits for its request; `fired` counts how often it struck."""

    match: str
    how: str
    nth: int = 1
    times: int = 1
    seconds: float = 1.0
    message: str | None = None
    action: Callable[[], object] | None = None
    seen: int = 0
    fired: int = 0

    def __post_init__(self) -> None:
        if self.how not in (*KINDS_OF_FAULT, "action") and not re.fullmatch(r"[45]\d\d", self.how):
            raise ValueError(f"how={self.how!r}: one of {', '.join(KINDS_OF_FAULT)} or a status such as '503'")

    @property
    def status(self) -> int:
        """The status that it answers, 0 for a fault that is none."""
        return int(self.how) if self.how.isdigit() else 0

    @property
    def text(self) -> str:
        """The message of the answer."""
        return self.message or MESSAGES.get(self.how, f"Error {self.how}")


@dataclass
class Faults:
    """The faults that wait, and the count of requests; safe to use from several threads."""

    waiting: list[Fault] = field(default_factory=list)
    count: int = 0
    by_number: dict[int, Fault] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def arrive(self, method: str, path: str) -> tuple[int, list[Fault]]:
        """Count a request; return its number and what strikes it."""
        with self.lock:
            self.count += 1
            struck = [self.by_number[self.count]] if self.count in self.by_number else []
            for fault in self.waiting:
                if re.search(fault.match, f"{method} {path}"):
                    fault.seen += 1
                    if fault.nth <= fault.seen < fault.nth + fault.times:
                        struck.append(fault)
            for fault in struck:
                fault.fired += 1
            return self.count, struck

    def clear(self) -> None:
        """Drop all faults."""
        with self.lock:
            self.waiting.clear()
            self.by_number.clear()

    def forget(self) -> None:
        """Drop all faults and count from 1 again."""
        self.clear()
        with self.lock:
            self.count = 0
