"""Page: the config of `ttl app`, the check of its address, and the HTML and Gradio components of the page.

Texts of the data and of the model are escaped: they are data, never markup. Gradio's own chatbot is not used, because
it speaks English to screen readers and has a button that empties the page but not the session. Gradio is imported
inside functions, after its telemetry was turned off.
"""

import errno
import html
import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure
from .generation import Sampling
from .talk import WRITING, Match, SearchIndex, Session, Speaker, View, accept, begin_again, fail, stop

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7860


@dataclass
class AppConfig(Sampling):
    """`ttl app MODEL`: defaults of the page's controls, the instruction data, and where the page is served."""

    instructions: list[str] = field(
        default_factory=list,
        metadata={"help": "data to search: files, folders, globs, hf://datasets/user/name@commit, or `sample`"},
    )
    system: str = field(default="", metadata={"help": "what the model is told before the first message"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    use_cpu: bool = field(default=False, metadata={"help": "answer on the processor, also where there is a GPU"})
    host: str = field(
        default=DEFAULT_HOST,
        metadata={"help": "address to serve on; the default is for this machine only, 0.0.0.0 all"},
    )
    port: int = field(default=DEFAULT_PORT, metadata={"help": "port to serve on"})
    space_dir: str = field(
        default="", metadata={"help": "do not serve: write a Hugging Face Space to this new or empty folder"}
    )

    def __post_init__(self) -> None:
        """Refuse values that no page can be served with.

        Raises:
            InputError: a port or a sampling value outside its range, or an address where nothing is served.
        """
        super().__post_init__()
        ensure(1 <= self.port <= 65535, f"port={self.port}: must lie between 1 and 65535. {DEFAULT_PORT} is usual.")
        ensure(self.host, f"host={self.host!r}: empty. {DEFAULT_HOST} serves this machine, 0.0.0.0 the whole network.")
        ensure(
            not self.space_dir or (self.host, self.port) == (DEFAULT_HOST, DEFAULT_PORT),
            f"host={self.host}, port={self.port}: mean nothing with space_dir={self.space_dir}, which serves nothing. "
            "Leave them out.",
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: who can reach it is unknown
        return False


def check_address(host: str, port: int) -> None:
    """Check that a server can be opened there, by opening and closing one.

    Raises:
        InputError: see `bind_address`.
    """
    bind_address(host, port).close()


def bind_address(host: str, port: int) -> socket.socket:
    """Return a socket that holds an address for a server; port 0: one that is free.

    Raises:
        InputError: the port is taken or reserved, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"host={host}: no such address. Use {DEFAULT_HOST}, or 0.0.0.0 for the network.") from error
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # as the server does: a port that was closed a minute ago is free
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if isinstance(error, PermissionError):
            fix = f"Give one above 1023, as --port {_other(port)}."
            raise InputError(f"port={port}: reserved for the system. {fix}") from error
        raise InputError(_bind_refusal(host, port, error)) from error
    return bound


def own_names(host: str) -> list[str]:
    """Return the names under which a server that only this machine can reach is asked for.

    Requests under other names are refused: a page from elsewhere whose name was turned to 127.0.0.1 sends them (DNS
    rebinding). Starlette's versions read an IPv6 address with its brackets, without them, or up to its first colon.
    """
    return ["localhost", "127.0.0.1", "::1", "[::1]", "[", host]


def _other(port: int) -> int:
    """Return a port to try when this one cannot be used."""
    return DEFAULT_PORT + 1 if port != DEFAULT_PORT + 1 else port + 1


def _bind_refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        fix = f"End the program that uses it, or give another, as --port {_other(port)}."
        return f"port={port}: already in use on {host}. {fix}"
    return f"host={host}: cannot be served ({error.strerror}). Use {DEFAULT_HOST}, or 0.0.0.0 for the network."


_SHORT_CHARACTERS = 400  # longer texts are folded


def as_text(text: str) -> str:
    """Return a text as HTML that shows it; braces too, because Gradio's HTML component reads them as a template."""
    return html.escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;").replace("`", "&#96;")


def as_note(text: str) -> str:
    """Return a sentence of the page."""
    return f'<p class="ttl-note">{as_text(text)}</p>'


def as_conversation(messages: list[dict[str, str]]) -> str:
    """Return the messages of a conversation; white space as it was written."""
    return "".join(
        f'<div class="ttl-message ttl-{"user" if message["role"] == "user" else "model"}">'
        f"<strong>{'Você' if message['role'] == 'user' else 'Modelo'}</strong>"
        f'<p class="ttl-text">{as_text(message["content"])}</p></div>'
        for message in messages
    )


def as_cards(matches: list[Match], text: str) -> str:
    """Return the results for a text, best first, or why there are none."""
    if not text.strip():
        return as_note("Nada para procurar: escreva um texto, ou peça antes uma resposta.")
    if not matches:
        return as_note("Nada parecido nos dados de instrução.")
    cards = "".join(_card(match) for match in matches)
    compared = f'<p class="ttl-note">Comparado com: <q>{as_text(_shortened(text, 120))}</q></p>'
    return f'{compared}<ol class="ttl-cards">{cards}</ol>'


def _card(match: Match) -> str:
    percent = f"{match.percent:.0f}"
    others = "" if not match.others else f" · o mesmo texto aparece mais {match.others} " + (
        "vez" if match.others == 1 else "vezes")  # fmt: skip
    return (
        f'<li><div class="ttl-percent"><strong>{percent} %</strong>'
        f'<meter min="0" max="100" value="{percent}" aria-label="Semelhança: {percent} %"></meter></div>'
        f"<h3>Pergunta</h3>{_folded(match.pair.question)}<h3>Resposta</h3>{_folded(match.pair.answer)}"
        f'<p class="ttl-source">Fonte: {as_text(match.pair.source or "sem nome")}{others}</p></li>'
    )


def _folded(text: str) -> str:
    if len(text) <= _SHORT_CHARACTERS:
        return f'<p class="ttl-text">{as_text(text)}</p>'
    start = as_text(_shortened(text, _SHORT_CHARACTERS))
    return f'<details><summary class="ttl-text">{start}</summary><p class="ttl-text">{as_text(text)}</p></details>'


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters].rsplit(" ", 1)[0] + "…"


_STYLE = Path(__file__).with_name("page.css")
_RESULTS = 5
_REFRESH_SECONDS = 0.1
_WAITING_AT_MOST = 32  # messages; more are refused at once

# For screen readers: the page's language, what the two regions are, and that the status is read aloud when it changes.
_ON_LOAD = """() => {
  document.querySelector('#ttl-loading')?.remove();
  document.documentElement.lang = 'pt-BR';
  const name = (id, attributes) => {
    const element = document.querySelector(id);
    for (const [key, value] of Object.entries(attributes)) element?.setAttribute(key, value);
  };
  name('#ttl-shown .html-container', {role: 'region', 'aria-label': 'Conversa', tabindex: '0'});
  name('#ttl-status', {role: 'status', 'aria-live': 'polite'});
}"""

# Until the browser has Gradio's scripts and has drawn the page, which takes seconds, the window would be white.
_LOADING = (
    b'<p id="ttl-loading" role="status" lang="pt-BR" style="position: fixed; inset: 0; margin: auto; height: 2em; '
    b'text-align: center; font-family: system-ui, sans-serif">Carregando a p\xc3\xa1gina\xe2\x80\xa6</p>'
)

_HOW_TO_SEARCH = (
    "A busca está desligada: faltam os dados de instrução. Quem serve a página os dá assim: "
    "ttl app MODELO --instructions dados.parquet"
)


class _LoadingSign:
    """Puts the loading sign into the page's HTML; Gradio's own way adds it with the scripts that are still loading."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        start: dict[str, Any] = {}
        body = bytearray()

        async def hold(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body.extend(message.get("body", b""))
            if message.get("more_body"):
                return
            page = bytes(body).replace(b"<gradio-app", _LOADING + b"<gradio-app", 1)
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(page)).encode())]})
            await send({"type": "http.response.body", "body": page})

        await self.app(scope, receive, hold)


def launch_arguments(local_host: str | None) -> dict[str, Any]:
    """Return the arguments of `launch` that keep the page on its own: nothing is asked of another host.

    Args:
        local_host: this machine's own address, if nobody else can reach the page: then see `own_names`.
    """
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=own_names(str(local_host)), www_redirect=False)
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return {
        "theme": gradio.themes.Default(primary_hue="emerald", font=sans, font_mono=mono),  # no web font
        "css": _STYLE.read_text(encoding="utf-8"),
        "js": _ON_LOAD,
        "footer_links": [],
        "run_history": False,  # would keep the conversations in the browser
        "share": False,
        "max_file_size": 1,  # byte: the page takes no files, and Gradio would store those of any other page
        "app_kwargs": {"middleware": [*([hosts] if local_host else []), Middleware(_LoadingSign)]},
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "inbrowser": False,
        "quiet": True,
        "show_error": False,
    }


def build_page(speaker: Speaker, name: str, config: AppConfig, index: SearchIndex | None) -> Any:
    """Return the page as `gradio.Blocks`.

    Args:
        speaker: answers.
        name: of the model, for the title.
        config: the first values of the controls.
        index: of the instruction data, or None.
    """
    import gradio

    with gradio.Blocks(title=f"Conversa com {name}", analytics_enabled=False, fill_width=False) as page:
        session = gradio.State(Session())
        gradio.HTML(_heading(name, speaker.is_chat), elem_id="ttl-heading")
        with gradio.Tabs():
            with gradio.Tab("Conversa", id="chat"):
                _build_chat(speaker, config, index, session)
            with gradio.Tab("Busca nos dados", id="search"):
                _build_search(index)
    page.queue(max_size=_WAITING_AT_MOST, api_open=False)
    return page


def _heading(name: str, is_chat: bool) -> str:
    what = (
        "As respostas são de um modelo pequeno: podem estar erradas."
        if is_chat
        else "Este é um modelo base, sem modelo de conversa: ele não responde, continua o texto que você escrever."
    )
    return f"<h1>{as_text(name)}</h1>{as_note(what)}"


def _build_chat(speaker: Speaker, config: AppConfig, index: SearchIndex | None, session: Any) -> None:
    import gradio

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    with gradio.Row(elem_id="ttl-columns"):
        with gradio.Column(scale=3, min_width=300):
            shown = gradio.HTML("", elem_id="ttl-shown", autoscroll=True, max_height=420)
            status = gradio.HTML("", elem_id="ttl-status", padding=False)
            box = gradio.Textbox(
                label="Mensagem" if speaker.is_chat else "Texto a continuar", lines=1, max_lines=8, autofocus=True,
                placeholder="Enter envia, Shift+Enter muda de linha", elem_id="ttl-box",
            )  # fmt: skip
            with gradio.Row(elem_id="ttl-buttons"):
                send = gradio.Button("Enviar", variant="primary", min_width=90)
                halt = gradio.Button("Parar", variant="stop", min_width=90)
                new = gradio.Button("Nova conversa", min_width=120)
            compare = gradio.Button(
                "Comparar a última resposta com os dados", visible=index is not None, elem_id="ttl-compare"
            )
            nearest = gradio.HTML("", elem_id="ttl-nearest")
        with gradio.Column(scale=1, min_width=240), gradio.Accordion("Ajustes", open=True, elem_id="ttl-settings"):
            system = gradio.Textbox(
                label="Texto de sistema", value=config.system, lines=2, max_lines=6, visible=speaker.is_chat
            )
            controls = _build_controls(config)

    def update(session: Session, view: View) -> tuple[Any, Any, Any]:
        return as_conversation(session.shown), as_note(view.status), gradio.skip() if view.box is None else view.box

    def on_answer(session: Session, system: str, *values: float | None) -> Iterator[tuple[Any, Any, Any]]:
        found = dict(zip(controls, values, strict=True))
        shown_at = 0.0
        for view in speaker.answer(session, found, system):
            # A fast model writes more words a second than a browser can draw; they would queue up, and the end of a
            # stopped answer would be seen long after.
            if view.status == WRITING and time.monotonic() - shown_at < _REFRESH_SECONDS:
                continue
            shown_at = time.monotonic()
            yield update(session, view)

    outputs = [shown, status, box]
    # A message is taken at once, so that it is seen while it waits; the model answers one at a time, for all tabs.
    accepted = gradio.on(
        [box.submit, send.click], lambda s, text: update(s, accept(s, text)), [session, box], outputs, queue=False,
        **private,
    )  # fmt: skip
    answered = accepted.then(
        on_answer, [session, system, *controls.values()], outputs, concurrency_limit=1, concurrency_id="model",
        **private,
    )  # fmt: skip
    answered.failure(lambda s: as_note(fail(s).status), [session], [status], queue=False, **private)
    halt.click(stop, [session], None, queue=False, **private)
    new.click(lambda s: (*update(s, begin_again(s)), ""), [session], [*outputs, nearest], queue=False, **private)
    if index is not None:
        compare.click(
            lambda s: as_cards(index.nearest(s.last_answer(), "answers", _RESULTS), s.last_answer()),
            [session], [nearest], **private,
        )  # fmt: skip


def _build_controls(config: AppConfig) -> dict[str, Any]:
    """Return the controls of the sampling by the names of its fields."""
    import gradio

    whole: dict[str, Any] = {"precision": 0, "step": 1, "min_width": 100}
    part: dict[str, Any] = {"step": 0.05, "min_width": 100}
    return {
        "max_new_tokens": gradio.Number(config.max_new_tokens, label="Máximo de tokens", **whole),
        "temperature": gradio.Number(
            config.temperature, label="Temperatura", info="0: sempre a palavra mais provável", **part
        ),
        "top_k": gradio.Number(config.top_k, label="Top-k", info="0: sem limite", **whole),
        "top_p": gradio.Number(config.top_p, label="Top-p", info="acima de 0, até 1", **part),
        "repetition_penalty": gradio.Number(
            config.repetition_penalty, label="Penalidade de repetição", info="1: nenhuma", **part
        ),
        "seed": gradio.Number(config.seed, label="Semente", info="a mesma dá as mesmas respostas", **whole),
    }


def _build_search(index: SearchIndex | None) -> None:
    import gradio

    if index is None:
        gradio.HTML(as_note(_HOW_TO_SEARCH), elem_id="ttl-how")
        return
    gradio.HTML(as_note(f"{len(index.pairs):,} perguntas com resposta. 100 % é o mesmo texto.".replace(",", ".")))
    query = gradio.Textbox(
        label="Texto a procurar", lines=1, max_lines=8, placeholder="Enter procura", elem_id="ttl-query"
    )
    side = gradio.Radio(
        [("Respostas", "answers"), ("Perguntas", "questions")],
        value="answers",
        label="Comparar com",
        elem_id="ttl-side",
    )
    button = gradio.Button("Procurar", variant="primary")
    found = gradio.HTML("", elem_id="ttl-found")
    gradio.on(
        [query.submit, button.click], lambda text, side: as_cards(index.nearest(text, side, _RESULTS), text),
        [query, side], [found], api_visibility="private", show_progress="hidden",
    )  # fmt: skip
