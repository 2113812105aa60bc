"""Measure a model: bits per byte of held-out text, and benchmarks in Portuguese through lm-evaluation-harness.

python recipes/evaluate.py --config recipes/configs/160m/evaluate.yaml
(the same as `ttl evaluate outputs/160m/base --config …`; every key of the YAML can be overridden: --suite leaderboard)
"""

import sys

from teenytinyllama.arguments import parse
from teenytinyllama.checks import run_main
from teenytinyllama.evaluation.config import EvaluateConfig
from teenytinyllama.evaluation.evaluate import TABLE_NAME, evaluate_model


def main() -> None:
    folder = evaluate_model(parse(EvaluateConfig, sys.argv[1:]))
    print((folder / TABLE_NAME).read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(run_main(main))
