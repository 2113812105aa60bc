"""Several machines: how the `ttl` of each finds the others, what they tell each other, and how a lost one is noticed.

On each machine one `ttl` starts the ranks of that machine. That of machine 0 listens at `main_process_ip`, at the port
after that of the ranks; the others connect. Messages are lines of JSON, and no data of the training goes this way.

A machine that has died or is cut off is noticed by TCP's own keepalive probes: the kernel answers them, however long an
evaluation or a save keeps the processes busy. A closed connection is noticed at once, silence after a minute.
"""

import contextlib
import json
import os
import re
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    RunFailedError,
    counted,
    ensure,
)
from ..stage_folder import __version__

DEFAULT_PORT = 29500  # of the ranks, as in torchrun and accelerate
# Silence of the kernel at the other end: a first probe after 15 s, then one each 15 s, and the third that stays without
# an answer closes the connection; what was sent and not received closes it after a minute too.
_PROBE_SECONDS, _PROBES, _SILENCE_SECONDS = 15, 3, 60
_MEETING_SECONDS = 900.0  # until all machines are there: schedulers start them within minutes
_END_SECONDS = 600.0  # that machine 0 waits for the others to say how their ranks ended, once its own have
_LONGEST_MESSAGE_BYTES = 2**22
_POLL_SECONDS = 0.2
_SHARED_SECONDS = 60.0  # until a new file on a network's file system is seen elsewhere

Message = dict[str, Any]


@dataclass(frozen=True)
class Machines:
    """The machines of a run, as this one knows them.

    Attributes:
        count: of machines.
        rank: number of this one, from 0.
        address: of machine 0, a name or an IP that all can reach.
        port: at machine 0 for the ranks; `ttl` itself takes the next one.
    """

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT


def machines_of_slurm(environment: Mapping[str, str]) -> Machines | None:
    """Return the machines of the `srun` that started this process, or None if it was no srun on several.

    Raises:
        InputError: srun started several tasks a machine.
    """
    count = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", count))
    ensure(
        tasks == count,
        f"SLURM_STEP_NUM_TASKS={tasks}: srun started {counted(tasks, 'task')} on {counted(count, 'machine')}. `ttl` "
        "starts the ranks of a machine itself: use --ntasks-per-node=1.",
    )
    if count == 1 or "SLURM_NODEID" not in environment:
        return None
    job = int(environment.get("SLURM_JOB_ID", "0"))
    port = 20_000 + 2 * (job % 5_000)  # two jobs that share a machine must not share ports
    names = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    return Machines(count, int(environment["SLURM_NODEID"]), first_host(names), port)


def first_host(names: str) -> str:
    """Return the first of Slurm's list of hosts: `gpu[07-09,12],cpu1` is gpu07 and others.

    Raises:
        InputError: the list is empty.
    """
    found = re.match(r"([^\[,]+)(?:\[(\w+))?", names.strip())
    ensure(found, f"SLURM_STEP_NODELIST={names}: names no host. Give --main_process_ip and --machine_rank.")
    assert found
    return found[1] + (found[2] or "")


