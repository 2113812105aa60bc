"""Launcher and signals: exit codes, orphans, the shipped accelerate files, and real trainings on two ranks."""

import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from teenytinyllama import distributed as ranks
from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, InputError, MissingFileError
from teenytinyllama.launching import ranks as launcher
from teenytinyllama.launching.launch import launch
from teenytinyllama.launching.processes import SUPERVISOR_VARIABLE, end_with, supervise
from teenytinyllama.launching.ranks import plan_ranks

if TYPE_CHECKING:
    from teenytinyllama.training.trainer import StopCallback

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "ranks"
NAMES = ["cpu", "cpu2", "ddp", "single", "zero1", "zero2", "zero3"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups and POSIX signals")


@pytest.fixture(autouse=True)
def outside_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what another launcher would have set, and let the ranks import the package from the working tree."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Return a copy of the shipped launch files in a folder of its own, with the test scripts as recipes."""
    folder = tmp_path / "elsewhere" / "recipes"
    shutil.copytree(REPOSITORY / "recipes" / "accelerate", folder / "accelerate")
    shutil.copytree(REPOSITORY / "recipes" / "deepspeed", folder / "deepspeed")
    for script in ("stub.py", "train.py"):
        shutil.copy(SCRIPTS / script, folder)
    return folder


@pytest.fixture
def set_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets how many GPUs the launcher finds."""
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)  # a stage that ran in this process may have set it
    return lambda count: monkeypatch.setattr(launcher, "count_usable_gpus", lambda: count)


def wait_for(*paths: Path) -> None:
    """Wait up to 20 s until all files are there."""
    for _ in range(400):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.05)
    pytest.fail(f"none of {paths} appeared")


def is_running(pid_file: Path) -> bool:
    """Return whether the process is alive; one that has ended but was not waited for is not."""
    try:
        stat = Path(f"/proc/{int(pid_file.read_text())}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def assert_none_running(folder: Path) -> None:
    """Check that no process that wrote its id there outlives the supervisor by a second."""
    pids = [path for path in folder.iterdir() if path.name.startswith("pid_")]
    assert pids
    for _ in range(20):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    pytest.fail(f"orphans: {[path.name for path in pids if is_running(path)]}")


class Supervised:
    """A supervisor in a process of its own, with stub ranks that have started."""

    def __init__(self, folder: Path, forks: bool, num_ranks: int, *words: str) -> None:
        command = [sys.executable, str(SCRIPTS / "supervisor.py"), str(num_ranks), str(folder), *words]
        environment = {**os.environ, "FORKS": str(int(forks))}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.folder = folder
        wait_for(*[folder / f"pid_{rank}" for rank in range(num_ranks)])

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def kill_rank(self, rank: int) -> None:
        """Kill one rank as the kernel does when memory is short."""
        os.kill(int((self.folder / f"pid_{rank}").read_text()), signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Return exit code and stderr; no process may be left."""
        errors = self.process.communicate(timeout=20)[1]
        assert_none_running(self.folder)
        return self.process.returncode, errors


@pytest.fixture(params=[False, True], ids=["new processes", "forks"])
def supervised(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Supervised]:
    """Return a function that starts a supervisor with so many stub ranks, told to do what the words say."""
    if request.param and sys.platform != "linux":
        pytest.skip("ranks are forked on Linux alone")
    return functools.partial(Supervised, tmp_path, request.param)


# Exit codes


@pytest.mark.parametrize("code", [EXIT_DONE, EXIT_BAD_INPUT, EXIT_RESUMABLE])
def test_the_exit_code_of_a_recipe_is_the_exit_code_of_launch(
    tmp_path: Path, recipes: Path, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(recipes / "stub.py", [str(tmp_path), f"exit={code}"]) == code
    assert capfd.readouterr().err == ""


def test_any_other_exit_code_becomes_one_with_one_line(
    tmp_path: Path, recipes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(recipes / "stub.py", [str(tmp_path), "exit=7"]) == EXIT_FAILED
    assert capfd.readouterr().err == "error: the training process ended with exit code 7, its message is above.\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["0:exit=0", "1:exit=75"], EXIT_RESUMABLE),
        (["0:exit=2", "1:exit=2"], EXIT_BAD_INPUT),
        (["0:deaf", "1:exit=2"], EXIT_BAD_INPUT),
        (["0:exit=75", "1:exit=3"], EXIT_FAILED),
    ],
)
def test_the_exit_code_of_two_ranks(
    supervised: Callable[..., Supervised], tmp_path: Path, words: list[str], code: int
) -> None:
    assert supervised(2, *words).end()[0] == code


def test_a_rank_that_fails_ends_the_others_and_is_named(supervised: Callable[..., Supervised], tmp_path: Path) -> None:
    code, errors = supervised(3, "1:exit=3", "deaf").end()
    assert code == EXIT_FAILED
    assert errors == "error: rank 1 of 3 ended with exit code 3, its message is above; the other ranks were ended.\n"


def test_a_killed_rank_ends_the_others_and_what_they_started(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    started = supervised(2, "0:parent", "1:wait")
    assert is_running(tmp_path / "pid_child")
    started.kill_rank(1)
    code, errors = started.end()
    assert code == EXIT_FAILED
    assert errors == "error: rank 1 of 2 was killed by SIGKILL (often: out of memory); the other ranks were ended. " \
        "The same command goes on from the newest complete checkpoint, or begins again without one.\n"  # fmt: skip


def test_what_a_killed_rank_had_started_ends_too(supervised: Callable[..., Supervised], tmp_path: Path) -> None:
    started = supervised(1, "parent")
    started.kill_rank(0)
    assert "killed by SIGKILL (often: out of memory). The same command goes on from the newest" in started.end()[1]


# Signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_asks_all_ranks_to_save_and_stop(
    supervised: Callable[..., Supervised], tmp_path: Path, name: str
) -> None:
    started = supervised(2, "save")
    started.send(signal.Signals[name])
    code, errors = started.end()
    assert code == EXIT_RESUMABLE
    assert errors == f"{name}: asking all 2 ranks to save and stop; send it again to kill.\n"
    assert (tmp_path / "saved_0").exists()
    assert (tmp_path / "saved_1").exists()


@pytest.mark.parametrize("words", [["wait"], ["0:deaf", "1:wait"]])
def test_a_signal_before_training_loses_nothing_and_leaves_nobody(
    supervised: Callable[..., Supervised], tmp_path: Path, words: list[str]
) -> None:
    started = supervised(2, *words)
    started.send(signal.SIGTERM)
    code, errors = started.end()
    assert code == EXIT_RESUMABLE
    assert "stopped while not training" in errors


def test_a_lost_terminal_under_nohup_and_a_signal_that_the_shell_ignores(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    """A shell starts background jobs with INT ignored, and nohup its command with HUP ignored."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        started = supervised(1, "save")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    started.send(signal.SIGHUP)
    time.sleep(0.3)
    assert started.process.poll() is None
    started.send(signal.SIGINT)
    code, errors = started.end()
    assert code == EXIT_RESUMABLE
    assert errors == "SIGINT: asking the training to save and stop; send it again to kill.\n"


def test_the_second_signal_kills(supervised: Callable[..., Supervised], tmp_path: Path) -> None:
    started = supervised(2, "deaf")
    started.send(signal.SIGTERM)
    time.sleep(0.5)
    started.send(signal.SIGHUP)  # a closing terminal is not somebody insisting
    started.send(signal.SIGUSR1)
    time.sleep(0.5)
    assert started.process.poll() is None
    started.send(signal.SIGINT)
    code, errors = started.end()
    assert code == EXIT_FAILED
    assert "killed at the second signal" in errors
    assert "The same command goes on from the newest complete checkpoint" in errors


def test_a_rank_saves_and_stops_when_its_supervisor_is_killed(
    supervised: Callable[..., Supervised], tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("parent death signals are Linux's")
    started = supervised(2, "tied")
    started.send(signal.SIGKILL)
    wait_for(tmp_path / "saved_0", tmp_path / "saved_1")
    assert sorted(path.name for path in tmp_path.glob("saved_*")) == ["saved_0", "saved_1"]
    started.end()


def test_a_rank_whose_supervisor_is_gone_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUPERVISOR_VARIABLE, "1")
    with pytest.raises(SystemExit, match="process 1 that started this one is gone"):
        end_with(1)


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)]
    assert supervise([sys.executable, "-c", ""], [dict(os.environ)]) == EXIT_DONE
    assert before == [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    ]


# Plans


def test_the_shipped_files_are_those_documented() -> None:
    folder = REPOSITORY / "recipes"
    assert sorted(path.stem for path in (folder / "accelerate").iterdir()) == sorted([*NAMES, "multinode"])
    assert sorted(path.name for path in (folder / "deepspeed").iterdir()) == ["zero1.json", "zero2.json", "zero3.json"]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_on_a_machine_without_gpu(recipes: Path, set_gpus: Callable[[int], None], name: str) -> None:
    set_gpus(0)
    plan = plan_ranks(recipes / "stub.py", [], name)
    assert not plan.uses_gpu
    assert plan.num_processes == (1 if name in ("cpu", "single") else 2)
    for rank, environment in enumerate(plan.environments):
        if plan.num_processes == 2:
            assert (environment["RANK"], environment["LOCAL_RANK"]) == (str(rank), str(rank))
            assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("2", "2")
            assert environment["DS_ACCELERATOR"] == "cpu"
        assert environment["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // plan.num_processes))
    assert (plan.environments[0].get("ACCELERATE_USE_DEEPSPEED") == "true") == name.startswith("zero")
    assert len({environment.get("MASTER_PORT") for environment in plan.environments}) == 1


@pytest.mark.parametrize(
    ("name", "num_ranks", "devices"),
    [
        (None, 4, None),
        ("single", 1, "0"),
        ("ddp", 4, None),
        ("zero1", 4, None),
        ("zero2", 4, None),
        ("zero3", 4, None),
        ("cpu", 1, "-1"),
        ("cpu2", 2, "-1,-1"),
    ],
)
def test_every_file_on_a_machine_with_four_gpus(
    recipes: Path, set_gpus: Callable[[int], None], name: str | None, num_ranks: int, devices: str | None
) -> None:
    set_gpus(4)
    plan = plan_ranks(recipes / "stub.py", [], name)
    assert plan.num_processes == num_ranks
    assert plan.uses_gpu == (name not in ("cpu", "cpu2"))
    assert {environment.get("CUDA_VISIBLE_DEVICES") for environment in plan.environments} == {devices}
    # Numbers as the energy meter counts them.
    assert plan.environments[0].get("CUDA_DEVICE_ORDER") == ("PCI_BUS_ID" if plan.uses_gpu else None)
    if plan.uses_gpu:
        assert "DS_ACCELERATOR" not in plan.environments[0]


def test_deepspeed_that_is_missing_and_too_many_ranks(
    recipes: Path, set_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus(0)
    with pytest.raises(InputError, match="num_processes=100000: starts so many processes"):
        plan_ranks(recipes / "stub.py", [], "ddp", 100_000)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else find_spec(name))
    with pytest.raises(
        InputError, match=r"accelerate=.*zero2.yaml: needs the package deepspeed: pip install deepspeed"
    ):
        plan_ranks(recipes / "stub.py", [], "zero2")


def test_one_process_takes_the_first_gpu_it_was_given(
    recipes: Path, set_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert plan_ranks(recipes / "stub.py", [], None, 1).environments[0]["CUDA_VISIBLE_DEVICES"] == "3"
    assert plan_ranks(recipes / "stub.py", [], "single").environments[0]["CUDA_VISIBLE_DEVICES"] == "3"


def test_gpus_that_no_rank_uses_are_hidden(
    recipes: Path, tmp_path: Path, set_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their energy would count, and a file that names GPUs would train on another one."""
    set_gpus(4)
    plan = plan_ranks(recipes / "stub.py", [], "ddp", 2)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in plan.environments] == ["0,1"] * 2
    named = tmp_path / "named.yaml"
    named.write_text((recipes / "accelerate" / "single.yaml").read_text() + "gpu_ids: '2,3'\n")
    assert plan_ranks(recipes / "stub.py", [], str(named)).environments[0]["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    plan = plan_ranks(recipes / "stub.py", [], "zero1", 3)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in plan.environments] == ["3,5,6"] * 3


def test_the_number_of_ranks_and_threads_can_be_given(
    recipes: Path, set_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    plan = plan_ranks(recipes / "stub.py", [], "zero2", 3)
    assert plan.num_processes == 3
    assert plan.environments[0]["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_files_are_found_from_any_folder(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_gpus: Callable[[int], None], stage: int
) -> None:
    set_gpus(0)
    monkeypatch.chdir(tmp_path)
    environment = plan_ranks(recipes / "stub.py", [], f"zero{stage}").environments[0]
    file = Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
    assert file == recipes / "deepspeed" / f"zero{stage}.json"
    content = json.loads(file.read_text())
    assert content["zero_optimization"]["stage"] == stage
    assert content["data_types"]["grad_accum_dtype"] == "fp32", "or micro-batches add up in 16 bits"


def test_a_path_is_read_as_accelerate_would_from_the_working_folder(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_gpus: Callable[[int], None]
) -> None:
    set_gpus(0)
    shutil.copytree(recipes / "deepspeed", tmp_path / "recipes" / "deepspeed")
    monkeypatch.chdir(tmp_path)
    environment = plan_ranks(recipes / "stub.py", [], str(recipes / "accelerate" / "zero1.yaml")).environments[0]
    assert environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == str(tmp_path / "recipes" / "deepspeed" / "zero1.json")


def test_deepspeed_files_leave_to_the_config_what_the_config_says() -> None:
    for path in (REPOSITORY / "recipes" / "deepspeed").iterdir():
        settings = json.loads(path.read_text())
        assert settings["bf16"]["enabled"] == settings["fp16"]["enabled"] == settings["gradient_clipping"] == "auto"
        assert settings["train_batch_size"] == settings["gradient_accumulation_steps"] == "auto"
        assert settings["train_micro_batch_size_per_gpu"] == "auto"
        assert not {"optimizer", "scheduler"} & set(settings)  # DeepSpeed's own would decay the norms
        assert settings["zero_allow_untested_optimizer"] is True


# Refusals


def _write_file(recipes: Path, **changes: str) -> str:
    lines = (recipes / "accelerate" / "ddp.yaml").read_text().splitlines()
    kept = [line for line in lines if line.split(":")[0] not in changes]
    (recipes / "own.yaml").write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in changes.items())]))
    return str(recipes / "own.yaml")


