"""Voting: the page on which people judge two answers without knowing whose they are, and its server.

The server tells the page texts only, never a name of a system. It answers requests for its own names alone, because a
page from elsewhere whose name was turned to this machine's address could vote otherwise (DNS rebinding); it takes small
JSON bodies, and votes for the pair that it has put before that person. Votes are on the disk before it answers.
"""

import base64
import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.page import DEFAULT_HOST, bind_address, is_loopback, own_names
from ..checks import ensure_packages
from ..stage_folder import take_lock
from .booth import NO_VOTE, RefusedRequestError, VotingBooth
from .study import PAGE_LOCK_NAME, Study, read_study
from .votes import VOTES_NAME, VoteFile, describe_votes

if TYPE_CHECKING:
    from fastapi import FastAPI

DEFAULT_PORT = 7861
MOST_BODY_BYTES = 1 << 16  # a comment of 2000 characters, each written as two escapes of six bytes, and its envelope
_HUB = "https://huggingface.co"
_PAGE = Path(__file__).with_name("voting.html")
_SECONDS_TO_END = 5


def check_address(host: str, port: int) -> str:
    """Check that the page can be served there, by opening and closing a server.

    Returns:
        A warning where other machines can reach it, else an empty text.

    Raises:
        InputError: the port is taken or reserved, or the address is none of this machine's.
    """
    bind_address(host, port).close()
    if is_loopback(host):
        return ""
    return f"warning: host={host}: anybody on the network who opens the page can vote, under any nickname."


def own_address() -> str:
    """Return the address by which others on the network reach this machine, 127.0.0.1 without a network.

    The system is asked for the way to an address that nobody has (RFC 5737); to connect with UDP sends nothing.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def serve_votes(folder: Path, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, seed: int = 0) -> None:
    """Serve the page of a study until Ctrl-C or SIGTERM; port 0: one that is free.

    Raises:
        InputError: an address that cannot be served on, a folder that is no study, damaged votes, or another process
            that already serves this study.
        MissingPackageError: the extra `people` is not installed.
    """
    ensure_packages("people", "fastapi", "uvicorn")
    import uvicorn

    if warning := check_address(host, port):
        print(warning, flush=True)
    with closing(bind_address(host, port)) as address:
        study = read_study(folder)
        refusal = f"{folder}: another process already serves this comparison. Use its page, or end it."
        with take_lock(Path(folder) / PAGE_LOCK_NAME, refusal):
            app = make_voting_app(folder, seed, host, study)
            votes = describe_votes(VoteFile(study.folder / VOTES_NAME, study.prompts_sha256).read())
            address.listen()  # so that who reads the address can open it at once
            shown = own_address() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{address.getsockname()[1]} takes votes ({votes}). Ctrl-C ends it.", flush=True)
            settings = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off",
                timeout_graceful_shutdown=_SECONDS_TO_END,
            )  # fmt: skip
            with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has ended in good order
                uvicorn.Server(settings).run(sockets=[address])


def make_voting_app(
    folder: str | Path, seed: int = 0, host: str = DEFAULT_HOST, study: Study | None = None, framed: bool = False
) -> "FastAPI":
    """Return the server of a study as an ASGI application.

    Args:
        folder: of the study.
        seed: draws pairs and sides.
        host: address where it is served, which decides under which names it answers.
        study: the study of the folder, if it was read already.
        framed: the Hub's page of a Space may show it inside a frame.

    Raises:
        InputError: the folder is no study, or its votes are damaged.
    """
    from fastapi import Body, FastAPI
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse

    ballot = VotingBooth(study or read_study(folder), seed)
    page = _PAGE.read_text(encoding="utf-8")
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Guard, names=names_of(host), policy=_content_policy(page, framed))

    @app.exception_handler(RefusedRequestError)
    def refuse(_: Any, error: RefusedRequestError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, error.status)

    @app.exception_handler(RequestValidationError)
    def refuse_form(_: Any, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": NO_VOTE}, 422)  # FastAPI's own answer repeats what was sent

    @app.get("/")
    def show() -> HTMLResponse:
        return HTMLResponse(page)

    @app.post("/count")
    def count(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return ballot.count(body.get("voter"))

    @app.post("/pair")
    def pair(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return ballot.state(body.get("voter"))

    @app.post("/vote")
    def vote(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return ballot.vote(body)

    @app.post("/undo")
    def undo(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return ballot.undo(body)

    return app


def names_of(host: str) -> Callable[[str], bool]:
    """Return a function that says whether a Host header is a name of this server.

    Who serves the network is asked for by any of the machine's addresses. Those may be written as numbers, because
    turning a name to another address (DNS rebinding) needs a name.
    """
    known = {name.lower() for name in own_names(host)}
    if not is_loopback(host):
        known |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    def is_own(header: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", header.lower())
        if match is None:
            return False
        name = match[1].strip("[]")
        if name in known:
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return not is_loopback(host)
        return False

    return is_own


def _content_policy(page: str, framed: bool) -> str:
    """Return the header by which a browser runs the page's own script and style only, and asks nobody else."""
    parents = _HUB if framed else "'none'"
    hashes = {}
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode("utf-8")).digest()).decode() for part in parts]
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        f"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors {parents}"
    )


class _Guard:
    """Refuse foreign hosts, pages from elsewhere and large bodies, before anything of a request is read further."""

    def __init__(self, app: Any, names: Callable[[str], bool], policy: str) -> None:
        self.app, self.is_own = app, names
        self.headers = [
            (b"content-security-policy", policy.encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        async def send_safe(message: dict[str, Any]) -> None:
            """Send an answer with the headers that every answer has."""
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self.headers]}
            await send(message)

        status, body = 400, b""
        if scope["type"] == "http" and self._is_for_us(scope["method"], scope["headers"]):
            status, body = await self._read(scope["headers"], receive)
        if status != 200:
            content = json.dumps({"detail": "Pedido recusado."}).encode()
            start = {"type": "http.response.start", "status": status,
                     "headers": [(b"content-type", b"application/json"), (b"connection", b"close")]}  # fmt: skip
            await send_safe(start)
            await send({"type": "http.response.body", "body": content})
            return
        is_read = False

        async def replay() -> Any:
            """Give the application the body that was read already, and afterwards what else comes."""
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send_safe)

    def _is_for_us(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether the request is for a name of ours; one that votes may come from our own page only."""
        found = [(name, value.decode("latin-1")) for name, value in headers]
        hosts = [value for name, value in found if name == b"host"]
        origins = [value for name, value in found if name == b"origin"]
        sites = [value for name, value in found if name == b"sec-fetch-site"]
        if len(hosts) != 1 or not self.is_own(hosts[0]):
            return False
        return method in ("GET", "HEAD") or (
            all(origin.partition("://")[2].lower() == hosts[0].lower() for origin in origins)
            and all(site in ("same-origin", "none") for site in sites)
        )

    @staticmethod
    async def _read(headers: Iterable[tuple[bytes, bytes]], receive: Callable[[], Awaitable[Any]]) -> tuple[int, bytes]:
        """Return 200 and the body, or the status of a refusal."""
        length = dict(headers).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > MOST_BODY_BYTES:
            return 413, b""
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return 400, b""
            body += message.get("body", b"")
            if len(body) > MOST_BODY_BYTES:
                return 413, b""
            if not message.get("more_body"):
                return 200, body
