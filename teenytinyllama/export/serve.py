"""Serving: `ttl serve MODEL` opens llama.cpp's server, with the OpenAI interface, to programs on this machine.

The server is that of llama-cpp-python. In front of it stand only the routes that are promised here, and checks of what
a request asks for, because the server by itself lets every web page read its answers (CORS), answers a base model's
chat in a template of its own, and takes a special token that a user types for one of the template's. transformers' own
server is not used: a request can make it load any folder of this machine or repository of the Hub, and bring a chat
template along; answers keep the text at which they were to stop, and prompts may exceed the model's context.
"""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat.generation import Sampling
from ..chat.page import DEFAULT_HOST, bind_address, is_loopback, own_names
from ..checks import InputError, available_cores, check_bounds, ensure, ensure_packages
from ..disk import scratch_folder
from ..launching.processes import give_back_signals, take_stop_signals
from ..tokenizer.encode import compose
from .llama_cpp import idle_cores, use_own_template

if TYPE_CHECKING:
    from fastapi import FastAPI

DEFAULT_PORT = 8000
_SECONDS_TO_END = 10  # after a signal, for requests that still have to be answered
# What llama.cpp's server knows beyond what is promised here: most of it would fail, or be ignored, without a word.
_NOT_OFFERED = ("functions", "function_call", "tools", "tool_choice", "logprobs", "top_logprobs", "grammar",
                "response_format", "logit_bias", "suffix", "echo")  # fmt: skip
# The server's names of the values of `Sampling`.
_KEYS = {known.name: known.name for known in fields(Sampling)} | {
    "max_new_tokens": "max_tokens", "repetition_penalty": "repeat_penalty"
}  # fmt: skip


