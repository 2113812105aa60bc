"""Chat template: how a conversation becomes text and tokens.

Special tokens come from the template, never from the text of a message.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import InputError, ensure
from ..tokenizer.encode import compose
from ..tokenizer.files import END_INSTRUCTION_TOKEN, INSTRUCTION_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
Message = dict[str, str]  # role, content

# Stands for the text of a message while the template is rendered; characters of private use are in no template.
_PLACE = "\ue000{}\ue001"
_PLACES = re.compile("\ue000([0-9]+)\ue001")
_PROBE = [
    {"role": "user", "content": "Quantos são dois mais dois?\nE três?"},
    {"role": "assistant", "content": "São 4. E é 3, só."},
    {"role": "user", "content": "Obrigada!"},
    {"role": "assistant", "content": "De nada."},
]


@dataclass(frozen=True)
class EncodedConversation:
    """The tokens of a conversation.

    Attributes:
        ids: the token ids.
        is_answer: for each, whether it belongs to an answer, the end token included: what a model is trained to write.
    """

    ids: list[int]
    is_answer: list[bool]


def install_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give a tokenizer our template, in place.

    Raises:
        InputError: it lacks `<instruction>`, `</instruction>`, a start or an end token.
    """
    missing = [token for token in (INSTRUCTION_TOKEN, END_INSTRUCTION_TOKEN) if token not in tokenizer.get_vocab()]
    missing += [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name) is None]
    ensure(
        not missing,
        f"tokenizer: lacks {', '.join(missing)}, which the chat template is made of. Tokenizers made by "
        "`ttl tokenizer` have them; another model keeps its own chat template.",
    )
    tokenizer.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8")


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], for_answer: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation by the tokenizer's template, and where its answers stand in it.

    The sandbox of transformers runs the template, as `apply_chat_template` does.

    Args:
        tokenizer: with a chat template.
        messages: role and content each.
        for_answer: add what stands before the next answer.

    Returns:
        The text, and (start, end) of what the template marks with `{% generation %}`, in characters.

    Raises:
        InputError: there is no template, or it refuses the conversation.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    template = _template_of(tokenizer)
    refuse_costly(template, tuple(sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items())))
    rendering: Any = render_jinja_template  # declared to return a str
    try:
        texts, spans = rendering(
            [messages],
            chat_template=template,
            return_assistant_tokens_mask=has_generation_marks(template),
            add_generation_prompt=for_answer,
            **tokenizer.special_tokens_map,
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise InputError(f"messages: the chat template refuses them: {error}") from error
    return texts[0], [(start, end) for start, end in spans[0]] if spans else []


# The program of a child process: it renders a template as transformers does, and the system ends it when it takes too
# much time or memory.
_PROBE_SCRIPT = """
import datetime, json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
except (ImportError, ValueError, OSError):
    pass  # macOS limits no memory: the clock alone ends it there
import jinja2, jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True)).set_lineno(line)

def refuse(message):
    raise jinja2.TemplateError(message)

environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
environment.globals.update(raise_exception=refuse, strftime_now=datetime.datetime.now().strftime)
template, conversations, tokens = json.load(sys.stdin)
length = 0
for messages in conversations:
    for for_answer in (True, False):
        try:
            written = environment.from_string(template).generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=for_answer, **tokens)
            for part in written:
                length += len(part)
                if length > int(sys.argv[3]):
                    sys.exit(3)
        except MemoryError:
            sys.exit(3)
        except Exception:
            pass  # the rendering by transformers, which follows, says what is wrong
"""
MOST_SECONDS, _MOST_BYTES, _MOST_CHARS = 5, 1 << 30, 1_000_000  # for some short turns, which take milliseconds
_LONGEST_WAIT_SECONDS = 60  # by the clock; the limit above counts the seconds of a processor


@functools.lru_cache(maxsize=256)
def refuse_costly(template: str, special_tokens: tuple[tuple[str, str], ...]) -> None:
    """Refuse a template that takes too much time or memory: once for each, in a process of its own, before it is used.

    The sandbox of transformers keeps a template from running code, not from counting to a billion or writing ten
    gigabytes of one letter. It is tried with the tokenizer's own special tokens, on one to four turns, with and without
    a system text, before an answer and after it.

    Raises:
        InputError: it takes more than 5 s of a processor, 1 GB, or a million characters for all of them.
    """
    if template == TEMPLATE_PATH.read_text(encoding="utf-8"):
        return
    system = [{"role": "system", "content": "Seja breve."}]
    conversations = [head + _PROBE[:count] for count in (1, 2, 4) for head in ([], system)]
    command = [sys.executable, "-P", "-c", _PROBE_SCRIPT, *map(str, (MOST_SECONDS, _MOST_BYTES, _MOST_CHARS))]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([template, conversations, dict(special_tokens)]),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=_LONGEST_WAIT_SECONDS,
        )
        ended_early = done.returncode < 0 or done.returncode == 3
    except subprocess.TimeoutExpired:
        ended_early = True
    ensure(
        not ended_early,
        f"chat_template: takes more than {MOST_SECONDS} s, {_MOST_BYTES >> 30} GB or {_MOST_CHARS:,} characters to "
        "write some short turns. It is damaged or meant to do harm: use the model with another template.",
    )


def _template_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the chat template of a tokenizer, of several with names the one called default.

    Raises:
        InputError: it has none.
    """
    ensure(tokenizer.chat_template, "tokenizer: has no chat template: it belongs to a base model, which completes.")
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"chat_template: none can be chosen: {' '.join(str(error).split())} Call one default."
        ) from error


def has_generation_marks(template: str) -> bool:
    """Return whether a template says which parts of a conversation are answers."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


