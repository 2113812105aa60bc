"""Measure a model: bits per byte of held-out text, and benchmarks in Portuguese through lm-evaluation-harness.

python recipes/evaluate.py --config recipes/configs/160m/evaluate.yaml
(the same as `ttl evaluate outputs/160m/base --config …`; every key of the YAML can be overridden: --suite leaderboard)
Several GPUs share the questions: accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/evaluate.py …
"""

import sys

from teenytinyllama.arguments import parse
from teenytinyllama.checks import is_main_process, run_main
from teenytinyllama.distributed import exit_rank, prepare_rank
from teenytinyllama.evaluation.config import EvaluateConfig
from teenytinyllama.evaluation.evaluate import evaluate_model
from teenytinyllama.stage_folder import RESULTS_TABLE_NAME


def main() -> None:
    """Run one rank; rank 0 prints the table."""
    prepare_rank()
    folder = evaluate_model(parse(EvaluateConfig, sys.argv[1:], ("model_name_or_path",)))
    if is_main_process():
        print((folder / RESULTS_TABLE_NAME).read_text(encoding="utf-8"))
        print(folder)


if __name__ == "__main__":
    exit_rank(run_main(main))
