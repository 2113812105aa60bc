"""What the Hub client can raise, by name, for the two majors of huggingface_hub that we admit."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions by which a read from the Hub fails: HTTP answers, transport, a file that is not cached.

    The transport is httpx in huggingface_hub 1 and httpx2 in 2 (measured: a dead server raises its ConnectError).
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return (HfHubHTTPError, LocalEntryNotFoundError, transport_module().HTTPError, ConnectionError)


def transport_module() -> Any:
    """Return the HTTP library of the installed Hub client."""
    return import_module("httpx2" if find_spec("httpx2") else "httpx")