@pytest.mark.parametrize(
    ("file", "num_processes", "gpus", "message"),
    [
        ("zero", None, 0, r"accelerate=zero: must be the path .* cpu, cpu2, ddp, .*Did you mean 'zero\d'"),
        ("ddp", 0, 0, "num_processes=0: must be at least 1"),
        ("single", 2, 0, "num_processes=2: single starts one process. Use `--accelerate ddp`"),
        ("ddp", 5, 4, r"num_processes=5: 4 GPUs can be used"),
        ({"num_machines": "2"}, None, 0, "main_process_ip in .*own.yaml: is missing, for num_machines: 2"),
        ({"distributed_type": "XLA"}, None, 0, "distributed_type in .*own.yaml: must be"),
        (
            {"distributed_type": "FSDP"},
            None,
            0,
            "distributed_type in .*own.yaml: .*FSDP, Megatron and TPUs are not supported",
        ),
        ({"num_process": "2"}, None, 0, "accelerate=.*own.yaml: accelerate refuses it: .*unknown keys.*num_process"),
        ({"gpu_ids": "'0,1'"}, 3, 4, r"num_processes=3: 2 GPUs can be used"),
    ],
)
def test_what_cannot_be_started_is_refused(
    recipes: Path,
    set_gpus: Callable[[int], None],
    file: str | dict[str, str],
    num_processes: int | None,
    gpus: int,
    message: str,
) -> None:
    set_gpus(gpus)
    name = file if isinstance(file, str) else _write_file(recipes, **file)
    with pytest.raises(InputError, match=message):
        plan_ranks(recipes / "stub.py", [], name, num_processes)


