"""What the test Hub answers: requests to (status, headers, body), read from the plain folders that it serves."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = {".safetensors", ".bin", ".parquet", ".arrow", ".gguf", ".pt", ".pth", ".npy", ".npz", ".zip", ".gz"}
COMMIT = re.compile(r"[0-9a-f]{40}")
# A fixed date keeps answers deterministic.
DATE = "2024-01-30T12:00:00.000Z"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class HubFolder:
    """The served tree and who may read what of it (see `HubServer`)."""

    folder: Path
    private: dict[str, set[str]] = field(default_factory=dict)
    gated: dict[str, set[str]] = field(default_factory=dict)
    page_size: int = 1000
    url: str = ""

    @property
    def storage_url(self) -> str:
        """Another host name for the same port: the client follows redirects that stay on its Hub, and stops here."""
        return self.url.replace("127.0.0.1", "localhost")


class HubError(Exception):
    """An answer that is an error, with the header by which the client chooses its exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        if commit:
            self.headers["X-Repo-Commit"] = commit


def git_oid(content: bytes) -> str:
    """Return the id that git gives to a blob of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a revision folder by their path in the repository, sorted."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def commit_of(folder: Path) -> str:
    """Return the folder's name if it is a commit, else a hash of its files."""
    if COMMIT.fullmatch(folder.name):
        return folder.name
    lines = [f"{name} {git_oid(path.read_bytes())}" for name, path in files_of(folder).items()]
    return hashlib.sha1("\n".join(lines).encode()).hexdigest()


def entry_of(name: str, path: Path) -> dict[str, Any]:
    """Return the tree entry of a file."""
    content = path.read_bytes()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
    if path.suffix in LFS_SUFFIXES:
        sha256 = hashlib.sha256(content).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        entry["oid"] = git_oid(pointer)
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return entry


def _json(value: object, **headers: str) -> Answer:
    return 200, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def route(hub: HubFolder, user: str | None, url: str, form: dict[str, list[str]]) -> Answer:
    """Answer one request: (status, headers, body)."""
    parts = urlsplit(url)
    # Split before unquoting: a slash inside a branch name arrives as %2F.
    path = [unquote(piece) for piece in parts.path.strip("/").split("/")]
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    match path:
        case ["storage", sha256]:
            return _storage(hub, sha256)
        case ["api", "whoami-v2"]:
            if user is None:
                raise HubError(401, "Invalid username or password.")
            return _json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})
        case ["api", ("models" | "datasets") as kind, owner, name, *rest]:
            repository = f"{owner}/{name}"
            branches = _branches(hub, user, kind, repository)
            return _api(hub, kind, repository, branches, rest, query, form, parts.path)
        case ["datasets", owner, name, "resolve", revision, *file] if file:
            return _resolve(hub, user, "datasets", f"{owner}/{name}", revision, "/".join(file))
        case [owner, name, "resolve", revision, *file] if file:
            return _resolve(hub, user, "models", f"{owner}/{name}", revision, "/".join(file))
    raise HubError(404, "Not Found")


def _branches(hub: HubFolder, user: str | None, kind: str, repository: str) -> dict[str, Path]:
    """Return the revision folders of a repository that the user may see, by name."""
    folder = hub.folder / kind / repository
    hidden = repository in hub.private and user not in hub.private[repository]
    if hidden or not folder.is_dir():
        if user is None:  # the Hub does not tell a stranger whether a private repository exists
            raise HubError(401, "Invalid username or password.")
        raise HubError(404, "Repository not found", "RepoNotFound")
    # A slash in the name of a branch is written %2F in that of its folder.
    return {unquote(path.name): path for path in sorted(folder.iterdir()) if path.is_dir()}


