"""What `ttl app` is told, and the checks that come before anything is loaded."""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass, field
from importlib.util import find_spec

from ..chat.generation import Sampling
from ..checks import InputError, MissingPackageError, ensure

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7860
PACKAGES = {"gradio": "gradio", "sklearn": "scikit-learn"}  # module: distribution


@dataclass
class AppConfig(Sampling):
    """`ttl app MODEL`: defaults of the page's controls, the instruction data, and where the page is served."""

    instructions: list[str] = field(
        default_factory=list,
        metadata={"help": "data to search: files, folders, globs, hf://datasets/user/name@commit, or `sample`"},
    )
    system: str = field(default="", metadata={"help": "what the model is told before the first message"})
    revision: str | None = field(default=None, metadata={"help": "branch, tag or commit of a Hub repository"})
    use_cpu: bool = field(default=False, metadata={"help": "answer on the processor, also where there is a GPU"})
    host: str = field(
        default=DEFAULT_HOST,
        metadata={"help": "address to serve on; the default is for this machine only, 0.0.0.0 all"},
    )
    port: int = field(default=DEFAULT_PORT, metadata={"help": "port to serve on"})
    space_dir: str = field(
        default="", metadata={"help": "do not serve: write a Hugging Face Space to this new or empty folder"}
    )

    def __post_init__(self) -> None:
        """Refuse values that no page can be served with.

        Raises:
            InputError: a port or a sampling value outside its range, or an address where nothing is served.
        """
        super().__post_init__()
        ensure(1 <= self.port <= 65535, f"port={self.port}: must lie between 1 and 65535. {DEFAULT_PORT} is usual.")
        ensure(self.host, f"host={self.host!r}: empty. {DEFAULT_HOST} serves this machine, 0.0.0.0 the whole network.")
        ensure(
            not self.space_dir or (self.host, self.port) == (DEFAULT_HOST, DEFAULT_PORT),
            f"host={self.host}, port={self.port}: mean nothing with space_dir={self.space_dir}, which serves nothing. "
            "Leave them out.",
        )

    def sampling(self) -> Sampling:
        """Return the sampling that the page's controls begin with."""
        return Sampling(**{name: getattr(self, name) for name in Sampling.__dataclass_fields__})


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: who can reach it is unknown
        return False


def check_packages() -> None:
    """Check that the extra is installed, without importing it.

    Raises:
        MissingPackageError: it is not; the message has the pip line.
    """
    missing = [distribution for module, distribution in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingPackageError(
            f"ttl app: needs {' and '.join(missing)}, which is not installed. Run: pip install 'teenytinyllama[app]'"
        )


def check_address(host: str, port: int) -> None:
    """Check that a server can be opened there, by opening and closing one.

    Raises:
        InputError: the port is taken or reserved, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"host={host}: no such address. Use {DEFAULT_HOST}, or 0.0.0.0 for the network.") from error
    with socket.socket(family, kind, protocol) as probe:
        if os.name == "posix":  # as the server does: a port that was closed a minute ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise InputError(f"port={port}: reserved for the system. Give one above 1023, as --port 7861.") from error
        except OSError as error:
            raise InputError(_bind_refusal(host, port, error)) from error


def _bind_refusal(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port={port}: already in use on {host}. End the program that uses it, or give another, as --port 7861."
    return f"host={host}: cannot be served ({error.strerror}). Use {DEFAULT_HOST}, or 0.0.0.0 for the network."
