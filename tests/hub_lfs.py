"""Git LFS on the test Hub: what has to be uploaded, one PUT or several parts, and contents by their sha256."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from hub_access import Hub
from hub_protocol import Answer, Call, HubError, json_answer
from hub_store import Repository

SHA256 = re.compile(r"[0-9a-f]{64}")


def batch(hub: Hub, call: Call, kind: str, id: str) -> Answer:
    """Answer how each object is to be uploaded; objects that are there already have no actions."""
    repository = hub.writable(call, kind, id)
    payload = call.json()
    objects = []
    for item in payload.get("objects", []):
        shown: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
        if not SHA256.fullmatch(str(item["oid"])):
            shown["error"] = {"code": 422, "message": "The oid is not a sha256"}
        elif repository.lfs_path(item["oid"]) is None:
            verify = {"href": f"{hub.url}/api/{kind}/{id}/lfs-verify"}
            shown["actions"] = {"upload": _upload(hub, kind, id, item["oid"], item["size"]), "verify": verify}
        objects.append(shown)
    return json_answer({"transfer": "multipart" if hub.part_bytes else "basic", "objects": objects})


def _upload(hub: Hub, kind: str, id: str, oid: str, size: int) -> dict[str, Any]:
    address = f"{hub.storage_url}/storage/{kind}/{id}/{oid}"
    if not hub.part_bytes or size <= hub.part_bytes:
        return {"href": address}
    parts = {f"{number:05}": f"{address}/{number}" for number in range(1, -(-size // hub.part_bytes) + 1)}
    return {"href": f"{address}/complete", "header": {"chunk_size": str(hub.part_bytes), **parts}}


def storage(hub: Hub, call: Call, kind: str, id: str, oid: str, rest: list[str]) -> Answer:
    """Answer storage itself. The address is the permission, as with a signed one; no token is sent here."""
    repository = hub.store.find(kind, id)
    if repository is None or not SHA256.fullmatch(oid):
        raise HubError(404, "Not Found")
    parts = repository.folder / ".hub" / "parts" / oid
    match call.method, rest:
        case (("GET" | "HEAD"), []):
            path = repository.lfs_path(oid)
            if path is None:
                raise HubError(404, "Not Found")
            return Answer(200, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, path.read_bytes())
        case "PUT", []:
            _keep(repository, oid, call.body)
            return Answer(200, {"ETag": f'"{oid}"'}, write="lfs_put")
        case "PUT", [number] if number.isdigit():
            parts.mkdir(parents=True, exist_ok=True)
            (parts / number).write_bytes(call.body)
            return Answer(200, {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'}, write="lfs_part")
        case "POST", ["complete"]:
            _keep(repository, oid, _joined(parts, call.json()))
            shutil.rmtree(parts)
            return json_answer({"success": True}, write="lfs_complete")
    raise HubError(404, "Not Found")


def verify(hub: Hub, call: Call, kind: str, id: str) -> Answer:
    """Answer whether an object arrived with the size that the client says it has."""
    repository = hub.writable(call, kind, id)
    payload = call.json()
    path = repository.lfs_path(str(payload.get("oid")))
    if path is None or path.stat().st_size != payload.get("size"):
        raise HubError(404, "The object was not uploaded, or has another size")
    return json_answer({})


def _joined(parts: Path, payload: dict[str, Any]) -> bytes:
    """Return the content of the parts that a completion lists, each checked against its etag."""
    contents = []
    for part in sorted(payload.get("parts", []), key=lambda part: part["partNumber"]):
        path = parts / str(part["partNumber"])
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.md5(content).hexdigest() != str(part["etag"]).strip('"'):
            raise HubError(400, f"Part {part['partNumber']} was not uploaded, or is another one")
        contents.append(content)
    return b"".join(contents)


def _keep(repository: Repository, oid: str, content: bytes) -> None:
    """Put content into the store under its sha256.

    Raises:
        HubError: 400, if it has another sha256.
    """
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "The content does not have the sha256 it was announced with")
    repository.keep_lfs(content)
