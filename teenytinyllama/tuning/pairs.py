"""Held-out pairs of answers: how often, and by how much, the tuned model prefers the chosen one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import EvalPrediction


class HeldOutPairs(Dataset[dict[str, list[int]]]):
    """A map-style dataset of held-out pairs, the longest first."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """Show these rows of `data.preferences`."""
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
        assert len(scores) == len(self.pairs), "a held-out pair was dropped or scored twice"
        sources: dict[str, list[int]] = {}
        for place, row in enumerate(self.pairs.rows):
            sources.setdefault(row["source"], []).append(place)
        per_source = {name: summarise_pairs(scores[places], self.beta) for name, places in sorted(sources.items())}
        flat = summarise_pairs(scores, self.beta)
        self.last = {**flat, "per_source": per_source}
        return flat

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
