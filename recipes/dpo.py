"""Tune a chat model on preferences: pairs of a better and a worse answer to one prompt.

One process, or what fits the machine:      ttl dpo --config recipes/configs/160m/dpo.yaml
Two CPU ranks under DDP:                    ttl dpo --accelerate cpu2 --config recipes/configs/160m/dpo.yaml
Every key of the YAML can be overridden: --learning_rate 5e-6 --lora_r 16
"""

import sys

from teenytinyllama.checks import run_main
from teenytinyllama.distributed import end_run, exit_rank, prepare_rank


def main() -> None:
    """Run one rank: its config, the training, and, where no `ttl` does it, the card."""
    prepare_rank()
    from teenytinyllama.training.run_plan import read_run
    from teenytinyllama.tuning.config import DpoConfig
    from teenytinyllama.tuning.tune import dpo

    end_run(dpo(*read_run(DpoConfig, sys.argv[1:])))


if __name__ == "__main__":
    exit_rank(run_main(main))
