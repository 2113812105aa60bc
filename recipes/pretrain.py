"""Pretrain a Llama from a preset, or continue a model, on packed rows.

One process, or what fits the machine:      ttl pretrain --config recipes/configs/tiny/pretrain.yaml
Two CPU ranks under ZeRO-2:                 ttl pretrain --accelerate zero2 --config recipes/configs/tiny/pretrain.yaml
The same without `ttl`, here on eight GPUs:
  accelerate launch --config_file recipes/accelerate/zero1.yaml --num_processes 8 \
    recipes/pretrain.py --config recipes/configs/160m/pretrain.yaml
Every key of the YAML can be overridden: --max_tokens 1e9 --learning_rate 2e-3
"""

import sys

from teenytinyllama.checks import run_main
from teenytinyllama.distributed import end_run, exit_rank, prepare_rank
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain
from teenytinyllama.training.run_plan import read_run


def main() -> None:
    """Run one rank: its config, the training, and, where no `ttl` does it, the card."""
    prepare_rank()
    end_run(pretrain(*read_run(PretrainConfig, sys.argv[1:])))


if __name__ == "__main__":
    exit_rank(run_main(main))