def test_a_missing_script_is_refused(recipes: Path) -> None:
    with pytest.raises(MissingFileError, match="script=.*nowhere.py: no such file. Run `ttl init"):
        launch(recipes / "nowhere.py", [])


def test_a_missing_deepspeed_file_is_refused(recipes: Path, set_gpus: Callable[[int], None]) -> None:
    set_gpus(0)
    (recipes / "deepspeed" / "zero1.json").unlink()
    with pytest.raises(MissingFileError, match="deepspeed_config_file=recipes/deepspeed/zero1.json in .*zero1.yaml"):
        plan_ranks(recipes / "stub.py", [], "zero1")


def test_a_rank_of_another_launcher_starts_no_ranks(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="LOCAL_RANK=1: this process is already a rank of another launcher"):
        launch(recipes / "stub.py", [])


def test_a_trainer_that_believes_to_be_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    ranks.check_ranks(arguments)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE=2: torch connected 1 rank and the Trainer works with 1"):
        ranks.check_ranks(arguments)


# StopCallback


@pytest.fixture
def stop_callback() -> Iterator["StopCallback"]:
    """Return a callback that has taken over the signals, as at the begin of a training."""
    from transformers import TrainerControl, TrainerState

    from teenytinyllama.training.trainer import StopCallback

    # A job in the background of a script is started with INT ignored, and the callback gives back what was there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = StopCallback()
    stop.on_train_begin(SimpleNamespace(), TrainerState(), TrainerControl())
    yield stop
    stop.restore_handlers()
    signal.signal(signal.SIGINT, before)


