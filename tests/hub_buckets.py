"""Buckets of the test Hub: storage without history whose files are known by their Xet hash and are all sent by Xet.

A bucket is kept as a repository of the kind `buckets` (see hub_store.py), so that tests look at it by the same means:
each batch is a commit there, which no client sees. Answers are those that `huggingface_hub.HfApi` of 2.4 reads.
"""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hub_access import Hub, web_url
from hub_protocol import Answer, Call, HubError, json_answer
from hub_reads import page
from hub_store import Repository
from hub_writes import ensure_namespace
from hub_xet import gather, take_by_hash, token

DATE = "2026-02-06T12:00:00.000Z"


def answer(hub: Hub, call: Call, id: str, rest: list[str]) -> Answer:
    """Answer /api/buckets/{id}/...

    Raises:
        HubError: the answer is an error.
    """
    if (call.method, rest) == ("POST", []):
        return _create(hub, call, id)
    bucket = hub.repository(call, "buckets", id)
    match call.method, rest:
        case "GET", []:
            files = bucket.commits[bucket.branches["main"]].files.values()
            sizes = {"size": sum(file.size for file in files), "totalFiles": len(files)}
            return json_answer({"id": id, "private": hub.access.is_private(bucket), "createdAt": DATE, **sizes})
        case "DELETE", []:
            hub.store.delete(hub.writable(call, "buckets", id))
            return json_answer({}, write="delete_bucket")
        case "GET", ["tree", *inside]:
            return page(hub, call, list(_tree(bucket, "/".join(inside), call.flag("recursive"))))
        case "POST", ["paths-info"]:
            wanted = set(call.json().get("paths", []))
            return json_answer([entry for entry in _tree(bucket, "", recursive=True) if entry["path"] in wanted])
        case "POST", ["batch"]:
            return _batch(hub.writable(call, "buckets", id), call)
        case "GET", ["xet-write-token"]:
            return token(hub, call, "buckets", id)
        case "GET", ["xet-read-token"]:
            store = gather(bucket)
            return json_answer({"casUrl": f"local://{store}", "exp": int(time.time()) + 3600, "accessToken": "test"})
    raise HubError(404, "Not Found")


def resolve(hub: Hub, call: Call, id: str, name: str) -> Answer:
    """Answer a file of a bucket: a redirect to storage, with the way to get it by Xet."""
    bucket = hub.repository(call, "buckets", id)
    entry = bucket.commits[bucket.branches["main"]].files.get(name)
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound")
    headers = {
        "X-Xet-Hash": xet_hash(bucket.lfs_folder / str(entry.sha256)),
        "X-Xet-Refresh-Route": f"{hub.url}/api/buckets/{id}/xet-read-token",
        "X-Linked-Size": str(entry.size),
        "Location": f"{hub.storage_url}/storage/buckets/{quote(id)}/{entry.sha256}",
    }
    return Answer(302, headers)


@functools.cache  # the name of the file is the hash of its content
def xet_hash(path: Path) -> str:
    """Return the Xet hash of a content in the LFS store."""
    from hf_xet import hash_files

    return str(hash_files([str(path)])[0].hash)


def _create(hub: Hub, call: Call, id: str) -> Answer:
    id = id.replace("me/", f"{call.user}/", 1) if id.startswith("me/") else id
    ensure_namespace(hub, call, "buckets", id)
    address = {"url": web_url(hub, "buckets", id), "name": id}
    if hub.store.find("buckets", id):
        raise HubError(409, f"You already created this bucket: {id}", body=address)
    hub.store.create("buckets", id, str(call.user), private=call.json().get("visibility") == "private")
    return json_answer(address, write="create_bucket")


def _tree(bucket: Repository, prefix: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """Yield the files under a prefix, and the folders in place of what lies deeper if it is not recursive."""
    seen = set()
    for name, entry in sorted(bucket.commits[bucket.branches["main"]].files.items()):
        if not name.startswith(prefix):
            continue
        folder, slash, _ = name[len(prefix) :].lstrip("/").partition("/")
        top = name[: len(name) - len(name[len(prefix) :].lstrip("/"))] + folder
        if slash and not recursive:
            if top not in seen:
                yield {"type": "directory", "path": top, "uploadedAt": DATE}
            seen.add(top)
            continue
        hash = xet_hash(bucket.lfs_folder / str(entry.sha256))
        yield {"type": "file", "path": name, "size": entry.size, "xetHash": hash, "mtime": DATE, "uploadedAt": DATE}


def _batch(bucket: Repository, call: Call) -> Answer:
    """Do the operations of a batch one after the other; those that cannot be done are listed."""
    try:
        operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    except ValueError:
        raise HubError(400, "The body is not one JSON object a line") from None
    head = bucket.commits[bucket.branches["main"]]
    changes: dict[str, bytes | str | None] = {}
    failed = []
    for operation in operations:
        path = str(operation.get("path", ""))
        if any(piece in ("", ".", "..") for piece in path.split("/")):
            failed.append({"path": path, "error": "Invalid path"})
        elif operation.get("type") == "addFile":
            content = take_by_hash(bucket, str(operation.get("xetHash")))
            if content is None:
                failed.append({"path": path, "error": "No file of this Xet hash was uploaded"})
            else:
                changes[path] = bucket.keep_lfs(content)
        elif operation.get("type") == "deleteFile" and path in head.files:
            changes[path] = None
        else:
            failed.append({"path": path, "error": "No such file, or an operation that is not known"})
    if changes:
        bucket.commit("main", changes, f"batch of {len(operations)}", str(call.user))
    body = {"success": not failed, "processed": len(operations), "succeeded": len(changes), "failed": failed}
    return json_answer(body, 200 if changes else 422, write="batch" if changes else None)
