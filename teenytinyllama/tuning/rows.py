"""Rows of a tuning: what it is trained on, and the held-out answers and pairs of answers that it is scored by.

Several conversations share a row, each with positions of its own, so that none sees another:

    input_ids     s q q a a e s q a e p p      s, e: <s>, </s>; q: question, a: answer, p: padding
    labels        . . . a a e . . a e . .      . is not learnt
    position_ids  0 1 2 3 4 5 0 1 2 3 0 1      a 0 begins a new text

transformers builds the mask from the position ids as long as there is no attention mask (`create_causal_mask`,
`find_packed_sequence_indices`, transformers 5.23). `check_no_leaks` tries it on the model itself before training.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checks import RunFailedError, ensure
from ..data.conversations import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@functools.lru_cache(maxsize=2)
def load_rows(path: Path, context: int, packing: bool) -> "Dataset":
    """Return the rows of a split: `input_ids`, `labels` and, when packed, `seq_lengths` of the texts in a row.

    Args:
        path: a parquet file of `data.conversations`.
        context: most tokens of a row.
        packing: put several conversations into one row (best-fit decreasing, TRL's `pack_dataset`); none is cut.
    """
    import datasets
    import pyarrow.parquet
    from trl import pack_dataset

    datasets.disable_progress_bars()
    # Fingerprints are given, for nothing is cached: datasets makes them by pickling, which fails with pyarrow 26.
    found = datasets.Dataset(
        pyarrow.parquet.read_table(path.absolute(), columns=["input_ids", "labels"]), fingerprint="rows"
    )
    return pack_dataset(found, context, "bfd", {"new_fingerprint": "packed"}) if packing else found


def order_rows(rows: "Dataset", count: int, seed: int) -> "Dataset":
    """Return `count` rows: the rows in a new random order for each epoch, as often as needed.

    The result is as long as the run, so that every optimizer step is whole and resuming is arithmetic.
    """
    epochs = -(-count // len(rows))
    orders = [np.random.default_rng([seed, epoch]).permutation(len(rows)) for epoch in range(epochs)]
    return rows.select(np.concatenate(orders)[:count]).with_format("numpy")


class RowCollator:
    """Make a batch of rows: side by side and padded on the right, or one behind the other for flash attention."""

    def __init__(self, pad_token_id: int, flatten: bool = False) -> None:
        """Pad with `pad_token_id`, or `flatten` instead."""
        self.pad_token_id, self.flatten = pad_token_id, flatten

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `labels` and `position_ids`, each (rows, longest row), or (1, all tokens) flattened.

        Flattened, it also has the boundaries (`cu_seq_lens_q` and its kin) of flash attention's kernels for texts of
        different lengths.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        width = max(lengths)
        shape = (1, sum(lengths)) if self.flatten else (len(rows), width)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        offset = 0
        for place, row in enumerate(rows):
            where = (0, slice(offset, offset + lengths[place])) if self.flatten else (place, slice(0, lengths[place]))
            own = text_positions(row.get("seq_lengths", [lengths[place]]))
            input_ids[where], positions[where] = row["input_ids"], own
            # The last token of one text must not learn to predict the first of the next.
            labels[where] = np.where(own == 0, IGNORED, row["labels"])
            if not self.flatten:
                positions[place, lengths[place] :] = np.arange(width - lengths[place])  # padding: a text of its own
            offset += lengths[place]
        batch: dict[str, Any] = {"input_ids": input_ids, "labels": labels, "position_ids": positions}
        batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        return {**batch, **_boundaries(positions[0])} if self.flatten else batch


def text_positions(lengths: "NDArray[Any] | list[int]") -> NDArray[np.int64]:
    """Return the positions of texts one behind the other: each begins with 0."""
    return np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])


def _boundaries(positions: NDArray[np.int64]) -> dict[str, Any]:
    """Return transformers' arguments for flash attention over texts that lie one behind the other."""
    starts = np.flatnonzero(positions == 0)
    ends = np.append(starts, len(positions)).astype(np.int32)
    longest = int(np.diff(ends).max())
    cumulated = torch.from_numpy(ends)
    return {"cu_seq_lens_q": cumulated, "cu_seq_lens_k": cumulated, "max_length_q": longest, "max_length_k": longest}


_TOKENS = 12  # of each of the two texts
# Attention kernels sum in other orders for other lengths; a leak moves hidden states by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def leak_between_texts(model: "PreTrainedModel", flatten: bool = False) -> float:
    """Return by how much a text's hidden states move when the text before it in the row is another one.

    The two texts are told apart by their position ids alone, as in training. 0.0 but for rounding: nothing leaks.

    Args:
        model: on any device.
        flatten: give the boundaries that kernels for rows of different lengths need, as for flash attention.
    """
    vocab_size = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    first, other, second = (torch.randint(0, vocab_size, (_TOKENS,), generator=generator).numpy() for _ in range(3))
    collator = RowCollator(0, flatten)
    states = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for before in (first, other):
            ids = [*before, *second]
            batch = collator([{"input_ids": ids, "labels": ids, "seq_lengths": [_TOKENS, _TOKENS]}])
            batch = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
                if name != "labels"
            }
            hidden = model.base_model(**batch, use_cache=False).last_hidden_state
            states.append(hidden[0, _TOKENS:].float())
    model.train(was_training)
    return float((states[0] - states[1]).abs().max())


