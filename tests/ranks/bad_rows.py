"""A rank of a pretraining in which the packed row BAD_ROW multiplies the loss of its micro-batch by BAD_FACTOR."""

import os
import sys
import weakref
from typing import Any

import numpy as np
from transformers import Trainer

from teenytinyllama.checks import run_main
from teenytinyllama.distributed import exit_rank, prepare_rank
from teenytinyllama.training import guards
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain
from teenytinyllama.training.run_plan import read_run

original, begin = Trainer.compute_loss, guards.StepGuard.on_train_begin


def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Return the loss, another one for the bad row."""
    loss = original(self, model, inputs, *args, **kwargs)
    bad = self.train_dataset.rows[int(os.environ["BAD_ROW"])]
    is_bad = model.training and any(np.array_equal(ids, bad) for ids in inputs["input_ids"])
    return loss * float(os.environ["BAD_FACTOR"]) if is_bad else loss


models = []


def began(self: Any, *args: Any, **kwargs: Any) -> None:
    """Remember the model, without holding it."""
    begin(self, *args, **kwargs)
    models.append(weakref.ref(self.trainer.model))


def say_what_is_left() -> None:
    """Say whether the model of before a return is still there when the next is to be made."""
    print("the model before is", "held" if models[0]() is not None else "gone", flush=True)


def main() -> None:
    """Run one rank."""
    guards.StepGuard.on_train_begin = began  # type: ignore[method-assign]
    guards.count_from_now = say_what_is_left
    Trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    guards.LEAST_STEPS = 4
    prepare_rank()
    pretrain(*read_run(PretrainConfig, sys.argv[1:]))


if __name__ == "__main__":
    exit_rank(run_main(main))
