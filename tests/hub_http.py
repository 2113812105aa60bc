"""The test Hub over HTTP: reads a request, lets faults strike, sends the answer, and writes the log."""

import contextlib
import re
import socket
import socketserver
import struct
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from hub_access import Hub
from hub_answers import call_of, route
from hub_faults import Fault, Faults, Request
from hub_protocol import Answer, HubError, Person, error_answer


class Served(Protocol):
    """What a handler needs to know of its server."""

    hub: Hub
    faults: Faults
    answer_one: Callable[[Callable[[], Answer]], Answer]
    log: Callable[[Request], None]
    pause: Callable[[float], bool]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection; `served` is set by `listen`."""

    served: Served
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True  # else each body waits 40 ms for the acknowledgement of its headers

    def _serve(self) -> None:
        number, struck = self.served.faults.arrive(self.command, self.path)
        body = _read_body(self)
        hows = [fault.how for fault in struck if fault.action is None]
        user, answer = None, Answer(0, {})
        # A client that went away in the middle of its request has asked for nothing.
        if body is not None and _strike_before(self.served, struck):
            user, answer = self._work(struck, body)
        status = 0 if "lost_answer" in hows else answer.status
        # Before the answer is sent: a client that has it finds its request in the log.
        self.served.log(Request(self.command, self.path, status, user, number, answer.write, "+".join(hows) or None))
        with contextlib.suppress(ConnectionError):  # the client did not wait for the answer
            if status:
                self._send(answer, is_half="truncate" in hows)
        if not status or "truncate" in hows:
            self._cut(is_hard="reset" in hows)

    def _work(self, struck: list[Fault], body: bytes) -> tuple[str | None, Answer]:
        """Do what is asked; return who asked and the answer."""
        user = None
        try:
            person = self.served.hub.access.person(self.headers.get("Authorization"))
            user = person.name if person else None
            return user, self.served.answer_one(lambda: self._answer(struck, body, person))
        except HubError as error:
            return user, error_answer(error)
        except Exception as error:
            # A fault of the test Hub itself: shown by pytest, and never a client that waits.
            traceback.print_exc()
            return user, error_answer(HubError(500, f"{type(error).__name__} in the test Hub: {error}"))

    def _answer(self, struck: list[Fault], body: bytes, person: Person | None) -> Answer:
        for fault in struck:
            if fault.status:
                seconds = {"Retry-After": f"{fault.seconds:.0f}"} if fault.status in (429, 503) else {}
                error = HubError(fault.status, fault.text)
                error.headers |= seconds
                raise error
        return route(self.served.hub, call_of(self.command, self.path, body, person))

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

    def _cut(self, is_hard: bool) -> None:
        """Close the connection; `is_hard` resets it, else it ends as if the server had gone away in order."""
        self.close_connection = True
        if is_hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: the log is `HubServer.requests`."""


class Listener(ThreadingHTTPServer):
    """The socket: a thread for each connection."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which can take seconds offline."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def shutdown_request(self, request: Any) -> None:
        """Close a connection without saying so first, or else a reset would look like an orderly end."""
        self.close_request(request)


def listen(served: Served, port: int) -> Listener:
    """Return a listener on loopback whose requests are answered from `served`."""
    return Listener(("127.0.0.1", port), type("Handler", (Handler,), {"served": served}))


def _strike_before(server: Served, struck: list[Fault]) -> bool:
    """Let those faults strike that come before the work; return whether the work is to be done at all."""
    if not server.pause(0):
        return False
    for fault in struck:
        if fault.action is not None:
            fault.action()
        if fault.how == "stall" and not server.pause(fault.seconds):
            return False
    return not any(fault.how in ("reset", "close") for fault in struck)


def _read_body(handler: BaseHTTPRequestHandler) -> bytes | None:
    """Return the body of a request, of a known length or in chunks; None if the client went away before its end."""
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        return body if len(body) == length else None
    pieces = []
    while line := handler.rfile.readline():
        size = int(line.split(b";")[0], 16)
        pieces.append(handler.rfile.read(size))
        if len(pieces[-1]) < size or not handler.rfile.readline():
            return None
        if size == 0:
            return b"".join(pieces)
    return None
