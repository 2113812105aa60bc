"""`ttl chat MODEL`: talk with a model in the terminal."""

import sys
from dataclasses import dataclass, field
from typing import IO

from ..attention import place_for_answers
from ..checks import InputError
from ..published import from_pretrained
from .generation import Chat, Sampling
from .linter import check_chat_model, format_findings

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


@dataclass
class ChatConfig(Sampling):
    """`ttl chat MODEL`: sampling, a system text, and where the model is from."""

    system: str = field(default="", metadata={"help": "what the model is told before the first message"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    base_model: str | None = field(
        default=None, metadata={"help": "for an adapter: its base model, if it is not where it was"}
    )
    use_cpu: bool = field(default=False, metadata={"help": "answer on the processor, also where there is a GPU"})
    check_template: bool = field(
        default=False, metadata={"help": "do not talk: check that template, tokens and end token belong together"}
    )


def run_chat(name_or_path: str, config: ChatConfig, lines: IO[str] | None = None) -> int:
    """Talk until the input ends; return 0, or 2 when `check_template` found something wrong.

    Args:
        name_or_path: a folder (a run, a checkpoint), a Hub repository, or a short name.
        config: see `ChatConfig`.
        lines: where messages come from, one a line; the terminal by default.

    Raises:
        InputError: no such model, or a system text for a base model.
    """
    model, tokenizer = from_pretrained(name_or_path, config.revision, config.base_model)
    if config.check_template:
        findings = check_chat_model(model, tokenizer)
        print(format_findings(findings))
        return 2 if any(found.problem for found in findings) else 0
    sampling = Sampling(**{name: getattr(config, name) for name in Sampling.__dataclass_fields__})
    model, note = place_for_answers(model, config.use_cpu)
    if note:
        print(note)
    chat = Chat(model, tokenizer, sampling, config.system)
    if chat.encoder is None:
        print(f"{name_or_path} is a base model without a chat template: it goes on with your text. {_HELP}")
    else:
        print(f"{name_or_path}: {_HELP}")
    lines = lines or sys.stdin
    while (text := _next_line(lines)) is not None:
        if text in ("/exit", "/quit"):
            break
        if text == "/reset":
            chat.reset()
            print("(forgotten)")
        elif text:
            _say_answer(chat, text)
    return 0


def _next_line(lines: IO[str]) -> str | None:
    """Return the next message, or None at the end of the input."""
    if lines is sys.stdin and sys.stdin.isatty():
        try:
            return input("\n> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            return ""
    try:
        line = lines.readline()
        line.encode("utf-8")  # bytes that are no UTF-8 can come as halves of characters
    except UnicodeError as error:
        raise InputError("stdin: is not valid UTF-8. If it is windows-1252: iconv -f WINDOWS-1252 -t UTF-8") from error
    return line.strip() if line else None


def _say_answer(chat: Chat, text: str) -> None:
    """Print an answer while it is written; one that was cut by the limit of its length says so."""
    try:
        reply = chat.answer(text)
    except InputError as error:
        print(f"error: {error}")
        return
    if chat.dropped_turns:
        print(f"(the oldest {chat.dropped_turns} turns no longer fit into the context and are left out)")
    pieces: list[str] = []
    stopped = False
    try:
        for piece in reply:
            pieces.append(piece)
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        stopped = True
    answer = "".join(pieces)
    print(" (stopped)" if stopped else "" if reply.ended or chat.encoder is None else " (cut after max_new_tokens)")
    chat.keep(text, answer)
