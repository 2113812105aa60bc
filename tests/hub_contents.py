"""What is on the test Hub, for tests to look at and to change without HTTP."""

import threading
from collections.abc import Mapping
from typing import Any

from hub_files import SAMPLE_BYTES, is_lfs
from hub_store import KINDS, Commit, Repository, Store


class HubContents:
    """The repositories of one store; requests and tests take turns."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.RLock()

    def exists(self, repository: str, repo_type: str = "model") -> bool:
        """Return whether a repository is there."""
        return self.store.find(f"{repo_type}s", repository) is not None

    def repository(self, repository: str, repo_type: str = "model") -> Repository:
        """Return a repository as it is now."""
        with self._lock:
            found = self.store.find(f"{repo_type}s", repository)
        assert found is not None, f"the server has no {repo_type} {repository}"
        return found

    def commit(self, repository: str, revision: str = "main", repo_type: str = "model") -> str:
        """Return the 40-digit commit of a revision of a repository."""
        return self._commit(repository, revision, repo_type).oid

    def files(self, repository: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Return the files of a revision by path."""
        found, commit = self.repository(repository, repo_type), self._commit(repository, revision, repo_type)
        return {name: found.path_of(commit, name).read_bytes() for name in commit.files}

    def history(self, repository: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Return the commits that lead to a revision, newest first."""
        return self.repository(repository, repo_type).history(revision)

    def refs(self, repository: str, repo_type: str = "model") -> dict[str, dict[str, str]]:
        """Return the commits of `branches` and of `tags` by name."""
        found = self.repository(repository, repo_type)
        return {"branches": found.branches, "tags": found.tags}

    def info(self, repository: str, repo_type: str = "model") -> dict[str, Any]:
        """Return the settings of a repository: `private` and `gated`."""
        found = self.repository(repository, repo_type)
        return {"private": found.private, "gated": found.gated}

    def _commit(self, repository: str, revision: str, repo_type: str) -> Commit:
        commit = self.repository(repository, repo_type).find(revision)
        assert commit is not None, f"{repository} has no revision {revision}"
        return commit

    def state(self) -> dict[str, Any]:
        """Return all that a client can see, to compare: settings, and the files of each branch and tag by their ids."""
        with self._lock:
            return {
                f"{kind}/{found.id}": {
                    "private": found.private,
                    "gated": found.gated,
                    "branches": {name: _ids(found.commits[oid]) for name, oid in found.branches.items()},
                    "tags": {name: _ids(found.commits[oid]) for name, oid in found.tags.items()},
                }
                for kind in KINDS
                for found in self.store.all(kind)
            }

    def write(
        self,
        repository: str,
        files: Mapping[str, bytes | None],
        revision: str = "main",
        repo_type: str = "model",
        title: str = "written by the test",
    ) -> str:
        """Commit files (None deletes one) as the owner, without HTTP; make the repository or branch if need be.

        Returns:
            The id of the commit; without files there is none, and it is that of the head.
        """
        owner = repository.split("/")[0]
        with self._lock:
            found = self.store.find(f"{repo_type}s", repository)
            found = found or self.store.create(f"{repo_type}s", repository, owner)
            if revision not in found.branches and "main" in found.branches:
                found.branches[revision] = found.branches["main"]
            if not files:
                found.save()
                return found.branches[revision]
            changes = {
                name: found.keep_lfs(content)
                if content and (repo_type == "bucket" or is_lfs(name, content[:SAMPLE_BYTES], len(content)))
                else content
                for name, content in files.items()
            }
            return found.commit(revision, changes, title, owner).oid


def _ids(commit: Commit) -> dict[str, str]:
    return {name: entry.sha256 or entry.oid for name, entry in commit.files.items()}
