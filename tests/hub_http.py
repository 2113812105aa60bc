"""The test Hub over HTTP: reads a request, lets faults strike, sends the answer, and writes the log."""

import re
import socket
import struct
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Protocol

from hub_access import Hub
from hub_answers import call_of, route
from hub_faults import Fault, Faults, Request
from hub_protocol import Answer, HubError, error_answer


class Served(Protocol):
    """What a handler needs to know of its server."""

    hub: Hub
    faults: Faults
    answer_one: Callable[[Callable[[], Answer]], Answer]
    log: Callable[[Request], None]
    pause: Callable[[float], bool]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection; `served` is set by `handler_of`."""

    served: Served
    protocol_version = "HTTP/1.1"
    timeout = 60

    def _serve(self) -> None:
        number, struck = self.served.faults.arrive(self.command, self.path)
        body = _read_body(self)
        hows = [fault.how for fault in struck if fault.action is None]
        user, answer = None, Answer(0, {})
        if not _strike_before(self.served, struck):
            self._cut(is_hard="reset" in hows)
        else:
            try:
                person = self.served.hub.access.person(self.headers.get("Authorization"))
                user = person.name if person else None
                answer = self.served.answer_one(lambda: self._answer(struck, body, person))
            except HubError as error:
                answer = error_answer(error)
            except Exception as error:
                # A fault of the test Hub itself: shown by pytest, and never a client that waits.
                traceback.print_exc()
                answer = error_answer(HubError(500, f"{type(error).__name__} in the test Hub: {error}"))
        is_silent = "lost_answer" in hows or not answer.status
        status = 0 if is_silent else answer.status
        # Before the answer is sent: a client that has it finds its request in the log.
        self.served.log(Request(self.command, self.path, status, user, number, answer.write, "+".join(hows) or None))
        if is_silent:
            self._cut(is_hard=False)
        else:
            self._send(answer, is_half="truncate" in hows)

    def _answer(self, struck: list[Fault], body: bytes, person: object) -> Answer:
        for fault in struck:
            if fault.status:
                seconds = {"Retry-After": f"{fault.seconds:.0f}"} if fault.status in (429, 503) else {}
                error = HubError(fault.status, fault.text)
                error.headers |= seconds
                raise error
        return route(self.served.hub, call_of(self.command, self.path, body, person))  # type: ignore[arg-type]

    def _send(self, answer: Answer, is_half: bool) -> None:
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if status == 200 and span and self.command == "GET":
            start, end = int(span[1]), min(int(span[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}" if start <= end else f"bytes */{len(body)}"
            status, body = (206, body[start : end + 1]) if start <= end else (416, b"")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_half else body)
        if is_half:
            self._cut(is_hard=False)

    def _cut(self, is_hard: bool) -> None:
        """Close the connection; `is_hard` resets it, else it ends as if the server had gone away in order."""
        self.close_connection = True
        if is_hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.close()
            self.rfile.close()
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: the log is `HubServer.requests`."""


def handler_of(server: Served) -> type[BaseHTTPRequestHandler]:
    """Return the request handler class of one server."""
    return type("Handler", (Handler,), {"served": server})


def _strike_before(server: Served, struck: list[Fault]) -> bool:
    """Let those faults strike that come before the work; return whether the work is to be done at all."""
    for fault in struck:
        if fault.action is not None:
            fault.action()
        if fault.how == "stall" and not server.pause(fault.seconds):
            return False
    return not any(fault.how in ("reset", "close") for fault in struck)


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Return the body of a request, of a known length or in chunks."""
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    pieces = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        pieces.append(handler.rfile.read(size))
        handler.rfile.readline()
    while handler.rfile.readline().strip():  # trailers
        pass
    return b"".join(pieces)
