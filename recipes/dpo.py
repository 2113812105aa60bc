"""Tune a chat model on preferences: pairs of a better and a worse answer to one prompt.

One process, or what fits the machine:      ttl dpo --config recipes/configs/160m/dpo.yaml
Two CPU ranks under DDP:                    ttl dpo --accelerate cpu2 --config recipes/configs/160m/dpo.yaml
Every key of the YAML can be overridden: --learning_rate 5e-6 --lora_r 16
"""

import sys

from teenytinyllama.arguments import build, read_values
from teenytinyllama.checks import beside_the_model, is_main_process, run_main
from teenytinyllama.distributed import exit_rank, prepare_rank
from teenytinyllama.publishing.card import write_model_card


def main() -> None:
    """Run one rank: the config from the command line, tuning, and on rank 0 the card."""
    prepare_rank()
    from teenytinyllama.tuning.config import DpoConfig
    from teenytinyllama.tuning.tune import dpo

    values = read_values(DpoConfig, sys.argv[1:])
    folder = dpo(build(DpoConfig, values), values)
    if is_main_process():
        with beside_the_model("the model card (`ttl card` writes it)"):
            write_model_card(folder)


if __name__ == "__main__":
    exit_rank(run_main(main))
