"""What the modules of the test Hub share: a request as it came, the answer to it, an error, and who is asking."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


class HubError(Exception):
    """An answer that is an error, with the headers by which the client chooses its exception class.

    Args:
        status: the HTTP status.
        message: what went wrong, in the Hub's words where they are known.
        code: RepoNotFound, RevisionNotFound, EntryNotFound or GatedRepo.
        commit: the commit that was looked at, if there was one.
        body: more fields of the JSON body beside `error`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        commit: str | None = None,
        body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": message, **(body or {})}
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


@dataclass(frozen=True)
class Answer:
    """A status, headers and a body; `write` names what the request changed (see `hub_faults.WRITES`)."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    write: str | None = None


@dataclass(frozen=True)
class Person:
    """Who a token belongs to, and whether the token may write."""

    name: str
    role: str = "write"


@dataclass(frozen=True)
class Call:
    """One request: `path` is split before it was unquoted, so a slash in a branch name stays inside its piece."""

    method: str
    url_path: str
    path: list[str]
    query: dict[str, list[str]]
    body: bytes = field(repr=False)
    person: Person | None

    @property
    def user(self) -> str | None:
        """The name of who is asking, None without a token."""
        return self.person.name if self.person else None

    def first(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        """Return whether a query parameter is switched on; the client writes True, true and 1."""
        return self.first(name).lower() in ("true", "1")

    def json(self) -> dict[str, Any]:
        """Return the body, which has to be a JSON object.

        Raises:
            HubError: 400, if it is not.
        """
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "The body is not JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "The body is not a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        """Return the body as the fields of a form."""
        return parse_qs(self.body.decode())


def json_answer(value: object, status: int = 200, write: str | None = None, **headers: str) -> Answer:
    """Return an answer whose body is this value."""
    return Answer(status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode(), write)


def error_answer(error: HubError) -> Answer:
    """Return the answer of an error."""
    return json_answer(error.body, error.status, **error.headers)
