"""llama.cpp: a GGUF file, opened by llama-cpp-python, as checks, scores and the bench need it."""

import contextlib
import ctypes
import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..chat.generation import Sampling, room_for_answer
from ..chat.template import refuse_costly
from ..checks import InputError, available_cores, ensure, ensure_packages

_F32 = 0  # llama.cpp's number of the type, for the cache of keys and values
_said: deque[str] = deque(maxlen=5)  # the newest lines of llama.cpp's log
_kept: list[Any] = []  # what C code calls must not be collected


@functools.cache
def library() -> Any:
    """Return the module `llama_cpp`, whose log no longer goes to the terminal; `last_words` has its newest lines.

    Raises:
        InputError: llama-cpp-python is missing.
    """
    ensure_packages("gguf", "llama_cpp")
    import llama_cpp

    def keep(level: int, text: bytes, data: object) -> None:
        _said.append(text.decode(errors="replace").strip())

    _kept.append(llama_cpp.llama_log_callback(keep))
    llama_cpp.llama_log_set(_kept[-1], ctypes.c_void_p(0))
    return llama_cpp


def last_words() -> str:
    """Return the newest lines of llama.cpp's log."""
    return "; ".join(line for line in _said if line)


def open_model(
    path: Path,
    context: int = 0,
    vocabulary_only: bool = False,
    exact: bool = False,
    threads: int | None = None,
    scores: bool = True,
) -> "LlamaCpp":
    """Return a GGUF file opened in llama.cpp; its memory is kept until `LlamaCpp.close`.

    Args:
        path: the file.
        context: tokens that fit; 0: as many as the model was trained with.
        vocabulary_only: read the tokenizer alone.
        exact: keep keys and values in float32, not float16.
        threads: that compute; None: one for each idle core.
        scores: keep the logits of all tokens; to write texts, those of the last one suffice.

    Raises:
        InputError: llama-cpp-python is missing, or llama.cpp refuses the file.
    """
    llama_cpp = library()
    from jinja2 import TemplateError

    ensure(path.is_file(), f"{path}: no such GGUF file.")
    threads = threads or idle_cores()
    cache: dict[str, Any] = {"type_k": _F32, "type_v": _F32} if exact else {}
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=512 if vocabulary_only else context, n_batch=512, n_threads=threads,
            n_threads_batch=threads, logits_all=scores and not vocabulary_only, vocab_only=vocabulary_only,
            verbose=False, **cache
        )  # fmt: skip
    except (ValueError, RuntimeError, TemplateError) as error:  # the last of a chat template
        why = f"{type(error).__name__}: {error}; {last_words()}"
        raise InputError(f"{path.name}: llama.cpp cannot read it ({why}).") from error
    return LlamaCpp(model)


@contextlib.contextmanager
def opened(path: Path, **more: Any) -> Iterator["LlamaCpp"]:
    """Open a GGUF file in llama.cpp for the block; see `open_model`."""
    model = open_model(path, **more)
    try:
        yield model
    finally:
        model.close()


def idle_cores() -> int:
    """Return how many cores have nothing to do, at least one.

    llama.cpp's threads wait for each other in a loop at every matrix: with one thread more than there are idle cores a
    model of 1.4M parameters wrote 85 tokens/s in place of 12,700 (two cores, a load of 10).
    """
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, available_cores() - round(busy))


