"""The page of `ttl app`: search, sessions, Spaces, refusals; and, marked slow, the page itself in a browser."""

import ast
import http.client
import importlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from teenytinyllama import __version__, cli
from teenytinyllama.arguments import parse
from teenytinyllama.chat import talk
from teenytinyllama.chat.generation import WRITING_THREAD, without_leading_space
from teenytinyllama.chat.page import AppConfig, as_cards, as_conversation, check_address, is_loopback
from teenytinyllama.chat.space import run_app, write_space
from teenytinyllama.chat.talk import (
    AnsweredQuestion,
    Match,
    SearchIndex,
    Session,
    Speaker,
    accept,
    begin_again,
    read_pairs,
    read_sampling,
    stop,
)
from teenytinyllama.chat.template import ConversationEncoder, install_chat_template
from teenytinyllama.checks import InputError, MissingPackageError
from teenytinyllama.data.turns import TOOL_TURN
from teenytinyllama.models import load_tokenizer

pytest.importorskip("gradio", reason="needs the extra: pip install 'teenytinyllama[app]'")
pytest.importorskip("sklearn", reason="needs the extra: pip install 'teenytinyllama[app]'")

QUESTION, ANSWER = "Quem vem?", "A menina vem com o cachorro."
MORE, MORE_ANSWER = "E depois?", "Depois ela volta para casa."
ATTACK, MARKUP = "Mostre.", '<img src=x onerror="pwned=1"><script>pwned=1</script> **a** ${pwned=1} {{1}}'
GREEDY = {"max_new_tokens": 200, "temperature": 0, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1, "seed": 42}
ROWS = [
    {"instruction": "Quem traz o cachorro?", "output": ANSWER, "source": "contos"},
    {"instruction": "Quem tem um cachorro?", "output": "A menina tem um cachorro e um gato.", "source": "contos"},
    {"instruction": "O que é fotossíntese?", "output": "As plantas transformam luz em energia.", "source": "escola"},
    {"instruction": MARKUP, "output": f"Cuidado com a marcação: {MARKUP}", "source": MARKUP},
]


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def save_model(folder: Path, tokenizer_folder: Path, kind: str) -> Path:
    """`heart` has learnt three answers, `endless` writes for hours, `base` has no chat template."""
    tokenizer = load_tokenizer("tokenizer", str(tokenizer_folder))
    install_chat_template(tokenizer)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1 << 17 if kind == "endless" else 512,
            bos_token_id=1, eos_token_id=2, pad_token_id=3,
        )
    )  # fmt: skip
    if kind == "heart":
        encoder = ConversationEncoder(tokenizer)
        learn(
            model, [encoder.encode(turns(QUESTION, ANSWER, MORE, MORE_ANSWER)), encoder.encode(turns(ATTACK, MARKUP))]
        )
    elif kind == "endless":
        model.generation_config.suppress_tokens = [2]  # the end: a chat stops there whatever eos_token_id is
    else:
        tokenizer.chat_template = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learn(model: Any, conversations: list[Any]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    total = 1.0
    for _ in range(200):
        optimizer.zero_grad()
        total = 0.0
        for encoded in conversations:
            ids = torch.tensor([encoded.ids])
            loss = model(input_ids=ids, labels=torch.where(torch.tensor([encoded.is_answer]), ids, -100)).loss
            loss.backward()
            total += loss.item()
        optimizer.step()
        if total < 0.01:
            break
    assert total < 0.01


@pytest.fixture(scope="module")
def heart_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "heart", tokenizer_folder, "heart")


@pytest.fixture(scope="module")
def endless_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "endless", tokenizer_folder, "endless")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base", tokenizer_folder, "base")


def is_writing() -> bool:
    return any(thread.name == WRITING_THREAD for thread in threading.enumerate())


def speaker_of(folder: Path) -> Speaker:
    from teenytinyllama import from_pretrained

    return Speaker(*from_pretrained(folder))


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("instructions") / "dados.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


# --- search


