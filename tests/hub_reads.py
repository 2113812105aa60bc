"""What the test Hub answers to questions: information, listings, history, refs and files."""

import hashlib
from typing import Any
from urllib.parse import quote

from hub_access import Hub
from hub_cards import eval_results, front_matter
from hub_protocol import Answer, Call, HubError, json_answer
from hub_store import Commit, Repository


def whoami(hub: Hub, call: Call) -> Answer:
    """Answer who the token belongs to and what it may do."""
    if call.person is None:
        raise HubError(401, "Invalid username or password.")
    name = call.person.name
    orgs = [
        {"type": "org", "name": org, "roleInOrg": "write"}
        for org, members in hub.access.orgs.items()
        if name in members
    ]
    token = {"displayName": "test", "role": call.person.role}
    who = {"type": "user", "name": name, "fullname": name, "isPro": False, "orgs": orgs}
    return json_answer({**who, "auth": {"type": "access_token", "accessToken": token}})


def info(hub: Hub, call: Call, repository: Repository, revision: str) -> Answer:
    """Answer what model_info, dataset_info and space_info read."""
    commit = hub.commit(repository, revision)
    everything = _info(hub, repository, commit, with_blobs=call.flag("blobs"))
    wanted = call.query.get("expand") or call.query.get("expand[]")
    if wanted:
        everything["evalResults"] = eval_results(repository, commit)
        everything["usedStorage"] = sum(entry.size for entry in commit.files.values())
        everything = {name: everything.get(name) for name in ("_id", "id", *wanted) if name in everything}
    return json_answer(everything)


def _info(hub: Hub, repository: Repository, commit: Commit, with_blobs: bool = False) -> dict[str, Any]:
    card = front_matter(repository, commit)
    history = repository.history(commit.oid)
    return {
        "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
        "id": repository.id,
        "modelId" if repository.kind == "models" else "datasetId": repository.id,
        "author": repository.owner,
        "sha": commit.oid,
        "private": hub.access.is_private(repository),
        "gated": hub.access.gating(repository),
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card or None,
        "model-index": card.get("model-index"),
        "sdk": repository.sdk,
        "createdAt": history[-1].date,
        "lastModified": commit.date,
        "siblings": [_sibling(name, entry.as_json(name), with_blobs) for name, entry in commit.files.items()],
    }


