"""What the test Hub does when it is told to change something: repositories, commits, branches and tags."""

import base64
import fnmatch
import json
import re
from collections.abc import Iterator
from typing import Any

from hub_access import Hub, web_url
from hub_cards import errors_of
from hub_files import is_lfs
from hub_protocol import Answer, Call, HubError, json_answer
from hub_store import COMMIT, Commit, Repository
from hub_xet import take

NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(?<![.-])(?<!\.git)")
TYPES = {"model": "models", "dataset": "datasets", "space": "spaces"}


def _kind(payload: dict[str, Any]) -> str:
    kind = TYPES.get(payload.get("type") or "model")
    if kind is None:
        raise HubError(400, f"Invalid repo type: {payload.get('type')}")
    return kind


def ensure_namespace(hub: Hub, call: Call, kind: str, id: str) -> None:
    """Refuse a new name that is not valid or lies in a namespace where the caller may not write."""
    owner, _, name = id.partition("/")
    refusal = f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"'
    hub.access.ensure_writes(owner, call.person, refusal)
    if not NAME.fullmatch(name):
        raise HubError(400, f"Invalid repo name: {name}")


def create(hub: Hub, call: Call) -> Answer:
    """Create a repository."""
    payload = call.json()
    kind = _kind(payload)
    id = f"{payload.get('organization') or call.user}/{payload.get('name')}"
    ensure_namespace(hub, call, kind, id)
    address = {"url": web_url(hub, kind, id), "name": id}
    if hub.store.find(kind, id):
        raise HubError(409, f"You already created this {kind[:-1]} repo: {id}", body=address)
    private = payload.get("visibility") == "private" or payload.get("private") is True
    hub.store.create(kind, id, str(call.user), private=private, sdk=payload.get("sdk"))
    return json_answer(address, write="create_repo")


def delete(hub: Hub, call: Call) -> Answer:
    """Delete a repository."""
    payload = call.json()
    id = f"{payload.get('organization') or call.user}/{payload.get('name')}"
    hub.store.delete(hub.writable(call, _kind(payload), id))
    return json_answer({}, write="delete_repo")


def move(hub: Hub, call: Call) -> Answer:
    """Rename a repository; the old name is not kept as a redirect, as it would be on the Hub."""
    payload = call.json()
    kind = _kind(payload)
    repository = hub.writable(call, kind, str(payload.get("fromRepo")))
    target = str(payload.get("toRepo"))
    ensure_namespace(hub, call, kind, target)
    if hub.store.find(kind, target):
        raise HubError(409, f"A {kind[:-1]} repo of this name exists already: {target}")
    hub.store.move(repository, target)
    return json_answer({"url": web_url(hub, kind, target)}, write="move_repo")


def settings(hub: Hub, call: Call, kind: str, id: str) -> Answer:
    """Change who sees a repository and whether its files are gated."""
    repository, payload = hub.writable(call, kind, id), call.json()
    if "visibility" in payload or "private" in payload:
        repository.private = payload.get("visibility") == "private" or payload.get("private") is True
    if payload.get("gated", False) not in ("auto", "manual", False):
        raise HubError(400, "gated must be one of auto, manual, false")
    repository.gated = payload.get("gated", repository.gated)
    repository.save()
    return json_answer({"private": repository.private, "gated": repository.gated}, write="settings")


def preupload(hub: Hub, call: Call, kind: str, id: str, revision: str) -> Answer:
    """Answer for each file whether it goes into the commit itself or through LFS, and what is there now."""
    repository = hub.writable(call, kind, id)
    commit, payload = hub.commit(repository, revision), call.json()
    ignored = [line.strip() for line in payload.get("gitIgnore", "").splitlines() if line.strip()]
    shown = []
    for file in payload.get("files", []):
        path, entry = file["path"], commit.files.get(file["path"])
        as_lfs = is_lfs(path, base64.b64decode(file["sample"]), file["size"], hub.lfs_bytes)
        shown.append(
            {
                "path": path,
                "uploadMode": "lfs" if as_lfs else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(path, pattern) for pattern in ignored),
                "oid": (entry.sha256 or entry.oid) if entry else None,
            }
        )
    return json_answer({"files": shown, "commitOid": commit.oid})


