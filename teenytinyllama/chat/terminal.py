"""Terminal: `ttl chat MODEL` talks with a model, and `ttl chat MODEL --check-template` checks a chat model's files.

The check asks whether template, tokenizer and model agree on how a conversation is written and where answers end.
"""

import sys
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

from ..checks import InputError
from ..models import from_pretrained, place_for_answers
from .generation import Chat, Sampling
from .template import ConversationEncoder, Message, render

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_CONVERSATIONS: list[list[Message]] = [
    [
        {"role": "user", "content": "Qual é a capital do Brasil?"},
        {"role": "assistant", "content": "A capital do Brasil é Brasília."},
    ],
    [
        {"role": "user", "content": "Escreva dois versos.\nSem rima, por favor."},
        {"role": "assistant", "content": "A chuva cai  mansa,\n\ne a rua adormece. 🌧"},
        {"role": "user", "content": "Mais um?"},
        {"role": "assistant", "content": "Outro dia, talvez."},
    ],
]


@dataclass(frozen=True)
class Finding:
    """One checked property.

    Attributes:
        name: what should hold.
        problem: why it does not, and what to do; empty when it holds.
    """

    name: str
    problem: str = ""


def check_chat_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[Finding]:
    """Return what was checked of a model and its tokenizer, in order; a model without a template has one finding.

    Checked with conversations of one and of two turns: that the text before an answer begins the text with it, that
    exactly the answers and their end tokens are marked as answers, that generation stops at this end token, that the
    tokens decode to the text, that typed special tokens stay text, and that every token has an embedding.
    """
    if not tokenizer.chat_template:
        return [Finding("has a chat template", "none: this is a base model, or the template was not saved with it")]
    try:
        encoder = ConversationEncoder(tokenizer)
        for messages in _CONVERSATIONS:
            encoder.encode(messages)
    except InputError as error:
        return [Finding("renders one and two turns", str(error))]
    end = encoder.end_of_answer()
    return [
        Finding("renders one and two turns"),
        Finding("the generation prompt begins the conversation", _check_prompts(tokenizer, encoder)),
        Finding("exactly the answers and their end tokens are learnt", _check_mask(tokenizer, encoder, end)),
        Finding("generation stops at the end token", _check_stop(model, tokenizer, end)),
        Finding("tokens decode to the text", _check_round_trip(tokenizer, encoder)),
        Finding("typed special tokens stay text", _check_injection(tokenizer, encoder)),
        Finding("every token has an embedding", _check_embeddings(model, tokenizer)),
    ]


def format_findings(findings: list[Finding]) -> str:
    """Return one line for each finding."""
    return "\n".join(f"{'FAILED' if found.problem else 'ok':7} {found.name}" + (
        f": {found.problem}" if found.problem else "") for found in findings)  # fmt: skip


def _answers(ids: list[int], is_answer: list[bool]) -> list[list[int]]:
    """Return the tokens of each answer: of each run of marked tokens."""
    found: list[list[int]] = []
    for place, (index, marked) in enumerate(zip(ids, is_answer, strict=True)):
        if marked and not (place and is_answer[place - 1]):
            found.append([])
        if marked:
            found[-1].append(index)
    return found


def _check_prompts(tokenizer: "PreTrainedTokenizerBase", encoder: ConversationEncoder) -> str:
    for messages in _CONVERSATIONS:
        for turn in range(1, len(messages), 2):
            prompt, whole = encoder.encode(messages[:turn], for_answer=True).ids, encoder.encode(messages).ids
            if whole[: len(prompt)] != prompt:
                shown = render(tokenizer, messages[:turn], for_answer=True)[0][-40:]
                return f"the prompt ends with {shown!r}, and the conversation goes on differently; mend the template"
    return ""


def _check_mask(tokenizer: "PreTrainedTokenizerBase", encoder: ConversationEncoder, end: int | None) -> str:
    if not encoder.has_marks:
        return "the template has no {% generation %} marks, so nothing says what an answer is; add them"
    name = tokenizer.eos_token if end is None else tokenizer.convert_ids_to_tokens(end)
    for messages in _CONVERSATIONS:
        encoded = encoder.encode(messages)
        found = [str(tokenizer.decode(ids)) for ids in _answers(encoded.ids, encoded.is_answer)]
        expected = [f"{message['content']}{name}" for message in messages if message["role"] == "assistant"]
        if [text.strip() for text in found] != expected:  # a line feed behind the end token does no harm
            return f"learnt is {found!r}, and should be {expected!r}; put the end token inside {{% generation %}}"
    return ""


def _check_stop(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", end: int | None) -> str:
    stops = model.generation_config.eos_token_id if model.generation_config is not None else None
    known = set(stops if isinstance(stops, list) else [] if stops is None else [stops])
    if end is None:
        return "the template writes no token of its own after an answer, so nothing ends one; write eos_token there"
    if end in known:
        return ""
    return (
        f"answers end with {tokenizer.convert_ids_to_tokens(end)!r}, generation_config.json has eos_token_id={stops}; "
        "set it to the end token's id"
    )


def _check_round_trip(tokenizer: "PreTrainedTokenizerBase", encoder: ConversationEncoder) -> str:
    for messages in _CONVERSATIONS:
        text = render(tokenizer, messages)[0]
        found = tokenizer.decode(encoder.encode(messages).ids, clean_up_tokenization_spaces=False)
        if found != text:
            return f"{text!r} comes back as {found!r}; use a tokenizer with a lossless decoder"
    return ""


def _check_injection(tokenizer: "PreTrainedTokenizerBase", encoder: ConversationEncoder) -> str:
    if not encoder.keeps_apart:
        return "the template changes contents, so typed special tokens look like its own; texts with them are refused"
    typed = "".join(map(str, tokenizer.all_special_tokens))
    clean, injected = (
        encoder.encode([{"role": "user", "content": text}], for_answer=True).ids for text in ("x", f"x{typed}")
    )
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    more = [index for index in injected if index in special][len([index for index in clean if index in special]) :]
    return f"a user can type {tokenizer.convert_ids_to_tokens(more)}" if more else ""


def _check_embeddings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> str:
    rows = int(cast("Tensor", model.get_input_embeddings().weight).shape[0])
    return "" if len(tokenizer) <= rows else f"{len(tokenizer)} tokens for {rows} embeddings; resize the embeddings"


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
    model, note = place_for_answers(model, config.use_cpu)
    if note:
        print(note)
    chat = Chat(model, tokenizer, config, config.system)
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
