"""The conversations of the page: one session a browser tab, one model for all. Nothing here knows about Gradio."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..chat.generation import Chat, Reply, Sampling
from ..checks import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WAITING = "Aguardando a vez…"
READING = "Lendo a mensagem…"
WRITING = "Escrevendo…"
DONE = "Resposta completa."
STOPPED = "Resposta interrompida."
CUT = "Resposta cortada no máximo de tokens."
COMPLETED = "Continuação escrita."
FAILED = "A resposta falhou. O motivo está no terminal de quem serve a página."
BUSY = "Espere o fim da resposta, ou aperte Parar."
EMPTY = "Escreva uma mensagem."
NEW = "Conversa nova."
TOO_LONG = "A mensagem é longa demais para o contexto do modelo. Encurte-a, ou diminua o máximo de tokens."
REFUSED = "O modelo de conversa deste modelo não aceita a mensagem ou o texto de sistema: {}"
DROPPED = "Os {} turnos mais antigos já não cabem no contexto e ficaram de fora."
RULES = {
    "max_new_tokens": "Máximo de tokens: um número inteiro a partir de 1.",
    "temperature": "Temperatura: 0, ou um número de 0,01 a 100.",
    "top_k": "Top-k: um número inteiro a partir de 0 (0: sem limite).",
    "top_p": "Top-p: um número acima de 0 e até 1.",
    "repetition_penalty": "Penalidade de repetição: um número acima de 0 (1: nenhuma).",
    "seed": "Semente: um número inteiro de 0 a 2147483647.",
}


class Session:
    """What one browser tab holds; no dataclass, because Gradio copies those, and the model with them.

    Attributes:
        shown: the messages on the page, role and content each; also those that left the model's context.
        pending: the message that waits for its answer or is being answered.
        stopped: the answer shall end.
        conversation: grows with each new conversation, so that an answer to an older one is not shown in it.
        status: what the page says of the newest message or conversation.
        chat: the model's side of the conversation.
    """

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.pending: str | None = None
        self.stopped = False
        self.conversation = 0
        self.status = ""
        self.chat: Chat | None = None

    def last_answer(self) -> str:
        """Return the newest answer, or an empty text."""
        return next((turn["content"] for turn in reversed(self.shown) if turn["role"] == "assistant"), "")


@dataclass(frozen=True)
class View:
    """What changes on the page: the status, and the text of the message box unless it is None."""

    status: str
    box: str | None = None


def accept(session: Session, text: str) -> View:
    """Take a message, to be answered when the model is free."""
    if session.pending is not None:
        return View(BUSY)
    if not text.strip():
        return View(EMPTY)
    session.pending, session.stopped = text.strip(), False
    session.shown.append({"role": "user", "content": session.pending})
    session.status = WAITING
    return View(WAITING, box="")


def stop(session: Session) -> None:
    """Ask the answer that is being written to end; it ends before the next token, and then says so itself.

    A word of ours here could reach the page after the answer's last one, and would then stay there.
    """
    session.stopped = session.pending is not None


def fail(session: Session) -> View:
    """Give a message up whose answer met an error, so that the next one can be sent."""
    session.pending = None
    return View(FAILED)


def begin_again(session: Session) -> View:
    """Forget the conversation; an answer that is being written ends and is not shown."""
    session.conversation += 1
    session.stopped = True
    session.pending = None
    session.shown, session.chat, session.status = [], None, NEW
    return View(NEW)


def read_sampling(values: dict[str, float | None]) -> Sampling:
    """Return the sampling of the page's controls.

    Raises:
        InputError: a value is missing or outside its range; the message is one of `RULES`.
    """
    for name, value in values.items():
        if value is None:
            raise InputError(RULES[name])
    whole = ("max_new_tokens", "top_k", "seed")
    try:
        return Sampling(**{name: int(v or 0) if name in whole else float(v or 0) for name, v in values.items()})  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(RULES[str(error).partition("=")[0]]) from error


class Speaker:
    """Answers the sessions' messages with one model."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Take the model that all sessions share."""
        self.model, self.tokenizer = model, tokenizer
        self.is_chat = bool(tokenizer.chat_template)

    def answer(self, session: Session, values: dict[str, float | None], system: str) -> Iterator[View]:
        """Answer the session's pending message word by word; leave the loop, and the model stops.

        Args:
            session: its shown messages and its chat grow.
            values: the sampling of the page's controls.
            system: what the model is told before the first message; ignored by a base model.

        Yields:
            What changed, after each word.
        """
        text, number = session.pending, session.conversation
        if text is None:  # answered or forgotten in the meantime
            return
        try:
            chat, reply = self._reply(session, text, read_sampling(values), system)
        except InputError as error:
            session.pending = None
            session.shown.pop()
            yield View(_explain(error), box=text)
            return
        turn = {"role": "assistant", "content": ""}
        session.shown.append(turn)
        try:
            if not session.stopped:  # its turn has come; on a processor the first word can take seconds
                yield View(READING)
            with closing(cast("Generator[str, None, None]", iter(reply))) as pieces:
                for piece in pieces if not session.stopped else ():
                    if session.stopped or session.conversation != number:  # a next message takes `stopped` back
                        break
                    turn["content"] += piece
                    if piece:
                        yield View(WRITING)
        finally:  # also when the tab was closed: the generator is closed where it waits
            if session.conversation == number:
                session.pending = None
                chat.keep(text, turn["content"])
        if session.conversation == number:
            session.status = _ending(session, chat, reply, self.is_chat)
        # Also of a conversation that was left: its last words may have reached the page after it was cleared.
        yield View(session.status)

    def _reply(self, session: Session, text: str, sampling: Sampling, system: str) -> tuple[Chat, Reply]:
        system = system.strip() if self.is_chat else ""
        chat = session.chat or Chat(self.model, self.tokenizer, sampling, system)
        chat.sampling = sampling
        chat.system = [{"role": "system", "content": system}] if system else []
        session.chat = chat
        return chat, chat.answer(text)


def _explain(error: InputError) -> str:
    message = str(error)
    if message in RULES.values():
        return message
    return TOO_LONG if message.startswith("message:") else REFUSED.format(message)


def _ending(session: Session, chat: Chat, reply: Reply, is_chat: bool) -> str:
    ending = STOPPED if session.stopped else DONE if reply.ended else CUT if is_chat else COMPLETED
    return f"{ending} {DROPPED.format(chat.dropped_turns)}" if chat.dropped_turns else ending
