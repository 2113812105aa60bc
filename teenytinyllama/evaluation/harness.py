"""The harness: a task run through lm-evaluation-harness as a library, and its score.

The harness's `evaluate` is called, not its `simple_evaluate`, which spends seven seconds a call on describing the
machine; seeds and solved examples are those of its command, so `lm-eval run` gives the same number.
"""

import contextlib
import functools
import importlib.metadata
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..chat.generation import choose_cache
from ..checks import ensure, ensure_packages
from ..distributed import spread
from ..progress import progress
from ..tokenizer.encode import compose, encode_prompt
from .benchmark_rows import BenchmarkRows
from .config import TASKS_FOLDER, BenchmarkTask, EvaluateConfig
from .marking import (
    best_line,
    macro_f1_stderr,
    mean_stderr,
    odd_questions,
    pearson_stderr,
    questions_sha256,
    ratio_stderr,
    trivial_lines,
)
from .results import Measure, MeasuredTask, Score
from .scoring import can_score, score_continuations

ensure_packages("eval", "lm_eval", "datasets")
from lm_eval.api.instance import Instance  # noqa: E402  # after the message about the extra
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED  # noqa: E402
from lm_eval.evaluator import evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import env as templates  # noqa: E402
from lm_eval.utils import hash_string  # noqa: E402

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TaskOutcome:
    """What the harness measured of one task.

    Attributes:
        values: each metric's value.
        stderrs: each metric's standard error, where it has one.
        rows: the questions, in canonical form and in the order they were asked.
        task_hash: of all prompts and right answers, as the harness forms it.
        shots: solved examples that were shown.
        truncated_prompts: questions whose beginning was cut off because they did not fit.
    """

    values: dict[str, float]
    stderrs: dict[str, float | None]
    rows: list[dict[str, Any]]
    task_hash: str
    shots: int
    truncated_prompts: int


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log lines of the harness and of datasets below errors off the terminal."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Compile each template of a prompt once; the harness compiles it for each question and each solved example.

    Compiling was 94 % of the time its prompts took (`lm_eval.utils.apply_template`, lm_eval 0.4.13).
    """
    templates.from_string = functools.cache(templates.from_string)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del templates.from_string  # the method is the class's


class HarnessModel(HFLM):  # type: ignore[misc]
    """The harness's own model class around a model that is loaded.

    It counts prompts that do not fit. Each rank scores a share of the requests, and the harness sees one process. Texts
    are composed, and special tokens typed in them stay text, as in training (`tokenizer.encode_prompt`).
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> None:
        """Wrap a model; it stays on its device and in its precision."""
        with _quiet():
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.cut: set[int] = set()
        self._chunk = 8 * batch_size  # requests that stay on one rank: those of a question mostly stand side by side
        self._asked: Sequence[Instance] = ()
        self._batches_left, self._batches_written, self._steps_written = 0, 0, 0
        self._bar: Any = None  # of answers that are written

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation; see the harness."""
        self._asked = requests
        return super().loglikelihood(requests, disable_tqdm=True)  # encoding is quick; scoring has a bar of its own

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the tokens of a text, between those that the tokenizer puts around it unless told otherwise."""
        ids = encode_prompt(self.tokenizer, string, self._adds_special_tokens(add_special_tokens))
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return tokens and attention mask, (texts, longest text) each, of prompts that the model continues."""
        rows = [self.tok_encode(text, None, left_truncate_len) for text in strings]
        asked: Any = {"padding_side": padding_side, "return_attention_mask": True, "return_tensors": "pt"}
        padded = self.tokenizer.pad({"input_ids": rows}, **asked)
        return padded["input_ids"], padded["attention_mask"]

    def _adds_special_tokens(self, asked: bool | None) -> bool:
        if asked is not None:
            return asked
        return self.add_bos_token is None or bool(self.add_bos_token)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and of its continuation.

        The harness encodes the whole and cuts it where the context's tokens end. A tokenizer with tokens of several
        words may join words over that place; then both are encoded by themselves.
        """
        context, continuation = compose(context), compose(continuation)
        whole_context, rest = super()._encode_pair(context, continuation)
        start = len(context.rstrip())
        if rest and self.tok_encode(context + continuation)[: len(whole_context)] == whole_context:
            return whole_context, rest
        text = context[start:] + continuation
        return whole_context, self.tok_encode(text, add_special_tokens=False)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], *args: Any, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for asked, (_, context, continuation) in zip(self._asked, requests, strict=False):
            ensure(
                len(continuation) <= self.max_length,
                f"tasks={asked.task_name}: an answer of question {asked.doc_id} has {len(continuation)} tokens and the "
                f"model's context only {self.max_length}. Leave the task out, or use a model with a longer context.",
            )
            if len(context) + len(continuation) > self.max_length + 1:
                self.cut.add(asked.doc_id)
        if not can_score(self.model):

            def ask_harness(some: list[Any]) -> list[tuple[float, bool]]:
                return list(super(HarnessModel, self)._loglikelihood_tokens(some, *args, **kwargs))

            return spread(requests, ask_harness, self._chunk)
        pairs = [(context, continuation) for _, context, continuation in requests]
        with progress(None, "scoring", "answers", total=len(pairs)) as bar:
            return spread(
                pairs, lambda some: score_continuations(self.model, some, self.batch_size, bar.update), self._chunk
            )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind each prompt; see the harness."""
        for asked in requests:
            room = self.max_length - int(asked.args[1].get("max_gen_toks", self.max_gen_toks))
            ensure(
                room > 0,
                f"tasks={asked.task_name}: the model's context of {self.max_length} tokens has no room for an answer "
                f"of {self.max_length - room}. Leave the task out, or use a model with a longer context.",
            )
            if len(self.tok_encode(asked.args[0])) > room:
                self.cut.add(asked.doc_id)

        def write(some: list[Instance]) -> list[str]:
            self._batches_left = -(-len(some) // int(self.batch_size))
            return list(super(HarnessModel, self).generate_until(some, disable_tqdm=True))  # the bar is ours

        with progress(None, "writing", "answers", total=len(requests)) as self._bar:
            return spread(requests, write, self._chunk)

    def _model_generate(
        self, context: "torch.Tensor", max_length: int, stop: list[str], **arguments: Any
    ) -> "torch.Tensor":
        """Return a batch of prompts, (texts, tokens), with what the model writes behind them; see the harness.

        How many steps are to come is guessed from the batches before: most answers end long before their limit. The
        last batch has fewer texts, for which nothing is compiled.
        """
        steps = self._steps_written * self._batches_left // max(self._batches_written, 1)
        is_full = context.shape[0] == self.batch_size
        cache = choose_cache(self.model, context.shape[0], steps if is_full else 0)
        written: torch.Tensor = super()._model_generate(context, max_length, stop, **cache, **arguments)
        self._batches_left -= 1
        self._bar.update(context.shape[0])
        self._batches_written += 1
        self._steps_written += written.shape[1] - context.shape[1]
        return written


def run_task(
    model: LM, task: BenchmarkTask, data_dir: str | None = None, cloze_file: str | None = None, limit: int | None = None
) -> TaskOutcome:
    """Ask a model the questions of a task.

    Args:
        model: of the harness; `HarnessModel`, or any other of its classes.
        task: one of `config.TASKS`.
        data_dir: folder of local files; None: the Hub.
        cloze_file: rows of `cloze`.
        limit: the first so many questions only.

    Raises:
        InputError: data that does not fit, or a context without room for an answer.
    """
    import torch

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    places = {"data_dir": data_dir, "cloze_file": cloze_file}
    metadata: Any = {name: place for name, place in places.items() if place is not None}
    if isinstance(model, HarnessModel):
        model.cut = set()
    with _quiet(), _templates_compiled_once():
        manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=metadata)
        loaded = manager.load([task.name])
        loaded["tasks"][task.name].set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        found: Any = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    samples = found["samples"][task.name]
    names = list(samples[0]["metrics"])
    hashes = [sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples]
    return TaskOutcome(
        values={name: float(found["results"][task.name][f"{name},none"]) for name in names},
        stderrs={name: _stderr(name, [sample[name] for sample in samples]) for name in names},
        rows=[sample["doc"] for sample in samples],
        task_hash=hash_string("".join(hashes)),
        shots=int(found["n-shot"][task.name]),
        truncated_prompts=len(model.cut) if isinstance(model, HarnessModel) else 0,
    )


def _stderr(metric: str, marks: list[Any]) -> float | None:
    """Return the standard error of a metric from the marks of all questions."""
    if metric == "f1_macro":
        return macro_f1_stderr(marks)
    if metric == "pearson":
        return pearson_stderr(marks)
    if metric == "answer_bits_per_byte":
        return ratio_stderr([nats / np.log(2) for nats, _ in marks], [num_bytes for _, num_bytes in marks])
    return mean_stderr(marks)


def measure_task(
    model: HarnessModel,
    task: BenchmarkTask,
    rows: BenchmarkRows,
    config: EvaluateConfig,
    cloze_file: str | None,
    checkpoint: dict[str, Any],
) -> MeasuredTask:
    """Return the score of a task beside the best answer that needs no model, and its further figures.

    Args:
        model: that is asked.
        task: its questions, see `run_task`.
        rows: these questions, and the solved examples.
        config: of the evaluation.
        cloze_file: rows of `cloze`.
        checkpoint: `step` and `tokens` of the model, for the score and the figures.

    Raises:
        InputError: see `run_task`.
    """
    outcome = run_task(model, task, config.data_dir, cloze_file, config.limit)
    lines = trivial_lines(task.kind, task.metric, outcome.rows)
    trivial_kind, trivial = best_line(lines)
    value, count = outcome.values[task.metric], len(outcome.rows)
    limited = config.limit is not None
    first = f", first {count}" if limited and count < len(rows.test) else ""
    dtype = str(model.model.dtype).removeprefix("torch.")
    score = Score(
        task=task.name,
        suite="",
        name=f"{task.title}{first}" + ("" if dtype == "float32" else f", {dtype}"),
        metric=task.metric,
        metric_name=task.metric_title,
        value=value,
        dataset_id=rows.origin.dataset_id,
        dataset_revision=rows.origin.revision,
        dataset_config=rows.origin.config,
        dataset_split=rows.origin.split,
        stderr=outcome.stderrs[task.metric],
        trivial=trivial,
        trivial_kind=trivial_kind,
        normalised=(value - trivial) / (1 - trivial) if trivial < 1 else None,
        shots=outcome.shots,
        num_items=count,
        total_items=len(rows.test),
        questions_sha256=questions_sha256(rows.test[:count]),
        unparsable=outcome.values.get("unparsable"),
        truncated_prompts=outcome.truncated_prompts,
        task_hash=outcome.task_hash,
        harness=f"lm-evaluation-harness {importlib.metadata.version('lm_eval')}",
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **odd_questions(rows, count),
        **checkpoint,
    )
    measures = [
        Measure("", task.name, name, number, outcome.stderrs[name], None, count, **checkpoint)
        for name, number in outcome.values.items()
        if name not in (task.metric, "unparsable")
    ]
    return MeasuredTask(
        identity="",
        scores=[asdict(score)],
        measures=[asdict(measure) for measure in measures],
        trivial={name: line[1] for name, line in lines.items()},
        truncated_prompts=outcome.truncated_prompts,
        limited=limited,
    )