def step_end(stop: "StopCallback", step: int) -> Any:
    """End a step of a training of ten and return the Trainer's control."""
    from transformers import TrainerControl, TrainerState

    control = TrainerControl(should_evaluate=True)
    stop.on_step_end(SimpleNamespace(device="cpu"), TrainerState(max_steps=10, global_step=step), control)
    return control


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_and_stops_at_the_end_of_the_step(stop_callback: "StopCallback", name: str) -> None:
    assert not step_end(stop_callback, 3).should_training_stop
    assert not stop_callback.stopped
    signal.raise_signal(signal.Signals[name])
    signal.raise_signal(signal.Signals[name])  # delivered twice, as by a terminal and a launcher
    control = step_end(stop_callback, 4)
    assert stop_callback.stopped
    assert control.should_save
    assert control.should_training_stop
    assert not control.should_evaluate


def test_a_signal_in_the_last_step_lets_the_training_finish(stop_callback: "StopCallback") -> None:
    signal.raise_signal(signal.SIGTERM)
    step_end(stop_callback, 10)
    assert not stop_callback.stopped


def test_a_later_second_signal_acts_as_without_the_callback(stop_callback: "StopCallback") -> None:
    signal.raise_signal(signal.SIGINT)
    stop_callback._received_at -= 10
    signal.raise_signal(signal.SIGUSR1)  # a scheduler that repeats its warning
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_to_a_forked_worker_does_not_stop_the_training(stop_callback: "StopCallback") -> None:
    pid = os.fork()
    if pid == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(1 if stop_callback._received else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    from teenytinyllama.training.trainer import StopCallback

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: StopCallback().on_train_begin(None, None, None))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


