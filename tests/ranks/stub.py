"""A rank without torch, for the tests of the launcher: writes its process id, then does what it is told.

Usage: stub.py FOLDER WORD [WORD ...]; a word `1:exit=3` is for rank 1 only, the first that fits counts.
`exit=N` ends with that code. `save` waits for SIGTERM, writes a file and ends with 75. `deaf` ignores SIGTERM. `wait`
does nothing about signals. `parent` starts a process of its own and waits. `tied` is `save`, prepared as a rank.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RANK = os.environ.get("RANK", "0")


def save(number: int, frame: object) -> None:
    """End as a training does that was stopped."""
    (FOLDER / f"saved_{RANK}").touch()
    sys.exit(75)


FOLDER = Path(sys.argv[1])
word = next(word.split(":")[-1] for word in sys.argv[2:] if word.split(":")[0] == RANK or ":" not in word)

if word == "tied":
    from teenytinyllama.distributed import prepare_rank

    prepare_rank()
if word in ("save", "tied"):
    signal.signal(signal.SIGTERM, save)
if word == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if word == "parent":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (FOLDER / "pid_child").write_text(str(child.pid))
(FOLDER / f"environment_{RANK}.json").write_text(json.dumps(dict(os.environ)))
(FOLDER / f"pid_{RANK}.part").write_text(str(os.getpid()))
(FOLDER / f"pid_{RANK}.part").rename(FOLDER / f"pid_{RANK}")  # whole when it appears: the tests wait for it
if word.startswith("exit="):
    sys.exit(int(word.removeprefix("exit=")))
time.sleep(60)
sys.exit("nobody stopped this rank")
