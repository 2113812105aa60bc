"""Make a clean, documented corpus out of raw pages and texts.

python recipes/corpus.py --config recipes/configs/corpus.yaml
(the same as `ttl corpus --config …`; every key of the YAML can be overridden: --workers 8, --toxicity false)
"""

import sys

from teenytinyllama.arguments import parse
from teenytinyllama.checks import run_main
from teenytinyllama.corpus.config import BuildConfig
from teenytinyllama.corpus.factory import build_corpus


def main() -> None:
    print(build_corpus(parse(BuildConfig, sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(run_main(main))
