"""The engines that `ttl bench` measures, each in a process of its own, so that none counts another's memory.

A process is started by `started_engine` as `python -m teenytinyllama.export.engines`, reads requests from its standard
input and answers on its standard output, one JSON object a line. It ends when its input does, so none outlives the
bench. While another engine is measured it waits for a line and does nothing.
"""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from ..checks import InputError, RunFailedError

EngineName = Literal["dynamic", "static", "graphs", "compiled", "continuous"]
LLAMA_CPP = "llama.cpp"
ABOUT_ENGINES: dict[str, str] = {
    "dynamic": "transformers' generate with its usual cache, which grows with the text",
    "static": "the same with a cache of fixed size",
    "graphs": "a cache of fixed size, and the steps replayed as CUDA graphs, without compiling",
    "compiled": "a cache of fixed size, and the step of one token compiled by torch.compile",
    "continuous": "transformers' continuous batching, the engine of `transformers serve`",
    LLAMA_CPP: "llama.cpp through llama-cpp-python, one text at a time",
}
NEEDS_GPU = frozenset({"graphs"})
_PATIENCE_SECONDS = 2  # for a process that has nothing more to do


@dataclass(frozen=True)
class EngineSpec:
    """What an engine's process is told.

    Attributes:
        engine: a key of `ABOUT_ENGINES`.
        model: what `models.from_pretrained` takes, or the path of a GGUF file.
        prompts: token ids of the largest batch; a smaller one takes the first rows.
        new_tokens: tokens that are written behind each prompt, whatever they are.
        dtype: of the weights and the cache; `saved`: as the model was saved.
        threads: of the processor.
        use_cpu: leave the model on the processor, also where there is a GPU.
        seed: of everything random; greedy writing uses none.
        revision: of a Hub repository.
        base_model: of an adapter.
    """

    engine: str
    model: str
    prompts: list[list[int]]
    new_tokens: int
    dtype: str = "saved"
    threads: int = 1
    use_cpu: bool = False
    seed: int = 0
    revision: str | None = None
    base_model: str | None = None


@dataclass(frozen=True)
class Written:
    """What an engine wrote at once.

    Attributes:
        ids: (batch, new tokens) token ids.
        first_seconds: until each text had its first token: the time of the prompts.
        seconds: until the end.
        peak_bytes: most memory of the process since the batch size was set: of the GPU's tensors there, otherwise all
            that it holds of the machine's memory.
    """

    ids: list[list[int]]
    first_seconds: float
    seconds: float
    peak_bytes: int

    def prompt_speed(self, prompt_tokens: int) -> float:
        """Return the tokens of all prompts that were read in a second."""
        return len(self.ids) * prompt_tokens / self.first_seconds

    @property
    def speed(self) -> float:
        """Return the tokens written in a second; the first of each text is its prompt's, the others have the rest."""
        return len(self.ids) * (len(self.ids[0]) - 1) / max(self.seconds - self.first_seconds, 1e-9)


class EngineProcess:
    """An engine's process, seen from the bench."""

    def __init__(self, spec: EngineSpec, log: Path) -> None:
        """Start the process and wait until its model is loaded.

        Args:
            spec: what it is told.
            log: gets all that its libraries print.

        Raises:
            InputError: the model or the file is refused.
            RunFailedError: the process ended, see `ask`.
        """
        self._log = log
        environment = {**os.environ, "OMP_NUM_THREADS": str(spec.threads), "TOKENIZERS_PARALLELISM": "false"}
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                encoding="utf-8", env=environment,
            )  # fmt: skip
        try:
            self.about = self.ask(asdict(spec))
        except BaseException:
            self.close()
            raise

    def set_batch(self, batch: int) -> float:
        """Make ready for a batch size, by writing once, and return the seconds that this took, compiling included."""
        return float(self.ask({"batch": batch})["warm_up_seconds"])

    def write(self) -> Written:
        """Let the engine write one batch."""
        return Written(**self.ask({}))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            InputError: the process refuses the model.
            RunFailedError: the process has ended; the message has the last line that it printed.
        """
        answers: Any = self._process.stdout
        requests: Any = self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended, and the answer is empty
            requests.write(json.dumps(request) + "\n")
            requests.flush()
        line = answers.readline()
        if not line:
            lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((text.strip() for text in reversed(lines) if text.strip()), "it printed nothing")
            raise RunFailedError(f"its process ended with exit code {self._process.wait()}: {last[:300]}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise InputError(answer["refused"])
        return answer

    def close(self) -> None:
        """End the process."""
        requests: Any = self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            requests.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # in the midst of a batch
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def started_engine(spec: EngineSpec, log: Path) -> Iterator[EngineProcess]:
    """Give the block an engine in a process of its own, and end the process afterwards; see `EngineProcess`."""
    engine = EngineProcess(spec, log)
    try:
        yield engine
    finally:
        engine.close()


# --- inside the process

# Writes the texts behind some prompts and returns them with the time by the clock when each had its first token.
Writer = Callable[[list[list[int]]], tuple[list[list[int]], float]]


def _make_transformers(spec: EngineSpec) -> tuple[Writer, str]:
    """Return a writer of one of transformers' engines, and the name of its device and dtype."""
    import torch
    from transformers import GenerationConfig

    from ..models import from_pretrained, place_for_answers

    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    loaded, tokenizer = from_pretrained(spec.model, spec.revision, spec.base_model)
    if spec.dtype != "saved":
        loaded = loaded.to(getattr(torch, spec.dtype))
    model: Any
    model, _ = place_for_answers(loaded, spec.use_cpu)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=pad)  # no end token: all write as much
    name = f"{torch.cuda.get_device_name() if model.device.type == 'cuda' else 'processor'}, {model.dtype}"
    make = _continuous_writer if spec.engine == "continuous" else _generate_writer
    return make(model, spec), name.replace("torch.", "")


