"""Pack documents into fixed rows of tokens.

python recipes/pack.py --config recipes/configs/tiny/pack.yaml
(the same as `ttl pack --config …`; every key of the YAML can be overridden: --context 1024)
"""

import sys

from teenytinyllama.arguments import parse
from teenytinyllama.checks import run_main
from teenytinyllama.data.pack import PackConfig, pack
from teenytinyllama.data.packed import print_summary


def main() -> None:
    print_summary(pack(parse(PackConfig, sys.argv[1:])))


if __name__ == "__main__":
    sys.exit(run_main(main))
