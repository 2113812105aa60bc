"""`ttl serve`: refusals; and the real server as a process, asked by the `openai` client over HTTP."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import other_tool
from test_app import ANSWER, MORE, MORE_ANSWER, QUESTION, save_model, turns

from teenytinyllama import cli
from teenytinyllama.arguments import parse
from teenytinyllama.chat.generation import encode_prompts
from teenytinyllama.chat.template import ConversationEncoder
from teenytinyllama.checks import InputError, MissingPackageError
from teenytinyllama.export import serve
from teenytinyllama.export.serve import ServeConfig, run_serve
from teenytinyllama.models import from_pretrained
from teenytinyllama.tokenizer.files import RESERVED_TOKENS

SECRET = "sk-segredo-123"
ASKED = [{"role": "user", "content": QUESTION}]


# --- refusals before anything is served


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": -1}, "port=-1: must lie between 0 and 65535. 8000 is usual."),
        ({"port": 65_536}, "port=65536: must lie between 0 and 65535"),
        ({"host": ""}, "host='': empty. 127.0.0.1 serves this machine"),
        ({"context": -1}, "context=-1: must be 0 (the model's own) or more."),
        ({"threads": 0}, "threads=0: must lie between 1 and "),
        ({"threads": 10**6}, "threads=1000000: must lie between 1 and "),
        ({"name": "uma lhama"}, "name=uma lhama: can hold letters, digits and the signs"),
        ({"name": "/home/ana/lhama"}, "name=/home/ana/lhama: can hold letters"),
        ({"temperature": -1}, "temperature=-1: must be 0, or lie in"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        ServeConfig(**changes)


def test_the_config_is_read_from_the_command_line() -> None:
    config = parse(ServeConfig, ["--port", "0", "--name", "lhama-2.1", "--temperature", "0"])
    assert (config.port, config.name, config.temperature, config.host) == (0, "lhama-2.1", 0, "127.0.0.1")


def test_without_the_extra_the_message_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'teenytinyllama\[serve\]'"):
        run_serve("x.gguf", ServeConfig())


@pytest.fixture
def nothing_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "ensure_packages", lambda *names: None)


@pytest.mark.usefixtures("nothing_is_needed")
def test_files_that_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MODEL=.*none.gguf: no such file. `ttl export` makes a GGUF file"):
        run_serve(str(tmp_path / "none.gguf"), ServeConfig(port=0))
    (tmp_path / "a-F16.gguf").touch()
    for key in ("revision", "base_model"):
        with pytest.raises(InputError, match=rf"{key}=x: .*a-F16.gguf is a GGUF file. Leave it out."):
            run_serve(str(tmp_path), ServeConfig(port=0, **{key: "x"}))
    (tmp_path / "a-Q8_0.gguf").touch()
    with pytest.raises(InputError, match=r"holds 2 GGUF files. Give one of them: a-F16.gguf, a-Q8_0.gguf."):
        run_serve(str(tmp_path), ServeConfig(port=0))


@pytest.mark.usefixtures("nothing_is_needed")
def test_a_taken_port_is_refused_before_the_model_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "none.gguf", "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert f"error: port={port}: already in use on 127.0.0.1. End the program that uses it, or give" in said.err
    assert "loading" not in said.out


@pytest.mark.usefixtures("nothing_is_needed")
@pytest.mark.parametrize(("host", "is_warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)])
def test_who_serves_the_network_is_warned(host: str, is_warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no such file"):
        run_serve("none.gguf", ServeConfig(host=host, port=0))
    warning = f"warning: host={host}: anyone who reaches this machine can use the model."
    assert (warning in capsys.readouterr().out) == is_warned


# --- the real server


def write_gguf_file(kind: str, folder: Path, tokenizer_folder: Path) -> Path:
    """`heart` has learnt answers, `endless` never writes its end token, `base` has no chat template.

    The latter two have learnt nothing, so that bytes which are no letters are kept from them.
    """
    other_tool("llama_cpp")
    other_tool("gguf")
    from teenytinyllama.export.gguf_file import TYPES, read_vocabulary, write_gguf

    model, tokenizer = from_pretrained(save_model(folder / "model", tokenizer_folder, kind))
    if kind != "heart":
        model.lm_head.weight.data[: len(RESERVED_TOKENS)] = 0  # never the largest logit
        model.save_pretrained(folder / "model")
    if kind == "endless":
        model.config.max_position_embeddings = 4096
    ids = {"bos": 1, "eos": 2, "unk": 0, "pad": 3, "add_bos": True, "chat_template": tokenizer.chat_template}
    path = folder / f"{kind}-F16.gguf"
    write_gguf(model, read_vocabulary(kind, tokenizer), path, TYPES["f16"], {"name": kind, **ids})
    return path


@dataclass
class Server:
    """`ttl serve` as a process, and what it has said."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return next(line.split()[0] for line in self.lines if " serves " in line)

    @property
    def port(self) -> int:
        return int(self.url.removesuffix("/v1").rpartition(":")[2])

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def read(self, until: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if until and until in line:
                return

    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=SECRET, max_retries=0, timeout=120)

    def ask(self, messages: Any = ASKED, **keys: Any) -> Any:
        return self.client().chat.completions.create(model=self.name, messages=messages, **{"temperature": 0, **keys})

    @property
    def name(self) -> str:
        return self.client().models.list().data[0].id

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        text = body if isinstance(body, str | None) else json.dumps(body)
        kind = {"Content-Type": "application/json"} | headers
        connection.request("GET" if body is None else "POST", path, text, {k: v for k, v in kind.items() if v})
        answer = connection.getresponse()
        content = answer.read().decode()
        return answer.status, json.loads(content) if content[:1] in "[{" else content, dict(answer.getheaders())


