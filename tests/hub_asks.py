"""Ways to ask the test Hub: one request or one commit without the client, or the client in a process of its own."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from hub_server import HubServer

TOKENS = {"hf_ana": "ana", "hf_rui": "rui", "hf_ler": "ana:read"}
COMMIT = "/api/models/ana/m/commit/main"


def run(server: HubServer, home: Path, name: str, argument: str = "", token: str | None = "hf_ana") -> Any:
    """Run a function of hub_client.py in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("hub_client.py")), name, argument]
    done = subprocess.run(command, env=server.environment(home, token), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ask(
    server: HubServer, method: str, path: str, body: object = None, token: str | None = "hf_ana"
) -> tuple[int, Any]:
    """Send one request without the client; return the status and the JSON, or the bytes, of the answer."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content


def commit(
    server: HubServer, *operations: tuple[str, dict], path: str = "/api/models/ana/m/commit/main", **header: str
):
    """Send a commit without the client."""
    lines = [("header", {"summary": "x", **header}), *operations]
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines)
    return ask(server, "POST", path, body.encode())
