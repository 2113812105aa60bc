"""What the ranks of a run tell each other; with one process nothing is sent.

What each rank does before it trains: prepare the process, and check that the ranks know of each other.
"""

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from .checks import InputError, RunFailedError, beside_the_model, counted, ensure, is_main_process
from .energy.recorder import STARTED_VARIABLE
from .gpus import answering_device, has_accelerator
from .launching.processes import SUPERVISOR_VARIABLE, end_with

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments


# Of ranks that evaluate: rank 0 may read and write for long alone, and whoever started the ranks sees that one died.
_TIMEOUT = timedelta(hours=12)


_planned_ranks: ContextVar[Mapping[str, str] | None] = ContextVar("environment_of_planned_ranks", default=None)


@contextlib.contextmanager
def before_ranks(environment: Mapping[str, str]) -> Iterator[None]:
    """Let what is resolved and checked in the block know how the ranks that are to be started will run.

    Args:
        environment: of the first rank, by accelerate's names; on top of what a block around this one has said.
    """
    token = _planned_ranks.set({**(_planned_ranks.get() or {}), **environment})
    try:
        yield
    finally:
        _planned_ranks.reset(token)


def ranks_of_run() -> int:
    """Return how many ranks a config is resolved for: those planned, or those that the launcher started."""
    planned = _planned_ranks.get()
    return int((os.environ if planned is None else planned).get("WORLD_SIZE", "1"))


def deepspeed_settings(plugin: Any) -> dict[str, Any] | None:
    """Return DeepSpeed's settings, those of its JSON file, or None without DeepSpeed.

    Args:
        plugin: accelerate's DeepSpeed plugin in a rank; without it those of planned ranks are asked (`before_ranks`).

    Raises:
        InputError: the file is not JSON.
    """
    if plugin is not None:
        found: dict[str, Any] = getattr(plugin, "deepspeed_config", None) or {}
        return {**found, "zero_optimization": {**found.get("zero_optimization", {}), "stage": plugin.zero_stage}}
    environment = _planned_ranks.get() or {}
    if environment.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return None
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file is None:  # accelerate's own fields, with its defaults
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        device = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        return {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": device}}}
    try:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"deepspeed_config_file={file}: is not JSON ({error}). Correct it.") from error


def num_ranks() -> int:
    """Return the number of ranks that are connected."""
    from torch import distributed

    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def own_rank() -> int:
    """Return the number of this rank among those that are connected, from 0."""
    from torch import distributed

    return distributed.get_rank() if num_ranks() > 1 else 0


def join_ranks() -> "torch.device":
    """Connect with the other ranks, if a launcher started any, and return the device that this one works on.

    For work without a Trainer, which connects them itself.
    """
    import torch
    from torch import distributed

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=_TIMEOUT)
    return answering_device()


def leave_ranks() -> None:
    """Wait for the other ranks and close the connections; call it on every rank when its work is done.

    A process that ends with open gloo connections can abort while the others still close theirs ("terminate called
    without an active exception", seen under ZeRO-2), which would turn a finished training into a failed one.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        wait_for_ranks()
        distributed.destroy_process_group()


def wait_for_ranks() -> None:
    """Return once all ranks have called it; on GPUs, once what they had queued is done as well."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    # NCCL warns at each barrier that is not told its GPU: neither accelerate nor DeepSpeed connects with one.
    gpus = [torch.cuda.current_device()] if distributed.get_backend() == "nccl" else None
    distributed.barrier(device_ids=gpus)


def least_over_ranks(value: int, device: "torch.device") -> int:
    """Return the least of a whole number over all ranks; all of them have to call it."""
    return int(_over_ranks([value], device, "MIN")[0])


def sum_over_ranks(values: list[float], device: "torch.device") -> list[float]:
    """Return the sums of some numbers over all ranks; all of them have to call it."""
    return _over_ranks(values, device, "SUM")


def any_rank(here: bool, device: "torch.device") -> bool:
    """Return whether something is so on any rank; all of them have to call it."""
    return bool(_over_ranks([int(here)], device, "MAX")[0])


class SharedFlag:
    """Whether something is so on any rank, asked at every step.

    On NVIDIA GPUs an answer is that of the call before: for the present one the processor would have to wait until the
    GPU's queue is empty, and the GPU then for the processor, once a step. All ranks get the same answer all the same.
    """

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self._asked: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def ask(self, here: bool, device: "torch.device") -> bool:
        """Say whether it is so here, and return whether it was so on any rank; all of them have to call it."""
        import torch
        from torch import distributed

        if num_ranks() == 1 or device.type != "cuda" or distributed.get_backend() != "nccl":
            return any_rank(here, device)
        before = self._asked
        flag = torch.full((1,), int(here), dtype=torch.int32, device=device)  # a kernel: a copy would wait
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        answer = torch.empty(1, dtype=torch.int32, pin_memory=True)
        answer.copy_(flag, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._asked = (answer, done)
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0].item())


