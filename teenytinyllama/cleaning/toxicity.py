"""Toxicity: a sequence classifier of the user's choice scores documents, and those above a threshold are dropped.

There is no default model: what counts as toxic, and which mistakes are made, is a choice that the passport has to name.
A document longer than the classifier's context is cut into windows, of which some spread over the document are scored;
its score is their mean, so that one rude line of dialogue does not drop a novel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checks import InputError, ensure
from . import Drop


@dataclass
class ToxicityConfig:
    """Which classifier scores documents, and what it takes to drop one."""

    model: str = field(
        metadata={"help": "folder or Hub id of a sequence classifier, such as nicholasKluge/ToxicityModelPT"}
    )
    revision: str | None = field(default=None, metadata={"help": "branch or commit of the model"})
    label: str | int | None = field(
        default=None, metadata={"help": "label that means toxic, by name or number; null: of a single output, that one"}
    )
    toxic_is: str = field(
        default="high",
        metadata={"help": "`high`: a high score of the label is toxic; `low`: a low one, as of a reward model"},
    )
    threshold: float = field(default=0.9, metadata={"help": "documents with a score above it are dropped"})
    max_tokens: int = field(default=512, metadata={"help": "tokens of a window, at most the model's context"})
    max_windows: int = field(default=8, metadata={"help": "windows of a document that are scored, spread over it"})
    batch_size: int = field(default=32, metadata={"help": "windows scored at once"})

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: a threshold outside 0 to 1, or a count below 1.
        """
        ensure(0 < self.threshold < 1, f"threshold={self.threshold}: must lie between 0 and 1.")
        ensure(self.toxic_is in ("high", "low"), f"toxic_is={self.toxic_is}: must be high or low.")
        for name in ("max_tokens", "max_windows", "batch_size"):
            ensure(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: must be at least 1.")


class ToxicityScorer:
    """A classifier that scores texts."""

    def __init__(self, config: ToxicityConfig, key: str = "toxicity.model") -> None:
        """Load the model on the GPU where there is one; messages call the key that names it `key`.

        Raises:
            InputError: no such model, one without a trained head, or a label that it does not have.
        """
        from ..models import load_classifier, load_config, load_tokenizer, place_for_answers

        self.config = config
        model_config: Any = load_config(key, config.model, config.revision, classifier=True)
        self.tokenizer = load_tokenizer(key, config.model, config.revision)
        self.label = find_label(config, dict(model_config.id2label))
        model, missing = load_classifier(config.model, config.revision, model_config)
        ensure(
            not missing,
            f"{key}={config.model}: has no trained head ({', '.join(missing[:2])} would be drawn at random). "
            "Give a model that was tuned to tell toxic texts.",
        )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model = place_for_answers(model)[0].eval()
        context = getattr(model_config, "max_position_embeddings", None) or config.max_tokens
        self.window = min(config.max_tokens, int(context))

    def scores(self, texts: Sequence[str], on_scored: Callable[[float], object] = lambda _: None) -> list[float]:
        """Return for each text the mean probability of being toxic over its windows, 0 for an empty one.

        `on_scored` is told how many texts more are scored, in parts of a text too.
        """
        windows = [list(self._windows(text)) for text in texts]
        flat = [window for own in windows for window in own]
        found: list[float] = []
        # Windows of like length together, so that little is padded.
        order = sorted(range(len(flat)), key=lambda index: len(flat[index]))
        by_index: dict[int, float] = {}
        for first in range(0, len(order), self.config.batch_size):
            chosen = order[first : first + self.config.batch_size]
            by_index |= dict(zip(chosen, self._batch([flat[index] for index in chosen]), strict=True))
            on_scored(len(texts) * len(chosen) / len(flat))
        start = 0
        for own in windows:
            values = [by_index[start + place] for place in range(len(own))]
            found.append(sum(values) / len(values) if values else 0.0)
            start += len(own)
        return found

    def _windows(self, text: str) -> Iterator[list[int]]:
        """Yield the windows of a text that are scored, with the model's special tokens."""
        found = self.tokenizer(text, truncation=True, max_length=self.window, return_overflowing_tokens=True)
        windows: list[list[int]] = found["input_ids"] if text else []
        if windows and not isinstance(windows[0], list):  # a tokenizer in Python gives one window alone
            windows = [windows]  # type: ignore[list-item]
        last, places = len(windows) - 1, max(1, self.config.max_windows - 1)
        chosen = range(len(windows))
        if len(windows) > self.config.max_windows:
            chosen = sorted({round(last * place / places) for place in range(self.config.max_windows)})  # type: ignore[assignment]
        for place in chosen:
            yield windows[place]

    def _batch(self, windows: list[list[int]]) -> list[float]:
        import torch

        asked: Any = {"return_attention_mask": True, "return_tensors": "pt"}
        batch = self.tokenizer.pad({"input_ids": windows}, **asked).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**batch).logits.float()
        # A single output is a reward or a regression, whose sigmoid is taken.
        values = logits[:, 0].sigmoid() if logits.size(1) == 1 else logits.softmax(dim=1)[:, self.label]
        values = 1 - values if self.config.toxic_is == "low" else values
        return [float(value) for value in values]


def find_label(config: ToxicityConfig, names: dict[int, str]) -> int:
    """Return the number of the label that means toxic.

    Args:
        config: with `label`.
        names: of the model's labels by number.

    Raises:
        InputError: the model has no such label, or several and the config names none.
    """
    known = ", ".join(f"{number} {name}" for number, name in names.items())
    if config.label is None:
        ensure(
            len(names) == 1,
            f"toxicity.label: is missing, and the model has several: {known}. Name the one that means toxic.",
        )
        return 0
    for number, name in names.items():
        if config.label in (int(number), str(number), name):
            return int(number)
    raise InputError(f"toxicity.label={config.label}: the model has no such label. It has {known}.")


def judge(score: float, config: ToxicityConfig) -> Drop | None:
    """Return why a document with this score is dropped, or None."""
    return Drop("toxic", score, config.threshold) if score > config.threshold else None