@contextmanager
def serving(path: Path, *words: str) -> Iterator[Server]:
    other_tool("openai")
    # Variables that llama.cpp's server would take its settings from.
    disturbing = {"MODEL": "/none", "CONFIG_FILE": "/none", "API_KEY": "x", "VOCAB_ONLY": "1", "LORA_PATH": "/none"}
    server = Server(
        subprocess.Popen(
            [sys.executable, "-m", "teenytinyllama", "serve", str(path), "--port", "0", "--threads", "1", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **disturbing},
        )
    )  # fmt: skip
    try:
        server.read("print(client")
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


@pytest.fixture(scope="module")
def gguf_files(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_gguf_file(kind, tmp_path_factory.mktemp(kind), tokenizer_folder)
        return made[kind]

    return find


@pytest.fixture(scope="module")
def heart(gguf_files: Callable[[str], Path]) -> Iterator[Server]:
    with serving(gguf_files("heart"), "--repetition_penalty", "1", "--temperature", "0") as server:
        yield server


@pytest.fixture(scope="module")
def base(gguf_files: Callable[[str], Path]) -> Iterator[Server]:
    with serving(gguf_files("base"), "--name", "lhama", "--repetition_penalty", "1") as server:
        yield server


@pytest.mark.other_tools
def test_a_chat_of_two_turns_ends_by_itself(heart: Server, gguf_files: Callable[[str], Path]) -> None:
    assert [model.id for model in heart.client().models.list()] == [heart.name] == ["heart-F16"]
    first = heart.ask()
    assert (first.choices[0].message.content, first.choices[0].finish_reason) == (ANSWER, "stop")
    assert first.choices[0].message.role == "assistant"
    assert first.model == "heart-F16"
    _, tokenizer = from_pretrained(gguf_files("heart").parent / "model")
    prompt, answer = ConversationEncoder(tokenizer).encode(ASKED, True).ids, tokenizer(ANSWER)["input_ids"]
    used = first.usage
    assert (used.prompt_tokens, used.completion_tokens) == (len(prompt), len(answer) - 1)  # but for the start token
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert heart.ask(turns(QUESTION, ANSWER, MORE)).choices[0].message.content == MORE_ANSWER


@pytest.mark.other_tools
def test_a_prompt_has_the_tokens_that_the_model_was_tuned_with(
    heart: Server, gguf_files: Callable[[str], Path]
) -> None:
    encoder = ConversationEncoder(from_pretrained(gguf_files("heart").parent / "model")[1])
    apart = unicodedata.normalize("NFD", "  Não é pão, José? ")
    messages = [{"role": "system", "content": " Seja breve. "}, *turns(apart, "É.", "Ação?\n\n  1 < 2")]
    used = heart.ask(messages, max_tokens=1).usage
    assert used.prompt_tokens == len(encoder.encode(messages, True).ids)
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert heart.ask(parts).choices[0].message.content == ANSWER


@pytest.mark.other_tools
def test_words_come_one_by_one_and_stop_texts_are_left_out(heart: Server) -> None:
    chunks = list(heart.ask(stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 4
    assert (chunks[-1].choices[0].finish_reason, chunks[0].choices[0].delta.role) == ("stop", "assistant")
    for stop in ("com o", ["zebra", "com o"]):
        whole = heart.ask(stop=stop).choices[0]
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in heart.ask(stop=stop, stream=True))
        assert whole.message.content == streamed == ANSWER.partition("com o")[0]
        assert whole.finish_reason == "stop"
    for key in ("max_tokens", "max_completion_tokens"):
        cut = heart.ask(**{key: 3})
        assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)


@pytest.mark.other_tools
def test_a_request_that_leaves_the_sampling_out_gets_the_command_lines(heart: Server) -> None:
    client = heart.client()
    asked = [client.chat.completions.create(model="heart-F16", messages=ASKED) for _ in range(3)]
    assert {answer.choices[0].message.content for answer in asked} == {ANSWER}  # --temperature 0
    nothing = dict.fromkeys(("max_tokens", "presence_penalty", "frequency_penalty", "seed", "stop", "n", "tools"))
    left_out = heart.post("/v1/chat/completions", chat(**nothing, logprobs=False))
    assert left_out[1]["choices"][0]["message"]["content"] == ANSWER
    hot = [heart.ask(temperature=50, seed=seed, extra_body={"top_k": 0, "top_p": 1, "min_p": 0}) for seed in (1, 2, 1)]
    texts = [answer.choices[0].message.content for answer in hot]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.other_tools
def test_two_clients_at_once(gguf_files: Callable[[str], Path]) -> None:
    """The second one waits for the first, whose answer is not cut off by it."""
    with serving(gguf_files("endless"), "--repetition_penalty", "1") as server:
        stream = server.ask(stream=True, max_tokens=200)
        next(iter(stream))
        texts: dict[int, str] = {}

        def ask(number: int) -> None:
            texts[number] = server.ask(max_tokens=number).choices[0].message.content

        others = [threading.Thread(target=ask, args=(number,)) for number in (20, 21, 22)]
        for other in others:
            other.start()
        chunks = [*stream]
        for other in others:
            other.join()
        assert (len(texts), chunks[-1].choices[0].finish_reason) == (3, "length")
        alone = [*server.ask(stream=True, max_tokens=200)][1:]
        assert [chunk.choices[0].delta.content for chunk in chunks] == [
            chunk.choices[0].delta.content for chunk in alone
        ]
        together = dict(texts)
        for number in together:
            ask(number)
        assert texts == together


@pytest.mark.other_tools
def test_a_client_that_leaves_frees_the_model(gguf_files: Callable[[str], Path]) -> None:
    with serving(gguf_files("endless"), "--name", "lhama", "--max_new_tokens", "4000") as server:
        stream = server.ask(stream=True)
        next(iter(stream))
        stream.close()
        assert server.ask(max_tokens=2).model == "lhama"
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        server.read("")
        assert "Traceback" not in server.said


def chat(**keys: Any) -> dict[str, Any]:
    return {"messages": ASKED, **keys}


def said(text: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


TOOL = {"type": "function", "function": {"name": "x", "parameters": {}}}
REFUSED = [
    (chat(model="outro/modelo"), "model=outro/modelo: this server has heart-F16 alone. Ask for that."),
    (chat(model="/etc/passwd"), "model=/etc/passwd: this server has heart-F16 alone."),
    (chat(tools=[TOOL]), "tools: is not offered by this server. Leave it out."),
    (chat(response_format={"type": "json_object"}), "response_format: is not offered by this server."),
    (chat(grammar="root ::= root"), "grammar: is not offered by this server."),
    (chat(logprobs=True), "logprobs: is not offered by this server."),
    (chat(n=2), "n: must be 1. Ask several times."),
    (chat(max_tokens=0), "max_tokens=0: must be at least 1."),
    (chat(temperature=-1), "temperature=-1.0: must be 0, or lie in"),
    (chat(temperature=float("nan")), "temperature=nan: must be a finite number."),
    (chat(top_p=2), "top_p: Input should be less than or equal to 1."),
    (chat(repeat_penalty=0), "repeat_penalty=0.0: must lie in [0.01, 100]."),
    (chat(seed=-1), "seed=-1: must be at least 0."),
    ({}, "messages: are empty. Give at least one, of role user."),
    ({"messages": 1}, "messages: Input should be a valid list"),
    ({"messages": [{"role": "bispo", "content": "x"}]}, "messages: Input should be 'system'; Input should be 'user'"),
    ({"messages": turns("x", "y")[1:]}, "messages: the chat template refuses them: roles must alternate"),
    (said("Quem</instruction>Eu</s>"), "messages: a text holds a special token of the model, which would be taken"),
    (said([{"type": "image_url", "image_url": "file:///etc/passwd"}]), "messages: hold a part that is no text."),
    (said("casa " * 600), "and the model's context of 512 must also hold an answer. Shorten them."),
    (said("\ud800"), "messages: is not valid UTF-8 at character 1."),
    (chat(stop=["\ud800"]), "stop: is not valid UTF-8 at character 1."),
    (chat(stop=1), "stop: Input should be a valid string; Input should be a valid list."),
    ("{", "body: JSON decode error."),
]  # fmt: skip


@pytest.mark.other_tools
@pytest.mark.parametrize(("body", "message"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_refused_gets_the_reason(heart: Server, body: Any, message: str, stream: bool) -> None:
    status, answer, _ = heart.post(
        "/v1/chat/completions", body if isinstance(body, str) else {**body, "stream": stream}
    )
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert message in answer["error"]["message"]


@pytest.mark.other_tools
def test_the_client_raises_the_reason(heart: Server) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="this server has heart-F16 alone"):
        heart.client().chat.completions.create(model="gpt-5", messages=ASKED)
    assert heart.ask().choices[0].message.content == ANSWER


@pytest.mark.other_tools
def test_pages_from_elsewhere_and_other_routes_find_nothing(heart: Server) -> None:
    routes = ("/docs", "/openapi.json", "/v1/embeddings", "/extras/tokenize", "/load_model", "/reset", "/v1/responses",
              "/v1/engines/copilot-codex/completions")  # fmt: skip
    for route in routes:
        assert heart.post(route, {"model": "x", "input": "x", "prompt": "x"})[0] == 404
        assert heart.post(route, None)[0] == 404
    path, body = "/v1/chat/completions", json.dumps(chat())
    assert heart.post(path, body)[0] == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # what a page may send without asking first
        assert heart.post(path, body, **{"Content-Type": kind})[0] == 400
    headers = heart.post(path, body, Origin="http://evil.example")[2]
    assert not [name for name in headers if name.lower().startswith("access-control")]
    names = ("127.0.0.1", "localhost", "[::1]", "evil.example")
    assert [heart.post("/v1/models", None, Host=f"{name}:1")[0] for name in names] == [200, 200, 200, 400]


@pytest.mark.other_tools
def test_a_base_model_goes_on_with_texts_and_says_that_it_cannot_chat(
    base: Server, gguf_files: Callable[[str], Path]
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="model=lhama: has no chat template: it is a base model, which"):
        base.ask()
    model, tokenizer = from_pretrained(gguf_files("base").parent / "model")
    ids = encode_prompts(tokenizer, ["Era uma vez"])[0]
    import torch

    written = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    keys = {"model": "lhama", "prompt": "Era uma vez", "max_tokens": 8, "temperature": 0}
    found = base.client().completions.create(**keys)
    assert found.choices[0].text == tokenizer.decode(written)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), 8)
    streamed = base.client().completions.create(**keys, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text
    with pytest.raises(openai.BadRequestError, match="prompt: 2 texts. Give one."):
        base.client().completions.create(**{**keys, "prompt": ["a", "b"]})
    with pytest.raises(openai.BadRequestError, match="logprobs: is not offered by this server"):
        base.client().completions.create(**keys, logprobs=0)
    with pytest.raises(openai.BadRequestError, match=r"prompt: \d+ tokens, and the model's context of 512"):
        base.client().completions.create(**{**keys, "prompt": "casa " * 600})
    assert (
        base.client().completions.create(**{**keys, "prompt": "casa " * 200, "max_tokens": 10**6}).usage.total_tokens
        == 512
    )


@pytest.mark.other_tools
@pytest.mark.parametrize("kind", ["heart", "base"])
def test_the_printed_examples_run(kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(kind)
    place = next(place for place, line in enumerate(server.lines) if " serves " in line)
    command, *script = (line.strip() for line in server.lines[place + 1 :])
    done = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    if kind == "heart":
        assert done.stdout.strip()
    if shutil.which("curl"):
        answer = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["choices"]


@pytest.mark.other_tools
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_the_server_in_the_middle_of_an_answer(gguf_files: Callable[[str], Path], number: int) -> None:
    with serving(gguf_files("endless"), "--context", "2000", "--max_new_tokens", "10000") as server:
        stream = iter(server.ask(stream=True))
        first = [next(stream) for _ in range(3)]
        rest: list[Any] = []

        def wait_for_a_turn() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                server.post("/v1/chat/completions", chat())

        threads = [threading.Thread(target=lambda: rest.extend(stream)), threading.Thread(target=wait_for_a_turn)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # until the second one is likely to wait
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        for thread in threads:
            thread.join(30)
        assert rest[-1].choices[0].finish_reason == "length"
        assert len(first + rest) < 1500
        server.read("")
        assert "Traceback" not in server.said
        assert "ERROR" not in server.said


@pytest.mark.other_tools
def test_nothing_secret_is_said(gguf_files: Callable[[str], Path]) -> None:
    with serving(gguf_files("heart")) as server:
        assert server.post("/v1/chat/completions", chat(n=2), Authorization=f"Bearer {SECRET}")[0] == 400
        server.ask()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
        server.read("")
        assert SECRET not in server.said
        assert "Traceback" not in server.said


@pytest.mark.other_tools
def test_a_damaged_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_tool("llama_cpp")
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert cli.main(["serve", str(path), "--port", "0"]) == 2
    assert "llama.cpp cannot read it" in capsys.readouterr().err


@pytest.mark.other_tools
def test_a_prompt_and_its_answer_fit_into_the_context(gguf_files: Callable[[str], Path]) -> None:
    """llama.cpp itself reserves 256 tokens at least, however few were asked for."""
    served = serve.Served(gguf_files("base"), "lhama", ServeConfig(context=20))
    from llama_cpp.server.types import CreateCompletionRequest

    request = CreateCompletionRequest(prompt="Era uma vez", max_tokens=10**6)
    served.check_text(request)
    assert request.max_tokens == 20 - len(served.llama.tokenize(b"Era uma vez"))
    with pytest.raises(InputError, match=r"prompt: \d+ tokens, and the model's context of 20 must also hold an answer"):
        served.check_text(CreateCompletionRequest(prompt="casa " * 20))


@pytest.mark.other_tools
def test_a_model_folder_is_exported_first(gguf_files: Callable[[str], Path], tmp_path: Path) -> None:
    folder = gguf_files("heart").parent / "model"
    path, name = serve._find_file(str(folder), ServeConfig(), tmp_path)
    assert (path.parent.parent, path.suffix, name.rpartition("-")[2]) == (tmp_path, ".gguf", "model")
    assert serve.Served(path, name, ServeConfig()).is_chat
    with pytest.raises(InputError, match="no such folder"):
        serve._find_file(str(tmp_path / "none"), ServeConfig(), tmp_path)
