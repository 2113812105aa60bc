"""What each rank does before it trains: prepare the process, and check that the ranks know of each other."""

import atexit
import contextlib
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

import psutil

from ..checks import counted, ensure
from ..recorder import STARTED_VARIABLE
from ..supervision import SUPERVISOR_VARIABLE
from .hardware import has_accelerator

if TYPE_CHECKING:
    from transformers import TrainingArguments

# The op that DeepSpeed's gloo backend compiles when it starts on a CPU: about a minute, and a lock file that makes
# later runs hang if it is interrupted. Only `inference_all_reduce` calls it (tensor-parallel inference); training
# reduces with torch.distributed. Source: deepspeed 0.19.8, comm/torch.py, `build_shm_op` and `TorchBackend.all_reduce`.
_UNUSED_CPU_OP = "deepspeed_shm_comm"

_exit_code: int | None = None

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>


def prepare_rank() -> None:
    """Prepare this process as a rank; call it before TrainingArguments are made, whichever launcher started it.

    * Under `ttl`: ask Linux for a SIGTERM when `ttl` dies, even of `kill -9`, so that no rank is left alone; a training
      then saves and stops.
    * Without a GPU: tell DeepSpeed so (transformers imports it whenever it is installed), or it warns about it.
    * DeepSpeed without a GPU: leave out the compilation of an op that training never calls.
    * DeepSpeed: silence torch's deprecation warnings about calls that DeepSpeed makes.
    * With other ranks: end at once when `exit_rank` has a code and what was to be done at the end is done.

    Raises:
        SystemExit: `ttl` is already gone.
    """
    if STARTED_VARIABLE not in os.environ:  # another launcher's rank, which nobody has begun to count
        os.environ[STARTED_VARIABLE] = repr(psutil.Process().create_time())
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor and sys.platform == "linux":
        _end_with(int(supervisor))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(_end_at_once)  # before what this process will register, and so called after it
    if not has_accelerator():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        _prepare_deepspeed()


def exit_rank(code: int) -> NoReturn:
    """End a script that may be a rank with an exit code; the last thing that it does.

    A rank among several leaves out the teardown of the interpreter. A model under DDP keeps gloo's threads until then,
    and one that wants to tell Python of its last work is killed within C++, which aborts the process ("terminate called
    without an active exception", once in some hundred ends, although `leave_ranks` had closed the connections): a
    finished training would have failed.
    """
    global _exit_code
    _exit_code = code
    sys.exit(code)


def _end_at_once() -> None:
    if _exit_code is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a reader that has gone, a stream that is closed
                stream.flush()
        os._exit(_exit_code)


def _end_with(supervisor: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != supervisor:
        raise SystemExit(f"the process {supervisor} that started this rank is gone")


def _prepare_deepspeed() -> None:
    import deepspeed

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if deepspeed.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__[_UNUSED_CPU_OP] = False


def check_ranks(arguments: "TrainingArguments") -> None:
    """Check that launcher, torch and Trainer count the same ranks; call it once TrainingArguments are made.

    DeepSpeed on a machine without GPU connects two ranks while the Trainer, unless `use_cpu` is set, believes to be
    alone: every rank then trains on the same data, and nothing says so.

    Raises:
        InputError: the counts differ.
    """
    import torch

    launched = int(os.environ.get("WORLD_SIZE", "1"))
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    connected = torch.distributed.get_world_size() if joined else 1
    ensure(
        launched == connected == arguments.world_size,
        f"WORLD_SIZE={launched}: torch connected {counted(connected, 'rank')} and the Trainer works with "
        f"{arguments.world_size}, so ranks would train on the same data. On a machine without GPU set use_cpu: true.",
    )


def ranks_here() -> int:
    """Return the number of ranks on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
