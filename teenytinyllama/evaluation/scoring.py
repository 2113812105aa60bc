"""Scoring: how likely a model finds continuations of texts, for the harness's tasks and for the suite `signal`.

All continuations of one context share a row, so that the context, which is most of the work, is read once:

    tokens     c c c c c | x x | y y y | z
    positions  0 1 2 3 4 | 5 6 | 5 6 7 | 5       each part sees the context and itself, never another part

Logits are made for the scored tokens alone: of a prompt of 2,000 tokens that is a few dozen rows of the vocabulary
instead of all. The result is the harness's own to rounding, and it does not depend on the batch.

The cheap tasks of the suite `signal` are also scored on the model in memory while it trains, without the harness. Their
prompts are those of the task files and their marks those of `marking`, so the numbers are the harness's.

Cloze, one of these tasks, is made from held-out text in the form of CALAME-PT (Lopes et al., arXiv 2402.12969): a
sentence of at least `MIN_WORDS` words that ends with an ordinary word and `.`, `!` or `?`, behind the sentences before
it. Which sentences are taken depends on a hash of their text and the seed, not on the order of the documents.

    … A menina abriu a porta. Lá fora chovia, e ela voltou para buscar o  ->  guarda-chuva
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import progress
from ..tokenizer.encode import encode_prompt
from .benchmark_rows import MissingDataError, Row, load_rows
from .config import TASKS, TASKS_FOLDER
from .marking import choice_results, word_results

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenPair = tuple[Sequence[int], Sequence[int]]  # tokens of the context (at least one) and of the continuation


def can_score(model: "PreTrainedModel") -> bool:
    """Return whether logits are the output embeddings times the last hidden state and no more: a Llama's are."""
    return str(model.config.model_type) == "llama"


def score_continuations(
    model: "PreTrainedModel",
    pairs: Sequence[TokenPair],
    batch_size: int,
    on_scored: Callable[[int], object] | None = None,
) -> list[tuple[float, bool]]:
    """Return for each pair the log-likelihood of the continuation in nats, and whether greedy decoding writes it.

    A context that does not fit in front of a continuation loses its beginning. The model is left as it was.

    Args:
        model: a Llama, see `can_score`.
        pairs: contexts and continuations; pairs with one context are read together.
        batch_size: rows, which is contexts, read at once.
        on_scored: called with the number of pairs done since the last call (for a bar).
    """
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    config: Any = model.config
    shared = config._attn_implementation in ("sdpa", "eager")  # the other kernels take no mask but the causal one
    rows = sorted(_make_rows(pairs, config.max_position_embeddings, shared), key=len, reverse=True)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for place, result in _score_batch(model, batch):
            results[place] = result
        if on_scored:
            on_scored(sum(len(row.parts) for row in batch))
    return results


@dataclass(frozen=True)
class _Row:
    """One context with the continuations that are read behind it.

    Attributes:
        context: its tokens.
        parts: for each continuation the place of its pair, and its tokens.
    """

    context: tuple[int, ...]
    parts: tuple[tuple[int, tuple[int, ...]], ...]

    def __len__(self) -> int:
        # The last token of a continuation is predicted, never read.
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.parts)

    def spans(self) -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
        """Yield for each continuation where it begins and ends in the row, the place of its pair, and its tokens."""
        end = len(self.context)
        for place, tokens in self.parts:
            start, end = end, end + len(tokens) - 1
            yield start, end, place, tokens


def _make_rows(pairs: Sequence[TokenPair], max_length: int, shared: bool) -> list[_Row]:
    """Return rows of one context each, with as many continuations as a row of `max_length` tokens takes."""
    open_rows: dict[tuple[int, ...], _Row] = {}
    rows = []
    for place, (context, continuation) in enumerate(pairs):
        # The harness's rule: the newest max_length + 1 tokens of both, less the last, are read.
        kept = tuple(context)[-max(1, max_length + 1 - len(continuation)) :]
        row = open_rows.get(kept, _Row(kept, ()))
        if row.parts and (not shared or len(row) + len(continuation) - 1 > max_length):
            rows.append(row)
            row = _Row(kept, ())
        open_rows[kept] = _Row(kept, (*row.parts, (place, tuple(continuation))))
    return rows + list(open_rows.values())


