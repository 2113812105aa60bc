"""Launch: a training is checked and prepared, then its ranks run a recipe, and one command ends with one exit code.

accelerate says which ranks to start (its file format, its environment variables); the processes are ours, one direct
child a rank, instead of those of torchrun. Measured reasons: torchrun turns every exit code into 1 and prints a
47-line traceback for it, kills ranks 30 s after a signal although a checkpoint may take longer, and accelerate's
one-process launcher leaves its child running when it is ended. With direct children the exit codes, the signals and
the name of the rank that died are known. What runs in each rank is `distributed.prepare_rank`.
"""

import contextlib
import gc
import importlib
import json
import logging
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import (
    EXIT_DONE,
    EXIT_RESUMABLE,
    InputError,
    MissingFileError,
    MissingPackageError,
    RunFailedError,
    StoppedResumable,
    beside_the_model,
    ensure,
)
from .machines import Link, follow_first, let_others_start, linked
from .processes import ForkedChild, end_with, stopped_by_signals, supervise
from .ranks import RankOptions, RankPlan, plan_ranks

logger = logging.getLogger(__name__)

_PACKAGE = "teenytinyllama"


class ForkServer:
    """This process as the parent of forks: it has imported what its children need, and has nothing that forks lose.

    A thread of a library, a lock that it holds and a context of a GPU do not survive a fork. So whatever may start one
    is done in a child too (`call`); threads that imports start belong to libraries that renew them after a fork
    (OpenBLAS, jemalloc, NVML).
    """

    def __init__(self, allowed: bool, modules: Sequence[str]) -> None:
        """Import the modules if this process may fork.

        Args:
            allowed: nothing else has happened in this process, so that threads beside Python's are those of imports.
            modules: what the children import first.
        """
        self._threads = 0
        if not allowed or sys.platform != "linux":
            return
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for GPUs must not start CUDA here
        for module in modules:
            importlib.import_module(module)
        if "torch" in sys.modules:
            sys.modules["torch"].accelerator.device_count()  # the driver starts a thread when it is asked
        self._threads = _count_threads()
        gc.freeze()  # what is shared with the children stays shared

    @property
    def can_fork(self) -> bool:
        """Return whether this process can still be forked."""
        if not self._threads or threading.active_count() > 1 or _count_threads() > self._threads:
            return False
        torch = sys.modules.get("torch")
        return torch is None or not torch.cuda.is_initialized()

    def call(self, function: Callable[[], Any], folder: Path) -> Any:
        """Return what a function returns, a JSON value, computed in a fork, or here where none can be made.

        A signal that ends the wait ends the child too.

        Args:
            function: may start threads.
            folder: exists; the result is handed over in a file there.

        Raises:
            InputError: as raised by the function.
            RunFailedError: as raised by the function, or the child died; then its message stands above.
        """
        if not self.can_fork:
            return function()
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        parent = os.getpid()

        def work() -> None:
            end_with(parent)
            with stopped_by_signals("the process that does it"):
                answer.write_text(json.dumps(_answer_of(function)), encoding="utf-8")

        child = ForkedChild(work)
        try:
            code = child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(StoppedResumable):  # a second signal: what it has begun is cut off
                child.wait()
            raise
        finally:
            child.kill_group()
        return _read_answer(code, answer)


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


# What a child may hand over as the reason why there is no result.
_REASONS = {kind.__name__: kind for kind in (InputError, MissingFileError, MissingPackageError, RunFailedError)}


def _answer_of(function: Callable[[], Any]) -> dict[str, Any]:
    """Return a function's result, and this package's variables, which say what time and rows are accounted for."""
    try:
        result = function()
        return {"result": result, "variables": {key: text for key, text in os.environ.items() if key[:4] == "TTL_"}}
    except tuple(_REASONS.values()) as error:
        kind = next(name for name, known in _REASONS.items() if type(error) is known)
        return {"error": kind, "text": str(error)}
    except StoppedResumable:  # the parent has got the signal, and says so
        raise SystemExit(EXIT_RESUMABLE) from None


def _read_answer(code: int | None, path: Path) -> Any:
    if code:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        raise RunFailedError(f"the process that checks and prepares was {how}{hint}; no training was started.")
    answer = json.loads(path.read_text(encoding="utf-8"))
    if "error" in answer:
        raise _REASONS[answer["error"]](answer["text"])
    os.environ.update(answer["variables"])
    return answer["result"]


