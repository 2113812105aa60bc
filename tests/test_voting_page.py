"""The page on which people vote: its server's refusals, kills and reloads; and, marked slow, the page in a browser."""

import http.client
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_study import MARKUP, SYSTEMS, a_vote, write_study

from teenytinyllama.checks import InputError, MissingPackageError
from teenytinyllama.people import booth as ballots
from teenytinyllama.people.study import read_study
from teenytinyllama.people.votes import VoteFile
from teenytinyllama.people.voting import (
    MOST_BODY_BYTES,
    check_address,
    make_voting_app,
    names_of,
    own_address,
    serve_votes,
)

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra: pip install 'teenytinyllama[people]'")
pytest.importorskip("uvicorn", reason="needs the extra: pip install 'teenytinyllama[people]'")

NO_MARKS: dict[str, list[str]] = {"left": [], "right": []}
OURS = "http://127.0.0.1:7861"


def client_of(folder: Path, **options: Any) -> Any:
    return testclient.TestClient(make_voting_app(folder, **options), base_url=OURS)


def pair_of(client: Any, voter: str) -> Any:
    answer = client.post("/pair", json={"voter": voter})
    assert answer.status_code == 200, answer.text
    return answer.json()


def vote_of(client: Any, voter: str, offer: str, choice: str = "left", **more: Any) -> Any:
    return client.post("/vote", json={"voter": voter, "offer": offer, "choice": choice, "marks": NO_MARKS, **more})


def votes_in(folder: Path) -> list[Any]:
    return VoteFile(folder / "votes.jsonl", read_study(folder).prompts_sha256).read()


# --- where the page is served


def test_addresses_that_cannot_be_served_on() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port={port}: already in use on 127.0.0.1. End the program that uses it"):
            check_address("127.0.0.1", port)
    with pytest.raises(InputError, match=r"host=192.0.2.1: cannot be served \(Cannot assign requested address\)"):
        check_address("192.0.2.1", 0)
    with pytest.raises(InputError, match="host=no such name: no such address"):
        check_address("no such name", 0)
    assert check_address("127.0.0.1", 0) == check_address("localhost", 0) == ""
    assert check_address("0.0.0.0", 0).startswith(
        "warning: host=0.0.0.0: anybody on the network who opens the page can"
    )