def test_the_nearest_come_first(instructions: Path) -> None:
    pairs, left_out = read_pairs([str(instructions)])
    assert len(pairs) == 4
    assert not left_out
    index = SearchIndex(pairs)
    found = index.nearest(ANSWER)
    assert [match.pair.question for match in found[:2]] == ["Quem traz o cachorro?", "Quem tem um cachorro?"]
    assert found[0].percent == pytest.approx(100, abs=0.01)
    assert found[0].percent <= 100
    assert 5 < found[1].percent < 80
    assert index.nearest("fotossintese", "questions")[0].pair.source == "escola"  # no accent
    assert index.nearest("O que são fotossínteses?", "questions")[0].pair.source == "escola"  # another ending
    assert len(index.nearest("cachorro", "questions", number=1)) == 1


def test_nothing_similar_and_nothing_asked(instructions: Path) -> None:
    index = SearchIndex(read_pairs([str(instructions)])[0])
    for text in ("", "  ", "日本語", "xyzzyx qwrtqw"):
        assert index.nearest(text) == []
    assert "Nada para procurar" in as_cards([], "  ")
    assert "Nada parecido nos dados" in as_cards([], "xyzzyx")


def test_words_that_the_data_lacks_count_against_a_text() -> None:
    index = SearchIndex([AnsweredQuestion("?", "Brasília", "x"), AnsweredQuestion("?", "São Paulo", "x")])
    assert index.nearest("Brasília")[0].percent > 99
    assert index.nearest("Brasília zumbi xadrez quilombo")[0].percent < 60


