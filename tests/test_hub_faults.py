"""Faults of the test Hub: what they do to it, and what the real client makes of them."""

import http.client
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hub_asks import COMMIT, TOKENS, ask, commit, run
from hub_server import HubServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with one repository."""
    with HubServer(tmp_path / "hub", tokens=TOKENS) as running:
        running.write("ana/m", {"a.txt": b"a", "sub/b.txt": b"b", "w.bin": b"pesos"})
        yield running


def test_faults_and_what_the_client_makes_of_them(server: HubServer, tmp_path: Path):
    kinds = ("reset", "close", "lost_answer", "stall", "truncate", "500", "429", "403", "413")
    struck = []
    for kind in kinds:
        server.write(f"ana/{kind}", {})
        struck.append(server.fail(rf"POST /api/models/ana/{kind}/commit/", kind, seconds=0.5))
    server.write("ana/lfs", {})
    struck.append(server.fail(r"POST /api/repos/create", "402"))
    struck.append(server.fail(r"PUT /storage/", "503", seconds=0))
    struck.append(server.fail(r"PUT /storage/", "403", nth=3))
    struck.append(server.fail(r"GET /storage/", "truncate"))
    seen = run(server, tmp_path / "home", "faults")
    expected = {
        "commit reset": r"ReadError.*: .*Connection reset",
        "commit close": "RemoteProtocolError.*: Server disconnected without sending a response",
        "commit lost_answer": "RemoteProtocolError.*: Server disconnected without sending a response",
        "commit stall": "done",
        "commit truncate": "RemoteProtocolError.*: peer closed connection",
        "commit 500": "HfHubHTTPError 500.*Internal Error",
        "commit 429": "HfHubHTTPError 429",
        "commit 403": "HfHubHTTPError 403.*quota is used up",
        "commit 413": "HfHubHTTPError 413.*Payload Too Large",
        "create 402": "HfHubHTTPError 402.*storage limit reached",
        "upload 503 once": "done",
        "upload 403": "RuntimeError <- HfHubHTTPError : Error while uploading 'v.bin' to the Hub",
        "download truncate once": "done",
    }
    assert [*seen] == [*expected]
    for name, message in expected.items():
        assert re.match(message, seen[name]), (name, seen[name])
    assert [fault.fired for fault in struck] == [1] * len(struck)
    done = {kind for kind in kinds if len(server.history(f"ana/{kind}")) == 2}
    assert done == {"lost_answer", "stall", "truncate"}
    by_fault = {request.fault: (request.status, request.write) for request in server.requests if request.fault}
    assert by_fault["reset"] == (0, None)
    assert by_fault["lost_answer"] == (0, "commit")
    assert by_fault["429"] == (429, None)
    assert by_fault["402"] == (402, None)


def test_each_request_of_a_publish_can_be_lost(tmp_path: Path):
    """Whatever request fails, a second run leaves the same files; and nothing is a matter of luck."""
    with ExitStack() as stack:
        whole = stack.enter_context(HubServer(tmp_path / "whole", tokens=TOKENS))
        (first,) = run(whole, tmp_path / "home", "each_request", json.dumps([whole.url]))
        assert first == ["done", "done"]
        # Whichever request of the second run comes first, it is no write.
        writes = [request.number for request in whole.requests if request.write]
        assert whole.writes() == ["create_repo", "branch", "lfs_put", "commit"]
        cases = [(number, how) for number in writes for how in ("reset", "lost_answer")]
        servers = []
        for number, how in cases:
            server = stack.enter_context(HubServer(tmp_path / f"{number}-{how}", tokens=TOKENS))
            server.fail_request_number(number, how)
            servers.append(server)
        outcomes = run(whole, tmp_path / "home", "each_request", json.dumps([server.url for server in servers]))
        for case, server, outcome in zip(cases, servers, outcomes, strict=True):
            assert server.state() == whole.state(), case
            assert outcome[1] == "done", case
            failed = next(request for request in server.requests if request.fault)
            assert (failed.number, failed.status, failed.fault) == (case[0], 0, case[1])


def test_faults_strike_the_nth_request_and_are_counted(server: HubServer):
    fault = server.fail(r"GET /api/models/ana/m$", "503", nth=2, times=2, seconds=7, message="agora não")
    statuses = [ask(server, "GET", "/api/models/ana/m")[0] for _ in range(5)]
    assert (statuses, fault.fired) == ([200, 503, 503, 200, 200], 2)
    server.fail(".*", "429", seconds=7)
    with pytest.raises(urllib.error.HTTPError, match="429") as caught:
        urllib.request.urlopen(f"{server.url}/api/models")
    assert caught.value.headers["Retry-After"] == "7"
    server.fail(".*", "500", times=9)
    server.clear_faults()
    assert ask(server, "GET", "/api/models/ana/m")[0] == 200
    server.forget()
    fault = server.fail_request_number(2, "429")
    assert [ask(server, "GET", "/api/models/ana/m")[0] for _ in range(3)] == [200, 429, 200]
    assert [(request.number, request.fault) for request in server.requests] == [(1, None), (2, "429"), (3, None)]
    with pytest.raises(ValueError, match="how='sleep': one of reset, close, lost_answer, stall, truncate or a status"):
        server.fail(".*", "sleep")


def test_another_client_comes_in_between(server: HubServer):
    head = server.commit("ana/m")
    server.before(r"POST .*/commit/main", lambda: server.write("ana/m", {"outro.txt": b"x"}))
    assert commit(server, parentCommit=head)[0] == 412
    assert commit(server, parentCommit=server.commit("ana/m"))[0] == 200


def test_an_open_connection_is_not_served_after_the_end(tmp_path: Path):
    with HubServer(tmp_path / "hub", tokens=TOKENS) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("GET", "/api/models")
        assert connection.getresponse().read() == b"[]"
    body = json.dumps({"name": "tarde"})
    connection.request("POST", "/api/repos/create", body, {"Authorization": "Bearer hf_ana"})
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    assert not server.exists("ana/tarde")


def commit_in_vain(server: HubServer) -> None:
    """Send a commit to a server that closes the connection."""
    with pytest.raises(OSError, match="closed connection without response"):
        commit(server)


def test_a_held_up_request_is_dropped_when_the_server_ends(tmp_path: Path):
    with HubServer(tmp_path / "hub", tokens=TOKENS) as server:
        server.write("ana/m", {})
        server.fail("POST", "stall", seconds=60)
        thread = threading.Thread(target=commit_in_vain, args=(server,))
        thread.start()
        while not server.faults.count:
            time.sleep(0.005)
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert len(server.history("ana/m")) == 1


@pytest.mark.parametrize("lines", [b"Content-Length: 900\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_client_that_dies_in_the_middle_of_its_request_has_asked_for_nothing(server: HubServer, lines: bytes):
    before, body = server.state(), b'{"key": "header", "value": {"summary": "x"}}\n'
    if b"chunked" in lines:
        body = b"%x\r\n%s\r\n" % (len(body), body)
    head = f"POST {COMMIT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer hf_ana\r\n".encode()
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[-1]))) as connection:
        connection.sendall(head + lines + b"\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    assert [(request.status, request.write) for request in server.requests] == [(0, None)]
    assert server.state() == before