def test_nothing_is_served_without_a_study_the_extra_or_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"has no study.json, so it is no folder of a comparison"):
        serve_votes(tmp_path, port=0)
    folder = write_study(tmp_path / "s")
    (folder / "votes.jsonl").write_text("{}\n{}\n")
    with pytest.raises(InputError, match=r"votes.jsonl: line 1 is damaged \('vote' is missing\)"):
        serve_votes(folder, port=0)
    with pytest.raises(InputError, match=r"votes.jsonl: line 1 is damaged"):
        make_voting_app(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'teenytinyllama\[people\]'"):
        serve_votes(folder, port=0)


@pytest.mark.parametrize(
    ("host", "header", "is_own"),
    [
        ("127.0.0.1", "127.0.0.1:7861", True), ("127.0.0.1", "LOCALHOST", True), ("127.0.0.1", "[::1]:7861", True),
        ("127.0.0.1", "evil.example:7861", False), ("127.0.0.1", "10.0.0.7", False), ("127.0.0.1", "", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False), ("127.0.0.1", "localhost:1@evil.example", False),
        ("0.0.0.0", "10.0.0.7:7861", True), ("0.0.0.0", "[fe80::1]", True), ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", socket.gethostname(), True),
    ],
)  # fmt: skip
def test_the_server_knows_its_own_names(host: str, header: str, is_own: bool) -> None:
    assert names_of(host)(header) == is_own


# --- what a request may do


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


def test_foreign_hosts_other_origins_and_large_bodies_are_refused(folder: Path) -> None:
    client = client_of(folder)
    assert client.get("/").status_code == 200
    for headers, status in (
        ({"Host": "evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 400),
        ({"Origin": "null"}, 400),
        ({"Sec-Fetch-Site": "cross-site"}, 400),
        ({"Content-Type": "text/plain"}, 422),  # which any page may send
        ({"Origin": OURS, "Sec-Fetch-Site": "same-origin"}, 200),
    ):
        body = json.dumps({"voter": "Ana"})
        answer = client.post("/pair", content=body, headers={"Content-Type": "application/json"} | headers)
        assert answer.status_code == status, headers
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link to the page
    large = b" " * (MOST_BODY_BYTES + 1)
    for content in (large, iter([large[:9], large])):  # with its length told, and without
        assert client.post("/vote", content=content, headers={"Content-Type": "application/json"}).status_code == 413
    for path in ("/docs", "/openapi.json", "/study.json", "/votes.jsonl", "/../study.json"):
        assert client.get(path).status_code == 404
    assert not (folder / "votes.jsonl").exists()


def test_the_headers_keep_the_page_to_itself(folder: Path) -> None:
    answer = client_of(folder).get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "set-cookie" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert not re.findall(r"(?:src|href)=\"(?!data:,)", answer.text)
    assert "://" not in answer.text


@pytest.mark.parametrize("body", [b"{oops", b"[]", b'"x"', b"", b"[" * 30_000, b'{"voter": NaN}', b"\xff"])
def test_bodies_that_are_no_object_are_refused(body: bytes, folder: Path) -> None:
    client = testclient.TestClient(make_voting_app(folder), base_url=OURS, raise_server_exceptions=False)
    for path in ("/count", "/pair", "/vote", "/undo"):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), (path, answer.text)


@pytest.mark.parametrize("voter", ["", " ", "x" * 41, "a\0b", "a\u202eb", "\ud800", None, 7, ["Ana"], "x" * 9999])
def test_nicknames_that_cannot_be_shown_are_refused(voter: object, folder: Path) -> None:
    answer = client_of(folder).post("/pair", content=json.dumps({"voter": voter}),
                                    headers={"Content-Type": "application/json"})  # fmt: skip
    assert (answer.status_code, answer.json()["detail"]) == (422, ballots._NO_VOTER)


def test_a_nickname_is_one_person_however_it_is_written(folder: Path) -> None:
    client = client_of(folder)
    assert pair_of(client, " José  da\tSilva ")["voter"] == "José da Silva"
    assert pair_of(client, "JOSE\u0301 da silva")["voter"] == "José da Silva"
    assert client.post("/count", json={"voter": "josé da silva"}).json() == {"voter": "José da Silva", "votes": 0}


def test_too_many_nicknames_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ballots, "MOST_VOTERS", 2)
    client = client_of(folder)
    pair_of(client, "a")
    pair_of(client, "b")
    answer = client.post("/pair", json={"voter": "c"})
    assert (answer.status_code, answer.json()["detail"]) == (429, ballots._TOO_MANY)
    pair_of(client, "A")


def test_votes_are_taken_for_the_pair_that_was_offered_only(folder: Path) -> None:
    client = client_of(folder)
    ana, beto = pair_of(client, "Ana")["offer"], pair_of(client, "Beto")["offer"]
    for voter, offer in (("Ana", beto), ("Ana", "f" * 32), ("Ana", None), ("Caio", ana), ("Ana", {"x": 1})):
        answer = vote_of(client, voter, offer)
        assert (answer.status_code, answer.json()["detail"]) == (409, ballots._NO_PAIR)
    for bad in (
        {"choice": "both"}, {"choice": None}, {"marks": {}}, {"marks": {"left": ["x"], "right": []}},
        {"comment": 7}, {"comment": "x" * 2001}, {"seconds": -1}, {"seconds": "x"}, {"seconds": True}, {"seconds": None},
    ):  # fmt: skip
        answer = vote_of(client, "Ana", ana, **bad)
        assert (answer.status_code, answer.json()["detail"]) == (422, ballots.NO_VOTE), bad
    assert not (folder / "votes.jsonl").exists()
    marks = {"right": ["truth"], "left": []}
    assert vote_of(client, "Ana", ana, "right", marks=marks, comment=" \ud83d bom\0 ".encode("utf-16", "surrogatepass")
                   .decode("utf-16", "replace"), seconds=1e9).status_code == 200  # fmt: skip
    (vote,) = votes_in(folder)
    assert (vote.vote, vote.voter, vote.choice, vote.marks, vote.seconds) == (ana, "Ana", "right", marks, 86_400)
    study = read_study(folder)
    assert vote.answers == {side: study.answer_sha256(getattr(vote, side), vote.prompt) for side in ("left", "right")}
    again = vote_of(client, "Ana", ana, "left").json()  # sent twice, as after a broken connection
    assert again["already"]
    assert again["votes"] == len(votes_in(folder)) == 1
    assert votes_in(folder)[0].choice == "right"


def test_undo_brings_the_pair_back_with_what_was_said(folder: Path) -> None:
    client = client_of(folder)
    first = pair_of(client, "Ana")
    marks = {"left": ["language"], "right": []}
    second = vote_of(client, "Ana", first["offer"], "both_bad", marks=marks, comment="hum").json()
    third = vote_of(client, "Ana", second["offer"]).json()
    for voter, vote in (("Beto", third["undo"]), ("Ana", first["offer"]), ("Ana", None)):
        answer = client.post("/undo", json={"voter": voter, "vote": vote})
        assert (answer.status_code, answer.json()["detail"]) == (409, ballots._NO_UNDO)
    back = client.post("/undo", json={"voter": "Ana", "vote": third["undo"]}).json()
    assert (back["prompt"], back["answers"]) == (second["prompt"], second["answers"])
    back = client.post("/undo", json={"voter": "Ana", "vote": back["undo"]}).json()
    assert (back["prompt"], back["answers"], back["undo"]) == (first["prompt"], first["answers"], None)
    assert back["before"] == {"choice": "both_bad", "marks": marks, "comment": "hum"}
    assert votes_in(folder) == []
    assert vote_of(client, "Ana", first["offer"]).status_code == 409
    assert vote_of(client, "Ana", back["offer"]).json()["votes"] == 1


def test_no_name_of_a_system_ever_reaches_the_page(folder: Path) -> None:
    client = client_of(folder)
    said = [client.get("/").text, json.dumps(dict(client.get("/").headers))]
    state = pair_of(client, "Ana")
    while state["offer"]:
        answer = vote_of(client, "Ana", state["offer"])
        said.append(answer.text + str(answer.headers))
        state = answer.json()
    assert state["judged"] == state["all"] == 36
    assert state["votes"] > 36
    said += [vote_of(client, "Ana", "x").text, client.post("/undo", json={"voter": "Ana", "vote": "x"}).text]
    assert not [name for name in SYSTEMS if name in "".join(said)]


def test_pairs_survive_a_reload_and_a_new_server(folder: Path) -> None:
    client = client_of(folder)
    ana, beto = pair_of(client, "Ana"), pair_of(client, "Beto")
    assert pair_of(client, "Ana") == ana
    assert (ana["prompt"], ana["answers"]) != (beto["prompt"], beto["answers"])
    client = client_of(folder)
    assert pair_of(client, "Ana") == ana
    vote_of(client, "Ana", ana["offer"])
    offers = folder / "offers.json"
    for damage in (b"{oops", b'{"Ana": {"id": 7}}', b'{"Ana": 7}', b"\xff", b"[" * 90_000):
        offers.write_bytes(damage)
        assert pair_of(client_of(folder), "Ana")["votes"] == 1


def test_a_pair_that_waits_too_long_is_free_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballot = ballots.VotingBooth(read_study(folder))
    seen: list[int] = []
    choose = ballot.chooser.choose
    monkeypatch.setattr(ballot.chooser, "choose", lambda v, votes, p: seen.append(len(p)) or choose(v, votes, p))
    ballot.state("Ana")
    ballot.state("Beto")
    monkeypatch.setattr(time, "time", lambda clock=time.time: clock() + 1801)
    ballot.state("Caio")
    assert seen == [0, 1, 0]


# --- the real server


def ask(port: int, path: str, body: dict[str, Any]) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200
    return json.loads(answer.read())


@contextmanager
def served(folder: Path, host: str = "127.0.0.1") -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Yield the server as a process, its port and what it said; end it as Ctrl-C does."""
    code = "import sys; from pathlib import Path; from teenytinyllama.people.voting import serve_votes; "
    code += "from teenytinyllama.checks import run_main; sys.exit(run_main(lambda: serve_votes(Path(sys.argv[1]), sys.argv[2], 0)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code, str(folder), host]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert server.stdout is not None
        said = ""
        while "takes votes" not in said:
            line = server.stdout.readline()
            assert line, said
            said += line
        yield server, int(re.findall(r"http://\S+:(\d+) takes votes", said)[0]), said
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        finally:
            server.kill()
            server.wait()


@pytest.mark.slow
def test_votes_survive_a_killed_server(folder: Path) -> None:
    with served(folder) as (server, port, said):
        assert f"http://127.0.0.1:{port} takes votes (no votes yet). Ctrl-C ends it." in said
        with pytest.raises(InputError, match="another process already serves this comparison. Use its page, or end it"):
            serve_votes(folder, port=0)
        state = ask(port, "/pair", {"voter": "Ana"})
        for _ in range(3):
            body = {"voter": "Ana", "offer": state["offer"], "choice": "left", "marks": NO_MARKS}
            state = ask(port, "/vote", body)
        server.kill()
    with (folder / "votes.jsonl").open("ab") as file:
        file.write(b'{"vote": "12')  # cut off in the middle of a write
    with served(folder) as (server, port, said):
        assert "takes votes (3 votes of 1 person)" in said
        assert ask(port, "/pair", {"voter": "Ana"}) == state
        body = {"voter": "Ana", "offer": state["offer"], "choice": "both_good", "marks": NO_MARKS}
        assert ask(port, "/vote", body)["votes"] == 4
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    assert [vote.choice for vote in votes_in(folder)] == ["left"] * 3 + ["both_good"]


def test_who_serves_the_network_is_warned(folder: Path) -> None:
    with served(folder, "0.0.0.0") as (_, port, said):
        assert "warning: host=0.0.0.0: anybody on the network" in said
        assert f"http://{own_address()}:{port} takes votes" in said, "0.0.0.0 is nothing that a phone can open"
        assert not ipaddress.ip_address(own_address()).is_unspecified
        assert ask(port, "/pair", {"voter": "Ana"})["offer"]


# --- the page in a browser


class VotingTab:
    """A browser tab with the page, and what it asked of other hosts."""

    def __init__(self, browser: Any, port: int, width: int = 1280, dark: bool = False, context: Any = None) -> None:
        size = {"width": width, "height": 800 if width > 600 else 740}
        self.context = context or browser.new_context(viewport=size, color_scheme="dark" if dark else "light")
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(f"http://127.0.0.1:{port}/")

    def enter(self, name: str) -> None:
        self.page.get_by_label("Seu apelido").fill(name)
        self.page.keyboard.press("Enter")
        self.wait("Par 1")

    def wait(self, title: str) -> None:
        self.page.locator("h1:visible", has_text=re.compile(rf"^{re.escape(title)}")).wait_for()
        # `wait_for_function` would need eval, which the page's policy forbids.
        while not self.page.evaluate("!isBusy && (state === null || !state.offer || isSettled())"):
            self.page.wait_for_timeout(20)

    def texts(self) -> list[str]:
        return [self.page.locator(f"#{name}").text_content() for name in ("prompt", "left", "right")]

    def shot(self, name: str) -> None:
        if folder := os.environ.get("TTL_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png")

    def close(self) -> None:
        assert self.errors == []
        self.context.close()


LONG = "Querida vó,\n\n" + "o domingo na sua casa foi o melhor da semana: o bolo de fubá, a rede e as histórias. " * 5


@pytest.mark.slow
def test_a_button_pressed_on_a_phone_leans_no_next_pair(browser: Any, folder: Path) -> None:
    with served(folder) as (_, port, _):
        size = {"width": 390, "height": 844}
        tab = VotingTab(browser, port, context=browser.new_context(viewport=size, has_touch=True, is_mobile=True))
        tab.enter("Ana")
        tab.page.locator('[data-choice="left"]').tap()
        tab.wait("Par 2")
        colours = [
            tab.page.locator(f'[data-choice="{choice}"]').evaluate("one => getComputedStyle(one).backgroundColor")
            for choice in ("left", "right")
        ]
        assert colours[0] == colours[1]
        tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_a_person_votes_undoes_and_goes_on(width: int, browser: Any, tmp_path: Path) -> None:
    long = {number: LONG + str(number) for number in range(12)}
    folder = write_study(tmp_path / "s", lhama_secreta_160m=long)
    with served(folder) as (_, port, _):
        tab = VotingTab(browser, port, width)
        assert tab.page.evaluate("document.documentElement.lang") == "pt-BR"
        tab.page.locator("#start").wait_for()
        tab.shot(f"start-{width}")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.enter("Ana")
        assert tab.page.evaluate("document.activeElement.id") == "title"
        tab.shot(f"pair-{width}")
        first = tab.texts()
        tab.page.get_by_label("Texto B: problema de verdade").check()
        tab.page.locator("summary").click()
        tab.page.get_by_label("O que decidiu").fill("hum 1234")  # typing digits is no vote
        assert votes_in_file(folder) == 0
        tab.page.get_by_role("button", name="A é melhor").click()
        tab.page.get_by_text("Par 2").wait_for()
        tab.page.evaluate("shownAt = performance.now() + 1e9")  # as if it had come this moment
        tab.page.keyboard.press("1")
        tab.page.evaluate("shownAt = 0")
        tab.wait("Par 2")
        assert tab.page.locator("#status").text_content() == "Guardado: A é melhor."
        for number, key in enumerate("2341", start=3):
            tab.page.keyboard.press(key)
            tab.wait(f"Par {number}")
        votes = votes_in(folder)
        assert [vote.choice for vote in votes] == ["left", "right", "both_good", "both_bad", "left"]
        assert (votes[0].marks, votes[0].comment) == ({"left": [], "right": ["truth"]}, "hum 1234")
        assert all(0 <= vote.seconds < 60 for vote in votes)
        now = tab.texts()
        tab.page.reload()
        tab.wait("Par 6")
        assert tab.texts() == now
        for number in range(5, 0, -1):
            tab.page.keyboard.press("Control+z")
            tab.wait(f"Par {number}")
        assert tab.texts() == first
        assert tab.page.get_by_label("Texto B: problema de verdade").is_checked()
        assert tab.page.get_by_label("O que decidiu").input_value() == "hum 1234"
        assert tab.page.get_by_role("button", name="A é melhor").get_attribute("aria-pressed") == "true"
        assert tab.page.get_by_role("button", name="Desfazer o último voto").is_disabled()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.shot(f"undone-{width}")
        for button in tab.page.locator(".vote button").all():
            assert button.bounding_box()["height"] >= 44
        assert tab.hosts == {f"127.0.0.1:{port}"}
        assert tab.context.cookies() == []
        assert tab.page.evaluate("JSON.stringify(localStorage)") == '{"ttl-apelido":"Ana"}'
        tab.close()


def votes_in_file(folder: Path) -> int:
    path = folder / "votes.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_texts_are_text_and_an_empty_one_is_named(browser: Any, tmp_path: Path) -> None:
    folder = write_study(
        tmp_path / "s", 1, SYSTEMS[:2], "base", lhama_secreta_160m={0: MARKUP}, mini_oculta_base={0: " "}
    )
    with served(folder) as (_, port, _):
        tab = VotingTab(browser, port, 360, dark=True)
        tab.enter("<b>Ana</b>")
        assert sorted(tab.texts()[1:]) == sorted([MARKUP, "(texto vazio)"])
        assert tab.page.locator(".text *, #count *").count() == 0
        assert tab.page.evaluate("window.pwned") is None
        assert tab.page.get_by_text("Começo do texto, que A e B continuam").is_visible()
        tab.shot("dark-360")
        tab.page.keyboard.press("4")
        tab.wait("Você julgou todos os pares. Obrigado!")
        tab.shot("end-360")
        tab.page.get_by_role("button", name="Desfazer o último voto").click()
        tab.wait("Par 1")
        assert votes_in(folder) == []
        tab.close()


@pytest.mark.slow
def test_two_people_a_known_nickname_and_a_dead_server(browser: Any, folder: Path) -> None:
    with served(folder) as (server, port, _):
        ana, beto = VotingTab(browser, port), VotingTab(browser, port)
        ana.enter("Ana")
        beto.enter("Beto")
        assert ana.texts() != beto.texts()
        ana.page.keyboard.press("1")
        ana.wait("Par 2")
        beto.page.get_by_role("button", name="Trocar de apelido").click()
        beto.page.get_by_label("Seu apelido").fill("ana")
        beto.page.get_by_role("button", name="Começar").click()
        beto.page.get_by_text("O apelido Ana já tem 1 voto neste estudo. É você que está voltando?").wait_for()
        beto.shot("known-1280")
        beto.page.get_by_role("button", name="Sim, sou eu").click()
        beto.wait("Par 2")
        assert beto.texts() == ana.texts()
        ana.page.keyboard.press("2")
        ana.wait("Par 3")
        beto.page.keyboard.press("1")  # the same pair in another tab
        beto.wait("Par 3")
        assert beto.page.locator("#status").text_content() == "Este par já tinha o seu voto."
        assert [vote.choice for vote in votes_in(folder)] == ["left", "right"]
        beto.close()
        server.kill()
        server.wait()
        ana.page.keyboard.press("3")
        ana.page.get_by_text("Sem conexão com o servidor: nada foi guardado agora. Tente de novo.").locator(
            "visible=true"
        ).wait_for()
        ana.shot("dead-1280")
        assert ana.page.get_by_role("button", name="Ambos ruins").is_enabled()
        ana.context.close()


@pytest.mark.slow
def test_the_keyboard_is_enough_and_everything_has_a_label(browser: Any, folder: Path) -> None:
    with served(folder) as (_, port, _):
        tab = VotingTab(browser, port)
        tab.page.keyboard.type("Ana")
        tab.page.keyboard.press("Enter")
        tab.wait("Par 1")
        missing = tab.page.evaluate(
            "[...document.querySelectorAll('input, textarea, progress')].filter("
            "e => !e.labels?.length && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
        )
        assert missing == []
        names = []
        for _ in range(12):
            tab.page.keyboard.press("Tab")
            names.append(tab.page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
            assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", names
        assert "Texto A: problema de língua" in names
        assert [name.split("\n")[0].strip() for name in names if "é melhor" in name] == ["A é melhor 1", "B é melhor 2"]
        tab.page.get_by_label("Texto A: problema de sentido").focus()
        tab.page.keyboard.press("Space")
        tab.page.keyboard.press("2")  # with a box in focus too
        tab.wait("Par 2")
        assert votes_in(folder)[0].marks["left"] == ["sense"]
        tab.close()


def test_votes_of_another_study_end_the_server_before_it_starts(folder: Path) -> None:
    VoteFile(folder / "votes.jsonl", "a" * 64).append(a_vote())
    with pytest.raises(InputError, match="line 1 is a vote of other prompts"):
        serve_votes(folder, port=0)
