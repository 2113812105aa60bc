"""Workers: documents become token ids in this process or in several, with the same ids in the same order.

A worker is a child process that reads frames of texts from its input and writes frames of ids to its output.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import RunFailedError
from .sources import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chunk = list[tuple[str, Document]]  # documents with their splits

PIECE_CHARS = 1_000_000  # longer documents are encoded in pieces, which bounds the memory
# A piece is encoded behind the last so many characters of the piece before: more than any token of several words has.
_WORDS_CHARS = 64


def split_long_text(text: str, piece_chars: int) -> list[str]:
    """Cut a long text where no token of our tokenizer (or of a GPT's) ever crosses: before a space between two letters.

    The word before the space is longer than any function word, so that no superword crosses either. The concatenation
    of the pieces is the text.

    Args:
        text: of any length.
        piece_chars: a piece ends at the first such space after so many characters.
    """
    from ..tokenizer.files import LONGEST_FUNCTION_WORD

    pieces, start, letters = [], 0, LONGEST_FUNCTION_WORD + 1
    while len(text) - start > piece_chars:
        cut = start + max(piece_chars, letters)
        while cut < len(text) and not (
            text[cut] == " " and text[cut - letters : cut].isalpha() and text[cut + 1 : cut + 2].isalpha()
        ):
            cut += 1
        pieces.append(text[start:cut])
        start = cut
    return [*pieces, text[start:]] if start < len(text) or not pieces else pieces


def encode_in_pieces(encode: Callable[[list[str]], list[bytes]], texts: list[str], piece_chars: int) -> list[bytes]:
    """Return the token ids of texts; long texts are encoded in pieces, and have the ids of the whole text.

    Many tokenizers put a space in front of whatever they are given (`Prepend ▁`, `add_dummy_prefix`) or strip it. So a
    piece is encoded behind the last words of the piece before, and their own ids are taken away again. Where those are
    not the beginning of the ids, a token crosses the cut: then that text is encoded whole.

    Args:
        encode: returns the ids of each text, as the bytes of an array.
        texts: the texts.
        piece_chars: longer texts are cut.
    """
    cut = [split_long_text(text, piece_chars) for text in texts]
    asked: list[str] = []
    for pieces in cut:
        asked.append(pieces[0])
        for before, piece in itertools.pairwise(pieces):
            words = before[max(0, before.rfind(" ", 0, max(1, len(before) - _WORDS_CHARS))) :]
            asked += [words, words + piece]
    encoded = iter(encode(asked))
    found = []
    for text, pieces in zip(texts, cut, strict=True):
        parts, fits = [next(encoded)], True
        for _ in pieces[1:]:
            words_ids, ids = next(encoded), next(encoded)
            fits = fits and ids.startswith(words_ids)
            parts.append(ids[len(words_ids) :])
        found.append(b"".join(parts) if fits else encode([text])[0])
    return found


def write_frame(stream: IO[bytes], parts: list[bytes]) -> None:
    """Write a frame, from which `read_frame` gets the byte strings back: their number, their lengths, their bytes."""
    stream.write(np.array([len(parts), *map(len, parts)], dtype=np.int64).tobytes())
    stream.writelines(parts)
    stream.flush()


def read_frame(stream: IO[bytes]) -> list[bytes] | None:
    """Return the byte strings of the next frame, or None when the stream has ended.

    Raises:
        EOFError: the stream ends inside a frame.
    """
    head = stream.read(8)
    if not head:
        return None
    count = int(np.frombuffer(_whole(head, 8), dtype=np.int64)[0])
    lengths = np.frombuffer(_whole(stream.read(8 * count), 8 * count), dtype=np.int64).tolist()
    return [_whole(stream.read(length), length) for length in lengths]


def _whole(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise EOFError(f"a frame was cut off: {len(data)} of {length} bytes")
    return data


class DocumentEncoder:
    """Encode chunks of documents as `<s> text </s>`; use it as a context manager.

    A tokenizer without a start token trains on `text </s>`. Documents that are scored alone then begin with an end
    token, as after another document, or their first token would have nothing that predicts it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", dtype: Any, num_workers: int) -> None:
        """Start `num_workers` processes; with one, or for a tokenizer without a Rust backend, work in this process."""
        from ..tokenizer.encode import CorpusEncoder

        self.dtype = np.dtype(dtype)
        self.start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end = [tokenizer.eos_token_id]
        self._slow = None if tokenizer.is_fast else tokenizer
        self._workers: list[subprocess.Popen[bytes]] = []
        self._free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        if self._slow is None and num_workers > 1:
            content = tokenizer.backend_tokenizer.to_str()
            self._workers = [_start_worker(content, self.dtype) for _ in range(num_workers)]
            for worker in self._workers:
                self._free.put(worker)
        elif self._slow is None:
            from tokenizers import Tokenizer

            self._encoder = CorpusEncoder(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), self.dtype)

    def __enter__(self) -> "DocumentEncoder":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.kill()  # a worker holds no work that is not asked for again
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                with contextlib.suppress(BrokenPipeError):  # of bytes that a dead worker never took
                    if stream is not None:
                        stream.close()

    def encode_chunks(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[NDArray[Any]]]]:
        """Yield each chunk with the ids of its documents, in order.

        Raises:
            RunFailedError: a worker process died.
        """
        if not self._workers:
            for chunk in chunks:
                yield chunk, self._documents(chunk, self._encode_here)
            return
        # A few chunks more than there are workers, so that none waits for the next while results are written.
        running: deque[tuple[Chunk, Future[list[NDArray[Any]]]]] = deque()
        with ThreadPoolExecutor(len(self._workers)) as threads:
            for chunk in chunks:
                running.append((chunk, threads.submit(self._documents, chunk, self._encode_there)))
                if len(running) > len(self._workers) + 1:
                    done, future = running.popleft()
                    yield done, future.result()
            for done, future in running:
                yield done, future.result()

    def _documents(self, chunk: Chunk, encode: Any) -> list[NDArray[Any]]:
        texts = encode_in_pieces(encode, [document.text for _, document in chunk], PIECE_CHARS)
        start, end = (np.array(ids, dtype=self.dtype).tobytes() for ids in (self.start, self.end))
        starts = {"train": start, "validation": start or end}
        return [
            np.frombuffer(b"".join([starts[split], ids, end]), dtype=self.dtype)
            for (split, _), ids in zip(chunk, texts, strict=True)
        ]

    def _encode_here(self, texts: list[str]) -> list[bytes]:
        if self._slow is None:
            return self._encoder.encode(texts)
        from ..tokenizer.encode import encode_texts

        return [np.asarray(ids, dtype=self.dtype).tobytes() for ids in encode_texts(self._slow, texts)]

    def _encode_there(self, texts: list[str]) -> list[bytes]:
        """Send texts to a free worker and wait for its answer; runs in a thread of its own."""
        worker = self._free.get()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            write_frame(worker.stdin, [text.encode() for text in texts])
            answer = read_frame(worker.stdout)
        except (BrokenPipeError, EOFError):
            answer = None
        if answer is None:
            self._free.put(worker)
            raise RunFailedError(
                f"encoding: a worker process ended with code {worker.wait()} (-9: killed, usually for memory). "
                "The same command goes on after the last finished chunk; fewer num_workers need less memory."
            )
        self._free.put(worker)
        return answer


def _start_worker(tokenizer_json: str, dtype: np.dtype[Any]) -> "subprocess.Popen[bytes]":
    # A plain child with pipes, not `multiprocessing`: it needs no importable main module, and ends when its input does,
    # also after a `kill -9` of this process.
    package_parent = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH", "")])),
        "TOKENIZERS_PARALLELISM": "false",  # the processes share the cores, not their threads
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.workers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then ends its workers
    )
    assert worker.stdin is not None
    write_frame(worker.stdin, [json.dumps({"dtype": dtype.name}).encode(), tokenizer_json.encode()])
    return worker


def _work() -> None:
    """Answer each frame of texts with a frame of ids until the input ends."""
    from tokenizers import Tokenizer

    from ..tokenizer.encode import CorpusEncoder

    first = read_frame(sys.stdin.buffer)
    if first is None:
        return
    encoder = CorpusEncoder(Tokenizer.from_str(first[1].decode()), json.loads(first[0])["dtype"])
    with contextlib.suppress(BrokenPipeError, EOFError):  # the parent was killed
        while (texts := read_frame(sys.stdin.buffer)) is not None:
            write_frame(sys.stdout.buffer, encoder.encode([text.decode() for text in texts]))


if __name__ == "__main__":
    _work()
