"""Fine-tune a model on a classification task, over several seeds, and write the table.

One task:                      ttl classify hatebr outputs/160m/base
With everything in a file:     ttl classify --config recipes/configs/160m/classify.yaml
Untrained weights beside it:   ttl classify hatebr outputs/160m/base --random_init
Rows of your own:              ttl classify local outputs/160m/base --train_file train.csv --test_file test.csv
"""

import sys

from teenytinyllama.arguments import parse
from teenytinyllama.checks import run_main
from teenytinyllama.classification.config import ClassifyConfig


def main() -> None:
    """Run all seeds in this process."""
    config = parse(ClassifyConfig, sys.argv[1:], ("task", "model_name_or_path"))
    from teenytinyllama.classification.classify import classify

    classify(config)


if __name__ == "__main__":
    sys.exit(run_main(main))
