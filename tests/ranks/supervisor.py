"""Stands for `ttl` in the tests that signal it: `supervisor.py NUM_RANKS FOLDER WORD …` supervises as many stubs.

With FORKS=1 in its environment they are forks of it.
"""

import os
import sys
from pathlib import Path

from teenytinyllama.launching import processes

processes._FAILURE_GRACE_SECONDS = processes._BAD_INPUT_GRACE_SECONDS = 0.5
environments = [{**os.environ, "RANK": str(rank)} for rank in range(int(sys.argv[1]))]
command = [sys.executable, str(Path(__file__).parent / "stub.py"), *sys.argv[2:]]
sys.exit(processes.supervise(command, environments, forks=os.environ.get("FORKS") == "1"))
