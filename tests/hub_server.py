"""A small loopback server that speaks the read half of the Hub protocol, for tests of code that downloads.

It serves plain folders, read again at each request:

    folder/models/<owner>/<name>/<revision>/...      folder/datasets/<owner>/<name>/<revision>/...

A revision folder is a branch (its commit is a hash of its contents) or, when its name is 40 hexadecimal digits, a
commit. Binary files are answered as Git LFS files: a redirect to storage with the X-Linked headers.

    with HubServer(folder, tokens={"hf_ana": "ana"}, private={"ana/segredo": {"ana"}}) as server:
        subprocess.run([sys.executable, "client.py"], env=server.environment(tmp_path / "home", token="hf_ana"))
        server.requests[-1].status

The client reads HF_ENDPOINT when it is imported, so it has to run in a process of its own.
"""

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from hub_answers import HubError, HubFolder, commit_of, route


@dataclass(frozen=True)
class Request:
    """One line of the request log; `user` is who the token belongs to, None without a token."""

    method: str
    path: str
    status: int
    user: str | None


class HubServer:
    """Serve `folder` on loopback until the `with` block ends.

    Args:
        folder: the tree described at the top of this file.
        tokens: token -> user name. Any other token is refused.
        private: repository id -> users who may see it; to all others it does not exist.
        gated: repository id -> users who were granted access; others see it but cannot read its files.
        page_size: entries a page of a tree listing (the Hub's own is 1,000).
    """

    def __init__(
        self,
        folder: Path,
        tokens: Mapping[str, str] | None = None,
        private: Mapping[str, set[str]] | None = None,
        gated: Mapping[str, set[str]] | None = None,
        page_size: int = 1000,
    ) -> None:
        self.tokens = dict(tokens or {})
        self.requests: list[Request] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.hub = HubFolder(Path(folder), dict(private or {}), dict(gated or {}), page_size, self.url)

    def __enter__(self) -> "HubServer":
        """Start to answer."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to answer and free the port."""
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Return the environment of a client process: this server, a cache of its own, no Xet, no telemetry."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        added = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return kept | added | ({"HF_TOKEN": token} if token else {}) | more

    def commit(self, repository: str, revision: str = "main", repo_type: str = "model") -> str:
        """Return the 40-digit commit of a revision of a repository that is served."""
        return commit_of(self.hub.folder / f"{repo_type}s" / repository / revision)


def _handler_of(server: HubServer) -> type[BaseHTTPRequestHandler]:
    """Return the request handler class of one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            user: str | None = None
            length = int(self.headers.get("Content-Length") or 0)
            form = parse_qs(self.rfile.read(length).decode()) if length else {}
            try:
                user = self._user()
                status, headers, body = route(server.hub, user, self.path, form)
            except HubError as error:
                status, headers = error.status, {"Content-Type": "application/json", **error.headers}
                body = json.dumps({"error": str(error)}).encode()
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if status == 200 and span and self.command == "GET":
                start, end = int(span[1]), int(span[2] or len(body) - 1)
                headers["Content-Range"] = f"bytes {start}-{min(end, len(body) - 1)}/{len(body)}"
                status, body = 206, body[start : end + 1]
            server.requests.append(Request(self.command, self.path, status, user))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = _answer

        def _user(self) -> str | None:
            authorization = self.headers.get("Authorization")
            if authorization is None:
                return None
            user = server.tokens.get(authorization.removeprefix("Bearer "))
            if user is None:
                raise HubError(401, "Invalid credentials in Authorization header")
            return user

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