class Link:
    """The connections between the `ttl` of all machines: on machine 0 one to each other, elsewhere one to machine 0.

    Attributes:
        machines: of the run.
        first_rank: number of the first rank on this machine.
        num_ranks: of all machines.
        interface: of the network that reaches the others.
    """

    def __init__(self, machines: Machines, peers: dict[int, socket.socket], counts: list[int]) -> None:
        """Take connections, by the machine at the other end, and the number of ranks on each machine."""
        self.machines = machines
        self.first_rank, self.num_ranks = sum(counts[: machines.rank]), sum(counts)
        self._peers, self._buffers = peers, dict.fromkeys(peers, b"")
        self._trouble: str | None = None
        self._ended: dict[int, int] = {}
        self.interface = _interface_of(next(iter(peers.values())).getsockname()[0])

    def environment(self) -> dict[str, str]:
        """Return what the ranks of this machine must know of the others."""
        ranks = {"MASTER_ADDR": self.machines.address, "MASTER_PORT": str(self.machines.port),
                 "WORLD_SIZE": str(self.num_ranks), "GROUP_RANK": str(self.machines.rank)}  # fmt: skip
        # gloo takes the network of the host's own name, which on many machines is the loopback.
        own = (
            {"GLOO_SOCKET_IFNAME": self.interface} if self.interface and "GLOO_SOCKET_IFNAME" not in os.environ else {}
        )
        return ranks | own

    def send(self, message: Message) -> None:
        """Send a message to machine 0, or from there to all others; one that is lost is noticed by `trouble`."""
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                _send(self._peers[peer], message)

    def receive(self) -> Message:
        """Return the next message of machine 0; wait for it as long as it is there.

        Raises:
            RunFailedError: it is gone.
        """
        while True:
            for _, message in self._messages(_POLL_SECONDS):
                return message
            if self._trouble:
                raise RunFailedError(f"{self._trouble}.")

    def gather(self) -> dict[int, Message]:
        """Return the next message of each other machine, on machine 0.

        Raises:
            RunFailedError: one is gone.
        """
        found: dict[int, Message] = {}
        while len(found) < self.machines.count - 1:
            found |= dict(self._messages(_POLL_SECONDS))
            if self._trouble:
                raise RunFailedError(f"{self._trouble}. Nothing was started.")
        return found

    def trouble(self) -> str | None:
        """Return what ended or cut off another machine, or None while all are well; asked while the ranks train."""
        for peer, message in self._messages(0.0):
            if "ended" in message:
                self._ended[peer] = int(message["ended"])
                if self._ended[peer] not in (EXIT_DONE, EXIT_RESUMABLE):
                    self._trouble = self._trouble or f"machine {peer}: its ranks ended with code {self._ended[peer]}"
            elif "failed" in message:
                self._trouble = self._trouble or str(message["failed"])
        return self._trouble

    def finish(self, code: int) -> int:
        """Say how the ranks here ended, and return the exit code of the whole: the worst of all machines."""
        if self.machines.rank > 0:
            self.send({"ended": code})
            while not self._trouble:  # machine 0 may still work on the run's end
                for _, message in self._messages(_POLL_SECONDS):
                    if "end" in message:
                        return int(message["end"])
                    if "failed" in message:
                        return EXIT_FAILED
            return code if code not in (EXIT_DONE, EXIT_RESUMABLE) else EXIT_FAILED
        if code not in (EXIT_DONE, EXIT_RESUMABLE):
            self.send({"failed": f"machine 0: its ranks ended with code {code}"})
        deadline = time.monotonic() + _END_SECONDS
        while len(self._ended) < self.machines.count - 1 and time.monotonic() < deadline and not self.trouble():
            time.sleep(_POLL_SECONDS)
        codes = [code, *self._ended.values(), *([EXIT_FAILED] if self._trouble else [])]
        worst = next((one for one in (EXIT_BAD_INPUT, EXIT_FAILED, EXIT_RESUMABLE) if one in codes), EXIT_DONE)
        self.send({"failed": self._trouble} if self._trouble else {"end": worst})
        return worst

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers.values():
            peer.close()

    def _messages(self, seconds: float) -> list[tuple[int, Message]]:
        """Return what has come, with the machine that it came from; wait so long for the first."""
        found: list[tuple[int, Message]] = []
        sockets = {self._peers[peer]: peer for peer in self._peers if peer not in self._closed()}
        if not sockets:
            time.sleep(seconds)
            return found
        for ready in select.select(list(sockets), [], [], seconds)[0]:
            peer = sockets[ready]
            try:
                data = ready.recv(2**16)
            except OSError as error:
                data, reason = b"", f"the network does not reach it any more ({error.strerror or error})"
            else:
                reason = "its `ttl` has ended or its connection was closed"
            self._buffers[peer] += data
            if len(self._buffers[peer]) > _LONGEST_MESSAGE_BYTES:
                data, reason = b"", "it sent what is no message of `ttl`"
            *lines, self._buffers[peer] = self._buffers[peer].split(b"\n")
            found += [(peer, message) for message in map(_parse, lines) if message is not None]
            if not data:
                ready.close()
                said = any("ended" in message or "end" in message for _, message in found) or peer in self._ended
                if not said:
                    self._trouble = self._trouble or f"machine {peer} is lost: {reason}"
        return found

    def _closed(self) -> set[int]:
        return {peer for peer, connection in self._peers.items() if connection.fileno() < 0}


