"""What an export is worth: bits per byte, the suite `signal`, speed and memory of each file, beside its model's.

A GGUF file is read by llama.cpp itself, so that what is measured is what a user gets. Held-out documents, windows and
questions are those of `evaluation`.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..chat.generation import generate_ids
from ..disk import scratch_folder
from ..evaluation.held_out import HeldOutWindows, find_held_out, load_held_out, score_windows, window_nats
from ..evaluation.scoring import SignalTask, TokenPair, cloze_task, local_tasks, score_signal, signal_figures
from ..progress import progress
from .bench import real_prompts
from .engines import LLAMA_CPP, EngineSpec, started_engine
from .gguf_file import different_ids, trial_lines
from .llama_cpp import LlamaCpp, idle_cores, opened

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLOZE_ITEMS = 200
_PROMPT = "Era uma vez uma lhama que vivia numa casa pequena, perto do mar. Todos os dias"
_GREEDY_TOKENS = 32
_BATCH = 8
_SPEED_REPEATS = 3
_PROMPT_TOKENS = 128


@dataclass(frozen=True)
class Yardstick:
    """What every file of an export is measured with.

    Attributes:
        windows: of the held-out documents.
        tasks: of the suite `signal`.
        held_out: the inputs that the text is from.
    """

    windows: HeldOutWindows
    tasks: list[SignalTask]
    held_out: list[str]


def make_yardstick(
    model_folder: Path,
    tokenizer: "PreTrainedTokenizerBase",
    context: int,
    held_out: list[str] | None,
    max_tokens: int,
    data_dir: str | None,
) -> Yardstick | None:
    """Return what files are measured with, or None where there is no held-out text.

    Args:
        model_folder: whose run's packed rows are the default text.
        tokenizer: of the model.
        context: tokens that are read at once.
        held_out: a packed folder, or texts.
        max_tokens: of the documents that are scored.
        data_dir: folder with files of the suite `signal`; None: cloze of the held-out text alone.

    Raises:
        InputError: a text or a folder that cannot be read.
    """
    inputs = held_out or find_held_out(model_folder)
    if not inputs:
        return None
    text = load_held_out(inputs, tokenizer)
    tasks = local_tasks(data_dir, tokenizer, CLOZE_ITEMS) if data_dir else []
    cloze = cloze_task(text.texts, tokenizer, CLOZE_ITEMS, 50_000)
    windows = HeldOutWindows(text, context, max_tokens=max_tokens)
    return Yardstick(windows, [*([cloze] if cloze else []), *tasks], list(inputs))


def measure_model(model: "PreTrainedModel", yardstick: Yardstick) -> dict[str, Any]:
    """Return bits per byte, counts of the text, and the figures of `signal` of a model in transformers."""
    found = yardstick.windows.summarise(score_windows(model, yardstick.windows, _BATCH))
    figures = {name: found[name] for name in ("bits_per_byte", "scored_tokens", "documents")}
    return {**figures, "signal": score_signal(model, yardstick.tasks, _BATCH)}


def measure_gguf(path: Path, yardstick: Yardstick) -> dict[str, Any]:
    """Return the same of a GGUF file in llama.cpp.

    Raises:
        InputError: see `opened`.
    """
    with opened(path) as model:
        places = progress(range(len(yardstick.windows)), "held-out text", "windows")
        nats = np.array([_window_nats(model, yardstick.windows[place]) for place in places])
        found = yardstick.windows.summarise(nats)
        figures = {name: found[name] for name in ("bits_per_byte", "scored_tokens", "documents")}
        return {**figures, "signal": signal_figures(lambda pairs: _score_pairs(model, pairs), yardstick.tasks)}


def measure_speed(place: str, prompt: list[int], **more: Any) -> dict[str, Any]:
    """Return how fast a model or a GGUF file reads and writes on this machine's processor, in a process of its own.

    Args:
        place: of the model, as `from_pretrained` takes it, or the path of a GGUF file.
        prompt: token ids.
        more: `revision` and `base_model` of a model.

    Returns:
        `prompt_tokens_per_second`, `new_tokens_per_second` (medians of `repeats`), `peak_mb` of the whole process, and
        `threads`.

    Raises:
        RunFailedError: its process ended.
    """
    engine = LLAMA_CPP if place.endswith(".gguf") else "dynamic"
    spec = EngineSpec(engine, place, [prompt], len(prompt) // 2, threads=idle_cores(), use_cpu=True, **more)
    with scratch_folder() as scratch, started_engine(spec, scratch / "engine.log") as process:
        process.set_batch(1)
        found = [process.write() for _ in range(_SPEED_REPEATS)]
    return {
        "prompt_tokens_per_second": statistics.median(one.prompt_speed(len(prompt)) for one in found),
        "new_tokens_per_second": statistics.median(one.speed for one in found),
        "peak_mb": max(one.peak_bytes for one in found) / 1e6,
        "repeats": _SPEED_REPEATS,
        "threads": spec.threads,
    }


def speed_prompt(tokenizer: "PreTrainedTokenizerBase", context: int) -> list[int]:
    """Return the prompt of `measure_speed`: real text of at most `_PROMPT_TOKENS` tokens, and of half a context."""
    return real_prompts(tokenizer, max(4, min(_PROMPT_TOKENS, context // 2)), 1)[0]


def _window_nats(model: LlamaCpp, window: "dict[str, NDArray[np.int64]]") -> "NDArray[np.float64]":
    """Return the summed nats of a window's scored tokens, and their number."""
    logits = torch.from_numpy(model.logits(window["input_ids"].tolist()))
    found: NDArray[np.float64] = window_nats(logits[None], torch.from_numpy(window["labels"])[None])[0].double().numpy()
    return found