def _generate_writer(model: Any, spec: EngineSpec) -> Writer:
    """Return a writer by transformers' `generate`."""
    import torch
    from transformers import StoppingCriteriaList

    from ..chat.generation import cache_arguments
    from ..gpus import wait_for_gpu

    arguments = {"max_new_tokens": spec.new_tokens, **cache_arguments(spec.engine, model.device.type)}

    def write(rows: list[list[int]]) -> tuple[list[list[int]], float]:
        marks: list[float] = []
        input_ids = torch.tensor(rows, device=model.device)
        goes_on = torch.zeros(len(rows), dtype=torch.bool, device=model.device)

        def note_first(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            if ids.shape[1] == input_ids.shape[1] + 1:
                wait_for_gpu()
                marks.append(time.perf_counter())
            return goes_on

        output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids),
                                stopping_criteria=StoppingCriteriaList([note_first]), **arguments)  # fmt: skip
        return output[:, input_ids.shape[1] :].tolist(), marks[0]

    return write


def _continuous_writer(model: Any, spec: EngineSpec) -> Writer:
    """Return a writer by continuous batching, with room for the largest batch and no more.

    Its memory would otherwise be most of what is free. Prompts that were there before are computed again: the bench
    asks with the same ones in each repeat.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    page = 16
    longest = len(spec.prompts[0]) + spec.new_tokens
    settings: dict[str, Any] = {"page_size": page, "num_blocks": len(spec.prompts) * (-(-longest // page) + 1) + 1,
                "max_batch_tokens": max(256, len(spec.prompts[0])), "allow_block_sharing": False,
                "max_requests_per_batch": len(spec.prompts)}  # fmt: skip

    asked = GenerationConfig(
        do_sample=False,
        max_new_tokens=spec.new_tokens,
        eos_token_id=-1,
        pad_token_id=model.generation_config.pad_token_id,
    )

    def write(rows: list[list[int]]) -> tuple[list[list[int]], float]:
        found = model.generate_batch(
            rows, generation_config=asked, continuous_batching_config=ContinuousBatchingConfig(**settings),
            record_timestamps=True, persistent_manager=True, progress_bar=False,
        )  # fmt: skip
        results = list(found.values())
        if len(results) < len(rows):
            raise RunFailedError("continuous batching lost texts; its log is above")
        return [list(one.generated_tokens) for one in results], max(one.timestamps[0] for one in results)

    return write


def _make_llama_cpp(spec: EngineSpec) -> tuple[Writer, str]:
    """Return a writer of llama.cpp, and the name of its device.

    Only the last token's logits are computed, and keys and values are in float16, as in llama.cpp's own programs.

    Raises:
        InputError: llama.cpp refuses the file.
    """
    from .llama_cpp import open_model

    context = len(spec.prompts[0]) + spec.new_tokens
    model = open_model(Path(spec.model), context, threads=spec.threads, scores=False)

    def write(rows: list[list[int]]) -> tuple[list[list[int]], float]:
        (row,) = rows
        tokens = model.likeliest(row)
        written, first = [next(tokens)], time.perf_counter()
        return [[*written, *itertools.islice(tokens, spec.new_tokens - 1)]], first

    return write, "processor"


def _peak_bytes(reset: bool = False) -> int:
    """Return the most memory of this process since the last reset: of tensors on its GPU, or of the machine's.

    Linux keeps the mark in /proc/self/status. What `getrusage` says there is no less than the memory of the process
    that started this one.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.memory_allocated():
        peak = int(torch.cuda.max_memory_allocated())
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return peak
    from ..gpus import peak_memory_gb

    with contextlib.suppress(OSError):  # not on Linux
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if found:
            return int(found[1]) * 1024
    return int(peak_memory_gb() * 1e9)


def _serve(requests: TextIO, answers: TextIO) -> None:
    """Load the model that the first request names, then answer requests until there are no more."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    spec = EngineSpec(**json.loads(requests.readline()))
    begun = time.perf_counter()
    is_llama_cpp = spec.engine == LLAMA_CPP
    try:
        write, device = (_make_llama_cpp if is_llama_cpp else _make_transformers)(spec)
    except InputError as error:
        answer({"refused": str(error)})
        return
    answer({"device": device, "load_seconds": time.perf_counter() - begun})
    rows: list[list[int]] = []
    for line in requests:
        batch = json.loads(line).get("batch")
        if batch is None:
            answer(asdict(_timed(write, rows)))
            continue
        rows = spec.prompts[:batch]
        if not is_llama_cpp:
            import torch

            torch.compiler.reset()  # what was compiled for another batch size would be compiled for any, and be slower
        _peak_bytes(reset=True)
        answer({"warm_up_seconds": _timed(write, rows).seconds})


def _timed(write: Writer, rows: list[list[int]]) -> Written:
    """Let an engine write, and time it."""
    begun = time.perf_counter()
    ids, first = write(rows)  # lists of numbers: a GPU has ended
    return Written(ids, first - begun, time.perf_counter() - begun, _peak_bytes())


def main() -> None:
    """Answer the requests on standard input; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
