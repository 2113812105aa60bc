"""Talk: the sessions of the page of `ttl app` and the search in the instruction data, both without Gradio.

Each browser tab has a session; one model answers them all. The search compares a text with the instruction data by
TF-IDF over five letters at a time and cosine similarity. Letters rather than words because Portuguese inflects: with
half of the endings changed, pieces of words still find the text (the measurement is in docs/lab-log.md).
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from ..checks import InputError, ensure
from ..data.input_files import RECORD_SUFFIXES, SAMPLE, resolve_files
from ..data.instructions import DUPLICATE, SPLITS, Counts, read_conversations
from ..data.readers import read_records
from ..data.sample import sample_conversations
from ..progress import progress
from .generation import Chat, Reply, Sampling

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
    "repetition_penalty": "Penalidade de repetição: um número de 0,01 a 100 (1: nenhuma).",
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
    """Ask the answer that is being written to end; `Speaker.answer` ends it before the next token and sets the status.

    The status is not set here: it could reach the page after the last one of the answer, and would stay there.
    """
    session.stopped = session.pending is not None


def fail(session: Session) -> View:
    """Give up a message whose answer failed, so that the next one can be sent."""
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
            if not session.stopped:  # on a processor the first word can take seconds
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
        # Also where the user began a new conversation: the last words of this one may have reached the cleared page.
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


Side = Literal["answers", "questions"]

# Pieces of words are hashed instead of collected in a vocabulary: pieces that the data lack still count against a text,
# and nothing grows with the data but the matrix itself.
_FEATURES = 1 << 20
_CHUNK_TEXTS = 1000
SMALLEST_PERCENT = 5.0  # below, texts share little more than "de" and "que"


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question and its answer in the instruction data, and the source they count under."""

    question: str
    answer: str
    source: str


@dataclass(frozen=True)
class Match:
    """A pair that is similar to a text.

    Attributes:
        percent: cosine similarity, 0 to 100.
        pair: the first pair with that text.
        others: how many more pairs have the same text.
    """

    percent: float
    pair: AnsweredQuestion
    others: int


def read_pairs(inputs: list[str]) -> tuple[list[AnsweredQuestion], Counter[str]]:
    """Return every question with its answer, and how many rows are left out, by reason.

    Args:
        inputs: files, folders, globs or pinned Hub datasets with rows of conversations.

    Raises:
        InputError: a file cannot be read, or none of the rows is a conversation.
    """
    counts = Counts()
    pairs = []
    for _, conversation, _ in read_conversations(_rows(inputs), counts, validation_fraction=0.0):
        turns = [message["content"] for message in conversation.messages if message["role"] != "system"]
        pairs += [AnsweredQuestion(turns[i], turns[i + 1], conversation.source) for i in range(0, len(turns), 2)]
    reasons = "; ".join(
        f"{n:,} x {reason}, first {counts.first_dropped[reason]}" for reason, n in counts.dropped.items()
    )
    ensure(
        pairs,
        f"instructions={', '.join(inputs)}: hold no conversation ({reasons or 'no row at all'}). Give rows of "
        "conversations, of messages, of instruction and output, or of prompt and completion.",
    )
    counts.dropped.pop(DUPLICATE, None)  # nothing is lost with those
    return pairs, counts.dropped


def _rows(inputs: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if SAMPLE in inputs:
        for part in SPLITS:
            for number, row in enumerate(sample_conversations(part), start=1):
                yield f"{SAMPLE}:{number}", SAMPLE, row
    for file in resolve_files("instructions", inputs, RECORD_SUFFIXES):
        for number, record in enumerate(read_records("instructions", file.path), start=1):
            yield f"{file.name}:{number}", file.path.name.split(".")[0], record


class SearchIndex:
    """Finds the pairs whose answers, or whose questions, are most similar to a text."""

    def __init__(self, pairs: Iterable[AnsweredQuestion]) -> None:
        """Index the pairs; equal texts are indexed once."""
        self.pairs = list(pairs)
        self._sides: dict[Side, _SideIndex] = {
            "answers": _SideIndex([pair.answer for pair in self.pairs]),
            "questions": _SideIndex([pair.question for pair in self.pairs]),
        }

    def nearest(self, text: str, side: Side = "answers", number: int = 5) -> list[Match]:
        """Return the most similar pairs, best first; none below `SMALLEST_PERCENT`, and none for an empty text.

        Args:
            text: any text.
            side: compare it with the answers or with the questions.
            number: most results.
        """
        found = self._sides[side].nearest(text, number)
        return [Match(percent, self.pairs[place], others) for percent, place, others in found]


class _SideIndex:
    def __init__(self, texts: list[str]) -> None:
        import numpy
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._places: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            self._places.setdefault(text, []).append(place)
        self._texts = list(self._places)
        self._vectorizer = HashingVectorizer(
            n_features=_FEATURES, analyzer="char_wb", ngram_range=(5, 5), strip_accents="unicode", norm=None,
            alternate_sign=False, dtype=numpy.float32,
        )  # fmt: skip
        self._weights = TfidfTransformer(sublinear_tf=True)
        self._matrix = self._weights.fit_transform(self._count())

    def _count(self) -> Any:
        """Return the counts of letters of all texts, with a progress bar: 100,000 long answers take minutes."""
        from scipy.sparse import vstack

        starts = progress(range(0, len(self._texts), _CHUNK_TEXTS), "indexing", "thousand texts")
        return vstack([self._vectorizer.transform(self._texts[i : i + _CHUNK_TEXTS]) for i in starts], format="csr")

    def nearest(self, text: str, number: int) -> list[tuple[float, int, int]]:
        """Return (percent, place of the first pair, number of further pairs) each."""
        import numpy

        query = self._weights.transform(self._vectorizer.transform([text])).toarray().ravel()
        percents = 100 * (self._matrix @ query)
        best = numpy.argsort(-percents, kind="stable")[:number]
        found = []
        for row in best:
            percent = min(float(percents[row]), 100.0)  # 100.00001 by rounding
            if percent >= SMALLEST_PERCENT:
                places = self._places[self._texts[row]]
                found.append((percent, places[0], len(places) - 1))
        return found