@contextlib.contextmanager
def linked(machines: Machines, num_ranks: int, run: str, seconds: float = _MEETING_SECONDS) -> Iterator[Link | None]:
    """Connect this machine with the others of a run for the block; None where it is the only one.

    Args:
        machines: of the run.
        num_ranks: that this machine starts.
        run: what all of them are to train, so that two runs that share a port do not mix.
        seconds: to wait for all of them.

    Raises:
        InputError: machine 0 cannot listen, the others are not there in time, or they are of another run or version.
    """
    if machines.count == 1:
        yield None
        return
    meet = _await_others if machines.rank == 0 else _find_first
    link = meet(machines, num_ranks, run, seconds)
    try:
        yield link
    except InputError as error:
        link.send({"failed": f"machine {machines.rank} refused: {error}", "end": EXIT_BAD_INPUT})
        raise
    finally:
        link.close()


def _await_others(machines: Machines, num_ranks: int, run: str, seconds: float) -> Link:
    """Listen on machine 0 until all others have come, and tell them the number of ranks on each."""
    port = machines.port + 1
    try:
        server = socket.create_server((machines.address, port), backlog=machines.count)
    except OSError as error:
        raise InputError(
            f"main_process_ip={machines.address}: machine 0 cannot listen there at port {port} "
            f"({error.strerror or error}). Give an address of this machine that the others reach, or another "
            "--main_process_port."
        ) from error
    print(f"machine 0 of {machines.count}: waits at {machines.address}, port {port}, for the others", flush=True)
    peers: dict[int, socket.socket] = {}
    counts = [num_ranks] + [0] * (machines.count - 1)
    deadline = time.monotonic() + seconds
    with server:
        while len(peers) < machines.count - 1:
            missing = [str(rank) for rank in range(1, machines.count) if rank not in peers]
            left = deadline - time.monotonic()
            ensure(
                left > 0,
                f"num_machines={machines.count}: machine {', '.join(missing)} did not come within {seconds:.0f} s. "
                f"Start the same command there, with --main_process_ip {machines.address} and its own --machine_rank; "
                f"ports {machines.port} and {port} must be open.",
            )
            server.settimeout(min(left, 1.0))
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                _welcome(connection, _hello(machines, num_ranks, run), peers, counts)
    link = Link(machines, peers, counts)
    link.send({"ranks": counts})
    return link


def _hello(machines: Machines, num_ranks: int, run: str) -> Message:
    return {"version": __version__, "run": run, "num_machines": machines.count, "machine": machines.rank,
            "ranks": num_ranks}  # fmt: skip


def _welcome(connection: socket.socket, own: Message, peers: dict[int, socket.socket], counts: list[int]) -> None:
    """Take a machine's first message; one that does not belong here is told so and sent away."""
    connection.settimeout(10.0)
    with contextlib.suppress(OSError):
        hello = _read_line(connection) or {}
        machine = hello.get("machine")
        wrong = [f"{key}={hello.get(key)} there, {own[key]} here" for key in ("version", "run", "num_machines")
                 if hello.get(key) != own[key]]  # fmt: skip
        if not isinstance(machine, int) or not 0 < machine < len(counts):
            wrong.append(f"machine_rank={machine}, but it must be 1 to {len(counts) - 1}")
        elif machine in peers:
            wrong.append(f"machine_rank={machine} is there already")
        if wrong or not isinstance(machine, int):
            _send(connection, {"refused": "; ".join(wrong)})
            connection.close()
            return
        counts[machine], peers[machine] = int(hello["ranks"]), connection
        _keep_alive(connection)