@dataclass
class ServeConfig(Sampling):
    """`ttl serve MODEL`: where it is served and its name there; the sampling holds where a request says nothing."""

    name: str = field(default="", metadata={"help": "of the model, for clients; empty: that of its file or folder"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    base_model: str | None = field(
        default=None, metadata={"help": "for an adapter: its base model, if it is not where it was"}
    )
    context: int = field(default=0, metadata={"help": "most tokens of a prompt and its answer; 0: the model's own"})
    threads: int | None = field(
        default=None,
        metadata={"help": "of the processor; default one for each idle core: more would wait for each other"},
    )
    use_cpu: bool = field(default=False, metadata={"help": "answer on the processor, also where there is a GPU"})
    host: str = field(
        default=DEFAULT_HOST,
        metadata={"help": "address to serve on; the default is for this machine only, 0.0.0.0 all"},
    )
    port: int = field(default=DEFAULT_PORT, metadata={"help": "port to serve on; 0: one that is free"})

    def __post_init__(self) -> None:
        """Refuse values that nothing can be served with.

        Raises:
            InputError: a port, a context or a sampling value outside its range, no address, or a name with other signs.
        """
        super().__post_init__()
        ensure(0 <= self.port <= 65535, f"port={self.port}: must lie between 0 and 65535. {DEFAULT_PORT} is usual.")
        ensure(self.host, f"host={self.host!r}: empty. {DEFAULT_HOST} serves this machine, 0.0.0.0 the whole network.")
        ensure(self.context >= 0, f"context={self.context}: must be 0 (the model's own) or more.")
        ensure(
            self.threads is None or 1 <= self.threads <= available_cores(),
            f"threads={self.threads}: must lie between 1 and {available_cores()}, the cores that may be used here.",
        )
        ensure(
            re.fullmatch(r"[\w.:-]*", self.name),
            f"name={self.name}: can hold letters, digits and the signs . _ : - only. Give another name.",
        )


def run_serve(model: str, config: ServeConfig) -> int:
    """Serve a model until a signal ends it; return 0.

    Args:
        model: a GGUF file or a folder with one; or what `ttl export` makes one of, which is then done first.
        config: see `ServeConfig`.

    Raises:
        InputError: no such model, or llama.cpp cannot read it; or an address that cannot be served on.
        MissingPackageError: the extra `serve` is not installed.
    """
    packages = ("gguf", "llama_cpp", "fastapi", "uvicorn", "pydantic_settings", "sse_starlette", "starlette_context")
    ensure_packages("serve", *packages)
    with closing(bind_address(config.host, config.port)) as address, scratch_folder() as scratch:
        if not is_loopback(config.host):
            print(f"warning: host={config.host}: anyone who reaches this machine can use the model.")
        print(f"loading {model} …", flush=True)
        path, name = _find_file(model, config, scratch)
        _serve(Served(path, config.name or re.sub(r"[^\w.:-]+", "-", name), config), address)
    return 0


def _find_file(model: str, config: ServeConfig, scratch: Path) -> tuple[Path, str]:
    """Return the GGUF file of a model, made in the scratch folder if there is none, and the model's name.

    Raises:
        InputError: no such file, several in a folder, a revision or a base model of a file; or see `run_export`.
    """
    path = Path(model).expanduser()
    found = sorted(path.glob("*.gguf")) if path.is_dir() else [path] if path.suffix == ".gguf" else []
    if not found:
        from .export import ExportConfig, run_export

        job = ExportConfig(
            model_name_or_path=model, type="f16", output_dir=str(scratch / "gguf"), measure=False,
            revision=config.revision, base_model=config.base_model,
        )  # fmt: skip
        return next(run_export(job).glob("*.gguf")), job.model_name
    ensure(path.exists(), f"MODEL={model}: no such file. `ttl export` makes a GGUF file of a model.")
    names = ", ".join(file.name for file in found)
    ensure(len(found) == 1, f"MODEL={model}: holds {len(found)} GGUF files. Give one of them: {names}.")
    for key in ("revision", "base_model"):
        ensure(getattr(config, key) is None, f"{key}={getattr(config, key)}: {found[0]} is a GGUF file. Leave it out.")
    return found[0], found[0].stem


class Served:
    """A GGUF file in llama.cpp's server, and what a request must keep to.

    Attributes:
        name: of the model, for clients.
        context: tokens of a prompt and its answer.
        is_chat: whether it has a chat template.
        has_ended: returns whether answers shall end.
    """

    def __init__(self, path: Path, name: str, config: ServeConfig) -> None:
        """Load the file.

        Raises:
            InputError: llama.cpp refuses it, or its chat template takes too much time or memory.
        """
        from jinja2 import TemplateError
        from llama_cpp.server import app
        from llama_cpp.server.settings import ModelSettings, ServerSettings

        self.name, self.config = name, config
        self.has_ended: Callable[[], bool] = lambda: False
        threads = config.threads or idle_cores()
        # Not by their constructors: those take values from variables of the environment, such as MODEL and CACHE.
        settings = ModelSettings.model_construct(
            model=str(path), model_alias=self.name, n_ctx=config.context, logits_all=False, verbose=False,
            n_threads=threads, n_threads_batch=threads, n_gpu_layers=0 if config.use_cpu else -1,
        )  # fmt: skip
        app.set_server_settings(ServerSettings.model_construct(interrupt_requests=False))
        try:
            app.set_llama_proxy([settings])
        except (ValueError, RuntimeError, TemplateError) as error:
            raise InputError(f"MODEL={path}: llama.cpp cannot read it ({error}). Export the model again.") from error
        proxy: Any = app._llama_proxy
        self.llama = proxy(name)
        trained = int(self.llama.metadata.get(f"{self.llama.metadata['general.architecture']}.context_length", 0))
        self.context = min(size for size in (self.llama.n_ctx(), trained, config.context) if size)
        self._generate = self.llama.generate
        self.llama.generate = self._generate_until_ended
        self.format = use_own_template(self.llama)
        self.is_chat = self.format is not None

    def _generate_until_ended(self, *args: Any, **keys: Any) -> Iterator[int]:
        """Yield the tokens of an answer until the server is to end: an answer must not keep the process for minutes."""
        for token in self._generate(*args, **keys):
            yield token
            if self.has_ended():
                return

    def check(self, request: Any) -> None:
        """Check a request but its text, and give it the model's name and the config's sampling.

        Raises:
            InputError: another model, something that is not offered, a value outside its range, or a text that is none.
        """
        for key, value in request.model_dump().items():
            check_bounds(key, value)
        ensure(
            request.model in (None, self.name),
            f"model={request.model}: this server has {self.name} alone. Ask for that.",
        )
        request.model = self.name
        for key in _NOT_OFFERED:
            value = getattr(request, key, None)
            is_left_out = value is None or value is False or value == []
            ensure(is_left_out, f"{key}: is not offered by this server. Leave it out.")
        for key in ("n", "best_of"):
            ensure(getattr(request, key, None) in (None, 1), f"{key}: must be 1. Ask several times.")
        newer = getattr(request, "max_completion_tokens", None)  # the name of max_tokens in newer clients
        if newer is not None:
            request.max_tokens = newer
        for ours, key in _KEYS.items():
            if key not in request.model_fields_set or getattr(request, key) is None:
                setattr(request, key, getattr(self.config, ours))
        for key, known in type(request).model_fields.items():
            if getattr(request, key) is None:  # such as a penalty; the server fails at some
                setattr(request, key, known.default)
        try:
            Sampling(**{ours: getattr(request, key) for ours, key in _KEYS.items()})
        except InputError as error:
            ours, _, reason = str(error).partition("=")
            raise InputError(f"{_KEYS[ours]}={reason}") from error

    def check_chat(self, request: Any) -> None:
        """Check the messages of a request, and compose them as those that the model has learnt from.

        Raises:
            InputError: see `check`; also a base model, no messages, a part that is no text, a special token in a text,
                messages that the template refuses, or that are too long.
        """
        self.check(request)
        ensure(
            self.is_chat,
            f"model={self.name}: has no chat template: it is a base model, which goes on with a text. Use "
            "/v1/completions with a prompt.",
        )
        ensure(request.messages, "messages: are empty. Give at least one, of role user.")
        for message in request.messages:
            message["content"] = self._checked_text(message.get("content"))
        from jinja2 import TemplateError

        try:
            prompt = self.format(messages=request.messages).prompt
        except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise InputError(f"messages: the chat template refuses them: {error}") from error
        self._check_length("messages", request, self.llama.tokenize(prompt.encode(), add_bos=False, special=True))

    def _checked_text(self, content: Any) -> str:
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        ensure(all(part["type"] == "text" for part in parts), "messages: hold a part that is no text. Leave it out.")
        text = compose("".join(part["text"] for part in parts).strip())
        plain, special = (self.llama.tokenize(text.encode(), add_bos=False, special=way) for way in (False, True))
        ensure(
            plain == special,
            "messages: a text holds a special token of the model, which would be taken for the chat template's own. "
            "Take it out.",
        )
        return text

    def check_text(self, request: Any) -> None:
        """Check the prompt of a request for a text to be gone on with.

        Raises:
            InputError: see `check`; also several prompts, or one that is too long.
        """
        self.check(request)
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        ensure(len(prompts) == 1, f"prompt: {len(prompts)} texts. Give one.")
        request.prompt = compose(prompts[0])
        self._check_length("prompt", request, self.llama.tokenize(request.prompt.encode(), special=True))

    def _check_length(self, key: str, request: Any, ids: list[int]) -> None:
        room = self.context - len(ids)
        ensure(
            room > 0, f"{key}: {len(ids)} tokens, and the model's context of {self.context} must also hold an answer. "
            "Shorten them.",
        )  # fmt: skip
        request.max_tokens = min(request.max_tokens, room)


def build_app(served: Served) -> "FastAPI":
    """Return the application: the routes that are promised, before llama.cpp's server."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from llama_cpp.server import app as server
    from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest
    from pydantic import Field
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    class ChatRequest(CreateChatCompletionRequest):
        max_completion_tokens: int | None = Field(None, exclude=True)

    app = FastAPI(openapi_url=None)  # its page of documentation asks another host for scripts
    if is_loopback(served.config.host):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=own_names(served.config.host), www_redirect=False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Any:
        served.check_chat(body)
        return await server.create_chat_completion(request, body)

    @app.post("/v1/completions")
    async def complete(request: Request, body: CreateCompletionRequest) -> Any:
        served.check_text(body)
        return await server.create_completion(request, body)

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": served.name, "object": "model", "created": 0, "owned_by": "local"}]}

    def refusal(message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=400)

    @app.exception_handler(InputError)
    async def refuse(_: Request, error: InputError) -> JSONResponse:
        return refusal(str(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_form(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()[:5]
        key = next((part for part in errors[0]["loc"][1:] if isinstance(part, str)), "body")
        return refusal(f"{key}: {'; '.join(dict.fromkeys(found['msg'] for found in errors))}.")

    return app


def _serve(served: Served, address: socket.socket) -> None:
    """Answer requests until a signal comes; answers that are being written then end."""
    import uvicorn
    from sse_starlette.sse import AppStatus

    settings: Any = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": _SECONDS_TO_END}
    server = uvicorn.Server(uvicorn.Config(build_app(served), **settings))
    served.has_ended = lambda: server.should_exit
    AppStatus.disable_automatic_graceful_drain()  # which cuts streams off; here the model stops, and they end
    address.listen()  # from here on clients wait instead of being refused
    print(_how_to_use(served, served.config.host, address.getsockname()[1]), flush=True)
    previous = take_stop_signals(server.handle_exit)  # uvicorn itself takes two of them
    try:
        server.run(sockets=[address])
    finally:
        give_back_signals(previous)


def _how_to_use(served: Served, host: str, port: int) -> str:
    """Return the address and an example for curl and for the package `openai`."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    method, key, asked, read = "completions", "prompt", '"Era uma vez"', "text"
    if served.is_chat:
        method, key, asked, read = (
            "chat.completions",
            "messages",
            '[{"role": "user", "content": "Olá!"}]',
            "message.content",
        )
    body = f'{{"model": "{served.name}", "{key}": {asked}}}'
    return f"""{url} serves {served.name} (Ctrl-C ends)
  curl {url}/{method.replace(".", "/")} -H 'Content-Type: application/json' -d '{body}'
  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="none")
  print(client.{method}.create(model="{served.name}", {key}={asked}).choices[0].{read})"""
