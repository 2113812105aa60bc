"""Several machines: how they find each other, what they refuse, how a lost one is noticed, and two hosts that train."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_pretrain import losses, make_values

from teenytinyllama.checks import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, InputError, RunFailedError
from teenytinyllama.energy.ledger import read_ledger, read_starts, total_of
from teenytinyllama.launching import machines as module
from teenytinyllama.launching.launch import recipes_folder
from teenytinyllama.launching.machines import Link, Machines, first_host, linked, machines_of_slurm
from teenytinyllama.launching.processes import supervise
from teenytinyllama.launching.ranks import RankOptions, plan_ranks
from teenytinyllama.stage_folder import sha256_file

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "recipes" / "pretrain.py"


def free_port() -> int:
    """A port that is free together with the one after it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]) - 1


@pytest.fixture
def two() -> tuple[Machines, Machines]:
    port = free_port()
    first, second = (Machines(2, rank, "127.0.0.1", port) for rank in (0, 1))
    return first, second


class Other(threading.Thread):
    """Another machine, in a thread."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.result, self.error = work, None, ""
        self.start()

    def run(self) -> None:
        """Do the work, and keep what it returns or refuses."""
        try:
            self.result = self.work()
        except (InputError, RunFailedError) as error:
            self.error = str(error)

    def end(self) -> Any:
        """Wait for it, and return its result."""
        self.join(20)
        assert not self.is_alive()
        return self.result


@pytest.mark.parametrize(("names", "host"), [
    ("gpu[07-09,12],cpu1", "gpu07"), ("a", "a"), ("a,b", "a"), ("node-1[3,5]", "node-13"), ("n1.x.org,n2.x.org", "n1.x.org"),
])  # fmt: skip
def test_the_first_of_slurms_hosts(names: str, host: str) -> None:
    assert first_host(names) == host


def test_srun_says_which_machine_this_is() -> None:
    step = {"SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NODEID": "2", "SLURM_JOB_ID": "5007",
            "SLURM_STEP_NODELIST": "gpu[1-3]"}  # fmt: skip
    assert machines_of_slurm(step) == Machines(3, 2, "gpu1", 20_014)
    assert machines_of_slurm(step | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}) is None
    with pytest.raises(InputError, match="srun started 8 tasks on 1 machine"):
        machines_of_slurm({"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "8"})
    assert machines_of_slurm({"SLURM_NNODES": "3", "SLURM_JOB_NODELIST": "gpu[1-3]"}) is None  # a script without srun
    with pytest.raises(InputError, match=r"SLURM_STEP_NUM_TASKS=6: srun started 6 tasks on 3 machines.*per-node=1"):
        machines_of_slurm(step | {"SLURM_STEP_NUM_TASKS": "6"})
    with pytest.raises(InputError, match="SLURM_STEP_NODELIST=: names no host"):
        machines_of_slurm(step | {"SLURM_STEP_NODELIST": ""})


def test_given_keys_go_before_those_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEP_NUM_NODES": "2", "NODEID": "1", "JOB_ID": "1", "STEP_NODELIST": "a,b"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert RankOptions().machines() == Machines(2, 1, "a", 20_002)
    assert RankOptions(main_process_ip="10.0.0.1").machines() == Machines(2, 1, "10.0.0.1", 20_002)
    given = RankOptions(num_machines=4, machine_rank=3, main_process_ip="b", main_process_port=5000)
    assert given.machines() == Machines(4, 3, "b", 5000)
    assert RankOptions(num_machines=1).machines() == Machines(1)


@pytest.mark.parametrize(("keys", "message"), [
    ({"num_machines": 0}, "num_machines=0: must be at least 1"),
    ({"num_machines": 2, "machine_rank": 2}, "machine_rank=2: must be 0 to 1"),
    ({"main_process_port": 80}, "main_process_port=80: must be 1024 to 65,534"),
    ({"num_machines": 2}, "num_machines=2: give --main_process_ip"),
    ({"num_machines": 2, "main_process_ip": "a"}, "and --machine_rank, 0 there"),
])  # fmt: skip
def test_keys_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RankOptions(**keys).machines()


def test_ranks_are_numbered_over_all_machines(two: tuple[Machines, Machines], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    plans = [plan_ranks(SCRIPT, [], "cpu2", total, machine) for machine, total in zip(two, (4, 6), strict=True)]
    assert [plan.num_processes for plan in plans] == [2, 3]

    def environments(machine: Machines) -> list[dict[str, str]]:
        plan = plans[machine.rank]
        with linked(machine, plan.num_processes, "run") as link:
            return list(plan.joined(link).environments)

    other = Other(lambda: environments(two[1]))
    here, there = environments(two[0]), other.end()
    assert [each["RANK"] for each in here + there] == ["0", "1", "2", "3", "4"]
    assert [each["LOCAL_RANK"] for each in here + there] == ["0", "1", "0", "1", "2"]
    assert {(each["WORLD_SIZE"], each["MASTER_PORT"]) for each in here + there} == {("5", str(two[0].port))}
    assert [each["GROUP_RANK"] for each in here + there] == ["0", "0", "1", "1", "1"]
    assert {each["GLOO_SOCKET_IFNAME"] for each in here} == {"lo"}
    with pytest.raises(
        InputError, match="num_processes=5: is the number of ranks of all machines, and must be a multi"
    ):
        plan_ranks(SCRIPT, [], "cpu2", 5, two[0])
    assert plan_ranks(SCRIPT, [], "zero2", None, Machines(3, 0, "a")).num_processes == 1  # without GPUs one each


def test_an_accelerate_file_may_name_the_machines(tmp_path: Path) -> None:
    values = yaml.safe_load((REPOSITORY / "recipes" / "accelerate" / "multinode.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**values, "machine_rank": 1, "main_process_ip": "10.0.0.1"}))
    plan = plan_ranks(SCRIPT, [], str(file))
    assert (plan.machines, plan.num_processes) == (Machines(2, 1, "10.0.0.1", 29500), 1)
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if key != "main_process_ip"}))
    with pytest.raises(InputError, match="main_process_ip in .*mine.yaml: is missing, for num_machines: 2"):
        plan_ranks(SCRIPT, [], str(file))


# Meeting


@pytest.mark.parametrize(("other", "run", "message"), [
    ({"count": 3}, "run", "num_machines=3 there, 2 here"),
    ({}, "another", "run=another there, run here"),
    ({"rank": 0}, "run", "machine_rank=0, but it must be 1 to 1"),
])  # fmt: skip
def test_a_machine_of_another_run_is_sent_away(
    two: tuple[Machines, Machines], other: dict[str, Any], run: str, message: str
) -> None:
    wrong = Machines(**{"count": 2, "rank": 1, "address": "127.0.0.1", "port": two[0].port} | other)
    seen: list[str] = []

    def come() -> None:
        with contextlib.suppress(InputError):
            try:
                module._find_first(wrong, 1, run, 10)
            except InputError as error:
                seen.append(str(error))
        with linked(two[1], 1, "run"):
            pass

    thread = Other(come)
    with linked(two[0], 1, "run") as link:
        assert link is not None
        thread.end()
    assert message in seen[0]


def test_a_machine_that_does_not_come_is_named(two: tuple[Machines, Machines]) -> None:
    with pytest.raises(InputError, match=r"machine 1 did not come within 0 s.*ports \d+ and \d+ must be open"):
        module._await_others(two[0], 1, "run", 0.2)
    with pytest.raises(InputError, match=r"machine 1 cannot reach machine 0 at port"):
        module._find_first(two[1], 1, "run", 0.0)
    with pytest.raises(InputError, match=r"main_process_ip=192\.0\.2\.1: machine 0 cannot listen there"):
        module._await_others(Machines(2, 0, "192.0.2.1", two[0].port), 1, "run", 1)


def test_bytes_that_are_no_message_are_sent_away(two: tuple[Machines, Machines]) -> None:
    def come() -> None:
        for junk in (b"\n", b"GET / HTTP/1.1\n", b"[1]\n", b"\xff\xfe\n"):
            for _ in range(100):
                with contextlib.suppress(OSError):
                    with socket.create_connection(("127.0.0.1", two[0].port + 1)) as stranger:
                        stranger.sendall(junk)
                    break
                time.sleep(0.05)
        with linked(two[1], 1, "run"):
            pass

    thread = Other(come)
    with linked(two[0], 1, "run"):
        thread.end()
    assert thread.error == ""


# While the ranks train


@contextlib.contextmanager
def pair(two: tuple[Machines, Machines]) -> Iterator[tuple[Link, Link]]:
    with contextlib.ExitStack() as stack:
        other = Other(lambda: stack.enter_context(linked(two[1], 1, "run")))
        first = stack.enter_context(linked(two[0], 1, "run"))
        second = other.end()
        assert first is not None
        yield first, second


@pytest.mark.parametrize(("codes", "expected"), [
    ((0, 0), 0), ((75, 75), 75), ((0, 75), 75), ((1, 75), 1), ((0, 1), 1), ((75, 2), 2),
])  # fmt: skip
def test_the_worst_exit_code_is_that_of_the_whole(
    two: tuple[Machines, Machines], codes: tuple[int, int], expected: int
) -> None:
    with pair(two) as (first, second):
        other = Other(lambda: second.finish(codes[1]))
        assert first.finish(codes[0]) == expected
        assert other.end() == expected or (expected, codes[1]) == (2, 2)


def test_a_machine_that_ends_early_is_noticed(two: tuple[Machines, Machines]) -> None:
    with pair(two) as (first, second):
        assert first.trouble() is None
        second.close()
        time.sleep(0.1)
        assert first.trouble() == "machine 1 is lost: its `ttl` has ended or its connection was closed"
        with pytest.raises(RunFailedError, match="machine 1 is lost"):
            first.gather()
    with pair((Machines(2, 0, "127.0.0.1", two[0].port + 4), Machines(2, 1, "127.0.0.1", two[0].port + 4))) as (
        one,
        other,
    ):
        one.close()
        with pytest.raises(RunFailedError, match="machine 0 is lost"):
            other.receive()


def test_a_busy_machine_is_not_lost(two: tuple[Machines, Machines], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PROBE_SECONDS", "_PROBES", "_SILENCE_SECONDS"):
        monkeypatch.setattr(module, name, 1)
    with pair(two) as (first, second):
        time.sleep(3.5)  # neither process says anything, as during a long save; the kernels answer
        assert (first.trouble(), second.trouble()) == (None, None)


def test_ranks_of_a_machine_that_failed_end_those_of_the_others(
    two: tuple[Machines, Machines], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("teenytinyllama.launching.processes._FAILURE_GRACE_SECONDS", 0.2)
    with pair(two) as (first, second):
        second.send({"failed": "machine 1: its ranks ended with code 1"})
        sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
        started = time.monotonic()
        assert supervise(sleeps, [dict(os.environ)], elsewhere=first.trouble) == EXIT_FAILED
        assert time.monotonic() - started < 10
    assert "error: machine 1: its ranks ended with code 1; the ranks here were ended" in capfd.readouterr().err


def test_a_refusal_reaches_the_other_machine(two: tuple[Machines, Machines]) -> None:
    def refuse() -> None:
        with linked(two[0], 1, "run"):
            raise InputError("tokens=0: must be positive")

    thread = Other(refuse)
    with linked(two[1], 1, "run") as link:
        assert link is not None
        message = link.receive()
        thread.end()
    assert message == {"failed": "machine 0 refused: tokens=0: must be positive", "end": EXIT_BAD_INPUT}


# Two hosts, each with a network, a file system and a process tree of its own


def can_make_hosts() -> bool:
    """Whether this user may make networks: root on Linux."""
    if sys.platform != "linux" or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-nm", "true"], capture_output=True, check=False).returncode == 0


class Hosts:
    """Two hosts that reach each other by a cable; on each, `own` folders are copies that the other does not see."""

    def __init__(self, folder: Path, own: list[Path]) -> None:
        self.folder, self.own = folder, own
        self.names = [f"ttl-{os.getpid()}-{number}" for number in (0, 1)]
        self.logs = [folder / f"host{number}.log" for number in (0, 1)]
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "e0", "netns", self.names[0], "type", "veth", "peer", "name", "e0", "netns", self.names[1])
        for number, name in enumerate(self.names):
            _ip("-n", name, "addr", "add", f"10.78.0.{number + 1}/24", "dev", "e0")
            for device in ("e0", "lo"):
                _ip("-n", name, "link", "set", device, "up")

    def start(self, number: int, *words: str) -> subprocess.Popen[bytes]:
        """Start `ttl pretrain` on a host, with what it prints in its log."""
        copies = self.folder / f"disk{number}"
        mounts = []
        for place in self.own:
            if not (copies / place.name).exists():
                shutil.copytree(place, copies / place.name)
            mounts.append(f"mount --bind {copies / place.name} {place}")
        command = [sys.executable, str(REPOSITORY / "tests" / "ranks" / "machine.py"), "pretrain", *words,
                   "--num_machines", "2", "--machine_rank", str(number), "--main_process_ip", "10.78.0.1"]  # fmt: skip
        script = " && ".join([*mounts, 'exec "$@"'])
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], "unshare", "-m", "sh", "-c", script, "sh", *command],
            stdout=self.logs[number].open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def both(self, *words: str) -> list[subprocess.Popen[bytes]]:
        return [self.start(number, *words) for number in (0, 1)]

    def codes(self, hosts: list[subprocess.Popen[bytes]], seconds: float = 240) -> list[int]:
        """Wait for both, and return their exit codes."""
        return [host.wait(seconds) for host in hosts]

    def cut(self, up: bool = False) -> None:
        """Pull the cable, or put it back."""
        _ip("-n", self.names[1], "link", "set", "e0", "up" if up else "down")

    def ranks(self, number: int) -> list[int]:
        """Process ids of the ranks of a host, which are the children of its `ttl`."""
        found = []
        for pid in subprocess.run(
            ["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=True
        ).stdout.split():
            with contextlib.suppress(OSError):
                if b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes() or os.getsid(int(pid)) == int(pid):
                    found.append(int(pid))
        return found

    def remove(self) -> None:
        for name in self.names:
            for pid in subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            ).stdout.split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path, packed_folder: Path, tokenizer_folder: Path) -> Iterator[Hosts]:
    if not can_make_hosts():
        pytest.skip("needs root on Linux, for networks of its own")
    made = Hosts(tmp_path, [packed_folder, tokenizer_folder])
    yield made
    made.remove()


def config_of(folder: Path, packed: Path, tokenizer: Path, **keys: Any) -> tuple[list[str], Path]:
    folder.mkdir(exist_ok=True)
    """A run of 120 steps of some 50 ms, so that there is time to disturb it."""
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 3,
             "num_key_value_heads": 3}  # fmt: skip
    values = make_values(folder, packed, tokenizer) | {
        "tokens_per_step": 1024,
        "max_tokens": 120 * 1024,
        "shape": shape,
    }
    values |= {"save_steps": 20, "eval_steps": 60} | keys
    (folder / "x.yaml").write_text(yaml.safe_dump(values))
    return ["--accelerate", "zero2", "--config", str(folder / "x.yaml")], Path(values["output_dir"])


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            lines = (run / "metrics.jsonl").read_text().splitlines()
            if any(json.loads(line)["step"] >= step for line in lines):
                return
        time.sleep(0.1)
    pytest.fail(f"step {step} was not reached")


@pytest.mark.slow
def test_two_hosts_train_as_one_and_a_lost_one_is_noticed(
    hosts: Hosts, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    words, alone = config_of(tmp_path / "alone", packed_folder, tokenizer_folder)
    done = subprocess.run([sys.executable, "-m", "teenytinyllama", "pretrain", *words, "--num_processes", "2"],
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == EXIT_DONE, done.stderr
    words, run = config_of(tmp_path / "two", packed_folder, tokenizer_folder)
    started = hosts.both(*words)
    wait_for_step(run, 24)
    os.kill(hosts.ranks(1)[-1], signal.SIGKILL)
    assert hosts.codes(started, 60) == [EXIT_FAILED, EXIT_FAILED]
    assert "machine 1: its ranks ended with code 1" in hosts.logs[0].read_text()
    assert "killed by SIGKILL" in hosts.logs[1].read_text()

    started = hosts.both(*words)  # goes on from step 20
    wait_for_step(run, 50)
    cut = time.monotonic()
    hosts.cut()
    assert hosts.codes(started, 60) == [EXIT_FAILED, EXIT_FAILED]
    assert time.monotonic() - cut < 60
    assert "machine 1 is lost: the network does not reach it any more" in hosts.logs[0].read_text()
    assert "machine 0 is lost" in hosts.logs[1].read_text()
    hosts.cut(up=True)

    started = hosts.both(*words)
    wait_for_step(run, 85)
    started[1].send_signal(signal.SIGTERM)  # one host alone is told to stop
    assert hosts.codes(started) == [EXIT_RESUMABLE, EXIT_RESUMABLE]
    assert hosts.codes(hosts.both(*words)) == [EXIT_DONE, EXIT_DONE]
    assert losses(run) == losses(alone)
    assert sha256_file(run / "model.safetensors") == sha256_file(alone / "model.safetensors")
    assert (run / "ledger-1.jsonl").is_file()  # the energy of either host in an account of its own
    each = [total_of(read_starts(run / name)).energy_kwh for name in ("ledger.jsonl", "ledger-1.jsonl")]
    account = read_ledger(run)
    assert account is not None
    assert min(each) > 0
    assert account.total.energy_kwh == pytest.approx(sum(each))


@pytest.mark.slow
def test_hosts_with_other_rows_or_another_folder_are_refused(
    hosts: Hosts, tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    words, run = config_of(tmp_path / "two", packed_folder, tokenizer_folder)
    hosts.own.append(run.parent)
    assert hosts.codes(hosts.both(*words)) == [EXIT_BAD_INPUT, EXIT_BAD_INPUT]
    assert f"output_dir={run}: is another one on machine 1" in hosts.logs[0].read_text()
    assert "machine 0 refused: output_dir" in hosts.logs[1].read_text()
    hosts.own.pop()
    manifest = hosts.folder / "disk1" / packed_folder.name / "run.json"
    manifest.write_text(manifest.read_text().replace(sha256_file(packed_folder / "train.npy"), "0" * 64))
    assert hosts.codes(hosts.both(*words)) == [EXIT_BAD_INPUT, EXIT_BAD_INPUT]
    assert "machine 1 refused the run: packed=" in hosts.logs[0].read_text()
    assert not run.exists()


# The scripts for Slurm; no cluster was there, so `srun` and `scontrol` are stubs


SRUN = """#!{python}
import os, signal, subprocess, sys
options = sys.argv[1 : next(place for place, word in enumerate(sys.argv) if place and not word.startswith("-"))]
command = sys.argv[1 + len(options):]
print("srun", *options, flush=True)
nodes = int(os.environ.get("NODES", "1"))
step = {{"SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NUM_TASKS": str(nodes), "SLURM_STEP_NODELIST": "127.0.0.1"}}
tasks = [subprocess.Popen(command, env={{**os.environ, **step, "SLURM_NODEID": str(node)}}) for node in range(nodes)]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
open("srun.pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, with a `srun` that starts a task a node here, and a `scontrol` that writes down."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {"srun": SRUN.format(python=sys.executable), "scontrol": '#!/bin/sh\n[ "$1" != requeue ] || echo "$@" >> requeued\n',
               "ttl": f'#!/bin/sh\nexec {sys.executable} -m teenytinyllama "$@"\n'}  # fmt: skip
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    job = str(free_port() % 5000)  # its ports follow from it
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "SLURM_JOB_ID": job,
            "NODES": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="bash and signals of Linux")