def _over_ranks(values: list[Any], device: "torch.device", how: str) -> list[Any]:
    """Reduce whole numbers or floats, kept as they are, over all ranks."""
    import torch
    from torch import distributed

    if num_ranks() == 1:
        return values
    on_cpu = distributed.get_backend() in ("gloo", "mpi")  # these take tensors of the CPU only
    whole = all(isinstance(value, int) for value in values)
    reduced = torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device="cpu" if on_cpu else device)
    distributed.all_reduce(reduced, op=getattr(distributed.ReduceOp, how))
    return list(reduced.tolist())


def from_first(make: Callable[[], Any]) -> Any:
    """Return on every rank what rank 0 makes: what lies in a file may change between the looks of two ranks."""
    from torch import distributed

    if num_ranks() == 1:
        return make()
    made = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(made, src=0)
    return made[0]


def spread(items: Sequence[Any], score: Callable[[list[Any]], Sequence[Any]], chunk: int) -> list[Any]:
    """Return `score(items)`, one result an item and in their order, of which each rank makes a share.

    Args:
        items: the same on every rank.
        score: of some of them; a result does not depend on which others are scored with it.
        chunk: items that stay together; the ranks take chunks in turn, so that long and short ones are dealt evenly.
    """
    from torch import distributed

    count = num_ranks()
    if count == 1:
        return list(score(list(items)))
    shares = [[place for place in range(len(items)) if place // chunk % count == rank] for rank in range(count)]
    mine = shares[distributed.get_rank()]
    gathered: list[Any] = [None] * count
    distributed.all_gather_object(gathered, list(score([items[place] for place in mine])) if mine else [])
    results: list[Any] = [None] * len(items)
    for share, made in zip(shares, gathered, strict=True):
        for place, result in zip(share, made, strict=True):
            results[place] = result
    return results


# The op that DeepSpeed's gloo backend compiles when it starts on a CPU: about a minute, and a lock file that makes
# later runs hang if it is interrupted. Only `inference_all_reduce` calls it (tensor-parallel inference); training
# reduces with torch.distributed. Source: deepspeed 0.19.8, comm/torch.py, `build_shm_op` and `TorchBackend.all_reduce`.
_UNUSED_CPU_OP = "deepspeed_shm_comm"

_exit_code: int | None = None


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
    if supervisor:
        end_with(int(supervisor))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(_end_at_once)  # before what this process will register, and so called after it
    if not has_accelerator():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        _prepare_deepspeed()


def end_run(run: Path) -> None:
    """Write the card of a finished run, in a process of its own, on the first rank of a launcher other than `ttl`.

    Under `ttl` that process does it once all ranks have ended. A card that fails never fails the run.
    """
    if is_main_process() and SUPERVISOR_VARIABLE not in os.environ:
        alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        with beside_the_model("the model card (`ttl card` writes it)"):
            command = [sys.executable, "-m", str(__package__), "card", str(run)]
            done = subprocess.run(command, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise RunFailedError(done.stderr)


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


def own_machine(rank: int) -> int:
    """Return the number of the machine that a rank is on, from 0, as `ttl` or torchrun says."""
    return int(os.environ.get("GROUP_RANK", rank // ranks_here()))


def ranks_here() -> int:
    """Return the number of ranks on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


NETWORK_SECONDS = 60
_ROUNDS = 5
_REDUCED_BYTES = {"cuda": 256_000_000, "cpu": 16_000_000}


def measure_network(path: str, device_type: str) -> None:
    """Add up numbers over all ranks a few times, write how long it took into a file, and end this process.

    Args:
        path: of the JSON file that rank 0 writes.
        device_type: cuda: over NCCL; cpu: over gloo.

    Raises:
        RuntimeError: a rank did not answer within a minute.
    """
    prepare_rank()
    import torch
    from torch import distributed

    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if device_type == "cuda" else "cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device_type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=NETWORK_SECONDS))

    def seconds(size_bytes: int) -> float:
        tensor = torch.ones(size_bytes // 4, device=device)
        distributed.all_reduce(tensor)  # connects
        best = float("inf")
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            distributed.all_reduce(tensor)
            float(tensor[0])  # waits for the GPU
            best = min(best, time.perf_counter() - start)
        return best

    size = _REDUCED_BYTES[device_type]
    found = {"backend": backend, "bytes": size, "seconds": seconds(size), "latency_seconds": seconds(4)}
    if distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(found), encoding="utf-8")
    leave_ranks()
    exit_rank(0)


# What gloo and NCCL say when the process at the other end of a connection is gone.
_LOST_PEER = re.compile(r"connection (was )?(reset|closed) by (remote )?peer|broken pipe|remote process exited", re.I)


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error of a collective says that another rank has ended; its own end says why it did."""
    return isinstance(error, RuntimeError) and bool(_LOST_PEER.search(str(error)))