def _find_first(machines: Machines, num_ranks: int, run: str, seconds: float) -> Link:
    """Connect with machine 0, and wait until it has all others."""
    place, deadline = (machines.address, machines.port + 1), time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection(place, timeout=5.0)
            break
        except OSError as error:
            ensure(
                time.monotonic() < deadline,
                f"main_process_ip={machines.address}: machine {machines.rank} cannot reach machine 0 at port "
                f"{place[1]} ({error.strerror or error}). Start the same command there with --machine_rank 0, and open "
                "the port.",
            )
            time.sleep(1.0)
    _keep_alive(connection)
    _send(connection, _hello(machines, num_ranks, run))
    connection.settimeout(max(1.0, deadline - time.monotonic()))
    try:
        answer = _read_line(connection) or {"refused": "machine 0 ended before all others were there"}
    except OSError as error:
        answer = {"refused": f"machine 0 waits for others that do not come ({error})"}
    ensure("refused" not in answer, f"machine_rank={machines.rank}: {answer.get('refused')}.")
    return Link(machines, {0: connection}, [int(count) for count in answer["ranks"]])


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel probe the other end, and close the connection after a minute of silence."""
    connection.settimeout(None)
    options = {"TCP_KEEPIDLE": _PROBE_SECONDS, "TCP_KEEPALIVE": _PROBE_SECONDS, "TCP_KEEPINTVL": _PROBE_SECONDS,
               "TCP_KEEPCNT": _PROBES, "TCP_USER_TIMEOUT": 1000 * _SILENCE_SECONDS}  # fmt: skip
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has all but TCP_KEEPALIVE, macOS that one for KEEPIDLE
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: Message) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection: socket.socket) -> Message | None:
    """Return one message, byte by byte so that nothing after it is lost; None at the end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > _LONGEST_MESSAGE_BYTES:
            return None
        line += byte
    return _parse(line)


def _parse(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return name
    return None


def let_others_start(link: Link, resolved: dict[str, Any], run: Path) -> None:
    """Let the other machines check the config against their own files, and start their ranks.

    Raises:
        InputError: one refuses it, its rows or tokenizer are others, or it has another run folder.
    """
    link.send({"check": resolved["given"]})
    for machine, answer in sorted(link.gather().items()):
        refusal = answer.get("refused") or answer.get("failed")
        ensure(not refusal, f"machine {machine} refused the run: {refusal}")
        differing = [key for key, value in resolved["identity"].items() if answer["identity"].get(key) != value]
        ensure(
            not differing,
            f"machine {machine} has other files than machine 0, they differ in {', '.join(differing)}. Copy rows and "
            "tokenizer from one machine to the others.",
        )
    run.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=run, prefix=".machines-") as mark:
        link.send({"look": mark.name})
        seen = {machine: answer.get("seen") for machine, answer in link.gather().items()}
    blind = [str(machine) for machine in sorted(seen) if not seen[machine]]
    if blind:
        with contextlib.suppress(OSError):
            run.rmdir()  # if it was new
        raise InputError(
            f"output_dir={run}: is another one on machine {', '.join(blind)}. All machines must see the same one, on "
            "a file system that they share, under the same path."
        )
    link.send({"start": resolved})


def follow_first(
    link: Link, resolve: Callable[[dict[str, Any]], dict[str, Any]], start: Callable[[dict[str, Any]], int]
) -> int:
    """Do on another machine what machine 0 says, and return the exit code of the whole."""
    while True:
        message = link.receive()
        if "check" in message:
            link.send(_check_own_files(message["check"], resolve))
        elif "look" in message:
            link.send({"seen": _appears(Path(message["look"]))})
        elif "start" in message:
            return start(message["start"])
        else:
            if "failed" in message:
                print(f"error: {message['failed']}", file=sys.stderr, flush=True)
            return int(message.get("end", EXIT_FAILED))


def _check_own_files(values: dict[str, Any], resolve: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Check the run of machine 0 against this machine's files, and return what decides it, or why it is refused."""
    try:
        return {"identity": resolve(values)["identity"]}
    except InputError as error:
        return {"refused": str(error)}


def _appears(path: Path) -> bool:
    """Return whether a file that another machine has just made is seen here, as soon as it is."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