def test_a_slurm_job_goes_on_after_its_warning(
    slurm: dict[str, str], tmp_path: Path, packed_folder: Path, tokenizer_folder: Path
) -> None:
    words, run = config_of(tmp_path / "job", packed_folder, tokenizer_folder)
    command = ["bash", str(recipes_folder() / "slurm" / "pretrain.sbatch"), words[3], "ddp"]
    with (tmp_path / "out").open("wb") as out:
        job = subprocess.Popen(command, cwd=tmp_path, env=slurm, stdout=out, stderr=subprocess.STDOUT)
        wait_for_step(run, 30)
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
        assert job.wait(120) == 0
    text = (tmp_path / "out").read_text()
    assert "srun --kill-on-bad-exit=1 --wait=150" in text
    assert "USR1" in text
    assert (tmp_path / "requeued").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    assert not (run / "run.json").exists()
    assert subprocess.run(command, cwd=tmp_path, env=slurm, check=False, capture_output=True).returncode == 0
    record = json.loads((run / "run.json").read_text())
    assert record["training"]["world_size"] == 2
    bad = [*command[:2], str(tmp_path / "none.yaml")]
    done = subprocess.run(bad, cwd=tmp_path, env=slurm, check=False, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "requeued").read_text().count("\n")) == (EXIT_BAD_INPUT, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="bash of Linux")