PARENT = """
import os, signal, sys, threading
from pathlib import Path
from teenytinyllama.checks import InputError, run_main
from teenytinyllama.launching.launch import ForkServer
from teenytinyllama.launching.processes import stopped_by_signals

def work():
    os.environ["TTL_SEEN"] = "1"
    if KIND == "refuse":
        raise InputError("x=1: must be 2.")
    if KIND == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if KIND == "signal":
        os.kill(os.getppid(), signal.SIGTERM)
        threading.Event().wait(60)
    return os.getpid()

KIND = sys.argv[1]
server = ForkServer(True, ["decimal"])
if KIND == "thread":
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def main():
    with stopped_by_signals("nothing was lost"):
        there = server.call(work, Path(sys.argv[2]))
    print("here" if there == os.getpid() else "in a fork", os.environ["TTL_SEEN"], "decimal" in sys.modules)

sys.exit(run_main(main))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
@pytest.mark.parametrize(("kind", "code", "out", "err"), [
    ("work", 0, "in a fork 1 True", ""),
    ("thread", 0, "here 1 True", ""),
    ("refuse", 2, "", "error: x=1: must be 2."),
    ("killed", 1, "", "failed: the process that checks and prepares was killed by SIGKILL (often: out of memory); no training was started."),
    ("signal", 75, "", "stopped: SIGTERM; nothing was lost"),
])  # fmt: skip
def test_what_may_start_threads_is_done_in_a_fork(tmp_path: Path, kind: str, code: int, out: str, err: str) -> None:
    command = [sys.executable, "-c", PARENT, kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (code, out, err)


POOL = """
import atexit, concurrent.futures, sys, threading, time
from teenytinyllama.launching.processes import ForkedChild

