"""Stands for `recipes/pretrain.py` when the last rank alone sees a disk that is full after the first checkpoint."""

import os
import sys
from pathlib import Path

from teenytinyllama.arguments import build, read_values
from teenytinyllama.checkpointing import saving as callback_module
from teenytinyllama.checkpointing.checkpoints import list_checkpoints
from teenytinyllama.checks import run_main
from teenytinyllama.distributed import prepare_rank
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain

LAST_RANK = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)


def free_bytes(folder):
    """Stand for `free_disk_bytes`."""
    return 0 if LAST_RANK and list_checkpoints(Path(folder)) else 10**12


def main():
    """Train with what is full in place."""
    prepare_rank()
    values = read_values(PretrainConfig, sys.argv[1:])
    callback_module.free_disk_bytes = free_bytes
    pretrain(build(PretrainConfig, values), values)


sys.exit(run_main(main))