def launch(
    script: Path,
    arguments: Sequence[str],
    accelerate_file: str | None = None,
    num_processes: int | None = None,
    log: Path | None = None,
    forks: bool = False,
    link: Link | None = None,
) -> int:
    """Run `python script *arguments` on one or several ranks and return the exit code of the whole: 0, 1, 2 or 75.

    Signals that reach this process meanwhile are handed to the ranks, see `processes.supervise`. Call it from the
    main thread.

    Args:
        script: the recipe.
        arguments: its command line.
        accelerate_file: a name (`cpu2`: the file `accelerate/cpu2.yaml` beside the script) or the path of an accelerate
            file; None: one plain process, or with several GPUs visible `ddp`.
        num_processes: number of ranks; None: one a visible GPU, and without a GPU what the file says.
        log: file for what the ranks say; None: the terminal.
        forks: see `processes.supervise`.
        link: to the other machines of the run, whose ranks start at the same time.

    Raises:
        InputError: no such script or file, or a number of ranks that cannot be.
    """
    plan = plan_ranks(script, arguments, accelerate_file, num_processes, link.machines if link else None).joined(link)
    command = [sys.executable, str(script), *arguments]
    total = link.num_ranks if link else plan.num_processes
    if total > 1:
        name = plan.accelerate_file.stem if plan.accelerate_file else "ddp"
        where = f", {plan.num_processes} of them on this of {link.machines.count} machines" if link else ""
        logger.info("%d ranks on the %s (%s)%s", total, "GPUs" if plan.uses_gpu else "CPU", name, where)
    if link is None:
        return supervise(command, plan.environments, log, forks=forks)
    return link.finish(supervise(command, plan.environments, log, forks=forks, elsewhere=link.trouble))


