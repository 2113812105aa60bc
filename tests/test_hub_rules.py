"""The test Hub without a client: bodies that no client would send, faults, the folder on disk, and use by hand."""

import hashlib
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_asks import COMMIT, TOKENS, ask, commit
from hub_faults import WRITES
from hub_server import HubServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with one repository."""
    with HubServer(tmp_path / "hub", tokens=TOKENS) as running:
        running.write("ana/m", {"a.txt": b"a", "sub/b.txt": b"b", "w.bin": b"pesos"})
        yield running


def test_a_commit_is_all_or_nothing(server: HubServer):
    before = server.state()
    good = ("file", {"path": "novo.txt", "content": "x", "encoding": "utf-8"})
    absent = "0" * 64
    wrong = {
        "LFS pointer pointed to a file that does not exist": ("lfsFile", {"path": "w.bin", "oid": absent, "size": 1}),
        "A file with this name doesn't exist": ("deletedFile", {"path": "nada"}),
        "A file with this name doesn't exist: sub": ("deletedFile", {"path": "sub"}),
        "Invalid path: ../x": ("file", {"path": "../x", "content": ""}),
        "Invalid path: /x": ("file", {"path": "/x", "content": ""}),
        "Invalid path: .git/config": ("file", {"path": ".git/config", "content": ""}),
        "Unknown operation: copy": ("copy", {"path": "x"}),
        "a.txt is a file, so it cannot be a folder": ("file", {"path": "a.txt/b", "content": ""}),
        "Invalid metadata in README.md": ("file", {"path": "README.md", "content": "---\n- a\n---\n"}),
    }
    for message, operation in wrong.items():
        status, answer = commit(server, good, operation)
        assert status in (400, 404), answer
        assert message in answer["error"]
    for body in (b"{", b"[]", b'{"key": "file", "value": {"path": "x"}}', b'{"key": "header", "value": {}}', b""):
        assert ask(server, "POST", COMMIT, body)[0] == 400
    assert commit(server, good, parentCommit="0" * 40)[0] == 412
    assert server.state() == before
    assert not server.writes()


def test_a_commit_of_nothing_is_a_commit(server: HubServer):
    before, history = server.state(), server.history("ana/m")
    status, answer = commit(server)
    assert (status, server.state()) == (200, before)
    assert [made.oid for made in server.history("ana/m")] == [answer["commitOid"], *(made.oid for made in history)]


def test_uploads_are_checked_against_their_sha256(server: HubServer):
    content = b"pesos novos"
    sha256 = hashlib.sha256(content).hexdigest()
    objects = [{"oid": sha256, "size": len(content)}, {"oid": "x", "size": 1}]
    objects.append({"oid": hashlib.sha256(b"pesos").hexdigest(), "size": 5})
    _, answer = ask(server, "POST", "/ana/m.git/info/lfs/objects/batch", {"objects": objects})
    assert [sorted(item) for item in answer["objects"]] == [
        ["actions", "oid", "size"],
        ["error", "oid", "size"],
        ["oid", "size"],
    ]
    address = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(server.hub.storage_url)
    verify = "/api/models/ana/m/lfs-verify"
    assert ask(server, "PUT", address, b"pesos errados", token=None)[0] == 400
    assert ask(server, "POST", verify, objects[0])[0] == 404
    assert ask(server, "PUT", f"{address}/1", content[:5], token=None)[0] == 200
    parts = [{"partNumber": 1, "etag": hashlib.md5(content[:5]).hexdigest()}]
    assert ask(server, "POST", f"{address}/complete", {"parts": parts}, token=None)[0] == 400
    for number, etag in ((1, "x"), (2, parts[0]["etag"])):
        wrong = {"parts": [{"partNumber": number, "etag": etag}]}
        answer = ask(server, "POST", f"{address}/complete", wrong, token=None)
        assert answer == (400, {"error": f"Part {number} was not uploaded, or is another one"})
    assert ask(server, "PUT", address, content, token=None)[0] == 200
    assert ask(server, "POST", verify, objects[0])[0] == 200
    assert ask(server, "POST", verify, {**objects[0], "size": 1})[0] == 404
    assert ask(server, "POST", "/ana/m.git/info/lfs/objects/batch", {"objects": objects}, token="hf_ler")[0] == 403
    commit(server, ("lfsFile", {"path": "n.bin", "algo": "sha256", "oid": sha256, "size": len(content)}))
    assert server.files("ana/m")["n.bin"] == content


def test_which_files_go_through_lfs(tmp_path: Path):
    from hub_files import is_lfs

    cases = [("a.txt", "ação".encode()[:3]), ("a.bin", b"x"), ("a.dat", b"a\0"), ("a.dat", b"\xff\xfe"), ("a.bin", b"")]
    assert [is_lfs(name, content, len(content)) for name, content in cases] == [False, True, True, True, False]
    assert is_lfs("a.txt", b"a" * 512, 2000, lfs_bytes=1000)


def test_the_client_is_told_how_to_send_each_file(server: HubServer):
    text = {"path": "a.txt", "size": 1, "sample": "YQ=="}
    weights = {"path": "w.bin", "size": 5, "sample": "cGVzb3M="}
    new = {"path": "sub/x.log", "size": 1, "sample": "AA=="}
    payload = {"files": [text, weights, new], "gitIgnore": "*.log\n"}
    _, answer = ask(server, "POST", "/api/models/ana/m/preupload/main", payload)
    shown = [(file["uploadMode"], file["shouldIgnore"], file["oid"]) for file in answer["files"]]
    # The id of a file that is there: git's for text, the sha256 for LFS; by it the client leaves out what did not change.
    assert shown == [
        ("regular", False, "2e65efe2a145dda7ee51d1741299f848e5bf752e"),  # printf a | git hash-object --stdin
        ("lfs", False, hashlib.sha256(b"pesos").hexdigest()),
        ("lfs", True, None),
    ]
    assert ask(server, "POST", "/api/models/ana/m/preupload/x", payload)[0] == 404


def test_parts_of_a_file(server: HubServer):
    asked = urllib.request.Request(f"{server.url}/ana/m/resolve/main/w.bin", headers={"Range": "bytes=1-2"})
    with urllib.request.urlopen(asked) as answer:
        assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, b"es", "bytes 1-2/5")
    asked.add_header("Range", "bytes=3-")
    with urllib.request.urlopen(asked) as answer:
        assert answer.read() == b"os"
    asked.add_header("Range", "bytes=9-")
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(asked)


def test_commits_at_the_same_time_are_a_chain(server: HubServer):
    def write(number: int) -> None:
        commit(server, ("file", {"path": f"{number}.txt", "content": str(number)}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.history("ana/m")) == 14
    assert {f"{number}.txt" for number in range(12)} <= {*server.files("ana/m")}
    assert [request.number for request in server.requests] == [*range(1, 13)]


def test_a_tree_written_by_hand_is_read_again_until_it_is_written_to(tmp_path: Path):
    main = tmp_path / "hub/models/ana/m/main"
    main.mkdir(parents=True)
    (main / "a.txt").write_text("1", encoding="utf-8")
    (main / "w.bin").write_bytes(b"pesos")
    with HubServer(tmp_path / "hub", tokens=TOKENS) as server:
        first = server.commit("ana/m")
        (main / "a.txt").write_text("2", encoding="utf-8")
        second = server.commit("ana/m")
        assert first != second
        sha256 = hashlib.sha256(b"pesos").hexdigest()
        assert commit(server, ("lfsFile", {"path": "copia.bin", "oid": sha256}))[0] == 200
        assert [made.oid for made in server.history("ana/m")][1:] == [second]
        assert server.files("ana/m") == {"a.txt": b"2", "w.bin": b"pesos", "copia.bin": b"pesos"}
    with HubServer(tmp_path / "hub", tokens=TOKENS) as server:  # and it is all there the next time
        assert len(server.history("ana/m")) == 2
    assert (main / "a.txt").read_text(encoding="utf-8") == "2"


def test_the_same_writes_give_the_same_ids_and_no_token_is_logged(tmp_path: Path):
    oids = []
    for name in ("um", "outro"):
        with HubServer(tmp_path / name, tokens=TOKENS) as server:
            ask(server, "POST", "/api/repos/create", {"name": "m"})
            oids.append(commit(server, ("file", {"path": "a", "content": "x"}))[1]["commitOid"])
            assert ask(server, "GET", "/api/models/ana/m", token="hf_segredo")[0] == 401
            assert server.writes() == ["create_repo", "commit"]
            assert {*server.writes()} <= {*WRITES}
            shown = repr([server.requests, server.hub, server.faults, server.state()])
            on_disk = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / name).rglob("*.json"))
            assert "hf_" not in shown + on_disk
    assert oids[0] == oids[1]


def test_names_cannot_leave_the_folder(server: HubServer, tmp_path: Path):
    (tmp_path / "fora/x/main").mkdir(parents=True)
    (tmp_path / "fora/x/main/w.bin").write_bytes(b"segredo")
    for name in ("..%2f..%2ffora/x", "ana/..", "ana%2f../m", "%2e%2e/fora"):
        assert ask(server, "GET", f"/api/models/{name}")[0] in (400, 404), name
    stored = hashlib.sha256(b"segredo").hexdigest()
    assert ask(server, "GET", f"/storage/..%2f/fora/x/{stored}")[0] == 404
    for name in ("../x", "a/b", "..", ".git", "a.git", ""):
        assert ask(server, "POST", "/api/repos/create", {"name": name})[0] == 400, name
    assert ask(server, "POST", "/api/repos/create", {"name": "x", "organization": "../ana"})[0] == 403


def test_it_serves_by_hand(tmp_path: Path):
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py")), str(tmp_path), "--user", "ana=hf_ana"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split("HF_ENDPOINT=")[1].split()[0]
            request = urllib.request.Request(f"{url}/api/whoami-v2", headers={"Authorization": "Bearer hf_ana"})
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer)["name"] == "ana"
        finally:
            process.terminate()