def test_equal_texts_are_one_result_and_turns_are_pairs(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "system", "content": "Seja breve."}, *turns("Um?", "Sim senhora.", "Dois?", "Não.")]},
        {"messages": turns("Três?", "Sim senhora.")},
        {"messages": turns("Três?", "Sim senhora.")},
        {"messages": [{"role": "tool", "content": "x"}]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pairs, left_out = read_pairs([str(tmp_path)])
    assert [(pair.question, pair.source) for pair in pairs] == [("Um?", "a"), ("Dois?", "a"), ("Três?", "a")]
    assert dict(left_out) == {TOOL_TURN: 1}
    found = SearchIndex(pairs).nearest("Sim senhora.")
    assert [(match.pair.question, match.others) for match in found] == [("Um?", 1)]
    assert "o mesmo texto aparece mais 1 vez<" in as_cards(found, "x")


def test_the_embedded_conversations_can_be_searched(tmp_path: Path) -> None:
    pairs, left_out = read_pairs(["sample"])
    assert len(pairs) > 1000
    assert not left_out
    space = write_space("ana/lhama", AppConfig(instructions=["sample"], space_dir=str(tmp_path / "space")))
    assert "instructions=['sample']" in (space / "app.py").read_text()


@pytest.mark.parametrize(
    ("pieces", "text"), [([" ", "", "\n Olá", " mundo ", " "], "Olá mundo  "), (["", " "], ""), (["a ", " b"], "a  b")]
)
def test_an_answer_begins_with_its_first_word(pieces: list[str], text: str) -> None:
    assert "".join(without_leading_space(pieces)) == text


def test_instruction_data_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(InputError, match=r"instructions=.*a.jsonl: hold no conversation \(1 x no known form, first a"):
        read_pairs([str(tmp_path / "a.jsonl")])
    with pytest.raises(InputError, match=r"instructions=.*: no such file or folder"):
        read_pairs([str(tmp_path / "none.jsonl")])


def test_real_instruction_data_find_themselves(real_data: Path) -> None:
    file = real_data / "instruct" / "aira_ia_etica.parquet"
    if not file.exists():
        pytest.skip("no instruction data there")
    pairs, _ = read_pairs([str(file)])
    index = SearchIndex(pairs)
    for pair in pairs[::400]:
        assert index.nearest(pair.answer)[0].percent == pytest.approx(100, abs=0.01)


def test_texts_are_never_markup() -> None:
    shown = as_cards([Match(50.0, AnsweredQuestion(MARKUP, MARKUP * 20, MARKUP), 0)], MARKUP) + as_conversation(
        turns(MARKUP, MARKUP)
    )
    assert set(re.findall(r"<(\w+)", shown)) <= {
        "p",
        "q",
        "ol",
        "li",
        "div",
        "strong",
        "meter",
        "h3",
        "details",
        "summary",
    }
    assert not re.search(r"[{}$`]", shown)
    assert "&lt;script&gt;" in shown


# --- sessions


def test_two_turns_and_a_new_conversation(heart_folder: Path) -> None:
    speaker, session = speaker_of(heart_folder), Session()
    assert accept(session, f" {QUESTION} ").box == ""
    assert accept(session, "mais") == talk.View(talk.BUSY)
    views = list(speaker.answer(session, GREEDY, ""))
    assert [view.status for view in views] == [talk.READING, *[talk.WRITING] * (len(views) - 2), talk.DONE]
    assert len(views) > 4
    accept(session, MORE)
    list(speaker.answer(session, GREEDY, ""))
    assert session.shown == turns(QUESTION, ANSWER, MORE, MORE_ANSWER)
    assert session.chat is not None
    assert session.chat.turns == session.shown
    assert session.last_answer() == MORE_ANSWER
    assert begin_again(session).status == talk.NEW
    assert (session.shown, session.chat, session.last_answer()) == ([], None, "")
    assert accept(session, " ").status == talk.EMPTY
    assert list(speaker.answer(session, GREEDY, "")) == []


def test_sessions_share_a_model_and_nothing_else(heart_folder: Path) -> None:
    speaker, one, two = speaker_of(heart_folder), Session(), Session()
    accept(one, QUESTION)
    accept(two, ATTACK)
    for session in (one, two):
        list(speaker.answer(session, GREEDY, ""))
    assert one.shown == turns(QUESTION, ANSWER)
    assert two.shown == turns(ATTACK, MARKUP)
    assert one.chat is not None
    assert two.chat is not None
    assert one.chat.model is two.chat.model


def test_stopping_stops_the_model_and_keeps_what_was_written(endless_folder: Path) -> None:
    speaker, session = speaker_of(endless_folder), Session()
    stop(session)
    assert not session.stopped  # nothing to stop
    accept(session, QUESTION)
    answer = speaker.answer(session, {**GREEDY, "max_new_tokens": 50_000}, "")
    assert [next(answer).status, next(answer).status] == [talk.READING, talk.WRITING]
    assert is_writing()
    stop(session)
    assert [view.status for view in answer] == [talk.STOPPED]
    assert not is_writing()
    assert session.chat is not None
    assert session.chat.turns[-1]["content"] == session.last_answer().strip() != ""
    accept(session, QUESTION)
    stop(session)  # while it waits for its turn
    assert [view.status for view in speaker.answer(session, GREEDY, "")] == [talk.STOPPED]
    assert session.last_answer() == ""


def test_a_closed_tab_and_a_new_conversation_stop_the_model(endless_folder: Path) -> None:
    speaker, session = speaker_of(endless_folder), Session()
    accept(session, QUESTION)
    answer = speaker.answer(session, {**GREEDY, "max_new_tokens": 50_000}, "")
    next(answer)
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert not is_writing()
    assert session.pending is None
    accept(session, QUESTION)
    answer = speaker.answer(session, GREEDY, "")
    next(answer)
    answer.close()  # type: ignore[attr-defined]  # before its first word
    assert session.pending is None
    accept(session, QUESTION)
    answer = speaker.answer(session, {**GREEDY, "max_new_tokens": 50_000}, "")
    next(answer)
    next(answer)
    begin_again(session)
    assert session.status == talk.NEW
    accept(session, QUESTION)  # at once, before the old answer has noticed
    assert list(answer) == [talk.View(talk.WAITING)]  # what the page shall show, after the words that came too late
    assert session.shown == turns(QUESTION)
    assert (session.pending, session.stopped) == (QUESTION, False)
    assert not is_writing()


def test_what_cannot_be_answered_is_explained(heart_folder: Path) -> None:
    speaker, session = speaker_of(heart_folder), Session()
    for text, values, status in (
        ("casa " * 600, GREEDY, talk.TOO_LONG),
        (QUESTION, {**GREEDY, "top_p": 0}, talk.RULES["top_p"]),
    ):
        accept(session, text)
        (view,) = speaker.answer(session, values, "")
        assert (view.status, view.box) == (status, text.strip())
        assert session.shown == []
        assert session.pending is None
    speaker.tokenizer.chat_template = "{{ raise_exception('sem sistema') }}"
    accept(session, QUESTION)
    (view,) = speaker.answer(session, GREEDY, "Seja breve.")
    assert "não aceita a mensagem" in view.status
    assert "sem sistema" in view.status


def test_after_a_failure_the_next_message_can_be_sent(heart_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker, session = speaker_of(heart_folder), Session()
    monkeypatch.setattr(talk.Chat, "answer", lambda *a: (_ for _ in ()).throw(RuntimeError("broken")))
    accept(session, QUESTION)
    with pytest.raises(RuntimeError, match="broken"):
        list(speaker.answer(session, GREEDY, ""))
    assert talk.fail(session).status == talk.FAILED
    assert accept(session, QUESTION).status == talk.WAITING


@pytest.mark.parametrize("name", list(talk.RULES))
def test_controls_outside_their_range_are_explained(name: str) -> None:
    for value in (None, -1):
        with pytest.raises(InputError, match=re.escape(talk.RULES[name])):
            read_sampling({**GREEDY, name: value})
    assert read_sampling(GREEDY).seed == 42


def test_cut_answers_left_out_turns_and_the_system_text(heart_folder: Path) -> None:
    speaker, session = speaker_of(heart_folder), Session()
    values = {**GREEDY, "max_new_tokens": 3}
    accept(session, QUESTION)
    assert list(speaker.answer(session, values, "Seja breve."))[-1].status == talk.CUT
    assert session.chat is not None
    assert session.chat.system[0]["content"] == "Seja breve."
    session.chat.turns = turns(*["casa " * 60] * 4)
    accept(session, QUESTION)
    *_, last = speaker.answer(session, {**GREEDY, "max_new_tokens": 100}, "")
    assert "turnos mais antigos já não cabem" in last.status
    assert session.chat.system == []


def test_a_base_model_completes(base_folder: Path) -> None:
    speaker, session = speaker_of(base_folder), Session()
    accept(session, "Era uma vez")
    views = list(speaker.answer(session, {**GREEDY, "max_new_tokens": 4}, "ignored"))
    assert views[-1].status == talk.COMPLETED
    assert session.chat is not None
    assert session.chat.turns == []


# --- config and refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 0}, "port=0: must lie between 1 and 65535"),
        ({"host": ""}, "host='': empty"),
        ({"temperature": -1.0}, "temperature=-1.0: must be 0, or lie in"),
        ({"space_dir": "x", "port": 1234}, "host=127.0.0.1, port=1234: mean nothing with space_dir=x"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        AppConfig(**changes)


def test_the_config_is_read_from_the_command_line() -> None:
    config = parse(AppConfig, ["--instructions", "a.parquet", "b.jsonl", "--temperature", "0.2", "--port", "7999"])
    assert config.instructions == ["a.parquet", "b.jsonl"]
    assert config.temperature == 0.2
    with pytest.raises(InputError, match="share: unknown key"):
        parse(AppConfig, ["--share"])


def test_addresses() -> None:
    assert list(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9"))) == [True] * 4
    assert list(map(is_loopback, ("0.0.0.0", "192.168.0.9", "::", "example.invalid"))) == [False] * 4
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port={port}: already in use on 127.0.0.1. .*--port"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(InputError, match="host=192.0.2.1: cannot be served"):
        check_address("192.0.2.1", port)
    with pytest.raises(InputError, match="host=example.invalid: no such address"):
        check_address("example.invalid", port)


def test_a_reserved_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: Any, address: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {"bind": bind}))
    with pytest.raises(InputError, match="port=80: reserved for the system"):
        check_address("127.0.0.1", 80)


def test_without_the_extra_the_message_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"gradio, sklearn: .*pip install 'teenytinyllama\[app\]'"):
        run_app("160m", AppConfig())


def test_the_verb_refuses(capsys: pytest.CaptureFixture[str], base_folder: Path, tmp_path: Path) -> None:
    port = str(free_port())
    for argv, message in (
        ([], "ttl app: needs a model"),
        ([str(tmp_path / "none"), "--port", port], "no such folder"),
        ([str(base_folder), "--system", "x", "--port", port], "has no chat template, so it cannot be told anything"),
    ):
        assert cli.main(["app", *argv]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["app", "--help"]) == 0
    assert "--instructions" in capsys.readouterr().out


# --- Spaces


def space_arguments(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the model and the keywords of AppConfig in a Space's app.py, whose imports must work."""
    tree = ast.parse((folder / "app.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(importlib.import_module(str(node.module)), alias.name) for alias in node.names)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    run = next(call for call in calls if getattr(call.func, "id", "") == "run_app")
    made = run.args[1]
    assert isinstance(made, ast.Call)
    return ast.literal_eval(run.args[0]), {str(key.arg): ast.literal_eval(key.value) for key in made.keywords}


def test_a_space(tmp_path: Path, instructions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "space"
    argv = [
        "--space_dir",
        str(folder),
        "--instructions",
        str(instructions),
        "--temperature",
        "0.3",
        "--system",
        "Olá '{x}'",
    ]
    assert cli.main(["app", "460m-chat", *argv]) == 0
    assert "hf upload --repo-type space owner/name" in capsys.readouterr().out
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"app.py", "README.md", "requirements.txt", "instructions/dados.jsonl"}
    assert (folder / "instructions" / "dados.jsonl").read_bytes() == instructions.read_bytes()
    model, keywords = space_arguments(folder)
    assert model == "nicholasKluge/TeenyTinyLlama-460m-Chat"
    assert keywords == {
        "host": "0.0.0.0", "instructions": ["instructions/dados.jsonl"], "temperature": 0.3, "system": "Olá '{x}'",
    }  # fmt: skip
    AppConfig(**keywords)
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(header)
    import gradio

    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == gradio.__version__
    assert card["python_version"] == "3.12"
    assert card["app_file"] == "app.py"
    assert card["license"] == "apache-2.0"
    assert card["models"] == [model]
    assert card["title"] == "Converse com TeenyTinyLlama-460m-Chat"
    assert "`instructions`" in text
    assert f"teenytinyllama[app]=={__version__}" in (folder / "requirements.txt").read_text().splitlines()


def test_a_space_without_data_and_with_pinned_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_space("ana/modelo", AppConfig(space_dir=str(tmp_path / "a")))
    assert space_arguments(tmp_path / "a") == ("ana/modelo", {"host": "0.0.0.0"})
    assert "busca" not in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    pinned = "hf://datasets/ana/dados@" + "0" * 40
    monkeypatch.setattr("teenytinyllama.chat.space.read_pairs", lambda inputs: None)
    write_space("ana/modelo", AppConfig(space_dir=str(tmp_path / "b"), instructions=[pinned], revision="v1"))
    assert space_arguments(tmp_path / "b")[1] == {"host": "0.0.0.0", "instructions": [pinned], "revision": "v1"}


def test_spaces_that_are_refused(tmp_path: Path, base_folder: Path, instructions: Path) -> None:
    new = str(tmp_path / "new")
    with pytest.raises(InputError, match="MODEL=.*: is a folder on this machine, .*Publish the model first"):
        write_space(str(base_folder), AppConfig(space_dir=new))
    for name in ("modelo", "a/b/c", "a/b c"):
        with pytest.raises(InputError, match=f"MODEL={name}: is no Hub repository"):
            write_space(name, AppConfig(space_dir=new))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"space_dir=.*: is not empty \(mine.txt\)"):
        write_space("a/b", AppConfig(space_dir=str(tmp_path)))
    with pytest.raises(InputError, match="space_dir=.*: is a file"):
        write_space("a/b", AppConfig(space_dir=str(tmp_path / "mine.txt")))
    (tmp_path / "two").mkdir()
    shutil.copy(instructions, tmp_path / "two")
    with pytest.raises(InputError, match=r"instructions=.*: another file is called dados.jsonl too"):
        write_space("a/b", AppConfig(space_dir=new, instructions=[str(instructions), str(tmp_path / "two")]))
    with pytest.raises(InputError, match="instructions=.*no such file"):
        write_space("a/b", AppConfig(space_dir=new, instructions=[str(tmp_path / "none.jsonl")]))
    assert not Path(new).exists()


# --- the page in a browser

# Starts `ttl` and notes every address that the server asks for or connects to.
_RECORDING = """
import sys
seen = open(sys.argv[1], "a", buffering=1)
def note(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        seen.write(f"{arguments[1][0]}\\n")
    elif event == "socket.getaddrinfo":
        seen.write(f"{arguments[0]}\\n")
sys.addaudithook(note)
from teenytinyllama.cli import main
sys.exit(main(sys.argv[2:]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serve(folder: Path, log: Path, *options: str) -> Iterator[tuple[str, Path]]:
    """Yield the page's address and the file with the hosts that the server reached for."""
    port, hosts = free_port(), log / "hosts.txt"
    command = [sys.executable, "-c", _RECORDING, str(hosts), "app", str(folder), "--port", str(port), *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "GRADIO_ANALYTICS_ENABLED": "True"}
    with (log / "log.txt").open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + 400
            while not answers(port):
                assert server.poll() is None, (log / "log.txt").read_text()
                assert time.monotonic() < deadline, "the page did not start"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", hosts
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@pytest.fixture(scope="module")
def chat_page(heart_folder: Path, instructions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = ("--instructions", str(instructions), "--temperature", "0", "--repetition_penalty", "1.0")
    yield from serve(heart_folder, tmp_path_factory.mktemp("serve"), *options)


@pytest.fixture(scope="module")
def endless_page(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from serve(endless_folder, tmp_path_factory.mktemp("serve"), "--max_new_tokens", "50000")


@pytest.fixture(scope="module")
def base_page(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from serve(base_folder, tmp_path_factory.mktemp("serve"), "--max_new_tokens", "5")


class Tab:
    """A browser tab with the page, and what it asked of other hosts."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 800) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, locale="en-US")
        self.page.set_default_timeout(60_000)
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(address)
        self.box = self.page.locator("#ttl-box textarea")
        self.box.wait_for()
        self.page.wait_for_function("document.querySelector('#ttl-status')?.getAttribute('role') === 'status'")

    def say(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def wait(self, status: str) -> None:
        self.page.locator("#ttl-status", has_text=status).wait_for()

    def messages(self) -> list[str]:
        return list(self.page.locator("#ttl-shown .ttl-text").all_inner_texts())

    def wait_for_words(self, more_than: int) -> int:
        """Wait until the newest answer is longer than so many characters; return its length."""
        script = "n => { const t = [...document.querySelectorAll('.ttl-model p')].pop()?.textContent ?? ''; return t.length > n && t.length }"
        return int(self.page.wait_for_function(script, arg=more_than).json_value())

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def close(self) -> None:
        self.page.close()


@pytest.mark.slow
def test_conversation_search_and_no_other_host(browser: Any, chat_page: Any) -> None:
    address, hosts = chat_page
    tab = Tab(browser, address)
    assert tab.page.evaluate("document.documentElement.lang") == "pt-BR"
    tab.press("Comparar a última resposta com os dados")
    tab.page.locator("#ttl-nearest", has_text="Nada para procurar").wait_for()
    tab.say(QUESTION)
    tab.wait(talk.DONE)
    tab.say(MORE)
    tab.page.locator("#ttl-shown", has_text=MORE_ANSWER).wait_for()
    tab.wait(talk.DONE)
    assert tab.messages() == [QUESTION, ANSWER, MORE, MORE_ANSWER]
    tab.press("Nova conversa")
    tab.wait(talk.NEW)
    assert tab.messages() == []
    tab.say(QUESTION)
    tab.wait(talk.DONE)
    tab.press("Comparar a última resposta com os dados")
    first = tab.page.locator("#ttl-nearest li").first
    first.wait_for()
    assert "100 %" in first.inner_text()
    assert "Quem traz o cachorro?" in first.inner_text()
    assert "Fonte: contos" in first.inner_text()
    tab.page.get_by_role("tab", name="Busca nos dados").click()
    query = tab.page.get_by_label("Texto a procurar")
    for text, found in (("plantas e energia", "fotossíntese"), ("日本語", "Nada parecido"), ("", "Nada para procurar")):
        query.fill(text)
        query.press("Enter")
        tab.page.locator("#ttl-found", has_text=found).wait_for()
    assert tab.hosts == {address.removeprefix("http://")}
    assert set(hosts.read_text().split()) <= {"127.0.0.1", "localhost", "None"}
    tab.close()


@pytest.mark.slow
def test_markup_is_inert(browser: Any, chat_page: Any) -> None:
    tab = Tab(browser, chat_page[0])
    tab.say(ATTACK)
    tab.wait(talk.DONE)
    assert tab.messages() == [ATTACK, MARKUP]
    tab.say(MARKUP)
    tab.page.locator("#ttl-shown .ttl-user").nth(1).wait_for()
    tab.press("Comparar a última resposta com os dados")
    tab.page.locator("#ttl-nearest p").first.wait_for()
    tab.page.get_by_role("tab", name="Busca nos dados").click()
    tab.page.get_by_label("Texto a procurar").fill(MARKUP)
    tab.press("Procurar")
    card = tab.page.locator("#ttl-found li").first
    card.wait_for()
    assert MARKUP in card.inner_text()
    assert tab.page.locator("#ttl-shown img, #ttl-shown script, #ttl-found img, #ttl-found script").count() == 0
    assert tab.page.evaluate("window.pwned") is None
    tab.close()


@pytest.mark.slow
def test_words_come_one_by_one_and_stop_stops_the_model(browser: Any, endless_page: Any) -> None:
    tab = Tab(browser, endless_page[0])
    tab.say(QUESTION)
    length = 0
    for _ in range(4):
        length = tab.wait_for_words(length)
    tab.press("Parar")
    tab.wait(talk.STOPPED)
    stopped = tab.messages()
    start = time.monotonic()
    tab.say(QUESTION)
    tab.page.locator("#ttl-shown .ttl-model").nth(1).wait_for()
    tab.wait_for_words(0)
    assert time.monotonic() - start < 20  # the model would have gone on for minutes
    assert tab.messages()[:2] == stopped
    tab.press("Parar")
    tab.wait(talk.STOPPED)
    tab.close()


@pytest.mark.slow
def test_a_second_tab_waits_its_turn_and_a_closed_tab_frees_the_model(browser: Any, endless_page: Any) -> None:
    one, two = Tab(browser, endless_page[0]), Tab(browser, endless_page[0])
    one.say("Um")
    one.wait_for_words(0)
    two.say("Dois")
    two.wait(talk.WAITING)
    one.wait_for_words(one.wait_for_words(0))  # the first goes on
    assert two.messages() == ["Dois"]
    one.close()
    two.wait_for_words(0)
    assert two.messages()[0] == "Dois"
    two.press("Nova conversa")
    two.wait(talk.NEW)
    two.say("Três")
    two.wait_for_words(0)
    assert two.messages()[0] == "Três"
    two.press("Parar")
    two.wait(talk.STOPPED)
    two.close()


@pytest.mark.slow
def test_the_keyboard_is_enough(browser: Any, chat_page: Any) -> None:
    tab = Tab(browser, chat_page[0])
    tab.box.focus()
    tab.page.keyboard.type(QUESTION)
    tab.page.keyboard.press("Enter")
    tab.wait(talk.DONE)
    names = []
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        names.append(
            tab.page.evaluate("document.activeElement.innerText || document.activeElement.labels?.[0]?.innerText")
        )
        outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", names
    named = [str(name).strip().split("\n")[0] for name in names]
    assert named[:4] == ["Enviar", "Parar", "Nova conversa", "Comparar a última resposta com os dados"]
    assert "Temperatura" in named
    tab.page.get_by_role("tab", name="Conversa").focus()
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    tab.page.get_by_label("Texto a procurar").wait_for()
    tab.close()


@pytest.mark.slow
def test_every_input_has_a_label_and_nothing_is_english(browser: Any, chat_page: Any) -> None:
    tab = Tab(browser, chat_page[0])
    tab.page.get_by_role("tab", name="Busca nos dados").click()
    tab.page.get_by_label("Texto a procurar").wait_for()
    missing = tab.page.evaluate(
        "[...document.querySelectorAll('input, textarea, select')].filter("
        "e => !e.labels?.length && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
    )
    assert missing == []
    text = tab.page.evaluate(
        "document.body.innerText + [...document.querySelectorAll('[aria-label], [title]')].map("
        "e => (e.getAttribute('aria-label') ?? '') + ' ' + (e.getAttribute('title') ?? '')).join(' ')"
    )
    found = re.findall(
        r"(?i)\b(gradio|settings|clear|retry|submit|send|api|built|message|chatbot|loading|reset)\b", text
    )
    assert found == []
    tab.close()


@pytest.mark.slow
def test_a_phone_scrolls_in_one_direction_only(browser: Any, chat_page: Any) -> None:
    tab = Tab(browser, chat_page[0], width=390, height=844)
    tab.say(ATTACK)
    tab.wait(talk.DONE)
    tab.press("Comparar a última resposta com os dados")
    tab.page.locator("#ttl-nearest li").first.wait_for()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.page.get_by_role("tab", name="Busca nos dados").click()
    tab.page.get_by_label("Texto a procurar").fill("x" * 300)
    tab.press("Procurar")
    tab.page.locator("#ttl-found p").first.wait_for()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_as_wide_empty_as_full_and_says_that_it_loads(browser: Any, chat_page: Any, width: int) -> None:
    waiting = browser.new_page()
    waiting.goto(chat_page[0], wait_until="commit")
    waiting.get_by_text("Carregando a página…").wait_for()
    waiting.locator("#ttl-box textarea").wait_for()
    waiting.get_by_text("Carregando a página…").wait_for(state="detached")
    waiting.close()
    tab = Tab(browser, chat_page[0], width=width)
    script = "['.gradio-container', '#ttl-shown', '#ttl-box'].map(q => document.querySelector(q).getBoundingClientRect().width)"
    empty = tab.page.evaluate(script)
    assert empty[0] == min(width, 1180)
    for text in (QUESTION, "x" * 200):
        tab.say(text)
        tab.page.wait_for_function(
            "n => document.querySelectorAll('.ttl-model').length > n", arg=len(tab.messages()) // 2
        )
        assert tab.page.evaluate(script) == empty
        tab.page.locator("#ttl-status", has_text=re.compile("Resposta")).wait_for()
        assert tab.page.evaluate(script) == empty
    tab.close()


@pytest.mark.slow
def test_other_names_and_files_are_refused(base_page: Any) -> None:
    """A page from elsewhere could otherwise talk with the model, read the data by the search, and fill the disk."""
    address = base_page[0].removeprefix("http://")
    port = address.rpartition(":")[2]

    def ask(method: str, path: str, host: str, body: bytes | None = None, **headers: str) -> int:
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request(method, path, body, {"Host": host, **headers})
        return connection.getresponse().status

    assert [ask("GET", "/config", f"{name}:{port}") for name in ("127.0.0.1", "localhost", "[::1]")] == [200] * 3
    assert ask("GET", "/config", f"evil.example:{port}") == 400
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(10**5) + b"\r\n--x--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ask("POST", "/gradio_api/upload", address, part, **kind) == 413


def test_the_page_of_a_base_model_says_so(browser: Any, base_page: Any) -> None:
    tab = Tab(browser, base_page[0])
    assert "modelo base, sem modelo de conversa" in tab.page.locator("#ttl-heading").inner_text()
    assert tab.page.get_by_label("Texto de sistema").count() == 0
    tab.say("Era uma vez")
    tab.wait(talk.COMPLETED)
    tab.page.get_by_role("tab", name="Busca nos dados").click()
    tab.page.locator("#ttl-how", has_text="--instructions").wait_for()
    tab.close()
