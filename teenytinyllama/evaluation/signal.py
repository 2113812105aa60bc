"""The cheap part of the suite `signal`, scored on the model in memory while it trains: no harness, no files.

The marks are those of the tasks (`task_functions`), the prompts those of their YAML files, so that the numbers are the
harness's on the same questions.

Cloze: the last word of a sentence, from any held-out text, in the form of CALAME-PT.

    … A menina abriu a porta. Lá fora chovia, e ela voltou para buscar o  ->  guarda-chuva

An item is a sentence of at least `MIN_WORDS` words that ends with an ordinary word and `.`, `!` or `?`, behind the
sentences before it. Which sentences are taken depends on a hash of their text and the seed, not on the order of the
documents.

Source of the form: CALAME-PT (Lopes et al., arXiv 2402.12969).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tokenizer.encode import encode_prompt
from .benchmark_rows import Row
from .config import TASKS, TASKS_FOLDER
from .local_data import MissingDataError, load_rows
from .marking import choice_results, word_results
from .scoring import TokenPair, score_continuations

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MIN_WORDS = 6  # of the sentence
MAX_WORDS = 60  # of the text before the word: what a model needs to guess it, at little cost
_SENTENCE = re.compile(r"[^.!?…\n]+[.!?…]+")
_LAST = re.compile(r"^(?P<text>.*\s)(?P<word>[^\W\d_]{3,}(?:-[^\W\d_]+)*)[.!?]$", re.DOTALL)


@dataclass(frozen=True)
class ClozeItem:
    """A text without its last word, and the word."""

    sentence: str
    last_word: str


def make_cloze(texts: Iterable[str], num_items: int, seed: int = 0) -> list[ClozeItem]:
    """Return at most `num_items` items from texts; equal ones once.

    Example:
        >>> make_cloze(["Era uma vez um velho. Ele vivia só numa casa junto do mar."], 5)
        [ClozeItem(sentence='Era uma vez um velho. Ele vivia só numa casa junto do', last_word='mar')]
    """
    found: dict[ClozeItem, bytes] = {}
    for text in texts:
        for item in _items(text):
            key = f"{seed}\0{item.sentence}\0{item.last_word}".encode()
            found[item] = hashlib.sha256(key).digest()
    return sorted(found, key=found.__getitem__)[:num_items]


def _items(text: str) -> Iterable[ClozeItem]:
    before: list[str] = []  # words of earlier sentences
    for match in _SENTENCE.finditer(text):
        sentence = " ".join(match.group().split())
        words = sentence.split(" ")
        last = _LAST.match(sentence)
        if last and len(words) >= MIN_WORDS:
            context = [*before, *last["text"].split()]
            yield ClozeItem(" ".join(context[-MAX_WORDS:]), last["word"])
        before += words


def write_cloze(path: Path, items: Iterable[ClozeItem]) -> None:
    """Write items as jsonl, the file that the task `ttl_cloze` reads."""
    lines = [json.dumps(asdict(item), ensure_ascii=False) for item in items]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


# Which tasks of a local folder are asked, and the name of their figures.
_LOCAL = {"ttl_hellaswag": "hellaswag", "ttl_arc_zero": "arc", "ttl_calame": "calame", "ttl_lambada": "lambada"}


@dataclass(frozen=True)
class SignalTask:
    """Questions of one task as tokens.

    Attributes:
        name: of its figures.
        rows: in canonical form.
        pairs: contexts and continuations, those of a question one after another.
        counts: continuations of each question.
        mark: makes marks of a question's likelihoods.
        metric: the mark that is reported beside bits per byte.
    """

    name: str
    rows: list[Row]
    pairs: list[TokenPair]
    counts: list[int]
    mark: Callable[[Row, Sequence[tuple[float, bool]]], dict[str, Any]]
    metric: str

    @property
    def num_tokens(self) -> int:
        """Return the tokens that a model reads, each context once."""
        total, place = 0, 0
        for count in self.counts:
            part = self.pairs[place : place + count]
            total += len(part[0][0]) + sum(len(continuation) for _, continuation in part)
            place += count
        return total


def encode_pair(tokenizer: "PreTrainedTokenizerBase", context: str, continuation: str) -> TokenPair:
    """Return the tokens of a context and of what follows it, as the harness cuts them."""
    before, whole = encode_prompt(tokenizer, context), encode_prompt(tokenizer, context + continuation)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, encode_prompt(tokenizer, continuation, add_special_tokens=False)


def cloze_task(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", num_items: int, max_tokens: int
) -> SignalTask | None:
    """Return last words of held-out sentences, as many as `max_tokens` hold; None if there is none."""
    rows: list[Row] = [asdict(item) for item in make_cloze(texts, num_items)]
    task = _word_task("cloze", rows, tokenizer)
    while rows and task.num_tokens > max_tokens:
        rows = rows[: int(len(rows) * min(0.95, max_tokens / task.num_tokens))]
        task = _word_task("cloze", rows, tokenizer)
    return task if rows else None


def local_tasks(data_dir: str, tokenizer: "PreTrainedTokenizerBase", num_items: int) -> list[SignalTask]:
    """Return the first questions of those signal tasks whose files are in a folder.

    Raises:
        InputError: none is there, or a file does not fit.
    """
    tasks, missing = [], []
    for name, short in _LOCAL.items():
        try:
            rows = load_rows(TASKS[name].source, data_dir, None, TASKS[name].shots > 0).test[:num_items]
        except MissingDataError as error:
            missing.append(str(error))
            continue
        if TASKS[name].kind == "word":
            tasks.append(_word_task(short, rows, tokenizer))
            continue
        prompt = _prompt(name)
        pairs = [encode_pair(tokenizer, prompt(row), f" {choice}") for row in rows for choice in row["choices"]]
        counts = [len(row["choices"]) for row in rows]
        tasks.append(SignalTask(short, rows, pairs, counts, choice_results, "acc_norm"))
    if not tasks:
        raise MissingDataError(f"signal_data_dir={data_dir}: holds no task of the suite signal. {'; '.join(missing)}.")
    return tasks


def _word_task(name: str, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> SignalTask:
    pairs = [encode_pair(tokenizer, row["sentence"], f" {row['last_word']}") for row in rows]
    return SignalTask(name, rows, pairs, [1] * len(rows), word_results, "acc")


def _prompt(name: str) -> Callable[[Row], str]:
    """Return what renders a question as the task's YAML does."""
    import jinja2
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    settings: dict[str, Any] = {"include": f"{name}.yaml"}
    while "include" in settings:
        text = (TASKS_FOLDER / settings.pop("include")).read_text(encoding="utf-8")
        settings = {**yaml.load(text, Loader=Loader), **settings}
    template = settings["doc_to_text"]
    compiled = jinja2.Environment(keep_trailing_newline=True).from_string(template)  # plain text, no HTML
    return lambda row: str(row[template]) if template in row else compiled.render(**row)


def score_signal(model: "PreTrainedModel", tasks: Sequence[SignalTask], batch_size: int) -> dict[str, float]:
    """Return for each task its accuracy and the bits per byte of the right answers.

    Args:
        model: a Llama, as it is; it is not put into another mode.
        tasks: of `cloze_task` and `local_tasks`.
        batch_size: contexts read at once.
    """
    figures: dict[str, float] = {}
    for task in tasks:
        scored = score_continuations(model, task.pairs, batch_size)
        marks, place = [], 0
        for row, count in zip(task.rows, task.counts, strict=True):
            marks.append(task.mark(row, scored[place : place + count]))
            place += count
        bits = [mark["answer_bits_per_byte"] for mark in marks]
        figures[f"{task.name}_{task.metric}"] = sum(mark[task.metric] for mark in marks) / len(marks)
        figures[f"{task.name}_bits_per_byte"] = (
            -sum(nats for nats, _ in bits) / math.log(2) / sum(num_bytes for _, num_bytes in bits)
        )
    return figures