def _revision(branches: dict[str, Path], revision: str) -> tuple[Path, str]:
    """Return the folder and the commit of a branch name or commit."""
    for name, folder in branches.items():
        if revision in (name, commit_of(folder)):
            return folder, commit_of(folder)
    raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _api(
    hub: HubFolder,
    kind: str,
    repository: str,
    branches: dict[str, Path],
    rest: list[str],
    query: dict[str, str],
    form: dict[str, list[str]],
    url_path: str,
) -> Answer:
    """Answer /api/{models,datasets}/{repository}/..."""
    match rest:
        case [] | ["revision", _]:
            folder, commit = _revision(branches, rest[1] if rest else "main")
            return _json(_info(hub, kind, repository, folder, commit))
        case ["refs"]:
            refs = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit_of(folder)}
                for name, folder in branches.items()
                if not COMMIT.fullmatch(name)
            ]
            return _json({"branches": refs, "tags": [], "converts": [], "pullRequests": []})
        case ["tree", revision, *inside]:
            folder, commit = _revision(branches, revision)
            entries = _tree(folder, "/".join(inside), query.get("recursive", "").lower() in ("true", "1"), commit)
            start = int(query.get("cursor", 0))
            headers = {}
            if start + hub.page_size < len(entries):
                more = "&".join(f"{name}={quote(value)}" for name, value in query.items() if name != "cursor")
                following = f"{hub.url}{url_path}?{more}&cursor={start + hub.page_size}"
                headers["Link"] = f'<{following}>; rel="next"'
            return _json(entries[start : start + hub.page_size], **headers)
        case ["paths-info", revision]:
            folder, commit = _revision(branches, revision)
            entries = _tree(folder, "", True, commit)
            return _json([entry for entry in entries if entry["path"] in form.get("paths", [])])
        case ["auth-check"]:
            return _json({})
    raise HubError(404, "Not Found")


def _info(hub: HubFolder, kind: str, repository: str, folder: Path, commit: str) -> dict[str, Any]:
    """Return what model_info and dataset_info read."""
    return {
        "_id": hashlib.sha1(repository.encode()).hexdigest()[:24],
        "id": repository,
        "modelId" if kind == "models" else "datasetId": repository,
        "author": repository.split("/")[0],
        "sha": commit,
        "private": repository in hub.private,
        "gated": "manual" if repository in hub.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "createdAt": DATE,
        "lastModified": DATE,
        "siblings": [{"rfilename": name} for name in files_of(folder)],
    }


def _tree(folder: Path, inside: str, recursive: bool, commit: str) -> list[dict[str, Any]]:
    """Return the entries of a folder of a revision, with its subfolders' if `recursive`."""
    root = folder / inside
    if not root.is_dir():
        raise HubError(404, f"{inside} does not exist", "EntryNotFound", commit)
    entries = []
    for path in sorted(root.rglob("*") if recursive else root.iterdir()):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            entries.append({"type": "directory", "path": name, "oid": commit_of(path), "size": 0})
        else:
            entries.append(entry_of(name, path))
    return entries


def _resolve(hub: HubFolder, user: str | None, kind: str, repository: str, revision: str, file: str) -> Answer:
    """Answer HEAD or GET of a file; an LFS file is a redirect to storage, as on the Hub."""
    folder, commit = _revision(_branches(hub, user, kind, repository), revision)
    if repository in hub.gated and user not in hub.gated[repository]:
        raise HubError(401 if user is None else 403, f"Access to {repository} has to be granted.", "GatedRepo")
    path = files_of(folder).get(file)
    if path is None:
        raise HubError(404, "Entry not found", "EntryNotFound", commit)
    entry = entry_of(file, path)
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if "lfs" not in entry:
        return 200, {**headers, "ETag": f'"{entry["oid"]}"'}, path.read_bytes()
    sha256 = entry["lfs"]["oid"]
    headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(entry["size"])}
    return 302, {**headers, "Location": f"{hub.storage_url}/storage/{sha256}"}, b""


def _storage(hub: HubFolder, sha256: str) -> Answer:
    """Answer the content of an LFS file by its hash; the address itself is the permission, as with a signed one."""
    for path in hub.folder.rglob("*"):
        if path.suffix in LFS_SUFFIXES and path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == sha256:
                return 200, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}, content
    raise HubError(404, "Not Found")
