"""Held-out conversations: how well their answers are predicted, and how the model answers their questions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from pyarrow.compute import list_value_length
from torch.utils.data import Dataset
from transformers import EvalPrediction

from ..chat.generation import Sampling
from ..chat.template import ConversationEncoder
from ..data.conversations import IGNORED

ANSWERS_NAME = "answers.jsonl"


class HeldOutAnswers(Dataset[dict[str, NDArray[np.int64]]]):
    """A map-style dataset of held-out conversations, one a row, the longest first, with labels for what is scored.

    What is scored is what is learnt: the answers with their end tokens or, where questions are learnt too, everything
    but the first token. Bits per byte divide by the bytes of those texts, and so compare tokenizers; end tokens cost
    bits but have no bytes.
    """

    def __init__(self, folder: Path, assistant_only: bool, max_tokens: int | None = None, seed: int = 0) -> None:
        """Read the validation split of a folder of conversations.

        Args:
            folder: made by `data.conversations`.
            assistant_only: whether answers alone are learnt.
            max_tokens: use conversations, drawn by `seed`, of so many tokens in all; None: all of them.
            seed: of that draw, so that every evaluation of a run scores the same ones.
        """
        table = pyarrow.parquet.read_table(folder / "validation.parquet")
        order = np.random.default_rng(seed).permutation(table.num_rows)
        if max_tokens is not None and table.num_rows:
            cumulated = np.cumsum(list_value_length(table["input_ids"]).to_numpy()[order])
            order = order[: max(1, int(np.searchsorted(cumulated, max_tokens, side="right")))]
        self.rows = sorted(table.take(order).to_pylist(), key=lambda row: -len(row["input_ids"]))
        self.num_bytes = [
            sum(
                len(message["content"].encode())
                for message in row["messages"]
                if (not assistant_only or message["role"] == "assistant") and message.get("weight") != 0
            )
            for row in self.rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        row = self.rows[index]
        return {name: np.array(row[name], dtype=np.int64) for name in ("input_ids", "labels")}

    def summarise(self, nats_and_tokens: NDArray[Any]) -> dict[str, Any]:
        """Return bits per byte, perplexity and counts, overall and per source.

        Args:
            nats_and_tokens: (conversations, 2), for each in the dataset's order the summed negative log likelihood in
                nats and the number of scored tokens.
        """
        assert len(nats_and_tokens) == len(self.rows), "a held-out conversation was dropped or scored twice"
        sources: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            sources.setdefault(row["source"], []).append(place)
        scores = np.asarray(nats_and_tokens, dtype=np.float64)
        sizes = np.array(self.num_bytes)
        return {
            **_figures(scores, sizes),
            "per_source": {name: _figures(scores[places], sizes[places]) for name, places in sorted(sources.items())},
        }


def _figures(scores: NDArray[Any], num_bytes: NDArray[Any]) -> dict[str, float | int]:
    nats, tokens, total_bytes = float(scores[:, 0].sum()), int(scores[:, 1].sum()), int(num_bytes.sum())
    per_token = nats / max(tokens, 1)
    return {
        "bits_per_byte": nats / math.log(2) / max(total_bytes, 1),
        "perplexity": math.exp(min(per_token, 700.0)),  # nats, so base e; exp(709) is the largest double
        "nats_per_token": per_token,
        "scored_tokens": tokens,
        "scored_bytes": total_bytes,
        "conversations": len(num_bytes),
    }


class AnswerEvaluation:
    """The Trainer's `compute_metrics` for one set of held-out conversations; `last` keeps the newest full summary."""

    plot_key, plot_label = "bits_per_byte", "held-out answers, bits per byte"

    def __init__(self, answers: HeldOutAnswers) -> None:
        """Score these conversations."""
        self.answers = answers
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the flat figures; the per-source ones are in `last`."""
        self.last = self.answers.summarise(np.asarray(prediction.predictions))
        return {name: self.last[name] for name in ("bits_per_byte", "perplexity", "nats_per_token")}

    def describe(self) -> str:
        """Return the newest summary as a line."""
        assert self.last is not None
        return (
            f"answers {self.last['nats_per_token']:.4f} nats per token  "
            f"{self.last['bits_per_byte']:.4f} bits per byte  ({self.last['conversations']} conversations)"
        )


def frequency_entropy(train: NDArray[Any], held_out: NDArray[Any], vocab_size: int) -> float:
    """Return the nats per token of a model that knows nothing but how frequent each token is.

    The cross-entropy of held-out labels under the training labels' frequencies, with one added to each count (Laplace).
    Whoever has learnt the language predicts better than this.

    Args:
        train: labels of the training split; ignored ones are left out here.
        held_out: labels that are predicted.
        vocab_size: entries of the vocabulary.
    """
    counts = np.bincount(train[train != IGNORED], minlength=vocab_size) + 1.0
    log_share = np.log(counts / counts.sum())
    return float(-log_share[held_out[held_out != IGNORED]].mean())


def write_answers(
    path: Path, answers: HeldOutAnswers, model: Any, tokenizer: Any, count: int, new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """Answer held-out questions, write the answers beside the references, and count.

    Each answer has the likeliest tokens, under the penalty for repetition that `ttl chat` has: small models, greedy and
    without it, go round in circles.

    Args:
        path: the jsonl file.
        answers: held-out conversations, of which the first question is asked.
        model: the tuned model.
        tokenizer: with the chat template.
        count: questions, spread over lengths and sources.
        new_tokens: most tokens of an answer.
        batch_size: questions answered at once.

    Returns:
        `questions`, and the share of the answers that the model `ended`.
    """
    from ..published import end_token_ids
    from ..training.callbacks import generate_ids

    encoder = ConversationEncoder(tokenizer)
    places = np.unique(np.linspace(0, len(answers) - 1, min(count, len(answers))).astype(int))
    chosen = [answers.rows[place]["messages"] for place in places]
    first = [next(i for i, message in enumerate(messages) if message["role"] == "assistant") for messages in chosen]
    prompts = [
        encoder.encode(messages[:turn], for_answer=True).ids for messages, turn in zip(chosen, first, strict=True)
    ]
    longest = model.config.max_position_embeddings - new_tokens
    kept = [place for place, ids in enumerate(prompts) if len(ids) <= longest]
    ends, records = end_token_ids(model, tokenizer), []
    for begin in range(0, len(kept), batch_size):
        part = kept[begin : begin + batch_size]
        written = generate_ids(
            model,
            tokenizer,
            [prompts[place] for place in part],
            new_tokens,
            seed=0,
            temperature=0,
            repetition_penalty=Sampling().repetition_penalty,
        )
        for place, ids in zip(part, written, strict=True):
            records.append(
                {
                    "question": chosen[place][first[place] - 1]["content"],
                    "reference": chosen[place][first[place]]["content"],
                    "answer": str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
                    "ended": bool(ids) and ids[-1] in ends,
                    "tokens": len(ids),
                }
            )
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    ended = sum(record["ended"] for record in records) / len(records) if records else None
    return {"questions": len(records), "ended": ended, "new_tokens": new_tokens}