def check_no_leaks(model: "PreTrainedModel", attention: str, flatten: bool) -> None:
    """Refuse to pack conversations into rows with a model that lets them see each other.

    Raises:
        InputError: they do.
    """
    leak = leak_between_texts(model, flatten)
    ensure(
        leak <= _TOLERANCE.get(model.dtype, 1e-2),
        f"packing=true: with attn_implementation={attention}, this {model.config.model_type} lets conversations in one "
        f"row see each other (hidden states move by {leak:.2g}). Set attn_implementation: sdpa, or packing: false.",
    )


class HeldOutAnswers(TorchDataset[dict[str, NDArray[np.int64]]]):
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
        import pyarrow.parquet
        from pyarrow.compute import list_value_length

        table = pyarrow.parquet.read_table((folder / "validation.parquet").absolute())
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
        scores, sizes = np.asarray(nats_and_tokens, dtype=np.float64), np.array(self.num_bytes)
        return _with_sources(self.rows, scores, lambda places: _answer_figures(scores[places], sizes[places]))


def _with_sources(
    rows: list[dict[str, Any]], scores: NDArray[Any], figures: Callable[[list[int]], dict[str, Any]]
) -> dict[str, Any]:
    """Return the figures of all held-out rows, and under `per_source` those of the rows of each source.

    Args:
        rows: held-out rows.
        scores: one a row, in the same order.
        figures: makes the figures of the rows at some places.
    """
    assert len(scores) == len(rows), "a held-out row was dropped or scored twice"
    sources: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        sources.setdefault(row["source"], []).append(place)
    return {
        **figures(list(range(len(rows)))),
        "per_source": {name: figures(places) for name, places in sorted(sources.items())},
    }


def _answer_figures(scores: NDArray[Any], num_bytes: NDArray[Any]) -> dict[str, float | int]:
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