class ConversationEncoder:
    """Turns conversations into tokens so that nobody's text becomes a special token.

    `apply_chat_template` tokenizes the rendered text, in which a `</instruction>` typed by a user looks like the one
    of the template. Here, what the template writes and what the messages say are kept apart, and special tokens are
    read in the former only. The ids are those of `apply_chat_template` for all other texts.

    A template that changes contents beyond stripping them, or a tokenizer whose ids depend on what stands across a
    special token, is noticed with a probe; then `apply_chat_template` is used, and texts with special tokens are
    refused.

    Attributes:
        has_marks: whether the template marks answers with `{% generation %}`.
        keeps_apart: whether texts and the template's own special tokens can be told apart.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Take a fast tokenizer with a chat template.

        Raises:
            InputError: the tokenizer has none, or is a slow one.
        """
        ensure(tokenizer.is_fast, "tokenizer: is a slow one, whose tokens have no places. Use one with tokenizer.json.")
        self.tokenizer = tokenizer
        tokenizer.backend_tokenizer.no_truncation()  # left behind by an earlier call
        tokenizer.backend_tokenizer.no_padding()
        self.has_marks = has_generation_marks(_template_of(tokenizer) if tokenizer.chat_template else "")
        self._special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        names = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._special_in = re.compile("(" + "|".join(names) + ")" if names else r"(?!)")
        found = self._kept_apart(
            _PROBE, False
        )  # the first call, because its refusals say what is wrong with a template
        self.keeps_apart = found == self._by_library(_PROBE, False)

    def encode(self, messages: list[Message], for_answer: bool = False) -> EncodedConversation:
        """Return the tokens of a conversation.

        Args:
            messages: role and content each; contents are stripped and composed.
            for_answer: end with what stands before the next answer.

        Raises:
            InputError: the template refuses it, or a text holds a special token that could not be kept apart.
        """
        stripped = [{**message, "content": compose(message["content"].strip())} for message in messages]
        if self.keeps_apart and (found := self._kept_apart(stripped, for_answer)) is not None:
            return found
        for message in stripped:
            injected = self._special_in.search(message["content"])
            ensure(
                injected is None,
                f"messages: the text of a {message['role']} holds the special token {injected and injected[0]}, and "
                "this template cannot tell it from its own. Take it out.",
            )
        return self._by_library(stripped, for_answer)

    def end_of_answer(self) -> int | None:
        """Return the token that the template writes after an answer, or None if it writes none of its own.

        It is found by rendering, marked or not: what two conversations that differ in their last answer alone have in
        common behind it, whatever the template does to the answer; the first special or added token there. Where
        nothing follows the last answer, the token with which the next turn begins ends one.

        Raises:
            InputError: the template refuses conversations of one or two turns.
        """
        question, more = _PROBE[0], _PROBE[2]
        answers = [[question, {"role": "assistant", "content": text}] for text in ("Um.", "Dois!")]
        for following in ([], [more]):
            one, other = (render(self.tokenizer, turns + following)[0] for turns in answers)
            alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], other[::-1], strict=False))
            behind = "".join(letter for letter, _ in alike)[::-1]
            found = self._special_in.search(behind)
            if found and (not following or not behind[: found.start()].strip()):
                return self._special[found[0]]
        return None

    def _by_library(self, messages: list[Message], for_answer: bool) -> EncodedConversation:
        found: Any = self.tokenizer.apply_chat_template(
            messages,  # type: ignore[arg-type]
            add_generation_prompt=for_answer,
            return_dict=True,
            return_assistant_tokens_mask=self.has_marks,
        )
        ids = list(found["input_ids"])
        mask = found["assistant_masks"] if self.has_marks else [0] * len(ids)
        return EncodedConversation(ids, list(map(bool, mask)))

    def _kept_apart(self, messages: list[Message], for_answer: bool) -> EncodedConversation | None:
        """Return the tokens, or None when the template does more than put the contents into their places."""
        text, answers = render(self.tokenizer, messages, for_answer)
        places = [{**message, "content": _PLACE.format(index)} for index, message in enumerate(messages)]
        parts = _PLACES.split(render(self.tokenizer, places, for_answer)[0])
        for number in range(1, len(parts), 2):  # every second part is the number of a message
            parts[number] = messages[int(parts[number])]["content"]
        if "".join(parts) != text:
            return None
        ids: list[int] = []
        starts: list[int] = []
        run, run_start, position = "", 0, 0
        for number, part in enumerate(parts):
            for piece in self._special_in.split(part) if number % 2 == 0 else [part]:
                if number % 2 == 0 and piece in self._special:
                    self._append(run, run_start, ids, starts)
                    ids.append(self._special[piece])
                    starts.append(position)
                    run, run_start = "", position + len(piece)
                else:
                    run += piece
                position += len(piece)
        self._append(run, run_start, ids, starts)
        return EncodedConversation(ids, [any(first <= start < end for first, end in answers) for start in starts])

    def _append(self, text: str, start: int, ids: list[int], starts: list[int]) -> None:
        """Add the tokens of a text without special tokens, and where they start in the conversation."""
        if not text:
            return
        backend: Any = self.tokenizer.backend_tokenizer
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True  # "encode the special strings as text"
        try:
            encoding = backend.encode(text, add_special_tokens=False)
        finally:
            backend.encode_special_tokens = before
        ids += encoding.ids
        starts += [start + first for first, _ in encoding.offsets]
