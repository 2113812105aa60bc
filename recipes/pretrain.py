"""Pretrain a Llama from a preset, or continue a model, on packed rows.

One process, or what fits the machine:      ttl pretrain --config recipes/configs/tiny/pretrain.yaml
Two CPU ranks under ZeRO-2:                 ttl pretrain --accelerate zero2 --config recipes/configs/tiny/pretrain.yaml
The same without `ttl`, here on eight GPUs:
  accelerate launch --config_file recipes/accelerate/zero1.yaml --num_processes 8 \
    recipes/pretrain.py --config recipes/configs/160m/pretrain.yaml
Every key of the YAML can be overridden: --max_tokens 1e9 --learning_rate 2e-3
"""

import sys

from teenytinyllama.arguments import build, read_values
from teenytinyllama.checks import beside_the_model, is_main_process, run_main
from teenytinyllama.distributed import exit_rank, prepare_rank
from teenytinyllama.publishing.card import write_model_card
from teenytinyllama.training.config import PretrainConfig
from teenytinyllama.training.pretrain import pretrain


def main() -> None:
    """Run one rank: the config from the command line, training, and on rank 0 the card."""
    prepare_rank()
    values = read_values(PretrainConfig, sys.argv[1:])
    folder = pretrain(build(PretrainConfig, values), values)
    if is_main_process():
        with beside_the_model("the model card (`ttl card` writes it)"):
            write_model_card(folder)


if __name__ == "__main__":
    exit_rank(run_main(main))
