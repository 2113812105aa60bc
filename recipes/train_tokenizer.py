"""Train a Portuguese tokenizer on the training documents and audit it on the held-out ones.

python recipes/train_tokenizer.py --config recipes/configs/tiny/tokenizer.yaml
(the same as `ttl tokenizer --config …`; every key of the YAML can be overridden: --vocab_size 16000)
"""

import sys

from teenytinyllama.arguments import parse
from teenytinyllama.checks import run_main
from teenytinyllama.tokenizer.train import TokenizerConfig, build_tokenizer


def main() -> None:
    build_tokenizer(parse(TokenizerConfig, sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(run_main(main))