def recipes_folder() -> Path:
    """Return the folder of recipes: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


@dataclass(frozen=True)
class Stage:
    """A kind of training that `ttl` starts, by the names of its parts, so that none is imported before it is needed.

    Attributes:
        module: of the functions below; the ranks import it too.
        config: `module:class` of its config.
        prepare: turns `inputs` into data for the ranks, or `decay_from` into a run's keys; refuses first what it can.
        plan: checks a config against its files and its run folder.
        recipe: what the ranks run.
    """

    module: str
    config: str
    prepare: str
    plan: str
    recipe: str


STAGES = {
    "pretrain": Stage("training.pretrain", "training.config:PretrainConfig", "training.run_plan:pack_inputs",
                      "training.run_plan:plan_run", "pretrain.py"),
    "sft": Stage("tuning.tune", "tuning.config:SftConfig", "tuning.base:SFT.prepare_inputs", "tuning.base:SFT.plan",
                 "sft.py"),
    "dpo": Stage("tuning.tune", "tuning.config:DpoConfig", "tuning.base:DPO.prepare_inputs", "tuning.base:DPO.plan",
                 "dpo.py"),
}  # fmt: skip


def resolve_training(name: str, values: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """Resolve the config of a training for so many ranks and check it, without starting any.

    Args:
        name: of `STAGES`.
        values: the checked values of its config, whose data is prepared.
        num_ranks: that will train.

    Returns:
        What the ranks read, see `training.run_plan.resolve_run`.

    Raises:
        InputError: the config is refused.
    """
    from ..training.run_plan import resolve_run

    return resolve_run(_find(STAGES[name].config), _find(STAGES[name].plan), values, num_ranks)


def start_training(name: str, values: dict[str, Any], options: RankOptions, *, may_fork: bool = False) -> int:
    """Check and prepare everything, then start the ranks of a training and supervise them; at the end write its card.

    The config is resolved once, here: the ranks read batch, steps and plan from a file. A length that only caps tell is
    settled before by a test with the same ranks. With `hub_model_id` a process beside the ranks publishes the run; it
    changes neither them nor the exit code.

    Args:
        name: of `STAGES`.
        values: the checked values of its config.
        options: which ranks.
        may_fork: this process has done nothing else, see `ForkServer`.

    Returns:
        0 done, 1 failed, 2 bad input met by a rank, 75 stopped and resumable.

    Raises:
        InputError: the config is refused; no rank was started and nothing is written.
    """
    from ..disk import scratch_folder
    from ..distributed import before_ranks
    from ..stage_folder import command_line

    os.environ.setdefault("TTL_COMMAND", command_line())
    server = ForkServer(may_fork, [f"{_PACKAGE}.{STAGES[name].module}", "accelerate.commands.launch"])
    asked = (options.accelerate, options.num_processes)
    ranks = plan_ranks(recipes_folder() / STAGES[name].recipe, [], *asked, options.machines())
    with scratch_folder() as folder, _meeting(ranks, values) as link, before_ranks(ranks.environments[0]):
        num_ranks = link.num_ranks if link else ranks.num_processes
        training = _Training(name, asked, server, folder, num_ranks, link)
        if link and link.machines.rank > 0:
            return follow_first(link, training.resolve, training.start)
        publishing = _check_publishing(values)
        values = training.with_length(training.with_data(values))
        resolved, run = training.resolve(values), Path(values["output_dir"])
        if resolved["state"] == "complete":
            from ..training.run_plan import describe_continuation

            print(f"{run} is complete; {describe_continuation(run)}")
            if link:
                link.send({"end": EXIT_DONE})
            return EXIT_DONE
        if link:
            let_others_start(link, resolved, run)
        return _beside_publishing(publishing, run, lambda: training.start(resolved))


@dataclass(frozen=True)
class _Training:
    """A training on this machine, from its values to its ranks.

    Attributes:
        name: of `STAGES`.
        asked: the file and the number of ranks that the user gave.
        server: forks what may start threads.
        folder: for what the ranks read.
        num_ranks: of all machines.
        link: to the other machines, or None.
    """

    name: str
    asked: tuple[str | None, int | None]
    server: ForkServer
    folder: Path
    num_ranks: int
    link: Link | None

    def with_data(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with prepared data, or with those of the run that a branch begins at."""
        if not (values.get("inputs") or values.get("decay_from")):
            return values
        prepare = _find(STAGES[self.name].prepare)
        return dict(self.server.call(lambda: prepare(values, self.num_ranks), self.folder))

    def with_length(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with a length where only caps tell it, after a test of the speed.

        Raises:
            InputError: the test would need several machines.
        """
        if self.name != "pretrain":
            return values
        from ..training.trials import settle_length

        def test(tested: dict[str, Any], log: Path) -> int:
            ensure(
                self.link is None,
                "max_tokens: missing. A cap without a length takes a test of the speed, which is made on one "
                "machine. Give max_tokens too.",
            )
            return self.start(self.resolve(tested), log)

        return settle_length(values, self.num_ranks, lambda tested, _: str(self.resolve(tested)["state"]), test)

    def resolve(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the config of the ranks, see `resolve_training`."""
        return dict(self.server.call(lambda: resolve_training(self.name, values, self.num_ranks), self.folder))

    def start(self, resolved: dict[str, Any], log: Path | None = None) -> int:
        """Start the ranks, and return the exit code of the whole."""
        from ..energy.recorder import count_from_now

        script, path = recipes_folder() / STAGES[self.name].recipe, self.folder / "resolved.json"
        path.write_text(json.dumps(resolved), encoding="utf-8")
        try:
            words = ["--resolved", str(path)]
            return launch(script, words, *self.asked, log, forks=self.server.can_fork, link=self.link)
        finally:
            count_from_now()  # what the ranks took is in their own account


@contextlib.contextmanager
def _meeting(ranks: RankPlan, values: dict[str, Any]) -> Iterator[Link | None]:
    """Connect the machines of a run for the block; a signal before that starts nothing."""
    waiting = stopped_by_signals("nothing was started, the same command on all machines starts again")
    with contextlib.ExitStack() as stack:
        with waiting if ranks.machines.count > 1 else contextlib.nullcontext():
            link = stack.enter_context(linked(ranks.machines, ranks.num_processes, str(values.get("output_dir"))))
        yield link


def _check_publishing(values: dict[str, Any]) -> Any:
    """Return how the run is to be published while it trains, or None.

    Raises:
        InputError: see `check_follower`.
    """
    if not values.get("hub_model_id"):
        return None
    from ..publishing.follow import check_follower

    return check_follower(values)


def _beside_publishing(publishing: Any, run: Path, train: Callable[[], int]) -> int:
    """Train, with a process beside it that publishes the run if it is to be, and write the card of a run that ended."""
    if publishing is None:
        code = train()
        _write_card(run, code)
        return code
    from ..publishing.follow import report_follower, start_follower

    follower = start_follower(run, publishing)
    code = train()
    _write_card(run, code)
    report_follower(follower, code)
    return code


def _write_card(run: Path, code: int) -> None:
    if code == EXIT_DONE:
        with beside_the_model("the model card (`ttl card` writes it)"):
            from ..publishing.card import write_model_card

            write_model_card(run)


def _find(place: str) -> Any:
    """Return what `module:name` names below this package; the name may be that of an attribute's attribute."""
    module, _, name = place.partition(":")
    return operator.attrgetter(name)(importlib.import_module(f"{_PACKAGE}.{module}"))