class FirstLossCallback(TrainerCallback):
    """Stop at once when the base model predicts held-out answers no better than their tokens' frequencies do.

    A public Portuguese model was tuned at a loss of 8.7 throughout without anybody noticing. A base model that has
    learnt Portuguese, a chat template and labels that belong together give far less than the frequencies' entropy.
    """

    def __init__(self, evaluation: Any, frequency_nats: float, refuse: bool) -> None:
        """Compare the first evaluation with `frequency_nats`; warn instead unless `refuse`."""
        self.evaluation, self.frequency_nats, self.refuse = evaluation, frequency_nats, refuse
        self.first: float | None = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the first evaluation, and at whether later ones are below it.

        Raises:
            RunFailedError: the loss is that of a model that knows nothing.
        """
        last = self.evaluation.last
        if last is None:
            return
        found = last["nats_per_token"]
        if self.first is None:
            self.first = found
            if state.global_step == 0 and found >= self.frequency_nats:
                self._refuse_or_warn(found)
        elif found > self.first and state.is_world_process_zero:
            print(
                f"warning: answers cost {found:.3f} nats per token, more than the {self.first:.3f} at first. Lower "
                "learning_rate or num_train_epochs.",
                flush=True,
            )

    def _refuse_or_warn(self, found: float) -> None:
        text = (
            f"before tuning, held-out answers cost {found:.2f} nats per token; guessing by how frequent each token is "
            f"would cost {self.frequency_nats:.2f}. The base model has learnt next to nothing, or its weights, its "
            "tokenizer and the chat template do not belong together."
        )
        if self.refuse:
            raise RunFailedError(f"{text} Choose another model_name_or_path, or set check_first_loss: false to go on.")
        print(f"warning: {text}", flush=True)


class HeldOutPairs(TorchDataset[dict[str, list[int]]]):
    """A map-style dataset of held-out pairs, the longest first."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """Show these rows of `data.conversations`."""
        self.rows = sorted(rows, key=lambda row: -len(row["prompt_ids"]) - len(row["chosen_ids"]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {name: self.rows[index][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}


class PairEvaluation:
    """The Trainer's `compute_metrics` for held-out pairs; `last` keeps the newest full summary."""

    plot_key, plot_label = "accuracy", "held-out pairs, share with a higher reward for the chosen answer"

    def __init__(self, pairs: HeldOutPairs, beta: float) -> None:
        """Score these pairs; rewards are `beta` times the change of an answer's log probability."""
        self.pairs, self.beta = pairs, beta
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the flat figures; the per-source ones are in `last`."""
        scores = np.asarray(prediction.predictions, dtype=np.float64)
        self.last = _with_sources(
            self.pairs.rows, scores, lambda places: dict(summarise_pairs(scores[places], self.beta))
        )
        return {name: value for name, value in self.last.items() if name != "per_source"}

    def describe(self) -> str:
        """Return the newest summary as a line."""
        assert self.last is not None
        return (
            f"accuracy {self.last['accuracy']:.3f}  margin {self.last['margin']:.4f}  "
            f"loss {self.last['preference_loss']:.4f}  ({self.last['pairs']} pairs)"
        )


def summarise_pairs(log_probabilities: NDArray[Any], beta: float) -> dict[str, float]:
    """Return accuracy, margin and loss over pairs.

    The reward of an answer is beta x (log probability by the model - by the reference), a pair's margin the difference
    of both rewards, its loss -log sigmoid(margin). Source: Rafailov et al. (arXiv 2305.18290), equations 5 and 7. A
    margin of exactly 0 counts half as right.

    Args:
        log_probabilities: (pairs, 4), nats of the whole answer: chosen and rejected by the model, then by the
            reference.
        beta: see above.
    """
    chosen, rejected, reference_chosen, reference_rejected = log_probabilities.T
    rewards = beta * (chosen - reference_chosen), beta * (rejected - reference_rejected)
    margins = rewards[0] - rewards[1]
    return {
        "accuracy": float(np.mean(np.where(margins == 0, 0.5, margins > 0))),
        "margin": float(margins.mean()),
        "preference_loss": float(np.logaddexp(0, -margins).mean()),
        "reward_chosen": float(rewards[0].mean()),
        "reward_rejected": float(rewards[1].mean()),
        "nats_chosen": float(-chosen.mean()),
        "nats_rejected": float(-rejected.mean()),
        "pairs": len(margins),
    }
