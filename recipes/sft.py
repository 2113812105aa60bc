"""Tune a base model on instructions: all weights, or LoRA adapters.

One process, or what fits the machine:      ttl sft --config recipes/configs/160m/sft.yaml
Two CPU ranks under ZeRO-2:                 ttl sft --accelerate zero2 --config recipes/configs/tiny/sft.yaml
The same without `ttl`, here on eight GPUs, on conversations that `ttl conversations` has prepared:
  accelerate launch --config_file recipes/accelerate/zero1.yaml --num_processes 8 \
    recipes/sft.py --config recipes/configs/160m/sft.yaml --conversations outputs/160m/conversations
Every key of the YAML can be overridden: --learning_rate 1e-3 --lora_r 16
"""

import sys

from teenytinyllama.checks import run_main
from teenytinyllama.distributed import end_run, exit_rank, prepare_rank


def main() -> None:
    """Run one rank: its config, the training, and, where no `ttl` does it, the card."""
    prepare_rank()
    from teenytinyllama.training.run_plan import read_run
    from teenytinyllama.tuning.config import SftConfig
    from teenytinyllama.tuning.tune import sft

    end_run(sft(*read_run(SftConfig, sys.argv[1:])))


if __name__ == "__main__":
    exit_rank(run_main(main))