pools = []

def work():
    pools.append(concurrent.futures.ThreadPoolExecutor(2))
    pools[0].submit(print, "in the pool").result()
    threading.Thread(target=lambda: (time.sleep(0.5), print("a thread's last words"))).start()
    atexit.register(print, "at exit")

sys.exit(ForkedChild(work).wait())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_a_fork_ends_with_a_pool_of_threads_open() -> None:
    """As torch's compiler leaves one: the rank would never end, though its run is complete."""
    done = subprocess.run([sys.executable, "-c", POOL], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "in the pool\na thread's last words\nat exit\n"), done.stderr


RANK = """
import atexit, sys
from teenytinyllama.distributed import exit_rank, prepare_rank

class Kept:
    def __del__(self):
        print("teardown")

def main():
    prepare_rank()
    atexit.register(lambda: print("at exit"))

kept = Kept()
main()
print("done")
if len(sys.argv) > 2:
    raise ValueError("planned")
exit_rank(int(sys.argv[1]))
"""


@pytest.mark.parametrize(("count", "code", "said"), [
    ("2", "0", ["done", "at exit"]), ("2", "75", ["done", "at exit"]), ("1", "2", ["done", "at exit", "teardown"]),
])  # fmt: skip
def test_a_rank_ends_without_the_teardown_of_the_interpreter(count: str, code: str, said: list[str]) -> None:
    environment = {**os.environ, "WORLD_SIZE": count, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("TTL_SUPERVISOR_PID", None)
    done = subprocess.run([sys.executable, "-c", RANK, code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (int(code), said), done.stderr


def test_a_rank_that_fails_ends_as_python_does() -> None:
    environment = {**os.environ, "WORLD_SIZE": "2", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", RANK, "0", "fail"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "ValueError: planned" in done.stderr
    assert "teardown" in done.stdout


# Real trainings


@pytest.fixture(scope="module")
def uninterrupted_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of the same training in one process, never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / "train.py"), str(folder), "--uninterrupted"]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    seen = json.loads((folder / "rank_0.json").read_text())
    assert seen["world_sizes"] == [1, 1, 1]
    assert len(set(seen["losses"])) == 6
    return seen["losses"]


def check_training(folder: Path, name: str, expected_losses: list[float]) -> None:
    """Check what train.py wrote after it was stopped by a signal to the last rank alone, and resumed."""
    count, deepspeed = 1 if name == "single" else 2, name.startswith("zero")
    alone = "LlamaForCausalLM" if count == 1 else "DistributedDataParallel"
    for rank in range(count):
        seen = json.loads((folder / f"rank_{rank}.json").read_text())
        assert seen["world_sizes"] == [count] * 3
        assert seen["engine"] == ("DeepSpeedEngine" if deepspeed else alone)
        assert seen["zero_stage"] == (int(name[-1]) if deepspeed else 0)
        assert seen["stopped"] == [True, False]
        assert seen["handler_restored"]
        assert seen["losses"] == pytest.approx(expected_losses, abs=2e-6)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("name", ["single", "cpu2", "ddp", "zero1", "zero2", "zero3"])
def test_stopped_by_a_signal_to_one_rank_and_resumed_equals_one_process_uninterrupted(
    recipes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted_losses: list[float],
    name: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    assert launch(recipes / "train.py", [str(tmp_path)], name, None if name == "single" else 2) == EXIT_DONE
    check_training(tmp_path, name, uninterrupted_losses)
    assert not (tmp_path / "compiled").exists(), "DeepSpeed compiled an op"
    assert "FutureWarning" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.ranks
def test_accelerate_launch_trains_the_same_from_the_folder_that_holds_recipes(
    recipes: Path, tmp_path: Path, uninterrupted_losses: list[float]
) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/zero2.yaml"]
    subprocess.run(
        [*command, "recipes/train.py", str(tmp_path)],
        check=True,
        cwd=recipes.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    check_training(tmp_path, "zero2", uninterrupted_losses)