def _lay_out(rows: Sequence[_Row]) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Return (rows, tokens) tensors: tokens, positions, and the part of each token (0 context, -1 padding)."""
    import torch

    shape = (len(rows), max(map(len, rows)))
    tokens, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    parts = torch.full(shape, -1)
    for index, row in enumerate(rows):
        length = len(row.context)
        tokens[index, :length] = torch.tensor(row.context)
        positions[index, :length] = torch.arange(length)
        parts[index, :length] = 0
        for number, (start, end, _, continuation) in enumerate(row.spans(), start=1):
            tokens[index, start:end] = torch.tensor(continuation[:-1], dtype=torch.long)
            positions[index, start:end] = torch.arange(length, length + end - start)
            parts[index, start:end] = number
    return tokens, positions, parts


def _mask(parts: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """Return (rows, 1, tokens, tokens) to be added to attention scores: nought where a token may look."""
    import torch

    length = parts.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=parts.device).tril()
    same = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    allowed = (earlier & same)[:, None]
    lowest = max(torch.finfo(torch.float32).min / 2, torch.finfo(dtype).min)
    return torch.zeros(allowed.shape, dtype=dtype, device=parts.device).masked_fill_(~allowed, lowest)


def _score_batch(model: "PreTrainedModel", rows: Sequence[_Row]) -> list[tuple[int, tuple[float, bool]]]:
    """Return (place of the pair, (nats, whether it is greedy)) of every continuation of some rows."""
    import torch

    tokens, positions, parts = (tensor.to(model.device) for tensor in _lay_out(rows))
    needs_mask = any(len(row.parts) > 1 for row in rows)  # otherwise plain causal attention, which is faster
    where: list[tuple[int, int]] = []
    targets: list[int] = []
    lengths, places = [], []
    for index, row in enumerate(rows):
        for start, end, place, continuation in row.spans():
            # The context's last token predicts the first of every part.
            where += [(index, len(row.context) - 1), *((index, step) for step in range(start, end))]
            targets += continuation
            lengths.append(len(continuation))
            places.append(place)
    body: Any = model.base_model
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        hidden_BTH = body(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=_mask(parts, model.dtype) if needs_mask else None,
            use_cache=False,
        ).last_hidden_state
        index_N, step_N = torch.tensor(where, device=model.device).T
        logits_NV = head(hidden_BTH[index_N, step_N]).float()
        target_N = torch.tensor(targets, device=model.device)
        nats_N = logits_NV.gather(1, target_N[:, None])[:, 0] - logits_NV.logsumexp(1)
        greedy_N = logits_NV.argmax(1) == target_N
    nats = [float(part.sum()) for part in nats_N.cpu().split(lengths)]
    greedy = [bool(part.all()) for part in greedy_N.cpu().split(lengths)]
    return list(zip(places, zip(nats, greedy, strict=True), strict=True))


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


# The tasks of a local folder that are asked while a model trains, and the names of their figures.
_LOCAL = {"ttl_hellaswag": "hellaswag", "ttl_arc_zero": "arc", "ttl_calame": "calame", "ttl_lambada": "lambada"}


@dataclass(frozen=True)
class SignalTask:
    """Questions of one task as tokens.

    Attributes:
        name: the first part of its figures' names.
        questions: each row in canonical form, with the pairs (context and continuation) of its answers.
        mark: makes marks of a question's likelihoods.
        metric: the mark that is reported beside bits per byte.
    """

    name: str
    questions: list[tuple[Row, list[TokenPair]]]
    mark: Callable[[Row, Sequence[tuple[float, bool]]], dict[str, Any]]
    metric: str

    @property
    def num_tokens(self) -> int:
        """Return the tokens that a model reads, each context once."""
        return sum(
            len(pairs[0][0]) + sum(len(continuation) for _, continuation in pairs) for _, pairs in self.questions
        )


def encode_pair(tokenizer: "PreTrainedTokenizerBase", context: str, continuation: str) -> TokenPair:
    """Return the tokens of a context and of a continuation, as the harness cuts them."""
    before, whole = encode_prompt(tokenizer, context), encode_prompt(tokenizer, context + continuation)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, encode_prompt(tokenizer, continuation, add_special_tokens=False)


def cloze_task(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", num_items: int, max_tokens: int
) -> SignalTask | None:
    """Return last words of held-out sentences, as many as `max_tokens` hold; None if there is none."""
    task = _word_task("cloze", [asdict(item) for item in make_cloze(texts, num_items)], tokenizer)
    while task.questions and task.num_tokens > max_tokens:
        most = int(len(task.questions) * min(0.95, max_tokens / task.num_tokens))
        task = SignalTask(task.name, task.questions[:most], task.mark, task.metric)
    return task if task.questions else None


def local_tasks(data_dir: str, tokenizer: "PreTrainedTokenizerBase", num_items: int) -> list[SignalTask]:
    """Return the first questions of those signal tasks whose files are in a folder.

    Raises:
        InputError: the folder holds none of the files, or a file does not fit.
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
        questions = [
            (row, [encode_pair(tokenizer, prompt(row), f" {choice}") for choice in row["choices"]]) for row in rows
        ]
        tasks.append(SignalTask(short, questions, choice_results, "acc_norm"))
    if not tasks:
        raise MissingDataError(f"signal_data_dir={data_dir}: holds no task of the suite signal. {'; '.join(missing)}.")
    return tasks


def _word_task(name: str, rows: list[Row], tokenizer: "PreTrainedTokenizerBase") -> SignalTask:
    questions = [(row, [encode_pair(tokenizer, row["sentence"], f" {row['last_word']}")]) for row in rows]
    return SignalTask(name, questions, word_results, "acc")


def _prompt(name: str) -> Callable[[Row], str]:
    """Return a function that renders a question as the task's YAML file does."""
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
        tasks: from `cloze_task` and `local_tasks`.
        batch_size: contexts read at once.
    """

    def score(pairs: list[TokenPair]) -> list[tuple[float, bool]]:
        with progress(None, "scoring", "answers", total=len(pairs)) as bar:
            return score_continuations(model, pairs, batch_size, bar.update)

    return signal_figures(score, tasks)


def signal_figures(
    score: Callable[[list[TokenPair]], list[tuple[float, bool]]], tasks: Sequence[SignalTask]
) -> dict[str, float]:
    """Return the figures of `score_signal` of whatever scores pairs as `score_continuations` does."""
    figures: dict[str, float] = {}
    for task in tasks:
        scored = iter(score([pair for _, pairs in task.questions for pair in pairs]))
        marks = [task.mark(row, [next(scored) for _ in pairs]) for row, pairs in task.questions]
        bits = [mark["answer_bits_per_byte"] for mark in marks]
        figures[f"{task.name}_{task.metric}"] = sum(mark[task.metric] for mark in marks) / len(marks)
        figures[f"{task.name}_bits_per_byte"] = (
            -sum(nats for nats, _ in bits) / math.log(2) / sum(num_bytes for _, num_bytes in bits)
        )
    return figures
