"""llama.cpp: a GGUF file, opened by llama-cpp-python, as checks, scores and the bench need it."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure, ensure_packages

_F32 = 0  # llama.cpp's number of the type, for the cache of keys and values


@contextlib.contextmanager
def opened(path: Path, context: int = 0, vocabulary_only: bool = False, exact: bool = False) -> Iterator["LlamaCpp"]:
    """Open a GGUF file in llama.cpp for the block.

    Args:
        path: the file.
        context: tokens that fit; 0: as many as the model was trained with.
        vocabulary_only: read the tokenizer alone.
        exact: keep keys and values in float32, not float16.

    Raises:
        InputError: llama-cpp-python is missing, or llama.cpp refuses the file.
    """
    ensure_packages("gguf", "llama_cpp")
    import llama_cpp

    ensure(path.is_file(), f"{path}: no such GGUF file.")
    cache = {"type_k": _F32, "type_v": _F32} if exact else {}
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=512, n_threads=usable_cores(), n_threads_batch=usable_cores(),
            logits_all=not vocabulary_only, vocab_only=vocabulary_only, verbose=False, **cache
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: llama.cpp cannot read it ({error}). Export the model again.") from error
    try:
        yield LlamaCpp(model)
    finally:
        model.close()


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LlamaCpp:
    """A model in llama.cpp; `opened` makes it."""

    def __init__(self, model: Any) -> None:
        """Hold a `llama_cpp.Llama` that was made with `logits_all`."""
        self.model = model

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a text without a start token; `special`: names of special tokens become those tokens."""
        return list(self.model.tokenize(text.encode(), add_bos=False, special=special))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return (tokens, vocabulary): behind each token of a text the logits of the next one."""
        self.model.reset()
        self.model.eval(list(ids))
        return np.array(self.model.scores[: len(ids)], dtype=np.float32)

    def greedy(self, ids: Sequence[int], new_tokens: int, ends: frozenset[int] = frozenset()) -> list[int]:
        """Return the likeliest tokens behind a prompt, one after the other, up to and with an end token."""
        self.model.reset()
        self.model.eval(list(ids))
        written: list[int] = []
        while len(written) < new_tokens and not (written and written[-1] in ends):
            written.append(int(np.argmax(self.model.scores[self.model.n_tokens - 1])))
            self.model.eval([written[-1]])
        return written
