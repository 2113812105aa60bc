"""The addresses of the test Hub: which request is answered by what."""

from urllib.parse import parse_qs, unquote, urlsplit

import hub_buckets as buckets
import hub_lfs as lfs
import hub_reads as reads
import hub_writes as writes
import hub_xet as xet
from hub_access import Hub
from hub_cards import validate
from hub_protocol import Answer, Call, HubError, Person, json_answer
from hub_store import Repository


def call_of(method: str, url: str, body: bytes, person: Person | None) -> Call:
    """Return a request as the answers read it."""
    parts = urlsplit(url)
    # Split before unquoting: a slash inside a branch name arrives as %2F.
    path = [unquote(piece) for piece in parts.path.strip("/").split("/")]
    if any(piece in ("", ".", "..") for piece in path):
        raise HubError(400, "Invalid path")
    return Call(method, parts.path, path, parse_qs(parts.query), body, person)


def route(hub: Hub, call: Call) -> Answer:
    """Answer one request.

    Raises:
        HubError: the answer is an error.
    """
    match call.method, call.path:
        case _, ["storage", kind, owner, name, oid, *rest]:
            return lfs.storage(hub, call, kind, f"{owner}/{name}", oid, rest)
        case "GET", ["api", "whoami-v2"]:
            return reads.whoami(hub, call)
        case "POST", ["api", "validate-yaml"]:
            return validate(call.json())
        case "POST", ["api", "repos", "create"]:
            return writes.create(hub, call)
        case "DELETE", ["api", "repos", "delete"]:
            return writes.delete(hub, call)
        case "POST", ["api", "repos", "move"]:
            return writes.move(hub, call)
        case _, ["api", "buckets", owner, name, *rest]:
            return buckets.answer(hub, call, f"{owner}/{name}", rest)
        case (("GET" | "HEAD"), ["buckets", owner, name, "resolve", *file]) if file:
            return buckets.resolve(hub, call, f"{owner}/{name}", "/".join(file))
        case "GET", ["api", ("models" | "datasets" | "spaces") as kind]:
            return reads.repositories(hub, call, kind)
        case _, ["api", ("models" | "datasets" | "spaces") as kind, owner, name, *rest]:
            return _repository(hub, call, kind, f"{owner}/{name}", rest)
        case "GET", ["api", ("models" | "datasets" | "spaces") as kind, name]:
            hub.repository(call, kind, name)
    return _by_page_address(hub, call)


def _by_page_address(hub: Hub, call: Call) -> Answer:
    """Answer addresses that begin with the repository: files, and LFS."""
    kind, path = (call.path[0], call.path[1:]) if call.path[0] in ("datasets", "spaces") else ("models", call.path)
    match call.method, path:
        case "POST", [owner, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
            return lfs.batch(hub, call, kind, f"{owner}/{name.removesuffix('.git')}")
        case (("GET" | "HEAD"), [owner, name, "resolve", revision, *file]) if file:
            repository = hub.repository(call, kind, f"{owner}/{name}")
            return reads.resolve(hub, call, repository, revision, "/".join(file))
    raise HubError(404, "Not Found")


def _repository(hub: Hub, call: Call, kind: str, id: str, rest: list[str]) -> Answer:
    """Answer /api/{kind}/{id}/..."""
    repository = hub.repository(call, kind, id)
    if call.method == "GET":
        return _read(hub, call, repository, rest)
    match call.method, rest:
        case "POST", ["paths-info", revision]:
            return reads.paths_info(hub, call, repository, revision)
        case "PUT", ["settings"]:
            return writes.settings(hub, call, kind, id)
        case "POST", ["preupload", revision]:
            return writes.preupload(hub, call, kind, id, revision)
        case "POST", ["commit", revision]:
            return writes.commit(hub, call, kind, id, revision)
        case "POST", ["branch", branch]:
            return writes.create_branch(hub, call, kind, id, branch)
        case "POST", ["tag", revision]:
            return writes.create_tag(hub, call, kind, id, revision)
        case "DELETE", [("branch" | "tag") as what, name]:
            return writes.delete_ref(hub, call, kind, id, what, name)
        case "POST", ["lfs-verify"]:
            return lfs.verify(hub, call, kind, id)
    raise HubError(404, "Not Found")


def _read(hub: Hub, call: Call, repository: Repository, rest: list[str]) -> Answer:
    """Answer GET /api/{kind}/{id}/..."""
    match rest:
        case [] | ["revision", _]:
            return reads.info(hub, call, repository, rest[1] if rest else "main")
        case ["refs"]:
            return reads.refs(repository)
        case ["commits", revision]:
            return reads.commits(hub, call, repository, revision)
        case ["tree", revision, *inside]:
            return reads.tree(hub, call, repository, revision, "/".join(inside))
        case ["xet-write-token", _]:
            return xet.token(hub, call, repository.kind, repository.id)
        case ["auth-check", *more]:
            hub.access.ensure_reads(repository, call.user)
            if more == ["write"]:
                hub.writable(call, repository.kind, repository.id)
            return json_answer({})
    raise HubError(404, "Not Found")
