"""A Hub on loopback for tests: the real clients create, commit, upload, list and download against plain folders.

    with HubServer(folder, tokens={"hf_ana": "ana", "hf_rui": "rui:read"}, private={"ana/segredo": {"ana"}}) as server:
        subprocess.run([sys.executable, "client.py"], env=server.environment(tmp_path / "home", token="hf_ana"))
        server.requests[-1].status

The client reads HF_ENDPOINT when it is imported, so it has to run in a process of its own. How the folder is laid out
stands in hub_store.py, what can go wrong on purpose in hub_faults.py. To try the library by hand without the network:

    python tests/hub_server.py FOLDER --port 8765 --user ana=hf_test
"""

import argparse
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from hub_access import Access, Hub
from hub_contents import HubContents
from hub_faults import Fault, Faults, Request
from hub_files import LFS_BYTES
from hub_http import listen
from hub_protocol import Answer, Person
from hub_store import Store


class HubServer(HubContents):
    """Serve `folder` on loopback until the `with` block ends.

    Args:
        folder: the repositories (see hub_store.py); it may be empty.
        tokens: token -> user name, or `user:read` for a token that may not write. Any other token is refused.
        private: repository id -> users who may see it; to all others it does not exist.
        gated: repository id -> users who were granted access; others see it but cannot read its files.
        page_size: entries a page of a listing (the Hub's own is 1,000).
        orgs: organisation -> its members, who may write to its repositories.
        part_bytes: LFS files above this size are uploaded in parts of this size; None: each in one request.
        lfs_bytes: files above this size go through LFS even if they are text.
        port: 0 takes a free one.
        xet: clients send large files by Xet (see hub_xet.py) rather than by LFS.
    """

    def __init__(
        self,
        folder: Path,
        tokens: Mapping[str, str] | None = None,
        private: Mapping[str, set[str]] | None = None,
        gated: Mapping[str, set[str]] | None = None,
        page_size: int = 1000,
        orgs: Mapping[str, set[str]] | None = None,
        part_bytes: int | None = None,
        lfs_bytes: int = LFS_BYTES,
        port: int = 0,
        xet: bool = False,
    ) -> None:
        people = {token: Person(*text.split(":")) for token, text in (tokens or {}).items()}
        super().__init__(Store(Path(folder)))
        self.faults = Faults()
        self.xet = xet
        self._requests: list[Request] = []
        self._ended = threading.Event()
        self._http = listen(self, port)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        access = Access(people, orgs or {}, private or {}, gated or {})
        self.hub = Hub(self.store, access, self.url, page_size, lfs_bytes, part_bytes)

    def __enter__(self) -> "HubServer":
        """Start to answer."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to answer and free the port; requests that are still held up are dropped."""
        self._ended.set()
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Return the environment of a client process: this server, a cache of its own, no telemetry."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        added = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_XET_XORB_COMPRESSION_POLICY": "none",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return kept | added | ({"HF_TOKEN": token} if token else {}) | more

    # Faults and the log.

    def fail(
        self,
        match: str,
        how: str = "503",
        nth: int = 1,
        times: int = 1,
        seconds: float = 1.0,
        message: str | None = None,
    ) -> Fault:
        """Let a request fail.

        Args:
            match: regular expression searched in "METHOD path?query".
            how: "reset" (the connection is reset before anything is done), "close" (closed in order, before anything
                is done), "lost_answer" (done, then closed without an answer), "stall" (waits, then does it),
                "truncate" (done, half of the body is sent), or a status such as "503", "429", "402".
            nth: the first of the matching requests from now on that is struck, counted from 1.
            times: how many in a row are struck.
            seconds: how long a stall lasts; Retry-After of 429 and 503.
            message: the message of a status.

        Returns:
            The fault; its `fired` counts how often it struck.
        """
        fault = Fault(match, how, nth, times, seconds, message)
        self.faults.waiting.append(fault)
        return fault

    def fail_request_number(self, n: int, how: str, seconds: float = 1.0) -> Fault:
        """Let the n-th request since the start, or since `forget`, fail once, whatever it asks."""
        self.faults.by_number[n] = Fault("", how, seconds=seconds)
        return self.faults.by_number[n]

    def before(self, match: str, action: Callable[[], object], nth: int = 1) -> Fault:
        """Call `action` just before a request is answered, as another client that comes in between."""
        fault = Fault(match, "action", nth, action=action)
        self.faults.waiting.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Drop all faults; the log stays."""
        self.faults.clear()

    def forget(self) -> None:
        """Drop all faults and the log, and count requests from 1 again; repositories stay."""
        self.faults.forget()
        self._requests.clear()

    @property
    def requests(self) -> list[Request]:
        """The log, in the order in which requests arrived."""
        return sorted(self._requests, key=lambda request: request.number)

    def writes(self) -> list[str]:
        """Return the kinds of changes that were made, each once, in order of its first request."""
        return list(dict.fromkeys(request.write for request in self.requests if request.write))

    # What the HTTP side calls.

    def answer_one(self, work: Callable[[], Answer]) -> Answer:
        """Do the work of one request at a time."""
        with self._lock:
            return work()

    def log(self, request: Request) -> None:
        """Keep a line of the log."""
        self._requests.append(request)

    def pause(self, seconds: float) -> bool:
        """Wait; return False if the server ends meanwhile."""
        return not self._ended.wait(seconds)


def main() -> None:
    """Serve a folder until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve a folder as a Hub on loopback, to try the library offline.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--user", action="append", default=[], metavar="NAME=TOKEN", help="NAME:read=TOKEN cannot write"
    )
    arguments = parser.parse_args()
    tokens = {token: name for name, _, token in (pair.partition("=") for pair in arguments.user)}
    with HubServer(arguments.folder, tokens=tokens, port=arguments.port) as server:
        print(f"export HF_ENDPOINT={server.url} HF_HUB_DISABLE_XET=1 HF_HUB_OFFLINE=0", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