def commit(hub: Hub, call: Call, kind: str, id: str, branch: str) -> Answer:
    """Make a commit of the operations in the body, all or none of them. One that changes nothing is made as well."""
    repository = hub.writable(call, kind, id)
    if call.flag("create_pr"):
        raise HubError(403, "Pull requests are not offered by this server")
    header, operations = _read_lines(call.body)
    if branch not in repository.branches:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    head = repository.commits[repository.branches[branch]]
    if header.get("parentCommit") not in (None, head.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    changes: dict[str, bytes | str | None] = {}
    for key, value in operations:
        changes |= dict(_changes(repository, head, key, value))
    _ensure_tree(head, changes)
    card = changes.get("README.md")
    if isinstance(card, bytes) and (errors := errors_of(card.decode(errors="replace"))):
        raise HubError(400, "Invalid metadata in README.md", body={"errors": [{"message": text} for text in errors]})
    made = repository.commit(branch, changes, header["summary"], str(call.user), header.get("description", ""))
    address = f"{web_url(hub, kind, id)}/commit/{made.oid}"
    return json_answer({"success": True, "commitOid": made.oid, "commitUrl": address, "hookOutput": ""}, write="commit")


def _read_lines(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Return the header and the operations of a commit's body, one JSON object a line."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        operations = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise HubError(400, "The body is not one JSON object a line, each with key and value") from None
    if not operations or operations[0][0] != "header" or not operations[0][1].get("summary"):
        raise HubError(400, "The first line has to be the header, with a summary")
    return operations[0][1], operations[1:]


def _changes(
    repository: Repository, head: Commit, key: str, value: dict[str, Any]
) -> Iterator[tuple[str, bytes | str | None]]:
    """Yield what one operation does to which paths."""
    path = str(value.get("path", ""))
    names = path.removesuffix("/").split("/")
    if any(name in ("", ".", "..", ".git") for name in names):
        raise HubError(400, f"Invalid path: {path}")
    if key == "file":
        content = str(value.get("content", ""))
        yield path, base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
    elif key == "lfsFile":
        oid = str(value.get("oid"))
        if repository.lfs_path(oid) is None and not take(repository, oid):
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
        yield path, oid
    elif key in ("deletedFile", "deletedFolder"):
        prefix = path.removesuffix("/") + "/"
        found = [name for name in head.files if name == path or (key == "deletedFolder" and name.startswith(prefix))]
        if not found:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", head.oid)
        yield from ((name, None) for name in found)
    else:
        raise HubError(400, f"Unknown operation: {key}")


def _ensure_tree(head: Commit, changes: dict[str, bytes | str | None]) -> None:
    """Refuse a path that would be a file and a folder at once."""
    left = {name for name in head.files if name not in changes} | {
        name for name, new in changes.items() if new is not None
    }
    for name in left:
        pieces = name.split("/")
        for depth in range(1, len(pieces)):
            if "/".join(pieces[:depth]) in left:
                raise HubError(400, f"{'/'.join(pieces[:depth])} is a file, so it cannot be a folder")


def create_branch(hub: Hub, call: Call, kind: str, id: str, branch: str) -> Answer:
    """Create a branch at a revision, main unless another one is named."""
    repository = hub.writable(call, kind, id)
    if branch.startswith("refs/") or COMMIT.fullmatch(branch) or not re.fullmatch(r"[\w.][\w./-]*(?<!/)", branch):
        raise HubError(400, f"Invalid reference for a branch: {branch}")
    if branch in repository.branches:
        raise HubError(409, f"Reference already exists: the branch {branch}")
    repository.branches[branch] = hub.commit(repository, call.json().get("startingPoint") or "main").oid
    repository.save()
    return json_answer({"success": True}, write="branch")


def create_tag(hub: Hub, call: Call, kind: str, id: str, revision: str) -> Answer:
    """Create a tag at a revision."""
    repository, tag = hub.writable(call, kind, id), str(call.json().get("tag", ""))
    if not re.fullmatch(r"[\w.][\w./-]*(?<!/)", tag):
        raise HubError(400, f"Invalid reference for a tag: {tag}")
    if tag in repository.tags:
        raise HubError(409, f"Tag reference exists already: {tag}")
    repository.tags[tag] = hub.commit(repository, revision).oid
    repository.save()
    return json_answer({"success": True}, write="tag")


def delete_ref(hub: Hub, call: Call, kind: str, id: str, what: str, name: str) -> Answer:
    """Delete a branch or a tag; its commits stay."""
    repository = hub.writable(call, kind, id)
    refs = repository.branches if what == "branch" else repository.tags
    if what == "branch" and name == "main":
        raise HubError(403, "Forbidden: the branch main cannot be deleted")
    if name not in refs:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    del refs[name]
    repository.save()
    return json_answer({"success": True}, write=f"delete_{what}")
