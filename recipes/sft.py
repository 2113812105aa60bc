"""Tune a base model on instructions: all weights, or LoRA adapters.

One process, or what fits the machine:      ttl sft --config recipes/configs/160m/sft.yaml
Two CPU ranks under ZeRO-2:                 ttl sft --accelerate zero2 --config recipes/configs/tiny/sft.yaml
The same without `ttl`, here on eight GPUs, on conversations that `ttl conversations` has prepared:
  accelerate launch --config_file recipes/accelerate/zero1.yaml --num_processes 8 \
    recipes/sft.py --config recipes/configs/160m/sft.yaml --conversations outputs/160m/conversations
Every key of the YAML can be overridden: --learning_rate 1e-3 --lora_r 16
"""

import sys

from teenytinyllama.arguments import build, read_values
from teenytinyllama.checks import beside_the_model, is_main_process, run_main
from teenytinyllama.distributed import exit_rank, prepare_rank
from teenytinyllama.publishing.card import write_model_card


def main() -> None:
    """Run one rank: the config from the command line, tuning, and on rank 0 the card."""
    prepare_rank()
    from teenytinyllama.tuning.config import SftConfig
    from teenytinyllama.tuning.tune import sft

    values = read_values(SftConfig, sys.argv[1:])
    folder = sft(build(SftConfig, values), values)
    if is_main_process():
        with beside_the_model("the model card (`ttl card` writes it)"):
            write_model_card(folder)


if __name__ == "__main__":
    exit_rank(run_main(main))
