"""Stands for `ttl` on one of several machines in tests that cut its network: it notices silence after seconds."""

import sys

from teenytinyllama.cli import main
from teenytinyllama.launching import machines

machines._PROBE_SECONDS, machines._PROBES, machines._SILENCE_SECONDS = 1, 3, 5
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
