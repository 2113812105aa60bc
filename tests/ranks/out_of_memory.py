"""Stands for `recipes/pretrain.py` with memory that runs out: out_of_memory.py KIND LIMIT --config x.yaml …

`rank LIMIT`: on the last rank alone a trial of more than LIMIT rows fails; the others try for real. `space LIMIT`: the
process may grow by LIMIT MB from the choice of the micro-batch on, as under a real limit. `training LIMIT`: the last rank runs out in step LIMIT.
"""

import os
import resource
import sys

import torch

from teenytinyllama import gpus
from teenytinyllama.arguments import build, read_values
from teenytinyllama.checks import run_main
from teenytinyllama.distributed import prepare_rank
from teenytinyllama.training import run as run_module
from teenytinyllama.training import trials
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain
from teenytinyllama.training.trainer import Pretrainer
from teenytinyllama.training.trials import try_rows

KIND, LIMIT = sys.argv[1], int(sys.argv[2])
LAST_RANK = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)


def try_rows_here(config, plan, need, rows):
    """Fail on the last rank, try for real on the others."""
    return "made up" if LAST_RANK and rows > LIMIT else try_rows(config, plan, need, rows)


def failing_step(self, *arguments, **named):
    """Run out of memory in a step of the last rank."""
    if LAST_RANK and self.state.global_step + 1 == LIMIT:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
    return training_step(self, *arguments, **named)


def settle_under_limit(config, plan):
    """Choose the micro-batch when the process may grow by LIMIT MB only."""
    limit = gpus.virtual_memory_bytes() + LIMIT * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    settle(config, plan)


def main():
    """Train with what fails in place."""
    global settle, training_step
    prepare_rank()
    values = read_values(PretrainConfig, sys.argv[3:])
    config = build(PretrainConfig, values)
    if KIND == "rank":
        trials.SURE_SHARE, trials.try_rows = 0.0, try_rows_here
    if KIND == "training":
        training_step, Pretrainer.training_step = Pretrainer.training_step, failing_step
    if KIND == "space":
        # What the run imports after the choice needs address space too, more or less of it by what is installed.
        import codecarbon  # noqa: F401
        import matplotlib.pyplot  # noqa: F401

        settle, run_module.settle_micro_batch = run_module.settle_micro_batch, settle_under_limit
    pretrain(config, values)


sys.exit(run_main(main))