@pytest.mark.parametrize(("script", "words", "expected"), [
    ("evaluate.sbatch", ["MODEL", "--tasks", "arc"], "evaluate MODEL --tasks arc"),
    ("corpus.sbatch", ["c.yaml", "--seed", "3"], "corpus --config c.yaml --workers 7 --seed 3"),
    ("pretrain.sbatch", ["p.yaml"], "pretrain --accelerate ddp --config p.yaml"),
    ("pretrain.sbatch", ["p.yaml", "zero1", "--seed", "3"], "pretrain --accelerate zero1 --config p.yaml --seed 3"),
])  # fmt: skip
def test_a_slurm_script_hands_on_its_words_and_exit_code(
    slurm: dict[str, str], tmp_path: Path, script: str, words: list[str], expected: str
) -> None:
    (tmp_path / "bin" / "ttl").write_text('#!/bin/sh\necho "$@" > words\nexit $CODE\n')
    for code, seen in ((0, 0), (1, 1), (2, 2), (75, 0)):
        environment = slurm | {"NODES": "1", "CODE": str(code), "SLURM_CPUS_PER_TASK": "7"}
        path = recipes_folder() / "slurm" / script
        done = subprocess.run(["bash", str(path), *words], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == seen
        assert (tmp_path / "words").read_text() == f"{expected}\n"
        assert (tmp_path / "requeued").exists() == (code == 75)


def test_an_evaluation_works_on_one_machine(slurm: dict[str, str], tmp_path: Path) -> None:
    words = ["--num_machines", "2", "--machine_rank", "0", "--main_process_ip", "127.0.0.1"]
    done = subprocess.run([sys.executable, "-m", "teenytinyllama", "evaluate", str(tmp_path), *words], env=slurm,
                          check=False, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == EXIT_BAD_INPUT
    assert "num_machines=2: `ttl evaluate` works on one machine" in done.stderr