def _sibling(name: str, entry: dict[str, Any], with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": name}
    shown = {"rfilename": name, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        lfs = entry["lfs"]
        shown["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return shown


def _tags(card: dict[str, Any]) -> list[str]:
    """Return the tags of a card: its own, and those that the Hub makes of its other fields."""
    found = [str(tag) for tag in _listed(card.get("tags"))]
    found += [card["library_name"]] if card.get("library_name") else []
    found += [str(language) for language in _listed(card.get("language"))]
    found += [f"license:{licence}" for licence in _listed(card.get("license"))]
    found += [f"dataset:{name}" for name in _listed(card.get("datasets"))]
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def repositories(hub: Hub, call: Call, kind: str) -> Answer:
    """Answer the repositories of a kind that the caller sees, of one author or whose name holds a text."""
    author, texts = call.first("author"), [text.lower() for text in call.query.get("search", [])]
    found = [
        _info(hub, repository, repository.history(revision)[0])
        for repository in hub.store.all(kind)
        if hub.access.sees(repository, call.user) and (not author or repository.owner == author)
        for revision in [next((name for name in ("main", *repository.branches) if repository.find(name)), "")]
        if revision and all(text in repository.id.lower() for text in texts)
    ]
    shown = [item for item in found if all(tag in item["tags"] for tag in call.query.get("filter", []))]
    if not call.flag("full"):
        shown = [{name: value for name, value in item.items() if name != "siblings"} for item in shown]
    return page(hub, call, shown)


def tree(hub: Hub, call: Call, repository: Repository, revision: str, inside: str) -> Answer:
    """Answer the entries of a folder, with those of its subfolders if `recursive`."""
    commit = hub.commit(repository, revision)
    prefix = f"{inside}/" if inside else ""
    entries = [
        (name, entry)
        for name, entry in _entries(commit).items()
        if name.startswith(prefix) and (call.flag("recursive") or "/" not in name.removeprefix(prefix))
    ]
    if inside and not entries:
        raise HubError(404, f"{inside} does not exist on {revision}", "EntryNotFound", commit.oid)
    if call.flag("expand"):
        entries = [(name, {**entry, **_last_commit(repository, commit, name)}) for name, entry in entries]
    return page(hub, call, [entry for _, entry in entries])


def paths_info(hub: Hub, call: Call, repository: Repository, revision: str) -> Answer:
    """Answer the entries of some paths; those that do not exist are left out."""
    commit, form = hub.commit(repository, revision), call.form()
    entries = _entries(commit)
    names = [name for name in dict.fromkeys(form.get("paths", [])) if name in entries]
    is_expanded = form.get("expand", [""])[0].lower() == "true"
    return json_answer(
        [{**entries[name], **(_last_commit(repository, commit, name) if is_expanded else {})} for name in names]
    )


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """Return all entries of a commit by path, sorted; a folder's id is a hash of what is in it."""
    entries = {name: entry.as_json(name) for name, entry in commit.files.items()}
    folders: dict[str, list[str]] = {}
    for name, entry in commit.files.items():
        pieces = name.split("/")
        for depth in range(1, len(pieces)):
            folders.setdefault("/".join(pieces[:depth]), []).append(f"{name} {entry.oid}")
    for name, lines in folders.items():
        oid = hashlib.sha1("\n".join(lines).encode()).hexdigest()
        entries[name] = {"type": "directory", "path": name, "oid": oid, "size": 0}
    return dict(sorted(entries.items()))


def _last_commit(repository: Repository, commit: Commit, name: str) -> dict[str, Any]:
    """Return the commit that last changed a path."""
    oid, last = _entries(commit)[name]["oid"], commit
    for older in repository.history(commit.oid):
        entry = _entries(older).get(name)
        if entry is None or entry["oid"] != oid:
            break
        last = older
    return {"lastCommit": {"id": last.oid, "title": last.title, "date": last.date}}


def commits(hub: Hub, call: Call, repository: Repository, revision: str) -> Answer:
    """Answer the history of a revision, newest first."""
    history = repository.history(hub.commit(repository, revision).oid)
    shown = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author, "avatar": ""}],
        }
        for commit in history
    ]
    return page(hub, call, shown)


def refs(repository: Repository) -> Answer:
    """Answer branches and tags."""
    kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
    shown = {
        kind: [{"name": name, "ref": f"refs/{where}/{name}", "targetCommit": oid} for name, oid in found.items()]
        for kind, (where, found) in kinds.items()
    }
    return json_answer({**shown, "converts": [], "pullRequests": []})


def resolve(hub: Hub, call: Call, repository: Repository, revision: str, name: str) -> Answer:
    """Answer a file; an LFS file is a redirect to storage, as on the Hub."""
    commit = hub.commit(repository, revision)
    hub.access.ensure_reads(repository, call.user)
    entry = commit.files.get(name)
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if entry.sha256 is None:
        content = repository.path_of(commit, name).read_bytes()
        return Answer(200, {**headers, "ETag": f'"{entry.oid}"'}, content)
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    location = f"{hub.storage_url}/storage/{repository.kind}/{repository.id}/{entry.sha256}"
    return Answer(302, {**headers, "Location": location})


def page(hub: Hub, call: Call, items: list[Any]) -> Answer:
    """Return one page of a list, with a link to the next one."""
    start = int(call.first("cursor", "0"))
    size = min(hub.page_size, int(call.first("limit", str(hub.page_size))))
    headers = {"X-Total-Count": str(len(items))}
    if start + size < len(items):
        pairs = [(name, value) for name, values in call.query.items() for value in values if name != "cursor"]
        following = "&".join(f"{name}={quote(value)}" for name, value in [*pairs, ("cursor", str(start + size))])
        headers["Link"] = f'<{hub.url}{call.url_path}?{following}>; rel="next"'
    return json_answer(items[start : start + size], **headers)