def use_own_template(model: Any) -> Any:
    """Let a `llama_cpp.Llama` write conversations by the file's own chat template, not by one that is guessed.

    Returns:
        The `Jinja2ChatFormatter`; None where the file has no template.

    Raises:
        InputError: the template takes too much time or memory.
        TemplateError: it is no template.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = (model.metadata or {}).get("tokenizer.chat_template")
    if not template:
        return None
    ids = {"bos_token": model.token_bos(), "eos_token": model.token_eos()}
    tokens: Any = {role: model.detokenize([i] * (i >= 0), special=True).decode() for role, i in ids.items()}
    refuse_costly(template, tuple(sorted(tokens.items())))
    made = Jinja2ChatFormatter(template, stop_token_ids=[model.token_eos()], **tokens)
    model.chat_handler = made.to_chat_handler()
    return made


class LlamaCpp:
    """A model in llama.cpp; `open_model` makes it."""

    def __init__(self, model: Any) -> None:
        """Hold a `llama_cpp.Llama` that was made with `logits_all`."""
        self.model = model
        self._format: Any = None  # of its chat template, once it is used

    def close(self) -> None:
        """Free its memory."""
        self.model.close()

    @property
    def context(self) -> int:
        """Return how many tokens fit, by its training: llama.cpp's own number is rounded up."""
        return min(int(self.model.n_ctx()), int(self.model._model.n_ctx_train()))

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a text without a start token; `special`: names of special tokens become those tokens."""
        return list(self.model.tokenize(text.encode(), add_bos=False, special=special))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return (tokens, vocabulary): behind each token of a text the logits of the next one."""
        self.model.reset()
        self.model.eval(list(ids))
        return np.array(self.model.scores[: len(ids)], dtype=np.float32)

    @property
    def is_chat(self) -> bool:
        """Return whether the file has a chat template."""
        return bool((self.model.metadata or {}).get("tokenizer.chat_template"))

    def check_length(self, text: str, sampling: Sampling, is_chat: bool) -> int:
        """Return the room for an answer to a message, in tokens.

        Raises:
            InputError: the message does not fit into the context with an answer, or it is to be put into the chat
                template and that refuses it, or could not tell a special token in it from its own.
        """
        ids = self._in_template(text) if is_chat else self.tokenize(text)
        return room_for_answer(len(ids), sampling.max_new_tokens, self.context)

    def _in_template(self, text: str) -> list[int]:
        """Return the tokens of a message in the file's chat template; see `check_length`."""
        from jinja2 import TemplateError

        ensure(
            self.tokenize(text) == self.tokenize(text, special=True),
            "message: holds a special token of the model, which would be taken for the chat template's own. Take it "
            "out.",
        )
        try:
            self._format = self._format or use_own_template(self.model)
            prompt = self._format(messages=[{"role": "user", "content": text}]).prompt
        except InputError:
            raise
        except (TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise InputError(f"message: the chat template refuses it: {error}") from error
        return self.tokenize(prompt, special=True)

    def answer(self, text: str, sampling: Sampling, is_chat: bool) -> tuple[str, int, bool]:
        """Return the answer to a message, or what goes on with a text; its tokens, and whether the model ended it.

        The sampling is llama.cpp's own: its penalty for repetition looks at the last 64 tokens, not at all of them.

        Args:
            text: the message or the beginning.
            sampling: how tokens are chosen.
            is_chat: ask in the file's chat template.

        Raises:
            InputError: see `check_length`; also a template that takes too much time or memory.
        """
        room = self.check_length(text, sampling, is_chat)
        chosen: dict[str, Any] = {
            "max_tokens": room, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
            "min_p": 0.0, "repeat_penalty": sampling.repetition_penalty, "seed": sampling.seed,
        }  # fmt: skip
        self.model.reset()
        if is_chat:
            told = self.model.create_chat_completion([{"role": "user", "content": text}], **chosen)
            written = told["choices"][0]["message"]["content"] or ""
        else:
            start = [self.model.token_bos()] if self.model.token_bos() >= 0 else []
            told = self.model.create_completion(start + self.tokenize(text), **chosen)
            written = told["choices"][0]["text"]
        ended = told["choices"][0]["finish_reason"] == "stop"
        return written.strip(), int(told["usage"]["completion_tokens"]), ended

    def likeliest(self, ids: Sequence[int]) -> Iterator[int]:
        """Yield the likeliest tokens behind a prompt, one after the other, past any end token."""
        llama_cpp = library()
        self.model.reset()
        self.model.eval(list(ids))
        while True:
            logits = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
            token = int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.model.n_vocab(),))))
            yield token
            self.model.eval([token])
