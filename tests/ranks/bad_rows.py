"""A rank of a pretraining in which one packed row, the number in BAD_ROW, makes the loss of its micro-batch infinite."""

import os
import sys
from typing import Any

import numpy as np
from transformers import Trainer

from teenytinyllama.checks import run_main
from teenytinyllama.distributed import exit_rank, prepare_rank
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain
from teenytinyllama.training.run_plan import read_run

original = Trainer.compute_loss


def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Return the loss, infinite for the bad row."""
    loss = original(self, model, inputs, *args, **kwargs)
    bad = self.train_dataset.rows[int(os.environ["BAD_ROW"])]
    return loss * np.inf if model.training and any(np.array_equal(ids, bad) for ids in inputs["input_ids"]) else loss


def main() -> None:
    """Run one rank."""
    Trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    prepare_rank()
    pretrain(*read_run(PretrainConfig, sys.argv[1:]))


if __name__ == "__main__":
    exit_rank(run_main(main))