def _score_pairs(model: LlamaCpp, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
    """Return what `score_continuations` does of pairs, one text at a time."""
    results = []
    for context, continuation in progress(pairs, "scoring", "answers"):
        room = max(1, model.context + 1 - len(continuation))  # the beginning of a long context is left out
        ids = [*list(context)[-room:], *continuation]
        logits, targets = torch.from_numpy(model.logits(ids[:-1])[-len(continuation) :]), torch.tensor(continuation)
        greedy = bool((logits.argmax(dim=1) == targets).all())
        results.append((-float(cross_entropy(logits, targets, reduction="sum")), greedy))
    return results


def compare_in_llama_cpp(
    path: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, float | int | bool]:
    """Return how a GGUF file in llama.cpp differs from the model in transformers, computed in float32.

    Returns:
        `lines` compared and `lines_with_other_ids`; of a prompt the `largest_logit` and the `largest_difference` of
        logits; whether the greedy text, of `greedy_tokens` tokens up to its end, is the `same_greedy_text`.
    """
    ids = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    context = int(model.config.max_position_embeddings)
    ids = [*ids, *tokenizer(_PROMPT, add_special_tokens=False)["input_ids"]][: max(1, context // 2)]
    new_tokens = min(_GREEDY_TOKENS, context - len(ids))
    with torch.no_grad():
        expected = model(torch.tensor([ids], device=model.device)).logits[0].float().cpu().numpy()
    written = generate_ids(model, tokenizer, [ids], new_tokens, seed=0, temperature=0)[0].ids
    with opened(path, exact=True) as other:
        found = other.logits(ids)
        greedy = list(itertools.islice(other.likeliest(ids), len(written)))
    return {
        "lines": len(trial_lines()),
        "lines_with_other_ids": len(different_ids(path, tokenizer)),
        "largest_logit": float(np.abs(expected).max()),
        "largest_difference": float(np.abs(found - expected).max()),
        "greedy_tokens": len(written),
        "same_greedy_text": greedy == written,
    }


def draw_quality(rows: Sequence[dict[str, Any]], reference: dict[str, Any] | None) -> "Figure":
    """Draw bits per byte against megabytes, a point a file, with the model in transformers as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        point = (row["bytes"] / 1e6, row["bits_per_byte"])
        axis.plot(*point, "o", color="C0")
        aside: Any = (7, 4 if place % 2 else -11)  # the names of neighbours must not overlap
        axis.annotate(row["type"], point, xytext=aside, textcoords="offset points")
    if reference is not None:
        axis.axhline(reference["bits_per_byte"], color="0.5", linestyle="--", label="the model in transformers")
        axis.legend()
    axis.set(xlabel="MB of the file", ylabel="bits per byte of held-out text")
    axis.set_xlim(left=0, right=1.25 * max(row["bytes"] for row in rows) / 1e6)
    axis.grid(alpha=0.3)
    return figure
